"""Statistics of norms from a few crops, so that the rest of a decode is one pass of which nothing is stored.

What comes before the first upsampling, attention with it, is exact. From its result crops are cut, evenly placed, and
decoded together as if they were one picture; their means and variances stand for the whole's. The idea of statistics
from a part is that of Tiled VAE's fast mode (multidiffusion-upscaler), which takes a picture made small.

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

LEAST_CROP = 16  # latents a side: smaller ones are too much edge
SHARE = 0.5  # of each side that crops cover: a quarter of the picture
CROPS = 4  # along the longer side: with more and smaller ones more of each is edge


@dataclass(frozen=True, slots=True)
class Crops:
    """places: (top, left) of each. side: latents."""

    places: tuple[tuple[int, int], ...]
    side: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(how many, rows, columns)."""
        return len(self.places), self.side, self.side


def crops(height: int, width: int) -> Crops:
    """Of a picture of so many latents: laid as bricks are, so that no column of the picture is missed by all.

    Raises CannotWalk for one that is not larger than its crops.
    """
    if min(height, width) < 2 * LEAST_CROP:
        raise CannotWalk(f"{width}x{height} latents are too few for statistics from crops, {2 * LEAST_CROP} are needed")
    side = min(height, width, max(LEAST_CROP, ceil(SHARE * max(height, width) / CROPS)))
    down, across = (max(1, round(SHARE * length / side)) for length in (height, width))
    places = [
        (round((row + 0.5) * height / down - side / 2), (column + (0.75, 0.25)[row % 2]) * width / across - side / 2)
        for row in range(down)
        for column in range(across)
    ]
    return Crops(tuple((max(top, 0), min(max(round(left), 0), width - side)) for top, left in places), side)


def sampled(graph: Graph, small: Graph, cut: Crops, strip_bytes: int) -> Callable[[bool], list[Rows]]:
    """small: the same module's graph for the crops, as a batch. The result is `rows_of` with the statistics left out,
    with crops that are decoded fast, and with crops that take the least.

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
            replace(whole, whole=whole.whole | {at}, sampling=Sampling(at, made, chosen, cut.places, cut.side))
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
