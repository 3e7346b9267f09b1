"""Which rows of its inputs an operator needs for some of its own, and how it makes them.

Comes in: a node of a graph, and where its inputs have their rows. Goes out: a Row, or None for what needs all of its
inputs at once (attention, sums over the picture). One line in RULES for each operator; a picture's rows may lie in any
dimension, as models permute and reshape.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from safelight.vae.graph import Node, replaced

Span = tuple[int, int]  # rows from, to
Read = Callable[[Node], Any]  # of a data input the rows that are needed (or all of it), of a weight the weight
Axes = Mapping[Node, int | None]


@dataclass(frozen=True, slots=True)
class Reach:
    """axis: the dimension of an input's rows. rows: those that rows from, to of the result need; within the input."""

    axis: int
    rows: Callable[[int, int], Span]


@dataclass(frozen=True, slots=True)
class Row:
    """axis: the dimension of the result's rows. reach: by input; one that is not in it is needed whole.

    run: makes rows a to b from what it reads. heavy: computing a row twice is worth avoiding. fresh: the result is in
    memory of its own. norm: it normalizes by the mean and variance of all of its input, which are to be given.
    """

    axis: int
    reach: Mapping[Node, Reach]
    run: Callable[[Read, int, int], Any]
    heavy: bool = False
    fresh: bool = True
    norm: Node | None = None


Rule = Callable[[Node, Axes], Row | None]


def row_of(node: Node, axes: Axes) -> Row | None:
    """axes: of all data inputs; None is that of a tensor that is there as a whole, of which any dimension will do."""
    rule = RULES.get(node.op)
    return None if rule is None or not node.data else rule(node, axes)


def _same(a: int, b: int) -> Span:
    return a, b


def _call(node: Node, read: Read, *args: Any) -> Any:
    """The operator itself on rows; args: in the place of its first ones."""
    given = (*args, *node.args[len(args) :])
    made = node.function(*replaced(given, read), **{key: replaced(value, read) for key, value in node.kwargs.items()})
    return made if node.which is None else made[node.which]


# -- every pixel by itself ---------------------------------------------------------------------------------------------


def _pointwise(node: Node, axes: Axes) -> Row | None:
    """Inputs are aligned at their last dimensions, and one of size 1 serves all rows."""
    found = {len(given.shape) - axis for given in node.data if (axis := axes[given]) is not None}
    if len(found) != 1:
        return None
    from_right = found.pop()
    axis = len(node.shape) - from_right
    reach = {}
    for given in node.data:
        own = len(given.shape) - from_right
        if own < 0 or given.shape[own] != node.shape[axis]:
            if axes[given] is not None:
                return None  # rows that would have to be repeated
            continue
        reach[given] = Reach(own, _same)
    return Row(axis, reach, lambda read, a, b: _call(node, read))


def _dims(value: Any, count: int) -> set[int]:
    return {dim % count for dim in (value if isinstance(value, list | tuple) else [value])}


def _over(place: int, keep: int | None) -> Rule:
    """Sums, means and norms over some dimensions, named by the argument at `place`; keep: the place of keepdim."""

    def rule(node: Node, axes: Axes) -> Row | None:
        given = node.data[0]
        axis = axes[given]
        dims = node.args[place] if len(node.args) > place else None
        if axis is None or not dims or axis in (taken := _dims(dims, len(given.shape))):
            return None
        keeps = keep is not None and len(node.args) > keep and node.args[keep]
        own = axis if keeps else axis - sum(dim < axis for dim in taken)
        return Row(own, {given: Reach(axis, _same)}, lambda read, a, b: _call(node, read))

    return rule


def _along(place: int) -> Rule:
    """A softmax, a concatenation: along a dimension that is not that of the rows."""

    def rule(node: Node, axes: Axes) -> Row | None:
        known = {axis for given in node.data if (axis := axes[given]) is not None}
        if len(known) != 1:
            return None
        axis = known.pop()
        dim = node.args[place] if len(node.args) > place else 0
        alike = all(len(given.shape) == len(node.shape) for given in node.data)
        if not alike or dim % len(node.shape) == axis:
            return None
        return Row(axis, {given: Reach(axis, _same) for given in node.data}, lambda read, a, b: _call(node, read))

    return rule


