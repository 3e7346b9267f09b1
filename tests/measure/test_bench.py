"""Plans take turns in fresh processes, one that fails does not stop the others, and Ctrl-C keeps what was measured.

The processes are played through the seam, and real ones are tiny scripts.
"""

import os
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from safelight.errors import EnvironmentProblem, UsageError
from safelight.measure.bench import Collected, Job, Plan, left, measure
from safelight.measure.compared import tile_px
from safelight.measure.launching import launched
from safelight.measure.requirements import parse
from safelight.measure.worker import Task

LOAD = {"model": "tiny", "optimize": "none", "keep": (), "without": (), "goal": "fast"}
ENVIRONMENT = {"torch": "2.13.0"}


def plan(name, **load):
    return Plan(name, name, {**LOAD, "optimize": name, **load})


def job(tmp_path, *names, **fields):
    made = {"runs": 4, "rounds": 2, "warmups": 1, "root": tmp_path, "folder": tmp_path / "pictures"}
    plans = tuple(map(plan, names or ("fast", "small")))
    return Job(plans, {"seed": 3, "count": 1}, ("a cat",), **{**made, **fields})


class Workers:
    """Plays each process: told by the plan's words how long a run takes. ends: how one ends instead, by its words."""

    def __init__(self, seconds=None, ends=None):
        self.seconds = seconds or {}
        self.ends = ends or {}
        self.tasks = []

    def __call__(self, task, hear):
        self.tasks.append(task)
        words = task.load["optimize"]
        name = words if isinstance(words, str) else next(iter(words))
        end = self.ends.get((name, sum(one.folder == task.folder for one in self.tasks)), self.ends.get(name))
        if isinstance(end, dict):
            hear({"event": "failed", **end})
            return None
        hear(opened(name))
        hear({"event": "first", "seconds": 2.0})
        hear({"event": "warmup", "seconds": 1.0})
        for index in range(task.first, task.first + task.runs):
            if end is KeyboardInterrupt and index > task.first:
                raise KeyboardInterrupt
            hear(run(task, index, self.seconds.get(name, 1.0)))
        if isinstance(end, str):
            return end
        hear({"event": "measured", "timeline": [[0.0, 5]], "utilisation": None, **planned(name), "predicted": None})
        return None

    @property
    def order(self):
        return [os.path.basename(task.folder)[2:] for task in self.tasks]  # noqa: PTH119


def planned(name):
    options = {} if name == "none" else {name: {"value": "x"}}
    statuses = [{"name": name, "engaged": True}] if options else []
    return {"written": name, "options": options, "left": {}, "statuses": statuses}


def opened(name):
    timed = {"load_seconds": 1.0, "open_seconds": 2.0, "threads": 2}
    request = {"seed": 3, "prompt": "a cat", "sampler": "Euler"}
    return {"event": "opened", **timed, **planned(name), "request": request, "environment": ENVIRONMENT}


def run(task, index, seconds):
    path = f"{task.folder}/{index:06d}.png"
    Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
    told = {"images": 1, "evaluations": 2, "peaks": {"process_bytes": 100 + index}, "energy_joules": None}
    pictures = [{"path": path, "seed": 3 + index, "prompt": "a cat"}]
    return {"event": "run", "seconds": {"total": seconds, "denoise": seconds}, "pictures": pictures, **told}


def compare(plain, other):
    level = plain.getpixel((0, 0))[0]
    return {"error": float(level), "likeness": 1.0 - level}


def artifacts(image, tile_px=None, plain=None):
    return ["black"] if image.getpixel((0, 0)) == (0, 0, 0) else []


QUALITY = SimpleNamespace(
    METRICS={"error": SimpleNamespace(better="lower"), "likeness": SimpleNamespace(better="higher")},
    compare=compare,
    over_sets=lambda plains, others: {"distance": float(len(plains))},
    artifacts=artifacts,
)


