"""Finds by measuring what a planner can only predict: the best plan for a goal that keeps a picture's limits.

Comes in: a Space of plans, a Judge, and `measure`, which is asked about one setting at a time. Goes out: a Tuned. Knows
no process, no model and no file: the same answers give the same search.

Plain first; then every candidate in a few runs; what breaks a limit rolled back, part by part; options walked to the
value that just keeps it; the best measured in full; and each of its parts left out once, to see what that part does.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from safelight.errors import SafelightError, UsageError
from safelight.measure.bench import News, Tell
from safelight.measure.frontier import PLAIN, Judge, Outcome, Setting, Tried
from safelight.measure.journal import Journal
from safelight.measure.knobs import Knob, Walked, bisected

SHORT = 2  # runs, for a first look
LOOKS, WALKS = 0.5, 0.8  # of the budget: when first looks, and walks, have to be over
PROCESS_SECONDS = 20.0  # of a process beside its runs, until one was measured
MARGIN = 1.1  # of what a measurement is expected to take
MOST_ROLLED = 2  # settings beyond a limit that are taken apart
WORTH_IT = 0.98  # of predicted seconds or bytes: a knob that does not even promise that is not walked
USUAL_PROBES = 4  # of a walk, to tell how long it will all take


@dataclass(frozen=True, slots=True)
class Predicted:
    """Of one run; once_seconds: before the first."""

    seconds: float
    peak_bytes: float
    once_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Space:
    """What may be tried. candidates: in their order. joined: a setting with a knob at a value; None where that cannot
    be. possible: whether an optimizer's own checks let a setting through. lossy: names of parts that may change a
    picture. pinned: of those that stay whatever they do."""

    candidates: tuple[Setting, ...]
    knobs: tuple[Knob, ...]
    joined: Callable[[Setting, Knob, float], Setting | None]
    possible: Callable[[Setting], bool]
    predicted: Callable[[Setting], Predicted]
    lossy: frozenset[str]
    pinned: frozenset[str] = frozenset()


Measure = Callable[[Setting, range], Outcome]  # runs of these numbers, which have seeds and prompts of their own


@dataclass(frozen=True, slots=True)
class Part:
    """What one part of the best plan does: the same plan, and that without it; None where it could not be left out."""

    name: str
    whole: Tried
    without: Tried | None
    pays: bool


@dataclass(frozen=True, slots=True)
class Tuned:
    """winner: None where nothing inside the limits is better than plain. tried: plain first. complete: settings whose
    runs were all measured. parts: of the best plan before what does not pay was dropped. notes: for a person. unfit:
    how many measurements the budget had no room for. measured: how many were made now."""

    plain: Tried
    winner: Tried | None
    tried: tuple[Tried, ...]
    complete: frozenset[Setting]
    parts: tuple[Part, ...]
    notes: tuple[str, ...]
    unfit: int
    measured: int


def tune(
    space: Space,
    judge: Judge,
    measure: Measure,
    *,
    full: int,
    budget_seconds: float,
    journal: Journal | None = None,
    tell: Tell = lambda news: None,
    clock: Callable[[], float] = time.monotonic,
    began: float | None = None,
) -> Tuned:
    """full: runs of what may become the winner. began: when the budget began, by `clock`; None is now.

    No measurement is begun that is expected to end after the budget. What stands in the journal is not measured again,
    and what is measured is put there at once.
    Raises UsageError for a budget that not even plain fits in, SafelightError where plain cannot be drawn.
    """
    start = clock() if began is None else began
    kept = journal or Journal(better={limit.metric: limit.better for limit in judge.limits})
    search = _Search(space, judge, measure, full, start, budget_seconds, kept, tell, clock)
    search.measure_plain()
    search.look()
    search.roll_back()
    search.confirmed(WALKS)
    search.walk()
    best = search.confirmed(1.0)
    parts = () if best is None else search.left_out(best)
    winner = None if best is None else search.settled(search.simpler(best, parts))
    return search.told(winner, parts)


@dataclass
class _Search:
    space: Space
    judge: Judge
    measure: Measure
    full: int
    began: float
    budget: float
    journal: Journal
    tell: Tell
    clock: Callable[[], float]
    found: dict[Setting, Outcome] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    overheads: list[float] = field(default_factory=list)
    unfit: set[Setting] = field(default_factory=set)
    ahead: int = 0
    measured: int = 0

    # -- one measurement -----------------------------------------------------------------------------------------------

    def need(self, setting: Setting, runs: int, share: float) -> Tried | None:
        """With so many runs at least, as far as it did not fail. None where it cannot be, or would not be over when
        this share of the budget is."""
        known = self.recalled(setting)
        if known and (known.failure or len(known.seconds) >= runs):
            return Tried(setting, known)
        if not known and not self.space.possible(setting):
            return None
        missing = range(len(known.seconds) if known else 0, runs)
        takes = self.expected(setting, len(missing))
        if self.gone() + takes > share * self.budget:
            self.unfit.add(setting)
            return None
        self.say(f"{setting.written}: {len(missing)} runs, about {takes:.0f} s", takes)
        return self.made(setting, missing)

    def made(self, setting: Setting, missing: range) -> Tried:
        outcome = self.measure(setting, missing)
        self.measured += 1
        if setting == PLAIN and outcome.failure:
            raise SafelightError(f"plain cannot be drawn, and nothing can be held against it: {outcome.failure}")
        self.journal.add(setting, missing, outcome)
        self._learn(outcome)
        self.found[setting] = self.journal.of(setting) or outcome
        one = Tried(setting, self.found[setting])
        self.say(f"{setting.written}: {self.judge.broken(one) or f'{one.outcome.median:.2f} s a run'}")
        return one

    def recalled(self, setting: Setting) -> Outcome | None:
        """From this search, or from one that was broken off."""
        if setting not in self.found and (outcome := self.journal.of(setting)) is not None:
            self._learn(outcome)
            self.found[setting] = outcome
        return self.found.get(setting)

    def _learn(self, outcome: Outcome) -> None:
        if outcome.seconds:
            self.overheads.append(max(0.0, outcome.took_seconds - (len(outcome.seconds) + 1) * outcome.median))

    def expected(self, setting: Setting, runs: int) -> float:
        """Seconds on the wall: a process, a first picture that does not count, and the runs."""
        predicted, known = self.space.predicted(setting), self.found.get(setting)
        each = known.median if known and known.seconds else predicted.seconds * self._scale()
        beside = statistics.median(self.overheads) if self.overheads else PROCESS_SECONDS
        return MARGIN * (beside + predicted.once_seconds + (runs + 1) * each)

    def _scale(self) -> float:
        """Measured by predicted seconds so far."""
        both = [(one.median, self.space.predicted(setting).seconds) for setting, one in self.found.items()]
        return statistics.median([taken / told for taken, told in both if 0 < taken < float("inf") and told] or [1.0])

    def gone(self) -> float:
        return self.clock() - self.began

    def say(self, text: str, takes: float | None = None) -> None:
        usual = takes or statistics.mean([one.took_seconds for one in self.found.values()] or [0.0])
        left = min(max(0.0, self.budget - self.gone()), usual * max(1, self.ahead))
        self.tell(News(text, left))

    @property
    def tried(self) -> list[Tried]:
        return [Tried(setting, outcome) for setting, outcome in self.found.items()]

    @property
    def complete(self) -> list[Tried]:
        return [one for one in self.tried if len(one.outcome.seconds) >= self.full]

    @property
    def plain(self) -> Tried:
        return Tried(PLAIN, self.found[PLAIN])

    # -- what is tried -------------------------------------------------------------------------------------------------

    def measure_plain(self) -> None:
        self.ahead = 1 + len(self.space.candidates) + USUAL_PROBES * len(self.space.knobs)
        if self.need(PLAIN, self.full, 1.0) is None:
            takes = self.expected(PLAIN, self.full)
            raise UsageError(f"the budget is {self.budget:.0f} s, and plain alone takes about {takes:.0f} s: give more")

    def look(self) -> None:
        for candidate in self.space.candidates:
            self.need(candidate, SHORT, LOOKS)
            self.ahead -= 1

    def best(self, among: Sequence[Tried]) -> Tried:
        """By the goal; plain at the worst."""
        return self.judge.ranked(among)[0]

    def roll_back(self) -> None:
        """Takes apart what would be the best if the picture were not spoiled."""
        best = self.best(self.tried)
        spoiled = [one for one in self.tried if not one.outcome.failure and not self.judge.keeps(one)]
        better = sorted((one for one in spoiled if self.judge.gains(one, best)), key=self.judge.key)
        for one in better[:MOST_ROLLED]:
            self._rolled(one)

    def _rolled(self, one: Tried) -> None:
        """Without the part that spoils most, until it keeps the limits."""
        while (broken := self.judge.broken(one)) and not one.outcome.failure:
            names = [name for name in one.setting.names if name in self.space.lossy - self.space.pinned]
            fewer = [self.need(one.setting.without([name]), SHORT, WALKS) for name in names]
            there = [(less, name) for less, name in zip(fewer, names, strict=True) if less and less.outcome.seconds]
            if not there:
                self.notes.append(f"{one.setting.written}: {broken}")
                return
            less, name = min(there, key=lambda both: (self.judge.loss(both[0]), self.judge.key(both[0])))
            now = self.judge.broken(less) or "it keeps the limits"
            self.notes.append(f"{one.setting.written}: {broken}; {name} did it: without it, {now}")
            one = less

    def confirmed(self, share: float) -> Tried | None:
        """The best of all with all of its runs; None where that is plain, or no better than plain beyond noise."""
        passed: set[Setting] = set()
        while True:
            best = self.best([one for one in self.tried if one.setting not in passed])
            if len(best.outcome.seconds) >= self.full:
                return best if self.judge.gains(best, self.plain) else None
            if self.need(best.setting, self.full, share) is None:
                passed.add(best.setting)

    # -- knobs ---------------------------------------------------------------------------------------------------------

    def walk(self) -> None:
        """Each knob on top of the best so far, and what it gains becomes what the next one begins from."""
        current = self.best(self.complete)
        self.ahead = USUAL_PROBES * len(self.space.knobs) + len(current.setting.names)
        for knob in self.space.knobs:
            if self._promises(knob, current):
                probed = self._walked(knob, current)
                better = [one for one in self.judge.ranked([current, *probed]) if self.judge.gains(one, current)]
                current = next((one for one in better if one in self.complete), current)
            self.ahead -= USUAL_PROBES

    def _promises(self, knob: Knob, current: Tried) -> bool:
        """At its harsh end; by predictions alone, as those of one kind."""
        if (harsh := self.space.joined(current.setting, knob, knob.harsh)) is None:
            return False
        now, then = self.space.predicted(current.setting), self.space.predicted(harsh)
        quicker = then.seconds <= now.seconds * WORTH_IT
        smaller = then.peak_bytes <= now.peak_bytes * WORTH_IT
        return {"fast": quicker, "low-memory": smaller}.get(self.judge.goal, quicker or smaller)

    def _walked(self, knob: Knob, current: Tried) -> list[Tried]:
        values, probed = knob.values(), dict[int, Tried]()

        def keeps(index: int) -> bool | None:
            setting = self.space.joined(current.setting, knob, values[index])
            one = None if setting is None else self.need(setting, self.full, WALKS)
            if one is None or one.outcome.failure:
                return None
            probed[index] = one
            return self.judge.keeps(one)

        walked = bisected(len(values), knob.beginning(), keeps)
        self._note(knob, walked, probed)
        return list(probed.values())

    def _note(self, knob: Knob, walked: Walked, probed: dict[int, Tried]) -> None:
        """The walk takes for granted that a harsher value spoils more: whether it did."""
        values, order = knob.values(), sorted(probed)
        for gentle, harsh in pairwise(order):
            if self.judge.truer(probed[harsh], probed[gentle]):
                self.notes.append(
                    f"{knob.written}: {values[harsh]:g} spoils less than {values[gentle]:g}, so that a better one may "
                    "lie between the values that were measured"
                )
        if walked.found is None and probed:
            self.notes.append(f"{knob.written}: no value that was measured keeps the limits")
        elif walked.found is not None:
            more = "" if walked.ended else "; the budget ended the walk"
            self.notes.append(f"{knob.written}: {values[walked.found]:g} is the harshest that keeps the limits{more}")

    # -- what the best one owes to each of its parts -------------------------------------------------------------------

    def left_out(self, best: Tried) -> tuple[Part, ...]:
        names = [name for name in best.setting.names if name not in self.space.pinned]
        self.ahead = len(names)
        return tuple(self._part(best, name) for name in names)

    def _part(self, best: Tried, name: str) -> Part:
        """What could not be left out, or fails without, pays."""
        less = self.need(best.setting.without([name]), self.full, 1.0)
        self.ahead -= 1
        if less is None or less.outcome.failure:
            return Part(name, best, None, pays=True)
        pays = not self.judge.keeps(less) or self.judge.surpasses(best, less)
        return Part(name, best, less, pays)

    def simpler(self, best: Tried, parts: Sequence[Part]) -> Tried:
        """Without what does not pay: all of it, or else the part that pays least."""
        idle = [part for part in parts if not part.pays]
        if not idle:
            return best
        alone = [part.without for part in idle if part.without]
        fewest = self.need(best.setting.without(part.name for part in idle), self.full, 1.0)
        choices = [*([fewest] if fewest else []), *sorted(alone, key=self.judge.key)]
        for less in choices:
            good = less in self.complete and self.judge.keeps(less) and not self.judge.surpasses(best, less)
            if good and self.judge.gains(less, self.plain):
                self._dropped(best, less)
                return less
        return best

    def _dropped(self, best: Tried, less: Tried) -> None:
        gone = [name for name in best.setting.names if name not in less.setting.names]
        self.notes.append(f"{' and '.join(gone)} dropped: what it gains is within the noise")

    def settled(self, winner: Tried) -> Tried | None:
        """What dropping a part has left may be beaten by what was measured before."""
        while above := [o for o in self.complete if self.judge.keeps(o) and self.judge.dominates(o, winner)]:
            winner = min(above, key=self.judge.key)
        return None if winner.setting == PLAIN else winner

    def told(self, winner: Tried | None, parts: Iterable[Part]) -> Tuned:
        complete = frozenset(one.setting for one in self.complete)
        tried = tuple(sorted(self.tried, key=lambda one: one.setting != PLAIN))
        unfit = len([s for s in self.unfit if s not in complete])
        return Tuned(
            self.plain, winner, tried, complete, tuple(parts), tuple(dict.fromkeys(self.notes)), unfit, self.measured
        )
