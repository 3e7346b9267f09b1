"""Deep features: which calls are full, what is reused, and that no run sees another's."""

import pytest
import tiny
import torch
from test_optimizers import draw, psnr

import safelight
from safelight.errors import UsageError
from safelight.optimizers import OPTIMIZERS, target_of
from safelight.optimizers.deepcache import _Feature, _Run
from safelight.optimizers.steps import Steps


class Clocked:
    """A pipeline's scheduler, as far as Steps looks."""

    def __init__(self, times):
        self.scheduler = type("Scheduler", (), {"timesteps": torch.tensor(list(times))})


def full_steps(times, interval, warmup, calls=1):
    run = _Run(Steps(Clocked(times)), interval, warmup, 0)
    sample, full = torch.zeros(2, 4, 8, 8), []
    for index, time in enumerate(times):
        for _ in range(calls):
            run.enter(sample, time)
            if not run.reuse:
                run.made = sample
                full.append(index)
            run.leave(1)
    return full


@pytest.mark.parametrize(
    ("interval", "warmup", "expected"),
    [(3, 3, [0, 1, 2, 5, 8]), (2, 1, [0, 2, 4, 6, 8]), (5, 2, [0, 1, 6]), (100, 1, [0])],
)
def test_the_warm_up_is_whole_and_then_every_interval_th_step(interval, warmup, expected):
    assert full_steps(range(1000, 0, -100), interval, warmup) == expected


def test_guidance_in_two_calls_keeps_a_feature_for_each():
    assert full_steps([3, 2, 1], 3, 1, calls=2) == [0, 0]


def test_a_straight_line_is_continued_and_one_point_is_repeated():
    feature = _Feature(order=1)
    feature.keep(1000.0, torch.tensor([1.0]))
    assert feature.at(900.0) == 1
    feature.keep(800.0, torch.tensor([3.0]))
    assert feature.at(700.0) == 4


def test_half_a_batch_is_run_whole_when_it_first_comes(unet_pipe):
    run = _Run(Steps(Clocked([3, 2, 1])), 3, 1, 0)
    run.enter(torch.zeros(2, 4, 8, 8), 3)
    run.made = torch.zeros(1)
    run.leave(1)
    run.enter(torch.zeros(1, 4, 8, 8), 2)
    assert not run.reuse


def test_it_counts_the_block_calls_that_it_skipped(unet_pipe):
    with safelight.optimize(unet_pipe, "deep-cache=3") as session:
        session.generate("a cat", steps=8, seed=1)
        (status,) = session.status()
    # 3 of the 8 steps are whole at 0, 1, 2, then 5: of one down block, the middle and one up block, 4 times 3 ran
    assert status.evidence == "skipped 12 of 24 calls of the deeper blocks"


@pytest.mark.parametrize("order", [0, 1])
def test_the_picture_stays_near(unet_pipe, order):
    plain = draw(unet_pipe, steps=8)
    with safelight.optimize(unet_pipe, f"deep-cache=2,deep-cache.order={order}", width=32, height=32):
        near = draw(unet_pipe, steps=8)
    assert 20 < psnr(near, plain) < 110


def test_a_run_that_broke_off_leaves_nothing_for_the_next(unet_pipe):
    with safelight.optimize(unet_pipe, "deep-cache=3", width=32, height=32):
        whole = draw(unet_pipe, steps=6)

        def stop(pipe, step, time, values):
            if step == 3:
                raise KeyboardInterrupt
            return values

        with pytest.raises(KeyboardInterrupt):
            unet_pipe("a dog", num_inference_steps=6, width=32, height=32, callback_on_step_end=stop)
        assert torch.equal(draw(unet_pipe, steps=6), whole)


def test_sizes_that_do_not_halve_evenly_are_drawn(unet_pipe):
    unet_pipe.scheduler.set_timesteps(8)
    text = torch.zeros(1, 7, 32)
    with safelight.optimize(unet_pipe, "deep-cache", width=32, height=32), torch.inference_mode():
        for time in (900, 800, 700, 600, 500):
            made = unet_pipe.unet(torch.ones(1, 4, 15, 13), time, text, return_dict=False)[0]
    assert made.shape == (1, 4, 15, 13)


@pytest.mark.parametrize("options", [{"interval": 1}, {"warmup": 0}, {"order": 2}, {"depth": 0}, {"depth": 2}])
def test_a_value_that_cannot_be_names_the_range(unet_pipe, options):
    known = OPTIMIZERS["deep-cache"]
    with pytest.raises(UsageError, match=rf"deep-cache\.{next(iter(options))}"):
        known.fits(target_of(unet_pipe, tiny.cpu(), width=32, height=32), **known.defaults() | options)


def test_a_transformer_is_told_what_is_for_it():
    reason = OPTIMIZERS["deep-cache"].fits(
        target_of(tiny.flux(), tiny.cpu(), width=32, height=32), **OPTIMIZERS["deep-cache"].defaults()
    )
    assert "first-block-cache is for transformers" in reason
