"""`safelight plan` and `safelight presets`: what a run would take; what cannot be is one line and an exit code."""

import json
import os
import signal
import sys
import tomllib
from dataclasses import dataclass

import pytest

import safelight
from safelight import cli
from safelight.cli import planning
from safelight.errors import UnknownName, UsageError
from safelight.optimizers import OPTIMIZERS
from safelight.planner import wish
from safelight.planner.presets import PRESETS
from safelight.simulate import measurements

CARD = ("--device", "rtx-3060-12gb")
AMPERE = "cuda,memory=12GiB,tflops=40,bandwidth=400"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command line here, in an empty folder, without the settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("SAFELIGHT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["safelight", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Ran(ended.value.code, *capsys.readouterr())

    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def plan(run):
    return lambda *arguments: run("plan", *CARD, *arguments)


def failed(ran, code, *words):
    """One line on stderr that holds the words, nothing on stdout."""
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("safelight: ") and ran.err.count("\n") == 1, ran.err
    missing = [word for word in words if word not in ran.err]
    assert not missing, ran.err
    return ran.err


# -- what it prints ----------------------------------------------------------------------------------------------------


def test_the_text_says_what_is_predicted_on_what_and_why(plan):
    ran = plan("--goal", "fast")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0] == (
        "firstlight, 64x64, 20 steps with guidance, one at a time, on NVIDIA GeForce RTX 3060, 11.8 GiB free"
    )
    assert lines[1].startswith("predicted, nothing was run; rates from datasheets, not measured")
    assert "no measurement corrects it" in ran.out
    for phase in ("encode", "denoise", "decode"):
        assert any(line.split()[:1] == [phase] and line.count("=") == 2 for line in lines)
    told = [line[2:].split("=")[0].split()[0] for line in lines if line[:2] in ("+ ", "  ") and line[2:3].isalpha()]
    assert set(OPTIMIZERS) <= set(told)


def test_lines_fit_where_no_address_is_longer(plan):
    assert max(map(len, plan("--preset", "tier-2").out.splitlines())) <= 120


def test_names_alone_are_predicted_and_nothing_is_planned_besides(plan):
    document = json.loads(plan("-o", "vae-tiling=32", "--json").out)
    assert [choice["name"] for choice in document["choices"]] == ["vae-tiling"]
    assert document["goal"]["name"] is None
    assert document["planned"]["peak_bytes"] < document["plain"]["peak_bytes"]


def test_the_json_document_has_every_number_of_the_text(plan):
    document = json.loads(plan("--goal", "low-memory", "--json").out)
    assert document["schema"] == 1
    assert set(document) >= {
        "model",
        "device",
        "size",
        "steps",
        "goal",
        "budget_bytes",
        "left",
        "up",
        "down",
        "optimize",
    }
    for side in ("plain", "planned"):
        phases = document[side]["phases"]
        assert list(phases) == ["encode", "denoise", "decode"]
        assert document[side]["seconds"] == pytest.approx(sum(phase["seconds"] for phase in phases.values()))
        assert document[side]["peak_bytes"] == max(phase["peak_bytes"] for phase in phases.values())
        for phase in phases.values():
            assert phase["peak_bytes"] == phase["resident_bytes"] + phase["live_bytes"]
    assert document["planned"]["peak_bytes"] <= document["budget_bytes"]
    assert sorted([*(choice["name"] for choice in document["choices"]), *document["left"]]) == sorted(OPTIMIZERS)
    assert document["device"] == {
        "name": "NVIDIA GeForce RTX 3060",
        "kind": "cuda",
        "here": False,
        "memory_bytes": document["device"]["memory_bytes"],
        "free_bytes": document["device"]["free_bytes"],
        "rates": document["device"]["rates"],
        "findings": [],
    }


def test_numbers_of_a_card_by_hand_are_planned_for(run):
    document = json.loads(run("plan", "--device", AMPERE, "--json").out)
    assert document["device"]["memory_bytes"] == 12 * 2**30
    assert document["device"]["rates"] == "given by hand"


def test_settings_are_defaults_and_flags_win(plan, tmp_path):
    (tmp_path / "safelight.toml").write_text('steps = 4\nwidth = 128\noptimize = "vae-tiling=32"\n')
    document = json.loads(plan("--width", 64, "--json").out)
    assert (document["steps"], document["size"]["width"]) == (4, 64)
    assert document["optimize"] == "vae-tiling=32"


