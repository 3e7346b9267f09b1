"""The table of samplers says what its functions take, and agrees with A1111, diffusers and the schedules there are."""

import inspect

import diffusers
import pytest

from safelight.sampling.samplers import SAMPLERS
from safelight.sampling.schedules import SCHEDULES

# A1111 1.10: modules/sd_samplers_kdiffusion.py, _timesteps.py, _lcm.py
A1111 = {
    "DPM++ 2M": ("k_dpmpp_2m", "karras"),
    "DPM++ SDE": ("k_dpmpp_sde", "karras"),
    "DPM++ 2M SDE": ("k_dpmpp_2m_sde", "exponential"),
    "DPM++ 2M SDE Heun": ("k_dpmpp_2m_sde_heun", "exponential"),
    "DPM++ 2S a": ("k_dpmpp_2s_a", "karras"),
    "DPM++ 3M SDE": ("k_dpmpp_3m_sde", "exponential"),
    "Euler a": ("k_euler_a", "uniform"),
    "Euler": ("k_euler", "uniform"),
    "LMS": ("k_lms", "uniform"),
    "Heun": ("k_heun", "uniform"),
    "DPM2": ("k_dpm_2", "karras"),
    "DPM2 a": ("k_dpm_2_a", "karras"),
    "DPM fast": ("k_dpm_fast", "uniform"),
    "DPM adaptive": ("k_dpm_ad", "uniform"),
    "Restart": ("restart", "karras"),
    "DDIM": ("ddim", "ddim"),
    "DDIM CFG++": ("ddim_cfgpp", "ddim"),
    "PLMS": ("plms", "ddim"),
    "UniPC": ("unipc", "ddim"),
    "LCM": ("k_lcm", "lcm"),
}


def test_the_table_is_a1111s_in_its_order():
    assert [(s.label, (s.aliases[0], s.schedule)) for s in SAMPLERS] == list(A1111.items())


def test_three_leave_out_the_last_level_but_one():
    assert {s.label for s in SAMPLERS if s.discards} == {"DPM++ 3M SDE", "DPM2", "DPM2 a"}


def test_the_sde_samplers_are_brownian():
    assert {s.label for s in SAMPLERS if s.brownian} == {s.label for s in SAMPLERS if "SDE" in s.label}
    assert all(s.draws_noise for s in SAMPLERS if s.brownian)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.label)
def test_its_own_schedule_is_in_the_table_of_schedules(sampler):
    assert sampler.schedule in {schedule.name for schedule in SCHEDULES}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.label)
def test_the_diffusers_classes_exist(sampler):
    for name in sampler.cls:
        assert hasattr(diffusers, name)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.label)
def test_options_are_keywords_with_defaults_and_the_function_names_its_source(sampler):
    for name in sampler.options:
        assert inspect.signature(sampler.run).parameters[name].default is not inspect.Parameter.empty
    assert inspect.isgeneratorfunction(sampler.run) or sampler.run.__annotations__["return"] == "Steps"
    assert sampler.run.__doc__


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.label)
def test_a_refusal_for_flow_models_says_what_to_use(sampler):
    if sampler.flow in ("native", "scaled"):
        return
    instead = sampler.flow.rpartition("use ")[2]
    assert any(other.label in instead and other.flow in ("native", "scaled") for other in SAMPLERS)


def test_what_runs_on_flow_models_as_it_is_draws_noise_by_churn_alone():
    for sampler in SAMPLERS:
        if sampler.flow == "native":
            assert set(sampler.options) in ({"s_churn", "s_tmin", "s_tmax", "s_noise"}, set())
