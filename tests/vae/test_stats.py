"""What is told of statistics: they are those of the whole, however the rows came."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.vae.stats import Statistics

CHANNELS = 6


def pictures(items: int, height: int, width: int, mean: float, dtype=torch.float32) -> torch.Tensor:
    made = torch.Generator().manual_seed(items * height + width)
    spread = torch.arange(1, CHANNELS + 1).view(-1, 1, 1)
    return (torch.randn(items, CHANNELS, height, width, generator=made) * spread + mean).to(dtype)


def gathered(x: torch.Tensor, cuts: list[int]) -> Statistics:
    found = Statistics(len(x), CHANNELS, x.device)
    bounds = [0, *cuts, x.shape[2]]
    for a, b in pairwise(bounds):
        found.add(x[:, :, a:b].contiguous(memory_format=torch.channels_last))
    return found


@st.composite
def cut_pictures(draw):
    height = draw(st.integers(1, 30))
    cuts = sorted(draw(st.sets(st.integers(1, height - 1)))) if height > 1 else []
    return pictures(draw(st.integers(1, 3)), height, draw(st.integers(1, 9)), draw(st.sampled_from([0, -3, 20]))), cuts


@settings(max_examples=60, deadline=None)
@given(cut_pictures())
def test_strips_of_any_heights_have_the_mean_and_variance_of_the_whole(case):
    x, cuts = case
    found = gathered(x, cuts)
    variance, mean = torch.var_mean(x.double(), (2, 3), correction=0)
    assert found.count == x.shape[2] * x.shape[3]
    # the kernel's sums over a strip are float32: of numbers near 20 the last place is 2e-6
    torch.testing.assert_close(found.mean, mean, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found.m2 / found.count, variance, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(cut_pictures(), st.sampled_from([1, 2, 3, 6]))
def test_groups_have_the_statistics_of_their_channels_taken_together(case, groups):
    x, cuts = case
    mean, variance = gathered(x, cuts).groups(groups)
    true_variance, true_mean = torch.var_mean(x.double().reshape(len(x), groups, -1), 2, correction=0)
    each = CHANNELS // groups
    assert mean.shape == variance.shape == (len(x), CHANNELS)
    torch.testing.assert_close(mean.double(), true_mean.repeat_interleave(each, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(variance.double(), true_variance.repeat_interleave(each, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_of_16_bit_numbers_the_sums_are_not_16_bit(dtype):
    x = pictures(1, 64, 64, 50.0, dtype)
    found = gathered(x, list(range(8, 64, 8)))
    variance, mean = torch.var_mean(x.double(), (2, 3), correction=0)
    torch.testing.assert_close(found.mean, mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.m2 / found.count, variance, rtol=1e-4, atol=0)


def test_videos_are_counted_over_frames_too():
    x = torch.randn(2, CHANNELS, 3, 10, 4)
    found = Statistics(2, CHANNELS, x.device)
    for rows in x.split(3, 3):
        found.add(rows)
    variance, mean = torch.var_mean(x.double(), (2, 3, 4), correction=0)
    torch.testing.assert_close(found.mean, mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.m2 / found.count, variance, rtol=1e-5, atol=1e-6)


def test_items_are_counted_apart_bit_for_bit():
    x = pictures(3, 12, 5, 1.0)
    together = gathered(x, [5])
    alone = [gathered(item, [5]) for item in x.split(1)]
    assert torch.equal(together.mean, torch.cat([one.mean for one in alone]))
    assert torch.equal(together.m2, torch.cat([one.m2 for one in alone]))
