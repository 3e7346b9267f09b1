"""The classes and configs of any pipeline are known without a weight: from a name, folder, hub id, file or pipeline."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ldm
import pytest
import tiny
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import CHECKPOINT_KEY_NAMES
from hub import FakeHub
from hypothesis import given
from hypothesis import strategies as st

from safelight.errors import DamagedModel, ModelNotFound, SafelightError, UnknownName, UsageError
from safelight.probe import blueprint, known
from safelight.probe.model import find

# published: SD1.5, SDXL, SD3, SD3.5-large, FLUX.1, Wan 2.1, the VAEs of SD, CLIP, T5. The others are counted from the
# tables, agree with the size in the name or card of the model, and are here so that nobody changes them unseen
PARAMETERS = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    "sdxl-turbo": {"unet": 2_567_463_684, "vae": 83_653_863},
    "sd3-medium": {"transformer": 2_028_328_000, "text_encoder_2": 694_659_840, "text_encoder_3": 4_762_310_656},
    "sd35-medium": {"transformer": 2_243_171_520},
    "sd35-large": {"transformer": 8_056_627_520},
    "flux1-dev": {"transformer": 11_901_408_320, "text_encoder": 123_060_480, "text_encoder_2": 4_762_310_656},
    "flux1-schnell": {"transformer": 11_891_178_560},
    "wan21-1.3b": {"transformer": 1_418_996_800, "vae": 126_892_531, "text_encoder": 5_680_910_336},
    "wan21-14b": {"transformer": 14_288_491_584},
    "pixart-sigma": {"transformer": 610_856_096},
    "sana": {"transformer": 1_604_462_752, "text_encoder": 2_614_341_888},
    "qwen-image": {"transformer": 20_430_401_088, "text_encoder": 8_292_166_656},
    "hunyuan-video": {"transformer": 12_821_012_544, "text_encoder": 7_505_186_816},
    "ltx-video": {"transformer": 1_923_385_472},
    "cogvideox-2b": {"transformer": 1_693_783_872},
}


def built(part):
    """The part's model on the meta device, where it takes neither memory nor time."""
    with torch.device("meta"):
        if hasattr(part.cls, "config_class"):  # of transformers
            return part.cls(part.config)
        asked = inspect.signature(part.cls).parameters
        return part.cls(**{name: value for name, value in part.config.items() if name in asked})


