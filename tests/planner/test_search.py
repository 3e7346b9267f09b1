"""What the search promises, whatever the model: it may be given more memory, time or freedom, and is never slower."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.errors import OutOfMemory, UsageError
from safelight.optimizers import OPTIMIZERS, Fidelity, conflicts
from safelight.optimizers.configs import target_of_blueprint
from safelight.planner import GOALS, Forecast, plan, wish
from safelight.planner.plans import budget
from safelight.planner.search import Limits, Search, best
from safelight.probe import blueprint, cards

GIB = 2**30
CASES = (("firstlight", "rtx-3060-12gb"), ("sd15", "rtx-3080-10gb"), ("sd15", "t4-16gb"))
case = pytest.mark.parametrize(("model", "card"), CASES)


@cache
def forecast(model, card):
    device, rates = cards.find(card)
    known = blueprint.read(model)
    return Forecast(known, target_of_blueprint(known, device), rates)


@cache
def searched(model, card, speed, memory, pictures=1):
    search = Search(forecast(model, card), OPTIMIZERS, pictures=pictures)
    return search, search.frontier(Fidelity(speed), Fidelity(memory))


def planned(model, card, written="auto", **wished):
    made = forecast(model, card)
    return plan(made.target, wish(written, **wished), forecast=made)


def seconds(model, card, budget_bytes, speed, memory):
    """Of the fastest plan within a budget; infinite where there is none."""
    search, frontier = searched(model, card, speed, memory)
    point = best(frontier, Limits(budget_bytes), search.seconds, smallest=False)
    return float("inf") if point is None else search.seconds(point)


budgets = st.floats(0.02, 24).map(lambda gib: int(gib * GIB))


@case
@settings(max_examples=60, deadline=None)
@given(one=budgets, other=budgets)
def test_more_memory_is_never_slower(model, card, one, other):
    small, large = sorted((one, other))
    assert seconds(model, card, large, 1, 2) <= seconds(model, card, small, 1, 2)


@case
@settings(max_examples=20, deadline=None)
@given(size=budgets)
def test_a_looser_fidelity_is_never_slower(model, card, size):
    found = [seconds(model, card, size, level, level) for level in range(3)]
    assert found == sorted(found, reverse=True)


@case
@pytest.mark.parametrize("goal", GOALS)
def test_a_plan_fits_its_own_prediction_and_gives_every_optimizer_a_reason(model, card, goal):
    made = planned(model, card, goal=goal)
    assert made.cost.peak_bytes <= made.budget_bytes
    names = [choice.optimizer.name for choice in made.choices]
    assert sorted([*names, *made.left]) == sorted(OPTIMIZERS)
    assert all(choice.why and "\n" not in choice.why for choice in made.choices)
    assert all(why and "\n" not in why for why in made.left.values())
    assert next(conflicts.clashes(made.options), None) is None


@case
def test_the_same_plan_comes_of_the_same_wish(model, card):
    assert planned(model, card).lines() == planned(model, card).lines()


@case
def test_quality_changes_no_bit_where_memory_is_there(model, card):
    made = planned(model, card, goal="quality")
    assert all(choice.optimizer.fidelity == Fidelity.EXACT for choice in made.choices)


def test_quality_gives_up_rounding_rather_than_to_fail():
    made = planned("sd15", "rtx-3080-10gb", goal="quality", vram="3.5GiB")
    assert made.cost.peak_bytes <= budget(forecast("sd15", "rtx-3080-10gb").target.device, int(3.5 * GIB))


def test_less_memory_takes_more_seconds_and_the_plan_says_what_is_next():
    roomy, tight = (planned("sd15", "rtx-3080-10gb", vram=f"{gib}GiB") for gib in (10, 3))
    assert tight.cost.peak_bytes < roomy.cost.peak_bytes
    assert tight.cost.seconds >= roomy.cost.seconds
    assert tight.up.cost.seconds < tight.cost.seconds
    assert roomy.down.cost.peak_bytes < roomy.cost.peak_bytes


def test_low_memory_is_smaller_than_balanced_and_not_over_twice_as_slow():
    small, usual = (planned("sd15", "rtx-3080-10gb", goal=goal) for goal in ("low-memory", "balanced"))
    assert small.cost.peak_bytes < usual.cost.peak_bytes
    assert small.cost.seconds <= 2 * usual.cost.seconds * 1.001


def test_a_budget_that_cannot_be_met_names_the_smallest_plan_and_by_how_much():
    with pytest.raises(
        OutOfMemory, match=r"the smallest plan needs .* GiB too much: -o .*; give a smaller picture"
    ) as raised:
        planned("sd15", "rtx-3080-10gb", vram="0.7GiB")
    assert raised.value.exit_code == 6
    assert "\n" not in str(raised.value)


def test_seconds_that_cannot_be_met_name_the_fastest_plan():
    with pytest.raises(UsageError, match=r"max-seconds is 0.001, and the fastest plan that fits takes .*: -o "):
        planned("sd15", "rtx-3080-10gb", max_seconds=0.001)


def test_what_is_asked_for_stays_and_is_planned_around():
    made = planned("sd15", "rtx-3080-10gb", keep="model-offload")
    assert "model-offload" in made.options
    assert next(c for c in made.choices if c.optimizer.name == "model-offload").why.startswith("asked for; ")


def test_compiling_is_left_where_too_few_pictures_pay_for_it():
    once, often = (planned("sd15", "rtx-3080-10gb", goal="fast", pictures=pictures) for pictures in (1, 1000))
    assert not {"compile", "compile-blocks"} & once.options.keys()
    assert {"compile", "compile-blocks"} & often.options.keys()
    assert "pays later than after a picture" in once.left["compile-blocks"]
