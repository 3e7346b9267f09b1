"""The command line as a promise: results on stdout, one line on stderr for what cannot be, an exit code for each.

Run in this process, on a tiny pipeline saved as a folder; a few tests start a real one.
"""

import errno
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tiny
from commandline import as_nobody, in_process

import safelight
from safelight import cli
from safelight.optimizers import OPTIMIZERS
from safelight.probe import device
from safelight.request import MAX_SEED
from safelight.run import metadata
from safelight.simulate import measurements

SMALL = ("--steps", 2, "--width", 32, "--height", 32)
BATCH = ("--seed", 7, "--count", 3, "--batch-size", 2)


@pytest.fixture
def plain(tmp_path_factory):
    """Settings of somebody who wants nothing planned, which would take longer than all else."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "safelight").mkdir()
    (folder / "safelight" / "config.toml").write_text('optimize = "none"')
    return folder


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, plain):
    """Runs the command line here, in an empty folder, without the settings of whoever runs the tests."""
    as_nobody(monkeypatch, tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(plain))
    with in_process(monkeypatch, capsys) as call:
        yield call


@pytest.fixture
def draw(run, folder):
    """Draws with the tiny pipeline; later flags win over these."""
    return lambda *arguments: run("generate", "a cat", "--model", folder, *SMALL, *arguments)


@pytest.fixture
def changed(folder, tmp_path):
    """A copy of the tiny pipeline's folder, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "changed"))


def files(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def pixels(path):
    from PIL import Image

    with Image.open(path) as image:
        return image.size, image.convert("RGB").tobytes()


def assert_refused(ran, code, *says):
    """One line that names what was asked and what to do, and nothing on stdout."""
    assert ran.code == code, ran
    assert ran.out == ""
    assert ran.err.startswith("safelight: "), ran.err
    assert len(ran.err.splitlines()) == 1, ran.err
    for words in says:
        assert words in ran.err, ran.err


# -- what comes out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["generate", "t2i"])
def test_generate_writes_the_picture_and_prints_its_path_alone(run, folder, tmp_path, command):
    ran = run(command, "a cat", "--model", folder, *SMALL, "--seed", 3, "--out", "a.png")
    assert (ran.code, ran.out) == (0, "a.png\n")
    assert "picture 1 of 1" in ran.err
    assert "seed 3" in ran.err
    assert pixels("a.png")[0] == (32, 32)
    assert files(tmp_path) == ["a.png"]


def test_in_a_pipe_the_lines_are_plain(draw):
    ran = draw("--count", 2, "-o", "dtype=bfloat16")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\x9b]", ran.out + ran.err)


def test_quiet_leaves_out_the_progress_alone(draw):
    ran = draw("--quiet", "-O", "a.png")
    assert ran.out == "a.png\n"
    assert "picture 1" not in ran.err


def test_json_is_one_document_with_paths_seeds_seconds_bytes_and_optimizers(draw):
    ran = draw("--json", *BATCH, "-o", "dtype=bfloat16,prompt-cache", "-O", "a.png")
    document = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert [entry["path"] for entry in document["pictures"]] == ["a-0000.png", "a-0001.png", "a-0002.png"]
    assert [entry["seed"] for entry in document["pictures"]] == [7, 8, 9]
    assert document["seconds"].keys() == {"text", "denoise", "decode"}
    assert all(seconds > 0 for seconds in document["seconds"].values())
    assert document["peak_bytes"] is None or document["peak_bytes"] > 0
    assert [(o["name"], o["requested"], o["engaged"]) for o in document["optimizers"]] == [
        ("dtype", True, True),
        ("prompt-cache", True, True),
    ]
    assert document["request"]["prompt"] == "a cat"


@pytest.mark.parametrize(
    ("out", "count", "expected"),
    [
        (None, 1, ["safelight-0000.png"]),
        ("a.jpg", 1, ["a.jpg"]),
        ("a.webp", 1, ["a.webp"]),
        ("A.PNG", 1, ["A.PNG"]),
        ("a.png", 2, ["a-0000.png", "a-0001.png"]),
        ("new/sub", 2, ["new/sub/000000.png", "new/sub/000001.png"]),
        ("new/", 1, ["new/000000.png"]),
        (".", 1, ["000000.png"]),
    ],
)
def test_files_are_named_as_asked(draw, tmp_path, out, count, expected):
    ran = draw("--count", count, "--quiet", *(("--out", out) if out else ()))
    assert ran.code == 0
    assert ran.out.splitlines() == expected
    assert files(tmp_path) == sorted(expected)


@pytest.mark.parametrize("out", [(), ("--out", "many")], ids=["by default", "in a folder"])
def test_a_second_run_goes_on_where_the_first_one_ended(draw, tmp_path, out):
    first = draw("--count", 2, *out).out.splitlines()
    kept = [Path(path).read_bytes() for path in first]
    second = draw("--seed", 99, *out).out.splitlines()
    assert not set(first) & set(second)
    assert [Path(path).read_bytes() for path in first] == kept
    assert len(files(tmp_path)) == 3


def test_a_folder_that_is_called_like_a_picture_is_a_folder(draw, tmp_path):
    (tmp_path / "odd.png").mkdir()
    assert draw("--out", "odd.png").out == "odd.png/000000.png\n"


def test_upscale_gives_four_times_the_size(draw):
    draw("--upscale", 4, "-O", "a.png")
    assert pixels("a.png")[0] == (128, 128)


@pytest.mark.parametrize("flag", ["--seed", "--guidance"])
def test_zero_is_a_value_and_not_a_missing_flag(draw, flag):
    request = json.loads(draw("--json", flag, 0).out)["request"]
    assert request[flag.removeprefix("--")] == 0


