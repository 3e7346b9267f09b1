"""Passes over rows: what is computed for a tensor's strips, from what, and which rows of each at a time.

Comes in: a graph and which of its operators work row by row. Goes out: Tasks, with the bytes that their strips take.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from safelight.vae.graph import Graph, Node
from safelight.vae.row import Row, Span
from safelight.vae.rows import row_of

if TYPE_CHECKING:
    from safelight.vae.plan import Schedule
    from safelight.vae.sampling import Crops


@dataclass(frozen=True)
class Sampling:
    """Statistics that come from crops (sampling.py). at: what crops are cut from. twins: of each node that is
    normalized the one in the crops' graph. schedule: of that graph, which begins with the crops."""

    at: Node
    twins: Mapping[Node, Node]
    schedule: "Schedule"
    cut: "Crops"

    @property
    def nbytes(self) -> int:
        """Of the crops and all that is computed of them."""
        return self.at.shape[1] * prod(self.cut.shape) * int(self.at.dtype.itemsize) + self.schedule.peak_bytes


@dataclass(frozen=True)
class Rows:
    """A graph and its operators' rows. whole: nodes that are needed as a whole by somebody. sampling: of statistics
    that are not counted. given: nodes whose statistics the run is given."""

    graph: Graph
    row: Mapping[Node, Row | None]
    whole: frozenset[Node]
    sampling: Sampling | None = None
    given: frozenset[Node] = frozenset()
    known: dict[Any, Any] = field(default_factory=dict)  # passes, which many plans share

    @cached_property
    def users(self) -> dict[Node, list[Node]]:
        return self.graph.users()

    @cached_property
    def normed(self) -> frozenset[Node]:
        """Whose mean and variance are to be counted."""
        elsewhere = self.given | frozenset(() if self.sampling is None else self.sampling.twins)
        return frozenset(self.all_normed) - elsewhere

    @cached_property
    def all_normed(self) -> list[Node]:
        """Whose mean and variance are asked for, in the order of computing."""
        asked = {row.norm for row in self.row.values() if row is not None}
        return [node for node in self.graph.nodes if node in asked]

    @cached_property
    def storable(self) -> list[Node]:
        """What a plan may store or compute again: inputs of norms, and sums that a convolution reads. The rest is
        computed where it is needed. Without norms one pass does it all, with nothing stored."""
        if not self.normed:
            return []
        return [node for node, row in self.row.items() if row and (node in self.normed or self._is_sum(node))]

    def _is_sum(self, node: Node) -> bool:
        return len(set(node.data)) > 1 and any((row := self.row[user]) and row.heavy for user in self.users[node])


def rows_of(graph: Graph) -> Rows:
    axes: dict[Node, int | None] = {}
    row: dict[Node, Row | None] = {}
    whole: set[Node] = set()
    for node in graph.nodes:
        row[node] = None if node in graph.inputs else row_of(node, axes)
        axes[node] = _axis_of_input(node, graph) if (found := row[node]) is None else found.axis
        reached = () if found is None else found.reach
        whole.update(given for given in node.data if given not in reached)
    return Rows(graph, row, frozenset(whole))


def _axis_of_input(node: Node, graph: Graph) -> int | None:
    """Pictures (batch, channels, rows, columns) and videos are in rows before anything is done with them."""
    dims = len(node.shape)
    return dims - 2 if node in graph.inputs and dims >= 4 else None


@dataclass(frozen=True)
class Task:
    """A pass over a node's rows. stored: they are kept in the arena. counted: their statistics are gathered. order:
    what is computed for it, in order, the node last; sources: what that is read from. strips: of the node's rows.

    transient: bytes of strips at the worst moment. leads: bytes by which a stored source must lie behind the result
    when it is overwritten. Where the node is no Row it is computed at once: one strip, no order.
    """

    node: Node
    stored: bool
    counted: bool
    order: tuple[Node, ...]
    sources: tuple[Node, ...]
    strips: tuple[Span, ...]
    transient: int = 0
    leads: Mapping[Node, int] = field(default_factory=dict)


def nbytes(node: Node) -> int:
    return prod(node.shape) * int(node.dtype.itemsize)


def row_bytes(node: Node, row: Row) -> int:
    return nbytes(node) // node.shape[row.axis]


def height_of(rows: Rows, node: Node) -> int:
    row = rows.row[node]
    return node.shape[-2 if row is None else row.axis] if len(node.shape) > 2 else 0


# -- which rows of each node -------------------------------------------------------------------------------------------


