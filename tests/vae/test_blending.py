"""What is told of a VAE in tiles: shared statistics bring it nearer to the whole, in the bytes that were predicted."""

import pytest
import tiny_vaes
import torch

from safelight.simulate.trace import record
from safelight.vae import blending as module
from safelight.vae.blending import Blending, blending
from safelight.vae.sampling import Crops

WIDTHS = (8, 16)


@pytest.fixture
def vae():
    return tiny_vaes.kl(WIDTHS, attention=False)


def uneven(what: str, height: int, width: int, pictures: int = 1) -> torch.Tensor:
    """Noise that grows to the right: tiles differ in their statistics."""
    channels, scale = (4, 1) if what == "decode" else (3, 2)
    made = torch.randn(pictures, channels, height * scale, width * scale, generator=torch.Generator().manual_seed(0))
    return made * torch.linspace(0.1, 2.0, width * scale)


def in_tiles(vae, what, given, **how):
    with blending(vae, 32, 0.25, what) as tiled, torch.no_grad():
        for name, value in how.items():
            setattr(tiled, name, value)
        return tiny_vaes.whole(vae, what, given), tiled


def rmse(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).pow(2).mean().sqrt())


@pytest.mark.parametrize("what", ["decode", "encode"])
def test_shared_statistics_bring_tiles_nearer_to_the_whole(vae, what):
    given = uneven(what, 48, 48)
    whole = tiny_vaes.whole(vae, what, given)
    own, _ = in_tiles(vae, what, given, shared=False)
    shared, _ = in_tiles(vae, what, given)
    assert rmse(shared, whole) < 0.6 * rmse(own, whole)


def test_with_the_statistics_of_the_whole_only_the_edges_of_tiles_differ(vae, monkeypatch):
    given = uneven("decode", 40, 40)
    monkeypatch.setattr(module, "crops", lambda *size: Crops(((0, 0),), 40))
    whole, (shared, tiled) = tiny_vaes.whole(vae, "decode", given), in_tiles(vae, "decode", given)
    assert tiled.counts[0] > 4
    torch.testing.assert_close(shared[..., :12, :12], whole[..., :12, :12], rtol=0, atol=1e-4)


def test_each_picture_of_a_batch_has_its_own_statistics(vae):
    given = uneven("decode", 40, 36, pictures=2) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    together, _ = in_tiles(vae, "decode", given)
    alone = torch.cat([in_tiles(vae, "decode", one)[0] for one in given.split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_the_bytes_are_those_that_were_predicted(shared):
    vae, given = tiny_vaes.kl((16, 32)), torch.randn(1, 4, 160, 160)
    tiled = Blending(vae, tile_px=128, shared=shared)
    predicted = tiled.peak_bytes(given, tiled.grid(given))
    with torch.no_grad():
        tiled(given)
        peak = record(lambda: tiled(given), [given]).peak_bytes - given.nbytes
    assert peak == pytest.approx(predicted, rel=0.1)


def test_a_small_picture_keeps_its_tiles_own_statistics(vae):
    given = uneven("decode", 24, 30)
    own, _ = in_tiles(vae, "decode", given, shared=False)
    assert torch.equal(in_tiles(vae, "decode", given)[0], own)


def test_tiles_of_a_vae_without_norms_are_predicted_without_crops():
    vae, given = tiny_vaes.taesd(), torch.randn(1, 4, 40, 40)
    tiled, alone = (Blending(vae, tile_px=64, shared=shared) for shared in (True, False))
    grid = alone.grid(given)
    assert len(grid) > 1
    assert tiled.work(given, grid) == alone.work(given, grid) == len(grid) * alone.plan(given, grid).work
    assert tiled.peak_bytes(given, grid) == alone.peak_bytes(given, grid)
