"""What is told of tiles: they cover every pixel, are alike, and count 1 together; and what they cost."""

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from safelight.errors import UsageError
from safelight.vae.tiles import (
    Grid,
    Span,
    decoded_share,
    even_tile,
    grid,
    ramp,
    shares,
    spans,
    weights,
)


@st.composite
def lines(draw):
    """(length, tile, overlap) of any size, tiles larger than the length and overlaps over half a tile with them."""
    tile = draw(st.integers(1, 80))
    return draw(st.integers(1, 400)), tile, draw(st.integers(0, tile - 1))


# -- where tiles lie ---------------------------------------------------------------------------------------------------


@given(lines())
def test_every_pixel_is_covered_and_neighbours_overlap_as_asked_or_more(line):
    length, _, overlap = line
    found = spans(*line)
    assert (found[0].start, found[-1].stop) == (0, length)
    assert all(left.stop - right.start >= overlap and left.start < right.start for left, right in pairwise(found))


@given(lines())
def test_tiles_are_equally_long_and_smaller_only_where_the_length_is(line):
    length, tile, _ = line
    assert {span.length for span in spans(*line)} == {min(length, tile)}


@given(lines())
def test_one_tile_fewer_would_not_reach(line):
    length, tile, overlap = line
    count = len(spans(*line))
    assert count == 1 or (count - 1) * (tile - overlap) + overlap < length


@given(lines())
def test_even_tiles_are_as_many_and_the_smallest_that_reach(line):
    length, tile, overlap = line
    even = even_tile(*line)
    count = len(spans(length, even, overlap))
    assert even <= min(length, tile)
    assert count == len(spans(*line))
    assert count == 1 or even - 1 <= overlap or len(spans(length, even - 1, overlap)) > count


def test_a_grid_goes_row_by_row_and_tiles_need_not_be_square():
    tiles = grid(10, 12, tile=(10, 8), overlap=(0, 4))
    assert list(tiles) == [(Span(0, 10), Span(0, 8)), (Span(0, 10), Span(4, 12))]
    assert (len(tiles), tiles.size, tiles.tile) == (2, (10, 12), (10, 8))


def test_grids_are_values():
    assert grid(100, 90, 32, 8) == grid(100, 90, (32, 32), (8, 8))
    assert hash(grid(100, 90, 32, 8)) == hash(grid(100, 90, 32, 8))
    assert grid(100, 90, 32, 8, even=True) == grid(100, 90, (even_tile(100, 32, 8), even_tile(90, 32, 8)), 8)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ((10, 0, 0), "tiles of 0 over 10"),
        ((0, 8, 0), "tiles of 8 over 0"),
        ((10, 8, 8), "cannot overlap by 8: give 0 to 7"),
        ((10, 8, -1), "cannot overlap by -1"),
    ],
)
def test_what_cannot_be_tiled_is_refused(line, words):
    with pytest.raises(UsageError, match=words):
        spans(*line)


# -- how much they count -----------------------------------------------------------------------------------------------


def summed(line, factor=1):
    """(sum of the weights, number of tiles that count) of each pixel."""
    total, counted = [0.0] * (line[-1].stop * factor), [0] * (line[-1].stop * factor)
    for share in shares(line):
        share = share.times(factor)
        for i, weight in enumerate(weights(share), share.reach.start):
            total[i] += weight
            counted[i] += weight > 0
    return total, counted


@given(lines(), st.sampled_from([1, 2, 8]))
def test_weights_sum_to_exactly_one_in_every_pixel(line, factor):
    total, _ = summed(spans(*line), factor)
    assert set(total) == {1.0}


@given(lines())
def test_no_pixel_counts_in_more_than_two_tiles_whatever_the_overlap(line):
    _, counted = summed(spans(*line))
    assert max(counted) <= 2


@given(lines())
def test_a_tile_counts_within_itself_and_as_long_as_its_weights(line):
    found = spans(*line)
    for span, share in zip(found, shares(found), strict=True):
        assert span.start <= share.reach.start < share.reach.stop <= span.stop
        assert share.rise + share.fall <= share.reach.length == len(weights(share))


@given(lines())
def test_overlaps_of_up_to_half_a_tile_are_blended_over_their_whole_length(line):
    found = spans(*line)
    for (left, right), share in zip(pairwise(found), shares(found), strict=False):
        overlap = left.stop - right.start
        assume(2 * overlap <= left.length)
        assert share.fall == overlap


@given(st.integers(1, 300))
def test_a_ramp_rises_and_is_its_own_mirror_image(length):
    up = ramp(length)
    assert all(a < b for a, b in pairwise(up))
    assert [1 - weight for weight in up] == pytest.approx(up[::-1], abs=1e-15)


# -- what they cost ----------------------------------------------------------------------------------------------------


def test_what_diffusers_decodes_at_1024_px_is_known():
    ragged = Grid(*2 * [(Span(0, 64), Span(48, 112), Span(96, 128))])
    decoded = sum(row.length * column.length for row, column in ragged)
    assert decoded / 128**2 == 1.5625
    assert decoded_share(grid(128, 128, 64, 16)) == 2.25
    assert decoded_share(grid(128, 128, 64, 16, even=True)) == pytest.approx(1.60, abs=0.005)
    assert decoded_share(grid(256, 256, 64, 16, even=True)) == 1.5625  # diffusers: 1.72


@given(lines(), lines())
def test_more_overlap_never_lowers_memory_nor_the_pixels_decoded(rows, columns):
    plain = grid(rows[0], columns[0], (rows[1], columns[1]), 0)
    more = grid(rows[0], columns[0], (rows[1], columns[1]), (rows[2], columns[2]))
    assert more.tile == plain.tile
    assert decoded_share(more) >= decoded_share(plain) >= 1
