"""A1111 reads our text, we read anybody's, and what a Request knows of is taken over from it."""

import json
import re
import time
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from records import FULL, INPAINTED, PLAIN, TWO_PASSES, mores, record_with, texts

from safelight.errors import UsageError
from safelight.request import Request
from safelight.run.infotext import FIELD, infotext, parse_infotext, request_of
from safelight.run.record import Record

# as published in AUTOMATIC1111/stable-diffusion-webui 1.10, modules/infotext_utils.py
A1111 = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def carried(prompt: str) -> str:
    """What A1111's format keeps of a prompt."""
    return "\n".join(line.strip() for line in prompt.split("\n")).lstrip("\n")


def test_the_text_is_laid_out_as_a1111_does():
    assert infotext(FULL) == (
        "a red apple, 3d\non a \u201cblue\u201d table \U0001f34e\n"
        "Negative prompt: blurry, bad\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 4294967295, Size: 512x768, "
        'Model hash: 0123456789, Model: "model, second: edition", VAE: soft.safetensors, '
        "Variation seed: 7, Variation seed strength: 0.25, Clip skip: 2, RNG: NV, "
        "Postprocess upscale by: 4, Postprocess upscaler: realesr-animevideov3-x4, "
        'Optimizers: "vae-tiling=256,overlap=0.5, fused-qkv", Version: safelight 0.1.0'
    )


def test_what_is_not_there_has_no_field():
    assert infotext(PLAIN) == (
        "a red apple\nSteps: 20, Sampler: Euler, Schedule type: Automatic, CFG scale: 7, Seed: 1, "
        "Size: 512x768, Model: firstlight, RNG: CPU"
    )
    assert "CFG scale" not in infotext(replace(PLAIN, guidance=None))


def test_two_passes_are_written_as_a1111_does():
    assert infotext(TWO_PASSES).endswith(
        "Size: 512x768, Model: firstlight, Denoising strength: 0.45, RNG: CPU, "
        "Hires upscale: 1.5, Hires steps: 12, Hires upscaler: R-ESRGAN 4x+"
    )
    assert infotext(replace(PLAIN, more={"hires": "1024x0"})).endswith(
        "Denoising strength: 0.7, RNG: CPU, Hires resize: 1024x0, Hires upscaler: Latent"
    )


def test_an_inpainted_picture_is_written_as_a1111_does():
    assert infotext(INPAINTED).endswith(
        "Sampler: Euler a, Schedule type: Automatic, CFG scale: 7, Seed: 1, Size: 512x768, Model: firstlight, "
        f"Denoising strength: 0.6, ENSD: 31337, Init image hash: {'ab' * 32}, RNG: CPU, Mask blur: 8, "
        "Inpaint area: Only masked, Masked area padding: 48, Masked content: latent noise, Eta: 0.67, Sigma noise: 1.05"
    )


def test_a_picture_begun_from_another_says_how_much_was_drawn_anew_also_where_it_is_usual():
    record = replace(PLAIN, more={"init": "a.png", "mask": "b.png"}, init_hash="ab" * 32, mask_hash="cd" * 32)

    assert infotext(record).endswith(f"Denoising strength: 0.75, Init image hash: {'ab' * 32}, RNG: CPU, Mask blur: 4")


@pytest.mark.parametrize(
    ("sampler", "more", "shown"),
    [
        ("Euler a", {"eta": 1}, None),
        ("Euler a", {"eta": 0}, "Eta: 0"),
        ("DDIM", {"eta": 0.0}, None),
        ("DDIM", {"eta": 1.0}, "Eta DDIM: 1"),
        ("Euler", {"s_churn": 0, "s_tmin": 0, "s_tmax": 0, "s_noise": 1}, None),
        ("Euler", {"s_churn": 5.5, "s_tmin": 0.1, "s_tmax": 10, "s_noise": 1.1}, "Sigma churn: 5.5, Sigma tmin: 0.1, "),
    ],
)
def test_options_of_a_sampler_are_written_where_they_are_not_its_usual_ones(sampler, more, shown):
    text = infotext(replace(PLAIN, sampler=sampler, more=more))

    assert text.endswith("RNG: CPU") if shown is None else f"RNG: CPU, {shown}" in f"{text}, "


