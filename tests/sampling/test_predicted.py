"""What a denoiser sees behind the noise: diffusers adds the noise, an oracle names it, and what was there is found."""

import inspect

import diffusers
import pytest
import torch

from safelight.sampling.checkpoint import Checkpoint
from safelight.sampling.predicted import Step, clean, watched
from safelight.sampling.schedulers import CLASSES, build, find

NOISE = [name for name, row in CLASSES.items() if not row.flow]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def latents(seed):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def found(scheduler, output, sample, time):
    with watched(scheduler) as seen:
        scheduler.step(output, time, sample, return_dict=False)
        return clean(scheduler, seen[0])


def oracle(scheduler, hidden, noise, time, kind):
    """(the noisy latents, what a perfect denoiser gives for them)."""
    share = float(scheduler.add_noise(torch.zeros(1), torch.ones(1), time.reshape(1)))
    signal = float(scheduler.add_noise(torch.ones(1), torch.zeros(1), time.reshape(1)))
    ratio = share / signal
    outputs = {"epsilon": noise, "v_prediction": (noise - ratio * hidden) / (ratio**2 + 1) ** 0.5, "sample": hidden}
    return signal * hidden + share * noise, outputs[kind]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("index", [0, 7, 19])
@pytest.mark.parametrize("name", NOISE)
def test_what_was_hidden_in_noise_is_found_for_every_class(name, index, kind):
    checkpoint = Checkpoint("EulerDiscreteScheduler", {**BETAS, "prediction_type": kind})
    scheduler = checkpoint.built(name, **CLASSES[name].settings)
    scheduler.set_timesteps(20)
    index = 0 if CLASSES[name].evaluations(20) > 30 else index  # a second evaluation means nothing without the first
    time, hidden = scheduler.timesteps[index], latents(0)
    sample, output = oracle(scheduler, hidden, latents(1), time, kind)
    scheduler.scale_model_input(sample, time)
    error = found(scheduler, output, sample, time) - hidden
    assert error.abs().max() < 1e-3


def test_a_denoiser_that_gives_the_clean_latents_is_believed():
    scheduler = diffusers.DDIMScheduler(**BETAS, prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(20)
    sample, output = oracle(scheduler, latents(0), latents(1), scheduler.timesteps[3], "sample")
    assert torch.equal(found(scheduler, output, sample, scheduler.timesteps[3]), latents(0))


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
@pytest.mark.parametrize("index", [0, 10])
def test_what_was_hidden_by_flow_matching_is_found(name, index):
    scheduler = getattr(diffusers, name)(shift=3.0)
    scheduler.set_timesteps(20)
    index = 0 if "Heun" in name else index
    time, hidden, noise = scheduler.timesteps[index], latents(0), latents(1)
    sample = scheduler.scale_noise(hidden, time.reshape(1), noise)
    assert (found(scheduler, noise - hidden, sample, time) - hidden).abs().max() < 1e-5


def test_where_nobody_knows_the_latents_themselves_are_shown():
    scheduler = diffusers.DDIMScheduler(**BETAS)
    both = torch.zeros(2, 8, 8, 8)  # of a denoiser that says the variance, too
    assert clean(scheduler, Step(both, 1, latents(0), (latents(2),))).equal(latents(2))
    other = diffusers.DDIMScheduler(**BETAS, prediction_type="other")
    assert clean(other, Step(latents(1), 1, latents(0), (latents(2),))).equal(latents(2))
    edm = diffusers.EDMDPMSolverMultistepScheduler()
    assert clean(edm, Step(latents(1), 1, latents(0), (latents(2),))).equal(latents(2))


def test_watching_changes_no_step_and_leaves_nothing_behind():
    scheduler = diffusers.DDIMScheduler(**BETAS)
    scheduler.set_timesteps(20)
    before, parameters = dict(vars(scheduler)), inspect.signature(scheduler.step).parameters
    plain = scheduler.step(latents(1), 951, latents(0)).prev_sample
    with watched(scheduler) as seen:
        assert inspect.signature(scheduler.step).parameters == parameters
        again = scheduler.step(latents(1), timestep=951, sample=latents(0))
        assert seen[0].returned[0] is again.prev_sample
    assert torch.equal(again.prev_sample, plain)
    assert vars(scheduler).keys() == before.keys()


@pytest.mark.parametrize("name", ["Euler", "DPM++ 2M"])
def test_a_sampler_of_ours_tells_the_clean_latents_of_a_flow_model_itself(name):
    scheduler = build(find(name), Checkpoint("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}), batch_size=2)
    scheduler.set_timesteps(10)
    hidden, noise = latents(0), latents(1)
    assert (found(scheduler, noise - hidden, noise, scheduler.timesteps[0]) - hidden).abs().max() < 1e-2
