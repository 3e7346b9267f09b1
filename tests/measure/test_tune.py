"""The search by measuring: the winner keeps the limits and none beats it, the budget holds, nothing is measured twice.

What `measure` would find is played with a known truth; the optimizers' names are real, the seconds are made up.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.errors import SafelightError, UsageError
from safelight.measure.frontier import GOALS, PLAIN, Judge, Limit, Outcome, Setting, Tried
from safelight.measure.journal import Journal
from safelight.measure.knobs import KNOBS, Knob, bisected, steps_knob
from safelight.measure.trial import Trials
from safelight.measure.tune import Predicted, Space, tune
from safelight.optimizers import OPTIMIZERS
from safelight.optimizers.registry import Fidelity

FULL = 3
LPIPS = Limit("lpips", 0.05, "lower")
INTERVAL = Knob("deep-cache", "interval", 2, 8, 3, whole=True)
EFFECTS = ("dtype", "channels-last", "vae-slicing", "tiny-vae", "deep-cache", "token-merging")


@dataclass
class World:
    """What is true. effects: of each optimizer (factor of seconds, factor of bytes, loss); of deep-cache for each
    step of its interval above 1. lasts: seconds of a process beside its runs. fails: settings with such a part fail."""

    effects: dict
    lasts: float = 10.0
    fails: frozenset = frozenset()
    now: float = 0.0
    asked: list = field(default_factory=list)
    breaks_after: int | None = None

    def truth(self, setting):
        seconds, size, loss = 1.0, 1000.0, 0.0
        for name, options in setting.options.items():
            times = options.get("interval", 3) - 1 if name == "deep-cache" else 1
            faster, smaller, worse = self.effects[name]
            seconds, size, loss = seconds * faster**times, size * smaller**times, loss + worse * times
        if setting.steps is not None:
            seconds, loss = seconds * setting.steps / 20, loss + 0.01 * (20 - setting.steps)
        return seconds, round(size), loss

    def __call__(self, setting, runs):
        if self.breaks_after is not None and len(self.asked) >= self.breaks_after:
            raise KeyboardInterrupt
        self.asked.append((setting, runs))
        seconds, size, loss = self.truth(setting)
        took = self.lasts + (len(runs) + 1) * seconds
        self.now += took
        if self.fails & set(setting.names):
            return Outcome(failure="it fails", took_seconds=took)
        worst = {} if setting == PLAIN else {"lpips": loss}
        pictures = tuple({"path": f"{run}.png", "seed": run, "prompt": "a cat"} for run in runs)
        return Outcome((seconds,) * len(runs), size, worst, took_seconds=took, pictures=pictures)


def joined(setting, knob, value):
    if knob.optimizer == "steps":
        return replace(setting, steps=int(value))
    kept = {**setting.options, knob.optimizer: {knob.option: int(value)}}
    return Setting.of(dict(sorted(kept.items())))


def space(*candidates, knobs=(), pinned=()):
    lossy = frozenset(known.name for known in OPTIMIZERS.values() if known.fidelity != Fidelity.EXACT)
    settings = tuple(Setting.of({name: {} for name in sorted(names)}) for names in candidates)
    return Space(settings, knobs, joined, lambda setting: True, predicted, lossy, frozenset(pinned))


def predicted(setting):
    """A knob promises something, true or not."""
    turned = ("deep-cache" in setting.options) + (setting.steps is not None)
    return Predicted(0.9 * 0.8**turned, 1000 * 0.9**turned)


def searched(world, where, goal="fast", budget=10_000.0, limits=(LPIPS,), **fields):
    judge = Judge(limits, goal)
    return tune(where, judge, world, full=FULL, budget_seconds=budget, clock=lambda: world.now, **fields)


@st.composite
def worlds(draw):
    share, loss = st.floats(0.3, 1.5), st.floats(0.0, 0.1)
    effects = {name: (draw(share), draw(share), draw(loss)) for name in EFFECTS}
    return World(effects, draw(st.floats(0.5, 30)), frozenset(draw(st.sets(st.sampled_from(EFFECTS), max_size=1))))


CANDIDATES = st.lists(st.sets(st.sampled_from(EFFECTS), min_size=1, max_size=4), max_size=8)
KNOBS_HERE = st.sampled_from([(), (INTERVAL,), (INTERVAL, steps_knob(20))])
LIMIT = st.floats(0.0, 0.3).map(lambda value: Limit("lpips", value, "lower"))
ANY = {"world": worlds(), "names": CANDIDATES, "knobs": KNOBS_HERE, "goal": st.sampled_from(GOALS), "limit": LIMIT}


# -- what always holds -------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(**ANY, budget=st.floats(80, 3000))
def test_the_winner_keeps_the_limit_and_none_that_was_measured_beats_it(world, names, knobs, goal, limit, budget):
    judge = Judge((limit,), goal)
    found = searched(world, space(*names, knobs=knobs), goal, budget, (limit,))
    if found.winner is None:
        return
    assert world.truth(found.winner.setting)[2] <= limit.value
    assert found.winner.setting in found.complete
    assert found.winner.setting != PLAIN
    complete = [one for one in found.tried if one.setting in found.complete and judge.keeps(one)]
    assert not [one for one in complete if judge.dominates(one, found.winner)]
    assert found.winner in judge.frontier(complete)


@settings(max_examples=150, deadline=None)
@given(**ANY, budget=st.floats(20, 600))
def test_the_budget_is_exceeded_by_one_measurement_at_most(world, names, knobs, goal, limit, budget):
    try:
        searched(world, space(*names, knobs=knobs), goal, budget, (limit,))
    except UsageError as refused:
        assert "plain alone takes" in str(refused)
    if world.asked:
        setting, runs = world.asked[-1]
        last = world.lasts + (len(runs) + 1) * world.truth(setting)[0]
        assert world.now - last <= budget


@settings(max_examples=100, deadline=None)
@given(**ANY, breaks_after=st.integers(1, 12))
def test_what_was_broken_off_goes_on_without_measuring_anything_twice(world, names, knobs, goal, limit, breaks_after):
    where, journal = space(*names, knobs=knobs), Journal(better={"lpips": "lower"})
    whole = searched(replace(world, asked=[]), where, goal, limits=(limit,))
    world.breaks_after = breaks_after
    try:
        searched(world, where, goal, limits=(limit,), journal=journal)
    except KeyboardInterrupt:
        world.breaks_after = None
    again = searched(world, where, goal, limits=(limit,), journal=journal)
    numbered = [(setting, run) for setting, runs in world.asked for run in runs]
    assert len(numbered) == len(set(numbered))
    assert (again.winner and again.winner.setting) == (whole.winner and whole.winner.setting)


@settings(max_examples=60, deadline=None)
@given(**ANY)
def test_the_same_answers_give_the_same_search(world, names, knobs, goal, limit):
    first, second = replace(world, asked=[]), replace(world, asked=[])
    for one in (first, second):
        searched(one, space(*names, knobs=knobs), goal, limits=(limit,))
    assert first.asked == second.asked


# -- what is found -----------------------------------------------------------------------------------------------------

TRUE = {
    "dtype": (0.6, 0.6, 0.005),
    "channels-last": (0.999, 1.0, 0.0),  # does nothing
    "vae-slicing": (1.0, 0.9, 0.0),
    "tiny-vae": (0.7, 0.9, 0.2),  # spoils the picture
    "deep-cache": (0.9, 1.01, 0.0089),  # for each step of its interval above 1
    "token-merging": (0.95, 1.0, 0.3),
}


def test_the_interval_that_just_keeps_the_limit_is_found():
    found = searched(World(TRUE), space(["dtype"], knobs=[INTERVAL]))
    assert found.winner.setting.options == {"dtype": {}, "deep-cache": {"interval": 6}}  # 0.005 + 5 * 0.0089
    assert any("deep-cache.interval: 6 is the harshest" in note for note in found.notes)


def test_steps_are_taken_away_as_far_as_the_limit_goes():
    found = searched(World(TRUE), space(["dtype"], knobs=[steps_knob(20)]))
    assert found.winner.setting.steps == 16  # 0.005 + 4 * 0.01


def test_what_breaks_the_limit_is_rolled_back_and_the_part_that_did_it_is_named():
    found = searched(World(TRUE), space(["dtype", "tiny-vae", "vae-slicing"]))
    assert found.winner.setting.names == ("dtype", "vae-slicing")
    assert any("tiny-vae did it" in note and "not lpips<=0.05" in note for note in found.notes)


def test_what_gains_no_more_than_noise_is_dropped():
    found = searched(World(TRUE), space(["dtype", "channels-last"]))
    assert found.winner.setting.names == ("dtype",)
    pays = {part.name: part.pays for part in found.parts}
    assert pays == {"channels-last": False, "dtype": True}
    assert any("channels-last dropped" in note for note in found.notes)


def test_what_was_pinned_is_neither_dropped_nor_blamed():
    found = searched(World(TRUE), space(["channels-last", "dtype"], pinned=["channels-last"]))
    assert found.winner.setting.names == ("channels-last", "dtype")
    assert [part.name for part in found.parts] == ["dtype"]


def test_each_part_is_told_what_it_gives_and_what_it_costs_the_picture():
    found = searched(World(TRUE), space(["dtype", "vae-slicing"]))
    part = next(part for part in found.parts if part.name == "dtype")
    assert part.whole.outcome.worst["lpips"] == pytest.approx(0.005)
    assert part.without.outcome.worst["lpips"] == 0
    assert part.without.outcome.median == pytest.approx(1.0)


@pytest.mark.parametrize(("goal", "best"), [("fast", "dtype"), ("low-memory", "vae-slicing"), ("balanced", "dtype")])
def test_the_goal_says_which_of_the_frontier_is_best(goal, best):
    effects = {**TRUE, "dtype": (0.6, 1.0, 0.0), "vae-slicing": (1.1, 0.7, 0.0)}
    assert searched(World(effects), space(["dtype"], ["vae-slicing"]), goal).winner.setting.names == (best,)


def test_least_memory_may_not_take_more_than_twice_the_fastest():
    effects = {**TRUE, "dtype": (0.9, 0.9, 0.0), "vae-slicing": (1.9, 0.1, 0.0)}
    found = searched(World(effects), space(["dtype"], ["vae-slicing"]), "low-memory")
    assert found.winner.setting.names == ("dtype",)


def test_there_is_no_winner_where_only_plain_is_inside_the_limits():
    found = searched(World(TRUE), space(["tiny-vae"], ["token-merging"]))
    assert found.winner is None
    assert found.tried[0].setting == PLAIN


def test_there_is_no_winner_where_nothing_is_faster_beyond_noise():
    assert searched(World(TRUE), space(["channels-last"])).winner is None


def test_a_plan_with_artifacts_or_without_a_picture_is_no_winner():
    judge = Judge((LPIPS,), "fast")
    assert not judge.keeps(Tried(Setting.of({"dtype": {}}), Outcome((0.1,), 1, {"lpips": 0.0}, ("seed 1: black",))))
    assert not judge.keeps(Tried(Setting.of({"dtype": {}}), Outcome((0.1,), 1)))
    assert not judge.keeps(Tried(Setting.of({"dtype": {}}), Outcome((0.1,), 1, {"lpips": math.nan})))


def test_a_plan_that_fails_does_not_end_the_search():
    found = searched(World(TRUE, fails=frozenset(["tiny-vae"])), space(["tiny-vae"], ["dtype"]))
    assert found.winner.setting.names == ("dtype",)


def test_plain_that_fails_ends_it():
    class Broken(World):
        def __call__(self, setting, runs):
            return Outcome(failure="OutOfMemory: too large")

    with pytest.raises(SafelightError, match=r"plain cannot be drawn.*too large"):
        searched(Broken(TRUE), space(["dtype"]))


def test_a_budget_that_plain_does_not_fit_in_is_refused():
    with pytest.raises(UsageError, match="plain alone takes about"):
        searched(World(TRUE), space(["dtype"]), budget=5.0)


def test_compiling_is_shared_by_the_pictures_of_the_goal():
    compiled = Tried(Setting.of({"compile": {}}), Outcome((0.5, 0.5), 1, {"lpips": 0.0}, once_seconds=60.0))
    plain = Tried(PLAIN, Outcome((1.0, 1.0), 1))
    assert not Judge((LPIPS,), "fast", pictures=1).gains(compiled, plain)
    assert Judge((LPIPS,), "fast", pictures=1000).gains(compiled, plain)


# -- knobs and limits --------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.data())
def test_a_walk_finds_the_last_value_that_keeps_in_few_probes(count, data):
    last, start = data.draw(st.integers(-1, count - 1)), data.draw(st.integers(0, count - 1))
    walked = bisected(count, start, lambda index: index <= last)
    assert walked.found == (None if last < 0 else last)
    assert walked.ended
    assert len(walked.probed) == len(set(walked.probed)) <= 2 + math.ceil(math.log2(count + 1))


@pytest.mark.parametrize("knob", [*KNOBS, steps_knob(20)], ids=lambda knob: knob.written)
def test_values_of_a_knob_go_from_gentle_to_harsh_and_begin_at_what_the_optimizer_has(knob):
    values = knob.values()
    assert (values[0], values[-1]) == (knob.gentle, knob.harsh)
    assert len(set(values)) == len(values)
    if knob.optimizer in OPTIMIZERS:
        assert knob.start == OPTIMIZERS[knob.optimizer].option(knob.option).default


def test_few_steps_are_no_knob():
    assert steps_knob(1) is None
    assert steps_knob(2) is None


@given(st.floats(0, 100), st.floats(allow_nan=True), st.sampled_from(["higher", "lower"]))
def test_what_keeps_a_limit_uses_no_more_than_all_of_it(value, worst, better):
    limit = Limit("any", value, better)
    if limit.keeps(worst) and worst >= 0:
        assert limit.share(worst) <= 1
    if math.isnan(worst):
        assert not limit.keeps(worst)


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_a_limit_that_is_none_is_refused(value):
    with pytest.raises(UsageError, match="limit of lpips"):
        Limit("lpips", value, "lower")


# -- the journal -------------------------------------------------------------------------------------------------------

BETTER = {"psnr": "higher", "lpips": "lower"}


def test_two_processes_of_one_setting_add_up_and_infinite_numbers_come_back(tmp_path):
    path = tmp_path / "a.json"
    journal, setting = Journal(path, {"model": "tiny"}, BETTER), Setting.of({"deep-cache": {"interval": 5}}, 12)
    journal.add(setting, range(2), Outcome((1.0, 2.0), 10, {"psnr": math.inf, "lpips": 0.1}))
    journal.add(setting, range(2, 3), Outcome((3.0,), 20, {"psnr": 40.0, "lpips": 0.0}))
    found = Journal.read(path, {"model": "tiny"}, BETTER).of(setting)
    assert (found.seconds, found.peak_bytes, found.worst) == ((1.0, 2.0, 3.0), 20, {"psnr": 40.0, "lpips": 0.1})
    assert Journal.read(path, {"model": "tiny"}, BETTER).of(replace(setting, steps=11)) is None


def test_measurements_of_another_request_or_version_count_for_nothing_and_stay(tmp_path):
    path = tmp_path / "a.json"
    Journal(path, {"versions": "old"}, BETTER).add(Setting.of({"dtype": {}}), range(1), Outcome((1.0,)))
    journal = Journal.read(path, {"versions": "new"}, BETTER)
    assert journal.of(Setting.of({"dtype": {}})) is None
    journal.add(Setting.of({"dtype": {}}), range(1), Outcome((2.0,)))
    assert Journal.read(path, {"versions": "old"}, BETTER).of(Setting.of({"dtype": {}})).seconds == (1.0,)
    assert Journal.read(path, {"versions": "new"}, BETTER).others == 1


def test_plain_is_measured_again_where_its_pictures_are_gone(tmp_path):
    path, picture = tmp_path / "a.json", tmp_path / "0.png"
    picture.write_bytes(b"")
    journal = Journal(path, {}, BETTER)
    journal.add(PLAIN, range(1), Outcome((1.0,), pictures=({"path": "0.png", "seed": 0, "prompt": "a"},)))
    assert Journal.read(path, {}, BETTER).of(PLAIN)
    picture.unlink()
    assert Journal.read(path, {}, BETTER).of(PLAIN) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "bench", "schema": 1}', '{"kind": "tune", "schema": 1}'])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="give another --out"):
        Journal.read(path, {}, BETTER)
    assert path.read_text() == text


# -- one measurement for real, but for its process ---------------------------------------------------------------------


def played(task, hear):
    """A process: pictures that are a little darker for every optimizer."""
    from PIL import Image

    options = task.load["optimize"] if isinstance(task.load["optimize"], dict) else {}
    told = {"written": "x", "options": {}, "left": {}, "statuses": [], "environment": {}, "threads": 1}
    hear({"event": "opened", "load_seconds": 1.0, "open_seconds": 7.0, "request": dict(task.request), **told})
    hear({"event": "first", "seconds": 2.0})
    for index in range(task.first, task.first + task.runs):
        path = Path(task.folder) / f"{index:06d}.png"
        Image.new("RGB", (64, 64), (100 - len(options), 90, index)).save(path)
        pictures = [{"path": str(path), "seed": index, "prompt": task.prompts[index % len(task.prompts)]}]
        seen = {"images": 1, "evaluations": 2, "peaks": {"process_bytes": 500}, "energy_joules": None}
        hear({"event": "run", "seconds": {"total": 1.0}, "pictures": pictures, **seen})
    hear({"event": "measured", "timeline": [], "utilisation": None, "predicted": None, **told})


def trials(tmp_path, launch=played):
    journal = Journal(tmp_path / "a.json", {}, {"psnr": "higher"})
    load = {"model": "tiny", "goal": "fast", "keep": ("x",), "optimize": "auto"}
    request = {"seed": 0, "count": 1, "steps": 20}
    return Trials(load, request, ("a cat", "a dog"), tmp_path / "a-pictures", journal, ("psnr",), launch)


def test_a_setting_is_held_against_plain_on_the_same_seeds_and_prompts(tmp_path):
    made, tasks = trials(tmp_path), []
    made = replace(made, launch=lambda task, hear: tasks.append(task) or played(task, hear))
    made.journal.add(PLAIN, range(3), made(PLAIN, range(3)))
    setting = Setting.of({"compile": {}}, 10)
    outcome = made(setting, range(1, 3))
    assert outcome.worst["psnr"] == pytest.approx(10 * math.log10(255**2 * 3))  # one of three channels, by one
    assert (outcome.seconds, outcome.peak_bytes, outcome.once_seconds) == ((1.0, 1.0), 500, 7.0)
    assert [(task.first, task.runs, task.warmups, task.request["steps"]) for task in tasks] == [
        (0, 3, 0, 20),
        (1, 2, 0, 10),
    ]
    assert tasks[0].load["optimize"] == "none"
    assert tasks[1].load == {**tasks[0].load, "optimize": {"compile": {}}}
    assert tasks[1].load["goal"] is None, "nothing is planned besides"


def test_a_process_that_fails_is_an_outcome_and_plain_that_cannot_begin_an_error(tmp_path):
    def failing(task, hear):
        hear({"event": "failed", "kind": "DoesNotApply", "message": "no such thing", "exit_code": 2})

    made = trials(tmp_path)
    made.journal.add(PLAIN, range(1), made(PLAIN, range(1)))
    assert "no such thing" in replace(made, launch=failing)(Setting.of({"dtype": {}}), range(1)).failure
    with pytest.raises(UsageError, match=r"^no such thing"):
        replace(made, launch=failing)(PLAIN, range(1))
