"""What is told of blended tiles: the whole where tiles agree, soft seams where they do not, rows as they finish."""

import math
from fractions import Fraction

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d, conv2d, interpolate

from safelight.errors import UsageError
from safelight.vae.blended import blended, blended_rows
from safelight.vae.tiles import grid, ramp


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pointwise(tiles):
    """Four channels to three, twice as large; each pixel from its own latent pixel."""
    grown = tiles.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return torch.stack([grown[:, 0], grown[:, 1] * grown[:, 2], grown[:, 3].tanh()], 1)


def smoothed(tiles):
    """A 5x5 box: a pixel depends on 2 neighbours on each side, and tile edges see zeros beyond."""
    return conv2d(tiles, torch.ones(1, tiles.shape[1], 5, 5) / 25, padding=2)


@st.composite
def grids(draw):
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    tile = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    overlap = draw(st.integers(0, tile[0] - 1)), draw(st.integers(0, tile[1] - 1))
    return grid(height, width, tile, overlap, even=draw(st.booleans()))


# -- the picture -------------------------------------------------------------------------------------------------------


@given(grids(), st.integers(1, 2), st.integers(1, 5))
@settings(deadline=None)
def test_what_needs_no_neighbours_equals_the_whole(tiles, pictures, batch):
    latents = noise(pictures, 4, *tiles.size)
    out = blended(pointwise, latents, tiles, scale=2, batch=batch)
    torch.testing.assert_close(out, pointwise(latents), atol=1e-6, rtol=0)


@given(st.integers(5, 40), st.integers(5, 40), st.sampled_from([(12, 4), (16, 8), (9, 6)]), st.booleans())
@settings(deadline=None)
def test_what_a_tile_edge_spoils_counts_as_little_as_the_ramp_lets_it(height, width, sides, even):
    (tile, overlap), reach = sides, 2
    latents = noise(1, 3, height, width)
    whole, tiles = smoothed(latents), grid(height, width, tile, overlap, even=even)
    spoilt = max(
        (whole[..., r.start : r.stop, c.start : c.stop] - smoothed(latents[..., r.start : r.stop, c.start : c.stop]))
        .abs()
        .max()
        for r, c in tiles
    )
    error = (blended(smoothed, latents, tiles, scale=1) - whole).abs().max()
    # spoilt are the `reach` pixels at a tile's edge; in each direction they count what the ramp has there, at most
    assert error <= 2 * ramp(overlap)[reach - 1] * spoilt + 1e-6


def test_tones_that_differ_from_tile_to_tile_pass_into_each_other():
    numbers = iter(range(100))
    tiles, overlap = grid(60, 40, 16, 5), 5
    out = blended(lambda tile: torch.full_like(tile, next(numbers)), torch.zeros(1, 1, 60, 40), tiles, scale=1)
    across, down = out.diff(dim=-1).abs().max(), out.diff(dim=-2).abs().max()
    # a raised cosine over n pixels climbs by pi / 2n at most; the next column is 1 tile on, the next row a row of tiles
    assert across <= math.pi / 2 / overlap
    assert down <= len(tiles.columns) * math.pi / 2 / overlap


@pytest.mark.parametrize("batch", [2, 3, 7, 100])
def test_tiles_in_one_batch_change_nothing(batch):
    latents, tiles = noise(2, 4, 30, 41), grid(30, 41, (10, 12), (3, 5))
    alone = blended(pointwise, latents, tiles, scale=2)
    assert torch.equal(blended(pointwise, latents, tiles, scale=2, batch=batch), alone)


def test_run_sees_equal_contiguous_tiles_and_no_more_in_a_batch_than_asked():
    seen = []

    def run(tiles):
        seen.append(tiles.shape)
        assert tiles.is_contiguous()
        return pointwise(tiles)

    tiles = grid(30, 41, (10, 12), (3, 5))
    blended(run, noise(2, 4, 30, 41), tiles, scale=2, batch=5)
    assert {shape[1:] for shape in seen} == {(4, 10, 12)}
    assert [shape[0] for shape in seen] == [2 * 5, 2 * 5, 2 * 5, 2 * 5, 2 * 4]
    assert len(tiles) == 24


def test_tiles_keep_the_memory_format_of_what_is_given():
    latents = noise(1, 4, 20, 20).to(memory_format=torch.channels_last)
    formats = set()

    def run(tiles):
        formats.add((tiles.is_contiguous(memory_format=torch.channels_last), tiles.is_contiguous()))
        return pointwise(tiles)

    out = blended(run, latents, grid(20, 20, 8, 2), scale=2)
    assert formats == {(True, False)}
    torch.testing.assert_close(out, pointwise(latents))


def test_what_is_given_stays_as_it_was_even_if_run_gives_it_back():
    latents = noise(1, 4, 20, 20)
    before = latents.clone()
    for side in (20, 8):
        torch.testing.assert_close(blended(lambda tiles: tiles, latents, grid(20, 20, side, 2), scale=1), before)
    assert torch.equal(latents, before)


