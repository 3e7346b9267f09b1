"""How fast a device computes and moves numbers: measured by speed.py in about two seconds, or told by cards.py.

Goes out: a frozen Rates, whose curves say how many seconds an operator of a kind takes for so much work.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

COMPUTING = ("matmul", "convolution", "attention")  # their work is counted in FLOP
MOVING = ("copy", "pointwise", "activation", "norm")  # theirs in bytes read and written
KINDS = (*COMPUTING, *MOVING)


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds that one operator takes for so much work (FLOP or bytes), from measured points, work ascending.

    Straight in logarithms between two points. Less than the first point takes as long as the first; more than the last
    takes proportionally longer.
    """

    points: tuple[tuple[float, float], ...]

    def seconds(self, work: float) -> float:
        first, last = self.points[0], self.points[-1]
        if work <= first[0]:
            return first[1]
        if work >= last[0]:
            return last[1] * work / last[0]
        (low, quick), (high, slow) = next(pair for pair in pairwise(self.points) if work <= pair[1][0])
        share = math.log(work / low) / math.log(high / low)
        return quick * (slow / quick) ** share

    @classmethod
    def straight(cls, rate: float, least: float) -> "Curve":
        """work / rate seconds, and never less than `least`."""
        return cls(((least * rate, least),))


@dataclass(frozen=True, slots=True)
class Rates:
    """curves: by kind (KINDS) and dtype ("float32", "bfloat16", "float16"; "tf32", "float8" where it has the unit).

    launch: seconds that the host needs per operator to call it from Python (diffusers' and torch's own work included).
    queued: the device works through a queue while the host goes on, so that only the longer of the two counts.
    link: bytes/s from pinned host memory to the device; None where both are the same memory.
    source: where the numbers come from ("measured here", an URL, ...).
    """

    curves: Mapping[str, Mapping[str, Curve]]
    launch: float
    queued: bool
    link: float | None
    source: str

    def seconds(self, kind: str, dtype: str, work: float) -> float:
        """Of one operator on the device. A dtype that has no curve is computed in float32."""
        curves = self.curves[kind]
        return curves.get(dtype, curves["float32"]).seconds(work)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it back, whose tuples are lists by then."""
        return asdict(self)

    @classmethod
    def from_dict(cls, table: Any) -> "Rates":
        """Raises ValueError for whatever is not the as_dict of Rates: a file may be damaged in any way."""
        try:
            curves = {
                kind: {dtype: Curve(_points(curve["points"])) for dtype, curve in table["curves"][kind].items()}
                for kind in KINDS
            }
            link = None if table["link"] is None else _positive(table["link"])
            rates = cls(curves, _positive(table["launch"]), bool(table["queued"]), link, str(table["source"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"these are no rates: {error!r}") from error
        if not all("float32" in found for found in curves.values()):
            raise ValueError("these are no rates: a kind of work has no float32")
        return rates


def _points(pairs: Any) -> tuple[tuple[float, float], ...]:
    points = tuple((_positive(work), _positive(seconds)) for work, seconds in pairs)
    if not points or any(low >= high or quick > slow for (low, quick), (high, slow) in pairwise(points)):
        raise ValueError(f"these are no points of a curve: {pairs!r:.80}")
    return points


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{value!r:.80} is no positive number")
    return float(value)
