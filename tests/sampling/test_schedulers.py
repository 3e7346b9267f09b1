"""A name, a schedule and options become the scheduler they mean, from the checkpoint's own config, or a reason."""

import diffusers
import pytest
import tiny
import torch

from safelight.errors import DoesNotApply, UnknownName
from safelight.sampling.checkpoint import Checkpoint
from safelight.sampling.driven import DrivenScheduler, Walk
from safelight.sampling.samplers import SAMPLERS
from safelight.sampling.schedulers import CLASSES, build, check, find
from safelight.sampling.schedules import SCHEDULES

FLOW = Checkpoint("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
NOISE_CLASSES = [name for name, row in CLASSES.items() if not row.flow]


@pytest.fixture(scope="module")
def checkpoint():
    return Checkpoint.of(tiny.sd())


@pytest.mark.parametrize(
    ("asked", "label", "schedule"),
    [
        (("DPM++ 2M Karras", None), "DPM++ 2M", "Karras"),
        (("dpm++ 2m", "karras"), "DPM++ 2M", "Karras"),
        (("DPM++ 2M", "Automatic"), "DPM++ 2M", None),
        (("DPM++ 2M Karras", "Karras"), "DPM++ 2M", "Karras"),
        (("k_euler_a", "sgm_uniform"), "Euler a", "SGM Uniform"),
        (("DDIMScheduler", None), "DDIMScheduler", None),
        (("ddim_scheduler", "automatic"), "DDIMScheduler", None),
        ((None, None), None, None),
    ],
    ids=str,
)
def test_a_name_and_a_schedule_are_one_recipe(asked, label, schedule):
    recipe = find(*asked)
    assert (recipe.label, recipe.schedule_label) == (label, schedule)


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        (("Eular", None), UnknownName, "did you mean Euler"),
        (("EularDiscreteScheduler", None), UnknownName, "EulerDiscreteScheduler"),
        (("Euler", "Karas"), UnknownName, "Karras"),
        (("Euler Karras", "Exponential"), DoesNotApply, "give one"),
        (("DDIMScheduler", "Karras"), DoesNotApply, "schedule of its config"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_says_what_is_near(asked, error, says):
    with pytest.raises(error, match=says):
        find(*asked)


@pytest.mark.parametrize("name", NOISE_CLASSES)
def test_every_class_of_diffusers_is_built_from_the_checkpoints_betas(name, checkpoint):
    scheduler = build(find(name), checkpoint)
    assert type(scheduler).__name__ == name
    assert scheduler.config.beta_end == 0.012


def test_the_checkpoints_own_class_is_as_it_has_it(checkpoint):
    assert build(find(None), checkpoint).config == checkpoint.own().config
    assert build(find(checkpoint.cls), checkpoint).config == checkpoint.own().config


def test_karras_does_not_leak_from_one_class_into_the_next(checkpoint):
    sde = diffusers.DPMSolverMultistepScheduler.from_config(
        checkpoint.config, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True
    )
    ddim = diffusers.DDIMScheduler.from_config(sde.config)
    assert diffusers.EulerDiscreteScheduler.from_config(ddim.config).config.use_karras_sigmas
    leaked = Checkpoint("DDIMScheduler", dict(ddim.config))
    assert not build(find("EulerDiscreteScheduler"), leaked).config.use_karras_sigmas
    with pytest.raises(NotImplementedError, match="sde-dpmsolver"):
        diffusers.DEISMultistepScheduler.from_config(sde.config)
    assert build(find("DEISMultistepScheduler"), leaked).config.algorithm_type == "deis"


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.label)
def test_every_sampler_takes_every_schedule_of_its_kind_of_model(sampler, checkpoint):
    for schedule in SCHEDULES:
        recipe = find(sampler.label, schedule.name)
        refused = recipe.schedule is not None and schedule.refuses(False, "sd15")
        if refused:
            with pytest.raises(DoesNotApply):
                check(recipe, {}, checkpoint, "sd15")
            continue
        check(recipe, {}, checkpoint, "sd15")
        scheduler = build(recipe, checkpoint, family="sd15")
        scheduler.set_timesteps(10)
        falling = scheduler.sigmas.tolist()
        assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.label)
