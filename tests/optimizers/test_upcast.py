"""The VAE, or the scheduler's arithmetic, in another number format than the denoiser."""

import pytest
import tiny
import torch
from test_optimizers import draw, psnr, snapshot

import safelight
from optimizers.off_upcast import no_cast, predictions_stay_small
from safelight.errors import Conflict, DidNotEngage, DoesNotApply
from safelight.optimizers import target_of
from safelight.planner import plan, wish
from safelight.probe.device import Device
from safelight.run import decoding

PIPES = {"sd": tiny.sd, "sdxl": tiny.sdxl, "flux": tiny.flux, "sd3": tiny.sd3}
A_CARD = Device("cuda", 0, "a card", 2**34, 2**34, (8, 9), ("float32", "bfloat16", "float16"))
OLD_CPU = Device("cpu", 0, "an old CPU", 2**34, 2**34)


@pytest.fixture(params=PIPES)
def half(request):
    """A pipeline in bfloat16."""
    return PIPES[request.param]().to(torch.bfloat16)


@pytest.mark.parametrize("name", ["upcast-vae", "upcast-sampling"])
def test_it_engages_in_a_16_bit_pipeline_and_is_undone(half, name):
    plain, state = draw(half), snapshot(half)
    with safelight.optimize(half, name) as session:
        (status,) = session.status()
        planned = draw(half)
    assert "float32" in status.evidence
    assert psnr(planned, plain) > 25
    assert torch.equal(draw(half), plain)
    assert snapshot(half) == state


@pytest.mark.parametrize(
    ("name", "off"), [("upcast-vae", no_cast), ("upcast-sampling", predictions_stay_small)], ids=["vae", "sampling"]
)
def test_switched_off_inside_it_did_not_engage(half, name, off):
    with pytest.raises(DidNotEngage, match=name), off(), safelight.optimize(half, name):
        pass


def test_the_decoder_gives_float32_from_a_16_bit_pipeline(half):
    with safelight.optimize(half, "upcast-vae"):
        assert draw_dtype(half) == torch.float32
    assert draw_dtype(half) == torch.bfloat16


def draw_dtype(pipe):
    found = []
    hook = pipe.vae.decoder.register_forward_hook(lambda _m, _i, output: found.append(output.dtype))
    draw(pipe)
    hook.remove()
    return found[-1]


@pytest.mark.parametrize("written", ["upcast-vae,dtype=bfloat16", "dtype=bfloat16,upcast-vae"])
def test_upcast_vae_comes_after_dtype_however_it_is_written(unet_pipe, written):
    plain = draw(unet_pipe)
    with safelight.optimize(unet_pipe, written) as session:
        assert [status.name for status in session.status()] == ["dtype", "upcast-vae"]
        assert unet_pipe.vae.dtype == torch.float32
    assert torch.equal(draw(unet_pipe), plain)


def test_upcast_vae_saves_the_upcast_at_each_decode():
    """run/decoding.py upcasts a VAE in float16 that says it overflows, and puts it back, at every decode."""
    pipe = tiny.sd()
    pipe.vae.half()
    to, casts = pipe.vae.to, []
    pipe.vae.to = lambda *args, **kwargs: (casts.append(kwargs), to(*args, **kwargs))[1]
    with decoding._upcast_if_the_vae_overflows(pipe):
        pass
    assert len(casts) == 1
    with safelight.optimize(pipe, "dtype=bfloat16,upcast-vae"):
        casts.clear()
        draw(pipe)
        assert not casts


def test_latents_stay_in_float32_from_the_noise_to_the_decoder(half):
    samples = []
    with safelight.optimize(half, "upcast-sampling") as session:
        step = type(half.scheduler).step

        def look(self, model_output, timestep, sample, *args, **kwargs):
            samples.append((model_output.dtype, sample.dtype))
            return step(self, model_output, timestep, sample, *args, **kwargs)

        type(half.scheduler).step = look
        try:
            session.generate("a cat", steps=3, seed=1, width=32, height=32)
            half("a cat", num_inference_steps=2, width=32, height=32)
        finally:
            type(half.scheduler).step = step
    assert len(samples) == 5
    assert set(samples) == {(torch.float32, torch.float32)}


def test_noise_is_not_rounded_while_sampling_is_upcast(unet_pipe):
    unet_pipe.to(torch.bfloat16)
    first = []
    with safelight.optimize(unet_pipe, "upcast-sampling") as session:
        step = type(unet_pipe.scheduler).scale_model_input

        def look(self, sample, timestep):
            first.append(sample)
            return step(self, sample, timestep)

        type(unet_pipe.scheduler).scale_model_input = look
        try:
            session.generate("a cat", steps=2, seed=1)
        finally:
            type(unet_pipe.scheduler).scale_model_input = step
    assert not torch.equal(first[0], first[0].bfloat16().float())


def test_another_sampler_scales_its_own_noise(unet_pipe):
    """prepare_latents scales by the scheduler of the run, which a request brings along."""
    unet_pipe.to(torch.bfloat16)
    plain = safelight.optimize(unet_pipe, "").generate("a cat", steps=4, seed=1, sampler="DDIM")
    with safelight.optimize(unet_pipe, "upcast-sampling") as session:
        planned = session.generate("a cat", steps=4, seed=1, sampler="DDIM")
    images = [torch.tensor(list(r.pictures[0].image.tobytes())).float() / 255 for r in (plain, planned)]
    assert psnr(*images) > 25


@pytest.mark.parametrize(
    ("written", "device", "says"),
    [
        ("upcast-vae", A_CARD, "everything is in float32 already"),
        ("upcast-sampling", A_CARD, "computes in float32"),
        ("half-vae", OLD_CPU, "no 16 bit format"),
        ("half-vae=float16", OLD_CPU, "150 times slower"),
        ("half-vae=float16", A_CARD, "force_upcast"),
        ("half-vae=float32", A_CARD, "no half"),
    ],
)
def test_what_does_not_fit_says_why(unet_pipe, written, device, says):
    with pytest.raises(DoesNotApply, match=says):
        plan(target_of(unet_pipe, device, width=32, height=32), wish(written))


def test_half_vae_fits_a_16_bit_model_only_where_its_vae_would_be_upcast():
    pipe = tiny.sd().to(torch.bfloat16)
    assert plan(target_of(pipe, A_CARD, width=32, height=32), wish("half-vae")).choices
    pipe.vae.register_to_config(force_upcast=False)
    with pytest.raises(DoesNotApply, match="in bfloat16 already"):
        plan(target_of(pipe, A_CARD, width=32, height=32), wish("half-vae"))


def test_a_vae_is_upcast_or_halved(unet_pipe):
    unet_pipe.to(torch.bfloat16)
    with pytest.raises(Conflict, match="exclude each other"):
        plan(target_of(unet_pipe, A_CARD, width=32, height=32), wish("upcast-vae,half-vae"))