class Hull(NamedTuple):
    """Rows of a node for one strip: low to high are needed, of which those from fresh on are not there yet."""

    low: int
    fresh: int
    high: int


def hulls(rows: Rows, task: Task, strips: Sequence[Span]) -> list[dict[Node, Hull]]:
    """For each strip the rows of each node and source: from the first that anybody needs to the last.

    A heavy node makes only those that it has not made for the strip before.
    """
    found: list[dict[Node, Hull]] = []
    made: dict[Node, int] = {}
    for a, b in strips:
        needed: dict[Node, Hull] = {task.node: Hull(a, a, b)}
        for node in reversed(task.order):
            row = rows.row[node]
            assert row is not None, "a pass is made of rows"
            low, _, high = needed[node]
            fresh = min(max(low, made.get(node, 0)), high) if row.heavy else low
            needed[node] = Hull(low, fresh, high)
            for given, reach in row.reach.items():
                if fresh < high:
                    first, last = reach.rows(fresh, high)
                    known = needed.get(given, Hull(first, first, last))
                    needed[given] = Hull(low := min(known.low, first), low, max(known.high, last))
                elif given not in needed:
                    needed[given] = Hull(made[given], made[given], made[given])
        made = {node: hull.high for node, hull in needed.items()}
        found.append(needed)
    # what is not needed now may be needed later
    for needed, following in zip(found[-2::-1], found[:0:-1], strict=True):
        for node, hull in needed.items():
            if (row := rows.row[node]) is not None and row.heavy and following[node].low < hull.low:
                needed[node] = Hull(following[node].low, hull.fresh, hull.high)
    return found


def ends_of(rows: Rows, task: Task) -> list[list[tuple[Span, dict[Node, Hull]]]]:
    """(strip, hulls) of the first strips and of the last: in between all of them are alike."""
    first, last = task.strips[:3], task.strips[-4:]
    begun = list(zip(first, hulls(rows, task, first), strict=True))
    ended = list(zip(last, hulls(rows, task, last), strict=True))
    return [begun, ended if len(task.strips) <= 4 else ended[1:]]


def transient(rows: Rows, task: Task, strips: tuple[tuple[Span, Mapping[Node, Hull]], Any]) -> int:
    """Bytes of a strip at the worst moment. strips: it and the one after it, if any, for which tails are kept."""
    (_, here), following = strips[0], strips[1][1] if strips[1] else {}
    uses = {given: node for node in task.order for given in node.data}
    tails = {node: (hull.fresh - hull.low) * _row_bytes(rows, node) for node, hull in here.items()}
    most = prepared = _prepared(task)
    alive: dict[Node, int] = {}
    for node in task.order:
        row = rows.row[node]
        assert row is not None, "a pass is made of rows"
        hull = here[node]
        size = (hull.high - hull.low) * row_bytes(node, row)
        if not row.fresh:
            size = 0
        elif can_be_written_over(row) and (over := next((g for g in node.data if alive.get(g) == size), None)):
            alive[over] = 0
        alive[node] = size
        beside = size - tails[node] if row.heavy and 0 < tails[node] < size else 0
        beside += _moved(rows, node, here)
        most = max(most, prepared + sum(alive.values()) + beside + sum(tails.values()))
        if row.heavy:
            tails[node] = max(0, hull.high - following[node].low) * row_bytes(node, row) if following else 0
        for given in [given for given in alive if uses.get(given) is node]:
            del alive[given]
    return most


def _moved(rows: Rows, node: Node, here: Mapping[Node, Hull]) -> int:
    """Bytes of what a convolution reads of a batch: rows lie outermost in what is stored, and it wants pictures so."""
    if node.op != "convolution" or node.shape[0] == 1 or (row := rows.row[node.args[0]]) is None:
        return 0
    hull = here[node.args[0]]
    return (hull.high - hull.low) * row_bytes(node.args[0], row)


def _row_bytes(rows: Rows, node: Node) -> int:
    """Of what a tail is kept of."""
    row = rows.row[node]
    return row_bytes(node, row) if row is not None and row.heavy else 0


def _prepared(task: Task) -> int:
    """Bytes of the weights that a pass has in another order or form."""
    weights = {node.args[1] for node in task.order if node.op == "convolution"}
    return sum(nbytes(weight) for weight in weights if prod(weight.shape[2:]) > 1)


def can_be_written_over(row: Row) -> bool:
    """An operator that may write into its input."""
    return row.fresh and not row.heavy and row.norm is None
