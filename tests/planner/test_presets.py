"""Presets are wishes for the one planner: they name what is there, what is given besides wins, and each thing that a
guide names gets its verdict."""

import dataclasses
import inspect
from functools import cache

import pytest

from safelight.errors import UnknownName
from safelight.opening import foreseen
from safelight.optimizers import OPTIMIZERS
from safelight.optimizers.configs import target_of_blueprint
from safelight.planner import Forecast, plan, wish
from safelight.planner.claims import CLAIMS
from safelight.planner.presets import DRAWN, PRESETS, applied, find, planned
from safelight.probe import blueprint, cards, known
from safelight.request import Request, hires_size
from safelight.sampling import names, schedules
from safelight.sampling.advice import advise


@cache
def forecast():
    device, rates = cards.find("rtx-3060-12gb")
    model = blueprint.read("firstlight")
    return Forecast(model, target_of_blueprint(model, device), rates)


every = pytest.mark.parametrize("name", PRESETS)
ASKED = (
    *("tier-1", "tier-2", "tier-3", "realtime", "quality", "memory-constrained", "batch"),
    *("low-vram", "balanced-16-24gb", "high-performance", "multi-gpu"),
    *("sd15-768-10gb", "sd15-1024-10gb", "sdxl-10gb", "low-vram-4-6gb", "ultra", "balanced", "speed"),
    *("exploration", "final-run", "highres-fix"),
)
WISHES = ("goal", "fidelity", "vram", "keep")
REQUESTED = {"width", "height", "steps", "guidance", "sampler", "count", *DRAWN}


def test_every_named_set_of_the_guides_is_there():
    assert tuple(PRESETS) == ASKED


@every
def test_a_preset_asks_for_what_there_is(name):
    asks = PRESETS[name].asks
    wish("auto", **{key: asks[key] for key in WISHES if key in asks})
    fields = {key: asks[key] for key in asks.keys() & REQUESTED}
    Request("", **fields, batch_size=asks["batch_size"] if isinstance(asks.get("batch_size"), int) else 1)
    if "sampler" in asks:
        names.find(asks["sampler"])
    if "schedule" in asks:
        schedules.find(asks["schedule"])
    if "model" in asks:
        assert asks["model"] in known.KNOWN
    if "device" in asks:
        cards.find(asks["device"])


@every
def test_a_guide_names_optimizers_that_are_there_and_claims_that_have_a_source(name):
    for wanted in PRESETS[name].wanted:
        assert wanted.names or wanted.claim, f"nothing is said of {wanted.says}"
        assert set(wanted.names) <= OPTIMIZERS.keys()
        assert wanted.claim is None or CLAIMS[wanted.claim].source


def test_every_claim_is_cited_by_a_preset_or_is_deleted():
    cited = {wanted.claim for preset in PRESETS.values() for wanted in preset.wanted}
    assert cited - {None} == set(CLAIMS)


@pytest.mark.parametrize("name", ["ultra", "balanced", "speed", "exploration", "final-run", "highres-fix"])
def test_what_the_guide_wants_drawn_is_what_we_would_advise(name):
    asks = PRESETS[name].asks
    fields = {key: value for key, value in asks.items() if key in REQUESTED | {"batch_size"}}
    warned = [advice.text for advice in advise(family=asks.get("model"), **fields) if advice.level == "warning"]
    assert not warned


@pytest.mark.parametrize("name", ["ultra", "highres-fix"])
def test_two_passes_end_at_768_pixels(name):
    asks = PRESETS[name].asks
    assert hires_size(asks["hires"], asks["width"], asks["height"]) == (768, 768)


def test_the_best_preset_is_drawn_by_the_sampler_that_the_guide_names():
    assert PRESETS["ultra"].asks["sampler"] == "DPM++ SDE Karras"
    choice = names.find("DPM++ SDE Karras")
    assert (choice.schedule, choice.sampler.evaluations(30)) == ("karras", 59)


def test_a_plan_is_asked_for_what_the_preset_asks_of_a_run():
    asked = planned("exploration", {"device": None, "steps": 4})
    assert (asked["pictures"], asked["steps"], asked["batch_size"]) == (8, 4, 4)
    assert planned("exploration", {"pictures": 100})["pictures"] == 100
    ultra = planned("ultra", {})
    assert {name: ultra[name] for name in DRAWN if name in ultra} == {
        "hires": "1.5",
        "hires_steps": 20,
        "hires_denoise": 0.5,
        "hires_upscaler": "Lanczos",
    }
    known = {*inspect.signature(foreseen).parameters, *WISHES, *(field.name for field in dataclasses.fields(Request))}
    assert not ultra.keys() - known


def test_a_presets_sampler_gives_way_to_what_is_said():
    assert planned("tier-1", {})["usual"] == "DPM++ 2M"
    assert "usual" not in planned("tier-1", {"sampler": "Euler"})
    said = planned("tier-1", {"schedule": "Karras"})
    assert (said["sampler"], said["schedule"]) == ("DPM++ 2M", "Karras")


def test_what_is_given_besides_wins():
    found = applied("tier-2", {"goal": "quality", "steps": None, "width": 640})
    assert (found["goal"], found["steps"], found["width"]) == ("quality", 20, 640)


def test_without_a_preset_only_what_is_given_counts():
    assert applied(None, {"goal": "fast", "vram": None}) == {"goal": "fast"}


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UnknownName, match=r"unknown preset 'teir-2': did you mean tier-2"):
        find("teir-2")


def test_underscores_and_case_do_not_count():
    assert find("SDXL_10GB") is PRESETS["sdxl-10gb"]


def test_each_thing_that_the_guide_names_is_taken_or_left_with_a_reason():
    preset = PRESETS["tier-2"]
    made = forecast()
    found = preset.verdicts(plan(made.target, wish("auto,dtype", goal=preset.goal), forecast=made))
    assert [verdict.says for verdict in found] == [wanted.says for wanted in preset.wanted]
    assert all(verdict.why and "\n" not in verdict.why for verdict in found)
    told = {verdict.says: verdict for verdict in found}
    assert told["FP16"].taken
    assert told["attention slicing"].taken is False
    assert "fused attention" in told["attention slicing"].why
    assert told["a tuned VAE"].taken is None