def measured(made, workers, **fields):
    return measure(made, launch=workers, quality=QUALITY, **fields)


# -- who runs when -----------------------------------------------------------------------------------------------------


def test_plans_run_there_and_back_again_plain_first(tmp_path):
    workers = Workers()
    measured(job(tmp_path), workers)
    assert workers.order == ["plain", "fast", "small", "small", "fast", "plain"]


@given(st.integers(1, 60), st.integers(1, 12))
def test_rounds_share_the_runs_evenly_and_leave_none_out(runs, rounds):
    if rounds > runs:
        return
    made = Job((plan("a"),), {"seed": 0}, ("p",), ".", ".", runs=runs, rounds=rounds)
    shares = [made.share(round) for round in range(rounds)]
    assert [index for share in shares for index in share] == list(range(runs))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_all_plans_draw_the_same_pictures_in_each_round(tmp_path):
    workers = Workers()
    result = measured(job(tmp_path), workers)
    assert {(task.first, task.runs) for task in workers.tasks} == {(0, 2), (2, 2)}
    seeds = [sorted(picture["seed"] for picture in one.pictures) for one in result.plans]
    assert seeds == [[3, 4, 5, 6]] * 3
    assert result.plans[1].pictures[0]["path"] == "pictures/1-fast/000000.png", "relative to the result's folder"


def test_plain_has_nothing_planned_and_later_processes_get_the_plan_of_the_first(tmp_path):
    workers = Workers()
    measured(job(tmp_path, "fast"), workers)
    plain, first, second, last = (task.load for task in workers.tasks)
    assert plain == {**LOAD, "optimize": "none", "goal": None, "vram": None, "max_seconds": None, "fidelity": None}
    assert (first["optimize"], first["goal"]) == ("fast", "fast")
    assert (second["optimize"], second["goal"]) == ({"fast": {"value": "x"}}, None)
    assert last["optimize"] == "none"


@pytest.mark.parametrize("fields", [{"runs": 1}, {"rounds": 0}, {"plans": ()}, {"plans": (plan("a"), plan("a"))}])
def test_a_job_that_cannot_be_is_refused(tmp_path, fields):
    with pytest.raises(UsageError):
        replace(job(tmp_path), **fields)


# -- what comes out ----------------------------------------------------------------------------------------------------


def test_samples_of_all_rounds_are_kept_apart_by_round(tmp_path):
    result = measured(job(tmp_path), Workers({"fast": 0.5}))
    fast = result.plans[1]
    assert [len(one.runs) for one in fast.rounds] == [2, 2]
    assert [(one.load_seconds, one.open_seconds, one.first_seconds) for one in fast.rounds] == [(1.0, 2.0, 2.0)] * 2
    assert (fast.peak(), fast.rounds[0].timeline, fast.rounds[0].threads) == (103, ((0.0, 5),), 2)
    assert fast.rounds[0].peaks["device_bytes"] is None
    assert result.speed(fast) == 2.0
    assert result.environment["torch"] == "2.13.0"
    assert result.request["prompts"] == ["a cat"]


def test_pictures_are_compared_with_plains_of_the_same_seed(tmp_path):
    result = measured(job(tmp_path), Workers())
    assert result.plain.quality is None
    assert result.plans[1].quality["error"] == {"median": 1.5, "worst": 3.0, "values": [0.0, 1.0, 2.0, 3.0]}
    assert result.plans[1].quality["likeness"]["worst"] == -2.0
    assert "distance" not in result.plans[1].quality, "4 pictures are no set"
    assert result.plans[1].artifacts == ("seed 3: black",)


def test_sixteen_pictures_are_a_set(tmp_path):
    result = measured(job(tmp_path, "fast", runs=16), Workers())
    assert result.plans[1].quality["distance"] == {"median": 16.0, "worst": 16.0, "values": [16.0]}