def test_a_flow_model_takes_a_sampler_or_says_why_not(sampler):
    recipe = find(sampler.label)
    if sampler.flow in ("native", "scaled"):
        check(recipe, {}, FLOW)
        scheduler = build(recipe, FLOW)
        scheduler.set_timesteps(4)
        assert scheduler.init_noise_sigma == 1
        assert torch.equal(scheduler.sigmas[0], torch.tensor(1.0))
        return
    with pytest.raises(DoesNotApply, match=r"flow-matching model: .*use"):
        check(recipe, {}, FLOW)


def test_a_class_for_the_other_kind_of_model_is_refused(checkpoint):
    with pytest.raises(DoesNotApply, match="flow-matching"):
        check(find("EulerDiscreteScheduler"), {}, FLOW)
    with pytest.raises(DoesNotApply, match="noise-predicting"):
        check(find("FlowMatchEulerDiscreteScheduler"), {}, checkpoint)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("DPM++ 2M", {"s_churn": 1.0}, "takes no s-churn: Euler, Heun"),
        ("Euler", {"eta": 1.0}, "takes no eta: .*DDIM"),
        ("DDIMScheduler", {"eta": 1.0}, "takes none"),
        (None, {"s_noise": 1.0}, "own scheduler .*takes none"),
    ],
    ids=str,
)
def test_an_option_that_would_do_nothing_is_an_error(name, options, says, checkpoint):
    with pytest.raises(DoesNotApply, match=says):
        check(find(name), options, checkpoint)


def test_align_your_steps_is_for_the_families_it_was_computed_for(checkpoint):
    with pytest.raises(DoesNotApply, match="sd15 and sdxl alone"):
        check(find("Euler", "Align Your Steps"), {}, checkpoint, None)


def test_a_walk_takes_the_last_steps_of_a_longer_schedule(checkpoint):
    whole, part = (build(find("Euler"), checkpoint, walk=walk) for walk in (Walk(), Walk(total=20, steps=8)))
    whole.set_timesteps(20)
    part.set_timesteps(8)
    assert torch.equal(part.sigmas, whole.sigmas[12:])
    assert torch.equal(part.timesteps, whole.timesteps[12:])


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", ["Euler", "Heun", "PLMS", "DPM++ SDE", "DPM2 a Karras"])
def test_evaluations_are_told_before_the_run(name, steps, checkpoint):
    recipe = find(name, None if "Karras" in name else "Uniform")
    scheduler = build(recipe, checkpoint)
    assert isinstance(scheduler, DrivenScheduler)
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == recipe.evaluations(steps)


@pytest.mark.parametrize("config", [{}, {"final_sigmas_type": "zero"}], ids=["by default", "by name"])
def test_a_checkpoint_whose_own_scheduler_gives_not_a_number_is_mended(checkpoint, config):
    plain = diffusers.UniPCMultistepScheduler.from_config(checkpoint.config, solver_type="bh1", **config)
    assert not torch.isfinite(walked(plain)).all()
    given = Checkpoint("UniPCMultistepScheduler", {**checkpoint.config, "solver_type": "bh1", **config})
    assert torch.isfinite(walked(given.own())).all()


def walked(scheduler, steps=5):
    """Latents after a run in which the model says the same each time: finite if the scheduler's numbers are."""
    scheduler.set_timesteps(steps)
    sample, said = torch.full((1, 4, 2, 2), float(scheduler.init_noise_sigma)), torch.full((1, 4, 2, 2), 0.5)
    for time in scheduler.timesteps:
        scheduler.scale_model_input(sample, time)
        sample = scheduler.step(said, time, sample).prev_sample
    return sample
