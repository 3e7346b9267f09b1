"""safelight tune as a person types it: refused before anything is loaded, or a plan file, a journal and a table."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from commandline import as_nobody, in_process

from safelight.cli.bench import PROMPTS
from safelight.cli.wanted import wanted
from safelight.measure.candidates import space
from safelight.measure.frontier import PLAIN, Judge, Limit, Outcome, Setting, Tried
from safelight.measure.knobs import KNOBS
from safelight.measure.tune import Part, Tuned
from safelight.opening import foreseen
from safelight.optimizers import OPTIMIZERS, words
from safelight.report import tune_text
from safelight.simulate import measurements

tune = import_module("safelight.cli.tune")  # the package has the command by that name

SMALL = ("--steps", 4, "--width", 64, "--height", 64)


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """An empty folder, without the settings of whoever runs the tests."""
    as_nobody(monkeypatch, tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))


@pytest.fixture
def run(monkeypatch, capsys, unset):
    with in_process(monkeypatch, capsys, "tune") as call:
        yield call


# -- what cannot be is said at once ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--budget", "10"], "90s, 10min or 1h"),
        (["--budget", "0s"], "90s, 10min or 1h"),
        (["--goal", "nicest"], "nicest"),
        (["--max-lpips", "-1"], "the limit of lpips is -1"),
        (["--min-psnr", "many"], "many"),
        (["--out", "plan.json"], "end it in .toml"),
        (["--out", "/dev/null/plan.toml"], "/dev/null"),
        (["--resume"], "there is no safelight-tune-*.json here"),
        (["--resume", "--out", "a.toml"], "there is no a.json"),
        (["--sampler", "Eular"], "Euler"),
        (["-o", "dtpye"], "dtype"),
        (["--plan", "a.toml"], "unknown flag"),
        (["--width", "16", "--height", "16"], "lpips needs"),
    ],
)
def test_what_cannot_be_is_refused_before_a_process_begins(run, tmp_path, arguments, says):
    code, out, err = run(*arguments)
    assert code in (2, 4), err
    assert says in err
    assert out == ""
    assert not list(tmp_path.rglob("*.json"))
    assert not list(tmp_path.rglob("*.toml"))


# -- what becomes of the words -----------------------------------------------------------------------------------------

OWN = {"goal": "fast", "max_lpips": None, "min_psnr": None, "min_ssim": None, "max_flip": None}


def test_the_usual_limit_is_of_lpips_and_three_prompts_are_drawn_on_a_known_seed(unset):
    order = tune._order((), {}, OWN)
    assert order.limits == (Limit("lpips", 0.05, "lower"),)
    assert order.prompts == PROMPTS[:3]
    assert order.request.seed == 0


def test_limits_that_are_given_stand_alone(unset):
    order = tune._order(("a cat",), {}, {**OWN, "min_psnr": 30.0, "max_flip": 0.1})
    assert order.limits == (Limit("psnr", 30.0, "higher"), Limit("flip", 0.1, "lower"))
    assert order.prompts == ("a cat",)


@pytest.mark.parametrize(("written", "seconds"), [("90s", 90), ("10min", 600), ("1.5 h", 5400)])
def test_a_budget_is_a_time_with_its_unit(written, seconds):
    assert tune._seconds(written) == seconds


def test_files_are_numbered_and_resume_takes_the_latest(unset):
    assert tune._place(None, resume=False) == Path("safelight-tune-0000.toml")
    for number in ("0000", "0007"):
        Path(f"safelight-tune-{number}.json").touch()
    assert tune._place(None, resume=False) == Path("safelight-tune-0008.toml")
    assert tune._place(None, resume=True) == Path("safelight-tune-0007.toml")


# -- what may be tried -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outlook():
    return foreseen(model="firstlight", goal="fast", fidelity="approximate", keep="vae-slicing", batch_size=2)


def test_candidates_keep_what_is_pinned_and_what_spoils_nothing_comes_first(outlook):
    made = space(outlook)
    assert all("vae-slicing" in one.names for one in made.candidates)
    assert made.pinned == {"vae-slicing"}
    losses = [max(OPTIMIZERS[name].fidelity for name in one.options) == 2 for one in made.candidates]
    assert losses == sorted(losses)
    assert any(losses)
    assert len(set(made.candidates)) == len(made.candidates)


def test_every_end_of_every_knob_passes_the_optimizers_own_check(outlook):
    made = space(outlook)
    here = [knob.optimizer for knob in made.knobs]
    assert {"deep-cache", "token-merging", "guidance-cutoff", "steps"} <= set(here)
    assert "first-block-cache" not in here, "a UNet has no such blocks"
    for knob in made.knobs:
        for value in (knob.gentle, knob.harsh):
            setting = made.joined(PLAIN, knob, value)
            assert setting is not None
            assert made.possible(setting)
            assert words.read(setting.optimize).options == setting.options


def test_a_harsher_knob_promises_fewer_seconds(outlook):
    made = space(outlook)
    for knob in (one for one in made.knobs if one.optimizer in ("deep-cache", "steps")):
        ends = [made.predicted(made.joined(PLAIN, knob, value)).seconds for value in (knob.gentle, knob.harsh)]
        assert ends[1] < ends[0]


def test_an_option_that_a_person_named_is_no_knob_and_another_cache_gives_way():
    named = space(foreseen(model="firstlight", goal="fast", fidelity="approximate", keep="deep-cache=4"))
    assert "deep-cache" not in [knob.optimizer for knob in named.knobs]
    free = space(foreseen(model="firstlight", goal="fast", fidelity="approximate"), fewer_steps=False)
    assert "steps" not in [knob.optimizer for knob in free.knobs]
    knob = next(knob for knob in KNOBS if knob.optimizer == "deep-cache")
    harsher = free.joined(Setting.of({"deep-cache": {"interval": 5}}), knob, 7)
    assert harsher.options == {"deep-cache": {"interval": 7}}


def test_nothing_approximate_is_tried_where_it_is_ruled_out():
    made = space(foreseen(model="firstlight", goal="fast", fidelity="rounding"))
    assert made.knobs == ()
    assert all(OPTIMIZERS[name].fidelity < 2 for one in made.candidates for name in one.options)


# -- what comes of it --------------------------------------------------------------------------------------------------

JUDGE = Judge((Limit("lpips", 0.05, "lower"),), "fast")


def tried(optimize, seconds, lpips, steps=None):
    pictures = tuple({"path": f"{i}.png", "seed": i, "prompt": "a"} for i in range(3))
    outcome = Outcome((seconds,) * 3, 700 * 2**20, {"lpips": lpips} if optimize else {}, pictures=pictures)
    return Tried(Setting.of(words.read(optimize).options, steps), outcome)


def tuned(winner=None):
    plain, best, over = (
        tried("", 1.0, 0),
        tried("channels-last,deep-cache=4", 0.5, 0.03, 3),
        tried("tiny-vae", 0.4, 0.2),
    )
    part = Part("deep-cache", best, tried("channels-last", 0.9, 0.0, 3), pays=True)
    every = (plain, best, over)
    complete = frozenset(one.setting for one in every)
    return Tuned(plain, best if winner else None, every, complete, (part,), ("a note",), 2, 3)


def test_the_table_marks_the_best_and_says_why_others_are_out():
    text = tune_text.table(tuned(winner=True), JUDGE)
    lines = text.splitlines()
    assert any(line.startswith("*") and "deep-cache=4, 3 steps" in line for line in lines)
    assert any(line.startswith("-") and "tiny-vae; lpips 0.2, not lpips<=0.05" in line for line in lines)
    assert any("deep-cache: 400 ms saved a run" in line and "lpips 0 -> 0.03" in line for line in lines)
    assert "a note" in lines
    assert max(map(len, lines)) <= 200


def test_the_document_is_json_with_every_sample():
    found = json.loads(json.dumps(tune_text.document(tuned(winner=True), JUDGE), allow_nan=False))
    assert found["winner"]["optimize"] == "channels-last,deep-cache=4"
    assert found["winner"]["steps"] == 3
    assert [len(one["seconds"]) for one in found["tried"]] == [3, 3, 3]
    assert found["tried"][2]["out"] == "lpips 0.2, not lpips<=0.05"
    assert found["parts"] == [
        {"name": "deep-cache", "pays": True, "seconds": 0.4, "bytes": 0, "worst": {"lpips": [0.0, 0.03]}}
    ]


def test_without_a_winner_it_exits_with_5_and_writes_no_plan(unset, tmp_path, capsys):
    order = tune._order(("a cat",), {}, OWN)
    with pytest.raises(SystemExit) as ended:
        tune._report(tuned(), JUDGE, order, Path("a.toml"), as_json=False)
    assert ended.value.code == 5
    assert "nothing inside lpips<=0.05 is better than plain" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_plan_file_is_what_generate_reads(unset, capsys):
    given = {"model": "firstlight", "width": "64", "height": "64", "sampler": "Euler a", "guidance": "3"}
    order = tune._order(("a cat",), given, OWN)
    tune._report(tuned(winner=True), JUDGE, order, Path("a.toml"), as_json=False)
    text = Path("a.toml").read_text()
    assert "# Tuned: goal fast" in text
    assert "400 ms saved a run" in text
    assert tomllib.loads(text)["optimize"] == {"channels-last": True, "deep-cache": 4}
    read = wanted("a cat", {"plan": "a.toml"})
    assert read["optimize"] == {"channels-last": {}, "deep-cache": {"interval": 4}}
    assert {name: read[name] for name in ("model", "width", "height", "steps", "sampler", "guidance")} == {
        "model": "firstlight",
        "width": 64,
        "height": 64,
        "steps": 3,
        "sampler": "Euler a",
        "guidance": 3.0,
    }


# -- with real processes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_bundled_model_is_tuned_and_resumed_and_the_planner_learns(run, tmp_path):
    flags = ("a red apple, 3d", *SMALL, "--goal", "fast", "--min-psnr", "8", "--out", "a.toml", "--json")
    code, out, err = run(*flags, "--budget", "120s")
    assert code in (0, 5), err
    found = json.loads(out)
    assert len(found["plain"]["seconds"]) == 3
    assert len(found["tried"]) >= 2
    assert (tmp_path / "a.toml").is_file() == (code == 0)
    first = json.loads((tmp_path / "a.json").read_text())
    assert len(first["measurements"]) == found["measured"]
    rows = measurements.here().rows()
    assert {"", found["tried"][1]["optimize"]} <= {row.plan for row in rows if (row.width, row.steps) == (64, 4)}

    code, out, err = run(*flags, "--budget", "1s", "--resume")
    again = json.loads(out)
    assert again["measured"] == 0, err
    assert again["plain"] == found["plain"]
    assert json.loads((tmp_path / "a.json").read_text()) == first


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_ends_it_in_130_and_keeps_what_was_measured(unset, tmp_path):
    flags = [*map(str, SMALL), "--min-psnr", "10", "--budget", "10min", "--out", "a.toml"]
    command = [sys.executable, "-m", "safelight", "tune", "a cat", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "a.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "measurements are kept in a.json; --resume goes on" in err
    assert json.loads((tmp_path / "a.json").read_text())["measurements"][0]["plan"] == "none"