def test_the_bundled_models_pictures_are_judged_by_their_prompts(tmp_path):
    def following(pictures, prompts):
        return SimpleNamespace(object=len(pictures) / 4)

    made = replace(job(tmp_path), plans=(plan("fast", model="firstlight"),))
    quality = SimpleNamespace(**vars(QUALITY), prompt_following=following)
    found = measure(made, launch=Workers(), quality=quality).plans[1].quality
    assert found["prompt-following"]["median"] == found["prompt-following-plain"]["median"] == 1.0


def test_requirements_are_checked_and_quality_counts_for_the_verdict(tmp_path):
    wanted = parse("speed>=3,error<=1", ("error",))
    result = measured(job(tmp_path, "fast", wanted=wanted), Workers({"fast": 0.5}))
    assert [(one.written, one.found, one.met) for one in result.requirements] == [
        ("speed>=3", 2.0, False), ("error<=1", 1.5, False),
    ]  # fmt: skip
    conditions = {one["name"]: one for one in result.verdict.conditions}
    assert "fast: not error<=1" in conditions["quality"]["found"]
    assert not result.verdict.valid


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"vae-tiling": {"tile_px": 256, "overlap": 0.25}}, 192),
        ({"vae-tiling": {"tile_px": 0, "overlap": 0.25}}, None),
    ],
)
def test_tiles_borders_are_where_the_next_tile_begins(options, expected):
    assert tile_px(options) == expected


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_plan_that_fails_is_not_tried_again_and_the_others_go_on(tmp_path):
    ends = {"fast": {"kind": "OutOfMemory", "message": "too large", "exit_code": 6}}
    workers = Workers(ends=ends)
    result = measured(job(tmp_path), workers)
    assert workers.order == ["plain", "fast", "small", "small", "plain"]
    assert result.plans[1].failure == "OutOfMemory: too large"
    assert result.plans[1].summary().seconds is None
    assert [len(one.rounds) for one in result.plans] == [2, 0, 2]
    assert not result.verdict.valid


def test_a_plan_that_fails_later_keeps_its_earlier_rounds(tmp_path):
    result = measured(job(tmp_path, "fast"), Workers(ends={("fast", 2): "its process was ended by SIGSEGV"}))
    assert result.plans[1].failure == "its process was ended by SIGSEGV"
    assert result.plans[1].quality is not None


def test_plain_that_fails_leaves_the_others_without_a_comparison(tmp_path):
    ends = {"none": {"kind": "OutOfMemory", "message": "too large", "exit_code": 6}}
    result = measured(job(tmp_path, "fast"), Workers(ends=ends))
    assert result.plain.failure
    assert result.plans[1].summary().seconds == 1.0
    assert result.plans[1].quality is None
    assert result.speed(result.plans[1]) is None


@pytest.mark.parametrize(("code", "kind"), [(2, UsageError), (4, EnvironmentProblem)])
def test_what_is_wrong_with_all_of_them_is_said_at_once(tmp_path, code, kind):
    workers = Workers(ends={"none": {"kind": "ModelNotFound", "message": "there is no such model", "exit_code": code}})
    with pytest.raises(kind, match=r"^there is no such model"):
        measured(job(tmp_path), workers)
    assert len(workers.tasks) == 1


def test_ctrl_c_keeps_what_was_measured(tmp_path):
    result = measured(job(tmp_path), Workers(ends={"small": KeyboardInterrupt}))
    assert result.interrupted
    assert [sum(len(one.runs) for one in each.rounds) for each in result.plans] == [2, 2, 1]
    assert not result.verdict.valid
    assert type(result).from_json(result.to_json()) == result


def test_after_each_process_what_there_is_is_kept(tmp_path):
    kept = []
    result = measured(job(tmp_path, "fast"), Workers(), keep=kept.append)
    assert [sum(len(one.rounds) for one in each.plans) for each in kept] == [1, 2, 3, 4, 4]
    assert [one.interrupted for one in kept] == [True] * 4 + [False]
    assert not result.interrupted


