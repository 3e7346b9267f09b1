"""Plans that were tried: which keep the limits, which none of the others beats in seconds, bytes and picture, which is
the best for a goal.

Comes in: settings with what was measured of them. Goes out: verdicts. Measures nothing, and knows no model.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from safelight.errors import UsageError
from safelight.optimizers import words

STEPS = "steps"  # of the request: fewer of them are a part of a setting as an optimizer is
GOALS = ("fast", "low-memory", "balanced")
SLOWEST_SMALL = 2.0  # times the fastest that keeps the limits: what the goal of least memory may take
FLOOR = 0.02  # of seconds, of bytes and of a limit: less than that is noise, whatever the samples say
Given = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """A plan to be tried. chosen: (optimizer, (option, value), ...) with the options that are not as by default.

    steps: None are as many as plain has.
    """

    chosen: tuple[tuple[str, Given], ...] = ()
    steps: int | None = None

    @classmethod
    def of(cls, options: Mapping[str, Mapping[str, Any]], steps: int | None = None) -> Self:
        return cls(tuple((name, tuple(sorted(given.items()))) for name, given in options.items()), steps)

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        return {name: dict(given) for name, given in self.chosen}

    @property
    def names(self) -> tuple[str, ...]:
        """Of its parts."""
        return (*(name for name, _ in self.chosen), *((STEPS,) if self.steps is not None else ()))

    def without(self, names: Iterable[str]) -> "Setting":
        gone = set(names)
        kept = tuple(one for one in self.chosen if one[0] not in gone)
        return Setting(kept, None if STEPS in gone else self.steps)

    @property
    def optimize(self) -> str:
        """As -o takes it; "none" for plain."""
        return words.written(self.options) or words.NONE

    @property
    def written(self) -> str:
        """For a person, and as a key."""
        return self.optimize if self.steps is None else f"{self.optimize}, {self.steps} steps"


PLAIN = Setting()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was measured of one setting, in one process or in several.

    seconds: of each measured run. peak_bytes: None where it was not measured. worst: of each metric, the picture that
    is farthest from plain's. artifacts: that plain's pictures do not have. failure: what ended it.
    once_seconds: spent before the first picture, where the setting compiles. took_seconds: on the wall, all in all.
    pictures: {"path", "seed", "prompt"}.
    """

    seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None
    worst: Mapping[str, float] = field(default_factory=dict)
    artifacts: tuple[str, ...] = ()
    failure: str | None = None
    once_seconds: float = 0.0
    took_seconds: float = 0.0
    pictures: tuple[Mapping[str, Any], ...] = ()

    def then(self, later: "Outcome", better: Mapping[str, str]) -> "Outcome":
        """Both of them together. better: "higher" or "lower" of each metric."""
        worse = {name: min if better[name] == "higher" else max for name in self.worst.keys() & later.worst.keys()}
        peaks = [peak for peak in (self.peak_bytes, later.peak_bytes) if peak is not None]
        return replace(
            later,
            seconds=self.seconds + later.seconds,
            peak_bytes=max(peaks, default=None),
            worst={name: worst(self.worst[name], later.worst[name]) for name, worst in worse.items()},
            artifacts=tuple(dict.fromkeys(self.artifacts + later.artifacts)),
            failure=self.failure or later.failure,
            once_seconds=max(self.once_seconds, later.once_seconds),
            took_seconds=self.took_seconds + later.took_seconds,
            pictures=self.pictures + later.pictures,
        )

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else math.inf

    @property
    def error(self) -> float:
        """Seconds by which the median may be wrong: half of what the samples differ by, or a floor."""
        if not self.seconds:
            return 0.0
        return max(FLOOR * self.median, (max(self.seconds) - min(self.seconds)) / 2)


@dataclass(frozen=True, slots=True)
class Limit:
    """metric: of measure.quality. better: "higher" or "lower". value: that every picture has to keep."""

    metric: str
    value: float
    better: str

    def __post_init__(self) -> None:
        if not 0 <= self.value < math.inf:
            raise UsageError(f"the limit of {self.metric} is {self.value:g}: give a number from 0 on")

    @property
    def written(self) -> str:
        return f"{self.metric}{'>=' if self.better == 'higher' else '<='}{self.value:g}"

    def keeps(self, worst: float) -> bool:
        return worst >= self.value if self.better == "higher" else worst <= self.value

    def share(self, worst: float) -> float:
        """How much of what may be lost is lost: 0 for an equal picture, 1 at the limit."""
        part, whole = (self.value, worst) if self.better == "higher" else (worst, self.value)
        if math.isnan(worst) or whole < 0:
            return math.inf
        if part == 0 or whole == math.inf:
            return 0.0
        return part / whole if whole else math.inf


