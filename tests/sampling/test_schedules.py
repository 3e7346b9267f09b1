"""Schedules are A1111's, number by number; on flow models diffusers' and ComfyUI's."""

import json
import math
from itertools import pairwise
from pathlib import Path

import diffusers
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.errors import DoesNotApply, UnknownName, UsageError
from safelight.sampling.levels import Levels
from safelight.sampling.schedules import SCHEDULES, find

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
NOISE, FLOW = Levels.of("DDIMScheduler", SD), Levels.of("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
# what A1111's and Forge's own functions give, run on Stable Diffusion's betas (SDXL's are the same)
REFERENCE = json.loads((Path(__file__).parent / "reference_schedules.json").read_text())
RECORDED = [
    (family, name, int(steps), sigmas)
    for family in ("sd15", "sdxl")
    for name, by_steps in REFERENCE[family].items()
    for steps, sigmas in by_steps.items()
]
BUILT = [schedule for schedule in SCHEDULES if schedule.function]
ON_FLOW = [schedule for schedule in BUILT if schedule.flow is True]


def ids(value):
    return getattr(value, "name", None) or (str(value) if isinstance(value, str | int) else "sigmas")


@pytest.mark.parametrize(("family", "name", "steps", "sigmas"), RECORDED, ids=ids)
def test_a_schedule_is_a1111s(family, name, steps, sigmas):
    assert find(name).sigmas(steps, NOISE, family) == pytest.approx(sigmas, rel=1e-5)


def test_every_schedule_of_a1111_is_there():
    labels = (
        "Automatic Uniform Karras Exponential Polyexponential SGM_Uniform KL_Optimal Align_Your_Steps Simple Normal"
    )
    assert {find(label).label.replace(" ", "_") for label in labels.split()} == set(labels.split())
    assert {"DDIM", "Beta", "Turbo"} <= {schedule.label for schedule in SCHEDULES}


@pytest.mark.parametrize("name", ["SGM Uniform", "SGMUniform", "sgm_uniform", "sgm-uniform", "SGM UNIFORM"])
def test_names_labels_and_aliases_mean_the_same_row(name):
    assert find(name).name == "sgm_uniform"


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(UnknownName, match="unknown schedule 'Karas': did you mean Karras"):
        find("Karas")


@pytest.mark.parametrize("schedule", BUILT, ids=ids)
@settings(deadline=None)
@given(steps=st.integers(1, 200))
def test_sigmas_descend_from_the_top_and_count_one_more_than_steps(schedule, steps):
    sigmas = schedule.sigmas(steps, NOISE, "sd15")
    assert all(isinstance(sigma, float) for sigma in sigmas)
    assert all(before > after for before, after in pairwise(sigmas))
    assert sigmas[0] <= 14.615
    if schedule.name != "ddim":
        assert len(sigmas) == steps + 1
    assert sigmas[-1] == (pytest.approx(NOISE.sigma_min) if schedule.name == "kl_optimal" else 0)


def test_ddim_takes_more_steps_than_asked_where_they_do_not_divide_the_levels():
    assert len(find("ddim").sigmas(30, NOISE)) == 32


@pytest.mark.parametrize("schedule", ON_FLOW, ids=ids)
@settings(deadline=None)
@given(steps=st.integers(1, 200))
def test_flow_sigmas_descend_within_the_levels(schedule, steps):
    sigmas = schedule.sigmas(steps, FLOW)
    assert all(before > after for before, after in pairwise(sigmas))
    assert FLOW.sigma_min - 1e-9 <= sigmas[-2] <= sigmas[0] <= 1
    assert sigmas[-1] == 0


@pytest.mark.parametrize("name", ["AYS", "KL Optimal", "Leading"])
def test_what_makes_no_sense_for_flow_is_refused_with_the_reason(name):
    schedule = find(name)
    with pytest.raises(DoesNotApply, match="not for a flow-matching model"):
        schedule.sigmas(10, FLOW, "sd15")
    assert "flow-matching" in schedule.refuses(flow=True)


def test_align_your_steps_is_for_the_two_models_it_was_computed_for():
    with pytest.raises(DoesNotApply, match="computed for sd15 and sdxl alone"):
        find("AYS").sigmas(10, NOISE, "sd3")
    assert find("AYS").refuses(False, "sdxl") is None


def test_align_your_steps_begins_at_the_top_with_one_step_too():
    assert find("AYS").sigmas(1, NOISE, "sdxl") == [pytest.approx(14.615), 0]


def test_automatic_builds_nothing_itself():
    with pytest.raises(UsageError, match="stands for the sampler's own"):
        find("automatic").sigmas(10, NOISE)


def test_no_steps_are_refused():
    with pytest.raises(UsageError, match="asked for 0 steps"):
        find("karras").sigmas(0, NOISE)


# options: what A1111's settings for sigmas and rho do


@pytest.mark.parametrize("name", ["karras", "exponential", "polyexponential", "normal", "beta"])
def test_the_ends_can_be_given(name):
    sigmas = find(name).sigmas(8, NOISE, sigma_min=0.1, sigma_max=10.0)
    assert (sigmas[0], sigmas[-2]) == (pytest.approx(10.0), pytest.approx(0.1))


def test_rho_bends_the_schedule():
    straight, bent = (find("karras").sigmas(9, NOISE, rho=rho) for rho in (1.0, 7.0))
    assert straight[4] == pytest.approx((NOISE.sigma_min + NOISE.sigma_max) / 2)
    assert bent[4] < straight[4]


def test_an_option_of_none_is_the_schedules_own():
    assert find("karras").sigmas(9, NOISE, rho=None) == find("karras").sigmas(9, NOISE)


def test_an_option_the_schedule_does_not_take_is_an_error():
    with pytest.raises(UnknownName, match="option of schedule 'Simple'"):
        find("simple").sigmas(9, NOISE, rho=7.0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 10.0), (3.0, 2.0), (-1.0, None)])
