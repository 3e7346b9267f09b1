"""Upscalers go by A1111's names, and every one of them gives exactly the size that was asked for."""

import pytest
import torch
from esrgan import compact_state, noise, state
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from safelight.errors import EnvironmentProblem, ModelNotFound, UnknownName, UsageError
from safelight.sampling import catalog_upscalers as catalog
from safelight.sampling import resampling, upscalers
from safelight.sampling.networks import Compact
from safelight.sampling.recognition import recognised

NETWORKS = [row for row in catalog.ROWS if row.way == "network"]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "safelight" / "upscalers"


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("None", "None"),
        ("lanczos", "Lanczos"),
        ("NEAREST", "Nearest"),
        ("R-ESRGAN 4x+", "R-ESRGAN 4x+"),
        ("r-esrgan 4x+ anime6b", "R-ESRGAN 4x+ Anime6B"),
        ("RealESRGAN_x4plus", "R-ESRGAN 4x+"),
        ("R-ESRGAN AnimeVideo", "realesr-animevideov3-x4"),
        ("realesr-animevideov3-x2", "realesr-animevideov3-x2"),
        ("Latent (nearest-exact)", "Latent (nearest-exact)"),
    ],
)
def test_names_are_a1111s_in_any_case(asked, name):
    assert catalog.find(asked).name == name


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(UnknownName, match=r"did you mean .*R-ESRGAN 4x\+"):
        catalog.find("R-ESRGAN 4x")


def test_a_path_stands_for_itself(tmp_path):
    save_file(state(), tmp_path / "mine.safetensors")
    row = catalog.find(str(tmp_path / "mine.safetensors"))

    assert (row.name, row.kind, row.way) == ("mine", "image", "network")
    assert upscalers.open_network(row).scale == 4


@pytest.mark.parametrize("asked", ["nowhere/mine", "mine.safetensors", "mine.pth"])
def test_a_path_without_a_file_is_said(asked):
    with pytest.raises(ModelNotFound, match="no file of weights"):
        catalog.find(asked)


def test_latent_rows_are_those_that_a1111_has():
    assert {row.name for row in catalog.ROWS if row.kind == "latent"} == set(resampling.LATENT_MODES)
    assert len(resampling.LATENT_MODES) == 6


@pytest.mark.parametrize("row", NETWORKS, ids=lambda row: row.name)
def test_every_network_says_whose_it_is_and_what_it_weighs(row):
    assert row.licence
    assert row.source
    assert row.size_bytes
    assert row.bundled == (not row.url)
    assert len(row.sha256) == (0 if row.bundled else 64)
    assert row.network.endswith(f"x{row.scale}") or "half as large" in row.note


@pytest.mark.parametrize("row", [row for row in NETWORKS if row.bundled], ids=lambda row: row.name)
def test_bundled_weights_are_the_network_that_the_table_says(row):
    assert upscalers.open_network(row).kind == row.network
    assert catalog.weights_of(row).stat().st_size == row.size_bytes


def test_weights_that_are_not_here_name_the_command_that_fetches_them(cache):
    row = catalog.find("R-ESRGAN 4x+")
    assert not catalog.is_here(row)
    with pytest.raises(EnvironmentProblem, match=r"safelight get 'R-ESRGAN 4x\+' fetches them \(67\.0 MB\)"):
        upscalers.open_network(row)


# -- sizes -------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    sides=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    scale=st.sampled_from([1, 2, 4]),
)
def test_the_size_is_exactly_the_one_asked_for(sides, target, scale):
    row = catalog.find("realesr-animevideov3-x4")
    network = recognised(compact_state(layers=2, scale=scale), "a")

    larger = upscalers.enlarged(row, network, noise(*sides), *target)

    assert larger.shape == (1, 3, *target)
    assert larger.min() >= 0
    assert larger.max() <= 1


class Counted:
    """A network that counts how often it runs."""

    margin_px = reach_px = 2
    tile_px, align_px = 512, 1

    def __init__(self, scale):
        network = recognised(compact_state(layers=2, scale=scale), "a")
        self.network, self.scale, self.kernel, self.runs = network, scale, network.kernel, 0
        assert isinstance(network, Compact)

    def __call__(self, pictures):
        self.runs += 1
        return self.network(pictures)


@pytest.mark.parametrize(
    ("scale", "target", "runs"),
    [
        (2, 8, 1),
        (2, 9, 2),
        (2, 33, 3),
        (2, 200, 3),  # A1111 stops after three, and Lanczos does the rest
        (4, 8, 1),
        (4, 2, 0),  # smaller than it is: Lanczos alone
        (4, 4, 1),  # just as large: once, to mend it
        (1, 4, 1),
        (1, 20, 1),
    ],
)
def test_a_network_runs_until_it_is_enough(scale, target, runs):
    network = Counted(scale)
    larger = upscalers.enlarged(catalog.find("realesr-animevideov3-x4"), network, noise(4, 4), target, target)
    assert (network.runs, tuple(larger.shape)) == (runs, (1, 3, target, target))


@pytest.mark.parametrize(("name", "resample"), [("Lanczos", "LANCZOS"), ("None", "LANCZOS"), ("Nearest", "NEAREST")])
def test_resampling_is_pillows(name, resample):
    picture = noise(7, 9).mul(255).byte()
    image = Image.fromarray(picture[0].permute(1, 2, 0).contiguous().numpy())

    larger = upscalers.enlarged(catalog.find(name), None, picture, 20, 31)

    expected = image.resize((31, 20), Image.Resampling[resample])
    assert torch.equal(larger[0], resampling.pixels(expected))


def test_floats_are_resampled_through_8_bit_and_keep_their_dtype():
    larger = resampling.resized(noise(5, 5).bfloat16(), 8, 9)
    assert (larger.dtype, tuple(larger.shape)) == (torch.bfloat16, (1, 3, 8, 9))


def test_pictures_of_that_size_stay_as_they_are():
    pictures = noise(5, 6)
    assert resampling.resized(pictures, 5, 6) is pictures


@pytest.mark.parametrize("mode", resampling.LATENT_MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_latents_are_resized_as_a1111_does(mode, dtype):
    latents = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    kind, antialias = resampling.LATENT_MODES[mode]

    larger = upscalers.upscale_latents(latents, 9, 11, mode.upper())

    expected = F.interpolate(latents.float(), size=(9, 11), mode=kind, antialias=antialias)
    assert (larger.dtype, tuple(larger.shape)) == (dtype, (2, 4, 9, 11))
    assert torch.equal(larger, expected.to(dtype))


def test_an_unknown_latent_mode_gives_the_nearest():
    with pytest.raises(UnknownName, match=r"did you mean .*Latent \(bicubic\)"):
        upscalers.upscale_latents(torch.zeros(1, 4, 2, 2), 3, 3, "Latent bicubic")


def test_latent_modes_do_not_take_pictures():
    with pytest.raises(UsageError, match="Latent is for latents"):
        upscalers.enlarged(catalog.find("Latent"), None, noise(4, 4), 8, 8)


@pytest.mark.parametrize("asked", [None, "Latent", "Latent (bicubic)"])
def test_between_passes_latent_modes_need_nothing_loaded(asked):
    assert upscalers.enlarging(asked) is None


@pytest.mark.parametrize("asked", ["Lanczos", "realesr-animevideov3-x2"])
def test_between_passes_pictures_are_made_of_the_size_asked_for(asked):
    assert upscalers.enlarging(asked)(noise(4, 6), 9, 13).shape == (1, 3, 9, 13)
