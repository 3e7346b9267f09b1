"""Where overlapping tiles lie, how much each counts in every pixel, and what they cost. Arithmetic alone, no tensors.

All lengths are latent pixels, of a picture that is decoded and of one that is encoded. Tiles of one grid are equally
large, so that one compiled graph serves all, and lie as evenly as whole pixels allow.

Neighbours are blended over the whole of their overlap, but never past the middle of a tile. So no pixel counts in more
than two tiles of a row or column, whatever the overlap, and the weights of all tiles sum to 1.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from safelight.errors import UsageError

Sides = int | tuple[int, int]
"""(of rows, of columns), or one number for both."""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Pixels from `start` up to `stop`, without it."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    def times(self, factor: int) -> "Span":
        return Span(self.start * factor, self.stop * factor)


@dataclass(frozen=True, slots=True)
class Share:
    """Where one tile of a line of tiles counts: over `reach`, rising over its first pixels, falling over its last."""

    reach: Span
    rise: int
    fall: int

    def times(self, factor: int) -> "Share":
        return Share(self.reach.times(factor), self.rise * factor, self.fall * factor)


@dataclass(frozen=True, slots=True)
class Grid:
    """Every span of rows with every span of columns, row by row."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    def __iter__(self) -> Iterator[tuple[Span, Span]]:
        return ((row, column) for row in self.rows for column in self.columns)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of all that is covered."""
        return self.rows[-1].stop, self.columns[-1].stop

    @property
    def tile(self) -> tuple[int, int]:
        """(height, width) of each tile."""
        return self.rows[0].length, self.columns[0].length


def grid(height: int, width: int, tile: Sides, overlap: Sides, *, even: bool = False) -> Grid:
    """Tiles over a picture of height x width. even: as few tiles, but no larger than they have to be."""
    lengths, tiles, overlaps = (height, width), _both(tile), _both(overlap)
    if even:
        tiles = (even_tile(height, tiles[0], overlaps[0]), even_tile(width, tiles[1], overlaps[1]))
    rows, columns = map(spans, lengths, tiles, overlaps)
    return Grid(rows, columns)


def spans(length: int, tile: int, overlap: int) -> tuple[Span, ...]:
    """As few spans of `tile` as cover `length` with `overlap` or more between neighbours; one if `tile` reaches."""
    count = _count(length, tile, overlap)
    if count == 1:
        return (Span(0, length),)
    starts = [i * (length - tile) // (count - 1) for i in range(count)]
    return tuple(Span(start, start + tile) for start in starts)


def even_tile(length: int, tile: int, overlap: int) -> int:
    """The smallest tile that covers `length` with as many tiles, and the same overlap, as `tile` does.

    At 1024 px (128 latents) tiles of 64 that overlap by 16 are three a side, and so are tiles of 54: 1.60 times the
    picture is decoded, not 2.25 times.
    """
    count = _count(length, tile, overlap)
    return length if count == 1 else _side(length, count, overlap)


def _side(length: int, count: int, overlap: int) -> int:
    """The least side of `count` tiles that cover the length."""
    return math.ceil((length - overlap) / count) + overlap


def _count(length: int, tile: int, overlap: int) -> int:
    if length < 1 or tile < 1:
        raise UsageError(f"tiles of {tile} over {length} latent pixels: give 1 or more of each")
    if overlap < 0 or overlap >= tile < length:  # a tile that reaches has no neighbour
        raise UsageError(f"tiles of {tile} latent pixels cannot overlap by {overlap}: give 0 to {tile - 1}")
    return 1 if length <= tile else math.ceil((length - overlap) / (tile - overlap))


def _both(sides: Sides) -> tuple[int, int]:
    return sides if isinstance(sides, tuple) else (sides, sides)


def shares(line: tuple[Span, ...]) -> tuple[Share, ...]:
    """How far each span of a line counts: up to where it meets its neighbours."""
    middles = [float("-inf"), *(span.start + span.length // 2 for span in line[1:-1]), float("inf")]
    zones = [
        Span(int(max(right.start, here)), int(min(left.stop, there)))
        for (left, right), (here, there) in zip(pairwise(line), pairwise(middles), strict=False)
    ]
    begins = [Span(line[0].start, line[0].start), *zones]
    ends = [*zones, Span(line[-1].stop, line[-1].stop)]
    return tuple(
        Share(Span(begin.start, end.stop), begin.length, end.length) for begin, end in zip(begins, ends, strict=True)
    )


@lru_cache(maxsize=256)
def ramp(length: int) -> tuple[float, ...]:
    """A raised cosine from 0 to 1, taken in the middle of each of `length` pixels. Falling is 1 minus it."""
    return tuple((1 - math.cos(math.pi * (i + 0.5) / length)) / 2 for i in range(length))


def weights(share: Share) -> list[float]:
    """0 to 1 for each pixel of the reach. Those of all shares of a line sum to exactly 1 in every pixel."""
    flat = share.reach.length - share.rise - share.fall
    return [*ramp(share.rise), *[1.0] * flat, *(1 - up for up in ramp(share.fall))]


def decoded_share(tiles: Grid) -> float:
    """Pixels that all tiles decode together, relative to those of the picture: the seconds, relative to the whole.

    More overlap adds tiles, and never lowers the bytes of one.
    """
    (height, width), (tile_height, tile_width) = tiles.size, tiles.tile
    return len(tiles) * tile_height * tile_width / (height * width)