def test_video_is_tiled_in_its_last_two_dimensions_and_may_grow_in_time():
    def run(tiles):
        frames = tiles.repeat_interleave(4, 2)[:, :3, 3:]
        return interpolate(frames, scale_factor=(1, 2, 2))

    latents = noise(1, 4, 3, 20, 26)
    out = blended(run, latents, grid(20, 26, (8, 12), 3), scale=2, batch=2)
    assert out.shape == (1, 3, 9, 40, 52)
    torch.testing.assert_close(out, run(latents))


@given(grids())
@settings(deadline=None)
def test_a_picture_is_encoded_on_the_grid_of_its_latents(tiles):
    height, width = tiles.size
    picture = noise(1, 3, 4 * height, 4 * width)
    out = blended(lambda tile: avg_pool2d(tile, 4), picture, tiles, scale=Fraction(1, 4))
    torch.testing.assert_close(out, avg_pool2d(picture, 4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_added_up_in_float32(dtype):
    latents = torch.full((1, 4, 40, 40), 0.7, dtype=dtype)
    out = blended(lambda tiles: tiles, latents, grid(40, 40, 16, 7), scale=1)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, latents.float(), atol=1e-6, rtol=0)


def test_double_precision_stays():
    assert blended(pointwise, noise(1, 4, 9, 9).double(), grid(9, 9, 4, 1), scale=2).dtype == torch.float64


@pytest.mark.parametrize("host", [False, True])
def test_the_result_goes_where_it_is_asked_to(host):
    latents, tiles = noise(1, 4, 20, 26), grid(20, 26, (8, 12), 3)
    out = torch.full((1, 3, 40, 52), float("nan"), dtype=torch.bfloat16)
    assert blended(pointwise, latents, tiles, scale=2, out=out, host=host) is out
    torch.testing.assert_close(out.float(), pointwise(latents), atol=2e-2, rtol=1e-2)


def test_no_gradients_are_kept():
    latents = noise(1, 4, 20, 20).requires_grad_()
    assert not blended(pointwise, latents, grid(20, 20, 8, 2), scale=2).requires_grad


def test_tiles_for_another_picture_are_refused():
    with pytest.raises(UsageError, match="cover 20x20"):
        blended(pointwise, noise(1, 4, 20, 21), grid(20, 20, 8, 2), scale=2)


def test_a_batch_without_tiles_is_refused():
    with pytest.raises(UsageError, match="0 tiles in a batch"):
        blended(pointwise, noise(1, 4, 20, 20), grid(20, 20, 8, 2), scale=2, batch=0)


def test_another_scale_than_asked_is_refused():
    with pytest.raises(UsageError, match=r"\(1, 16, 16\) .*expected \(1, 64, 64\)"):
        blended(pointwise, noise(1, 4, 20, 20), grid(20, 20, 8, 2), scale=8)


# -- rows as they finish -----------------------------------------------------------------------------------------------


@given(grids(), st.integers(1, 5))
@settings(deadline=None)
def test_finished_rows_come_in_order_each_once_and_make_up_the_result(tiles, batch):
    latents = noise(1, 4, *tiles.size)
    rows, next_row = [], 0
    for first_row, part in blended_rows(pointwise, latents, tiles, scale=2, batch=batch):
        assert first_row == next_row
        rows.append(part.clone())
        next_row += part.shape[-2]
    out = blended(pointwise, latents, tiles, scale=2)
    assert torch.equal(torch.cat(rows, -2), out)
    assert torch.equal(blended(pointwise, latents, tiles, scale=2, host=True), out)


def test_rows_come_before_the_next_row_of_tiles_is_run_and_one_band_is_held():
    calls = []

    def run(tiles):
        calls.append(len(tiles))
        return pointwise(tiles)

    tiles = grid(100, 20, 16, 4)
    for count, (_, part) in enumerate(blended_rows(run, noise(1, 4, 100, 20), tiles, scale=2), 1):
        assert len(calls) == count * len(tiles.columns)
        assert part.untyped_storage().nbytes() == 3 * 32 * 40 * 4


# -- a real VAE --------------------------------------------------------------------------------------------------------


@pytest.fixture
def vae():
    torch.manual_seed(0)
    vae = tiny.vae().requires_grad_(False)
    vae.tile_latent_min_size, vae.tile_sample_min_size, vae.tile_overlap_factor = 16, 32, 0.25
    return vae


def uneven(*shape):
    """Noise that grows from left to right: each tile has other statistics."""
    return noise(*shape) * torch.linspace(0.3, 2, shape[-1])


def rmse(out, truth):
    return (out - truth).square().mean().sqrt()


def decoded(vae):
    return lambda latents: vae.decode(latents).sample


def encoded(vae):
    return lambda picture: vae.encode(picture).latent_dist.mean


@pytest.mark.parametrize("size", [(40, 44), (48, 48)], ids=str)
@pytest.mark.parametrize(
    ("coder", "channels", "up", "down"), [(decoded, 4, 2, 1), (encoded, 3, 1, 2)], ids=["decode", "encode"]
)
def test_a_real_vae_differs_no_more_than_with_the_tiles_of_diffusers(vae, coder, channels, up, down, size):
    run, picture = coder(vae), uneven(1, channels, *(side * down for side in size))
    whole = run(picture)
    ours = blended(run, picture, grid(*size, 16, 4), scale=Fraction(up, down))
    vae.enable_tiling()
    assert rmse(ours, whole) <= rmse(run(picture), whole)
