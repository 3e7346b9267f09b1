"""Tiles that are decoded or encoded alone and blended where they overlap: little memory, and not the whole's picture.

Group norm and attention see one tile at a time, so tones may differ from tile to tile; the ramps of `tiles` hide the
seams, and statistics that all tiles share (blending.py) take most of the difference away. What can be exact, `exact`
does.

`run` is a decoder or an encoder: (tiles * batch, channels, ..., height, width) to the same with other channels and
both sides times `scale`. Video has its frames before the last two dimensions, which alone are tiled.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

from safelight.errors import UsageError
from safelight.vae import tiles
from safelight.vae.tiles import Grid, Share, Span

if TYPE_CHECKING:
    from torch import Tensor

    Run = Callable[[Tensor], Tensor]
    Ramps = dict[int, Tensor]


@dataclass(frozen=True, slots=True)
class Place:
    """One tile. rows, columns: of what is given; the rest in pixels of the result.

    done: how many first rows of the result are finished once this tile is added, None if no more than before.
    """

    rows: Span
    columns: Span
    result_rows: Span
    result_columns: Span
    row_share: Share
    column_share: Share
    done: int | None


def blended(
    run: "Run",
    given: "Tensor",
    grid: Grid,
    *,
    scale: Fraction | int,
    batch: int = 1,
    out: "Tensor | None" = None,
    host: bool = False,
) -> "Tensor":
    """What `run` makes of the tiles of `given`, blended into one tensor, in float32 unless `out` says otherwise.

    grid: over the latents, also when a picture is encoded; scale: result pixels per given pixel, 8 or Fraction(1, 8).
    batch: tiles in one call of `run`, which gets a copy and whose result is overwritten. The last call may have fewer.
    out: where to put the result. host: keep it in host memory, pinned where tiles come from a card, which then holds
    one row of tiles.
    """
    places = _places(given, grid, Fraction(scale))
    if host:
        return _on_host(_finished(run, given, places, batch), places, out)
    ramps: Ramps = {}
    for place, tile in _results(run, given, places, batch):
        if not ramps:
            ramps = _ramps(places, tile)
            out = _zeros(tile, places[-1].result_rows.stop, places) if out is None else out.zero_()
        assert out is not None, "the first tile has made it"
        _add(out, 0, place, tile, ramps)
    assert out is not None, "a grid has a tile"
    return out


def blended_rows(
    run: "Run", given: "Tensor", grid: Grid, *, scale: Fraction | int, batch: int = 1
) -> Iterator[tuple[int, "Tensor"]]:
    """(first row, rows of the result), from the top, each as soon as no later tile touches it.

    One row of tiles is held, not the whole result; what comes is a view of it, good until the next is asked for.
    """
    return _finished(run, given, _places(given, grid, Fraction(scale)), batch)


# -- geometry in pixels ------------------------------------------------------------------------------------------------


def _places(given: "Tensor", grid: Grid, scale: Fraction) -> list[Place]:
    up, down = scale.numerator, scale.denominator
    asked = tuple(side * down for side in grid.size)
    if tuple(given.shape[-2:]) != asked:
        there = "x".join(map(str, given.shape[-2:]))
        raise UsageError(f"the tiles cover {asked[0]}x{asked[1]} (rows x columns), what is given has {there}")
    column_shares = tiles.shares(grid.columns)
    row_shares = tiles.shares(grid.rows)
    finished = [*(after.reach.start * up for _, after in pairwise(row_shares)), grid.size[0] * up]
    return [
        Place(
            rows=row.times(down),
            columns=column.times(down),
            result_rows=row.times(up),
            result_columns=column.times(up),
            row_share=row_share.times(up),
            column_share=column_share.times(up),
            done=done if column is grid.columns[-1] else None,
        )
        for row, row_share, done in zip(grid.rows, row_shares, finished, strict=True)
        for column, column_share in zip(grid.columns, column_shares, strict=True)
    ]


def _ramps(places: list[Place], like: "Tensor") -> "Ramps":
    """Rising weights by length, on the tile's device; each is computed once."""
    import torch

    shares = [share for place in places for share in (place.row_share, place.column_share)]
    lengths = {length for share in shares for length in (share.rise, share.fall)}
    dtype = torch.promote_types(like.dtype, torch.float32)
    return {length: torch.tensor(tiles.ramp(length), dtype=dtype, device=like.device) for length in lengths}


# -- tiles -------------------------------------------------------------------------------------------------------------


