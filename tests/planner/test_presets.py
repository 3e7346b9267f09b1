"""Presets are wishes for the one planner: they name what is there, what is given besides wins, and each thing that a
guide names gets its verdict."""

from functools import cache

import pytest

from safelight.errors import UnknownName
from safelight.optimizers import OPTIMIZERS
from safelight.optimizers.configs import target_of_blueprint
from safelight.planner import Forecast, plan, wish
from safelight.planner.claims import CLAIMS
from safelight.planner.presets import PRESETS, applied, find
from safelight.probe import blueprint, cards, known
from safelight.request import Request
from safelight.sampling import schedulers


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
)
WISHES = ("goal", "fidelity", "vram", "keep")


def test_every_named_set_of_the_guides_is_there():
    assert tuple(PRESETS) == ASKED


@every
def test_a_preset_asks_for_what_there_is(name):
    asks = PRESETS[name].asks
    wish("auto", **{key: asks[key] for key in WISHES if key in asks})
    numbers = {key: asks[key] for key in ("width", "height", "steps", "guidance", "sampler") if key in asks}
    Request("", **numbers, batch_size=asks["batch_size"] if isinstance(asks.get("batch_size"), int) else 1)
    if "sampler" in asks:
        assert schedulers.find(asks["sampler"]).evaluations == 1, "the forecast counts one call of the model a step"
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
