"""Runs a schedule: pass after pass over strips of rows, with the statistics of the whole picture.

Comes in: a Schedule, the weights, one picture's or video's input. Goes out: what the module itself would have computed,
but for the order of sums, in the schedule's memory; or its rows, one strip after the other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from safelight.vae.graph import IMAGE_DIMS, WEIGHT, Made, Node, replaced
from safelight.vae.passes import Hull, Sampling, Task, can_be_written_over, hulls
from safelight.vae.plan import Arena, Schedule
from safelight.vae.row import Row
from safelight.vae.sampling import matched
from safelight.vae.stats import Statistics

Sink = Callable[[int, Any], None]  # the first row's number, rows in the order of the picture
VIEWS, NORMS = ("view", "_unsafe_view", "reshape"), ("native_group_norm", "native_layer_norm")
# operators that may write into their first input, under the name of the one that does
IN_PLACE = (
    "silu",
    "relu",
    "add",
    "sub",
    "mul",
    "div",
    "sigmoid",
    "tanh",
    "clamp",
    "hardtanh",
    "clamp_min",
    "neg",
    "exp",
)


@dataclass
class Run:
    """One picture's. weights: the module's tensors by name. sink: takes the result's rows instead of a tensor of it."""

    schedule: Schedule
    weights: Mapping[str, Any]
    sink: Sink | None = None
    values: dict[Node, Any] = field(default_factory=dict)
    statistics: dict[Node, Statistics] = field(default_factory=dict)
    prepared: dict[Node, Any] = field(default_factory=dict)
    blocks: dict[int, Any] = field(default_factory=dict)
    device: Any = None

    def of(self, *inputs: Any) -> Any:
        """inputs: with the shapes that the graph was recorded with. None where a sink took the rows."""
        self.device = inputs[0].device
        self.values.update(zip(self.schedule.rows.graph.inputs, inputs, strict=True))
        for number, task in enumerate(self.schedule.tasks):
            self._do(task)
            if (sampling := self.schedule.rows.sampling) is not None and task.node is sampling.at:
                self._sample(sampling)
            self._forget(number)
        return self.values.get(self.schedule.rows.graph.output)

    def _do(self, task: Task) -> None:
        node = task.node
        if task.order:
            Pass(self, task).over(self._place(task))
        elif not task.counted or node not in self.values:
            self.values[node] = self._at_once(node)
        if task.counted and not task.order:
            statistics = self._counting(node)
            statistics.add(self.values[node])

    def _sample(self, sampling: Sampling) -> None:
        """Statistics of crops for those of the whole."""
        whole = self.values[sampling.at]
        part = Run(sampling.schedule, self.weights)
        part.of(matched(sampling.cut.of(whole), whole))
        self.statistics.update({node: part.statistics[twin] for node, twin in sampling.twins.items()})

    def _at_once(self, node: Node) -> Any:
        function, given = node.function, replaced(node.args, self.read)
        named = {key: replaced(value, self.read) for key, value in node.kwargs.items()}
        if node.op in VIEWS:  # the tensor may lie in memory in another order than when it was recorded
            return given[0].reshape(node.shape)
        if node.op in NORMS:
            given = (given[0].contiguous(), *given[1:])
        if node.op == "linear":  # with more dimensions, and transposed, torch adds the bias in a second tensor
            return function(given[0].flatten(0, -2), *given[1:], **named).view(node.shape)
        made = function(*given, **named)
        return made if node.which is None else made[node.which]

    def read(self, node: Node) -> Any:
        """For an operator that takes all at once, and may have been recorded with a view of it."""
        if node.op == WEIGHT:
            return self._found(node)
        return self.values[node] if self.schedule.rows.row[node] is None else self.values[node].contiguous()

    def _found(self, node: Node) -> Any:
        if isinstance(node.function, Made):
            return node.function.make(*(self._found(given) for given in node.function.of))
        return self.weights[node.name]

    def weight(self, node: Node) -> Any:
        if node not in self.prepared:
            self.prepared[node] = _channels_last(self._found(node))
        return self.prepared[node]

    def _counting(self, node: Node) -> Statistics:
        made = Statistics(node.shape[0], node.shape[1], self.device)
        self.statistics[node] = made
        return made

    def _place(self, task: Task) -> Any:
        """Where a pass puts its rows; None for one that counts alone."""
        import torch

        node = task.node
        if task.stored:
            self.values[node] = self._stored(node)
        elif node is self.schedule.rows.graph.output and self.sink is None:
            self.values[node] = torch.empty(node.shape, dtype=node.dtype, device=self.device)
        return self.values.get(node)

    def _stored(self, node: Node) -> Any:
        """Its rows are one after the other in memory, and in each row the channels innermost."""
        import torch

        row = self.schedule.rows.row[node]
        assert row is not None, "only rows are stored"
        order = sorted(range(len(node.shape)), key=lambda dim: (dim != row.axis, dim == 1, dim))
        strides, step = [0] * len(order), 1
        for dim in reversed(order):
            strides[dim], step = step, step * node.shape[dim]
        for index, arena in enumerate(self.schedule.arenas):
            if node in arena.offsets:
                block = self._block(index, arena).view(node.dtype)
                return block.as_strided(node.shape, strides, arena.offsets[node] // node.dtype.itemsize)
        return torch.empty_strided(node.shape, strides, dtype=node.dtype, device=self.device)

    def _block(self, index: int, arena: Arena) -> Any:
        import torch

        if index not in self.blocks:
            nbytes = -(-arena.nbytes // 64) * 64
            self.blocks[index] = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        return self.blocks[index]

    def _forget(self, number: int) -> None:
        """What no later task reads; the weights that were prepared for a pass."""
        for node in [node for node in self.values if self.schedule.last.get(node, -1) <= number]:
            if node is not self.schedule.rows.graph.output:
                del self.values[node]
        for index, arena in enumerate(self.schedule.arenas):
            if arena.last <= number:
                self.blocks.pop(index, None)
        self.prepared.clear()


def _channels_last(weight: Any) -> Any:
    import torch

    return weight.contiguous(memory_format=torch.channels_last) if weight.dim() == IMAGE_DIMS else weight


@dataclass
class Pass:
    """A task's strips. windows: of each node the rows that are there, from which row on. tails: of heavy nodes the rows
    that the next strip needs again."""

    run: Run
    task: Task
    windows: dict[Node, tuple[int, Any]] = field(default_factory=dict)
    tails: dict[Node, tuple[int, Any]] = field(default_factory=dict)

    def over(self, place: Any) -> None:
        """place: a tensor for all rows, None where they are only counted or taken by the sink."""
        task, rows = self.task, self.run.schedule.rows
        row = rows.row[task.node]
        assert row is not None, "a pass is made of rows"
        statistics = self.run._counting(task.node) if task.counted else None
        spans = hulls(rows, task, task.strips)
        uses = {given: node for node in task.order for given in node.data}
        for number, (a, b) in enumerate(task.strips):
            following = spans[number + 1] if number + 1 < len(spans) else {}
            for node in task.order:
                self._make(node, spans[number][node], following.get(node), uses)
            made = self.windows.pop(task.node)[1]
            if statistics is not None:
                statistics.add(made)
            if place is not None:
                place.narrow(row.axis, a, b - a).copy_(made)
            elif task.node is rows.graph.output and self.run.sink is not None:
                self.run.sink(a, made)
            self.windows.clear()

    def _make(self, node: Node, hull: Hull, following: Hull | None, uses: Mapping[Node, Node]) -> None:
        row = self.run.schedule.rows.row[node]
        assert row is not None, "a pass is made of rows"
        made = self._rows(node, row, hull, uses) if hull.fresh < hull.high else None
        if hull.fresh > hull.low:
            made = self._joined(node, row, hull, made)
        self.windows[node] = hull.low, made
        if row.heavy:
            self.tails.pop(node, None)
            if following is not None and following.low < hull.high:
                assert made is not None, "there are rows to keep"
                tail = made.narrow(row.axis, following.low - hull.low, hull.high - following.low)
                self.tails[node] = following.low, tail.clone()
        for given in [given for given in node.data if uses.get(given) is node]:
            self.windows.pop(given, None)

    def _joined(self, node: Node, row: Row, hull: Hull, made: Any) -> Any:
        """Rows of the strip before, then the fresh ones."""
        import torch

        start, tail = self.tails[node]
        tail = tail.narrow(row.axis, hull.low - start, hull.fresh - hull.low)
        return tail if made is None else torch.cat((tail, made), row.axis)

    def _rows(self, node: Node, row: Row, hull: Hull, uses: Mapping[Node, Node]) -> Any:
        a, b = hull.fresh, hull.high
        if row.norm is not None:
            return self._normalized(node, row, a, b)

        def read(given: Node) -> Any:
            if given.op == WEIGHT:
                return self.run.weight(given)
            if given not in row.reach:
                return self.run.values[given]
            return self._read(given, row, a, b)

        if (
            node.op in IN_PLACE
            and can_be_written_over(row)
            and (made := self._written(node, row, read, uses)) is not None
        ):
            return made
        if node.op == "convolution" and len(node.shape) == IMAGE_DIMS:
            return row.run(lambda given: _channels_last(read(given)), a, b)
        return row.run(read, a, b)

    def _read(self, given: Node, row: Row, a: int, b: int) -> Any:
        reach = row.reach[given]
        first, last = reach.rows(a, b)
        start, rows = self.windows.get(given) or (0, self.run.values[given])
        if first == start and last - first == rows.shape[reach.axis]:
            return rows
        return rows.narrow(reach.axis, first - start, last - first)

    def _written(self, node: Node, row: Row, read: Callable[[Node], Any], uses: Mapping[Node, Node]) -> Any:
        """Into an input that nobody needs after it; None where there is none."""
        import torch

        first = node.args[0]
        args = node.args
        if node.op == "add" and not node.kwargs and len(args) == 2 and not self._is_free(first, node, uses):
            args = args[::-1]  # sums commute
            first = args[0]
        if not isinstance(first, Node) or not self._is_free(first, node, uses) or first.dtype != node.dtype:
            return None
        given = replaced(args, read)
        if given[0].numel() * node.shape[row.axis] != prod(node.shape) * given[0].shape[row.reach[first].axis]:
            return None
        packet = getattr(torch.ops.aten, f"{node.op}_")
        return packet(*given, **node.kwargs)

    def _is_free(self, given: Any, node: Node, uses: Mapping[Node, Node]) -> bool:
        """Computed in this strip, in memory of its own, and not needed after `node`."""
        if not isinstance(given, Node) or given not in self.windows or uses.get(given) is not node:
            return False
        row = self.run.schedule.rows.row[given]
        return row is not None and (row.fresh or row.norm is not None) and node.data.count(given) == 1

    def _normalized(self, node: Node, row: Row, a: int, b: int) -> Any:
        """Group norm with the statistics of the whole: for each channel a mean and a variance."""
        import torch

        given, weight, bias, *_, groups, eps = node.args
        rows = self._read(given, row, a, b)
        mean, variance = self.run.statistics[given].groups(groups)
        weight, bias = (None if part is None else self.run.weight(part).float() for part in (weight, bias))
        if len(rows) == 1:
            return torch.nn.functional.batch_norm(rows, mean[0], variance[0], weight, bias, False, 0.0, eps)
        made = torch.empty_like(rows)
        for item, into, *statistics in zip(rows.split(1), made.split(1), mean, variance, strict=True):
            into.copy_(torch.nn.functional.batch_norm(item, *statistics, weight, bias, False, 0.0, eps))
        return made
