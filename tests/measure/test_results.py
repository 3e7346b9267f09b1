"""Samples add up to what they are said to, and a result goes into JSON and comes back the same."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.errors import UsageError
from safelight.measure.results import (
    PEAKS,
    PlanResult,
    Requirement,
    Result,
    Round,
    Statistic,
    Verdict,
    percentile,
)

SECONDS = st.floats(1e-3, 1e4)


def round_of(*totals, **fields):
    return Round(1.0, 2.0, 3.0, runs=tuple({"total": total, "denoise": total / 2} for total in totals), **fields)


def result(**fields):
    plain = PlanResult("plain", "none", "none", rounds=(round_of(2.0, 2.2), round_of(2.1)))
    fast = PlanResult("fast", "dtype=bfloat16", "dtype=bfloat16", rounds=(round_of(1.0),))
    verdict = Verdict(False, ({"name": "runs", "ok": False, "found": "1", "wanted": "10"},))
    when, command = "2026-11-21T12:00:00+00:00", ("safelight", "bench")
    made = Result(when, command, {"torch": "2.13.0"}, "firstlight", {"seed": 0}, (plain, fast), verdict)
    return replace(made, **fields)


# -- statistics --------------------------------------------------------------------------------------------------------


@given(st.lists(SECONDS, min_size=1, max_size=40), st.floats(0, 100))
def test_percentiles_are_numpys_and_lie_among_the_samples(samples, percent):
    found = percentile(samples, percent)
    assert found == pytest.approx(np.percentile(samples, percent))
    assert min(samples) <= found * (1 + 1e-12)
    assert found <= max(samples) * (1 + 1e-12)


@given(st.lists(SECONDS, min_size=1, max_size=40), st.floats(0.01, 100))
def test_a_machine_of_another_speed_has_the_same_spread(samples, factor):
    slow, fast = Statistic.of([factor * sample for sample in samples]), Statistic.of(samples)
    assert slow.spread == pytest.approx(fast.spread, abs=1e-9)
    assert slow.median == pytest.approx(factor * fast.median)
    assert fast.median <= fast.p90 * (1 + 1e-12)


@given(SECONDS, st.integers(1, 200))
def test_equal_samples_have_no_spread(seconds, n):
    found = Statistic.of([seconds] * n)
    assert found.spread == pytest.approx(0, abs=1e-9)
    assert found.n == n


@pytest.mark.parametrize(("n", "known"), [(99, False), (100, True)])
def test_p99_is_said_of_a_hundred_samples_and_more(n, known):
    assert (Statistic.of([1.0] * n).p99 is not None) is known


def test_a_summary_has_the_whole_run_first_then_the_stages_then_one_evaluation():
    runs = ({"text": 0.1, "denoise": 4.0, "total": 5.0}, {"text": 0.1, "denoise": 4.0, "upscale": 1.0, "total": 6.0})
    found = PlanResult("a", "a", rounds=(Round(runs=runs, evaluations=20),)).summary()
    assert list(found.stages) == ["total", "text", "denoise", "upscale", "evaluation"]
    assert found.stages["evaluation"].median == pytest.approx(0.2)
    assert found.stages["upscale"].n == 1
    assert found.seconds == 5.5


def test_images_per_second_counts_all_that_a_run_makes():
    assert PlanResult("a", "a", rounds=(round_of(2.0, images=4),)).summary().images_per_second == 2.0


def test_what_was_not_measured_is_none_and_never_zero():
    found = PlanResult("a", "a", rounds=(Round(),)).summary()
    assert (found.seconds, found.images_per_second, found.peak) == (None, None, None)
    assert PlanResult("a", "a").summary().stages == {}


def test_the_peak_is_that_of_tensors_and_only_without_them_that_of_the_process():
    def peaks(**sizes):
        return Round(peaks={**dict.fromkeys(PEAKS), **sizes})

    card = PlanResult("a", "a", rounds=(peaks(tensor_bytes=5, process_bytes=9), peaks(tensor_bytes=7)))
    assert (card.peak(), card.peak("process_bytes"), card.peak("device_bytes")) == (7, 9, None)
    assert PlanResult("a", "a", rounds=(peaks(process_bytes=9),)).peak() == 9


def test_speed_is_plain_over_planned_by_the_medians():
    made = result()
    assert made.speed(made.plans[1]) == pytest.approx(2.1)
    assert made.speed(PlanResult("broken", "x", failure="it crashed")) is None


# -- the file ----------------------------------------------------------------------------------------------------------


ROUNDS = st.builds(
    Round,
    load_seconds=st.none() | SECONDS,
    warmups=st.lists(SECONDS, max_size=3).map(tuple),
    runs=st.lists(st.dictionaries(st.sampled_from(["total", "text", "hires"]), SECONDS), max_size=3).map(tuple),
    peaks=st.fixed_dictionaries({name: st.none() | st.integers(0, 2**40) for name in PEAKS}),
    timeline=st.lists(st.tuples(SECONDS, st.integers(0, 2**40)), max_size=3).map(tuple),
    evaluations=st.none() | st.integers(1, 99),
)
VALUES = st.floats(-1e6, 1e6) | st.just(math.inf)
PLANS = st.builds(
    PlanResult,
    st.text(max_size=8),
    st.text(max_size=8),
    rounds=st.lists(ROUNDS, max_size=2).map(tuple),
    pictures=st.lists(st.fixed_dictionaries({"path": st.text(max_size=4), "seed": st.integers(0, 9)})).map(tuple),
    quality=st.none()
    | st.dictionaries(
        st.sampled_from(["psnr", "lpips"]),
        st.fixed_dictionaries({"median": VALUES, "worst": VALUES, "values": st.lists(VALUES, max_size=3)}),
    ),
    failure=st.none() | st.text(max_size=8),
)
REQUIREMENTS = st.builds(Requirement, st.text(max_size=8), st.text(max_size=8), st.none() | VALUES, st.booleans())


@given(st.lists(PLANS, min_size=1, max_size=2).map(tuple), st.lists(REQUIREMENTS, max_size=2).map(tuple))
def test_a_result_comes_back_from_json_as_it_was(plans, requirements):
    made = result(plans=plans, requirements=requirements)
    text = made.to_json()
    assert Result.from_json(text) == made
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_result_of_another_schema_is_refused():
    text = result().to_json().replace('"schema": 1', '"schema": 2')
    with pytest.raises(UsageError, match=r"schema 2 is not known: this is 1"):
        Result.from_json(text)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": 1}', "nothing", '{"schema": 1, "later": 2}'],
)
def test_what_is_no_result_is_refused(text):
    with pytest.raises(UsageError):
        Result.from_json(text)


def test_a_result_whose_plans_are_damaged_is_refused():
    table = json.loads(result().to_json())
    table["plans"][0]["rounds"] = 3
    with pytest.raises(UsageError, match="no result of safelight bench"):
        Result.from_json(json.dumps(table))
