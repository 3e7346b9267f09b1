"""Plans of a decode from the fastest to the smallest: found by computing again what costs the least for its bytes."""

from collections.abc import Iterable, Sequence
from typing import Any

from safelight.vae.graph import Node
from safelight.vae.passes import Rows
from safelight.vae.plan import Schedule, schedule

SLACK = 1.04
FEW = 16  # tensors that are weighed one by one
LOWER = 0.7  # of the most that is alive: what a step of the search wants to come below


def plans(rows: Rows, strip_bytes: int) -> list[Schedule]:
    """By rising bytes; none that another beats in both.

    Begins with all stored; then step by step the tensor is computed again instead that costs the least work for what
    it takes away of the moments at which most is alive.
    """
    stored = frozenset(rows.storable)
    tried = [schedule(rows, stored, strip_bytes)]
    kinds = _alike(stored)
    while kinds:
        options = [(schedule(rows, stored - kind, strip_bytes), kind) for kind in kinds]
        limit = LOWER * max(tried[-1].loads)
        best, gone = min(options, key=lambda option: _price(tried[-1], option[0], limit))
        stored -= gone
        kinds.remove(gone)
        tried.append(best)
    return frontier([_filled(rows, made, strip_bytes) for made in frontier(tried)])


def _alike(nodes: Iterable[Node]) -> list[frozenset[Node]]:
    """Of one operator and one shape: as the residual blocks of a level, which want the same."""
    kinds: dict[Any, set[Node]] = {}
    for node in nodes:
        kinds.setdefault((node.op, node.shape), set()).add(node)
    return [frozenset(kind) for kind in kinds.values()]


def _filled(rows: Rows, made: Schedule, strip_bytes: int) -> Schedule:
    """With everything stored that still has room: what came to be computed again before the peak was elsewhere."""
    most = SLACK * made.peak_bytes  # a few rows more
    while True:
        stored = made.stored
        left = [node for node in rows.storable if node not in stored]
        more = [frozenset({node}) for node in left] if len(left) <= FEW else _alike(left)
        options = [schedule(rows, stored | kind, strip_bytes) for kind in more]
        fitting = [option for option in options if option.peak_bytes <= most and option.work < made.work]
        if not fitting:
            return made
        made = min(fitting, key=lambda option: option.work)


def _price(before: Schedule, after: Schedule, limit: float) -> tuple[float, float]:
    """Of a byte less over the limit, in work; then the work."""
    less = _over(before, limit) - _over(after, limit)
    more = after.work - before.work
    return (more / less if less > 0 else float("inf")), more


def _over(made: Schedule, limit: float) -> float:
    return sum(max(0.0, load - limit) for load in made.loads)


def frontier(made: Sequence[Schedule]) -> list[Schedule]:
    best: list[Schedule] = []
    for one in sorted(made, key=lambda one: (one.work, one.peak_bytes)):
        if not best or one.peak_bytes < best[-1].peak_bytes:
            best.append(one)
    return best[::-1]


def with_strips(made: Schedule, strip_bytes: int) -> Schedule:
    return schedule(made.rows, made.stored, strip_bytes)
