"""Spoiled pictures are told, whole ones are left in peace."""

import numpy as np
import pictures
import pytest
from PIL import Image

from safelight.errors import UsageError
from safelight.measure.quality import artifacts


def tiled(picture, tile_px, levels):
    """Every tile a little brighter or darker than it was."""
    random = np.random.default_rng(3)
    values = np.asarray(picture).astype(float)
    for top in range(0, picture.height, tile_px):
        for left in range(0, picture.width, tile_px):
            values[top : top + tile_px, left : left + tile_px] += random.normal(0, levels)
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


@pytest.fixture
def soft():
    """Without hard edges, a little grain: as a photograph out of focus."""
    return pictures.noisy(pictures.blurred(pictures.synthetic(192), 8), 2)


@pytest.mark.parametrize("tile_px", [None, 16, 48, 64, 96])
@pytest.mark.parametrize("change", [lambda x: x, *(lambda x, d=d: d[0](x, d[1][1]) for d in pictures.DAMAGES.values())])
def test_a_picture_without_tiles_has_no_findings(change, tile_px, soft):
    plain = pictures.synthetic(192)
    assert artifacts(change(plain), tile_px) == []
    assert artifacts(change(soft), tile_px) == []
    assert artifacts(change(plain), tile_px, plain) == []


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_black_picture_is_black(level):
    found = artifacts(Image.new("RGB", (64, 64), (level, 0, level)))
    assert [one.split(":")[0] for one in found] == ["black"]


@pytest.mark.parametrize("colour", ["white", "#7f7f7f", "#203040"])
def test_one_colour_is_flat_for_all_its_stray_pixels(colour):
    picture = Image.new("RGB", (64, 64), colour)
    picture.putpixel((3, 3), (255, 0, 0))
    assert [one.split(":")[0] for one in artifacts(pictures.noisy(picture, 1))] == ["flat"]


def test_a_picture_mostly_white_is_clipped_if_the_plain_one_is_not():
    plain = pictures.synthetic(64)
    washed = Image.fromarray((np.asarray(plain).astype(int) * 2.4).clip(0, 255).astype(np.uint8))
    assert artifacts(plain) == []
    found = artifacts(washed, None, plain)
    assert len(found) == 1
    assert "pure white, 0% in the plain picture" in found[0]
    assert artifacts(washed, None, washed) == []


def test_a_drawing_on_white_is_clipped_only_where_nothing_is_known_of_the_plain_one():
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste(pictures.synthetic(30), (17, 17))
    assert artifacts(picture)[0].startswith("clipped: 78% of the pixels are pure white")
    assert artifacts(picture, None, picture) == []


@pytest.mark.parametrize("tile_px", [24, 48, 64])
def test_seams_are_found_at_the_borders_of_tiles_and_only_there(tile_px, soft):
    spoiled = tiled(soft, tile_px, 6)
    found = artifacts(spoiled, tile_px)
    assert len(found) == 2
    assert f"at columns {tile_px}, {2 * tile_px}" in found[0]
    assert f"at rows {tile_px}, {2 * tile_px}" in found[1]
    assert artifacts(spoiled, tile_px + 7) == []


def test_beside_the_plain_picture_seams_of_two_levels_are_found_among_hard_edges():
    plain = pictures.synthetic(192)
    spoiled = tiled(plain, 48, 2)
    assert len(artifacts(spoiled, 48, plain)) == 2
    assert artifacts(spoiled, 40, plain) == []


def test_one_tile_has_no_border():
    assert artifacts(pictures.synthetic(64), 64) == []


def test_tiles_that_are_all_border_are_refused():
    with pytest.raises(UsageError, match="3 px"):
        artifacts(pictures.synthetic(64), 3)
