"""Hub ids, folders and single files all load; what cannot be loaded is one line; nothing foreign is ever run."""

import json
import os
import shutil
import subprocess
import sys

import ldm
import numpy as np
import pytest
import tiny
import torch
from hub import FakeHub
from safetensors.torch import save_file

import safelight
from safelight.config import dtype_name
from safelight.errors import DamagedModel, DoesNotApply, EnvironmentProblem, ModelNotFound, OutOfMemory, UsageError
from safelight.run.load import pipeline, split_scale

REPO = "someone/tiny-sd"


def draw(**load):
    with safelight.load(device="cpu", **load) as session:
        result = session.generate("a cat", seed=1, steps=2, width=32, height=32)
    return np.asarray(result.pictures[0].image).astype(int), session


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A single file with its configs in a folder beside it, and the pipeline it was made from."""
    place = tmp_path_factory.mktemp("single")
    pipe = ldm.pipeline()
    pipe.save_pretrained(place / "configs")
    for weights in (place / "configs").rglob("*.safetensors"):
        weights.unlink()
    save_file(ldm.state_dict(pipe), place / "model.safetensors")
    torch.save({"state_dict": ldm.state_dict(pipe)}, place / "model.ckpt")
    return place, pipe


def same_unet(loaded, pipe):
    theirs = pipe.unet.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in loaded.unet.state_dict().items())


def test_a_folder_loads_in_the_asked_dtype(folder):
    pipe, loaded = pipeline(str(folder), dtype="bfloat16")
    assert pipe.unet.dtype == torch.bfloat16
    assert (loaded.name, len(loaded.sha256)) == ("tiny-sd", 64)


@pytest.mark.parametrize("option", ["dtype", "torch_dtype"])
def test_diffusers_takes_a_dtype_as_text_for_float32(folder, option):
    """Why we pass a torch.dtype: this text is dropped with a line in a log. It fails once diffusers has mended that."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, **{option: "bfloat16"})
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}


@pytest.mark.parametrize(("asked", "dtype"), [("bf16", torch.bfloat16), ("bfloat16", torch.bfloat16)])
def test_a_dtype_as_text_is_the_one_that_it_names(folder, asked, dtype):
    with safelight.load(str(folder), optimize=f"dtype={asked}", device="cpu") as session:
        assert {part.dtype for part in (session.pipe.unet, session.pipe.vae, session.pipe.text_encoder)} == {dtype}
    pipe, _ = pipeline(str(folder), dtype=dtype_name(asked))
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {dtype}


def test_a_single_file_loads_with_configs_from_a_folder(single):
    place, pipe = single
    loaded, source = pipeline(str(place / "model.safetensors"), config=str(place / "configs"))
    assert same_unet(loaded, pipe)
    assert source.name == "model"


def test_a_pickle_loads_when_allowed_and_says_so(single, capsys):
    place, pipe = single
    asked = str(place / "model.ckpt")
    with pytest.raises(UsageError, match="--allow-pickle"):
        pipeline(asked, config=str(place / "configs"))
    loaded, _ = pipeline(asked, config=str(place / "configs"), allow_pickle=True)
    assert same_unet(loaded, pipe)
    assert "weights_only=True" in capsys.readouterr().err


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL"],)


