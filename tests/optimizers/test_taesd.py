"""A tiny VAE is found, read and refused before it is loaded; only safetensors, and errors in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, FluxPipeline, StableDiffusionPipeline
from hub import FakeHub
from safetensors.torch import save_file

from optimizers.off_decode import taesd_folder
from safelight.errors import DamagedModel, DoesNotApply, ModelNotFound, UsageError
from safelight.optimizers import OPTIMIZERS, Target, taesd
from safelight.optimizers.target import Part
from safelight.run.load import pipeline


def target(cls=StableDiffusionPipeline, channels=4, levels=4, vae=AutoencoderKL):
    part = Part(vae, {"latent_channels": channels, "block_out_channels": (8,) * levels})
    return Target(tiny.cpu(), {"vae": part}, 64, 64, pipeline=cls)


def reason(model="auto", **fields):
    return OPTIMIZERS["tiny-vae"].fits(target(**fields), model, "final")


def test_auto_is_the_one_of_the_pipelines_family():
    assert taesd.chosen("auto", target()) == "madebyollin/taesd"
    assert taesd.chosen("auto", target(FluxPipeline)) == "madebyollin/taef1"
    assert taesd.chosen("here", target()) == "here"
    assert reason() is None
    assert reason(cls=FluxPipeline, channels=16) is None


def test_latents_that_no_taesd_was_trained_on_are_refused():
    assert reason(channels=6, levels=3) == (
        "madebyollin/taesd is for latents of 4 channels and 8 pixels each, and this model's have 6 channels and "
        "4 pixels each"
    )
    assert "no TAESD is known for dict" in reason(cls=dict)
    assert "this pipeline has AutoencoderTiny" in reason(vae=AutoencoderTiny)
    assert "no VAE" in OPTIMIZERS["tiny-vae"].fits(Target(tiny.cpu(), {}, 64, 64), "auto", "final")


def test_firstlight_has_latents_of_its_own():
    pipe, _ = pipeline("firstlight")
    part = Part(type(pipe.vae), pipe.vae.config)
    asked = Target(tiny.cpu(), {"vae": part}, 64, 64, pipeline=type(pipe))
    assert "this model's have 6 channels and 4 pixels each" in OPTIMIZERS["tiny-vae"].fits(asked, "auto", "final")


def test_a_folder_is_read_from_its_config_and_loaded_from_safetensors():
    folder = taesd_folder(levels=3, latent_channels=6)
    assert taesd.latents_of(folder) == (6, 4)
    assert reason(folder, channels=6, levels=3) is None
    assert "6 channels" in reason(folder)
    assert taesd.load(folder, torch.bfloat16).dtype == torch.bfloat16


def test_a_single_file_has_taesds_own_layers(tmp_path):
    path, made = tmp_path / "taesd.safetensors", AutoencoderTiny()
    save_file(made.state_dict(), path)
    assert taesd.latents_of(str(path)) == (4, 8)
    loaded = taesd.load(str(path), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), loaded.parameters(), strict=True))


def test_what_is_not_there_is_not_found(tmp_path):
    for model in ("nowhere", str(tmp_path / "no.safetensors"), str(tmp_path)):
        with pytest.raises(ModelNotFound):
            taesd.latents_of(model)
    assert taesd.latents_of("owner/name") is None
    assert taesd.latents_of("madebyollin/taesd3@main") == (16, 8)


def test_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(UsageError, match="needs an AutoencoderTiny"):
        taesd.latents_of(str(tmp_path))
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(DamagedModel, match="not valid JSON"):
        taesd.latents_of(str(tmp_path))
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DamagedModel, match="holds no AutoencoderTiny"):
        taesd.latents_of(str(tmp_path / "other.safetensors"))


def test_damaged_missing_and_pickled_weights_are_refused():
    folder = Path(taesd_folder())
    weights = folder / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    with pytest.raises(DamagedModel, match="truncated"):
        taesd.load(str(folder), torch.float32)
    weights.unlink()
    torch.save({}, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(DamagedModel, match="safetensors"):
        taesd.load(str(folder), torch.float32)


def test_what_was_loaded_is_checked_again():
    with pytest.raises(DoesNotApply, match="tiny-vae was asked for, but here is for latents of 4 channels"):
        taesd.check_latents("here", (4, 8), (16, 8))


@pytest.mark.parametrize(
    ("model", "says"),
    [("owner/taesd", "('AutoencoderTiny', 4)"), ("owner/no", "ModelNotFound"), ("owner/taesd@v9", "ModelNotFound")],
)
def test_a_hub_id_is_downloaded_or_not_found(model, says, tmp_path):
    script = (
        "import torch; from safelight.optimizers import taesd\n"
        "try:\n"
        f"    made = taesd.load({model!r}, torch.float32); print((type(made).__name__, made.config.latent_channels))\n"
        "except Exception as error: print(type(error).__name__, len(str(error).splitlines()))"
    )
    with FakeHub({"owner/taesd": {"main": Path(taesd_folder())}}) as hub:
        environment = os.environ | hub.environment(tmp_path)
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert says in done.stdout, done.stderr


def test_without_a_hub_the_environment_is_to_blame(tmp_path):
    script = (
        "import torch; from safelight.optimizers import taesd\n"
        "try: taesd.load('owner/taesd', torch.float32)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert "EnvironmentProblem owner/taesd is not in the cache" in done.stdout, done.stderr