def _layer_norm(node: Node, axes: Axes) -> Row | None:
    given = node.data[0]
    axis = axes[given]
    if axis is None or axis >= len(given.shape) - len(node.args[1]) or node.which not in (None, 0):
        return None
    return Row(axis, {given: Reach(axis, _same)}, lambda read, a, b: _call(node, read))


# -- convolutions ------------------------------------------------------------------------------------------------------


def _convolution(node: Node, axes: Axes) -> Row | None:
    """Of pictures (batch, channels, rows, columns) and videos (batch, channels, frames, rows, columns)."""
    given, weight = node.args[:2]
    axis = len(node.shape) - 2
    if len(node.shape) not in (4, 5) or axes[given] not in (None, axis) or len(node.data) > 1:
        return None
    stride, padding, dilation, transposed = (node.args[i] for i in (3, 4, 5, 6))
    place = axis - 2
    step, pad, size, rows = stride[place], padding[place], weight.shape[axis], given.shape[axis]
    if transposed:
        return _transposed(node, given, axis, step, pad, size, rows)
    reached = (size - 1) * dilation[place]

    def wanted(a: int, b: int) -> Span:
        return a * step - pad, (b - 1) * step - pad + reached + 1

    def reach(a: int, b: int) -> Span:
        low, high = wanted(a, b)
        return max(low, 0), min(high, rows)

    def run(read: Read, a: int, b: int) -> Any:
        import torch

        (low, high), (first, last) = wanted(a, b), reach(a, b)
        above, below = first - low, last - high
        x, pads = read(given), list(padding)
        pads[place] = most = max(above, -below)
        if (most - above) % step:
            x = torch.nn.functional.pad(x, (*[0, 0] * (len(node.shape) - 1 - axis), above, -below))
            pads[place] = most = above = 0
        made = _call(node, read, x, weight, node.args[2], stride, pads)
        return made.narrow(axis, (most - above) // step, b - a)

    return Row(axis, {given: Reach(axis, reach)}, run, heavy=True)


def _transposed(node: Node, given: Node, axis: int, step: int, pad: int, size: int, rows: int) -> Row | None:
    place = axis - 2
    if node.args[5][place] != 1 or node.args[7][place]:
        return None

    def reach(a: int, b: int) -> Span:
        return max(-(-(a + pad - size + 1) // step), 0), min((b - 1 + pad) // step + 1, rows)

    def run(read: Read, a: int, b: int) -> Any:
        first, last = reach(a, b)
        above = a - (first * step - pad)
        below = (last - 1) * step - pad + size - b
        pads = list(node.args[4])
        pads[place] = cut = min(above, below)
        made = _call(node, read, read(given), node.args[1], node.args[2], node.args[3], pads)
        return made.narrow(axis, above - cut, b - a)

    return Row(axis, {given: Reach(axis, reach)}, run, heavy=True)


def _enlarged(node: Node, axes: Axes) -> Row | None:
    """Nearest neighbours, by a whole number of rows and columns."""
    given = node.data[0]
    axis = len(node.shape) - 2
    times, rest = divmod(node.shape[axis], given.shape[axis])
    if (
        axes[given] not in (None, axis)
        or rest
        or any(node.shape[i] % given.shape[i] for i in range(2, len(node.shape)))
    ):
        return None

    def reach(a: int, b: int) -> Span:
        return a // times, -(-b // times)

    def run(read: Read, a: int, b: int) -> Any:
        x = read(given)
        made = x
        for dim in range(2, len(node.shape)):
            if (by := node.shape[dim] // given.shape[dim]) > 1:
                made = made.repeat_interleave(by, dim)
        return made.narrow(axis, a - a // times * times, b - a)

    return Row(axis, {given: Reach(axis, reach)}, run)


def _group_norm(node: Node, axes: Axes) -> Row | None:
    """With the statistics given, it is a factor and a summand for every channel (exact.py)."""
    given = node.args[0]
    axis = axes[given] if axes[given] is not None else len(given.shape) - 2
    if node.which != 0 or len(given.shape) not in (4, 5) or axis < 2:
        return None
    return Row(axis, {given: Reach(axis, _same)}, lambda read, a, b: read(given), norm=given)


# -- what moves numbers ------------------------------------------------------------------------------------------------


def _padded(node: Node, axes: Axes) -> Row | None:
    given = node.args[0]
    axis = axes[given]
    if axis is None:
        return None
    pads, count = node.args[1], len(node.shape)
    place = 2 * (count - 1 - axis)
    above, below = (pads[place], pads[place + 1]) if place < len(pads) else (0, 0)
    rows = given.shape[axis]
    if above < 0 or below < 0:
        return None

    def reach(a: int, b: int) -> Span:
        first = min(max(a - above, 0), rows - 1)
        return first, min(max(b - above, first + 1), rows)

    def run(read: Read, a: int, b: int) -> Any:
        first, last = reach(a, b)
        own = list(pads) + [0] * (place + 2 - len(pads))
        own[place], own[place + 1] = max(0, first + above - a), max(0, b - above - last)
        made = _call(node, read, read(given), own)
        return made.narrow(axis, a - (first + above - own[place]), b - a)

    return Row(axis, {given: Reach(axis, reach)}, run, fresh=False)


def _moved(shifted: Callable[[Node, int], int | None]) -> Rule:
    """A dimension is added, taken away or put elsewhere; shifted: where the rows are then, None if that is theirs."""

    def rule(node: Node, axes: Axes) -> Row | None:
        given = node.data[0]
        axis = axes[given]
        own = None if axis is None else shifted(node, axis)
        if own is None or axis is None:
            return None
        return Row(own, {given: Reach(axis, _same)}, lambda read, a, b: _call(node, read), fresh=False)

    return rule


def _dim(node: Node, place: int = 1) -> int:
    return int(node.args[place]) % len(node.args[0].shape)


def _swapped(node: Node, axis: int) -> int:
    one, other = _dim(node, 1), _dim(node, 2)
    return {one: other, other: one}.get(axis, axis)


def _selected(node: Node, axis: int) -> int | None:
    dim = _dim(node)
    return None if dim == axis else axis - (dim < axis)


def _permuted(node: Node, axis: int) -> int:
    return [dim % len(node.shape) for dim in node.args[1]].index(axis)


def _added(node: Node, axis: int) -> int:
    return axis + (int(node.args[1]) % len(node.shape) <= axis)


def _squeezed(node: Node, axis: int) -> int | None:
    given = node.args[0]
    dims = _dims(node.args[1], len(given.shape)) if len(node.args) > 1 else set(range(len(given.shape)))
    gone = {dim for dim in dims if given.shape[dim] == 1}
    return None if axis in gone else axis - sum(dim < axis for dim in gone)


def _cut(node: Node, axis: int) -> int | None:
    dim = _dim(node) if len(node.args) > 1 else 0
    return None if dim == axis else axis


def _split(node: Node, axis: int) -> int | None:
    dim = int(node.args[2]) % len(node.args[0].shape) if len(node.args) > 2 else 0
    return None if dim == axis else axis


def _stacked(node: Node, axes: Axes) -> Row | None:
    known = {axes[given] for given in node.data}
    axis = known.pop() if len(known) == 1 else None
    if axis is None:
        return None
    dim = (node.args[1] if len(node.args) > 1 else 0) % len(node.shape)
    reach = {given: Reach(axis, _same) for given in node.data}
    return Row(axis + (dim <= axis), reach, lambda read, a, b: _call(node, read))


def _expanded(node: Node, axes: Axes) -> Row | None:
    given = node.args[0]
    axis = axes[given]
    if axis is None:
        return None
    own = axis + len(node.shape) - len(given.shape)
    if node.shape[own] != given.shape[axis]:
        return None

    def run(read: Read, a: int, b: int) -> Any:
        shape = [*node.shape]
        shape[own] = b - a
        return read(given).expand(shape)

    return Row(own, {given: Reach(axis, _same)}, run, fresh=False)


def _viewed(node: Node, axes: Axes) -> Row | None:
    """The rows stay a dimension, are taken together with others (enlarged by pixel_shuffle), or divided."""
    given = node.args[0]
    axis = axes[given]
    if axis is None:
        return None
    ahead, rows = prod(given.shape[:axis]), given.shape[axis]
    places = [i for i in range(len(node.shape)) if prod(node.shape[:i]) == ahead]
    own = next((i for i in places if node.shape[i] == rows), None)
    if own is None:
        own = next(
            (i for i in places if node.shape[i] > 1 and not (node.shape[i] % rows and rows % node.shape[i])), None
        )
    if own is None:
        return None
    more, less = max(1, node.shape[own] // rows), max(1, rows // node.shape[own])
    if node.shape[own] * less != rows * more:
        return None

    def reach(a: int, b: int) -> Span:
        return a // more * less, -(-b // more) * less

    def run(read: Read, a: int, b: int) -> Any:
        first, last = reach(a, b)
        shape = [*node.shape]
        shape[own] = (last - first) // less * more
        return read(given).reshape(shape).narrow(own, a - first // less * more, b - a)

    return Row(own, {given: Reach(axis, reach)}, run, fresh=False)


def _shuffled(node: Node, axes: Axes) -> Row | None:
    """pixel_shuffle and pixel_unshuffle."""
    given, by = node.args[:2]
    axis = len(node.shape) - 2
    if axes[given] not in (None, axis):
        return None
    enlarges = node.op == "pixel_shuffle"

    def reach(a: int, b: int) -> Span:
        return (a // by, -(-b // by)) if enlarges else (a * by, b * by)

    def run(read: Read, a: int, b: int) -> Any:
        made = _call(node, read)
        return made.narrow(axis, a - a // by * by if enlarges else 0, b - a)

    return Row(axis, {given: Reach(axis, reach)}, run)


POINTWISE = (
    *("add", "sub", "rsub", "mul", "div", "neg", "abs", "reciprocal", "pow", "sqrt", "rsqrt", "exp", "log", "square"),
    *("silu", "relu", "gelu", "sigmoid", "tanh", "leaky_relu", "elu", "hardtanh", "hardswish", "softplus", "mish"),
    *("clamp", "clamp_min", "clamp_max", "maximum", "minimum", "where", "addcmul", "lerp", "sin", "cos", "round"),
    *("clone", "contiguous", "_to_copy", "to", "zeros_like", "ones_like", "eq", "gt", "lt", "ge", "le"),
)
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(POINTWISE, _pointwise),
    "convolution": _convolution,
    "native_group_norm": _group_norm,
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _layer_norm,
    "upsample_nearest2d": _enlarged,
    "upsample_nearest3d": _enlarged,
    "_upsample_nearest_exact2d": _enlarged,
    "_upsample_nearest_exact3d": _enlarged,
    "constant_pad_nd": _padded,
    "linalg_vector_norm": _over(2, 3),
    "mean": _over(1, 2),
    "sum": _over(1, 2),
    "amax": _over(1, 2),
    "_softmax": _along(1),
    "cat": _along(1),
    "stack": _stacked,
    "view": _viewed,
    "_unsafe_view": _viewed,
    "reshape": _viewed,
    "expand": _expanded,
    "permute": _moved(_permuted),
    "transpose": _moved(_swapped),
    "select": _moved(_selected),
    "slice": _moved(_cut),
    "split": _moved(_split),
    "split_with_sizes": _moved(_split),
    "unsqueeze": _moved(_added),
    "squeeze": _moved(_squeezed),
    "pixel_shuffle": _shuffled,
    "pixel_unshuffle": _shuffled,
}
