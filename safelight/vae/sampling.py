"""Statistics of norms from a few crops, so that the rest of a decode is one pass of which nothing is stored.

What comes before the first upsampling, attention with it, is exact. From its result small crops are cut, evenly placed,
laid side by side, given the whole's mean and variance of each channel, and decoded as one picture; its means and
variances stand for the whole's. Crops have crops beside them and no zeros, so that they may be small, many, and near to
every part of the picture. The idea of statistics from a
part is that of Tiled VAE's fast mode (multidiffusion-upscaler), which takes a picture made small.

Comes in: the rows of a decoder's graph. Goes out: the same, with norms that are not counted.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any

from safelight.vae import search
from safelight.vae.fold import folded
from safelight.vae.graph import IMAGE_DIMS, INPUT, CannotWalk, Graph, Node, needed, rewired
from safelight.vae.passes import Rows, Sampling, rows_of
from safelight.vae.stats import Statistics

LEAST_PICTURE = 32  # latents a side
SIDE = 6  # latents of a crop: smaller ones are too much edge, larger ones miss too much between them
SHARE = 0.5  # of each side that crops cover: a quarter of the picture
CROPS = 32  # along the longer side, at most
EPSILON = 1e-6  # beside variances: a channel of one number stays as it is


@dataclass(frozen=True, slots=True)
class Crops:
    """places: (top, left) of each, line after line. side: latents. across: how many are in a line."""

    places: tuple[tuple[int, int], ...]
    side: int
    across: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of all of them side by side, in latents."""
        return len(self.places) // self.across * self.side, self.across * self.side

    def of(self, whole: Any, scale: int = 1) -> Any:
        """whole: (1, channels, rows, columns), with so many rows for one of latents. (1, channels, *shape * scale)."""
        import torch

        height, width = (length * scale for length in self.shape)
        order = {"device": whole.device, "dtype": whole.dtype, "memory_format": torch.channels_last}
        made = torch.empty((1, whole.shape[1], height, width), **order)
        side = self.side * scale
        for number, (top, left) in enumerate(self.places):
            row, column = (index * side for index in divmod(number, self.across))
            cut = whole[..., top * scale : top * scale + side, left * scale : left * scale + side]
            made[..., row : row + side, column : column + side] = cut
        return made


def crops(height: int, width: int) -> Crops:
    """Of a picture of so many latents: laid as bricks are, so that no column of the picture is missed by all.

    Raises CannotWalk for one that is too small.
    """
    if min(height, width) < LEAST_PICTURE:
        raise CannotWalk(f"{width}x{height} latents are too few for statistics from crops, {LEAST_PICTURE} are needed")
    side = min(height, width, max(SIDE, ceil(SHARE * max(height, width) / CROPS)))
    down, across = (max(1, round(SHARE * length / side)) for length in (height, width))
    places = [
        (round((row + 0.5) * height / down - side / 2), (column + (0.75, 0.25)[row % 2]) * width / across - side / 2)
        for row in range(down)
        for column in range(across)
    ]
    return Crops(tuple((max(top, 0), min(max(round(left), 0), width - side)) for top, left in places), side, across)


def matched(cut: Any, whole: Any) -> Any:
    """cut, with the mean and variance that each channel of the whole has. Both: (1, channels, rows, columns)."""
    import torch

    (mean, variance), (own_mean, own_variance) = (_of_channels(tensor) for tensor in (whole, cut))
    spread = (variance + EPSILON).sqrt()
    return torch.nn.functional.batch_norm(cut, own_mean, own_variance, spread, mean, False, 0.0, EPSILON)


def _of_channels(tensor: Any) -> tuple[Any, Any]:
    found = Statistics(1, tensor.shape[1], tensor.device)
    found.add(tensor)
    mean, variance = found.groups(tensor.shape[1])
    return mean[0], variance[0]


def sampled(graph: Graph, small: Graph, cut: Crops, strip_bytes: int) -> Callable[[bool], list[Rows]]:
    """small: the same module's graph for the crops, as one picture. The result is `rows_of` with the statistics left
    out, with crops that are decoded fast, and with crops that take the least.

    Raises CannotWalk for a module in which there is not one tensor that all later ones come from.
    """

    def rows(shortcuts: bool) -> list[Rows]:
        whole, part = (rows_of(folded(each, shortcuts=shortcuts)) for each in (graph, small))
        if [node.op for node in whole.graph.nodes] != [node.op for node in part.graph.nodes]:
            raise CannotWalk("the module computes something else for crops than for the whole")
        twins = dict(zip(whole.graph.nodes, part.graph.nodes, strict=True))
        at = _last_small(whole)
        later = [node for node in whole.graph.nodes if node in whole.normed and _area(node) > _area(at)]
        graph_of_crops, instead = beginning_at(part.graph, twins[at])
        plans = search.plans(rows_of(graph_of_crops), strip_bytes)
        made = {node: instead[twins[node]] for node in later}
        return [
            replace(whole, whole=whole.whole | {at}, sampling=Sampling(at, made, chosen, cut))
            for chosen in {plans[-1].peak_bytes: plans[-1], plans[0].peak_bytes: plans[0]}.values()
        ]

    return rows


def beginning_at(graph: Graph, at: Node) -> tuple[Graph, dict[Node, Node]]:
    """What comes after `at`, which is the input now, and the new node of each old one.

    Raises CannotWalk if something comes from elsewhere.
    """
    leaf = Node(INPUT, None, (), {}, at.shape, at.dtype)
    instead = {at: leaf}
    for node in graph.nodes:
        if node is not at and (fresh := rewired(node, instead)) is not node:
            instead[node] = fresh
    made = needed((leaf,), instead.get(graph.output, graph.output))
    if any(node.op == INPUT and node is not leaf for node in made.nodes):
        raise CannotWalk("what is normalized after the first upsampling does not come from one tensor")
    return made, instead


def _last_small(rows: Rows) -> Node:
    """At the size of the latents, and read by what is larger."""
    given = rows.graph.inputs[0]
    if _area(rows.graph.output) <= _area(given):
        raise CannotWalk("statistics from crops are for decoders: an encoder begins with what is largest")
    found = [
        node
        for node in rows.graph.nodes
        if _area(node) == _area(given) and any(_area(user) > _area(given) for user in rows.users[node])
    ]
    if len(found) != 1 or len(found[0].shape) != IMAGE_DIMS or rows.row[found[0]] is None:
        raise CannotWalk(f"statistics from crops need one tensor to cut them from, and {len(found)} are enlarged")
    return found[0]


def _area(node: Node) -> int:
    return prod(node.shape[2:]) if len(node.shape) == IMAGE_DIMS else 0


def check_pictures(item: Any) -> None:
    if item.dim() != IMAGE_DIMS:
        raise CannotWalk("statistics from crops are for pictures, not for videos")
