"""What is stored of a decode, what is computed again, and where it lies: plans from the fastest to the smallest.

Comes in: a graph and which of its operators work row by row. Goes out: Schedules with predicted work and bytes; every
one computes the same picture. A tensor is stored in one arena, where a result may be written over an input that is read
for the last time, as long as the writing never overtakes the reading.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from math import lcm, prod
from typing import Any, NamedTuple

from safelight.vae.graph import Graph, Node
from safelight.vae.rows import Row, Span, row_of

STRIP_BYTES = {"cpu": 8 * 2**20}  # as fast as larger ones: they stay in the cache
STRIP_BYTES_ELSEWHERE = 128 * 2**20  # a card wants much work in one call
LEAST_STRIP_BYTES = 2**18
MOVING = 60  # multiply-adds that take as long as one number of an operator that only moves


@dataclass(frozen=True)
class Rows:
    """A graph and its operators' rows. whole: nodes that are needed as a whole by somebody."""

    graph: Graph
    row: Mapping[Node, Row | None]
    whole: frozenset[Node]
    known: dict[Any, Any] = field(default_factory=dict)  # passes, which many plans share

    @cached_property
    def users(self) -> dict[Node, list[Node]]:
        return self.graph.users()

    @cached_property
    def normed(self) -> frozenset[Node]:
        """Whose mean and variance are asked for."""
        return frozenset(row.norm for row in self.row.values() if row is not None and row.norm is not None)

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


@dataclass(frozen=True)
class Arena:
    """One allocation. offsets: bytes from its beginning. born, last: the tasks from which and to which it is there."""

    offsets: Mapping[Node, int]
    nbytes: int
    born: int
    last: int


@dataclass(frozen=True)
class Schedule:
    """arenas: what is stored lies in one of them, or by itself where much else is alive (around attention). last: the
    task that reads a node last. loads: bytes alive in each task. peak_bytes: of all that is computed, without weights
    and inputs. work: in multiply-adds."""

    rows: Rows
    tasks: tuple[Task, ...]
    last: Mapping[Node, int]
    arenas: tuple[Arena, ...]
    loads: tuple[int, ...]
    peak_bytes: int
    work: float

    @property
    def stored(self) -> frozenset[Node]:
        return frozenset(task.node for task in self.tasks if task.stored) & frozenset(self.rows.storable)


def nbytes(node: Node) -> int:
    return prod(node.shape) * int(node.dtype.itemsize)


def row_bytes(node: Node, row: Row) -> int:
    return nbytes(node) // node.shape[row.axis]


def schedule(rows: Rows, stored: frozenset[Node], strip_bytes: int) -> Schedule:
    """stored: of rows.storable; what somebody needs as a whole is stored too."""
    kept = stored | {node for node in rows.whole if rows.row[node] is not None}
    tasks = tuple(_tasks(rows, kept, strip_bytes))
    last = {source: number for number, task in enumerate(tasks) for source in task.sources}
    arenas = tuple(_arenas(tasks, last))
    loads, peak, alive = [], 0, dict.fromkeys(rows.graph.inputs, 0)  # these are there before
    inside = {node for arena in arenas for node in arena.offsets}
    for number, task in enumerate(tasks):
        alive.setdefault(task.node, nbytes(task.node) * (task.stored or _is_made(rows, task)))
        loads.append(task.transient + sum(alive.values()))
        held = sum(arena.nbytes for arena in arenas if arena.born <= number <= arena.last)
        beside = sum(size for node, size in alive.items() if node not in inside)
        peak = max(peak, held + beside + task.transient)
        alive = {node: size for node, size in alive.items() if last.get(node, -1) > number}
    work = sum(_work(rows, node) for task in tasks for node in task.order or (task.node,))
    return Schedule(rows, tasks, last, arenas, tuple(loads), peak, work)


def _is_made(rows: Rows, task: Task) -> bool:
    """In memory of its own: what is computed at once, and the result."""
    return task.node is rows.graph.output or (rows.row[task.node] is None and not task.counted)


def _tasks(rows: Rows, kept: frozenset[Node], strip_bytes: int) -> Iterator[Task]:
    for node in rows.graph.nodes:
        row = rows.row[node]
        counted = node in rows.normed
        if row is None:
            if node not in rows.graph.inputs:
                yield Task(node, False, counted, (), tuple(dict.fromkeys(node.data)), ((0, 1),))
            elif counted:
                yield Task(node, False, True, (), (node,), ((0, 1),))
        elif node in kept or counted or node is rows.graph.output:
            yield replace(_passed(rows, kept, node, strip_bytes), stored=node in kept, counted=counted)


def _passed(rows: Rows, kept: frozenset[Node], node: Node, strip_bytes: int) -> Task:
    order, sources = _pass(rows, kept, node)
    key = order, sources, strip_bytes
    if key not in rows.known:
        task = Task(node, False, False, order, sources, _strips(rows, order, sources, node, strip_bytes))
        ends = _ends(rows, task)
        leads = {source: _lead(rows, task, source, ends) for source in sources if rows.row[source] is not None}
        most = max(transient(rows, task, strips) for end in ends for strips in zip(end, (*end[1:], None), strict=True))
        rows.known[key] = replace(task, transient=most, leads=leads)
    return rows.known[key]


