"""Brownian motion of a seed, that can be asked for any stretch of time in any order: noise for SDE samplers.

The same numbers, bit for bit, as torchsde 0.2.6's BrownianTree, which k-diffusion and A1111 use: the stretch from
`start` to `end` is halved again and again, each half drawn from a seed of its own (Li et al. 2020, "Scalable gradients
for stochastic differential equations", section 4). Times are told apart by 1e-6.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

DIGITS = 6  # of a time, after the point
POOL = 24  # words of entropy in numpy's SeedSequence


class Stream(Protocol):
    """A seed's normal numbers, one after the other."""

    def normal(self, shape: tuple[int, ...]) -> "Tensor": ...


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time: number `place` from the left of those that `depth` halvings make."""

    start: float
    end: float
    place: int = 0
    depth: int = 0

    @property
    def middle(self) -> float:
        return round(0.5 * (self.end + self.start), DIGITS)

    @property
    def left(self) -> "Span":
        return Span(self.start, self.middle, 2 * self.place, self.depth + 1)

    @property
    def right(self) -> "Span":
        return Span(self.middle, self.end, 2 * self.place + 1, self.depth + 1)


class BrownianTree:
    """start < end. stream: what makes numbers of a seed; each draw is the first of a fresh one."""

    def __init__(
        self, start: float, end: float, seed: int, shape: tuple[int, ...], stream: Callable[[int], Stream]
    ) -> None:
        self.root = Span(round(start, DIGITS), round(end, DIGITS))
        self._seed, self._shape, self._stream = seed, shape, stream
        self._whole = self._normal(()) * math.sqrt(end - start)
        # of two questions that follow one another, as steps do, the second finds half its way here
        self._before: dict[Span, Tensor] = {}
        self._now: dict[Span, Tensor] = {}

    def __call__(self, begin: float, end: float) -> "Tensor":
        """W(end) - W(begin), variance end - begin; begin < end. Outside of the tree's time nothing moves."""
        import torch

        begin, end = (round(min(max(t, self.root.start), self.root.end), DIGITS) for t in (begin, end))
        if begin == end:
            return torch.zeros(self._shape)
        self._before, self._now = self._now, {}
        first, *others = self._parts(self.root, self._whole, begin, end)
        for part in others:  # one by one, from the left: another order would round otherwise
            first = first + part
        return first

    def _parts(self, span: Span, moved: "Tensor", begin: float, end: float) -> "Iterator[Tensor]":
        """What the largest spans between begin and end move, from the left. moved: what `span` does."""
        if (begin, end) == (span.start, span.end):
            yield moved
            return
        middle, left = span.middle, self._left(span, moved)
        if begin < middle:
            yield from self._parts(span.left, left, begin, min(end, middle))
        if end > middle:
            yield from self._parts(span.right, moved - left, max(begin, middle), end)

    def _left(self, span: Span, moved: "Tensor") -> "Tensor":
        """What the left half moves, given what the whole does: a Brownian bridge."""
        if span not in self._before:
            left, right, share = span.middle - span.start, span.end - span.middle, 1 / (span.end - span.start)
            noise = self._normal((span.place, span.depth))
            self._before[span] = left * moved * share + math.sqrt(left * right * share) * noise
        self._now[span] = self._before[span]
        return self._now[span]

    def _normal(self, key: tuple[int, ...]) -> "Tensor":
        from numpy.random import SeedSequence

        seed = SeedSequence(self._seed, spawn_key=key, pool_size=POOL).generate_state(1)[0]
        return self._stream(int(seed)).normal(self._shape)