def test_a_preset_asks_and_flags_win(plan):
    document = json.loads(plan("--preset", "tier-1", "--steps", 3, "--json").out)
    assert (document["steps"], document["asked"]["preset"]) == (3, "tier-1")
    assert [verdict["says"] for verdict in document["preset"]] == [w.says for w in PRESETS["tier-1"].wanted]


def test_the_best_batch_is_found_and_named(plan):
    document = json.loads(plan("--batch-size", "auto", "--count", 4, "--json").out)
    assert [batch["size"] for batch in document["batches"]["tried"]] == [1, 2, 4]
    assert document["batch_size"] == document["batches"]["best"]
    told = plan("--batch-size", "auto", "--count", 2, "-o", "none").out
    assert "batches: 2 at a time fit at most, 2 at a time are planned here" in told


def test_the_goal_of_throughput_is_about_batches(plan):
    document = json.loads(plan("--goal", "throughput", "--count", 2, "--json").out)
    assert [batch["size"] for batch in document["batches"]["tried"]] == [1, 2]


def test_a_file_of_measurements_that_is_damaged_is_told_and_left_out(run, tmp_path):
    (tmp_path / "cache" / "safelight").mkdir(parents=True)
    (tmp_path / "cache" / "safelight" / measurements.FILE).write_text("no database at all, and long enough for one")
    with pytest.warns(UserWarning, match="damaged"):
        outlook = safelight.plan("firstlight", device="cpu", optimize="none")
    assert outlook.plan.cost is not None


# -- a plan file -------------------------------------------------------------------------------------------------------


def test_a_plan_file_asks_for_the_plan_again(plan, tmp_path):
    file = tmp_path / "plan.toml"
    ran = plan("--goal", "fast", "--steps", 7, "--batch-size", 2, "--keep", "vae-tiling=32", "--toml", file)
    assert (ran.code, "safelight generate --plan" in ran.err) == (0, True)
    found = planning.read_plan(file)
    document = json.loads(
        plan("--goal", "fast", "--steps", 7, "--batch-size", 2, "--keep", "vae-tiling=32", "--json").out
    )
    asked = wish(found["optimize"])
    assert dict(asked.options) == dict(wish(document["optimize"]).options)
    assert not asked.auto
    numbers = {name: found[name] for name in ("width", "height", "steps", "batch_size")}
    assert numbers == {"width": 64, "height": 64, "steps": 7, "batch_size": 2}
    assert found["model"] == "firstlight"
    assert "device" not in found, "the card is not here"


def test_a_plan_file_on_stdout_is_all_there_is(plan):
    ran = plan("--toml", "-o", "none")
    assert tomllib.loads(ran.out)["optimize"] == "none"
    assert ran.out.startswith("# Made by safelight")


def test_every_option_survives_the_file(plan, tmp_path):
    file = tmp_path / "plan.toml"
    written = "dtype=float16,dtype.vae=float32,guidance-cutoff=0.5,guidance-cutoff.reuse=True,vae-tiling=32"
    assert plan("-o", written, "--toml", file).code == 0
    assert dict(wish(planning.read_plan(file)["optimize"]).options) == dict(wish(written).options)


