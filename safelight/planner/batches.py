"""How many pictures at a time: the largest batch that fits, and the one that makes the most pictures in a second.

Comes in: a Forecast, and sets of optimizers. Goes out: frozen Batches.

Three batches are traced, not each. A batch of n pictures runs the same operators as a single one, on n times the data:
an operator's work and the bytes of a result are a fixed part, such as weights, and n equal parts. So live bytes lie on
a straight line over n. The seconds of an operator are the longest of such lines (the least that a kernel takes, the
arithmetic, the memory traffic): they are straight but for a bend in the few small batches, which are traced.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from safelight.optimizers import conflicts
from safelight.optimizers.registry import Registry
from safelight.optimizers.target import Target
from safelight.planner.forecast import Chosen, Forecast, written
from safelight.simulate.cost import PHASES, Cost

MOST = 64
TRACED = (1, 4, 16)
PLANNED = 4  # pictures in the batch whose plan all others are weighed with
AS_GOOD = 0.98  # of the most pictures per second: a smaller batch that comes so near is better, it is done sooner
SLICING = "vae-slicing"


@dataclass(frozen=True, slots=True)
class Batch:
    """size: pictures. seconds: of the whole batch. optimize: the optimizers it is predicted with, as -o takes them."""

    size: int
    seconds: float
    peak_bytes: int
    optimize: str
    fits: bool

    @property
    def per_second(self) -> float:
        """Pictures."""
        return self.size / self.seconds


@dataclass(frozen=True, slots=True)
class Batches:
    """tried: by rising size. largest: that fits; 0 if not even one picture does. best: pictures in the best of those
    tried."""

    tried: tuple[Batch, ...]
    largest: int
    best: int


def weighed(
    forecast: Callable[[int], Forecast], choices: Sequence[Sequence[Chosen]], budget_bytes: int, most: int = MOST
) -> Batches:
    """forecast: of a batch of so many; it is asked for the same one several times. choices: sets of optimizers, of
    which each batch takes the best. most: pictures at a time; 1 or more."""
    lines = [(written(chosen), _lines(forecast, chosen, most)) for chosen in choices]

    def batch(size: int) -> Batch:
        found = [_batch(size, line, optimize, budget_bytes) for optimize, line in lines]
        return min(found, key=lambda one: (not one.fits, one.seconds if one.fits else one.peak_bytes))

    sizes = sorted({2**n for n in range(most.bit_length()) if 2**n <= most} | {most})
    tried = tuple(batch(size) for size in sizes)
    # bytes never fall as a batch grows, so that the first that does not fit ends the search
    largest = bisect_left(range(1, most + 1), True, key=lambda size: not batch(size).fits)
    return Batches(tried, largest, _best(tried))


def sets(chosen: Sequence[Chosen], target: Target, registry: Registry) -> list[Sequence[Chosen]]:
    """The set as it is, and with slicing of the VAE, the one optimizer that is for batches alone, if that is possible.

    target: of a batch.
    """
    if SLICING not in registry or any(optimizer.name == SLICING for optimizer, _ in chosen):
        return [chosen]
    slicing = registry[SLICING]
    options = {optimizer.name: given for optimizer, given in chosen} | {SLICING: slicing.defaults()}
    if slicing.fits(target, **slicing.defaults()) or next(conflicts.clashes(options, registry), None):
        return [chosen]
    return [chosen, [*chosen, (slicing, slicing.defaults())]]


def _best(tried: Sequence[Batch]) -> int:
    """The smallest that is nearly as good as the best; 1 where none fits."""
    fitting = [batch for batch in tried if batch.fits]
    most = max((batch.per_second for batch in fitting), default=0.0)
    return next((batch.size for batch in fitting if batch.per_second >= AS_GOOD * most), 1)


# -- straight lines ----------------------------------------------------------------------------------------------------

Costs = Mapping[int, Cost]  # by batch size, rising


def _lines(forecast: Callable[[int], Forecast], chosen: Sequence[Chosen], most: int) -> Costs:
    sizes = sorted({size for size in TRACED if size < most} | {min(most, TRACED[-1])})
    return {size: forecast(size).cost(chosen) for size in sizes}


def _batch(size: int, costs: Costs, optimize: str, budget_bytes: int) -> Batch:
    def at(value: Callable[[Cost], float]) -> float:
        return straight({known: value(cost) for known, cost in costs.items()}, size)

    seconds = at(lambda cost: cost.seconds)
    peak_bytes = round(max(at(lambda cost, name=name: cost.phase(name).peak_bytes) for name in PHASES))  # type: ignore[misc]
    return Batch(size, seconds, peak_bytes, optimize, peak_bytes <= budget_bytes)


def straight(known: Mapping[int, float], size: int) -> float:
    """The value at `size`, between its two neighbours; beyond the last, on through the last two. known: rising."""
    sizes = list(known)
    if size in known or len(sizes) == 1:
        return known.get(size, known[sizes[0]])
    after = min(max(bisect_left(sizes, size), 1), len(sizes) - 1)
    low, high = sizes[after - 1], sizes[after]
    return known[low] + (known[high] - known[low]) * (size - low) / (high - low)
