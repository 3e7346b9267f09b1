"""Prompts as numbers: those of the pipeline where it can read the text, A1111's rules where it cannot."""

import pytest
import tiny
import torch

import safelight.firstlight
from safelight.errors import UnknownName, UsageError
from safelight.prompts.encode import Encoder, encode, is_plain, supports

PLAIN = "a cat, on a mat"
LONG = ", ".join(["abcdefghij"] * 20)  # a token a letter


@pytest.fixture(scope="module")
def sd():
    return tiny.sd()


@pytest.fixture(scope="module")
def xl():
    return tiny.sdxl()


@pytest.fixture(scope="module")
def firstlight():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        safelight.firstlight.BUNDLED["firstlight"], torch_dtype=torch.float32, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def own(pipe, prompt, negative):
    with torch.no_grad():
        return pipe.encode_prompt(
            prompt,
            device=torch.device("cpu"),
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=negative,
        )


@pytest.mark.parametrize("prompt", [PLAIN, "", "a" * 75])
@pytest.mark.parametrize("negative", ["", "bad"])
def test_a_plain_prompt_gives_the_very_numbers_of_a_small_sd_pipeline(sd, prompt, negative):
    ours, theirs = encode(sd, prompt, negative), own(sd, prompt, negative)
    assert torch.equal(ours.prompt_embeds, theirs[0])
    assert torch.equal(ours.negative_prompt_embeds, theirs[1])
    assert ours.pooled_prompt_embeds is None


@pytest.mark.parametrize("negative", [None, "bad"])
def test_a_plain_prompt_gives_the_very_numbers_of_a_small_sdxl_pipeline(xl, negative):
    ours, theirs = encode(xl, PLAIN, negative or ""), own(xl, PLAIN, negative)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    for name, value in zip(names, theirs, strict=True):
        assert torch.equal(getattr(ours, name), value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_plain_prompt_gives_the_very_numbers_of_the_bundled_model(firstlight, dtype):
    firstlight.text_encoder.to(dtype)
    prompt = "a red apple on a table"
    assert is_plain(firstlight, prompt)
    ours, theirs = encode(firstlight, prompt, "blue"), own(firstlight, prompt, "blue")
    assert ours.prompt_embeds.dtype == dtype
    assert torch.equal(ours.prompt_embeds, theirs[0]) and torch.equal(ours.negative_prompt_embeds, theirs[1])


def test_a_chunk_is_as_long_as_the_encoder_reads(firstlight, sd):
    long = "red apple " * 16  # 32 tokens, two more than the bundled model's 30
    assert not is_plain(firstlight, long)
    assert encode(firstlight, long).prompt_embeds.shape[1] == 2 * firstlight.tokenizer.model_max_length == 64
    assert is_plain(sd, "a" * 75) and not is_plain(sd, "a" * 76)


def test_an_encoder_that_masks_its_padding_is_asked_to(sd):
    sd.text_encoder.config.use_attention_mask = True
    try:
        assert torch.equal(encode(sd, PLAIN).prompt_embeds, own(sd, PLAIN, "")[0])
    finally:
        del sd.text_encoder.config.use_attention_mask


def test_a_long_prompt_is_its_chunks_side_by_side(sd):
    whole = encode(sd, LONG, "bad")
    chunks = [encode(sd, ", ".join(["abcdefghij"] * 6) + ",")] * 3 + [encode(sd, ", ".join(["abcdefghij"] * 2))]
    assert torch.equal(whole.prompt_embeds, torch.cat([chunk.prompt_embeds for chunk in chunks], dim=1))
    empty = encode(sd, "").prompt_embeds
    assert torch.equal(whole.negative_prompt_embeds[:, 77:], torch.cat([empty] * 3, dim=1))


def test_break_begins_a_chunk(xl):
    broken, first, second = (encode(xl, text) for text in ("a BREAK b", "a", "b"))
    assert torch.equal(broken.prompt_embeds, torch.cat([first.prompt_embeds, second.prompt_embeds], dim=1))
    assert torch.equal(broken.pooled_prompt_embeds, first.pooled_prompt_embeds)
    assert broken.negative_prompt_embeds.shape == broken.prompt_embeds.shape


def scaled(plain, weights):
    factors = torch.ones(plain.shape[1])
    factors[1 : 1 + len(weights)] = torch.tensor(weights)
    return plain * factors[None, :, None]


def test_weights_multiply_and_the_mean_stays(sd):
    plain = encode(sd, "a bc").prompt_embeds  # a, b, c: a token each
    by_hand = scaled(plain, [1.0, 1.5, 1.5])
    assert torch.equal(encode(sd, "a (bc:1.5)", emphasis="No norm").prompt_embeds, by_hand)
    normed = encode(sd, "a (bc:1.5)").prompt_embeds
    assert torch.allclose(normed, by_hand * plain.mean() / by_hand.mean(), rtol=1e-6)
    assert torch.allclose(normed.mean(), plain.mean(), atol=1e-7)


def test_each_encoder_of_sdxl_keeps_its_own_mean(xl):
    plain, made = encode(xl, "a bc").prompt_embeds, encode(xl, "a (bc:1.5)").prompt_embeds
    for before, after in zip(plain.chunk(2, dim=-1), made.chunk(2, dim=-1), strict=True):
        assert torch.allclose(after.mean(), before.mean(), atol=1e-7)


def test_ignored_and_literal_brackets_weigh_nothing(sd):
    assert torch.equal(encode(sd, "a (bc:1.5)", emphasis="Ignore").prompt_embeds, encode(sd, "a bc").prompt_embeds)
    literal = encode(sd, "a (bc)", emphasis="None").prompt_embeds
    assert torch.equal(literal, own(sd, "a (bc)", "")[0])
    with pytest.raises(UnknownName, match="unknown emphasis 'original norm'"):
        encode(sd, "a", emphasis="original norm")


def test_clip_skip_takes_an_earlier_layer_with_the_final_norm(sd):
    made = encode(sd, PLAIN, "bad", clip_skip=2)
    ids = sd.tokenizer([PLAIN, "bad"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    for ours, row in ((made.prompt_embeds, ids[:1]), (made.negative_prompt_embeds, ids[1:])):
        with torch.no_grad():
            hidden = sd.text_encoder(row, output_hidden_states=True).hidden_states[-2]
            assert torch.equal(ours, sd.text_encoder.final_layer_norm(hidden))
    with pytest.raises(UsageError, match="clip-skip is 3: this text encoder has 2 layers"):
        encode(sd, PLAIN, clip_skip=3)


def test_sdxl_takes_the_layer_it_was_trained_with(xl):
    assert torch.equal(encode(xl, PLAIN, clip_skip=9).prompt_embeds, encode(xl, PLAIN).prompt_embeds)


def test_each_chunk_is_encoded_once(sd):
    calls = []
    hook = sd.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        encoder = Encoder(sd)
        for text in (LONG, LONG, f"({LONG}:1.2)"):
            encoder.encode(text, encoder.chunk_count(text))
    finally:
        hook.remove()
    assert len(calls) == 2  # the three full chunks are the same, and the rest


def test_the_syntax_is_read_for_clip_alone(sd, xl, firstlight):
    assert supports(sd) and supports(xl) and supports(firstlight)
    assert not supports(tiny.flux()) and not supports(tiny.sd3())


def test_syntax_and_length_make_a_prompt_no_plain_one(sd):
    assert is_plain(sd, PLAIN)
    assert not is_plain(sd, "a (cat)") and not is_plain(sd, LONG)
