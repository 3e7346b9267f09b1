"""Plans from the fastest to the smallest: a walk from plain, by the largest gain in seconds, then the cheapest bytes.

The walk knows no budget. So a larger budget can only allow more of the same plans, and so can a looser fidelity: more
memory is never slower, and neither is a picture that may lose more.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from safelight.errors import UsageError
from safelight.optimizers import conflicts
from safelight.optimizers.registry import Fidelity, Optimizer, Registry, Stage
from safelight.planner.forecast import Chosen, Forecast, computing
from safelight.simulate.cost import Cost

WORTH_IT = 0.98  # taken only if the prediction falls to this share of the seconds, or of the bytes
AS_FAST = 1.002  # what costs no more than this is free
MOST_STEPS = 40  # of one walk; a guard, no walk has come near


@dataclass(frozen=True, slots=True)
class Point:
    """A set of optimizers with its prediction."""

    chosen: tuple[Chosen, ...]
    cost: Cost

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(optimizer.name for optimizer, _ in self.chosen)


@dataclass
class Search:
    """pins: taken whatever happens. without: never taken. pictures: so many share what is spent once."""

    forecast: Forecast
    registry: Registry
    pins: tuple[Chosen, ...] = ()
    without: frozenset[str] = frozenset()
    pictures: int = 1
    _points: dict[Any, Point] = field(default_factory=dict)
    _fitting: dict[Any, str | None] = field(default_factory=dict)

    def seconds(self, point: Point) -> float:
        return point.cost.per_picture(self.pictures)

    def fidelity(self, point: Point) -> Fidelity:
        """What the picture may lose by what was not asked for."""
        taken = [choice[0].fidelity for choice in point.chosen if choice not in self.pins]
        return max(taken, default=Fidelity.EXACT)

    def point(self, chosen: Iterable[Chosen]) -> Point:
        ordered = tuple(sorted(chosen, key=lambda choice: (choice[0].stage, choice[0].name)))
        if (key := _identity(ordered)) not in self._points:
            self._points[key] = Point(ordered, self.forecast.cost(ordered, roughly=True))
        return self._points[key]

    # -- the walk ------------------------------------------------------------------------------------------------------

    def frontier(self, speed: Fidelity, memory: Fidelity) -> list[Point]:
        """Every plan met on the way, for each fidelity up to the two, fastest first."""
        met: dict[Any, Point] = {}
        for fast in range(speed + 1):
            for small in range(memory + 1):
                for point in self._walk(Fidelity(fast), Fidelity(small)):
                    met.setdefault(_identity(point.chosen), point)
        return sorted(
            met.values(), key=lambda p: (self.seconds(p), p.cost.peak_bytes, self.fidelity(p), len(p.chosen), p.names)
        )

    def _walk(self, speed: Fidelity, memory: Fidelity) -> Iterator[Point]:
        """From the fastest on, always the cheapest way; what else was in reach counts as met, too."""
        point = self.point(self.pins)
        yield point
        point = self._fastest(self._fastest(point, speed, Stage.PRECISION), speed)
        yield point
        for _ in range(MOST_STEPS):
            smaller = self._smaller(point, memory)
            if not smaller:
                return
            yield from smaller
            point = self._pruned(smaller[0])
            yield point

    def _fastest(self, point: Point, allowed: Fidelity, last: Stage = Stage.PLACEMENT) -> Point:
        """Takes the largest gain first, until none is left."""
        for _ in range(MOST_STEPS):
            moves = [move for move in self._moves(point, allowed, last) if self._pays(point, move)]
            if not moves:
                return point
            point = min(moves, key=lambda move: (self.seconds(move), move.names))
        return point

    def _pays(self, point: Point, move: Point) -> bool:
        return self.seconds(move) <= self.seconds(point) * WORTH_IT

    def _smaller(self, point: Point, allowed: Fidelity) -> list[Point]:
        """What makes the largest phase smaller, the cheapest way first: the fewest seconds for each byte."""

        def price(move: Point) -> tuple[float, int, tuple[str, ...]]:
            saved = point.cost.peak_bytes - move.cost.peak_bytes
            return (self.seconds(move) - self.seconds(point)) / saved, move.cost.peak_bytes, move.names

        worth = point.cost.peak_bytes * WORTH_IT
        return sorted((move for move in self._moves(point, allowed) if move.cost.peak_bytes <= worth), key=price)

    def _pruned(self, point: Point) -> Point:
        """Without what has become pointless: a small set is a feature."""
        for choice in reversed(point.chosen):
            if choice in self.pins:
                continue
            less = self.point(other for other in point.chosen if other is not choice)
            if self.seconds(less) <= self.seconds(point) and less.cost.peak_bytes <= point.cost.peak_bytes:
                point = less
        return point

    # -- one step ------------------------------------------------------------------------------------------------------

    def _moves(self, point: Point, allowed: Fidelity, last: Stage = Stage.PLACEMENT) -> Iterator[Point]:
        for candidate in self.candidates:
            optimizer, _ = candidate
            if optimizer.fidelity > allowed or optimizer.stage > last or candidate in point.chosen:
                continue
            if (chosen := self.with_candidate(point.chosen, candidate)) is not None:
                yield self.point(chosen)

    @cached_property
    def candidates(self) -> list[Chosen]:
        """What may be taken, each with all the options a planner may choose."""
        plain = self.forecast.cost(self.pins, roughly=True)
        pinned = {optimizer.name for optimizer, _ in self.pins}
        return [
            (known, options)
            for known in self.registry.values()
            if known.name not in pinned and known.name not in self.without
            if not self.pointless(known)
            for options in variants(known, plain, self.forecast.target)
        ]

    def pointless(self, known: Optimizer) -> str | None:
        """Why it is never taken unless asked for, although it would work."""
        return known.pointless(self.forecast.target)

    def with_candidate(self, chosen: Sequence[Chosen], candidate: Chosen) -> tuple[Chosen, ...] | None:
        """The set with it, and without what it stands in for; None where it cannot be."""
        kept = [choice for choice in chosen if choice in self.pins or not self.clash(choice, candidate)]
        if any(self.clash(choice, candidate) for choice in kept):
            return None
        changed = (*kept, candidate)
        if any(self.why_not(choice, changed) for choice in self.pins) or self.why_not(candidate, changed):
            return None
        return tuple(choice for choice in changed if self.why_not(choice, changed) is None)

    def clash(self, one: Chosen, other: Chosen) -> str:
        """Why the two cannot be together, "" if they can."""
        if one[0].name == other[0].name:
            return f"{one[0].name} is there with other options"
        options = {one[0].name: one[1], other[0].name: other[1]}
        found = conflicts.clash(one[0].name, other[0].name, options, self.registry)
        return found.reason if found else ""

    def why_not(self, choice: Chosen, among: Sequence[Chosen]) -> str | None:
        """What `fits` says, in the dtype that the set computes in."""
        optimizer, options = choice
        # what sets the dtype is asked of the pipeline as it was
        target = computing(self.forecast.target, () if optimizer.name == "dtype" else among)
        key = (optimizer.name, tuple(sorted(options.items())), target.dtype)
        if key not in self._fitting:
            try:
                self._fitting[key] = optimizer.fits(target, **options)
            except UsageError as error:  # a default that is no value for this model
                self._fitting[key] = str(error)
        return self._fitting[key]


def variants(known: Optimizer, plain: Cost, target: Any) -> list[Mapping[str, Any]]:
    """All options in full."""
    chosen = known.variants(plain, target) if known.variants else [{}]
    return [{**known.defaults(), **options} for options in chosen]


def _identity(chosen: Iterable[Chosen]) -> Any:
    return tuple((optimizer.name, tuple(sorted(options.items()))) for optimizer, options in chosen)


# -- which of them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """budget_bytes: of tensors on the device. max_seconds: of a picture."""

    budget_bytes: int
    max_seconds: float | None = None

    def allow(self, point: Point, seconds: float) -> bool:
        fits = point.cost.peak_bytes <= self.budget_bytes
        return fits and (self.max_seconds is None or seconds <= self.max_seconds)


SLOWEST_SMALL = 2.0  # times the fastest: what the goal of least memory may take


def best(
    frontier: Sequence[Point], limits: Limits, seconds: Callable[[Point], float], *, smallest: bool = False
) -> Point | None:
    """Of the plans within the limits the fastest, or the smallest that is not far slower; None if there is none.

    frontier: fastest first.
    """
    allowed = [point for point in frontier if limits.allow(point, seconds(point))]
    if not smallest or not allowed:
        return allowed[0] if allowed else None
    quick = [point for point in frontier if seconds(point) <= SLOWEST_SMALL * seconds(frontier[0])]
    least = min(quick, key=lambda point: (point.cost.peak_bytes, seconds(point)))
    return least if least in allowed else allowed[0]


def steps(
    frontier: Sequence[Point], taken: Point, seconds: Callable[[Point], float]
) -> tuple[Point | None, Point | None]:
    """(the next faster one with more memory, the next smaller one): of plans that none beats in both."""
    more = [p for p in frontier if p.cost.peak_bytes > taken.cost.peak_bytes and seconds(p) < seconds(taken)]
    less = [p for p in frontier if p.cost.peak_bytes < taken.cost.peak_bytes]
    up = min(more, key=lambda p: (p.cost.peak_bytes, seconds(p)), default=None)
    down = min(less, key=lambda p: (seconds(p), -p.cost.peak_bytes), default=None)
    return up, down