@pytest.mark.parametrize(
    ("sampler", "schedule", "shown"),
    [
        ("DPM++ 2M", "SGM Uniform", "Sampler: DPM++ 2M, Schedule type: SGM Uniform, CFG"),
        ("DPM++ 2M", None, "Sampler: DPM++ 2M, Schedule type: Automatic, CFG"),
        ("PNDMScheduler", None, "Sampler: PLMS, CFG"),
        ("FlowMatchHeunDiscreteScheduler", None, "Sampler: FlowMatchHeunDiscreteScheduler, CFG"),
    ],
)
def test_a_class_of_diffusers_is_written_by_a1111s_name_and_its_schedule_has_none(sampler, schedule, shown):
    assert shown in infotext(replace(PLAIN, sampler=sampler, schedule=schedule))


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a b", "a b"), ('a "b"', 'a "b"'), ("a,b", '"a,b"'), ("a:b", '"a:b"'), ("a\nb", r'"a\nb"'), ("\u00e9", "\u00e9")],
)
def test_a_value_is_quoted_only_where_it_must_be(name, shown):
    assert f"Model: {shown}, RNG" in infotext(replace(PLAIN, model_name=name))


def test_a1111s_own_pattern_reads_the_last_line():
    found = dict(A1111.findall(infotext(FULL).split("\n")[-1]))

    assert found["Sampler"] == "DPM++ 2M"
    assert found["Size"] == "512x768"
    assert json.loads(found["Model"]) == FULL.model_name
    assert json.loads(found["Optimizers"]) == "vae-tiling=256,overlap=0.5, fused-qkv"
    assert len(found) == 17


@given(prompt=texts, negative=texts)
@example(prompt="a\nSteps: 1, Sampler: x, Seed: 3, Size: 1x1", negative="")
@example(prompt="", negative="")
@example(prompt="\n\n a \n\n", negative="\n b\n \n")
@example(prompt="a", negative="Negative prompt: b")
def test_prompts_survive_as_far_as_the_format_carries_them(prompt, negative):
    record = replace(FULL, prompt=prompt, negative=negative)
    began_early = any(line.strip().startswith("Negative prompt:") for line in prompt.split("\n"))

    found_prompt, found_negative, fields = parse_infotext(infotext(record))

    if not began_early:
        assert (found_prompt, found_negative) == (carried(prompt), carried(negative))
    assert fields == parse_infotext(infotext(FULL))[2]
    assert Record.from_json(record.to_json()) == record


@given(name=texts.filter(lambda text: not re.match(r'\s|"|\d+x\d+$|Model$|$', text)))
def test_any_value_survives(name):
    _, _, fields = parse_infotext(infotext(replace(FULL, model_name=name)))

    assert fields["Model"] == name
    assert fields["Seed"] == "4294967295"


def test_a_prompt_may_hold_what_looks_like_the_format():
    prompt = "a sign that says\nSteps: 1, Sampler: none, Seed: 5, Size: 8x8\nand more"

    assert parse_infotext(infotext(replace(PLAIN, prompt=prompt)))[0] == prompt


def test_a_prompt_line_that_begins_a_negative_prompt_is_only_safe_in_the_twin():
    record = replace(PLAIN, prompt="a\nNegative prompt: b")

    assert parse_infotext(infotext(record))[:2] == ("a", "b")
    assert Record.from_json(record.to_json()).prompt == "a\nNegative prompt: b"


@pytest.mark.parametrize("text", ["", "only a prompt", "a: b, c: d", "first\nsecond"])
def test_a_last_line_with_fewer_than_three_fields_is_prompt(text):
    assert parse_infotext(text) == (text, "", {})


def test_sizes_are_split_as_a1111_does():
    _, _, fields = parse_infotext("p\nSteps: 20, Sampler: Euler a, Size: 512x768, Hires resize: 1024x1536")

    assert fields == {
        "Steps": "20",
        "Sampler": "Euler a",
        "Size-1": "512",
        "Size-2": "768",
        "Hires resize-1": "1024",
        "Hires resize-2": "1536",
    }


@given(line=st.text(st.sampled_from('aB1 :,"\\-/x\t'), max_size=60))
def test_our_pattern_finds_what_a1111s_finds(line):
    assert FIELD.findall(line) == A1111.findall(line)


@pytest.mark.parametrize(
    "line", ["a" * 400_000, " " * 400_000, 'ab:"' * 100_000, "ab:" + '"\\' * 200_000, "a-" * 200_000 + ":"]
)
def test_a_hostile_line_takes_no_longer_than_its_length(line):
    began = time.perf_counter()

    parse_infotext(line)

    assert time.perf_counter() - began < 10  # A1111's pattern takes minutes for the first two