def test_ends_that_are_no_range_are_an_error(low, high):
    with pytest.raises(UsageError, match="use 0 < sigma_min < sigma_max"):
        find("karras").sigmas(9, NOISE, sigma_min=low, sigma_max=high)


# diffusers' spacings


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [7, 20, 32])
def test_spacings_are_those_of_diffusers(spacing, steps):
    scheduler = diffusers.EulerDiscreteScheduler.from_config(SD | {"timestep_spacing": spacing, "steps_offset": 1})
    scheduler.set_timesteps(steps)
    assert find(spacing).sigmas(steps, NOISE) == pytest.approx(scheduler.sigmas.tolist(), rel=1e-4)


@pytest.mark.parametrize("name", ["normal", "linspace"])
def test_normal_on_a_flow_model_is_what_diffusers_does_for_sd3(name):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(28)
    assert find(name).sigmas(28, FLOW) == pytest.approx(scheduler.sigmas.tolist(), rel=1e-4)


@pytest.mark.parametrize("terminal", [None, 0.02], ids=["flux", "qwen-image"])
def test_trailing_on_a_flow_model_is_what_its_pipeline_passes(terminal):
    config = {"use_dynamic_shifting": True, "shift_terminal": terminal}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(sigmas=numpy.linspace(1, 1 / 24, 24).tolist(), mu=0.9)
    levels = Levels.of("FlowMatchEulerDiscreteScheduler", config, mu=0.9)
    assert find("trailing").sigmas(24, levels) == pytest.approx(scheduler.sigmas.tolist(), abs=1e-5)


def test_simple_on_a_flow_model_is_trailing_where_steps_divide_the_levels():
    assert find("simple").sigmas(20, FLOW) == pytest.approx(find("trailing").sigmas(20, FLOW))


def test_zero_terminal_snr_begins_at_the_finite_top():
    levels = Levels.of("EulerDiscreteScheduler", SD | {"rescale_betas_zero_snr": True})
    for schedule in BUILT:
        assert all(map(math.isfinite, schedule.sigmas(20, levels, "sdxl")))
