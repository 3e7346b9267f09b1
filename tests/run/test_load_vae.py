"""The VAE of a model is loaded alone, of whatever class it is; what holds none is one line."""

import json
import os
import shutil
import subprocess
import sys

import ldm
import pytest
import tiny
import torch
from diffusers import AutoencoderKLWan, AutoencoderTiny
from hub import FakeHub
from safetensors.torch import save_file

from safelight.errors import DamagedModel, DoesNotApply, ModelNotFound, UnknownName, UsageError
from safelight.optimizers.taesd import FIRST
from safelight.probe import blueprint
from safelight.probe.blueprint import Part
from safelight.run.load_vae import check_fits, load_vae, located, other_vae

TINY = {"encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16)}
TINY |= {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}


@pytest.fixture
def copied(folder, tmp_path):
    """The tiny pipeline's folder without its denoiser's weights, to be damaged."""
    ignore = shutil.ignore_patterns("*.safetensors")
    copy = shutil.copytree(folder, tmp_path / "copied", ignore=ignore)
    shutil.copytree(folder / "vae", copy / "vae", dirs_exist_ok=True)
    return copy


def same(loaded, made):
    theirs = made.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in loaded.state_dict().items())


def test_the_denoiser_is_not_read(copied):
    vae, loaded = load_vae(str(copied))
    assert same(vae, tiny.sd().vae)
    assert (loaded.name, vae.training, any(p.requires_grad for p in vae.parameters())) == ("copied", False, False)


def test_the_bundled_model_has_one():
    vae, loaded = load_vae("firstlight", dtype="bfloat16")
    assert (loaded.name, vae.dtype, vae.config.latent_channels) == ("firstlight", torch.bfloat16, 6)


def test_a_vae_is_of_the_class_that_its_config_names(tmp_path):
    made = AutoencoderTiny(**TINY)
    made.save_pretrained(tmp_path / "taesd")
    vae, loaded = load_vae("firstlight", vae=str(tmp_path / "taesd"))
    assert isinstance(vae, AutoencoderTiny)
    assert same(vae, made)
    assert (loaded.name, loaded.vae) == ("taesd", str(tmp_path / "taesd"))


def test_a_single_file_gives_its_vae_alone(tmp_path):
    pipe = ldm.pipeline()
    pipe.save_pretrained(tmp_path / "configs")
    save_file(ldm.state_dict(pipe), tmp_path / "model.safetensors")
    vae, _ = load_vae(str(tmp_path / "model.safetensors"), config=str(tmp_path / "configs"))
    assert same(vae, pipe.vae)


def test_a_video_vae_is_refused(tmp_path):
    AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False]
    ).save_pretrained(tmp_path / "wan")
    with pytest.raises(UsageError, match="AutoencoderKLWan is not for pictures"):
        load_vae("firstlight", vae=str(tmp_path / "wan"))


