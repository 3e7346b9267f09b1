"""Weights in fewer bits than they are computed with: fewer bytes are held, and undoing brings every bit back."""

import gc
import weakref
from dataclasses import replace

import pytest
import tiny
import torch
from test_optimizers import draw, psnr, snapshot

import safelight
from safelight.errors import DoesNotApply, UnknownName
from safelight.measure.memory import module_bytes
from safelight.optimizers import OPTIMIZERS, storage, target_of
from safelight.planner import plan, wish

PIPES = {"sd": tiny.sd, "sdxl": tiny.sdxl, "flux": tiny.flux, "sd3": tiny.sd3}


def denoiser(pipe):
    return getattr(pipe, "transformer", None) or pipe.unet


def encoders(pipe):
    return [part for name, part in pipe.components.items() if name.startswith("text_encoder")]


@pytest.mark.parametrize("kind", PIPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("written", ["layerwise-casting", "layerwise-casting=float8_e5m2,layerwise-casting.part=all"])
def test_fewer_bytes_are_held_and_every_bit_comes_back(kind, dtype, written):
    pipe = PIPES[kind]().to(dtype)
    parts = [denoiser(pipe), *(encoders(pipe) if "all" in written else [])]
    plain, state, before = draw(pipe), snapshot(pipe, addresses=False), sum(map(module_bytes, parts))
    weights = [part.state_dict() for part in parts]
    weights = [{key: value.clone() for key, value in held.items()} for held in weights]
    with safelight.optimize(pipe, written) as session:
        planned = draw(pipe)
        assert sum(map(module_bytes, parts)) < (0.8 if dtype == torch.bfloat16 else 0.7) * before
        assert "cast in" in session.status()[0].evidence
        assert denoiser(pipe).dtype == dtype  # libraries draw noise in it
        assert all(encoder.dtype == dtype for encoder in encoders(pipe))
    assert psnr(planned, plain) > 15
    assert torch.equal(draw(pipe), plain)
    assert snapshot(pipe, addresses=False) == state
    for part, held in zip(parts, weights, strict=True):
        assert all(torch.equal(value, held[key]) for key, value in part.state_dict().items())


# not the stand-ins that a compiler of another test has left
PLAIN = (torch.Tensor, torch.nn.Parameter)


def test_no_original_stays_in_memory(unet_pipe):
    originals = [layer.weight.data for layer in storage.castable(unet_pipe.unet, torch.float8_e4m3fn)]
    alive = [weakref.ref(tensor.untyped_storage()) for tensor in originals]
    pointers = {tensor.data_ptr() for tensor in originals}
    del originals
    with safelight.optimize(unet_pipe, "layerwise-casting"):
        gc.collect()
        assert not any(reference() for reference in alive)
        held = {t.data_ptr() for t in gc.get_objects() if type(t) in PLAIN and t.dtype == torch.float32}
        assert len(held & pointers) < len(pointers) / 2  # the allocator gives addresses out anew


def test_the_layout_of_weights_comes_back(unet_pipe):
    plain = draw(unet_pipe)
    unet_pipe.unet.to(memory_format=torch.channels_last)
    strides = [p.stride() for p in unet_pipe.unet.parameters()]
    with safelight.optimize(unet_pipe, "layerwise-casting"):
        pass
    assert [p.stride() for p in unet_pipe.unet.parameters()] == strides
    assert psnr(draw(unet_pipe), plain) > 80


def test_a_disposable_pipeline_keeps_no_file_and_ends_in_one_dtype(unet_pipe, tmp_path):
    target = replace(target_of(unet_pipe, tiny.cpu(), width=32, height=32), disposable=True)
    fixture = OPTIMIZERS["layerwise-casting"].apply(unet_pipe, target)
    proof = next(fixture)
    small = draw(unet_pipe)
    assert proof.evidence()
    next(fixture, None)
    assert {p.dtype for p in unet_pipe.unet.parameters()} == {torch.float32}
    assert torch.equal(draw(unet_pipe), small)  # the lost bits stay lost
    assert not any("forward" in vars(module) for module in unet_pipe.unet.modules())


def test_an_error_in_a_layer_leaves_its_weight_small(unet_pipe):
    layer = next(m for n, m in unet_pipe.unet.named_modules() if n.endswith("attn1.to_q"))
    with safelight.optimize(unet_pipe, "layerwise-casting"):
        with pytest.raises(RuntimeError):
            layer(torch.zeros(1, 1))
        assert layer.weight.dtype == torch.float8_e4m3fn


def test_casts_are_counted_anew_in_each_run(unet_pipe):
    with safelight.optimize(unet_pipe, "layerwise-casting") as session:
        counts = []
        for steps in (2, 4):
            session.generate("a cat", steps=steps, seed=1)
            counts.append(int(session.status()[0].evidence.split("cast in ")[1].split()[0]))
    assert counts[1] == 2 * counts[0]


def test_a_weight_beyond_the_range_of_the_format_stays_as_it_is(unet_pipe):
    layer = next(m for n, m in unet_pipe.unet.named_modules() if n.endswith("attn1.to_q"))
    layer.weight.data[0, 0] = 500.0
    assert torch.tensor(500.0).to(torch.float8_e4m3fn).float() != 500
    assert layer not in storage.castable(unet_pipe.unet, torch.float8_e4m3fn)
    assert layer in storage.castable(unet_pipe.unet, torch.float8_e5m2)


def test_what_other_code_reads_is_left_alone():
    pipe = tiny.sd3()
    for part in (denoiser(pipe), *encoders(pipe)):
        small = {id(layer) for layer in storage.castable(part, torch.float8_e4m3fn)}
        names = [name for name, module in part.named_modules() if id(module) in small]
        assert names
        assert not [name for name in names if "norm" in name or "embed" in name or name.endswith(".wo")]
        assert next(part.parameters()) not in {layer.weight for layer in part.modules() if id(layer) in small}


@pytest.mark.parametrize(
    ("written", "error", "says"),
    [
        ("layerwise-casting=float8_e4m3", UnknownName, "did you mean float8_e4m3fn"),
        ("layerwise-casting.part=vae", UnknownName, "unknown part for layerwise-casting 'vae': known: all, denoiser"),
        (
            "layerwise-casting=float16,dtype=bfloat16",
            DoesNotApply,
            "the weights are in bfloat16: float16 is no smaller",
        ),
    ],
)
def test_what_cannot_be_says_why(unet_pipe, written, error, says):
    with pytest.raises(error, match=says):
        plan(target_of(unet_pipe, tiny.cpu(), width=32, height=32), wish(written))


def test_casting_a_layerwise_cast_model_crashes_in_diffusers(unet_pipe):
    """Its order is a trap: weights first made small are made large by `to`, and their hooks make them another dtype."""
    unet_pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    unet_pipe.to(torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"dtype|type"):
        draw(unet_pipe)


@pytest.mark.parametrize("written", ["layerwise-casting,dtype=bfloat16", "dtype=bfloat16,layerwise-casting"])
def test_a_plan_casts_before_it_stores_however_it_is_written(unet_pipe, written):
    plain = draw(unet_pipe)
    with safelight.optimize(unet_pipe, written) as session:
        assert [status.name for status in session.status()] == ["dtype", "layerwise-casting"]
        assert draw(unet_pipe).isfinite().all()
    assert torch.equal(draw(unet_pipe), plain)


def test_it_works_beside_channels_last_and_upcast_sampling(unet_pipe):
    plain = draw(unet_pipe)
    written = "dtype=bfloat16,layerwise-casting,channels-last,upcast-sampling,upcast-vae"
    with safelight.optimize(unet_pipe, written) as session:
        assert all(status.engaged for status in session.status())
    assert torch.equal(draw(unet_pipe), plain)