def test_a_plan_file_that_is_none_says_so(tmp_path):
    with pytest.raises(UsageError, match="there is no plan file"):
        planning.read_plan(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("steps = = 3")
    with pytest.raises(UsageError, match="is not valid TOML"):
        planning.read_plan(bad)
    bad.write_text("stepz = 3")
    with pytest.raises(UnknownName, match="did you mean steps"):
        planning.read_plan(bad)


def test_a_plan_file_that_cannot_be_written_says_so(plan, tmp_path):
    failed(plan("--toml", tmp_path / "no" / "plan.toml"), 4, "cannot write", "plan.toml")


# -- what cannot be ----------------------------------------------------------------------------------------------------


def test_an_unknown_card_names_near_ones_and_how_else_to_say_it(run):
    said = failed(run("plan", "--device", "rtx-3081-10gb"), 2, "rtx-3080-10gb", "safelight doctor", "memory=12GiB")
    assert "unknown device or card 'rtx-3081-10gb'" in said


def test_a_device_that_is_no_card_either_is_told_in_one_line(run):
    failed(run("plan", "--device", "cpuu"), 2, "did you mean cpu")


def test_a_card_by_hand_that_lacks_numbers_says_which(run):
    failed(run("plan", "--device", "cuda,memory=12GiB"), 2, "tflops", "bandwidth")


def test_an_unknown_model_names_near_ones(plan):
    failed(plan("--model", "sdxxl"), 2, "sdxl")


def test_a_folder_without_configs_says_what_is_missing(plan, tmp_path):
    (tmp_path / "empty").mkdir()
    failed(plan("--model", tmp_path / "empty"), 2, "model_index.json")


def test_a_class_that_diffusers_does_not_have_is_named(plan, tmp_path, folder):
    import shutil

    path = shutil.copytree(folder, tmp_path / "changed")
    index = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps({**index, "unet": ["diffusers", "UNet9DModel"]}))
    failed(plan("--model", path), 1, "UNet9DModel", "pip install --upgrade diffusers")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--goal", "fastest"), ("unknown goal 'fastest'", "fast")),
        (("--fidelity", "exactly"), ("unknown fidelity 'exactly'", "exact")),
        (("--preset", "tier-9"), ("unknown preset 'tier-9'", "tier-1")),
        (("--vram", "much"), ("much", "8GiB")),
        (("--max-seconds", "soon"), ("max-seconds", "soon")),
        (("--max-seconds", "-1"), ("max-seconds", "more than 0")),
        (("--width", "wide"), ("width", "whole number")),
        (("--frames", "many"), ("frames", "whole number")),
        (("--frames", "0"), ("frames", "whole number")),
        (("--batch-size", "some"), ("batch-size", "whole number")),
        (("--keep", "dype"), ("unknown optimizer 'dype'", "dtype")),
        (("--without", "dype"), ("unknown optimizer 'dype'", "dtype")),
        (("--json", "--toml"), ("stdout", "--toml FILE")),
        (("--device", "cuda:99"), ("there is no cuda:99 here",)),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_cannot_be_is_one_line(plan, arguments, words):
    ran = plan(*arguments)
    failed(ran, 4 if "cuda:99" in arguments else 2, *words)


def test_a_budget_that_cannot_be_met_names_the_smallest_plan(plan):
    # the context of a card alone takes more
    failed(plan("--vram", "601MiB"), 6, "the smallest plan needs", "too much", "-o ")


def test_seconds_that_cannot_be_met_name_the_fastest_plan(plan):
    failed(plan("--max-seconds", "0.000001"), 2, "max-seconds", "the fastest plan that fits takes", "-o ")


def test_pins_that_contradict_are_told_with_what_to_drop(plan):
    failed(plan("--keep", "vae-tiling", "--without", "vae-tiling"), 2, "vae-tiling", "drop it from one of the two")
    failed(plan("--keep", "model-offload,group-offload"), 2, "exclude each other", "keep: ")


# -- presets -----------------------------------------------------------------------------------------------------------


def test_presets_are_listed_and_told_one_by_one(run):
    listed = run("presets").out
    assert all(name in listed for name in PRESETS)
    told = run("presets", "tier_2").out
    assert "safelight plan --goal fast --steps 20" in told
    assert "attention-slicing" in told and "https://github.com/huggingface/diffusers/pull/4518" in told
    document = json.loads(run("presets", "--json").out)
    assert [preset["name"] for preset in document["presets"]] == list(PRESETS)
    assert document["presets"][0]["asks"]["steps"] == 20


def test_an_unknown_preset_is_one_line(run):
    failed(run("presets", "sdxl-10"), 2, "did you mean sdxl-10gb")


def test_the_api_takes_what_the_command_takes():
    outlook = safelight.plan("firstlight", device="rtx-3060-12gb", goal="fast", steps=4, pictures=1)
    assert outlook.forecast.steps == 4
    assert outlook.wish.goal == "fast"
    with pytest.raises(UsageError, match="steps"):
        safelight.plan("firstlight", device="rtx-3060-12gb", steps=0)


def test_the_plan_is_public():
    assert "plan" in safelight.__all__
