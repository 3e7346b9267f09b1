"""Options that trade picture for seconds, and the walk to the value that just keeps a limit.

Comes in: a knob, and what asks whether a value keeps. Goes out: the harshest that does. A step between two values costs
a measurement, so there are few.
"""

from collections.abc import Callable
from dataclasses import dataclass

from safelight.measure.frontier import STEPS

GRID = 33  # values of a knob whose values are no whole numbers: five probes between the two ends


@dataclass(frozen=True, slots=True)
class Knob:
    """gentle: the value that spoils least, at which there is still something to gain. harsh: the other end; what lies
    beyond has not been seen to be of use, or is refused by the optimizer. start: where the walk begins."""

    optimizer: str
    option: str
    gentle: float
    harsh: float
    start: float
    whole: bool = False

    @property
    def written(self) -> str:
        return f"{self.optimizer}.{self.option}" if self.option else self.optimizer

    def values(self) -> list[float]:
        """From gentle to harsh."""
        if self.whole:
            step = 1 if self.harsh >= self.gentle else -1
            return list(range(int(self.gentle), int(self.harsh) + step, step))
        span = self.harsh - self.gentle
        return [round(self.gentle + span * i / (GRID - 1), 4) for i in range(GRID)]

    def beginning(self) -> int:
        """The index of the value next to `start`."""
        values = self.values()
        return min(range(len(values)), key=lambda i: abs(values[i] - self.start))


# The ends lie within what the optimizers' `fits` let through. Starts: the optimizers' defaults, which have their
# sources.
KNOBS = (
    Knob("deep-cache", "interval", 2, 8, 3, whole=True),
    Knob("first-block-cache", "threshold", 0.01, 0.33, 0.05),
    Knob("mag-cache", "threshold", 0.01, 0.33, 0.06),
    Knob("cache-dit", "threshold", 0.01, 0.33, 0.08),
    Knob("taylorseer-cache", "interval", 2, 9, 5, whole=True),
    Knob("faster-cache", "unconditional_skip", 2, 8, 5, whole=True),
    Knob("pyramid-attention-broadcast", "spatial_skip", 2, 6, 2, whole=True),
    Knob("guidance-cutoff", "fraction", 0.95, 0.15, 0.6),
    Knob("token-merging", "ratio", 0.05, 0.69, 0.5),  # 0.75 is the most that its tiles of 2 x 2 allow
)
FEWEST = 0.4  # of the steps that plain has


def steps_knob(steps: int) -> Knob | None:
    """Fewer steps than plain's; None where there are hardly any to take away."""
    gentle, harsh = steps - 1, max(1, round(steps * FEWEST))
    if gentle <= harsh:
        return None
    return Knob(STEPS, "", gentle, harsh, round(steps * 0.75), whole=True)


@dataclass(frozen=True, slots=True)
class Walked:
    """found: the index of the harshest value that keeps; None where none does. probed: indexes, as they were asked for.
    ended: nothing is left between what keeps and what does not; False where it was broken off."""

    found: int | None
    probed: tuple[int, ...]
    ended: bool


def bisected(count: int, start: int, keeps: Callable[[int], bool | None]) -> Walked:
    """The harshest of `count` values that keeps, where every gentler one keeps, too: assumed, and for the caller to
    check on what he measured. keeps: None breaks the walk off.

    First `start`, then the end on the side of interest, then halves.
    """
    low, high, probed = -1, count, list[int]()

    def asked(index: int) -> bool:
        nonlocal low, high
        answer = keeps(index)
        if answer is None:
            return False
        probed.append(index)
        low, high = (index, high) if answer else (low, index)
        return True

    going = asked(start)
    if going and high - low > 1:
        going = asked(count - 1 if low == start else 0)
    while going and high - low > 1:
        going = asked((low + high) // 2)
    return Walked(None if low < 0 else low, tuple(probed), going)