def _pass(rows: Rows, kept: frozenset[Node], target: Node) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """What is computed for it, in order, and what that is read from."""
    sources: dict[Node, None] = {}
    inside, waiting = {target}, [target]
    while waiting:
        for given in dict.fromkeys(waiting.pop().data):
            if given in kept or rows.row[given] is None:
                sources[given] = None
            elif given not in inside:
                inside.add(given)
                waiting.append(given)
    return tuple(node for node in rows.graph.nodes if node in inside), tuple(sources)


def _strips(
    rows: Rows, order: Sequence[Node], sources: Sequence[Node], target: Node, strip_bytes: int
) -> tuple[Span, ...]:
    """Of even height: the widest operator's rows for it are of so many bytes. Strips begin where rows of every source
    begin, so that none is read by halves."""
    height = _height(rows, target)
    widest = max(nbytes(node) for node in order) / height
    whole = [rows_in for node in sources if (rows_in := _height(rows, node)) and height % rows_in == 0]
    align = lcm(*(height // rows_in for rows_in in whole)) if whole else 1
    most = max(align, int(strip_bytes / widest) // align * align)
    count = -(-height // most)
    each = -(-height // count // align) * align if count > 1 else height
    return tuple((a, min(a + each, height)) for a in range(0, height, each))


def _height(rows: Rows, node: Node) -> int:
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
    for needed, following in zip(
        found[-2::-1], found[:0:-1], strict=True
    ):  # what is not needed now may be needed later
        for node, hull in needed.items():
            if (row := rows.row[node]) is not None and row.heavy and following[node].low < hull.low:
                needed[node] = Hull(following[node].low, hull.fresh, hull.high)
    return found


def _ends(rows: Rows, task: Task) -> list[list[tuple[Span, dict[Node, Hull]]]]:
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
        joined = size - tails[node] if row.heavy and 0 < tails[node] < size else 0
        most = max(most, prepared + sum(alive.values()) + joined + sum(tails.values()))
        if row.heavy:
            tails[node] = max(0, hull.high - following[node].low) * row_bytes(node, row) if following else 0
        for given in [given for given in alive if uses.get(given) is node]:
            del alive[given]
    return most


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


# -- the arena ---------------------------------------------------------------------------------------------------------


def _arenas(tasks: Sequence[Task], last: Mapping[Node, int]) -> Iterator[Arena]:
    """One before what is computed at once (in a decoder attention, at latent size), and one after."""
    at_once = [number for number, task in enumerate(tasks) if not task.order and not task.counted]
    first, end = (at_once[0], at_once[-1]) if at_once else (len(tasks), len(tasks))
    born = {task.node: number for number, task in enumerate(tasks) if task.stored}
    for nodes in ([n for n, at in born.items() if last[n] < first], [n for n, at in born.items() if at > end]):
        if nodes:
            offsets = _placed(tasks, last, {node: born[node] for node in nodes})
            size = max(offset + nbytes(node) for node, offset in offsets.items())
            yield Arena(offsets, size, min(born[node] for node in nodes), max(last[node] for node in nodes))


def _placed(tasks: Sequence[Task], last: Mapping[Node, int], born: Mapping[Node, int]) -> dict[Node, int]:
    """The latest first, each at the lowest place that is free while it is needed."""
    offsets: dict[Node, int] = {}
    for node in sorted(born, key=lambda node: -born[node]):
        taken = []
        for other, at in offsets.items():
            if last[node] < born[other] or last[other] < born[node]:
                continue
            lead = tasks[born[other]].leads.get(node) if last[node] == born[other] else None
            taken.append((at - nbytes(node), at + (nbytes(other) if lead is None else lead)))
        offset = 0
        for low, high in sorted(taken):
            if low < offset < high:
                offset = -(-high // 64) * 64
        offsets[node] = offset
    return offsets


def _lead(rows: Rows, task: Task, source: Node, ends: Sequence[Sequence[tuple[Span, Mapping[Node, Hull]]]]) -> int:
    """So that no row is overwritten that is still to be read."""
    row, own = rows.row[source], rows.row[task.node]
    assert row is not None and own is not None, "only rows are stored"
    of_result, of_source = row_bytes(task.node, own), row_bytes(source, row)
    pairs = [pair for end in ends for pair in pairwise(end)]
    behind = [strip[1] * of_result - spans[source].low * of_source for (strip, _), (_, spans) in pairs]
    return max(behind, default=-nbytes(source))


# -- work --------------------------------------------------------------------------------------------------------------


def _work(rows: Rows, node: Node) -> float:
    """Multiply-adds of computing all of it once."""
    numbers = prod(node.shape)
    if node.op == "convolution":
        weight = node.args[1]
        given = prod(node.args[0].shape[1:2]) / node.args[8]
        area = prod(weight.shape[2:])
        if node.args[6]:
            area /= prod(node.args[3])
        return numbers * given * area
    row = rows.row[node]
    return float(MOVING * numbers) if row is None or row.fresh or row.norm is not None else 0.0


def whole_work(graph: Graph) -> float:
    """Multiply-adds of the module itself."""
    rows = rows_of(graph)
    return sum(_work(rows, node) for node in graph.nodes)


# -- from the fastest to the smallest ----------------------------------------------------------------------------------


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