def test_a_pickle_that_runs_code_runs_none(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(DamagedModel, match="cannot be loaded"):
        pipeline(str(tmp_path / "evil.ckpt"), allow_pickle=True)
    assert not (tmp_path / "evil").exists()


def test_a_single_file_without_configs_offline_says_what_to_give(single, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentProblem, match="--config"):
        pipeline(str(single[0] / "model.safetensors"))


def test_a_file_that_holds_no_denoiser_is_named(tmp_path):
    save_file({"lora_unet_down": torch.zeros(2)}, tmp_path / "lora.safetensors")
    with pytest.raises(DamagedModel, match="holds no denoiser: is it a LoRA or a VAE"):
        pipeline(str(tmp_path / "lora.safetensors"))


@pytest.mark.parametrize("error", [RuntimeError("can't allocate memory: you tried to allocate 9 bytes"), MemoryError()])
def test_memory_that_does_not_hold_the_model_is_one_line(folder, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("diffusers.StableDiffusionPipeline.to", full)
    with pytest.raises(OutOfMemory, match=r"loading .* ran out of memory"):
        safelight.load(str(folder), optimize="none")


def test_weights_that_do_not_fit_their_config_are_one_line(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    save_file({"conv_in.weight": torch.zeros(1)}, next((copy / "unet").glob("*.safetensors")))
    with pytest.raises(DamagedModel, match="cannot be loaded") as raised:
        pipeline(str(copy))
    assert "\n" not in str(raised.value)


def test_another_vae_changes_the_picture(folder, tmp_path):
    torch.manual_seed(9)
    tiny.vae().save_pretrained(tmp_path / "vae")
    plain, _ = draw(model=str(folder))
    other, session = draw(model=str(folder), vae=str(tmp_path / "vae"))
    assert abs(plain - other).max() > 8
    assert session.loaded.vae == str(tmp_path / "vae")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"scaling_factor": 0.13025}, "the colours would be wrong"),
        ({"shift_factor": 0.1}, "the colours would be wrong"),
    ],
    ids=ascii,
)
def test_a_vae_whose_latents_are_scaled_otherwise_is_refused(folder, tmp_path, config, says):
    tiny.vae(**config).save_pretrained(tmp_path / "vae")
    with pytest.raises(DoesNotApply, match=says):
        pipeline(str(folder), vae=str(tmp_path / "vae"))


def test_a_vae_of_the_catalogue_for_other_latents_is_refused_by_its_name(folder):
    with pytest.raises(DoesNotApply, match=r"ft-mse .*does not fit tiny-sd"):
        pipeline(str(folder), vae="ft-mse")


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    place = tmp_path_factory.mktemp("lora")
    pipe = tiny.sd()
    pipe.unet.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]))
    layers = get_peft_model_state_dict(pipe.unet)
    StableDiffusionPipeline.save_lora_weights(place, unet_lora_layers=layers, weight_name="style.safetensors")
    return place / "style.safetensors"


def test_a_lora_changes_the_picture_by_its_weight(folder, lora):
    plain, _ = draw(model=str(folder))
    none, _ = draw(model=str(folder), loras=(f"{lora}=0",))
    full, session = draw(model=str(folder), loras=(str(lora),))
    assert abs(plain - none).max() <= 1
    assert abs(plain - full).max() > 4
    assert session.loaded.loras == (str(lora),)


def test_a_lora_that_is_not_there_or_has_a_wrong_weight_is_refused(folder, tmp_path):
    with pytest.raises(ModelNotFound, match="no LoRA file"):
        pipeline(str(folder), loras=(str(tmp_path / "none.safetensors"),))
    with pytest.raises(UsageError, match="is not a number"):
        split_scale("style.safetensors=much")


def command(hub, home, *arguments):
    environment = {**os.environ, **hub.environment(home)}
    words = [sys.executable, "-m", "safelight", "generate", "a cat", "--steps", "2", "--out", str(home / "cat.png")]
    return subprocess.run(
        [*words, "--device", "cpu", *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def hub(folder):
    with FakeHub({REPO: {"main": folder, "v1": folder}}) as served:
        yield served


def test_a_hub_id_with_a_revision_is_downloaded_and_recorded_by_its_commit(hub, tmp_path):
    done = command(hub, tmp_path, "--model", f"{REPO}@v1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pictures"][0]["path"] == str(tmp_path / "cat.png")
    from safelight.run.metadata import read

    record, _ = read(tmp_path / "cat.png")
    commit = hub.find(REPO, "v1").commit
    assert (record.model, record.revision) == (f"{REPO}@v1", commit)
    from safelight.cli.wanted import _from_picture

    assert _from_picture(tmp_path / "cat.png", {}, {})["model"] == f"{REPO}@{commit}"


@pytest.mark.parametrize(
    ("model", "code", "says"),
    [
        ("nobody/nothing", 2, "no model 'nobody/nothing' on the hub"),
        (f"{REPO}@v9", 2, "has no revision 'v9'"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub, tmp_path, model, code, says):
    done = command(hub, tmp_path, "--model", model)
    assert done.returncode == code
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_hub_that_cannot_be_reached_is_one_line(folder, tmp_path):
    with FakeHub({REPO: {"main": folder}}) as closed:
        pass
    done = command(closed, tmp_path, "--model", REPO)
    assert done.returncode == 4, done.stderr
    assert "the hub cannot be reached" in done.stderr
    assert done.stderr.count("\n") == 1
