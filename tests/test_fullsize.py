"""Full-size pipelines from config tables have the published numbers of parameters, and run."""

import importlib.util
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def fullsize():
    spec = importlib.util.spec_from_file_location("fullsize", ROOT / "benchmarks" / "fullsize.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PUBLISHED = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    "sd35-medium": {"transformer": 2_243_171_520, "text_encoder_3": 4_762_310_656},
    "flux1-dev": {"transformer": 11_901_408_320, "text_encoder_2": 4_762_310_656},
    "flux1-schnell": {"transformer": 11_891_178_560, "text_encoder_2": 4_762_310_656},
    # 33 million in the paper, and in diffusers an embedder of steps and labels more in each of 12 blocks but the first
    "dit-s2": {"transformer": 39_805_088, "vae": 83_653_863},
}


def test_each_model_is_checked(fullsize):
    assert PUBLISHED.keys() == fullsize.MODELS.keys() == fullsize.PIPELINES.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_parts_have_the_published_number_of_parameters(fullsize, name):
    pipe = fullsize.build(name, "bfloat16", "meta")
    counts = {part: fullsize.parameters(getattr(pipe, part)) for part in PUBLISHED[name]}
    assert counts == PUBLISHED[name]
    assert {p.dtype for part in PUBLISHED[name] for p in getattr(pipe, part).parameters()} == {torch.bfloat16}


def test_tokenizers_give_the_real_ids_of_begin_end_and_padding(fullsize):
    pipe = fullsize.build("flux1-dev", "bfloat16", "meta")
    clip = pipe.tokenizer("a cat").input_ids
    assert (clip[0], clip[-1], len(pipe.tokenizer)) == (49406, 49407, 49408)
    t5 = pipe.tokenizer_2("a cat", padding="max_length", truncation=True).input_ids
    assert len(t5) == 512
    assert t5[-1] == 0
    assert 1 in t5
    assert max(t5) < 32128


def test_a_weight_is_cut_from_noise_and_goes_on_where_the_last_one_ended(fullsize):
    noise = torch.arange(7.0)
    assert torch.equal(fullsize._cut(noise, 5, (2, 4)), torch.tensor([[5.0, 6, 0, 1], [2, 3, 4, 5]]) / 2)


def test_filled_weights_are_of_the_dtype_and_no_row_repeats(fullsize):
    model = fullsize._model(("transformers", "CLIPTextModel", {**fullsize.CLIP_L, "num_hidden_layers": 1}))
    fullsize._fill(model, torch.bfloat16, "cpu", fullsize._noise(torch.bfloat16, "cpu"))
    weights = dict(model.named_parameters())
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    square = next(w for name, w in weights.items() if name.endswith("q_proj.weight"))
    assert len({tuple(row.tolist()) for row in square}) == len(square)
    assert float(square.float().std()) == pytest.approx(768**-0.5, rel=0.01)
    assert not any(b.is_meta for b in model.buffers())
