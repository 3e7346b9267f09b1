"""Where a run is, told from the denoiser's calls alone: second evaluations, noise that rises, runs nobody announced."""

from types import SimpleNamespace

import pytest
import tiny
import torch

import safelight
from safelight.optimizers.steps import Steps


def pipe_with(*timesteps):
    return SimpleNamespace(scheduler=SimpleNamespace(timesteps=torch.tensor(timesteps, dtype=torch.float32)))


def test_a_second_evaluation_at_the_same_timestep_is_no_step():
    steps = Steps(pipe_with(900, 600, 600, 300, 300))
    assert [steps.see(t) for t in (900, 600, 600, 300, 300)] == [True, False, False, False, False]
    assert (steps.index, steps.total) == (2, 3)


def test_noise_that_the_schedule_raises_goes_on_in_the_same_run():
    restart = (900, 500, 100, 500, 100)
    steps = Steps(pipe_with(*restart))
    assert [steps.see(t) for t in restart] == [True, False, False, False, False]
    assert (steps.index, steps.total) == (4, 5)


def test_noise_that_rises_where_the_schedule_falls_is_another_run():
    steps = Steps(pipe_with(900, 500, 100))
    assert [steps.see(t) for t in (900, 500, 900)] == [True, False, True]
    assert steps.index == 0


def test_a_schedule_set_anew_is_another_run_also_at_the_same_timestep():
    pipe = pipe_with(900, 500)
    steps = Steps(pipe)
    assert steps.see(900)
    pipe.scheduler.timesteps = pipe.scheduler.timesteps.clone()
    assert steps.see(900)


@pytest.mark.parametrize("sampler", ["Restart", "DPM2 a", "Heun", "DPM adaptive", "Euler"])
def test_a_step_cache_knows_its_steps_whatever_the_sampler_does_with_the_noise(sampler):
    churn = {"s_churn": 8.0} if sampler == "Euler" else {}
    with safelight.optimize(tiny.sd(), "deep-cache=2", width=32, height=32) as session:
        made = session.generate("a cat", steps=24, seed=1, sampler=sampler, width=32, height=32, **churn)
        assert session.status()[0].engaged
    assert len(made.pictures) == 1