def test_a_quoted_half_surrogate_is_left_as_it_stands():
    assert parse_infotext(r"p" + "\n" + r'Aa: "\ud800", Bb: 1, Cc: 2')[2]["Aa"] == r'"\ud800"'


# -- taken over --------------------------------------------------------------------------------------------------------

# as published with pictures of A1111 and Forge, the prompts cut short
EULER = """a beautiful futuristic city at sunset, highly detailed, cinematic lighting
Steps: 30, Sampler: Euler, Schedule type: Automatic, CFG scale: 7.0, Seed: 1010752383, Size: 512x512, \
Model hash: f47e942ad4, Model: realisticVisionV60B1_v51HyperVAE, Version: v1.10.1"""
SECOND_PASS = """street, 130mm f1.4 lens,
Negative prompt: (low quality, worst quality:1.4)
Steps: 25, ENSD: 31337, Size: 768x768, Seed: 1293666383, Model: CF5_Counterfeit-V3.0_fix_fix_fix, \
Sampler: DPM++ 2M Karras, CFG scale: 10, Clip skip: 2, Model hash: db6cd0a62d, Hires upscale: 2, \
Hires upscaler: R-ESRGAN 4x+ Anime6B, Denoising strength: 0.5"""
MASKED = """anime
Negative prompt: watermark, text, error
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1068468216, Size: 352x528, Model hash: cbfba64e66, \
Model: counterfeitV30_v30, VAE hash: df3c506e51, VAE: kl-f8-anime2.ckpt, Denoising strength: 0.45, Mask blur: 4, \
Inpaint area: Only masked, Masked area padding: 32, Masked content: fill, Version: v1.8.0"""
VARIED = """(((long neck))), different pupils
Steps: 84, Sampler: Euler a, CFG scale: 8, Seed: 2903797192, Face restoration: CodeFormer, Size: 512x512, \
Model hash: 925997e9, Variation seed: 910849907, Variation seed strength: 0.32, Eta: 0.67"""


def test_a_plain_picture_of_a1111_is_taken_over_with_the_noise_of_nvidias_cards():
    fields, left = request_of(EULER)

    assert Request(**fields) == Request(
        "a beautiful futuristic city at sunset, highly detailed, cinematic lighting",
        steps=30,
        sampler="Euler",
        guidance=7.0,
        seed=1010752383,
        width=512,
        height=512,
        rng="nv",
    )
    assert left == ["Model hash: f47e942ad4", "Model: realisticVisionV60B1_v51HyperVAE"]


def test_a_second_pass_and_a_sampler_with_its_schedule_are_taken_over():
    fields, left = request_of(SECOND_PASS)

    assert Request(**fields) == Request(
        "street, 130mm f1.4 lens,",
        "(low quality, worst quality:1.4)",
        steps=25,
        sampler="DPM++ 2M",
        schedule="Karras",
        guidance=10,
        seed=1293666383,
        width=768,
        height=768,
        clip_skip=2,
        eta_noise_seed_delta=31337,
        rng="nv",
        hires="2",
        hires_denoise=0.5,
        hires_upscaler="R-ESRGAN 4x+ Anime6B",
    )
    assert left == ["Model: CF5_Counterfeit-V3.0_fix_fix_fix", "Model hash: db6cd0a62d"]


def test_how_a_picture_was_begun_from_another_is_taken_over_where_there_is_one():
    fields, left = request_of(MASKED, init=True)

    assert {name: value for name, value in fields.items() if name.startswith(("mask", "denoise"))} == {
        "denoise": 0.45,
        "mask_blur": 4,
        "mask_area": "masked",
        "mask_padding": 32,
        "mask_content": "fill",
    }
    assert Request(**fields, init="a.png", mask="b.png").sampler == "DPM++ 2M"
    assert [item.split(":")[0] for item in left] == ["Model hash", "Model", "VAE hash", "VAE"]


def test_a_mask_of_which_no_blur_is_told_has_none():
    text = "a\nSteps: 20, Sampler: Euler, Denoising strength: 0.91, Masked content: fill, Version: v1.9.4"

    assert request_of(text, init=True)[0]["mask_blur"] == 0
    assert request_of(text)[1] == ["Denoising strength: 0.91", "Masked content: fill"]


def test_without_a_picture_to_begin_from_it_is_left_out():
    fields, left = request_of(MASKED)

    assert Request(**fields).denoise is None
    assert "Denoising strength: 0.45" in left
    assert "Inpaint area: Only masked" in left


