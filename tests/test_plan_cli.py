"""`safelight plan` and `safelight presets`: what a run would take; what cannot be is one line and an exit code."""

import json
import tomllib

import pytest
from commandline import as_nobody, in_process
from PIL import Image

import safelight
from safelight import config
from safelight.cli import planning
from safelight.errors import DoesNotApply, UnknownName, UsageError
from safelight.opening import foreseen
from safelight.optimizers import OPTIMIZERS
from safelight.planner import wish
from safelight.planner.presets import DRAWN, PRESETS
from safelight.request import Request
from safelight.simulate import measurements

CARD = ("--device", "rtx-3060-12gb")
AMPERE = "cuda,memory=12GiB,tflops=40,bandwidth=400"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command line here, in an empty folder, without the settings of whoever runs the tests."""
    as_nobody(monkeypatch, tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with in_process(monkeypatch, capsys) as call:
        yield call


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


# -- samplers, second passes, pictures to begin from -------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_planned_and_its_file_asks_for_all_that_it_draws(plan, folder, tmp_path, name):
    file = tmp_path / "plan.toml"
    ran = plan("--preset", name, "--model", folder, "--width", 64, "--height", 64, "-o", "none", "--toml", file)
    assert ran.code == 0, ran.err
    found = config.request({"prompt": "", **planning.read_plan(file)})
    asks = PRESETS[name].asks
    drawn = ("sampler", "steps", "guidance", "count", *DRAWN)
    assert {key: getattr(found, key) for key in drawn if key in asks} == {k: asks[k] for k in drawn if k in asks}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_draws(run, folder, tmp_path, name):
    small = ("--width", 32, "--height", 32, "--steps", 1, "--batch-size", 1, "--count", 1, "--seed", 1, "-o", "none")
    hires = ("--hires-steps", 1) if "hires" in PRESETS[name].asks else ()
    given = ("--preset", name, "--model", folder, "--device", "cpu", *small, *hires)
    assert (ran := run("generate", "a cat", *given, "-O", "a.png")).code == 0, ran.err
    side = 48 if hires else 32
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (side, side)


def test_seconds_count_how_often_the_model_is_asked(plan):
    once, twice = (json.loads(plan("-o", "none", "--sampler", name, "--json").out) for name in ("Euler", "Heun"))
    assert [found["passes"][0]["evaluations"] for found in (once, twice)] == [20, 39]
    both = [found["planned"]["phases"]["denoise"]["seconds"] for found in (once, twice)]
    assert both[1] / both[0] == pytest.approx(39 / 20, rel=0.001)


def test_a_second_pass_adds_its_seconds_and_memory_is_for_the_larger(plan):
    alone, large, both = (
        json.loads(plan("-o", "none", "--json", *more).out)
        for more in ((), ("--width", 96, "--height", 96, "--steps", 15), ("--hires", 1.5, "--hires-steps", 15))
    )
    first, second = both["passes"]
    assert (first["width"], first["steps"], second["width"], second["steps"]) == (64, 20, 96, 15)
    assert both["size"]["width"] == 64
    assert both["planned"]["peak_bytes"] == large["planned"]["peak_bytes"] > alone["planned"]["peak_bytes"]
    denoise = [found["planned"]["phases"]["denoise"]["seconds"] for found in (alone, large, both)]
    assert denoise[2] == pytest.approx(denoise[0] + denoise[1])
    assert both["planned"]["phases"]["decode"]["seconds"] == large["planned"]["phases"]["decode"]["seconds"]


def test_pictures_that_are_enlarged_are_decoded_and_encoded_between_the_passes(plan):
    latent, lanczos = (
        json.loads(plan("-o", "none", "--json", "--hires", 1.5, "--hires-upscaler", name).out)
        for name in ("Latent", "Lanczos")
    )
    phases = [found["planned"]["phases"] for found in (latent, lanczos)]
    assert phases[1]["decode"]["seconds"] > 1.5 * phases[0]["decode"]["seconds"]
    assert phases[1]["denoise"] == phases[0]["denoise"]


def test_the_text_tells_the_second_pass_in_a_line(plan):
    ran = plan("-o", "none", "--hires", "1.5", "--hires-steps", 15, "--sampler", "DPM++ SDE")
    lines = ran.out.splitlines()
    assert lines[0].startswith("firstlight, 64x64, 20 steps (39 evaluations) with guidance")
    assert any(line.startswith("  second pass 96x96, 15 steps (29 evaluations): plain ") for line in lines)


def test_a_picture_to_begin_from_takes_its_share_of_the_steps(plan):
    document = json.loads(plan("-o", "none", "--denoise", 0.75, "--json").out)
    assert (document["passes"][0]["steps"], document["passes"][0]["evaluations"]) == (16, 16)
    assert "16 steps from a picture" in plan("-o", "none", "--denoise", 0.75).out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--sampler", "Eular"), ("unknown sampler 'Eular'", "Euler")),
        (("--schedule", "Karras"), ("schedule is given without sampler",)),
        (("--sampler", "PLMS", "--model", "sd35-medium"), ("PLMS", "flow-matching")),
        (("--hires", "0.5"), ("hires is '0.5'", "factor over 1")),
        (("--hires", "101x101"), ("101 is no multiple of 8",)),
        (("--hires-steps", "5"), ("hires-steps is given without hires",)),
        (("--hires", "2", "--hires-upscaler", "Lancos"), ("Lanczos",)),
        (("--hires", "2", "--denoise", "0.5"), ("init and hires are both given",)),
        (("--denoise", "2"), ("denoise is", "0 to 1")),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_no_run_could_draw_is_not_planned(plan, arguments, words):
    failed(plan(*arguments), 2, *words)


def test_a_presets_sampler_is_left_out_for_a_model_that_it_is_not_for():
    given = {"device": "rtx-3060-12gb", "optimize": "none", "steps": 4}
    assert foreseen(**given, model="firstlight", usual="PLMS").request.sampler == "PLMS"
    assert foreseen(**given, model="sd35-medium", usual="PLMS").request.sampler is None


def test_generate_plans_for_both_passes_of_its_request(folder):
    request = Request("a cat", width=32, height=32, steps=3, hires="2", hires_steps=2, sampler="Heun")
    with safelight.load(str(folder), device="cpu", keep="dtype=float32", request=request) as session:
        assert (session.target.width, session.target.height) == (64, 64)
        assert session.forecast is not None and session.forecast.before is not None
        assert (session.forecast.before.steps, session.forecast.steps) == (5, 3)
        both = session.forecast.cost(session._chosen)
        assert session.plan.cost.peak_bytes == pytest.approx(both.peak_bytes, rel=0.05)


def test_another_vae_that_does_not_fit_is_told_before_any_weight_is_read(folder, tmp_path):
    import shutil

    import tiny
    import torch
    from safetensors.torch import save_file

    damaged = shutil.copytree(folder, tmp_path / "damaged")
    save_file({"nothing": torch.zeros(1)}, damaged / "unet" / "diffusion_pytorch_model.safetensors")
    tiny.vae(scaling_factor=0.36, shift_factor=0.1).save_pretrained(tmp_path / "other")
    with pytest.raises(DoesNotApply, match="other"):
        safelight.load(str(damaged), device="cpu", vae=str(tmp_path / "other"))


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
