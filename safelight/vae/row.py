"""Which rows of its inputs an operator needs for some of its own, and how it makes them.

The words that rows.py and views.py say it in. A picture's rows may lie in any dimension, as models permute and reshape.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


def same(a: int, b: int) -> Span:
    return a, b


def call(node: Node, read: Read, *args: Any) -> Any:
    """The operator itself on rows; args: in the place of its first ones."""
    given = (*args, *node.args[len(args) :])
    made = node.function(*replaced(given, read), **{key: replaced(value, read) for key, value in node.kwargs.items()})
    return made if node.which is None else made[node.which]


def dims_of(value: Any, count: int) -> set[int]:
    return {dim % count for dim in (value if isinstance(value, list | tuple) else [value])}