def test_a_second_pass_of_a_picture_that_is_begun_from_another_is_left_out():
    fields, left = request_of(SECOND_PASS, init=True)

    assert Request(**fields, init="a.png").hires is None
    assert left[2:] == ["Hires upscale: 2", "Hires upscaler: R-ESRGAN 4x+ Anime6B", "Denoising strength: 0.5"]


def test_a_variation_and_the_options_of_a_sampler_are_taken_over():
    fields, left = request_of(VARIED)

    assert (fields["variation_seed"], fields["variation_strength"], fields["eta"]) == (910849907, 0.32, 0.67)
    assert left == ["Face restoration: CodeFormer", "Model hash: 925997e9"]


@pytest.mark.parametrize(
    "field",
    [
        *(
            "Sampler: DPM9",
            "Schedule type: Sunday",
            "CFG scale: nan",
            "CFG scale: lots",
            "Seed: -1",
            "Seed: 9007199254740993",
        ),
        *("Clip skip: 99", "ENSD: -5", "RNG: dice", "Size: 0x512", "Size: 99999x512", "Size: big", "Hires upscale: 1"),
        *("Eta DDIM: 0.5", "Sigma churn: 3", "Variation seed: 5", "Denoising strength: 0.4", "Hires steps: 5"),
        *("Refiner: sdxl", "Hires prompt: a dog", "Mask blur: 4", f"Steps: {'9' * 5000}"),
    ],
)
def test_what_a_request_cannot_take_is_left_out_by_name(field):
    name = field.split(":")[0]
    kept = "Steps: 20, Sampler: UniPC, Seed: 7, Version: v1.10.1"

    fields, left = request_of(f"a\n{kept}, {field}")

    assert [item.split(":")[0] for item in left] == [name]
    assert field.startswith(left[0])
    assert Request(**fields).prompt == "a"


def test_a_size_of_which_one_side_is_wrong_is_left_out_whole():
    fields, _ = request_of("a\nSteps: 20, Sampler: Euler, Size: 512x99999")

    assert not fields.keys() & {"width", "height"}


@pytest.mark.parametrize(
    ("said", "rng"),
    [
        *(("RNG: CPU", "cpu"), ("RNG: NV", "nv"), ("RNG: GPU", "nv"), ("Version: f2.0.1", "nv")),
        ("Version: ComfyUI", "cpu"),
    ],
)
def test_silence_about_noise_is_what_the_tool_does(said, rng):
    assert request_of(f"a\nSteps: 20, Sampler: Euler, Seed: 7, {said}")[0]["rng"] == rng


def test_what_is_the_same_in_both_passes_and_who_drew_it_is_not_left_out():
    text = "Steps: 20, Sampler: Euler, Seed: 7, Hires sampler: Use same sampler, User: me, Version: 1"

    assert request_of(text)[1] == []


@pytest.mark.parametrize("text", ["", "a cat", "Copyright: me, Camera: x"])
def test_a_text_without_parameters_is_refused(text):
    with pytest.raises(UsageError, match="says nothing of how the picture was made"):
        request_of(text)


@given(text=st.text(st.sampled_from('St:,x1 "-'), max_size=80) | texts.map(lambda text: " ".join(text.split())))
def test_any_text_is_taken_over_or_refused(text):
    line = f"a\nSteps: 1, Sampler: Euler, Size: {text}, Hires upscale: {text}, Seed: {text}"

    fields, left = request_of(f"{line}, Schedule type: x")

    assert Request(**fields)
    assert all(isinstance(item, str) for item in left)


@given(more=mores)
def test_what_we_write_is_taken_over_again(more):
    record = record_with({**more, **({"hires_upscaler": "Latent"} if "hires" in more else {})})
    is_begun = "init" in more

    fields, left = request_of(infotext(record), init=is_begun)

    beside = {name: more[name] for name in ("init", "mask") if name in more}
    asked = Request(**fields | beside)
    same = Request(**record.request_fields())
    usual = {name for name in ("s_churn", "s_tmax") if more.get(name) == 0}  # is not written
    lost = {"eta", *usual}  # Euler takes no eta
    if more.get("mask_blur") == 0:  # nor is this; where nothing else is said of a mask, nobody knows of it
        lost |= {"mask_blur"}
    for name, value in same.as_dict().items():
        if name not in lost:
            assert getattr(asked, name) == value, (name, left)
