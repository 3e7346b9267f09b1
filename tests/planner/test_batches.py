"""The largest batch that fits and the best one, from three traced batches and straight lines between them."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.optimizers import OPTIMIZERS
from safelight.optimizers.configs import target_of_blueprint
from safelight.planner import Forecast, plan, wish
from safelight.planner.ahead import Machine, look_ahead
from safelight.planner.batches import AS_GOOD, Batch, sets, straight, weighed
from safelight.probe import blueprint, cards

GIB = 2**30
numbers = st.floats(-1e6, 1e6)


@cache
def of_batch(size):
    device, rates = cards.find("rtx-3060-12gb")
    known = blueprint.read("firstlight")
    return Forecast(known, target_of_blueprint(known, device, batch_size=size), rates)


def found(budget_bytes, most=64):
    return weighed(of_batch, [()], budget_bytes, most)


@given(rise=numbers, start=numbers, size=st.integers(1, 64))
def test_a_straight_line_is_found_again(rise, start, size):
    known = {n: start + rise * n for n in (1, 4, 16)}
    assert straight(known, size) == pytest.approx(start + rise * size, rel=1e-6, abs=1e-3)


@given(value=numbers, size=st.integers(1, 64))
def test_one_known_batch_stands_for_all(value, size):
    assert straight({4: value}, size) == value


@pytest.mark.parametrize("size", [2, 8, 32])
def test_the_lines_are_near_to_what_a_trace_of_that_batch_says(size):
    traced = of_batch(size).cost()
    told = next(batch for batch in found(12 * GIB).tried if batch.size == size)
    assert told.peak_bytes == pytest.approx(traced.peak_bytes, rel=0.01)
    assert told.seconds == pytest.approx(traced.seconds, rel=0.05)


@given(budget_bytes=st.integers(1, GIB // 2))
def test_the_largest_batch_fits_and_a_larger_one_does_not(budget_bytes):
    limits = found(budget_bytes)
    assert 0 <= limits.largest <= 64
    assert all(batch.fits == (batch.size <= limits.largest) for batch in limits.tried)


def test_the_best_batch_is_the_smallest_that_is_nearly_as_good_as_any():
    limits = found(12 * GIB)
    most = max(batch.per_second for batch in limits.tried if batch.fits)
    good = [batch.size for batch in limits.tried if batch.fits and batch.per_second >= AS_GOOD * most]
    assert limits.best == good[0]


def test_no_more_pictures_are_made_at_a_time_than_are_wanted():
    assert [batch.size for batch in found(12 * GIB, most=6).tried] == [1, 2, 4, 6]
    assert [batch.size for batch in found(12 * GIB, most=1).tried] == [1]


def test_where_not_even_one_picture_fits_the_largest_batch_is_none():
    limits = found(1)
    assert (limits.largest, limits.best) == (0, 1)


def test_slicing_is_weighed_beside_the_plan_where_it_is_possible():
    target = of_batch(4).target
    assert [len(chosen) for chosen in sets((), target, OPTIMIZERS)] == [0, 1]
    slicing = (OPTIMIZERS["vae-slicing"], {})
    assert len(sets((slicing,), target, OPTIMIZERS)) == 1
    both = weighed(of_batch, sets((), target, OPTIMIZERS), 12 * GIB).tried[-1]
    assert both.seconds <= found(12 * GIB).tried[-1].seconds


def test_a_batch_tells_its_pictures_per_second():
    assert Batch(8, 2.0, 1, "none", True).per_second == 4


def test_looking_ahead_plans_in_full_for_the_best_batch():
    machine = Machine(*cards.find("rtx-3060-12gb"))
    outlook = look_ahead("firstlight", machine, wish("auto", pictures=8), batch_size=None)
    assert outlook.batches is not None
    assert outlook.target.batch_size == outlook.batches.best <= 8
    same = plan(outlook.target, wish("auto", pictures=8), forecast=outlook.forecast)
    assert outlook.plan.written == same.written
