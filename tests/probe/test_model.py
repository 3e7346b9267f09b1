"""What --model points to is looked at before a weight is read: whole, safe, or one line that says why not."""

import json
import pickle
import shutil
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from safelight.errors import DamagedModel, ModelNotFound, UnknownName, UsageError
from safelight.probe.model import find, safetensors_header, weights_hash


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_the_bundled_model_has_a_name():
    source = find("firstlight")
    assert (source.kind, source.name) == ("folder", "firstlight")


def test_a_folder_a_file_and_a_hub_id_are_told_apart(folder, tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "one.safetensors")
    assert find(str(folder)).kind == "folder"
    assert find(str(tmp_path / "one.safetensors")).kind == "file"
    hub = find("stabilityai/sdxl-turbo@refs/pr/1")
    assert (hub.kind, hub.place, hub.revision) == ("hub", "stabilityai/sdxl-turbo", "refs/pr/1")


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ("firstlite", UnknownName, "did you mean firstlight"),
        ("/no/such/folder", ModelNotFound, "no model at /no/such/folder"),
        ("missing.safetensors", ModelNotFound, "give a diffusers folder"),
        ("sub/missing.safetensors", ModelNotFound, "no model at"),
    ],
)
def test_what_is_not_there_is_said(asked, error, says):
    with pytest.raises(error, match=says):
        find(asked)


def test_a_folder_without_an_index_is_no_model(tmp_path):
    with pytest.raises(ModelNotFound, match=r"no model_index\.json"):
        find(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", '{"unet": 1}'])
def test_a_damaged_index_is_said(tmp_path, text):
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(DamagedModel, match=r"model_index\.json"):
        find(str(tmp_path))


def test_a_missing_part_is_named(copy):
    shutil.rmtree(copy / "vae")
    with pytest.raises(DamagedModel, match="no folder 'vae'"):
        find(str(copy))


@pytest.mark.parametrize("module", ["evil", "os.path", "subprocess"])
def test_a_model_that_wants_foreign_code_is_refused(copy, module):
    index = json.loads((copy / "model_index.json").read_text())
    index["unet"] = [module, "Anything"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=f"wants code from '{module}' for its unet"):
        find(str(copy))


@pytest.mark.parametrize("keep", [0, 5, 9, 200, -1])
def test_truncated_weights_are_found_wherever_the_cut_is(copy, keep):
    weights = next((copy / "unet").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:keep])
    with pytest.raises(DamagedModel, match=r"truncated|no whole|damaged"):
        find(str(copy))


@given(st.binary(max_size=300))
def test_any_bytes_give_a_header_or_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "any.safetensors"
    path.write_bytes(data)
    with pytest.raises((DamagedModel, UsageError)) as raised:
        find(str(path))
    assert "\n" not in str(raised.value)


def _zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"")


def _pickle(path):
    path.write_bytes(pickle.dumps({"a": 1}))


@pytest.mark.parametrize("write", [_zip, _pickle])
@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors", "model.SafeTensors"])
def test_a_pickle_is_known_by_its_content_and_refused(tmp_path, write, name):
    write(tmp_path / name)
    with pytest.raises(UsageError, match=r"is a pickle, which can run code.*--allow-pickle"):
        find(str(tmp_path / name))
    assert find(str(tmp_path / name), allow_pickle=True).kind == "pickle"


def test_a_header_lists_tensors_with_their_shapes(tmp_path):
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "one.safetensors", metadata={"made": "here"})
    assert safetensors_header(tmp_path / "one.safetensors")["a"]["shape"] == [2, 3]


def test_the_hash_is_the_denoisers(folder):
    import hashlib

    weights = next((folder / "unet").glob("*.safetensors"))
    assert weights_hash(find(str(folder))) == hashlib.sha256(weights.read_bytes()).hexdigest()