def _results(run: "Run", given: "Tensor", places: list[Place], batch: int) -> Iterator[tuple[Place, "Tensor"]]:
    """Each place with what `run` makes of it, in float32 or wider: half precision shows bands where tiles add up."""
    import torch

    if batch < 1:
        raise UsageError(f"{batch} tiles in a batch: give 1 or more")
    for start in range(0, len(places), batch):
        group = places[start : start + batch]
        with torch.no_grad():
            made = run(_cut(given, group))
        _check(made, given, group)
        for place, tile in zip(group, made.split(given.shape[0]), strict=True):
            yield place, tile.to(torch.promote_types(tile.dtype, torch.float32))


def _cut(given: "Tensor", group: list[Place]) -> "Tensor":
    """The tiles of the group along the batch: a copy in the memory format of `given`, never a view of it."""
    import torch

    flat = given.dim() == 4 and not given.is_contiguous() and given.is_contiguous(memory_format=torch.channels_last)
    cuts = [given[..., p.rows.start : p.rows.stop, p.columns.start : p.columns.stop] for p in group]
    made = torch.cat(cuts) if len(cuts) > 1 else cuts[0].clone()
    return made.contiguous(memory_format=torch.channels_last if flat else torch.contiguous_format)


def _check(made: "Tensor", given: "Tensor", group: list[Place]) -> None:
    place = group[0]
    asked = (len(group) * given.shape[0], place.result_rows.length, place.result_columns.length)
    there = (made.shape[0], *made.shape[-2:])
    if there != asked:
        raise UsageError(f"tiles come back as {there} (batch, rows, columns), expected {asked}: is the scale right?")


def _zeros(tile: "Tensor", rows: int, places: list[Place]) -> "Tensor":
    return tile.new_zeros((*tile.shape[:-2], rows, places[-1].result_columns.stop))


def _add(canvas: "Tensor", first_row: int, place: Place, tile: "Tensor", ramps: "Ramps") -> None:
    """Weigh the tile in place and add it. canvas: the result from `first_row` on."""
    for dim, share, span in (
        (-2, place.row_share, place.result_rows),
        (-1, place.column_share, place.result_columns),
    ):
        tile = tile.narrow(dim, share.reach.start - span.start, share.reach.length)
        shape = (-1, 1) if dim == -2 else (-1,)
        if share.rise:
            tile.narrow(dim, 0, share.rise).mul_(ramps[share.rise].view(shape))
        if share.fall:
            tile.narrow(dim, share.reach.length - share.fall, share.fall).mul_(1 - ramps[share.fall].view(shape))
    rows, columns = place.row_share.reach, place.column_share.reach
    canvas[..., rows.start - first_row : rows.stop - first_row, columns.start : columns.stop].add_(tile)


# -- a row of tiles at a time ------------------------------------------------------------------------------------------


def _finished(run: "Run", given: "Tensor", places: list[Place], batch: int) -> Iterator[tuple[int, "Tensor"]]:
    band, ramps, first_row = None, {}, 0
    for place, tile in _results(run, given, places, batch):
        if band is None:
            band, ramps = _zeros(tile, place.result_rows.length, places), _ramps(places, tile)
        _add(band, first_row, place, tile, ramps)
        if place.done is not None:
            count = place.done - first_row
            yield first_row, band[..., :count, :]
            _scroll(band, count)
            first_row = place.done


def _scroll(band: "Tensor", count: int) -> None:
    """Drop the first rows, move up the others, and begin with zeros below."""
    kept = band.shape[-2] - count
    band[..., :kept, :] = band[..., count:, :].clone()
    band[..., kept:, :] = 0


def _on_host(finished: Iterator[tuple[int, "Tensor"]], places: list[Place], out: "Tensor | None") -> "Tensor":
    import torch

    rows = None
    for first_row, rows in finished:
        if out is None:
            shape = (*rows.shape[:-2], places[-1].result_rows.stop, places[-1].result_columns.stop)
            out = torch.empty(shape, dtype=rows.dtype, pin_memory=rows.is_cuda)
        # the card goes on with the next tiles meanwhile: on its stream, the copy comes before the band is written again
        out[..., first_row : first_row + rows.shape[-2], :].copy_(rows, non_blocking=True)
    assert out is not None, "a grid has a tile"
    assert rows is not None, "a grid has a tile"
    if rows.is_cuda:
        torch.cuda.current_stream(rows.device).synchronize()
    return out
