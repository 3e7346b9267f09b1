"""Scores whose weights are the user's: what is lacking is said, and CLIP's score is CLIP's own."""

from pathlib import Path

import pictures
import pytest

from safelight.errors import EnvironmentProblem, UnknownName, UsageError
from safelight.firstlight import BUNDLED
from safelight.measure.optional import clip_score, fid, lacking


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A random CLIP with firstlight's words."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    tokens = CLIPTokenizer.from_pretrained(BUNDLED["firstlight"] / "tokenizer")
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(tokens), "max_position_embeddings": 12, "eos_token_id": tokens.eos_token_id}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def test_without_weights_the_reason_names_where_they_are():
    assert "clip-vit-base-patch16" in lacking("clip-score", None)
    assert "weights-inception-2015-12-05" in lacking("fid", None)
    assert "there is no" in lacking("clip-score", Path("not-there"))


def test_what_is_lacking_is_raised():
    picture = pictures.synthetic(32)
    with pytest.raises(EnvironmentProblem, match="clip-score: there is no"):
        clip_score([picture], ["a cat"], Path("not-there"))
    with pytest.raises(EnvironmentProblem, match="fid: "):
        fid([picture] * 4, [picture] * 4, Path("not-there"))


def test_an_unknown_score_is_named():
    with pytest.raises(UnknownName, match="clip-score"):
        lacking("clip-scores", None)


def test_clip_score_is_the_cosine_of_the_models_own_features(clip):
    import torch
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    assert lacking("clip-score", clip) is None
    shown = [pictures.synthetic(48, height=32), pictures.noisy(pictures.synthetic(40), 30), pictures.synthetic(100)]
    prompts = ["a red apple, 3d, on a blue background, " * 4, "a cat", "a dog, flat"]
    model, tokens = CLIPModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    sized = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = []
    with torch.inference_mode():
        for picture, prompt in zip(shown, prompts, strict=True):
            words = tokens(prompt, truncation=True, max_length=12, return_tensors="pt")
            values = sized(picture, return_tensors="pt").pixel_values
            made = model(**words, pixel_values=values)
            expected.append(max(0.0, 100 * float((made.image_embeds * made.text_embeds).sum())))
    assert clip_score(shown, prompts, clip) == pytest.approx(sum(expected) / 3, abs=0.5)
    assert clip_score(shown[2:], prompts[2:], clip) == pytest.approx(expected[2], abs=0.5)


def test_a_prompt_for_each_picture_is_needed(clip):
    with pytest.raises(UsageError, match="1 pictures and 0 prompts"):
        clip_score([pictures.synthetic(32)], [], clip)
