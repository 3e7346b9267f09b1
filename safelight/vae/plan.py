"""What is stored of a decode, what is computed again, and where it lies: plans from the fastest to the smallest.

Comes in: a graph and which of its operators work row by row. Goes out: Schedules with predicted work and bytes; every
one computes the same picture. A tensor is stored in one arena, where a result may be written over an input that is read
for the last time, as long as the writing never overtakes the reading.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import lcm, prod

from safelight.vae.attention import ATTENTION, IN_CHUNKS, beside_bytes
from safelight.vae.graph import Graph, Node
from safelight.vae.passes import Hull, Rows, Task, ends_of, height_of, nbytes, row_bytes, rows_of, transient
from safelight.vae.row import Span

STRIP_BYTES = {"cpu": 8 * 2**20}  # as fast as larger ones: they stay in the cache
STRIP_BYTES_ELSEWHERE = 128 * 2**20  # a card wants much work in one call
LEAST_STRIP_BYTES = 2**18
CALL = 3e6  # multiply-adds that take as long as what a call costs beside them: 30 microseconds
MOVING = 60  # multiply-adds that take as long as one number of an operator that only moves


def mib(nbytes: int) -> str:
    """As much as is needed, so rounded up."""
    return f"{-(-nbytes // 2**20)} MiB"


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
    work += CALL * sum(len(task.order) * len(task.strips) for task in tasks)
    work += rows.sampling.schedule.work if rows.sampling is not None else 0
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
                yield Task(node, False, counted, (), tuple(dict.fromkeys(node.data)), ((0, 1),), beside_bytes(node))
            elif counted:
                yield Task(node, False, True, (), (node,), ((0, 1),))
        elif node in kept or counted or node is rows.graph.output:
            task = replace(_passed(rows, kept, node, strip_bytes), stored=node in kept, counted=counted)
            if rows.sampling is not None and node is rows.sampling.at:
                task = replace(task, transient=max(task.transient, rows.sampling.nbytes))
            yield task


def _passed(rows: Rows, kept: frozenset[Node], node: Node, strip_bytes: int) -> Task:
    order, sources = _pass(rows, kept, node)
    key = order, sources, strip_bytes
    if key not in rows.known:
        task = Task(node, False, False, order, sources, _strips(rows, order, sources, node, strip_bytes))
        ends = ends_of(rows, task)
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
    height = height_of(rows, target)
    widest = max(nbytes(node) for node in order) / height
    whole = [rows_in for node in sources if (rows_in := height_of(rows, node)) and height % rows_in == 0]
    align = lcm(*(height // rows_in for rows_in in whole)) if whole else 1
    most = max(align, int(strip_bytes / widest) // align * align)
    count = -(-height // most)
    each = -(-height // count // align) * align if count > 1 else height
    return tuple((a, min(a + each, height)) for a in range(0, height, each))


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
    if node.op in (ATTENTION, IN_CHUNKS):
        return 2.0 * numbers * node.args[1].shape[-2]
    row = rows.row[node]
    return float(MOVING * numbers) if row is None or row.fresh or row.norm is not None else 0.0


def whole_work(graph: Graph) -> float:
    """Multiply-adds of the module itself."""
    rows = rows_of(graph)
    return sum(_work(rows, node) for node in graph.nodes)