def test_a_class_that_is_no_vae_is_refused(copied):
    (copied / "vae" / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(UsageError, match="no VAE: its config names 'UNet2DConditionModel'"):
        load_vae(str(copied))


def test_a_model_without_a_vae_asks_for_one(copied):
    index = json.loads((copied / "model_index.json").read_text())
    del index["vae"]
    (copied / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="no part named 'vae': give one with --vae"):
        load_vae(str(copied))


def test_weights_that_are_missing_are_named(copied):
    save_file({"decoder.conv_in.bias": torch.zeros(64)}, copied / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(DamagedModel):
        load_vae(str(copied))


def test_a_file_without_a_decoder_is_no_vae(tmp_path):
    save_file({"lora.weight": torch.zeros(4)}, tmp_path / "lora.safetensors")
    with pytest.raises(DamagedModel, match="none of its tensors is a decoder's"):
        load_vae("firstlight", vae=str(tmp_path / "lora.safetensors"))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelNotFound, match="no model at"):
        load_vae(str(tmp_path / "nothing"))


# -- another one than the model's --------------------------------------------------------------------------------------


def own_of(name):
    return blueprint.of_known(name).parts["vae"]


def part_of(vae):
    return Part(type(vae), vae.config)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A tiny VAE alone, in the names that checkpoints are shared in; its model's, and its file."""
    pipe = ldm.pipeline()
    path = tmp_path_factory.mktemp("alone") / "my-vae.safetensors"
    tensors = {k: v for k, v in ldm.state_dict(pipe).items() if k.startswith("first_stage_model.")}
    save_file({k.removeprefix("first_stage_model."): v for k, v in tensors.items()}, path)
    return pipe.vae, path


def test_a_file_alone_takes_the_models_own_config_and_no_hub(alone):
    vae, path = alone
    own = Part(type(vae), {**vae.config, "scaling_factor": 0.13025})
    with pytest.warns(UserWarning, match="says nothing of its scaling: it is taken for one of this model's kind"):
        loaded = other_vae(str(path), own, dtype=torch.float32)
    assert same(loaded, vae)
    assert loaded.config.scaling_factor == 0.13025


def test_a_file_known_by_its_name_is_refused_for_its_scaling_before_it_is_read(alone, tmp_path):
    path = tmp_path / "sdxl_vae.safetensors"
    shutil.copy(alone[1], path)
    with pytest.raises(DoesNotApply, match=r"SDXL's latents\) does not fit sd15 .* scaled by 0.13025 .* 0.18215"):
        check_fits(str(path), own_of("sd15"), model="sd15")
    check_fits(str(path), own_of("sdxl"))


def test_a_file_of_other_shapes_is_refused(alone):
    with pytest.raises(DoesNotApply, match="its latents have 4 channels, and 16 are wanted"):
        check_fits(str(alone[1]), own_of("flux1-dev"))


def test_latents_of_another_size_are_refused(tmp_path):
    tiny.sd().vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(DoesNotApply, match="2 pixels each, and 8 are wanted"):
        check_fits(str(tmp_path / "vae"), own_of("sd15"))


def test_a_folder_of_another_scaling_is_refused_by_its_config(tmp_path):
    vae = tiny.sd().vae
    vae.save_pretrained(tmp_path / "vae")
    own = Part(type(vae), {**vae.config, "scaling_factor": 0.13025})
    with pytest.raises(DoesNotApply, match=r"scaled by 0\.18215 and the model was trained on 0\.13025"):
        other_vae(str(tmp_path / "vae"), own, dtype=torch.float32)
    assert same(other_vae(str(tmp_path / "vae"), part_of(vae), dtype=torch.float32), vae)


def test_a_whole_checkpoint_tells_its_kind(tmp_path):
    pipe = ldm.pipeline()
    pipe.save_pretrained(tmp_path / "configs")
    save_file(ldm.state_dict(pipe), tmp_path / "model.safetensors")
    assert located(str(tmp_path / "model.safetensors"))[1] is None
    with pytest.warns(UserWarning, match="says nothing of its scaling"):  # tiny: of no kind that has a table
        assert same(other_vae(str(tmp_path / "model.safetensors"), part_of(pipe.vae), dtype=torch.float32), pipe.vae)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_tiny_vae_of_one_family_fits_no_other(name):
    fits, other = ("taesd", "taesdxl") if name == "sd15" else ("taesdxl", "taesd")
    check_fits(fits, own_of(name))
    with pytest.raises(DoesNotApply, match="latents"):
        check_fits(other, own_of(name))


def test_a_tiny_vaes_file_stands_in(tmp_path):
    vae = AutoencoderTiny()
    save_file(vae.state_dict(), tmp_path / "taesd.safetensors")
    assert FIRST in vae.state_dict()
    loaded = other_vae(str(tmp_path / "taesd.safetensors"), own_of("sd15"), dtype=torch.float32)
    assert same(loaded, vae)
    with pytest.raises(DoesNotApply):
        check_fits(str(tmp_path / "taesd.safetensors"), own_of("sdxl"))


def test_the_names_of_the_catalogue_stand_for_their_repositories():
    source, row = located("ft-mse")
    assert (source.kind, source.place, row.name) == ("hub", "stabilityai/sd-vae-ft-mse", "ft-mse")
    assert located("sdxl-vae-fp16-fix")[0].place == "madebyollin/sdxl-vae-fp16-fix"


def test_what_lies_here_wins_over_the_catalogue(tmp_path, monkeypatch):
    tiny.sd().vae.save_pretrained(tmp_path / "ft-mse")
    monkeypatch.chdir(tmp_path)
    assert located("ft-mse")[0].kind == "vae folder"


def test_a_file_that_is_not_here_but_known_says_who_has_it():
    with pytest.raises(ModelNotFound, match="--vae ft-ema fetches it from stabilityai/sd-vae-ft-ema"):
        located("vae-ft-ema-560000-ema-pruned.safetensors")


def test_one_that_is_a_pickle_alone_wants_to_be_allowed():
    with pytest.raises(UsageError, match=r"kl-f8-anime2 is only published as a pickle.*--allow-pickle"):
        located("kl-f8-anime2")


def test_a_pickle_is_read_when_it_is_allowed(alone, tmp_path):
    vae, _ = alone
    path = tmp_path / "my.ckpt"
    tensors = {k: v for k, v in ldm.state_dict(ldm.pipeline()).items() if k.startswith("first_stage_model.")}
    torch.save({"state_dict": tensors}, path)
    with pytest.raises(UsageError, match="is a pickle"):
        check_fits(str(path), part_of(vae))
    with pytest.warns(UserWarning, match="says nothing of its scaling"):
        assert same(other_vae(str(path), part_of(vae), dtype=torch.float32, allow_pickle=True), vae)


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(UnknownName, match="unknown VAE 'ft-msa': did you mean ft-mse"):
        located("ft-msa")


# -- from a hub --------------------------------------------------------------------------------------------------------

REPO, ALONE = "someone/tiny-sd", "someone/vae"
SCRIPT = """
import sys
from safelight.errors import SafelightError
from safelight.run.load_vae import load_vae
try:
    vae, loaded = load_vae("firstlight", vae=sys.argv[1]) if sys.argv[2:] else load_vae(sys.argv[1])
    print(type(vae).__name__, loaded.name)
except SafelightError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def hub(folder):
    with FakeHub(
        {REPO: {"main": folder}, ALONE: {"main": folder / "vae"}, "someone/unet": {"main": folder / "unet"}}
    ) as hub:
        yield hub


def from_hub(hub, home, *arguments):
    environment = {**os.environ, **hub.environment(home)}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_of_a_model_on_the_hub_the_vae_alone_is_downloaded(hub, tmp_path):
    hub.requests.clear()
    assert from_hub(hub, tmp_path, REPO) == "AutoencoderKL tiny-sd"
    fetched = [path for path in hub.requests if "/resolve/" in path]
    assert fetched
    assert all("/vae/" in path for path in fetched), fetched


def test_a_repository_of_a_vae_alone_serves_too(hub, tmp_path):
    assert from_hub(hub, tmp_path, ALONE, "as a vae") == "AutoencoderKL vae"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("someone/unet", "UsageError someone/unet holds no VAE: its config names 'UNet2DConditionModel'"),
        ("nobody/nothing", "ModelNotFound no model 'nobody/nothing' on the hub"),
        (f"{REPO}@v9", "ModelNotFound someone/tiny-sd has no revision 'v9' on the hub"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub, tmp_path, asked, says):
    assert from_hub(hub, tmp_path, asked).startswith(says)


def test_without_a_connection_the_cache_serves_or_its_lack_is_named(folder, tmp_path):
    with FakeHub({REPO: {"main": folder}}) as closed:
        assert from_hub(closed, tmp_path / "full", REPO) == "AutoencoderKL tiny-sd"
    assert from_hub(closed, tmp_path / "full", REPO) == "AutoencoderKL tiny-sd"
    assert from_hub(closed, tmp_path / "empty", REPO).startswith(
        "EnvironmentProblem someone/tiny-sd is not in the cache"
    )
