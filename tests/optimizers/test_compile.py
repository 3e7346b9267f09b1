"""Compiling: counted, compared with eager, in buckets of sizes, and undone."""

from contextlib import ExitStack

import pytest
import tiny
import torch
from test_optimizers import draw, psnr

import safelight
from safelight.errors import SpoiledPicture, UnknownName
from safelight.optimizers import OPTIMIZERS, target_of
from safelight.optimizers.compile import Bucket, Meter, Recipe, Watch, regions

DYNAMO = "compile-blocks.backend=eager"


def fits(pipe, name="compile", **options):
    known = OPTIMIZERS[name]
    return known.fits(target_of(pipe, tiny.cpu(), width=32, height=32), **known.defaults() | options)


def bucket(forward, backend):
    meter = Meter(lambda: None, run=2)
    recipe = Recipe("default", fullgraph=True, dynamic=False, backend="eager", freeze=False)
    compiled = meter.backend(backend)
    return Bucket(forward, meter, recipe, compiled, compiled), meter


def test_a_new_size_is_compiled_once_more_with_a_warning_and_the_next_not_at_all():
    double, meter = bucket(lambda x: x * 2 + 1, lambda graph, inputs: graph.forward)
    double(torch.ones(4, 8))
    meter.proved = True
    double(torch.ones(4, 8))
    assert (meter.graphs, meter.late) == (1, 0)
    with pytest.warns(UserWarning, match=r"other sizes than the plan's: \(4, 9\)"):
        double(torch.ones(4, 9))
    double(torch.ones(4, 10))
    assert (meter.graphs, meter.late, meter.calls) == (2, 1, 4)


def test_the_blocks_of_a_unet_and_of_a_transformer():
    unet, transformer = tiny.sd().unet, tiny.flux().transformer
    assert len(regions(unet)) == 2 + 1 + 2
    assert len(regions(transformer)) == 2 + 2
    assert len(regions(tiny.sd3().transformer)) == len(tiny.sd3().transformer.transformer_blocks)


def test_blocks_of_one_kind_share_their_graphs():
    pipe = tiny.flux()
    with safelight.optimize(pipe, DYNAMO, width=32, height=32) as session:
        (status,) = session.status()
    assert int(status.evidence.split()[0]) < len(regions(pipe.transformer))


def test_what_is_compiled_is_compared_with_eager():
    watch = Watch("denoiser", lambda: None)
    watch.compare(torch.ones(8), torch.ones(8) * 1.01)
    for wrong in (torch.zeros(8), torch.full((8,), float("nan"))):
        with pytest.raises(SpoiledPicture, match="the compiled denoiser computes something else"):
            watch.compare(torch.ones(8), wrong)


def test_a_compiler_that_computes_something_else_is_caught_and_undone(unet_pipe):
    plain = draw(unet_pipe)
    registered = torch._dynamo.register_backend

    @registered(name="wrong")
    def wrong(graph, inputs):
        def call(*arguments):
            return tuple(x * 0.5 for x in graph.forward(*arguments))

        return call

    with pytest.raises(SpoiledPicture, match="computes something else"):
        safelight.optimize(unet_pipe, "compile-blocks.backend=wrong", width=32, height=32)
    assert torch.equal(draw(unet_pipe), plain)


def test_the_time_of_compiling_is_told_with_when_it_has_paid():
    meter = Meter(lambda: None, graphs=3, calls=60, seconds=12.0)
    meter.watches.append(Watch("denoiser", lambda: None, eager=[9.0, 0.050], compiled=[9.0, 0.020]))
    assert meter.said() == (
        "3 graphs compiled in 12 s, called 60 times; 600 ms less per picture of 20 steps: paid after 20 pictures"
    )
    meter.watches[0].compiled[1] = 0.060
    assert "not faster" in meter.said()


def test_nothing_is_left_in_the_compilers_settings(unet_pipe):
    import torch._dynamo
    import torch._inductor.config as inductor

    before = torch._dynamo.config.recompile_limit, inductor.freezing
    with safelight.optimize(unet_pipe, DYNAMO, width=32, height=32):
        assert torch._dynamo.config.recompile_limit > before[0]
    assert (torch._dynamo.config.recompile_limit, inductor.freezing) == before


@pytest.mark.parametrize(
    ("options", "error"),
    [({"mode": "fast"}, "compile mode"), ({"parts": "unet"}, "part to compile"), ({"backend": "induktor"}, "inductor")],
)
def test_a_value_that_is_not_there_names_what_is(unet_pipe, options, error):
    with pytest.raises(UnknownName, match=error):
        fits(unet_pipe, **options)


def test_cuda_graphs_are_for_cards_and_for_whole_models(unet_pipe):
    assert "this is a CPU" in fits(unet_pipe, mode="reduce-overhead")
    assert "use compile=reduce-overhead" in fits(unet_pipe, "compile-blocks", mode="reduce-overhead")


def test_a_pipeline_without_a_vae_compiles_its_denoiser_alone(unet_pipe):
    unet_pipe.vae = None
    target = target_of(unet_pipe, tiny.cpu(), width=32, height=32)
    for name, options in (("compile-vae", {"mode": "reduce-overhead"}), ("compile", {"parts": "denoiser+vae"})):
        known = OPTIMIZERS[name]
        assert known.fits(target, **known.defaults() | options) == "this pipeline has no VAE"
    with ExitStack() as stack:
        OPTIMIZERS["compile"].enter(stack, unet_pipe, target, {"backend": "eager"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compile", "compile-blocks"])
def test_inductor_draws_the_same_picture(pipe, name):
    plain = draw(pipe)
    with safelight.optimize(pipe, name, width=32, height=32) as session:
        (status,) = session.status()
        planned = draw(pipe)
    assert "graphs compiled" in status.evidence
    assert psnr(planned, plain) > 80
    assert torch.equal(draw(pipe), plain)


def test_the_vae_is_compiled_beside_the_denoiser_s_blocks(pipe):
    plain = draw(pipe)
    with safelight.optimize(pipe, f"{DYNAMO},compile-vae.backend=eager", width=32, height=32) as session:
        told = {status.name: status.evidence for status in session.status()}
        assert psnr(draw(pipe), plain) > 80
    assert all("graphs compiled" in told[name] for name in ("compile-blocks", "compile-vae")), told
    assert torch.equal(draw(pipe), plain)


@pytest.mark.slow
def test_the_vae_and_the_text_encoder_are_compiled_too(unet_pipe):
    plain = draw(unet_pipe)
    parts = "compile.parts=denoiser+vae+text_encoders,compile.backend=aot_eager"
    with safelight.optimize(unet_pipe, parts, width=32, height=32):
        assert psnr(draw(unet_pipe), plain) > 80
