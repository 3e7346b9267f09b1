"""safelight bench as a person types it: refused before anything is loaded, or a file, a table and an exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from commandline import as_nobody, in_process

from safelight.errors import Interrupted, PartlyDone
from safelight.measure.bench import News
from safelight.measure.results import PlanResult, Requirement, Result, Round, Verdict

bench = import_module("safelight.cli.bench")  # the package has the command by that name

SMALL = ("--steps", 2, "--width", 32, "--height", 32)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command line here, in an empty folder, without the settings of whoever runs the tests."""
    as_nobody(monkeypatch, tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    with in_process(monkeypatch, capsys, "bench") as call:
        yield call


# -- what cannot be is said at once ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--plans", "dtpye=bfloat16"], "dtype"),
        (["--plans", ";"], "give --plans"),
        (["--plans", "auto; auto"], "given twice"),
        (["--require", "sped>=2"], "did you mean speed"),
        (["--require", "psnr.wrost>=2"], "psnr.worst"),
        (["--require", "peak<=lots"], "no amount of memory"),
        (["--out", "bench.txt"], "end it in .json"),
        (["--runs", "1", "--rounds", "2"], "each round needs a run"),
        (["--sampler", "Eular"], "Euler"),
        (["--preview", "a.png"], "unknown flag"),
        (["--steps", "0"], "whole number from 1"),
        (["--html", "/dev/null/found.html"], "/dev/null"),
    ],
)
def test_what_cannot_be_is_refused_before_a_process_begins(run, tmp_path, arguments, says):
    code, out, err = run(*arguments)
    assert code in (2, 4), err
    assert says in err
    assert out == ""
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.rglob("*.json"))


# -- what becomes of the words -----------------------------------------------------------------------------------------


