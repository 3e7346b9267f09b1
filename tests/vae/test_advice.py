"""What is told before anything runs: the bytes that the ways then take, which one is best, what overlap does."""

import itertools
from contextlib import nullcontext

import pytest
import torch

from safelight.errors import UsageError
from safelight.probe.blueprint import Part, read
from safelight.simulate.trace import record
from safelight.vae import advice, engine
from safelight.vae.advice import advise
from safelight.vae.blending import blending


@pytest.fixture(scope="module")
def part() -> Part:
    return read("firstlight").parts["vae"]


@pytest.fixture(scope="module")
def made(part):
    return advise(part, 512, 512)


def of(made, how):
    return [option for option in made.options if option.how == how]


@pytest.mark.parametrize("how", ["whole", "exact", "fast", "blended"])
def test_the_bytes_are_those_that_are_taken(part, made, how):
    vae = part.cls.from_config(part.config).eval().requires_grad_(requires_grad=False)
    latents = torch.randn(1, 6, 128, 128)
    ours = engine.Engine(vae, how="whole" if how == "blended" else how)
    with blending(vae, 256) if how == "blended" else nullcontext():
        ours.decode(latents)
        peak = record(lambda: ours.decode(latents), [latents]).peak_bytes - latents.nbytes
    assert peak == pytest.approx(of(made, how)[0].nbytes, rel=0.1)


def test_the_most_faithful_that_fits_is_best_and_of_those_the_one_with_the_least_work(part, made):
    assert made.best == min(of(made, "exact"), key=lambda option: option.work)
    least = min(option.nbytes for option in of(made, "exact"))
    some = advise(part, 512, 512, budget_bytes=least)
    assert some.best.how == "exact" and some.best.nbytes == least
    below = advise(part, 512, 512, budget_bytes=min(o.nbytes for o in made.options) - 1)
    assert below.best is None and any("Nothing fits: the least is" in line for line in advice.lines(below))


def test_more_overlap_takes_no_less_memory_and_no_less_work(part):
    overlaps = advise(part, 1536, 1536).overlaps
    for less, more in itertools.pairwise(overlaps):
        assert more.nbytes >= less.nbytes and more.work >= less.work
    assert overlaps[-1].work > 1.3 * overlaps[0].work


def test_what_fits_within_a_budget_is_told_as_a_side(made):
    whole = of(made, "whole")[0]
    assert whole.fits_px(512, 512, whole.nbytes) == 512
    assert whole.fits_px(512, 512, 4 * whole.nbytes) == 1024


def test_encoding_has_no_crops_for_statistics(part):
    assert {option.how for option in advise(part, 512, 512, what="encode").options} == {"whole", "exact", "blended"}


@pytest.mark.parametrize("sides", [(513, 512), (0, 512), (2, 2)])
def test_a_size_that_cannot_be_names_what_can(part, sides):
    with pytest.raises(UsageError, match="give multiples of 4"):
        advise(part, *sides)
