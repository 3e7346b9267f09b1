"""The same function with less work: upsampling folded into the convolution after it, idle steps left out.

Each fold is exact but for the order of sums. A picture enlarged twice by nearest neighbours and convolved 3x3 is a
transposed convolution 4x4 of stride 2: 4 products for each number instead of 9, and no enlarged picture.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from safelight.vae.graph import IMAGE_DIMS, WEIGHT, Graph, Made, Node, needed, rewired

ENLARGING = ("upsample_nearest2d", "_upsample_nearest_exact2d")
FOLDED = "folded"  # the name of weights that are computed from others


def folded(graph: Graph, *, shortcuts: bool = True) -> Graph:
    """The graph with every fold that fits. shortcuts: also those that pay only where what is enlarged is not kept."""
    graph = rewritten(graph, _without_idle_steps)
    graph = rewritten(graph, _upsampled)
    return rewritten(graph, _shortcut) if shortcuts else graph


Rewrite = Callable[[Node, Mapping[Node, list[Node]]], Node]


def rewritten(graph: Graph, rewrite: Rewrite) -> Graph:
    """rewrite: gives the node to take instead, whose inputs are of the new graph already."""
    users = graph.users()
    instead: dict[Node, Node] = {}
    for node in graph.nodes:
        fresh = rewired(node, instead)
        users[fresh] = users[node]
        instead[node] = rewrite(fresh, users)
        users.setdefault(instead[node], users[node])
    return needed([instead[node] for node in graph.inputs], instead[graph.output])


def _without_idle_steps(node: Node, users: Mapping[Node, list[Node]]) -> Node:
    """Division by 1, as of residual blocks with an output scale; casts to the dtype that is there."""
    if node.op in ("div", "mul") and len(node.args) == 2 and not isinstance(node.args[1], Node) and node.args[1] == 1:
        return node.args[0] if node.args[0].dtype == node.dtype else node
    if node.op == "_to_copy" and _goes_back(node):
        # 16 bit numbers made float32, moved and made 16 bit again
        moved = node.args[0]
        return replace(moved, args=(moved.args[0].args[0], *moved.args[1:]), dtype=node.dtype)
    return node


def _goes_back(node: Node) -> bool:
    import torch

    moved = node.args[0]
    if moved.op not in ENLARGING or moved.args[0].op != "_to_copy":
        return False
    before = moved.args[0].args[0]
    return bool(before.dtype == node.dtype and moved.dtype == torch.float32)


def _upsampled(node: Node, users: Mapping[Node, list[Node]]) -> Node:
    if node.op != "convolution" or len(node.shape) != IMAGE_DIMS:
        return node
    given, weight, bias = node.args[:3]
    if given.op not in ENLARGING or len(users[given]) > 1 or not _is_plain(node, 3, 1):
        return node
    small = given.args[0]
    if [2 * side for side in small.shape[2:]] != list(given.shape[2:]):
        return node
    shape = (weight.shape[1], weight.shape[0], 4, 4)
    folded_weight = Node(WEIGHT, Made((weight,), fold), (), {}, shape, weight.dtype, None, FOLDED)
    args = (small, folded_weight, bias, [2, 2], [1, 1], [1, 1], True, [0, 0], 1)
    return replace(node, args=args)


def _is_plain(node: Node, size: int, padding: int) -> bool:
    stride, pads, dilation, transposed, _, groups = node.args[3:9]
    square = node.args[1].shape[2:] == (size, size) and list(pads) == [padding, padding]
    return square and list(stride) == [1, 1] and list(dilation) == [1, 1] and not transposed and groups == 1


def _shortcut(node: Node, users: Mapping[Node, list[Node]]) -> Node:
    """A 1x1 convolution of what another convolution makes: one convolution, so that only the small one's rows are
    needed; the other one's result is computed for its other users."""
    if node.op != "convolution" or not _is_plain(node, 1, 0):
        return node
    first = node.args[0]
    if first.op != "convolution" or not first.args[6] or first.args[8] != 1:
        return node
    weight, bias = node.args[1], node.args[2]
    before, before_bias = first.args[1], first.args[2]
    shape = (before.shape[0], weight.shape[0], *before.shape[2:])
    made = Node(WEIGHT, Made((weight, before), compose), (), {}, shape, weight.dtype, None, FOLDED)
    return replace(node, args=(first.args[0], made, _both(weight, before_bias, bias), *first.args[3:]))


def _both(weight: Node, before: Node | None, bias: Node | None) -> Node | None:
    """The bias of two convolutions in one."""
    if before is None:
        return bias
    parts = (weight, before) if bias is None else (weight, before, bias)
    return Node(WEIGHT, Made(parts, compose_bias), (), {}, weight.shape[:1], weight.dtype, None, FOLDED)


CHANNELS = 32  # computed at a time in float32, as all at once would take as much memory as a large picture's rows


def fold(weight: Any) -> Any:
    """(out, in, 3, 3) after enlarging twice -> (in, out, 4, 4) of conv_transpose2d(stride=2, padding=1)."""
    made = _empty(weight, weight.shape[1], weight.shape[0], 4, 4)
    for first in range(0, weight.shape[0], CHANNELS):
        wide = weight[first : first + CHANNELS].float()
        taps = wide.new_zeros(*wide.shape[:2], 4, 4)
        for down in (0, 1):
            for right in (0, 1):
                taps[:, :, down : down + 3, right : right + 3] += wide
        made[:, first : first + CHANNELS] = taps.flip(2, 3).transpose(0, 1)
    return made


def compose(weight: Any, before: Any) -> Any:
    """(out, middle, 1, 1) after (in, middle, h, w), transposed -> (in, out, h, w)."""
    import torch

    made = _empty(before, before.shape[0], weight.shape[0], *before.shape[2:])
    for first in range(0, before.shape[0], CHANNELS):
        taps = before[first : first + CHANNELS].float()
        made[first : first + CHANNELS] = torch.einsum("om,imyx->ioyx", weight[:, :, 0, 0].float(), taps)
    return made


def _empty(like: Any, *shape: int) -> Any:
    import torch

    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def compose_bias(weight: Any, before: Any, bias: Any = None) -> Any:
    moved = weight[:, :, 0, 0].double() @ before.double()
    return (moved if bias is None else moved + bias.double()).to(weight.dtype)
