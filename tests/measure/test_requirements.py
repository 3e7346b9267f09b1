"""Requirements are read as they are written, and a verdict lists every condition that its numbers rest on."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.errors import UnknownName, UsageError
from safelight.measure.requirements import COMPARISONS, MEASURED, Evidence, Wanted, checked, parse, verdict
from safelight.measure.results import PEAKS, PlanResult, Round

METRICS = ("psnr", "lpips", "ms-ssim")


def plan(name, seconds=1.0, psnr=None, *, runs=5, rounds=2, **fields):
    quality = None if psnr is None else {"psnr": {"median": psnr, "worst": psnr - 5, "values": [psnr]}}
    peaks = {**dict.fromkeys(PEAKS), "process_bytes": 2**30}
    one = Round(1.0, 2.0, 3.0, runs=({"total": seconds},) * runs, peaks=peaks, threads=2)
    return PlanResult(name, name, rounds=(one,) * rounds, quality=quality, **fields)


# -- requirements ------------------------------------------------------------------------------------------------------


NAMES, SIGNS = st.sampled_from(["speed", "psnr", "lpips.worst"]), st.sampled_from(sorted(COMPARISONS))


@given(st.lists(st.tuples(NAMES, SIGNS, st.integers(0, 99)), max_size=4))
def test_what_is_written_is_what_is_wanted(asked):
    text = ", ".join(f"{name} {comparison} {value}" for name, comparison, value in asked)
    assert parse(text, METRICS) == tuple(
        Wanted(name, comparison, float(value), str(value)) for name, comparison, value in asked
    )


def test_a_peak_is_an_amount_of_memory():
    assert parse("peak<=4GiB,peak.device<512MiB", METRICS) == (
        Wanted("peak", "<=", 4 * 2**30, "4GiB"),
        Wanted("peak.device", "<", 512 * 2**20, "512MiB"),
    )


@pytest.mark.parametrize("text", ["MS_SSIM>=0.9", "ms-ssim>=0.9", "images-per-second>=2"])
def test_underscores_count_as_hyphens_and_case_does_not_count(text):
    assert parse(text, METRICS)[0].name in ("ms-ssim", "images_per_second")


@pytest.mark.parametrize(("text", "near"), [("sped>=2", "speed"), ("psrn>=3", "psnr"), ("psnr.wurst>=3", "psnr.worst")])
def test_an_unknown_name_gets_the_nearest(text, near):
    with pytest.raises(UnknownName, match=near):
        parse(text, METRICS)


@pytest.mark.parametrize("text", ["speed", "speed>=", "speed=2", ">=2", "speed>=fast", "speed>=nan", "peak<=much"])
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(UsageError):
        parse(text, METRICS)


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("speed>=2", True),
        ("speed>2", False),
        ("seconds<=0.5", True),
        ("images_per_second>=2", True),
        ("peak<=1GiB", True),
        ("peak.process<1GiB", False),
        ("first<=3", True),
        ("load<1", False),
        ("open<=2", True),
        ("psnr>=30", True),
        ("psnr.median>=30", True),
        ("psnr.worst>=30", False),
    ],
)
def test_each_is_compared_with_what_was_measured(text, met):
    plans = (plan("plain"), plan("fast", 0.5, 30.0))
    assert [one.met for one in checked(parse(text, METRICS), plans)] == [met]


@pytest.mark.parametrize("text", ["lpips<=1", "peak.device<=900GB", "peak.tensors<=900GB"])
def test_what_was_not_measured_is_not_met(text):
    (found,) = checked(parse(text, METRICS), (plan("plain"), plan("fast")))
    assert (found.found, found.met) == (None, False)


def test_a_plan_that_failed_meets_nothing():
    (found,) = checked(parse("seconds<=9", METRICS), (plan("plain"), plan("fast", failure="it crashed")))
    assert not found.met


def test_each_is_asked_of_each_plan_but_plain():
    found = checked(parse("speed>=1,psnr>=9", METRICS), (plan("plain"), plan("a", psnr=9.0), plan("b", psnr=9.0)))
    assert [(one.written, one.plan) for one in found] == [
        ("speed>=1", "a"), ("speed>=1", "b"), ("psnr>=9", "a"), ("psnr>=9", "b"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_nothing_measured_gives_none_for_every_name(name):
    empty = PlanResult("a", "a")
    assert MEASURED[name](empty, empty) is None


# -- the verdict -------------------------------------------------------------------------------------------------------

STATUS = {"name": "dtype", "engaged": True}
REQUEST = {"seed": 0, "prompt": "a", "sampler": "Euler", "rng": "cpu"}
PLAIN, FAST = plan("plain"), plan("fast", 0.5, 30.0, statuses=(STATUS,))
GOOD = Evidence((PLAIN, FAST), (REQUEST, {**REQUEST, "seed": 5}), (), (0.1, 1.0), 4, (True,) * 4)


def picture(seed):
    return {"path": "a.png", "seed": seed, "prompt": "a"}


def uneven():
    one = Round(runs=tuple({"total": 1.0 + 0.2 * i} for i in range(5)), threads=2)
    return replace(FAST, rounds=(one, one))


BAD = {
    "enough runs": replace(GOOD, plans=(PLAIN, plan("fast", runs=4))),
    "enough runs of rounds": replace(GOOD, plans=(PLAIN, plan("fast", runs=10, rounds=1))),
    "spread": replace(GOOD, plans=(PLAIN, uneven())),
    "warm": replace(GOOD, steady=(True, False)),
    "same noise": replace(GOOD, requests=(REQUEST, {**REQUEST, "sampler": "Heun"})),
    "same noise of seeds": replace(
        GOOD, plans=(replace(PLAIN, pictures=(picture(1),)), replace(FAST, pictures=(picture(2),)))
    ),
    "same threads": replace(GOOD, plans=(PLAIN, replace(FAST, rounds=(replace(FAST.rounds[0], threads=1),) * 2))),
    "proof": replace(GOOD, plans=(PLAIN, replace(FAST, statuses=({**STATUS, "engaged": False},)))),
    "quality": replace(GOOD, plans=(PLAIN, replace(FAST, artifacts=("seed 1: black",)))),
    "quality beyond a limit": replace(GOOD, limits=checked(parse("psnr>=31", METRICS), (PLAIN, FAST))),
    "no other load": replace(GOOD, load=(1.5, 1.0)),
    "no other load afterwards": replace(GOOD, load=(0.1, 3.3)),
    "nothing failed": replace(GOOD, plans=(PLAIN, replace(FAST, failure="it crashed"))),
    "nothing failed, interrupted": replace(GOOD, interrupted=True),
}


def test_with_all_conditions_met_it_is_valid():
    found = verdict(GOOD)
    assert found.valid, found.conditions
    assert found.word == "VALID"


@pytest.mark.parametrize("name", BAD)
def test_one_condition_alone_makes_it_invalid_and_is_named(name):
    found = verdict(BAD[name])
    (failed,) = [one for one in found.conditions if not one["ok"]]
    assert name.startswith(failed["name"])
    assert failed["found"]
    assert failed["wanted"]
    assert found.word == "INVALID"


def test_artifacts_that_plain_has_too_are_not_the_plans():
    both = tuple(replace(one, artifacts=("seed 1: black",)) for one in (PLAIN, FAST))
    assert verdict(replace(GOOD, plans=both)).valid


def test_a_system_that_does_not_tell_its_load_is_said_and_not_blamed():
    found = verdict(replace(GOOD, load=(None, None)))
    assert found.valid
    assert any("not measured" in one["found"] for one in found.conditions)


def test_nothing_measured_at_all_is_a_verdict_too():
    empty = (PlanResult("plain", "none"), PlanResult("fast", "auto", failure="it crashed"))
    assert not verdict(Evidence(empty, (), (), (0.0, 0.0), 2, ())).valid
