"""The names people know give the scheduler they mean, always from the checkpoint's own config."""

import diffusers
import pytest
import tiny
import torch

from safelight.errors import DoesNotApply, UnknownName
from safelight.sampling.schedulers import SAMPLERS, build, find, label_of
from safelight.sampling.schedulers import own as own_scheduler

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


def walked(scheduler, steps=5):
    """Latents after a run in which the model says the same each time: finite if the scheduler's numbers are."""
    scheduler.set_timesteps(steps)
    sample, said = torch.full((1, 4, 2, 2), float(scheduler.init_noise_sigma)), torch.full((1, 4, 2, 2), 0.5)
    for time in scheduler.timesteps:
        scheduler.scale_model_input(sample, time)
        sample = scheduler.step(said, time, sample).prev_sample
    return sample


def test_plain_diffusers_karras_travels_through_a_scheduler_that_does_not_know_it(checkpoint):
    sde = diffusers.DPMSolverMultistepScheduler.from_config(
        checkpoint[0], algorithm_type="sde-dpmsolver++", use_karras_sigmas=True
    )
    ddim = diffusers.DDIMScheduler.from_config(sde.config)
    assert diffusers.EulerDiscreteScheduler.from_config(ddim.config).config.use_karras_sigmas
    assert not build(find("Euler"), dict(ddim.config), "DDIMScheduler").config.use_karras_sigmas


def test_plain_diffusers_a_leaked_algorithm_type_crashes_the_next_class(checkpoint):
    sde = build(find("DPM++ 2M SDE"), *checkpoint)
    with pytest.raises(NotImplementedError, match="sde-dpmsolver"):
        diffusers.DEISMultistepScheduler.from_config(sde.config)


@pytest.mark.parametrize("after", NOISE, ids=lambda sampler: sampler.label)
@pytest.mark.parametrize("before", NOISE, ids=lambda sampler: sampler.label)
def test_any_sampler_after_any_other_is_what_its_name_says(before, after, checkpoint):
    used = build(before, *checkpoint)
    next_one = build(after, dict(used.config), type(used).__name__)
    assert type(next_one).__name__ == after.cls
    assert label_of(next_one) == after.label
    assert all(next_one.config[name] == value for name, value in after.settings.items())


@pytest.mark.parametrize("config", [{}, {"final_sigmas_type": "zero"}], ids=["by default", "by name"])
def test_a_checkpoint_whose_own_scheduler_gives_not_a_number_is_mended(checkpoint, config):
    plain = diffusers.UniPCMultistepScheduler.from_config(checkpoint[0], solver_type="bh1", **config)
    assert not torch.isfinite(walked(plain)).all()
    given = {**checkpoint[0], "solver_type": "bh1", **config}
    assert torch.isfinite(walked(own_scheduler(given, "UniPCMultistepScheduler"))).all()
    assert torch.isfinite(walked(build(find("UniPC"), given, "UniPCMultistepScheduler"))).all()


def test_any_other_scheduler_of_a_checkpoint_stays_as_it_is(checkpoint):
    config, name = checkpoint
    assert own_scheduler(config, name).config == getattr(diffusers, name).from_config(config).config
    unipc = {"beta_end": 0.012, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}
    kept = own_scheduler(unipc, "UniPCMultistepScheduler")
    assert (kept.config.solver_type, kept.config.final_sigmas_type) == ("bh1", "sigma_min")