def job(*prompts, plans=None, require="", runs=10, rounds=None, **given):
    own = {"plans": plans, "require": require, "runs": runs, "rounds": rounds, "warmup": 5}
    return bench._job(prompts, given, own, Path("there/result.json"))


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """Nobody's settings."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_without_any_plan_it_is_what_generate_would_run(unset):
    made = job()
    assert [plan.name for plan in made.plans] == ["auto"]
    assert made.prompts == bench.PROMPTS
    assert (made.runs, made.rounds, made.request["seed"]) == (10, 2, 0)
    assert (made.folder, made.root) == (Path("there/result-pictures"), Path("there"))


def test_plans_are_told_apart_by_semicolons_and_flags_make_one_more(unset):
    made = job("a cat", plans="dtype=bfloat16; auto ;tiny-vae,channels-last", optimize="vae-slicing", goal="fast")
    assert [plan.name for plan in made.plans] == ["dtype=bfloat16", "auto", "tiny-vae,channels-last", "vae-slicing"]
    assert made.prompts == ("a cat",)


def test_a_goal_is_for_plans_that_leave_something_to_be_planned(unset):
    named, auto = job(plans="dtype=bfloat16; auto", goal="fast", vram="8GiB", without=("compile",)).plans
    assert (named.load["goal"], named.load["vram"], named.load["without"]) == (None, None, ())
    assert (auto.load["goal"], auto.load["vram"], auto.load["without"]) == ("fast", "8GiB", ("compile",))
    assert auto.plain().load["goal"] is None


def test_a_plan_file_is_a_plan_and_its_sizes_are_everybodys(unset, tmp_path):
    (tmp_path / "mine.toml").write_text('steps = 7\n[optimize]\ndtype = "bfloat16"\n')
    made = job(plan="mine.toml")
    assert [(plan.name, plan.optimize) for plan in made.plans] == [("mine", "dtype=bfloat16")]
    assert made.request["steps"] == 7


def test_a_preset_is_a_plan(unset):
    assert [plan.name for plan in job(preset="tier-1").plans] == ["tier-1"]


def test_the_noise_of_a_variation_is_the_same_for_all_plans(unset):
    made = job(variation_strength="0.2", seed="5")
    assert (made.request["seed"], made.request["variation_seed"]) == (5, 0)


def test_one_run_is_one_round(unset):
    assert job(runs=1).rounds == 1


def test_files_of_earlier_benchmarks_are_not_overwritten(unset, tmp_path):
    assert bench._place(None) == Path("safelight-bench-0000.json")
    (tmp_path / "safelight-bench-0006.json").touch()
    assert bench._place(None) == Path("safelight-bench-0007.json")


# -- how it ends -------------------------------------------------------------------------------------------------------


def result(*, failure=None, met=True, interrupted=False):
    plans = (
        PlanResult("plain", "none", rounds=(Round(runs=({"total": 2.0},)),)),
        PlanResult("fast", "auto", failure=failure),
    )
    limits = (Requirement("psnr>=30", "fast", 28.125, met),)
    return Result("", (), {}, "firstlight", {}, plans, Verdict(True), limits, interrupted)


def test_all_well_ends_in_nothing():
    assert bench._end(result()) is None


def test_what_is_not_met_ends_in_5_and_says_what_was_found(capsys):
    with pytest.raises(SystemExit) as ended:
        bench._end(result(met=False))
    assert ended.value.code == 5
    assert "psnr>=30 by fast (28.12)" in capsys.readouterr().err


def test_bytes_and_what_is_not_measured_are_said_as_such():
    assert bench._found(Requirement("peak<=1MiB", "fast", 2.0 * 2**20, False)) == "2 MiB"
    assert bench._found(Requirement("lpips<=1", "fast", None, False)) == "not measured"


@pytest.mark.parametrize(
    ("fields", "kind", "code", "says"),
    [
        ({"failure": "it crashed", "met": False}, PartlyDone, 3, "1 of 2 plans failed: fast: it"),
        ({"interrupted": True, "met": False}, Interrupted, 130, "1 runs were measured and are kept"),
    ],
)
def test_a_failure_ends_in_3_and_ctrl_c_in_130_whatever_is_required(fields, kind, code, says):
    with pytest.raises(kind, match=says):
        bench._end(result(**fields))
    assert kind.exit_code == code


def test_progress_is_a_line_now_and_then_with_the_end_that_is_expected(capsys):
    tell = bench.Telling(quiet=False)
    tell(News("plain, round 1 of 2: starts"))
    tell(News("plain, round 1 of 2: run 1 of 5, 0.10 s", passing=True))
    tell(News("fast, round 1 of 2: starts", 200.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "plain, round 1 of 2: starts"
    assert lines[1].startswith("fast, round 1 of 2: starts; about 3 min left, until ")
    assert len(lines) == 2
    bench.Telling(quiet=True)(News("plain"))
    assert capsys.readouterr().err == ""


# -- with real processes -----------------------------------------------------------------------------------------------


def test_a_benchmark_writes_all_it_found_and_exits_by_what_was_required(run, folder, tmp_path):
    flags = ("--plans", "attention-slicing", "--runs", 2, "--rounds", 1, "--warmup", 0, "--device", "cpu")
    files = ("--out", "found.json", "--html", "found.html")
    code, out, err = run("a cat", "--model", folder, *SMALL, *flags, *files, "--require", "speed>=1000,psnr>=20")
    assert code == 5, err
    assert "not met: speed>=1000" in err
    found = Result.from_json((tmp_path / "found.json").read_text())
    assert [one.written for one in found.plans] == ["none", "attention-slicing"]
    assert found.command[:2] == ("safelight", "bench")
    for plan in found.plans:
        assert plan.failure is None
        assert len(plan.samples("total")) == 2
        assert plan.peak("process_bytes") > 2**20
        assert plan.peak("tensor_bytes") is None, "on a CPU that is not measured"
        assert [(tmp_path / one["path"]).is_file() for one in plan.pictures] == [True, True]
    assert found.plans[1].statuses[0]["engaged"]
    assert found.plans[1].quality["psnr"]["worst"] > 20
    assert found.requirements[1].met
    assert not found.verdict.valid, "2 runs are not enough"
    assert "attention-slicing" in out
    assert "attention-slicing" in (tmp_path / "found.html").read_text()


@pytest.mark.slow
def test_a_plan_that_does_not_fit_the_model_fails_and_the_others_go_on(run, tmp_path):
    plans = "deep-cache=3; first-block-cache"  # which a UNet has not
    code, out, err = run("--plans", plans, "--runs", 2, "--steps", 4, "--json", "--out", "found.json")
    assert code == 3, err
    found = Result.from_json(out)
    assert found.to_json() == (tmp_path / "found.json").read_text()
    assert [one.failure is None for one in found.plans] == [True, True, False]
    assert "DoesNotApply" in found.plans[2].failure
    assert found.speed(found.plans[1]) > 0
    assert found.plans[1].predicted["peak_bytes"] > 2**20


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_ends_it_in_130_and_keeps_what_was_measured(tmp_path):
    flags = ("--plans", "channels-last", "--runs", "40", "--out", "a.json")
    command = [sys.executable, "-m", "safelight", "bench", *flags]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    pictures = tmp_path / "a-pictures" / "0-plain"
    deadline = time.monotonic() + 300
    while len(list(pictures.glob("*.png"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    found = Result.from_json((tmp_path / "a.json").read_text())
    assert found.interrupted
    assert len(found.plain.samples("total")) >= 1
    assert json.loads((tmp_path / "a.json").read_text())["verdict"]["valid"] is False
