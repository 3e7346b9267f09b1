"""The bundled model is a real one: small, standard, and it draws what it is asked for."""

import json
from pathlib import Path

import numpy as np
import pytest

import safelight
from safelight.firstlight import BUNDLED

FOLDER = BUNDLED["firstlight"]
COLOURS = {"black": (28, 28, 30), "white": (238, 238, 238), "red": (196, 44, 48), "green": (60, 150, 75)}


@pytest.fixture(scope="module")
def session():
    with safelight.load(device="cpu") as opened:
        yield opened


def pixels(picture):
    return np.asarray(picture.image).astype(float)


def test_all_that_is_bundled_weighs_at_most_25_mb():
    upscaler = Path(safelight.__file__).parent / "sampling" / "weights"
    files = [path for folder in (FOLDER, upscaler) for path in folder.rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) <= 25e6


def test_it_is_a_standard_pipeline_folder_of_safetensors():
    assert json.loads((FOLDER / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    assert not [*FOLDER.rglob("*.bin"), *FOLDER.rglob("*.ckpt"), *FOLDER.rglob("*.pt")]


def test_its_card_tells_how_it_was_judged():
    card = (FOLDER / "README.md").read_text()
    assert all(word in card for word in ("top-1", "top-5", "background", "style", "dB", "training/evaluate.py"))


@pytest.mark.parametrize("name", COLOURS)
def test_the_background_has_the_colour_that_was_asked_for(session, name):
    picture = pixels(session.generate(f"an airplane, 3d, on a {name} background", seed=3, steps=12).pictures[0])
    corner = np.median(picture[:4, :4].reshape(-1, 3), axis=0)
    nearest = min(COLOURS, key=lambda colour: np.abs(corner - COLOURS[colour]).sum())
    assert nearest == name


def test_the_object_has_the_colour_that_was_asked_for(session):
    prompts = {"red apple": 0, "green apple": 1}
    for name, channel in prompts.items():
        result = session.generate(f"a {name}, 3d, on a blue background", seed=1, count=4, batch_size=4)
        middle = np.mean([pixels(p)[26:44, 26:44].mean((0, 1)) for p in result.pictures], axis=0)
        assert middle.argmax() == channel, f"{name}: {middle}"


def test_a_planned_picture_is_near_the_plain_one(session):
    prompt = "a fox, flat, on a green background"
    plain = pixels(session.generate(prompt, seed=5).pictures[0])
    with safelight.load(device="cpu", optimize="auto") as planned:
        error = np.mean((pixels(planned.generate(prompt, seed=5).pictures[0]) - plain) ** 2)
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > 25
