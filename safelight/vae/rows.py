"""Which rows of its inputs an operator needs for some of its own, and how it makes them: one line for each operator.

Comes in: a node of a graph, and where its inputs have their rows. Goes out: a Row, or None for what needs all of its
inputs at once (attention, sums over the picture).
"""

from collections.abc import Mapping
from typing import Any

from safelight.vae import views
from safelight.vae.graph import Node
from safelight.vae.row import Axes, Reach, Read, Row, Rule, Span, call, dims_of, same


def row_of(node: Node, axes: Axes) -> Row | None:
    """axes: of all data inputs; None is that of a tensor that is there as a whole, of which any dimension will do."""
    rule = RULES.get(node.op)
    return None if rule is None or not node.data else rule(node, axes)


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
        reach[given] = Reach(own, same)
    return Row(axis, reach, lambda read, a, b: call(node, read))


def _over(place: int, keep: int | None) -> Rule:
    """Sums, means and norms over some dimensions, named by the argument at `place`; keep: the place of keepdim."""

    def rule(node: Node, axes: Axes) -> Row | None:
        given = node.data[0]
        axis = axes[given]
        dims = node.args[place] if len(node.args) > place else None
        if axis is None or not dims or axis in (taken := dims_of(dims, len(given.shape))):
            return None
        keeps = keep is not None and len(node.args) > keep and node.args[keep]
        own = axis if keeps else axis - sum(dim < axis for dim in taken)
        return Row(own, {given: Reach(axis, same)}, lambda read, a, b: call(node, read))

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
        return Row(axis, {given: Reach(axis, same) for given in node.data}, lambda read, a, b: call(node, read))

    return rule


def _linear(node: Node, axes: Axes) -> Row | None:
    """Over the last dimension."""
    given = node.args[0]
    axis = axes[given]
    if axis is None or axis == len(given.shape) - 1 or len(node.data) > 1:
        return None
    return Row(axis, {given: Reach(axis, same)}, lambda read, a, b: call(node, read), heavy=True)


def _layer_norm(node: Node, axes: Axes) -> Row | None:
    given = node.data[0]
    axis = axes[given]
    if axis is None or axis >= len(given.shape) - len(node.args[1]) or node.which not in (None, 0):
        return None
    return Row(axis, {given: Reach(axis, same)}, lambda read, a, b: call(node, read))


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
        made = (
            _fast_on_cpu(node, x, read, pads)
            if _is_slow(x)
            else call(node, read, x, weight, node.args[2], stride, pads)
        )
        return made.narrow(axis, (most - above) // step, b - a)

    return Row(axis, {given: Reach(axis, reach)}, run, heavy=True)


def _is_slow(x: Any) -> bool:
    """torch takes a slow kernel for videos of few rows in float32 (2.13, use_mkldnn in Convolution.cpp): it counts
    channels, frames and rows, and not columns. Four times slower, on one thread."""
    import torch

    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32 and x.dim() == VIDEO_DIMS
    return on_cpu and torch.backends.mkldnn.is_available()


def _fast_on_cpu(node: Node, x: Any, read: Read, pads: list[int]) -> Any:
    import torch

    weight, bias, stride, _, dilation = node.args[1:6]
    given = x, read(weight), None if bias is None else read(bias)
    return torch.ops.aten.mkldnn_convolution(*given, pads, stride, dilation, node.args[8])


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
        made = call(node, read, read(given), node.args[1], node.args[2], node.args[3], pads)
        return made.narrow(axis, above - cut, b - a)

    return Row(axis, {given: Reach(axis, reach)}, run, heavy=True)


def _pooled(node: Node, axes: Axes) -> Row | None:
    """Means over squares that do not overlap and have no padding."""
    given, size, *rest = node.args
    axis = len(node.shape) - 2
    step = rest[0] if rest and rest[0] else size
    if axes[given] not in (None, axis) or list(step) != list(size) or (len(rest) > 1 and any(rest[1])):
        return None
    if any(rest[2:3]):  # ceil_mode
        return None
    high = size[0]
    return Row(axis, {given: Reach(axis, lambda a, b: (a * high, b * high))}, lambda read, a, b: call(node, read))


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


def _stretched(node: Node, axes: Axes) -> Row | None:
    """Linear interpolation of other dimensions than the rows."""
    given = node.data[0]
    axis = len(node.shape) - 2
    if axes[given] not in (None, axis) or node.shape[axis] != given.shape[axis]:
        return None

    def run(read: Read, a: int, b: int) -> Any:
        size = [*node.shape[2:]]
        size[axis - 2] = b - a
        import torch

        align = next(value for value in node.args[1:] if isinstance(value, bool))
        mode = "trilinear" if len(node.shape) == 5 else "bilinear"
        return torch.nn.functional.interpolate(read(given), size, mode=mode, align_corners=align)

    return Row(axis, {given: Reach(axis, same)}, run)


def _group_norm(node: Node, axes: Axes) -> Row | None:
    """With the statistics given, it is a factor and a summand for every channel (exact.py)."""
    given = node.args[0]
    known = axes[given]
    axis = len(given.shape) - 2 if known is None else known
    if node.which != 0 or len(given.shape) not in (4, 5) or axis < 2:
        return None
    return Row(axis, {given: Reach(axis, same)}, lambda read, a, b: read(given), norm=given)


VIDEO_DIMS = 5
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
    "upsample_bilinear2d": _stretched,
    "upsample_trilinear3d": _stretched,
    "constant_pad_nd": views.padded,
    "linalg_vector_norm": _over(2, 3),
    "mean": _over(1, 2),
    "sum": _over(1, 2),
    "amax": _over(1, 2),
    "_softmax": _along(1),
    "cat": _along(1),
    "linear": _linear,
    "repeat": views.repeated,
    "replication_pad2d": views.replicated,
    "replication_pad3d": views.replicated,
    "avg_pool2d": _pooled,
    "stack": views.stacked,
    "view": views.viewed,
    "_unsafe_view": views.viewed,
    "reshape": views.viewed,
    "expand": views.expanded,
    "permute": views.moved(views.permuted),
    "transpose": views.moved(views.swapped),
    "select": views.moved(views.selected),
    "slice": views.moved(views.cut),
    "split": views.moved(views.split),
    "split_with_sizes": views.moved(views.split),
    "unsqueeze": views.moved(views.added),
    "squeeze": views.moved(views.squeezed),
    "pixel_shuffle": views.shuffled,
    "pixel_unshuffle": views.shuffled,
}
