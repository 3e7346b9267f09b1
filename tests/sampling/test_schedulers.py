"""The names people know give the scheduler they mean, always from the checkpoint's own config."""

import diffusers
import pytest
import tiny

from safelight.errors import DoesNotApply, UnknownName
from safelight.sampling.schedulers import SAMPLERS, build, find, label_of

NOISE = [sampler for sampler in SAMPLERS if not sampler.flow]


def own(pipe):
    return dict(pipe.scheduler.config), type(pipe.scheduler).__name__


@pytest.fixture(scope="module")
def checkpoint():
    return own(tiny.sd())


@pytest.mark.parametrize(
    "name", ["DPM++ 2M Karras", "dpm++ 2m karras", "DPM++_2M-Karras", " DPM++  2M  Karras "], ids=repr
)
def test_case_spaces_hyphens_and_underscores_do_not_count(name):
    assert find(name).label == "DPM++ 2M Karras"


@pytest.mark.parametrize(("alias", "label"), [("k_euler_a", "Euler a"), ("UniPCMultistepScheduler", "UniPC")])
def test_aliases_and_diffusers_classes_are_names_too(alias, label):
    assert find(alias).label == label


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(UnknownName, match="did you mean Euler"):
        find("Eular")


@pytest.mark.parametrize("sampler", NOISE, ids=lambda sampler: sampler.label)
def test_every_row_builds_and_keeps_the_checkpoints_betas(sampler, checkpoint):
    scheduler = build(sampler, *checkpoint)
    assert type(scheduler).__name__ == sampler.cls
    assert scheduler.config.beta_end == 0.012
    assert label_of(scheduler) == sampler.label


def test_karras_does_not_leak_from_one_sampler_into_the_next(checkpoint):
    karras = build(find("DPM++ 2M Karras"), *checkpoint)
    after = build(find("Euler"), dict(karras.config), type(karras).__name__)
    assert not after.config.use_karras_sigmas


@pytest.mark.parametrize("sampler", NOISE[1:], ids=lambda sampler: sampler.label)
def test_a_flow_model_takes_flow_samplers_alone(sampler):
    with pytest.raises(DoesNotApply, match="flow-matching"):
        build(sampler, {}, "FlowMatchEulerDiscreteScheduler")


def test_euler_on_a_flow_model_is_flow_euler():
    scheduler = build(find("Euler"), {"shift": 3.0}, "FlowMatchEulerDiscreteScheduler")
    assert isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler)
    assert scheduler.config.shift == 3.0


def test_a_noise_predicting_model_takes_no_flow_sampler(checkpoint):
    with pytest.raises(DoesNotApply, match="noise-predicting"):
        build(find("Euler flow"), *checkpoint)
