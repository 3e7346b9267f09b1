"""A sampler driven by a pipeline's loop gives what it gives alone, for every kind of model."""

import diffusers
import pytest
import torch

from safelight.errors import DoesNotApply
from safelight.sampling.checkpoint import Checkpoint
from safelight.sampling.driven import MOST_SHARE, Inpaint
from safelight.sampling.levels import Levels
from safelight.sampling.samplers import SAMPLERS
from safelight.sampling.schedulers import build, find
from safelight.sampling.schedules import find as schedule

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
FLOW = Checkpoint("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
SEEN = [sampler for sampler in SAMPLERS if not sampler.unguided]
MEAN, SPREAD = 0.7, 0.4  # of the clean latents that the analytic model knows


def noise_model(kind="epsilon"):
    return Checkpoint("EulerDiscreteScheduler", {**BETAS, "prediction_type": kind})


def normal(seed, shape=(2, 4, 8, 8)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fixed(sigmas):
    """Noise that is the same for the same step, however it is asked for."""
    return lambda sigma, later: normal(round(1e6 * (sigma + later)))


def expected(x, sigma):
    """The mean of clean latents that are normal, behind clean + sigma * noise."""
    return MEAN + (x - MEAN) * SPREAD**2 / (SPREAD**2 + sigma**2)


def told(kind, x, sigma):
    """What a model of this kind gives for it."""
    clean = expected(x, sigma)
    outputs = {
        "epsilon": (x - clean) / sigma,
        "sample": clean,
        "v_prediction": (x / (sigma**2 + 1) - clean) * (sigma**2 + 1) ** 0.5 / sigma,
    }
    return outputs[kind]


def alone(sampler, x, sigmas, **more):
    if sampler.draws_noise:
        more["noise"] = fixed(sigmas)
    running = sampler.run(x, sigmas, **more)
    at, sigma = next(running)
    try:
        while True:
            at, sigma = running.send(expected(at, sigma))
    except StopIteration as end:
        return end.value


def driven(scheduler, first, model, steps, dtype=torch.float32):
    """As pipelines drive it; model: (latents as the model sees them, timestep) -> output."""
    scheduler.noise = lambda sigmas: fixed(sigmas)
    scheduler.set_timesteps(steps)
    latents = (first * scheduler.init_noise_sigma).to(dtype)
    for time in scheduler.timesteps:
        shown = scheduler.scale_model_input(latents, time)
        latents = scheduler.step(model(shown, time).to(dtype), time, latents, return_dict=False)[0]
    return latents


def model_of(kind):
    levels = Levels.of("EulerDiscreteScheduler", BETAS)

    def model(shown, time):
        sigma = levels.sigma_of(float(time))
        return told(kind, shown.float() * (sigma**2 + 1) ** 0.5, sigma)

    return model


def flow_model(shown, time):
    share = min(float(time) / 1000, MOST_SHARE)
    clean = expected(shown.float() / (1 - share), share / (1 - share))
    return (shown.float() - clean) / (float(time) / 1000)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("sampler", SEEN, ids=lambda sampler: sampler.label)
def test_a_pipelines_loop_gives_what_the_sampler_gives_alone(sampler, kind):
    # one that finds its own steps draws other noise for steps that differ in the last digit
    plain = {"eta": 0.0} if sampler.evaluations(10) is None else {}
    scheduler = build(find(sampler.label, "Karras"), noise_model(kind), options=plain, batch_size=2)
    found = driven(scheduler, normal(1), model_of(kind), 10)
    sigmas = scheduler._sigmas
    wanted = alone(sampler, normal(1) * sigmas[0], sigmas, **plain)
    # float32 timesteps say the noise level to seven digits, and models of noise are multiplied by it
    assert (found - wanted).abs().max() < 2e-3 * wanted.abs().max()


@pytest.mark.parametrize("name", ["Euler", "Heun", "DPM++ 2M", "DPM++ 2M SDE", "DPM++ SDE", "Euler a", "UniPC", "LMS"])
def test_a_flow_models_pictures_have_the_mean_and_the_spread_they_should(name):
    first = normal(3, (64, 4, 8, 8))
    scheduler = build(find(name), FLOW, batch_size=64)
    scheduler.noise = None
    scheduler.set_timesteps(60)

    def fresh(sigmas):
        generator = torch.Generator().manual_seed(5)
        return lambda sigma, later: torch.randn(first.shape, generator=generator)

    scheduler.noise = fresh
    latents = first
    for time in scheduler.timesteps:
        latents = scheduler.step(flow_model(latents, time), time, latents, return_dict=False)[0]
    assert abs(float(latents.mean()) - MEAN) < 0.02
    assert abs(float(latents.std()) - SPREAD) < 0.08  # of 60 steps: those with fresh noise converge slowly


def test_euler_on_a_flow_model_is_diffusers_own():
    own = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = build(find("Euler"), FLOW, batch_size=2)
    ours.set_timesteps(12)
    own.set_timesteps(12)
    assert torch.equal(ours.sigmas, own.sigmas)
    latents = theirs = normal(2)
    for time, same in zip(ours.timesteps, own.timesteps, strict=True):
        assert abs(float(time) - float(same)) < 1e-3
        latents = ours.step(flow_model(latents, time), time, latents, return_dict=False)[0]
        theirs = own.step(flow_model(theirs, same), same, theirs, return_dict=False)[0]
    assert (latents - theirs).abs().max() < 1e-4


def test_euler_in_diffusers_and_ours_agree_on_the_same_sigmas():
    ours = build(find("Euler Karras"), noise_model(), batch_size=2)
    found = driven(ours, normal(4), model_of("epsilon"), 15)
    theirs = diffusers.EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True)
    theirs.set_timesteps(15)
    latents = normal(4) * ours.init_noise_sigma
    for time in theirs.timesteps:
        shown = theirs.scale_model_input(latents, time)
        latents = theirs.step(model_of("epsilon")(shown, time), time, latents).prev_sample
    assert (found - latents).abs().max() < 1e-2


def test_what_is_under_way_stays_in_float32():
    """Rounded at every step, bfloat16 latents of a sigma of 14 would be off by some hundredths."""
    runs = [
        driven(build(find("Euler Karras"), noise_model(), batch_size=2), normal(4), model_of("epsilon"), 15, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert runs[1].dtype == torch.bfloat16
    exact = driven(build(find("Euler Karras"), noise_model(), batch_size=2), normal(4), model_of("epsilon"), 15)
    assert (runs[1].float() - exact).abs().max() < 0.03


def test_with_guidance_the_model_is_shown_the_batch_twice():
    scheduler = build(find("Euler"), noise_model(), batch_size=2)
    scheduler.set_timesteps(3)
    latents = normal(1) * scheduler.init_noise_sigma
    shown = scheduler.scale_model_input(torch.cat([latents] * 2), scheduler.timesteps[0])
    assert shown.shape == (4, 4, 8, 8)
    assert torch.equal(shown[:2], shown[2:])


def test_churn_is_what_the_first_evaluation_sees_too():
    scheduler = build(find("Euler"), noise_model(), options={"s_churn": 20.0}, batch_size=2)
    scheduler.noise = lambda sigmas: fixed(sigmas)
    scheduler.set_timesteps(5)
    latents = normal(1) * scheduler.init_noise_sigma
    shown = scheduler.scale_model_input(latents, scheduler.timesteps[0])
    plain = latents / (scheduler.init_noise_sigma**2 + 1) ** 0.5
    assert (shown - plain).abs().max() > 0.1


def test_latents_that_somebody_changed_are_not_silently_dropped():
    scheduler = build(find("Euler"), noise_model(), batch_size=2)
    scheduler.set_timesteps(3)
    latents = normal(1) * scheduler.init_noise_sigma
    after = scheduler.step(normal(2), scheduler.timesteps[0], latents, return_dict=False)[0]
    assert scheduler.step(normal(2), scheduler.timesteps[1], after.clone(), return_dict=False)
    with pytest.raises(DoesNotApply, match="changed between steps"):
        scheduler.step(normal(2), scheduler.timesteps[2], after + 1, return_dict=False)


def test_a_sampler_that_finds_its_own_steps_is_asked_for_each():
    scheduler = build(find("DPM adaptive"), noise_model(), options={"eta": 0.0}, batch_size=2)
    found = driven(scheduler, normal(1), model_of("epsilon"), 10)
    sigmas = schedule("uniform").sigmas(10, scheduler.levels)
    sampler = next(sampler for sampler in SAMPLERS if sampler.label == "DPM adaptive")
    assert scheduler.is_done
    assert (found - alone(sampler, normal(1) * sigmas[0], sigmas, eta=0.0)).abs().max() < 2e-3


def test_what_guidance_adds_is_told_apart_for_cfgpp():
    """Driven with a scale of 12.5 the prompted half is taken whole, and the noise is the other half's."""
    scheduler = build(find("DDIM CFG++"), noise_model(), batch_size=1, guidance=12.5)
    scheduler.set_timesteps(4)
    levels, shape = scheduler.levels, (1, 4, 8, 8)
    x = normal(1, shape) * scheduler.init_noise_sigma
    sigma, later = scheduler._sigmas[:2]
    free, prompted = normal(2, shape), normal(3, shape)
    scheduler.scale_model_input(torch.cat([x, x]), scheduler.timesteps[0])
    scheduler.hear(torch.cat([free, prompted]))
    after = scheduler.step(prompted * 9, scheduler.timesteps[0], x, return_dict=False)[0]
    assert levels.sigma_max >= sigma > later
    assert torch.allclose(after, x - sigma * prompted + later * free, atol=1e-4)


def test_outside_the_mask_the_picture_stays():
    scheduler = build(find("Euler Karras"), noise_model(), batch_size=2)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    scheduler.inpaint = Inpaint(torch.full((2, 4, 8, 8), 3.0), mask)
    found = driven(scheduler, normal(1), model_of("epsilon"), 10)
    assert torch.allclose(found[..., 4:], torch.tensor(3.0), atol=1e-4)
    assert (found[..., :4] - 3).abs().min() > 0.1


def test_a_walk_from_a_picture_begins_with_its_share_of_noise():
    clean, noise = normal(1), normal(2)
    scheduler = build(find("Euler"), noise_model())
    scheduler.set_timesteps(5)
    begun = scheduler.noised(clean, noise) * scheduler.init_noise_sigma
    assert torch.allclose(begun, clean + scheduler._sigmas[0] * noise, atol=1e-4)
    flow = build(find("Euler"), FLOW)
    flow.set_timesteps(5)
    assert torch.allclose(flow.noised(clean, noise), noise)