def test_a_comparison_that_breaks_costs_no_samples(tmp_path):
    def broken(plain, other):
        raise EnvironmentProblem("the weights are gone")

    kept = []
    quality = SimpleNamespace(**{**vars(QUALITY), "compare": broken})
    with pytest.raises(EnvironmentProblem):
        measure(job(tmp_path, "fast"), keep=kept.append, launch=Workers(), quality=quality)
    assert [len(one.rounds) for one in kept[-1].plans] == [2, 2]


# -- how long it takes -------------------------------------------------------------------------------------------------


def collected(name, *seconds, failure=None):
    return Collected(plan(name), seconds=list(seconds), failure=failure)


def test_nobody_knows_how_long_it_takes_before_the_first_process_has_ended():
    assert left([collected("a"), collected("b")], 3.0) is None


def test_what_is_left_is_what_each_took_before_and_for_new_ones_the_mean():
    a, b = collected("a", 10.0), collected("b")
    assert left([b, b, a], 4.0) == 6.0 + 10.0 + 10.0
    assert left([collected("c", 10.0, failure="it crashed"), a], 4.0) == 6.0


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=5), st.floats(0, 1e5))
def test_what_is_left_is_never_less_than_nothing(seconds, gone):
    assert left([collected("a", *seconds)], gone) >= 0


def test_a_person_is_told_what_begins_what_fails_and_how_far_it_is(tmp_path):
    news = []
    measured(job(tmp_path), Workers(ends={"fast": "its process was ended by SIGKILL"}), tell=news.append)
    said = [one.text for one in news]
    assert said[0] == "plain, round 1 of 2: starts"
    assert "plain, round 1 of 2: run 2 of 2, 1.00 s" in said
    assert "fast, round 1 of 2: failed: its process was ended by SIGKILL" in said
    assert said[-1] == "comparing the pictures"
    assert news[0].left_seconds is None
    assert any(one.left_seconds is not None for one in news)


# -- a process ---------------------------------------------------------------------------------------------------------


def ran(script):
    events = []
    task = Task({}, {}, (), 0, 1, 0, ".")
    return launched(task, events.append, [sys.executable, "-c", f"import json, os, sys\n{script}"]), events


def test_a_process_hears_its_task_and_is_heard_line_by_line():
    script = "task = json.load(sys.stdin)\nprint(json.dumps({'event': 'measured', 'runs': task['runs']}))"
    assert ran(script) == (None, [{"event": "measured", "runs": 1}])


@pytest.mark.skipif(os.name != "posix", reason="signals end processes on POSIX")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_a_process_that_is_ended_by_a_signal_says_which(name):
    no_core_file = "import resource, signal\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))"
    failure, _ = ran(f"{no_core_file}\nos.kill(os.getpid(), signal.{name})")
    assert name in failure


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("raise SystemError('broken\\n in two')", r"exit code 1: .*in two"),
        ("sys.exit(7)", r"exit code 7$"),
        ("sys.stdin.read()", r"exit code 0"),
        ("sys.stderr.write('the reason'); os._exit(3)", r"exit code 3: the reason"),
    ],
)
def test_a_process_that_ends_without_a_result_is_a_failure(script, says):
    failure, _ = ran(script)
    assert re.search(says, failure)


@pytest.mark.skipif(os.name != "posix", reason="asks for the process by its number")
def test_no_worker_outlives_whoever_started_it():
    numbers = []

    def interrupt(event):
        numbers.append(event["number"])
        raise KeyboardInterrupt

    script = "import time\nprint(json.dumps({'event': 'run', 'number': os.getpid()}), flush=True)\ntime.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        launched(Task({}, {}, (), 0, 1, 0, "."), interrupt, [sys.executable, "-c", f"import json, os\n{script}"])
    with pytest.raises(ProcessLookupError):
        os.kill(numbers[0], 0)
