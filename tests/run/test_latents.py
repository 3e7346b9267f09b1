"""Latents on disk are those of the pipelines, say where they come from, and are read back with all of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from safelight.errors import DamagedModel, UsageError
from safelight.run import decoding, latents
from safelight.run.latents import Latents

CONFIGS = {
    "a factor alone": {"scaling_factor": 0.18215},
    "a factor and a shift": {"scaling_factor": 0.36, "shift_factor": 0.1},
    "of each channel": {"scaling_factor": 2.0, "latents_mean": [0.5] * 4, "latents_std": [1.0, 2.0, 3.0, 4.0]},
    "nothing": {},
}


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.integers(1, 5)] * 4),
    st.builds(
        dict,
        model=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        vae_class=st.sampled_from([None, "AutoencoderKL"]),
        scaling_factor=st.none() | st.floats(allow_nan=False),
        shift_factor=st.none() | st.floats(allow_nan=False),
        width=st.none() | st.integers(1, 99999),
        height=st.none() | st.integers(1, 99999),
    ),
)
def test_latents_and_what_is_said_of_them_come_back(tmp_path_factory, shape, told):
    path = tmp_path_factory.mktemp("latents") / "a.safetensors"
    made = Latents(torch.randn(shape), **told)
    latents.write(path, made)
    found = latents.read(path)
    assert torch.equal(found.values, made.values)
    assert all(getattr(found, name) == value for name, value in told.items())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_unscaling_undoes_scaling(config):
    made = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    assert torch.allclose(latents.unscaled(latents.scaled(made, config), config), made, atol=1e-12)


def test_unscaled_is_what_a_run_decodes(pipe):
    made = torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        ours = pipe.vae.decode(latents.unscaled(made, pipe.vae.config)).sample
    drawn = decoding.decode(pipe, made, 16, 16)
    assert torch.equal(drawn, (ours / 2 + 0.5).clamp(0, 1))


def test_a_file_of_another_program_is_read_as_it_is(tmp_path):
    save_file({"latents": torch.ones(1, 4, 2, 2), "noise": torch.ones(1)}, tmp_path / "a.safetensors")
    found = latents.read(tmp_path / "a.safetensors")
    assert torch.equal(found.values, torch.ones(1, 4, 2, 2))
    assert (found.model, found.vae_class, found.scaling_factor, found.width) == (None, None, None, None)


def test_foreign_metadata_is_not_believed(tmp_path):
    told = {"width": "-1", "height": "9" * 5000, "scaling_factor": "much"}
    save_file({"latents": torch.ones(1, 4, 2, 2)}, tmp_path / "a.safetensors", told)
    found = latents.read(tmp_path / "a.safetensors")
    assert (found.width, found.height, found.scaling_factor) == (None, None, None)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"weight": torch.ones(3)}, "no tensor 'latents', but weight"),
        ({"latents": torch.ones(1, 16, 64)}, r"\[1, 16, 64\]; \(pictures, channels, height, width\)"),
        ({"latents": torch.ones(1, 4, 0, 2)}, "are wanted"),
        ({"latents": torch.ones(1, 4, 2, 2, dtype=torch.int32)}, "int32"),
        ({"latents": torch.full((1, 4, 2, 2), torch.nan)}, "not finite"),
    ],
    ids=["a model", "packed", "empty", "whole numbers", "not a number"],
)
def test_what_are_no_latents_is_one_line(tmp_path, tensors, says):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=says):
        latents.read(tmp_path / "a.safetensors")


def test_half_a_file_is_refused(tmp_path):
    latents.write(tmp_path / "a.safetensors", Latents(torch.ones(1, 4, 9, 9)))
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[:-1])
    with pytest.raises(DamagedModel, match="truncated"):
        latents.read(tmp_path / "a.safetensors")