def test_a_real_process_draws_with_the_bundled_model(tmp_path):
    ran = started("a red apple, 3d, on a blue background", "--steps", "2", "--seed", "1", cwd=tmp_path)
    out, err = ran.communicate(timeout=120)
    assert (ran.returncode, out) == (0, "safelight-0000.png\n"), err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]|Warning|Traceback", err), err
    record, _ = metadata.read(tmp_path / "safelight-0000.png")
    assert record.model == "firstlight"


def started(*arguments, cwd, **environment):
    """A real `python -m safelight generate`, under way."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SAFELIGHT_")}
    return subprocess.Popen(
        [sys.executable, "-m", "safelight", "generate", *arguments],
        cwd=cwd,
        env={
            **clean,
            "PYTHONPATH": str(Path(safelight.__file__).parents[1]),
            "XDG_CONFIG_HOME": str(cwd),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# -- --from and info ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("-o", "dtype=bfloat16,prompt-cache"),
        ("--sampler", "DPM++ 2M Karras", "--guidance", 3.5, "--negative", "a dog"),
        ("--upscale", 4),
        ("--width", 48, "-o", "vae-tiling=16,vae-tiling.overlap=0.5"),
        ("--seed", 0),
        ("--seed", MAX_SEED),
    ],
    ids=str,
)
def test_from_makes_the_same_pixels_again(draw, run, flags):
    draw("--seed", 5, *flags, "-O", "a.png")
    ran = run("generate", "--from", "a.png", "-O", "b.png")
    assert (ran.code, ran.out) == (0, "b.png\n")
    assert pixels("b.png") == pixels("a.png")


@pytest.mark.parametrize("optimize", ["none", "vae-slicing", "dtype=bfloat16"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_from_makes_one_picture_of_a_batch_again_and_writes_it_alone(draw, run, tmp_path, index, optimize):
    draw(*BATCH, "-o", optimize, "-O", "a.png")
    ran = run("generate", "--from", f"a-000{index}.png", "-O", "again/b.png")
    assert (ran.code, ran.out) == (0, "again/b.png\n"), ran.err
    assert pixels("again/b.png") == pixels(f"a-000{index}.png")
    assert files(tmp_path / "again") == ["b.png"]


def test_from_makes_the_bundled_models_picture_again(run):
    run("generate", "a red apple", "--steps", 3, *BATCH, "-o", "dtype=bfloat16", "-O", "a.png")
    assert run("generate", "--from", "a-0001.png", "-O", "b.png").code == 0
    assert pixels("b.png") == pixels("a-0001.png")


def test_from_works_where_the_seed_wraps_around_within_the_batch(draw, run):
    draw("--seed", MAX_SEED, "--count", 2, "--batch-size", 2, "-O", "a.png")
    run("generate", "--from", "a-0001.png", "-O", "b.png")
    assert pixels("b.png") == pixels("a-0001.png")


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_from_reads_the_record_of_every_format(draw, run, suffix):
    draw("--seed", 5, "-O", "a.png")
    draw("--seed", 5, "-O", f"a{suffix}")
    run("generate", "--from", f"a{suffix}", "-O", "b.png")
    assert pixels("b.png") == pixels("a.png")


def test_from_takes_what_the_settings_say_of_nothing_but_the_place(draw, run, tmp_path):
    draw("--seed", 5, "-O", "a.png")
    (tmp_path / "safelight.toml").write_text('steps = 5\ndtype = "bfloat16"\nvae = "no/where"\nout = "here.png"')
    assert run("generate", "--from", "a.png").out == "here.png\n"
    assert pixels("here.png") == pixels("a.png")


def test_from_makes_a_picture_of_the_checkpoints_own_sampler_again(run, changed):
    """A scheduler config that no name in the table stands for."""
    scheduler = {"_class_name": "DDIMScheduler", "clip_sample": True, "beta_schedule": "scaled_linear"}
    (changed / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = json.loads((changed / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    (changed / "model_index.json").write_text(json.dumps(index))
    run("generate", "a cat", "--model", changed, *SMALL, "--seed", 1, "-O", "a.png")
    ran = run("generate", "--from", "a.png", "-O", "b.png")
    assert ran.code == 0, ran.err
    assert pixels("b.png") == pixels("a.png")


@pytest.mark.parametrize("flags", [("--seed", 6), ("--steps", 3), ("a dog",), ("--dtype", "bfloat16")], ids=str)
def test_flags_change_what_from_repeats(draw, run, flags):
    draw("--seed", 5, "-O", "a.png")
    assert run("generate", "--from", "a.png", "-O", "b.png", *flags).code == 0
    assert pixels("b.png") != pixels("a.png")


def test_from_with_a_count_goes_on_from_the_pictures_own_seed(draw, run):
    draw(*BATCH, "-O", "a.png")
    document = json.loads(run("generate", "--from", "a-0001.png", "--count", 2, "--json").out)
    assert [entry["seed"] for entry in document["pictures"]] == [8, 9]


@pytest.mark.parametrize(
    ("command", "says"),
    [(("generate", "--from"), "foreign.png says nothing of how it was made"), (("info",), "foreign.png carries no")],
    ids=["generate", "info"],
)
def test_a_foreign_picture_is_refused(run, tmp_path, command, says):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    assert_refused(run(*command, "foreign.png"), 2, says)


def test_info_prints_both_texts(draw, run):
    draw("--seed", 5, "-O", "a.png")
    ran = run("info", "a.png")
    text, brace, twin = ran.out.partition("\n{")
    assert (ran.code, ran.err) == (0, "")
    assert text.startswith("a cat\nSteps: 2, Sampler: Euler, CFG scale: 7.5, Seed: 5, Size: 32x32")
    assert json.loads(brace + twin)["seed"] == 5


@pytest.mark.parametrize(
    "prompt",
    ["\"quoted\", 'twice'", "two\nlines\n\nand more", "\u4e16\u754c \U0001f34e", "--steps", "-o", "50% \\ {} \x1b[0m"],
    ids=ascii,
)
def test_any_prompt_comes_back_from_info(run, folder, prompt):
    assert run("generate", "--model", folder, *SMALL, "-O", "a.png", "--", prompt).code == 0
    assert json.loads(run("info", "a.png", "--json").out)["prompt"] == prompt


def test_info_sends_no_control_characters_of_a_foreign_picture_to_the_terminal(run, tmp_path):
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("parameters", "a \x1b]0;title\x07cat\nSteps: 2, Sampler: Euler, Seed: 1")
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png", pnginfo=chunks)
    ran = run("info", "foreign.png")
    assert ran.out == "a \\x1b]0;title\\x07cat\nSteps: 2, Sampler: Euler, Seed: 1\n"


# -- settings ----------------------------------------------------------------------------------------------------------


def test_settings_reach_the_run_and_later_ones_win(run, folder, tmp_path, monkeypatch):
    lines = [f"model = {json.dumps(str(folder))}", "steps = 3", "width = 64", "height = 64", 'prompt = "a cow"']
    lines += ['dtype = "bfloat16"', 'optimize = ["prompt-cache"]', 'out = "toml.png"']
    (tmp_path / "safelight.toml").write_text("\n".join(lines))
    monkeypatch.setenv("SAFELIGHT_WIDTH", "32")
    monkeypatch.setenv("SAFELIGHT_HEIGHT", "32")
    monkeypatch.setenv("SAFELIGHT_GUIDANCE", "2.5")
    document = json.loads(run("generate", "--json", "--height", 48).out)
    request = document["request"]
    assert (request["prompt"], request["steps"], request["guidance"]) == ("a cow", 3, 2.5)
    assert (request["width"], request["height"]) == (32, 48)
    assert document["pictures"][0]["path"] == "toml.png"
    assert {status["name"]: status["value"] for status in document["optimizers"]} == {
        "dtype": "bfloat16",
        "prompt-cache": "64",
    }


def test_a_dtype_on_the_command_line_wins_over_one_in_the_settings(draw, tmp_path):
    (tmp_path / "safelight.toml").write_text('dtype = "bfloat16"')
    values = [json.loads(draw("--json", *flags).out)["optimizers"][0]["value"].split(",")[0] for flags in DTYPE_FLAGS]
    assert values == ["bfloat16", "float32", "float32"]


DTYPE_FLAGS = ((), ("--dtype", "float32"), ("-o", "dtype=float32"))


@pytest.mark.parametrize(
    ("toml", "environment", "flags", "expected"),
    [
        ('optimize = "dtype=bfloat16"', {"SAFELIGHT_DTYPE": "float32"}, (), {"dtype": "float32"}),
        ("[optimize]\ndtype = 'bf16'\nprompt-cache = 3", {}, (), {"dtype": "bfloat16", "prompt-cache": "3"}),
        ("[optimize]\nprompt-cache = {entries = 3}", {"SAFELIGHT_OPTIMIZE": "bf16"}, (), {"prompt-cache": "3"}),
        ('optimize = "prompt-cache=3"', {"SAFELIGHT_OPTIMIZE": "prompt_cache=4"}, (), {"prompt-cache": "4"}),
        ('optimize = "prompt-cache=3"', {}, ("-o", "none"), {}),
        ('optimize = "dtype,prompt-cache=3"', {}, ("-o", "none,dtype=float32"), {"dtype": "float32"}),
        ('optimize = "prompt-cache=3"', {}, ("--dtype", "float32"), {"dtype": "float32", "prompt-cache": "3"}),
        ('optimize = "prompt-cache=3"', {}, ("-o", "prompt-cache=off"), {}),
        ("", {"DG_FLUX_KONTEXT_OFFLOAD": "1"}, (), {}),
    ],
    ids=str,
)
def test_what_is_said_of_the_optimizers_adds_up_and_the_later_wins(
    draw, tmp_path, monkeypatch, toml, environment, flags, expected
):
    (tmp_path / "safelight.toml").write_text(toml)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = {one["name"]: one["value"].split(",")[0] for one in json.loads(draw("--json", *flags).out)["optimizers"]}
    assert expected.items() <= found.items()
    assert len(found) == len(expected) or "bf16" in str(environment)


@pytest.mark.parametrize(
    "flags",
    [
        ("-o", "bf16,prompt-cache"),
        ("--enable-prompt-cache", "--dtype", "bf16"),
        ("--enable_prompt_cache", "--torch_dtype", "bfloat16"),
        ("--enable-bf16", "-o", "prompt_cache"),
        ("--torch-dtype", "bf16", "--dtype", "bfloat16", "--enable-prompt_cache"),
    ],
    ids=str,
)
def test_single_flags_ask_for_the_same_as_the_optimize_text(draw, flags):
    document = json.loads(draw("--json", "--batch_size", 1, *flags).out)
    assert {one["name"]: one["value"].split(",")[0] for one in document["optimizers"]} == {
        "dtype": "bfloat16",
        "prompt-cache": "64",
    }


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--dtype", "bf16", "-o", "dtype=fp32"), "dtype is given twice, with value float32 and bfloat16"),
        (("--enable_vae_tilling",), "did you mean --enable-vae-tiling"),
        (("--enable_fp8",), "unknown flag '--enable-fp8'"),
        (("-o", "fp8"), "fp8 (quantization) is not there yet"),
        (("--cache_type", "magic"), "unknown optimizer 'magic'"),
        (("--cache_type", "first_block_cache"), "first-block-cache was asked for, but"),
        (("--attention_backend", "flush"), "did you mean flash"),
        (("--without", "magic"), "unknown optimizer 'magic'"),
    ],
    ids=str,
)
def test_a_single_flag_that_cannot_be_is_refused(draw, flags, says):
    assert_refused(draw(*flags), 2, says)


@pytest.mark.parametrize("optimize", [{"dtype": "bf16", "prompt-cache": 3}, ["bf16", "prompt_cache=3"]], ids=str)
def test_python_takes_the_same_words(folder, optimize):
    with safelight.load(str(folder), optimize=optimize, device="cpu", width=32, height=32) as session:
        assert [status.name for status in session.status()] == ["dtype", "prompt-cache"]


def test_without_wins_over_auto_and_may_be_a_list_in_the_settings(draw, tmp_path):
    (tmp_path / "safelight.toml").write_text('optimize = "auto"\nwithout = ["dtype", "channels-last"]')
    document = json.loads(draw("--json", "--without", "dtype,prompt-cache").out)
    assert document["left"]["dtype"] == "ruled out"
    assert document["left"]["prompt-cache"] == "ruled out"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('steps = "many"', "steps is 'many'"),
        ("steps = true", "steps is True"),
        ("count = 1.5", "count is 1.5"),
        ("width = [32]", "width is [32]"),
        ('guidance = "high"', "guidance is 'high'"),
        ("guidance = nan", "guidance is nan"),
        ("seed = 1.0", "seed is 1.0"),
        ("upscale = true", "upscale is True"),
        ("negative = 3", "negative is 3"),
        ("prompt = 3", "prompt is 3"),
        ("sampler = 3", "sampler is 3"),
        ("optimize = 3", "optimize in "),
        ("without = 5", "without in "),
        ("without = [5]", "without in "),
        ("model = 1", "model in "),
        ("out = []", "out in "),
        ('dtype = "bf61"', "unknown dtype 'bf61'"),
        ("dtype = 16", "dtype in "),
        ('format = "png"', "unknown key in "),
        ("stepps = 3", "did you mean steps"),
        ("[steps]\nmany = 1", "steps is {'many': 1}"),
        ("steps = = 3", "not valid TOML"),
        ("seed = 1" + "0" * 5000, "not valid TOML"),
    ],
    ids=lambda value: value[:20],
)
def test_a_setting_of_the_wrong_kind_is_named_in_one_line(run, folder, tmp_path, line, says):
    (tmp_path / "safelight.toml").write_text(line)
    prompt = () if line.startswith("prompt") else ("a cat",)
    assert_refused(run("generate", *prompt, "--model", folder), 2, says)
    assert files(tmp_path) == ["safelight.toml"]


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("SAFELIGHT_STEPS", "many", "steps is 'many': give a whole number"),
        ("SAFELIGHT_GUIDANCE", "high", "guidance is 'high': give a number"),
        ("SAFELIGHT_STEPPS", "3", "did you mean SAFELIGHT_STEPS"),
    ],
)
def test_a_variable_of_the_wrong_kind_is_named_in_one_line(draw, run, monkeypatch, variable, text, says):
    monkeypatch.setenv(variable, text)
    assert_refused(run("generate", "a cat"), 2, says)


def test_preview_is_a_file_of_the_newest_step_and_changes_no_pixel(draw, tmp_path, tiny_vae):
    draw("-O", "plain.png", "--seed", 3)
    ran = draw("-O", "a.png", "--seed", 3, "--preview", "live/now.jpg", "--preview-every", 2, *tiny_vae)
    assert (ran.code, ran.out) == (0, "a.png\n"), ran.err
    assert "preview " in ran.err
    assert files(tmp_path) == ["a.png", "live/now.jpg", "plain.png"]
    assert pixels("a.png") == pixels("plain.png")
    assert pixels("live/now.jpg")[0] == (32, 32)


def test_preview_is_written_anew_at_every_step_of_every_batch(draw, tiny_vae, monkeypatch):
    written, write = [], metadata.write_preview

    def note(picture, path):
        write(picture, path)
        written.append(path.read_bytes())

    monkeypatch.setattr(metadata, "write_preview", note)
    ran = draw("-O", "a.png", *BATCH, "--preview", "now.png", *tiny_vae)
    assert ran.code == 0, ran.err
    assert len(set(written)) == len(written) == 4, "the smoke run shows its previews to nobody"
    assert Path("now.png").read_bytes() == written[-1]


@pytest.fixture
def tiny_vae():
    from optimizers.off_decode import taesd_folder

    return "-o", f"tiny-vae={taesd_folder()},tiny-vae.use=preview"


# -- what is refused ---------------------------------------------------------------------------------------------------

BAD_FLAGS = [
    (("-o", "dtyp"), 2, "unknown optimizer 'dtyp': did you mean dtype"),
    (("-o", "nonsense!"), 2, "known: attention-backend"),
    (("-o", "vae-tiling.tile=3"), 2, "did you mean tile_px"),
    (("-o", "vae-tiling=abc"), 2, "'abc': give a whole number"),
    (("-o", "vae-tiling=15"), 2, "multiple of 2"),
    (("-o", "vae-tiling"), 2, "not larger than one tile"),
    (("-o", "channels-last=3"), 2, "channels-last takes no value"),
    (("-o", "dtype", "--without", "dtype"), 2, "ruled out at once"),
    (("--without", "dtyp"), 2, "did you mean dtype"),
    (("--sampler", "Eulr"), 2, "unknown sampler 'Eulr': did you mean Euler"),
    (("--sampler", "FlowMatchEulerDiscreteScheduler"), 2, "not for a noise-predicting model"),
    (("--model", "firstlite"), 2, "unknown model 'firstlite': did you mean firstlight"),
    (("--model", "./missing"), 2, "no model at ./missing: give a diffusers folder"),
    (("--model", "missing.safetensors"), 2, "no model at missing.safetensors"),
    (("--vae", "./missing"), 2, "./missing"),
    (("--dtype", "bf61"), 2, "unknown dtype 'bf61': did you mean bf16"),
    (("--dtype", "float16", "--device", "cpu"), 2, "bfloat16 or float32"),
    (("--device", "cuba"), 2, "unknown device 'cuba': did you mean cuda"),
    (("--device", "cuda:99"), 4, "there is no cuda:99 here"),
    (("--widht", 3), 2, "unknown flag '--widht': did you mean"),
    (("--zzz",), 2, "unknown flag '--zzz': known: "),
    (("-z",), 2, "unknown flag '-z'"),
    (("extra",), 2, "unexpected extra argument (extra) (a prompt of several words wants quotes"),
    (("--width", 33), 2, "width is 33: this model draws multiples of 8 pixels (32 and 40 are near)"),
    (("--height", 1), 2, "height is 1: this model draws multiples of 8 pixels (8 are near)"),
    (("--width", 100_000_000), 2, "width is 100000000: give a whole number from 1 to 16384"),
    (("--steps", 10**11), 2, "steps is 100000000000: give a whole number from 1 to 1000"),
    (("--count", 10**11), 2, "count is 100000000000"),
    (("--guidance", -1), 2, "guidance is -1.0: give a number from 0"),
    (("--guidance", "nan"), 2, "guidance is nan"),
    (("--guidance", "inf"), 2, "guidance is inf"),
    (("--guidance", "high"), 2, "guidance is 'high'"),
    (("--seed", -1), 2, "seed is -1"),
    (("--seed", 2**32), 2, "seed is 4294967296"),
    (("--seed", "1.5"), 2, "seed is '1.5'"),
    (("--upscale", 3), 2, "upscale is 3: 1 and 4"),
    (("--lora", "missing.safetensors"), 2, "no LoRA file at missing.safetensors"),
    (("--lora", "a.safetensors=much"), 2, "'much' is not a number"),
    (("--config", "there"), 2, "--config is for a single file"),
    (("--preview", "p.png"), 2, "nothing here decodes previews: add -o tiny-vae.use=preview"),
    (("--preview", "p.png", "-o", "tiny-vae"), 2, "add -o tiny-vae.use=preview"),
    (("--preview", "p.gif", "-o", "tiny-vae.use=preview"), 2, "end the name in one of them"),
    (("--preview", "out/a.png", "-o", "tiny-vae.use=preview"), 2, "is where the picture itself goes"),
    (("--preview-every", 2), 2, "--preview-every is given without --preview FILE"),
    (("--preview-every", 0), 2, "--preview-every"),
    (("--preview-every", "x"), 2, "--preview-every"),
    (("-o", "tiny-vae.use=prewiev"), 2, "unknown use of tiny-vae 'prewiev': did you mean preview"),
    (("--quiet", "-O", "x" * 300 + ".png"), 4, "too long"),
    (("-O", "a.gif"), 2, "--out a.gif: end it in .png, .jpg or .webp"),
    (("--from", "missing.png"), 2, "cannot read missing.png"),
    (("--negative", "\udcff"), 2, "negative is '\\udcff': give valid Unicode text"),
    *(
        ((f"--{name}", value), 2, f"{name} is {value!r}: give a whole number from 1")
        for name in ("width", "height", "steps", "count", "batch-size")
        for value in (0, -2, "1.5", "many")
    ),
]


@pytest.mark.parametrize(
    ("flags", "code", "says"), BAD_FLAGS, ids=lambda value: "" if value in (2, 4) else ascii(value)
)
def test_a_bad_flag_is_refused_in_one_line_and_nothing_is_written(draw, tmp_path, flags, code, says):
    assert_refused(draw("--out", "out/a.png", *flags), code, says)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("generte", "a cat"), "unknown command 'generte': did you mean generate"),
        (
            ("zzz",),
            "unknown command 'zzz': known: advise, bench, doctor, generate, get, grid, info, measurements, ",
        ),
        (("generate",), "what shall be drawn?"),
        (("generate", ""), "what shall be drawn?"),
        (("generate", " \n"), "what shall be drawn?"),
        (("generate", "half a pair \udcff"), "prompt is"),
        (("generate", "a cat", "--steps"), "'--steps' requires an argument"),
        (("info",), "PICTURE"),
        (("info", "missing.png"), "cannot read missing.png"),
        (("doctor", "--jsn"), "unknown flag '--jsn': did you mean --json"),
        (("--verison",), "unknown flag '--verison': did you mean --version"),
    ],
    ids=ascii,
)
def test_a_bad_command_is_refused_in_one_line(run, tmp_path, arguments, says):
    assert_refused(run(*arguments), 2, says)
    assert files(tmp_path) == []


def test_no_command_shows_the_help_on_stderr(run):
    ran = run()
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Usage: safelight")


def test_a_file_where_the_folder_should_be_is_refused(draw, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_refused(draw("-O", "file/a.png"), 4, "cannot write into file: a file is where a folder should be")
    assert files(tmp_path) == ["file"]


def test_a_control_character_does_not_reach_the_terminal(draw):
    assert_refused(draw("--model", "./\x1b[31mred"), 2, "no model at ./\\x1b[31mred")


# -- damaged models ----------------------------------------------------------------------------------------------------

UNET = "unet/diffusion_pytorch_model.safetensors"


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def index_of(text):
    return lambda path: (path / "model_index.json").write_text(text)


DAMAGE = {
    "no index": (lambda path: (path / "model_index.json").unlink(), 2, "no model_index.json"),
    "damaged index": (index_of('{"_class'), 1, "is not valid JSON"),
    "index is a list": (index_of("[]"), 1, "names no pipeline class"),
    "index has an empty part": (index_of('{"_class_name": "StableDiffusionPipeline", "unet": []}'), 1, "of 'unet'"),
    "index has a number for a module": (
        index_of('{"_class_name": "StableDiffusionPipeline", "unet": [3, 4]}'),
        1,
        "[3, 4] of",
    ),
    "unknown pipeline": (index_of('{"_class_name": "NoSuchPipeline"}'), 1, "cannot be loaded"),
    "foreign code": (index_of('{"_class_name": "StableDiffusionPipeline", "unet": ["os", "x"]}'), 2, "wants code from"),
    "missing part": (lambda path: shutil.rmtree(path / "unet"), 1, "no folder 'unet'"),
    "missing weights": (lambda path: (path / UNET).unlink(), 1, "cannot be loaded"),
    "missing config": (lambda path: (path / "vae" / "config.json").unlink(), 1, "cannot be loaded"),
    "damaged config": (lambda path: (path / "vae" / "config.json").write_text("{"), 1, "cannot be loaded"),
    "truncated weights": (lambda path: cut(path / UNET), 1, "is truncated"),
    "empty weights": (lambda path: (path / UNET).write_bytes(b""), 1, "no whole safetensors file"),
    "weights of another part": (lambda path: shutil.copy(path / UNET, path / "vae" / Path(UNET).name), 1, "of its vae"),
}


@pytest.mark.parametrize(("damage", "code", "says"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(draw, changed, tmp_path, damage, code, says):
    damage(changed)
    assert_refused(draw("--model", changed, "-O", "out/a.png"), code, says, "changed")
    assert files(tmp_path / "out") == []


def safetensors(header):
    text = header.encode()
    return len(text).to_bytes(8, "little") + text


def torch_file():
    import io

    import torch

    file = io.BytesIO()
    torch.save({"model.diffusion_model.x": torch.zeros(2)}, file)
    return file.getvalue()


FILES = {
    "garbage": ("a.safetensors", lambda: b"garbage " * 40, 1, "no whole safetensors file"),
    "empty": ("a.safetensors", lambda: b"", 1, "no whole safetensors file"),
    "header is a list": ("a.safetensors", lambda: safetensors("[1]"), 1, "header"),
    "header of numbers": ("a.safetensors", lambda: safetensors('{"a": 3}'), 1, "header"),
    "header without offsets": ("a.safetensors", lambda: safetensors('{"a": {"dtype": "F32"}}'), 1, "header"),
    "no denoiser": ("a.safetensors", lambda: safetensors("{}"), 1, "holds no denoiser"),
    "pickle": ("a.ckpt", lambda: pickle.dumps({}), 2, "--allow-pickle"),
    "torch pickle": ("a.ckpt", torch_file, 2, "--allow-pickle"),
    "disguised pickle": ("a.safetensors", lambda: pickle.dumps({}), 2, "--allow-pickle"),
    "disguised torch pickle": ("a.safetensors", torch_file, 2, "--allow-pickle"),
}


@pytest.mark.parametrize("flag", ["--model", "--lora", "--vae"])
@pytest.mark.parametrize(("name", "content", "code", "says"), FILES.values(), ids=FILES)
def test_a_damaged_file_is_refused_in_one_line(draw, tmp_path, flag, name, content, code, says):
    (tmp_path / name).write_bytes(content())
    if flag == "--model":
        assert_refused(draw(flag, name, "-O", "out/a.png"), code, name, says)
    else:  # what each of them says of it is theirs
        assert_refused(
            draw(flag, name, "-O", "out/a.png"), 2 if says == "--allow-pickle" and flag == "--vae" else 1, name
        )
    assert files(tmp_path) == [name]


def test_a_truncated_single_file_is_refused(draw, folder, tmp_path):
    shutil.copy(folder / UNET, tmp_path / "a.safetensors")
    cut(tmp_path / "a.safetensors")
    assert_refused(draw("--model", "a.safetensors"), 1, "a.safetensors is truncated", "download it again")


# -- what goes wrong on the way ----------------------------------------------------------------------------------------


@pytest.fixture
def decoding(monkeypatch):
    """Puts a function (call's number, vae) before every decoding: it raises, or says "spoil it"."""
    from diffusers import AutoencoderKL
    from torch._subclasses.fake_tensor import FakeTensor

    real, calls = AutoencoderKL.decode, []

    def install(before):
        def decode(vae, latents, return_dict=True):
            (decoded,) = real(vae, latents, return_dict=False)
            if isinstance(latents, FakeTensor):  # only predicted
                return (decoded,)
            calls.append(latents)
            return (decoded * float("nan"),) if before(len(calls), vae) else (decoded,)

        monkeypatch.setattr(AutoencoderKL, "decode", decode)

    return install


@pytest.fixture
def full_disk(monkeypatch):
    """The disk is full when the n-th picture is written: half of it is there, and the rest does not fit."""
    real, written = metadata._store, []

    def install(after):
        def no_space(_descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        def store(path, data, *more):
            if path.suffix == ".probe":
                return real(path, data, *more)
            written.append(path)
            return real(path, data, no_space if len(written) > after else os.fsync)

        monkeypatch.setattr(metadata, "_store", store)

    return install


def raising(error, at=1):
    """Raises at the call of this number, and spoils nothing before."""

    def before(call, _vae):
        if call >= at:
            raise error
        return False

    return before


def test_a_full_disk_is_named_and_leaves_nothing(draw, full_disk, tmp_path):
    full_disk(after=0)
    assert_refused(draw("--quiet", "-O", "out/a.png"), 4, "cannot write out/a.png: the disk is full")
    assert files(tmp_path) == []


def out_of_memory():
    import torch

    return [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 123 bytes."),
        MemoryError(),
    ]


@pytest.mark.parametrize("error", out_of_memory(), ids=lambda error: type(error).__name__)
def test_out_of_memory_names_the_stage_and_a_remedy(draw, decoding, tmp_path, error):
    decoding(raising(error))
    assert_refused(draw("-O", "out/a.png"), 6, "decode of 1 picture(s) of 32x32 ran out of memory", "-o vae-tiling")
    assert files(tmp_path) == []


def test_a_picture_that_cannot_fit_is_refused_before_it_is_begun(draw, monkeypatch, tmp_path):
    """Linux promises memory that it does not have, and kills whoever uses it: nothing could be said then."""
    little = replace(tiny.cpu(), free_bytes=2**20)
    monkeypatch.setattr(device, "here", lambda asked: little)
    assert_refused(draw("--width", 8192, "-O", "out/a.png"), 6, "8192x32", "vae-tiling")
    assert files(tmp_path) == []


def test_a_vae_that_fails_in_16_bits_is_asked_again_in_32_and_that_is_said(draw, decoding):
    import torch

    decoding(lambda call, vae: vae.dtype == torch.bfloat16)
    ran = draw("-o", "dtype=bfloat16", "-O", "a.png")
    assert (ran.code, ran.out) == (0, "a.png\n")
    assert "drawn again with the VAE in float32" in ran.err
    assert json.loads(draw("-o", "dtype=bfloat16", "--json").out)["pictures"][0]["vae_retried"] is True


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_spoiled_picture_is_not_written(draw, decoding, tmp_path, dtype):
    decoding(lambda call, vae: True)
    assert_refused(draw("--dtype", dtype, "-O", "out/a.png"), 1, "also with the VAE in float32: not written")
    assert files(tmp_path) == []


@pytest.mark.parametrize("how", ["disk", "memory"])
def test_pictures_that_were_done_before_a_failure_are_kept_and_printed(draw, decoding, full_disk, tmp_path, how):
    if how == "disk":
        full_disk(after=2)
    else:
        decoding(raising(MemoryError(), at=3))
    ran = draw("--count", 4, "--quiet", "-O", "a.png")
    assert (ran.code, ran.out) == (3, "a-0000.png\na-0001.png\n")
    assert ran.err.startswith("safelight: 2 of 4 pictures were written, then: ")
    assert len(ran.err.splitlines()) == 1
    assert files(tmp_path) == ["a-0000.png", "a-0001.png"]


def test_an_interruption_keeps_the_pictures_that_are_done(draw, decoding, tmp_path):
    decoding(raising(KeyboardInterrupt(), at=2))
    ran = draw("--count", 3, "--quiet", "-O", "a.png")
    assert (ran.code, ran.out) == (130, "a-0000.png\n")
    assert ran.err == "safelight: interrupted: 1 of 3 pictures were written\n"
    assert files(tmp_path) == ["a-0000.png"]


def test_an_interruption_while_a_model_is_loaded_is_one_line(draw, monkeypatch):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("safelight.load", interrupted)
    assert_refused(draw(), 130, "interrupted")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_a_signal_ends_a_real_run_and_leaves_whole_pictures_alone(folder, tmp_path, number, code):
    small = [str(value) for value in SMALL]
    ran = started("a cat", "--model", str(folder), *small, "--count", "9999", "-O", "out/a.png", cwd=tmp_path)
    assert ran.stderr.readline() == "picture 1 of 9999\n"
    ran.send_signal(number)
    out, err = ran.communicate(timeout=60)
    assert ran.returncode == code
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("safelight: ")
    written = files(tmp_path / "out")
    assert written == [Path(line).name for line in out.splitlines()]
    assert all(metadata.read(tmp_path / "out" / name)[0] for name in written)


def test_a_reader_that_goes_away_is_no_traceback(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "safelight", "optimizers"]
    environment = {**os.environ, "PYTHONPATH": str(Path(safelight.__file__).parents[1])}
    ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (1, "")


# -- the other commands ------------------------------------------------------------------------------------------------


def test_doctor_prints_lines_or_json(run):
    ran = run("doctor")
    assert (ran.code, ran.err) == (0, "")
    assert "python" in ran.out
    findings = json.loads(run("doctor", "--json").out)
    assert "python" in [finding["subject"] for finding in findings]
    assert len(findings) <= len(ran.out.splitlines())


def test_optimizers_lists_all_with_stage_fidelity_and_whether_it_fits_here(run):
    ran = run("optimizers", "--device", "cpu")
    assert (ran.code, ran.err) == (0, "")
    rows = {line.split()[0]: line for line in ran.out.splitlines()}
    assert list(rows) == list(OPTIMIZERS)
    assert rows["prompt-cache"].split()[1:4] == ["cache", "exact", "fits"]
    assert rows["vae-slicing"].endswith("rounding     no    one picture at a time: there is nothing to slice")
    assert "fits" in run("optimizers", "--device", "cpu", "--batch-size", 2).out.split("vae-slicing")[1].splitlines()[0]


def test_optimizers_names_lists_all_at_once(run):
    ran = run("optimizers", "--names")
    assert (ran.code, ran.err) == (0, "")
    assert [line.split()[0] for line in ran.out.splitlines()] == list(OPTIMIZERS)
    assert all(known.summary in ran.out for known in OPTIMIZERS.values())


def test_optimizers_reads_a_models_configs_and_none_of_its_weights(run, changed):
    for weights in changed.rglob("*.safetensors"):
        weights.unlink()
    document = json.loads(run("optimizers", "--json", "--device", "cpu", "--model", changed).out)
    fits = {entry["name"]: entry["why_not"] for entry in document}
    assert fits["dtype"] is None
    assert all(entry["fits"] is (entry["why_not"] is None) for entry in document)
    assert "64 px" in fits["vae-tiling"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_tells_all_about_one(run, name):
    ran = run("optimizers", name, "--names")
    known = OPTIMIZERS[name]
    assert (ran.code, ran.err) == (0, "")
    for said in (known.summary, known.source, known.fidelity.word, known.stage.name.lower(), "measured"):
        assert said in ran.out
    assert all(f"{option.name}, {option.kind.__name__}" in ran.out for option in known.options)


def test_optimizers_understands_other_names_and_names_the_nearest(run):
    assert run("optimizers", "pab", "--names").out.startswith("pyramid-attention-broadcast: ")
    assert_refused(run("optimizers", "vae-tilling"), 2, "did you mean vae-tiling")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--model", "a.safetensors"), "no model at a.safetensors"),
        (("--model", "firstlite"), "did you mean firstlight"),
        (("--device", "cuba"), "did you mean cuda"),
        (("--batch-size", "many"), "batch-size is 'many'"),
    ],
    ids=str,
)
def test_optimizers_refuses_what_is_not_there(run, flags, says):
    ran = run("optimizers", *flags)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err


def test_translate_prints_the_command_alone_on_stdout_and_answers_every_flag(run):
    ran = run("translate", "--xformers --medvram --no-half-vae")
    assert (ran.code, ran.out) == (0, "safelight generate PROMPT -o dtype=float16,model-offload,upcast-vae\n")
    assert [line.split(":")[0] for line in ran.err.splitlines()] == [
        "(by default)",
        "--xformers",
        "--medvram",
        "--no-half-vae",
    ]
    assert run("translate", "--xformers", "--medvram", "--no-half-vae").out == ran.out


def test_translate_as_json_is_one_document(run):
    document = json.loads(run("translate", "--json", "--medvram --precision full SAFETENSORS_FAST_GPU=1").out)
    assert document["optimize"] == "model-offload,dtype=float32"
    assert [line["verdict"] for line in document["lines"]] == ["becomes", "becomes", "obsolete"]


def test_translate_refuses_an_unknown_flag(run):
    assert_refused(run("translate", "--xfromers"), 2, "unknown flag '--xfromers': did you mean --xformers")


@pytest.fixture
def store(monkeypatch, tmp_path):
    """The user's measurements, as yet none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return measurements.here()


def measured(**changed):
    values = {"when": "2026-01-31T12:00:00.000+00:00", "device": "RTX 3060", "model": "sd15", "width": 512}
    values |= {"height": 768, "frames": 1, "batch_size": 2, "guided": True, "plan": "", "versions": "torch 2.13.0"}
    values |= {"steps": 20, "encode_seconds": 0.1, "step_seconds": 0.15, "decode_seconds": 1.0}
    values |= {"predicted_encode_seconds": 0.1, "predicted_step_seconds": 0.125, "predicted_decode_seconds": 1.0}
    values |= {"peak_bytes": 3 * 2**30, "predicted_peak_bytes": 2**31}
    return measurements.Measurement(**values | changed)


def test_measurements_are_a_table_newest_first(run, store):
    store.add(measured())
    store.add(measured(when="2026-02-01T08:30:00.000+00:00", plan="auto", frames=16, peak_bytes=None, model="a\x1b[0m"))
    ran = run("measurements")
    assert (ran.code, ran.err) == (0, "")
    head, *lines = [re.split(r"  +", line) for line in ran.out.splitlines()]
    assert head == ["when (UTC)", "device", "model", "size", "batch", "plan", "ms per step", "peak"]
    assert lines == [
        [
            *("2026-02-01 08:30:00", "RTX 3060", "a\\x1b[0m", "512x768, 16 frames"),
            *("2", "auto", "125.0 -> 150.0", "2048 MiB -> not measured"),
        ],
        ["2026-01-31 12:00:00", "RTX 3060", "sd15", "512x768", "2", "plain", "125.0 -> 150.0", "2048 MiB -> 3072 MiB"],
    ]


def test_measurements_as_json_are_one_document(run, store):
    store.add(measured())
    document = json.loads(run("measurements", "--json", "--device", "RTX 3060", "--model", "sd15").out)
    assert document == {"schema": 1, "file": str(store.path), "measurements": [asdict(measured())]}


def test_without_measurements_nothing_is_on_stdout_but_the_document(run, store):
    ran = run("measurements")
    assert (ran.code, ran.out, ran.err) == (0, "", "no measurements yet\n")
    assert json.loads(run("measurements", "--json").out)["measurements"] == []
    assert not store.path.parent.exists()


@pytest.mark.parametrize("kind", ["device", "model"])
def test_measurements_of_what_was_never_measured_name_the_nearest(run, store, kind):
    store.add(measured(**{kind: "sdxl-base"}))
    ran = run("measurements", f"--{kind}", "sdxl-bse")
    assert_refused(ran, 2, f"unknown measured {kind} 'sdxl-bse': did you mean sdxl-base?")


def test_measurements_clear_says_how_many_went(run, store):
    for model in ("sd15", "sdxl", "sdxl"):
        store.add(measured(model=model))
    assert run("measurements", "--clear", "--model", "sd15").err == "1 measurement deleted\n"
    assert json.loads(run("measurements", "--clear", "--json").out)["cleared"] == 2
    assert run("measurements", "--clear").err == "0 measurements deleted\n"


def test_measurements_in_a_damaged_file_are_refused_until_they_are_cleared(run, store):
    store.path.parent.mkdir(parents=True)
    store.path.write_bytes(b"this is no database" * 100)
    assert_refused(run("measurements"), 4, str(store.path), "is damaged", "safelight measurements --clear")
    ran = run("measurements", "--clear")
    assert ran.code == 0
    assert "was damaged, and is deleted" in ran.err
    assert run("measurements").err == "no measurements yet\n"


@pytest.mark.parametrize("command", [None, *cli.app.commands])
def test_help_shows_every_flag_with_a_text(run, command):
    ran = run(*filter(None, [command]), "--help")
    shown = cli.app.commands[command] if command else cli.app
    assert (ran.code, ran.err) == (0, "")
    assert shown.help.split(".")[0].split()[-1] in ran.out
    for parameter in shown.params:
        if parameter.param_type_name == "option":
            assert (parameter.opts[0] in ran.out) is not parameter.hidden
            assert parameter.help, parameter.opts