@dataclass(frozen=True, slots=True)
class Tried:
    setting: Setting
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Judge:
    """limits: one at least. pictures: so many share what is spent once. Plain keeps every limit."""

    limits: tuple[Limit, ...]
    goal: str
    pictures: int = 1

    def broken(self, one: Tried) -> str:
        """Why it cannot be the best, for a person; "" where it can."""
        if one.outcome.failure or not one.outcome.seconds:
            return one.outcome.failure or "nothing was measured"
        if one.setting == PLAIN:
            return ""
        for limit in self.limits:
            if (worst := one.outcome.worst.get(limit.metric)) is None:
                return f"{limit.metric} was not measured"
            if not limit.keeps(worst):
                return f"{limit.metric} {worst:.4g}, not {limit.written}"
        return one.outcome.artifacts[0] if one.outcome.artifacts else ""

    def keeps(self, one: Tried) -> bool:
        return not self.broken(one)

    # -- three axes, of each the least is the best ---------------------------------------------------------------------

    def seconds(self, one: Tried) -> float:
        """Of a run, with its share of what is spent once."""
        return one.outcome.median + one.outcome.once_seconds / self.pictures

    def size(self, one: Tried) -> float:
        """Bytes; what was not measured counts as the largest."""
        return math.inf if one.outcome.peak_bytes is None else float(one.outcome.peak_bytes)

    def loss(self, one: Tried) -> float:
        """The share of the nearest limit that is used up."""
        if one.setting == PLAIN:
            return 0.0
        return max(limit.share(one.outcome.worst.get(limit.metric, math.nan)) for limit in self.limits)

    def faster(self, one: Tried, other: Tried) -> bool:
        """Beyond the noise of both."""
        noise = math.hypot(one.outcome.error, other.outcome.error)
        return self.seconds(one) < self.seconds(other) - noise

    def smaller(self, one: Tried, other: Tried) -> bool:
        return self.size(one) < self.size(other) * (1 - FLOOR)

    def truer(self, one: Tried, other: Tried) -> bool:
        return self.loss(one) < self.loss(other) - FLOOR

    def surpasses(self, one: Tried, other: Tried) -> bool:
        """Better in one of the three beyond noise."""
        return self.faster(one, other) or self.smaller(one, other) or self.truer(one, other)

    def dominates(self, one: Tried, other: Tried) -> bool:
        """Worse in none of the three, and better in one beyond noise."""
        axes = (self.seconds, self.size, self.loss)
        return all(axis(one) <= axis(other) for axis in axes) and self.surpasses(one, other)

    def frontier(self, tried: Sequence[Tried]) -> list[Tried]:
        """Those that keep the limits and that none of them dominates, fastest first."""
        kept = [one for one in tried if self.keeps(one)]
        found = [one for one in kept if not any(self.dominates(other, one) for other in kept)]
        return sorted(found, key=lambda one: (self.seconds(one), self.size(one)))

    # -- the goal ------------------------------------------------------------------------------------------------------

    def key(self, one: Tried) -> tuple[float, ...]:
        """The least is the best."""
        seconds, size, loss = self.seconds(one), self.size(one), self.loss(one)
        if self.goal == "fast":
            return seconds, size, loss
        return (size, seconds, loss) if self.goal == "low-memory" else (seconds * size, seconds, size, loss)

    def ranked(self, tried: Sequence[Tried]) -> list[Tried]:
        """Those that keep the limits, the best for the goal first; for least memory, none that is far slower."""
        kept = [one for one in tried if self.keeps(one)]
        if self.goal == "low-memory" and kept:
            most = SLOWEST_SMALL * min(map(self.seconds, kept))
            kept = [one for one in kept if self.seconds(one) <= most]
        return sorted(kept, key=self.key)

    def gains(self, one: Tried, other: Tried) -> bool:
        """Whether it is better for the goal, beyond noise."""
        if self.goal == "fast":
            return self.faster(one, other)
        if self.goal == "low-memory":
            return self.smaller(one, other)
        first, second = self.key(one)[0], self.key(other)[0]
        if math.isinf(second):  # memory was not measured
            return not math.isinf(first) or self.faster(one, other)
        noise = math.hypot(one.outcome.error, other.outcome.error) / self.seconds(other)
        return first < second * (1 - noise)
