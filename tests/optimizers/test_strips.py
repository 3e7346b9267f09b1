"""The VAE in strips and tiles, as optimizers: what is asked for reaches the engine, and nothing stays behind."""

import pytest
import tiny
import torch
from test_optimizers import draw, psnr

import safelight
from safelight.errors import DoesNotApply, OutOfMemory, UsageError
from safelight.optimizers.strips import scaled_instead_of_upcast
from safelight.run import decoding


@pytest.fixture
def overflowing():
    """A VAE in float16 that says of itself that it overflows there."""
    pipe = tiny.sd()
    pipe.vae.half()
    pipe.vae.register_to_config(force_upcast=True)
    return pipe


def test_on_a_card_strips_decode_in_float16_what_would_be_upcast(overflowing):
    before = overflowing.vae.config
    with scaled_instead_of_upcast(overflowing.vae, "cuda"), decoding._upcast_if_the_vae_overflows(overflowing):
        assert overflowing.vae.dtype == torch.float16
    assert overflowing.vae.config is before and before["force_upcast"]


def test_on_a_cpu_it_is_still_upcast(overflowing):
    with scaled_instead_of_upcast(overflowing.vae, "cpu"), decoding._upcast_if_the_vae_overflows(overflowing):
        assert overflowing.vae.dtype == torch.float32
    assert overflowing.vae.dtype == torch.float16


@pytest.mark.parametrize("plan", ["fast", "small", "smallest"])
def test_each_plan_draws_the_same_picture(pipe, plan):
    plain = draw(pipe)
    with safelight.optimize(pipe, f"exact-vae={plan}", width=32, height=32) as session:
        (status,) = session.status()
        assert psnr(draw(pipe), plain) > 80
    assert "strips of rows" in status.evidence
    assert torch.equal(draw(pipe), plain)


def test_a_budget_below_the_least_is_told(unet_pipe):
    with pytest.raises(OutOfMemory, match="the least is"):
        safelight.optimize(unet_pipe, "exact-vae.budget=0.001MiB", width=32, height=32)


@pytest.mark.parametrize(
    ("written", "error"),
    [
        ("exact-vae=quick", UsageError),
        ("exact-vae.budget=lots", UsageError),
        ("blended-vae=64", DoesNotApply),
        ("blended-vae=63", UsageError),
        ("blended-vae.overlap=0.9", UsageError),
    ],
)
def test_what_cannot_be_is_refused(unet_pipe, written, error):
    with pytest.raises(error):
        safelight.optimize(unet_pipe, written, width=32, height=32)
