"""What a model would be is known from its configs, as it is when it is loaded."""

import json
import os
import subprocess
import sys

import pytest
import tiny
from hub import FakeHub

from safelight.errors import DamagedModel
from safelight.optimizers import target_of
from safelight.optimizers.configs import target_from
from safelight.planner import fitting


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_the_configs_say_what_the_loaded_pipeline_says(name, tmp_path):
    pipe = tiny.PIPELINES[name]()
    pipe.save_pretrained(tmp_path)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    found = target_from(str(tmp_path), tiny.cpu(), batch_size=2)
    loaded = target_of(pipe, tiny.cpu(), width=32, height=32, batch_size=2)
    assert (found.pipeline, found.text_is_encoded, found.batch_size) == (type(pipe), True, 2)
    assert {part: known.cls for part, known in found.parts.items()} == {p: k.cls for p, k in loaded.parts.items()}
    for part in (found.denoiser, found.vae):
        (same,) = [known for known in loaded.parts.values() if known.cls is part.cls]
        assert {key: part.config[key] for key in part.config if key in same.config and key[0] != "_"}.items() <= dict(
            same.config
        ).items()


def test_the_same_optimizers_fit(tmp_path):
    pipe = tiny.sd()
    pipe.save_pretrained(tmp_path)
    found = target_from(str(tmp_path), tiny.cpu())
    loaded = target_of(pipe, tiny.cpu(), width=found.width, height=found.height, disposable=True)
    assert (found.width, found.height) == (32, 32)
    assert fitting(found) == fitting(loaded)


def test_the_bundled_model_is_known_without_its_weights():
    found = target_from("firstlight", tiny.cpu())
    assert (found.width, found.height, found.denoiser.cls.__name__) == (64, 64, "UNet2DConditionModel")


def test_a_known_model_is_planned_at_its_own_size_or_at_another():
    wan = target_from("wan", tiny.cpu())
    assert (wan.width, wan.height, wan.frames, wan.guided) == (832, 480, 81, True)
    other = target_from("flux", tiny.cpu(), width=512, height=768, frames=1)
    assert (other.width, other.height, other.frames, other.guided) == (512, 768, 1, False)


def test_of_a_single_file_without_a_denoiser_there_is_no_target(tmp_path):
    header = b'{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(DamagedModel, match="holds no denoiser"):
        target_from(str(tmp_path / "a.safetensors"), tiny.cpu())


@pytest.mark.parametrize("text", ["{", None])
def test_a_config_that_cannot_be_read_is_named(tmp_path, text):
    tiny.sd().save_pretrained(tmp_path)
    path = tmp_path / "unet" / "config.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DamagedModel, match=r"unet/config\.json cannot be read"):
        target_from(str(tmp_path), tiny.cpu())


def test_of_a_hub_model_no_weight_is_downloaded(folder, tmp_path):
    with FakeHub({"somebody/tiny": {"main": folder}}) as hub:
        environment = os.environ | hub.environment(tmp_path) | {"XDG_CONFIG_HOME": str(tmp_path)}
        command = [sys.executable, "-m", "safelight", "optimizers", "--json", "--device", "cpu", "--model"]
        ran = subprocess.run([*command, "somebody/tiny"], env=environment, capture_output=True, text=True, check=True)
        missing = subprocess.run(
            [*command, "nobody/nothing"], env=environment, capture_output=True, text=True, check=False
        )
    assert {entry["name"] for entry in json.loads(ran.stdout) if entry["fits"]} >= {"dtype", "prompt-cache"}
    assert not [path for path in hub.requests if path.endswith(".safetensors")]
    assert missing.returncode == 2
    assert missing.stderr.startswith("safelight: nobody/nothing: ")
