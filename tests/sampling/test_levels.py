"""Noise levels are those that diffusers' schedulers and A1111 compute from the same config."""

import json
from pathlib import Path

import diffusers
import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.errors import DoesNotApply
from safelight.sampling.levels import Levels

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
REFERENCE = json.loads((Path(__file__).parent / "reference_schedules.json").read_text())
NOISE, FLOW = Levels.of("DDIMScheduler", SD), Levels.of("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
BOTH = pytest.mark.parametrize("levels", [NOISE, FLOW], ids=["noise", "flow"])


@pytest.mark.parametrize("config", [SD, SD | {"beta_schedule": "linear"}, SD | {"beta_schedule": "squaredcos_cap_v2"}])
def test_noise_levels_are_those_of_diffusers(config):
    alphas = diffusers.DDIMScheduler.from_config(config).alphas_cumprod.double()
    ours = 1 / (1 + Levels.of("DDIMScheduler", config).sigmas ** 2)
    assert torch.allclose(ours, alphas, rtol=1e-5, atol=1e-7)


def test_trained_betas_are_taken_as_they_are():
    betas = numpy.linspace(0.001, 0.02, 50)
    alphas = diffusers.DDIMScheduler(num_train_timesteps=50, trained_betas=betas).alphas_cumprod.double()
    levels = Levels.of("DDIMScheduler", SD | {"trained_betas": betas.tolist()})
    assert torch.allclose(levels.sigmas, ((1 - alphas) / alphas).sqrt(), rtol=1e-4)


def test_the_ends_are_a1111s():
    assert NOISE.sigma_min == pytest.approx(REFERENCE["levels"]["sigma_min"], rel=1e-6)
    assert NOISE.sigma_max == pytest.approx(REFERENCE["levels"]["sigma_max"], rel=1e-6)


def test_zero_terminal_snr_ends_at_a1111s_finite_sigma():
    levels = Levels.of("EulerDiscreteScheduler", SD | {"rescale_betas_zero_snr": True})
    recorded = REFERENCE["zero_snr"]
    assert levels.sigma_min == pytest.approx(recorded["sigma_min"], rel=1e-6)
    assert levels.sigma_of(900) == pytest.approx(recorded["sigma_900"], rel=1e-5)
    assert levels.sigma_of(998) == pytest.approx(recorded["sigma_998"], rel=1e-5)
    assert levels.sigma_max == pytest.approx(recorded["sigma_max"], rel=1e-5)


def test_a_config_that_says_nothing_of_betas_is_refused():
    with pytest.raises(DoesNotApply, match="beta_schedule 'None' are not known"):
        Levels.of("EDMEulerScheduler", {"sigma_min": 0.002, "sigma_max": 80.0})


@pytest.mark.parametrize("shift", [1.0, 3.0, 13.0])
def test_flow_levels_are_those_of_diffusers(shift):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift).sigmas.flip(0).double()
    ours = Levels.of("FlowMatchEulerDiscreteScheduler", {"shift": shift})
    assert ours.flow
    assert torch.allclose(ours.sigmas, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    "config", [{"prediction_type": "flow_prediction", "flow_shift": 3.0}, {"use_flow_sigmas": True, "flow_shift": 3.0}]
)
def test_solvers_of_flow_models_have_flow_levels(config):
    levels = Levels.of("UniPCMultistepScheduler", SD | config)
    assert levels.flow
    assert torch.equal(levels.sigmas, FLOW.sigmas)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("terminal", [None, 0.1])
def test_levels_shifted_by_the_images_size_are_those_of_diffusers(kind, terminal):
    config = {"use_dynamic_shifting": True, "time_shift_type": kind, "shift_terminal": terminal}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(sigmas=numpy.linspace(1, 0.001, 1000).tolist(), mu=1.15)
    levels = Levels.of("FlowMatchEulerDiscreteScheduler", config, mu=1.15)
    assert torch.allclose(levels.sigmas, scheduler.sigmas[:-1].flip(0).double(), atol=1e-6)


def test_levels_that_depend_on_the_images_size_are_refused_without_it():
    with pytest.raises(DoesNotApply, match="pass mu"):
        Levels.of("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True})


@BOTH
def test_levels_ascend(levels):
    assert (levels.sigmas.diff() > 0).all()
    assert levels.sigmas.dtype == torch.float64


@BOTH
@settings(deadline=None)
@given(index=st.floats(0, 999))
def test_index_and_sigma_are_inverse(levels, index):
    assert levels.index_of(levels.sigma_at(index)) == pytest.approx(index, abs=1e-6)


@BOTH
@settings(deadline=None)
@given(share=st.floats(0, 1))
def test_timestep_and_sigma_are_inverse(levels, share):
    sigma = levels.sigma_min + share * (levels.sigma_max - levels.sigma_min)
    assert levels.sigma_of(levels.t_of(sigma)) == pytest.approx(sigma, rel=1e-9)


@BOTH
def test_outside_of_the_levels_the_ends_are_held(levels):
    assert levels.index_of(levels.sigma_min / 2) == 0
    assert levels.index_of(levels.sigma_max * 2) == 999
    assert (levels.sigma_at(-5), levels.sigma_at(2000)) == (levels.sigma_min, levels.sigma_max)


def test_a_flow_model_is_given_the_share_of_noise_and_not_the_index():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    assert [FLOW.t_of(float(sigma)) for sigma in scheduler.sigmas[:-1]] == pytest.approx(scheduler.timesteps.tolist())
