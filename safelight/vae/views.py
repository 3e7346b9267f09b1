"""Rows of operators that move numbers: views, permutations, paddings, concatenations."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from safelight.vae.graph import Node
from safelight.vae.row import Axes, Reach, Read, Row, Rule, Span, call, dims_of, same


@dataclass(frozen=True, slots=True)
class Edges:
    """Rows that a padding adds above and below those of its input. place: of `above` in the operator's list."""

    axis: int
    place: int
    above: int
    below: int
    rows: int

    def reach(self, a: int, b: int) -> Span:
        """One row at least, also where all that is asked for is padding."""
        first = min(max(a - self.above, 0), self.rows - 1)
        return first, min(max(b - self.above, first + 1), self.rows)


def _edges(node: Node, axes: Axes) -> Edges | None:
    """None where rows are cut off instead."""
    given, pads = node.args[:2]
    axis = axes[given]
    if axis is None:
        return None
    place = 2 * (len(node.shape) - 1 - axis)
    above, below = (pads[place], pads[place + 1]) if place < len(pads) else (0, 0)
    return None if min(above, below) < 0 else Edges(axis, place, above, below, given.shape[axis])


def padded(node: Node, axes: Axes) -> Row | None:
    if (edges := _edges(node, axes)) is None:
        return None
    given, pads = node.args[:2]
    axis, place = edges.axis, edges.place

    def run(read: Read, a: int, b: int) -> Any:
        first, last = edges.reach(a, b)
        start = first + edges.above
        own = list(pads) + [0] * (place + 2 - len(pads))
        own[place], own[place + 1] = max(0, start - a), max(0, b - edges.above - last)
        return call(node, read, read(given), own).narrow(axis, a - (start - own[place]), b - a)

    return Row(axis, {given: Reach(axis, edges.reach)}, run, fresh=False)


def replicated(node: Node, axes: Axes) -> Row | None:
    """Padding with the outermost numbers."""
    if (edges := _edges(node, axes)) is None:
        return None
    given, pads = node.args[:2]
    axis, place = edges.axis, edges.place

    def run(read: Read, a: int, b: int) -> Any:
        import torch

        first, last = edges.reach(a, b)
        x, others = read(given), list(pads)
        before, after = max(0, min(edges.above, b) - a), max(0, b - max(edges.rows + edges.above, a))
        top, bottom = [x.narrow(axis, 0, 1)] * before, [x.narrow(axis, last - first - 1, 1)] * after
        inner = x if before + after < b - a else x.narrow(axis, 0, 0)
        x = torch.cat((*top, inner, *bottom), axis) if before or after else x
        if place < len(pads):
            others[place] = others[place + 1] = 0
        return call(node, read, x, others)

    return Row(axis, {given: Reach(axis, edges.reach)}, run)


def repeated(node: Node, axes: Axes) -> Row | None:
    given, times = node.args[:2]
    axis = axes[given]
    if axis is None:
        return None
    own = axis + len(node.shape) - len(given.shape)
    if times[own] != 1:
        return None
    return Row(own, {given: Reach(axis, same)}, lambda read, a, b: call(node, read))


def moved(shifted: Callable[[Node, int], int | None]) -> Rule:
    """A dimension is added, taken away or put elsewhere; shifted: where the rows are then, None if that is theirs."""

    def rule(node: Node, axes: Axes) -> Row | None:
        given = node.data[0]
        axis = axes[given]
        own = None if axis is None else shifted(node, axis)
        if own is None or axis is None:
            return None
        return Row(own, {given: Reach(axis, same)}, lambda read, a, b: call(node, read), fresh=False)

    return rule


def _dim(node: Node, place: int = 1) -> int:
    return int(node.args[place]) % len(node.args[0].shape)


def swapped(node: Node, axis: int) -> int:
    one, other = _dim(node, 1), _dim(node, 2)
    return {one: other, other: one}.get(axis, axis)


def selected(node: Node, axis: int) -> int | None:
    dim = _dim(node)
    return None if dim == axis else axis - (dim < axis)


def permuted(node: Node, axis: int) -> int:
    return [dim % len(node.shape) for dim in node.args[1]].index(axis)


def added(node: Node, axis: int) -> int:
    return axis + (int(node.args[1]) % len(node.shape) <= axis)


def squeezed(node: Node, axis: int) -> int | None:
    given = node.args[0]
    dims = dims_of(node.args[1], len(given.shape)) if len(node.args) > 1 else set(range(len(given.shape)))
    gone = {dim for dim in dims if given.shape[dim] == 1}
    return None if axis in gone else axis - sum(dim < axis for dim in gone)


def cut(node: Node, axis: int) -> int | None:
    dim = _dim(node) if len(node.args) > 1 else 0
    return None if dim == axis else axis


def split(node: Node, axis: int) -> int | None:
    dim = int(node.args[2]) % len(node.args[0].shape) if len(node.args) > 2 else 0
    return None if dim == axis else axis


def stacked(node: Node, axes: Axes) -> Row | None:
    known = {axes[given] for given in node.data}
    axis = known.pop() if len(known) == 1 else None
    if axis is None:
        return None
    dim = (node.args[1] if len(node.args) > 1 else 0) % len(node.shape)
    reach = {given: Reach(axis, same) for given in node.data}
    return Row(axis + (dim <= axis), reach, lambda read, a, b: call(node, read))


def expanded(node: Node, axes: Axes) -> Row | None:
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

    return Row(own, {given: Reach(axis, same)}, run, fresh=False)


def viewed(node: Node, axes: Axes) -> Row | None:
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


def shuffled(node: Node, axes: Axes) -> Row | None:
    """pixel_shuffle and pixel_unshuffle."""
    given, by = node.args[:2]
    axis = len(node.shape) - 2
    if axes[given] not in (None, axis):
        return None
    enlarges = node.op == "pixel_shuffle"

    def reach(a: int, b: int) -> Span:
        return (a // by, -(-b // by)) if enlarges else (a * by, b * by)

    def run(read: Read, a: int, b: int) -> Any:
        made = call(node, read)
        return made.narrow(axis, a - a // by * by if enlarges else 0, b - a)

    return Row(axis, {given: Reach(axis, reach)}, run)
