"""The catalogue of VAEs: names people use, files told apart by their checksums, and why one does not fit another."""

import hashlib

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from hypothesis import given
from hypothesis import strategies as st

from safelight.errors import UnknownName
from safelight.probe import blueprint
from safelight.probe.vae_catalog import (
    ALL,
    CATALOGUE,
    CONFIGS,
    FAMILIES,
    Latents,
    Published,
    Row,
    family_of,
    find,
    latents_of,
    listing,
    mismatch,
    named,
    recognised,
)

every = pytest.mark.parametrize("row", CATALOGUE, ids=lambda row: row.name)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("ft-mse", "ft-mse"),
        ("FT_MSE", "ft-mse"),
        ("vae-ft-mse-840000-ema-pruned", "ft-mse"),
        ("vae-ft-ema-560000-ema-pruned.safetensors", "ft-ema"),
        ("stabilityai/sd-vae-ft-mse", "ft-mse"),
        ("madebyollin/taesdxl@main", "taesdxl"),
        ("kl-f8-anime2.ckpt", "kl-f8-anime2"),
        ("sdxl_vae.safetensors", "sdxl-vae"),
        ("fp16-fix", "sdxl-vae-fp16-fix"),
        ("ae.safetensors", "flux-vae"),
    ],
)
def test_names_aliases_files_and_hub_ids_are_understood(asked, name):
    assert find(asked).name == name


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(UnknownName, match="unknown VAE 'ft-msa': did you mean ft-mse"):
        find("ft-msa")


def test_what_is_no_name_is_none():
    assert named("someone/vae") is None


@every
def test_a_name_stands_for_one_row_alone(row):
    assert [found.name for found in (named(row.name), named(row.hub), *map(named, row.aliases))] == [row.name] * (
        2 + len(row.aliases)
    )


@every
def test_a_row_has_a_source_a_use_and_a_precision(row):
    assert row.source.startswith("https://")
    assert row.known_for
    assert set(row.dtypes) <= set(ALL)
    assert all(len(published.sha256 or "0" * 64) == 64 for published in row.files)


@every
def test_the_sizes_are_those_of_the_classes(row):
    with torch.device("meta"):
        if row.tiny:
            made = AutoencoderTiny(latent_channels=row.latents.channels)
        else:
            made = AutoencoderKL.from_config(dict(blueprint.of_known(CONFIGS[row.family]).parts["vae"].config))
    assert sum(p.numel() for p in made.parameters()) == row.parameters
    for published in row.files:  # in whatever precision a file has, it is the weights and a header
        if published.nbytes:
            size = {2: row.parameters * 2, 4: row.parameters * 4}
            assert any(0 < published.nbytes - nbytes < 100_000 for nbytes in size.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_latents_of_a_family_are_those_of_its_models_config(family):
    config = blueprint.of_known(CONFIGS[family]).parts["vae"].config
    assert latents_of(config) == FAMILIES[family][0]
    assert family_of(latents_of(config)) == family


def test_sdxls_own_does_not_bear_float16_and_the_fix_does():
    assert "float16" not in find("sdxl-vae").dtypes
    assert "float16" in find("sdxl-vae-fp16-fix").dtypes


# -- files -------------------------------------------------------------------------------------------------------------


def row_of(path, name, family="sd"):
    content = path.read_bytes()
    published = Published("sdxl_vae.safetensors", hashlib.sha256(content).hexdigest(), len(content))
    return Row(name, family, "", "https://", f"someone/{name}", 1, files=(published,))


def test_two_files_of_one_name_are_told_apart_by_their_checksums(tmp_path):
    paths = [tmp_path / folder / "sdxl_vae.safetensors" for folder in ("theirs", "fixed")]
    for path, content in zip(paths, (b"theirs", b"fixed!"), strict=True):
        path.parent.mkdir()
        path.write_bytes(content)
    rows = [row_of(path, path.parent.name) for path in paths]
    assert [recognised(path, rows).name for path in paths] == ["theirs", "fixed"]


def test_a_renamed_file_is_known_by_its_checksum(tmp_path):
    path = tmp_path / "my favourite.safetensors"
    path.write_bytes(b"weights")
    assert recognised(path, [row_of(path, "known")]).name == "known"


def test_a_file_of_an_unknown_checksum_is_taken_by_its_name(tmp_path):
    path = tmp_path / "sdxl_vae.safetensors"
    path.write_bytes(b"converted")
    assert recognised(path).name == "sdxl-vae"


def test_a_file_that_nobody_knows_is_none(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"?")
    assert recognised(path) is None


# -- whether one fits --------------------------------------------------------------------------------------------------

SD, SDXL, SD3, FLUX = (FAMILIES[name][0] for name in ("sd", "sdxl", "sd3", "flux"))


@pytest.mark.parametrize(
    ("found", "wanted", "says"),
    [
        (SDXL, SD, "scaled by 0.13025 and the model was trained on 0.18215: the colours would be wrong"),
        (SD, SDXL, "(SD1.5's and SD2's latents) does not fit"),
        (SD3, SD, "16 channels, and 4 are wanted"),
        (FLUX, SD3, "0.3611 (shift 0.1159)"),
        (Latents(4, 4), SD, "4 pixels each, and 8 are wanted"),
        (Latents(16, own_statistics=True), Latents(16), "a mean and a deviation"),
    ],
)
def test_a_vae_of_another_kind_is_refused_with_the_reason(found, wanted, says):
    assert says in mismatch("that.safetensors", found, wanted)


@given(st.sampled_from([SD, SDXL, SD3, FLUX]), st.sampled_from([SD, SDXL, SD3, FLUX]))
def test_families_fit_themselves_alone(one, other):
    assert (mismatch("a", one, other) is None) == (one == other)


def test_latents_that_no_family_has_have_no_name():
    assert family_of(Latents(6, 4, 0.915)) is None


def test_the_listing_has_a_line_for_every_row():
    lines = listing()
    assert [line.split()[0] for line in lines[1:]] == [row.name for row in CATALOGUE]
    assert any("float32, bfloat16" in line for line in lines)