def header_file(path, shapes, dtype="F16"):
    """A safetensors file of these tensors that is all header: none of them has a byte."""
    entries = {name: {"dtype": dtype, "shape": list(shape), "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return str(path)


# -- known models ------------------------------------------------------------------------------------------------------


def test_every_known_model_has_a_table_and_its_parameters_are_checked():
    tables = {path.stem for path in Path(known.__file__).parent.glob("*.json")}
    assert tables == known.KNOWN.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("name", known.KNOWN)
def test_each_part_of_a_known_model_can_be_built_and_has_as_many_parameters_as_it_should(name):
    found = blueprint.read(name)
    models = {part: built(known_part) for part, known_part in found.parts.items()}
    counts = {part: sum(p.numel() for p in model.parameters()) for part, model in models.items()}
    assert counts.items() >= PARAMETERS[name].items()
    assert counts[found.denoiser_name] == known.table(name)["denoiser_parameters"]
    assert found.scheduler.cls.from_config(found.scheduler.config).config.num_train_timesteps == 1000


@pytest.mark.parametrize("name", known.KNOWN)
def test_a_known_pipeline_takes_the_parts_of_its_table(name):
    found = blueprint.read(name)
    assert issubclass(found.pipeline, DiffusionPipeline)
    wanted = inspect.signature(found.pipeline.__init__).parameters
    assert {*found.parts, "scheduler"} <= wanted.keys()
    assert found.hub.count("/") == 1
    assert (found.width % 16, found.height % 16, found.steps > 0) == (0, 0, True)


def test_aliases_are_unambiguous_and_case_does_not_count():
    names = list(known.names())
    assert len(names) == len(set(names)) == len({name.lower() for name in names})
    assert blueprint.read("FLUX").name == blueprint.read("flux-dev").name == "flux1-dev"
    assert known.name_of("sd3.5-large") == "sd35-large"


def test_a_known_hub_id_needs_no_network():
    found = blueprint.read("stabilityai/Stable-Diffusion-XL-base-1.0")
    assert (found.hub, found.width, found.frames) == ("stabilityai/stable-diffusion-xl-base-1.0", 1024, 1)
    assert found.parts["vae"].config["scaling_factor"] == 0.13025
    assert found.parts["unet"].config["out_channels"] == 4  # said by the class


def test_a_table_says_only_what_differs_from_the_one_it_names():
    turbo, sdxl = blueprint.read("sdxl-turbo"), blueprint.read("sdxl")
    differing = {key for key, value in sdxl.parts["unet"].config.items() if turbo.parts["unet"].config[key] != value}
    assert differing == {"sample_size"}
    assert blueprint.read("sd3").parts["text_encoder"].cls.__name__ == "CLIPTextModelWithProjection"


@pytest.mark.parametrize(("name", "guided"), [("sdxl", True), ("sdxl-turbo", False), ("flux", False), ("wan", True)])
def test_who_runs_the_denoiser_twice_a_step_is_known(name, guided):
    assert blueprint.read(name).guided is guided


def test_a_known_name_is_a_model_on_the_hub():
    source = find("sd1.5")
    assert (source.kind, source.place, source.name) == ("hub", "stable-diffusion-v1-5/stable-diffusion-v1-5", "sd15")


def test_a_model_folder_of_that_name_is_taken_instead_and_another_folder_is_not(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "sdxl")
    Path("flux").mkdir()
    assert find("sdxl").kind == "folder"
    assert find("flux").kind == "hub"


@pytest.mark.parametrize(("asked", "near"), [("sdxxl", "sdxl"), ("sd1.6", "sd1.5"), ("firstligt", "firstlight")])
def test_an_unknown_name_is_answered_with_near_ones(asked, near):
    with pytest.raises(UnknownName, match=f"unknown model '{asked}': did you mean .*{near}"):
        blueprint.read(asked)


# -- folders, pipelines, the hub ---------------------------------------------------------------------------------------


def test_the_bundled_model_is_known_with_its_defaults():
    found = blueprint.read("firstlight")
    assert (found.width, found.height, found.frames, found.guidance, found.steps) == (64, 64, 1, 3.0, 20)
    assert found.stored_dtype is not None


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_a_folder_says_what_the_loaded_pipeline_says(name, tmp_path):
    pipe = tiny.PIPELINES[name]()
    pipe.save_pretrained(tmp_path)
    folder, loaded = blueprint.read(str(tmp_path)), blueprint.of(pipe)
    sizes = [(b.width, b.height, b.frames, b.guidance, b.steps, b.stored_dtype, b.pipeline) for b in (folder, loaded)]
    assert sizes[0] == sizes[1]
    assert folder.scheduler.cls is loaded.scheduler.cls
    assert {part: p.cls for part, p in folder.parts.items()} == {part: p.cls for part, p in loaded.parts.items()}
    for part, module in blueprint.models(pipe).items():
        assert sum(p.numel() for p in built(folder.parts[part]).parameters()) == sum(
            p.numel() for p in module.parameters()
        )


@pytest.mark.parametrize(("name", "known_name"), [("WanPipeline", "wan21-1.3b"), ("CogVideoXPipeline", "cogvideox-2b")])
def test_what_a_video_pipeline_makes_by_default_is_read_from_its_class_and_configs(name, known_name):
    import diffusers

    table = blueprint.of_known(known_name)
    found = blueprint._by_class(name, getattr(diffusers, name), table.parts, None)
    assert (found.width, found.height, found.frames) == (table.width, table.height, table.frames)
    assert (found.guidance, found.steps) == (table.guidance, table.steps)


def test_of_the_hub_only_configs_are_downloaded(folder, tmp_path):
    script = (
        "import sys; from safelight.probe.blueprint import read; b = read('somebody/tiny');"
        "print(b.name, b.hub, b.width, *sorted(b.parts), b.scheduler.cls.__name__)"
    )
    with FakeHub({"somebody/tiny": {"main": folder}}) as hub:
        environment = os.environ | hub.environment(tmp_path)
        ran = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
    assert ran.stdout == "tiny somebody/tiny 32 text_encoder unet vae EulerDiscreteScheduler\n"
    sent = [path for path in hub.requests if "/resolve/" in path]
    assert {path.rpartition("/")[2] for path in sent} == {"model_index.json", "config.json", "scheduler_config.json"}


# -- single files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sd15_shapes():
    """Every tensor of Stable Diffusion 1.5 under CompVis' names, with its shape."""
    parts = blueprint.read("sd15").parts
    pipe = SimpleNamespace(**{name: built(part) for name, part in parts.items()})
    return {name: tuple(tensor.shape) for name, tensor in ldm.state_dict(pipe).items()}


def test_a_single_file_is_known_by_its_header(sd15_shapes, tmp_path):
    found = blueprint.read(header_file(tmp_path / "my-model.safetensors", sd15_shapes))
    assert (found.name, found.pipeline.__name__, found.width) == ("my-model", "StableDiffusionPipeline", 512)
    assert (found.stored_dtype, found.hub) == ("float16", None)


MARKS = {
    "sd21": {CHECKPOINT_KEY_NAMES["v2"]: [320, 1024]},
    "sdxl": {CHECKPOINT_KEY_NAMES["xl_base"]: [1280]},
    "sd3-medium": {"model.diffusion_model.pos_embed": [1, 36864, 1536], CHECKPOINT_KEY_NAMES["sd3"][1]: [9216]},
    "flux1-dev": {"double_blocks.0.img_attn.norm.key_norm.scale": [128], "guidance_in.in_layer.bias": [3072]},
    "flux1-schnell": {"double_blocks.0.img_attn.norm.key_norm.scale": [128]},
    "wan21-1.3b": {"head.modulation": [1, 2, 1536], "patch_embedding.weight": [1536, 16, 1, 2, 2]},
    "wan21-14b": {"head.modulation": [1, 2, 5120], "patch_embedding.weight": [5120, 16, 1, 2, 2]},
}


def shapes_of(name, share=1.0):
    """Tensors by which diffusers knows the model, and one that makes the denoiser's size `share` of the real one."""
    marks = {**MARKS[name], "img_in.weight": [3072, 64]} if "flux" in name else MARKS[name]
    inside = any(key.startswith("model.diffusion_model.") for key in marks) or name == "sdxl"
    rest = "model.diffusion_model.rest" if inside else "blocks.0.rest"
    return {**marks, rest: [int(share * known.table(name)["denoiser_parameters"])]}


@pytest.mark.parametrize("name", MARKS)
def test_each_kind_of_single_file_gets_the_configs_of_its_model(name, tmp_path):
    found = blueprint.read(header_file(tmp_path / "a.safetensors", shapes_of(name), "BF16"))
    assert found.pipeline is blueprint.of_known(name).pipeline
    assert found.denoiser.config == blueprint.of_known(name).denoiser.config
    assert found.stored_dtype == "bfloat16"


def test_a_file_of_another_size_is_not_taken_for_the_known_model(tmp_path):
    with pytest.raises(UsageError, match=r"looks like sdxl, but its denoiser has 1,283,731,842 numbers.*--config"):
        blueprint.read(header_file(tmp_path / "pruned.safetensors", shapes_of("sdxl", 0.5)))


def test_a_file_takes_its_configs_from_the_folder_given(tmp_path):
    pipe = ldm.pipeline()
    pipe.save_pretrained(tmp_path / "configs")
    shapes = {name: tuple(tensor.shape) for name, tensor in ldm.state_dict(pipe).items()}
    file = header_file(tmp_path / "small.safetensors", shapes, "F32")
    with pytest.raises(UsageError, match="looks like sd15"):
        blueprint.read(file)
    found = blueprint.read(file, config_folder=str(tmp_path / "configs"))
    assert (found.name, found.width, found.stored_dtype) == ("small", 64, "float32")
    assert found.denoiser.config["block_out_channels"] == ldm.WIDTHS


@pytest.mark.parametrize(
    ("shapes", "error", "says"),
    [
        ({"lora_unet_a.lora_down.weight": [4, 320]}, DamagedModel, "holds no denoiser: is it a LoRA or a VAE"),
        ({"decoder.conv_in.weight": [512, 4, 3, 3]}, DamagedModel, "holds no denoiser"),
        ({"model.diffusion_model.x": [3], CHECKPOINT_KEY_NAMES["xl_refiner"]: [1]}, UsageError, "of the kind 'xl_ref"),
        ({"double_blocks.0.processor.proj_lora1.down.weight": [16, 3072]}, UsageError, "of the kind 'unknown'"),
    ],
    ids=["lora", "vae", "refiner", "neither"],
)
def test_a_file_that_is_no_known_model_is_one_line(shapes, error, says, tmp_path):
    with pytest.raises(error, match=says) as raised:
        blueprint.read(header_file(tmp_path / "a.safetensors", shapes))
    assert "\n" not in str(raised.value)


NAMES = st.sampled_from(["model.diffusion_model.x", "blocks.0.x", "pos_embed", "patch_embedding.weight"])
FLAT = st.sampled_from(
    [key for keys in CHECKPOINT_KEY_NAMES.values() for key in ([keys] if type(keys) is str else keys)]
)


@given(st.dictionaries(FLAT | NAMES, st.lists(st.integers(0, 9999), max_size=5), min_size=1))
def test_any_header_gives_a_blueprint_or_one_line(tmp_path_factory, shapes):
    file = header_file(tmp_path_factory.mktemp("header") / "a.safetensors", shapes)
    try:
        blueprint.read(file)
    except SafelightError as error:
        assert "\n" not in str(error)


# -- what cannot be read -----------------------------------------------------------------------------------------------


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def said(folder, error):
    with pytest.raises(error) as raised:
        blueprint.read(str(folder))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_folder_without_an_index_is_no_model(copy):
    (copy / "model_index.json").unlink()
    assert "no model_index.json" in said(copy, ModelNotFound)


@pytest.mark.parametrize("text", [None, "{", "[]"])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_part_whose_config_cannot_be_read_is_named(copy, part, text):
    path = copy / part / "config.json"
    path.unlink() if text is None else path.write_text(text)
    assert f"{part}/config.json" in said(copy, DamagedModel)


def test_a_config_of_the_wrong_kind_is_one_line(copy):
    (copy / "text_encoder" / "config.json").write_text('{"hidden_size": "wide"}')
    assert "is no config of CLIPTextModel" in said(copy, DamagedModel)


@pytest.mark.parametrize(
    ("part", "entry", "says"),
    [
        ("unet", ["diffusers", "UNet9DModel"], r"diffusers.UNet9DModel, which diffusers 0"),
        ("text_encoder", ["transformers", "ClapModel9"], r"transformers.ClapModel9, which transformers "),
        ("_class_name", "StableDiffusion9Pipeline", r"diffusers.StableDiffusion9Pipeline, which diffusers 0"),
        ("_class_name", ["pipeline", "Mine"], "does not have"),
    ],
)
def test_a_class_that_is_not_there_is_named_with_the_version(copy, part, entry, says):
    path = copy / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: entry}))
    message = said(copy, DamagedModel)
    assert says in message
    assert "pip install --upgrade" in message


def test_configs_are_not_given_for_a_folder_that_has_its_own(folder):
    with pytest.raises(UsageError, match="has configs of its own"):
        blueprint.read(str(folder), config_folder=str(folder))
