"""Samplers, two passes, pictures to begin from and A1111's prompts, asked for as people do: by the command line.

In this process, on the bundled model at 64 pixels and on tiny pipelines of other families.
"""

from pathlib import Path

import numpy as np
import pytest
import tiny
from commandline import as_nobody, in_process
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

import safelight
from safelight.run import metadata
from safelight.sampling.samplers import SAMPLERS
from safelight.sampling.schedules import SCHEDULES

# what is said on stderr is a warning before: here it is to be read, not raised
pytestmark = pytest.mark.filterwarnings("default")
LABELS = [sampler.label for sampler in SAMPLERS]
SMALL = ("--width", 64, "--height", 64, "--steps", 3, "--seed", 1)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, tmp_path_factory):
    """Runs the command line here, in an empty folder, without the settings of whoever runs the tests."""
    as_nobody(monkeypatch, tmp_path)
    settings = tmp_path_factory.mktemp("settings")
    (settings / "safelight").mkdir()
    (settings / "safelight" / "config.toml").write_text('optimize = "none"')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(settings))
    with in_process(monkeypatch, capsys) as call:
        yield call


@pytest.fixture
def draw(run):
    """Draws with the bundled model; the answer is the picture."""

    def call(*flags, prompt="a red apple", out="a.png"):
        ran = run("generate", prompt, *SMALL, *flags, "--quiet", "--out", out)
        assert ran.code == 0, ran.err
        return pixels(out)

    return call


@pytest.fixture
def files(tmp_path):
    """Pictures to begin from, 64x64: apple.png in grey, mask.png with a white square, black.png, text.png."""
    square = Image.new("L", (64, 64))
    ImageDraw.Draw(square).rectangle((16, 16, 47, 47), fill=255)
    square.save(tmp_path / "mask.png")
    Image.new("L", (64, 64)).save(tmp_path / "black.png")
    noise = np.random.default_rng(0).integers(60, 200, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "apple.png")
    Image.fromarray(noise[:50]).save(tmp_path / "odd.png")
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


@pytest.fixture(scope="module")
def session():
    with safelight.load(optimize="none", device="cpu") as opened:
        yield opened


@pytest.fixture(scope="module", params=["sdxl", "sd3", "flux"])
def family(request, tmp_path_factory):
    """(its name, the folder of a tiny pipeline)"""
    path = tmp_path_factory.mktemp("family") / request.param
    getattr(tiny, request.param)().save_pretrained(path)
    return request.param, path


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def drawn(session, **fields):
    result = session.generate("a red apple", **{"width": 64, "height": 64, "steps": 3, "seed": 1, **fields})
    return [np.asarray(picture.image).astype(int) for picture in result.pictures]


def assert_refused(ran, code, *says):
    """One line that names what was asked and what to do, and nothing on stdout."""
    assert ran.code == code, ran
    assert ran.out == ""
    assert ran.err.startswith("safelight: "), ran.err
    assert len(ran.err.splitlines()) == 1, ran.err
    for words in says:
        assert words in ran.err, ran.err


# -- samplers and schedules --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", LABELS)
def test_a_batch_equals_its_singles_for_every_sampler(session, sampler):
    """But for rounding: kernels add up in another order. DPM adaptive is run one picture at a time."""
    together = drawn(session, sampler=sampler, count=2, batch_size=2)
    alone = [drawn(session, sampler=sampler, seed=seed)[0] for seed in (1, 2)]
    assert all(abs(a - b).max() <= 1 for a, b in zip(together, alone, strict=True))
    assert all(picture.std() > 1 for picture in alone)
    assert abs(alone[0] - alone[1]).max() > 8


@pytest.mark.parametrize("label", [row.label for row in SCHEDULES if not row.families])
def test_every_schedule_draws(session, label):
    assert drawn(session, sampler="Euler", schedule=label)[0].std() > 1


@pytest.mark.parametrize("sampler", [label for label in LABELS if label != "DPM adaptive"])
def test_one_step_is_drawn_by_every_sampler(session, sampler):
    assert drawn(session, sampler=sampler, steps=1)[0].shape == (64, 64, 3)


def test_a_sampler_and_its_schedule_may_be_one_name(draw):
    apart = draw("--sampler", "DPM++ 2M", "--schedule", "Karras")
    assert (draw("--sampler", "DPM++ 2M Karras") == apart).all()
    assert (draw("--sampler", "k_dpmpp_2m", "--schedule", "karras") == apart).all()
    assert abs(draw("--sampler", "DPM++ 2M", "--schedule", "Exponential") - apart).max() > 8


def test_dpm_adaptive_draws_one_picture_at_a_time_and_says_so(run):
    """Its steps are as long as the error of a batch allows: pictures would depend on their neighbours."""
    ran = run("generate", "a cat", *SMALL, "--sampler", "DPM adaptive", "--count", 2, "--batch-size", 2, "-O", "a.png")
    assert ran.code == 0
    assert "safelight: DPM adaptive finds the steps of each picture: drawn one at a time" in ran.said
    assert [metadata.read(Path(path))[0].batch_size for path in ran.out.splitlines()] == [1, 1]
    alone = run("generate", "a cat", *SMALL, "--sampler", "DPM adaptive", "--seed", 2, "-O", "b.png")
    assert alone.code == 0
    assert (pixels("a-0001.png") == pixels("b.png")).all()


@pytest.mark.parametrize(("steps", "taken"), [(6, 7), (7, 8), (30, 31)])
def test_a_ddim_schedule_of_more_steps_than_asked_says_so(run, steps, taken):
    ran = run("generate", "a cat", *SMALL, "--sampler", "DDIM", "--steps", steps, "-O", "a.png")
    assert ran.code == 0
    assert f"the DDIM schedule takes {taken} steps where {steps} are asked for" in ran.err


def test_a_ddim_schedule_that_divides_the_levels_says_nothing(run):
    ran = run("generate", "a cat", *SMALL, "--sampler", "DDIM", "--steps", 20, "-O", "a.png")
    assert "DDIM schedule" not in ran.err


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--sampler", "Eulr a"), "unknown sampler 'Eulr a': did you mean Euler a"),
        (("--sampler", "Euler", "--schedule", "Karas"), "unknown schedule 'Karas': did you mean Karras"),
        (("--schedule", "Karras"), "schedule is given without sampler"),
        (("--sampler", "DPM++ 2M Karras", "--schedule", "Beta"), "give one"),
        (("--sampler", "Euler", "--schedule", "Align Your Steps"), "computed for sd15 and sdxl alone"),
        (("--sampler", "FlowMatchEulerDiscreteScheduler"), "not for a noise-predicting model"),
        (("--sampler", "DPM fast", "--schedule", "Karras"), "'DPM fast' finds its own levels: leave out schedule"),
        (("--sampler", "DPM adaptive Beta"), "finds its own levels"),
        (("--steps", 0), "steps is 0: give a whole number from 1"),
        (("--init", "apple.png", "--denoise", 2), "denoise is 2.0: give a number from 0 to 1"),
        (("--denoise", 0.5), "denoise is given without init"),
        (("--width", 60), "width is 60: this model draws multiples of 8 pixels (56 and 64 are near)"),
        (("--sampler", "Euler", "--eta", 1), "Euler takes no eta"),
        (("--sampler", "DPM++ 2M", "--eta", 1), "DPM++ 2M takes no eta"),
        (("--sampler", "DPM++ 2M", "--s-churn", 1), "DPM++ 2M takes no s-churn: Euler, Heun, DPM2 do"),
        (("--hires", "1.5x"), "hires is '1.5x': give a factor"),
        (("--hires", "100x100"), "100 is no multiple of 8; 96 or 104 is near"),
        (("--hires", 1.5, "--hires-upscaler", "Latant"), "unknown upscaler 'Latant': did you mean Latent"),
        (("--hires", 1.5, "--sampler", "DEISMultistepScheduler"), "give a sampler by A1111's name"),
        (("--hires-denoise", 0.5), "--hires-denoise is given without --hires: it would do nothing"),
        (("--keep-first-pass",), "--keep-first-pass is given without --hires"),
        (("--mask-blur", 3), "--mask-blur is given without --mask"),
        (("--init", "apple.png", "--mask", "mask.png", "--mask-padding", 3), "without --mask-area masked"),
        (("--init", "apple.png", "--hires", 2), "init and hires are both given"),
        (("--init", "text.png"), "text.png is no picture"),
        (("--init", "missing.png"), "cannot read missing.png"),
        (("--init", "apple.png", "--mask", "black.png"), "black.png is all black: nothing would be drawn"),
        (("--init", "apple.png", "--mask", "mask.png", "--mask-content", "fil"), "did you mean fill"),
        (("--variation-seed", 3), "variation-seed is given without variation-strength"),
        (("--variation-strength", 2), "variation-strength is 2.0"),
        (("--rng", "nw"), "unknown rng 'nw': did you mean nv"),
        (("--clip-skip", 12), "this text encoder has 2 layers"),
        (("--preset", "explor"), "unknown preset 'explor': did you mean exploration"),
    ],
    ids=ascii,
)
def test_what_does_not_go_together_is_one_line_and_nothing_is_written(run, files, flags, says):
    assert_refused(run("generate", "a cat", "--steps", 3, *flags, "--out", "out/a.png"), 2, says)
    assert not [path for path in (files / "out").rglob("*") if path.is_file()]


def test_weights_that_are_not_here_are_named_with_how_to_get_them(run):
    asked = ("--hires", 1.5, "--hires-upscaler", "R-ESRGAN 4x+")
    assert_refused(run("generate", "a cat", *SMALL, *asked), 4, "safelight get 'R-ESRGAN 4x+'")


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("a [cat:dog:x]", "column 12: the time 'x' is no number"),
        ("a <lora:>", "column 3: <lora: names no file"),
        ("a <lora:style:much>", "column 3: the weight 'much' of a LoRA is no number"),
        ("a <lara:style:1>", "column 3: <lara:...> is no tag that Safelight knows"),
        ("a cat <lora:style:1", "column 7: <lora: has no end"),
        ("a cat <lora:style:1>", "no LoRA 'style'"),
    ],
)
def test_a_mistake_in_the_prompt_points_at_its_column(run, tmp_path, prompt, says):
    assert_refused(run("generate", prompt, *SMALL, "--out", "out/a.png"), 2, says)


def test_a_lora_in_the_negative_prompt_points_at_its_column(run):
    assert_refused(
        run("generate", "a cat", *SMALL, "--negative", "a <lora:x:1>"), 2, "column 3", "put it in the prompt"
    )


# -- advice ------------------------------------------------------------------------------------------------------------


def test_what_will_look_wrong_is_said_in_at_most_three_lines(run):
    asked = ("--guidance", 40, "--width", 256, "--hires", 3.5, "--hires-denoise", 0.2, "--steps", 1)
    ran = run("generate", "a cat", "--height", 64, "--seed", 1, *asked, "-O", "a.png")
    assert ran.code == 0
    assert len(ran.said) == 3
    assert all(line.startswith("safelight: ") for line in ran.said)


def test_nothing_is_advised_on_what_nobody_said(run):
    assert run("generate", "a cat", "--seed", 1, "-O", "a.png").said == []


@pytest.mark.parametrize("silent", ["--quiet", "--json"])
def test_quiet_and_json_are_without_advice(run, silent):
    assert "too few" not in run("generate", "a cat", *SMALL, silent, "-O", "a.png").err


def test_a_picture_to_repeat_is_advised_on_for_what_is_changed_alone(run):
    assert "too few" in run("generate", "a cat", *SMALL, "-O", "a.png").err
    assert run("generate", "--from", "a.png", "-O", "b.png").said == []
    assert "over-exposes" in run("generate", "--from", "a.png", "--guidance", 40, "-O", "b.png").err


def test_a_scheduler_of_diffusers_gets_no_advice_and_draws(run):
    assert run("generate", "a cat", *SMALL, "--sampler", "DEISMultistepScheduler", "-O", "a.png").code == 0


# -- made again --------------------------------------------------------------------------------------------------------

AGAIN = [
    ("--sampler", "DPM++ SDE Karras"),
    ("--sampler", "Euler a", "--eta", 0.5, "--s-noise", 1.01),
    ("--sampler", "Heun", "--s-churn", 2, "--s-tmin", 0.1, "--s-tmax", 0),
    ("--sampler", "DPM adaptive", "--count", 2, "--batch-size", 2),
    ("--sampler", "Euler a", "--rng", "nv", "--eta-noise-seed-delta", 31337),
    ("--variation-seed", 5, "--variation-strength", 0.3, "--count", 2, "--batch-size", 2),
    ("--hires", 1.5),
    ("--hires", "128x96", "--hires-steps", 2, "--hires-denoise", 0.6),
    ("--hires", "96x0", "--hires-upscaler", "Latent (bicubic antialiased)"),
    ("--hires", 2, "--hires-upscaler", "Lanczos", "--hires-denoise", 0.4),
    ("--hires", "96x128", "--hires-upscaler", "Lanczos", "--hires-denoise", 0.4),
    ("--hires", 1.5, "--hires-upscaler", "realesr-animevideov3-x4", "--hires-denoise", 0.4, "--sampler", "DPM2 a"),
    ("--hires", 1.5, "--hires-denoise", 0),
    ("--init", "apple.png", "--denoise", 0.5),
    ("--init", "odd.png", "--denoise", 0.5, "--sampler", "DDIM"),
    ("--init", "apple.png", "--mask", "mask.png", "--count", 2, "--batch-size", 2),
    ("--init", "apple.png", "--mask", "mask.png", "--mask-content", "fill", "--mask-blur", 0),
    ("--init", "apple.png", "--mask", "mask.png", "--mask-content", "nothing", "--denoise", 1),
    ("--init", "apple.png", "--mask", "mask.png", "--mask-area", "masked", "--mask-padding", 4),
    ("--init", "apple.png", "--mask", "mask.png", "--mask-area", "masked", "--mask-content", "noise"),
    ("--negative", "a [cat|dog], (hat:1.3)"),
]


@pytest.mark.parametrize("flags", AGAIN, ids=lambda flags: " ".join(map(str, flags)))
def test_from_makes_the_same_bits_again(run, files, flags):
    first = run("generate", "a red apple", *SMALL, *flags, "-O", "a.png")
    assert first.code == 0, first.err
    last = first.out.splitlines()[-1]
    assert run("generate", "--from", last, "-O", "b.png").code == 0
    assert (pixels("b.png") == pixels(last)).all()


@pytest.mark.parametrize("word", ["sampler", "hires", "init", "mask", "variation", "rng"])
def test_each_of_these_changes_the_picture(draw, files, word):
    flags = {
        "sampler": (("--sampler", "Euler a"), ("--sampler", "Euler a", "--eta", 0.5)),
        "hires": (("--hires", 1.5), ("--hires", 1.5, "--hires-upscaler", "Lanczos")),
        "init": (("--init", "apple.png", "--denoise", 0.4), ("--init", "apple.png", "--denoise", 0.9)),
        "mask": (("--init", "apple.png"), ("--init", "apple.png", "--mask", "mask.png")),
        "variation": ((), ("--variation-seed", 5, "--variation-strength", 0.2)),
        "rng": ((), ("--rng", "nv")),
    }
    plain, other = (draw(*more) for more in flags[word])
    assert abs(plain - other).max() > 4


def test_ensd_changes_the_noise_of_the_steps_alone(draw):
    still, noisy = ("--sampler", "Euler"), ("--sampler", "Euler a")
    assert (draw(*still, "--eta-noise-seed-delta", 9) == draw(*still)).all()
    assert abs(draw(*noisy, "--eta-noise-seed-delta", 9) - draw(*noisy)).max() > 4


def test_a_whole_variation_is_the_other_seeds_picture(draw):
    """Of a sampler that draws no more noise: what the steps draw is the seed's, as in A1111."""
    still = ("--sampler", "Euler")
    assert abs(draw(*still, "--variation-seed", 5, "--variation-strength", 1) - draw(*still, "--seed", 5)).max() <= 1


def test_the_first_pass_is_kept_on_request_and_is_the_picture_without_a_second(draw, run, tmp_path):
    draw("--hires", 1.5, "--keep-first-pass", out="large.png")
    assert pixels("large.png").shape == (96, 96, 3)
    assert (pixels("large-before-highres-fix.png") == draw()).all()
    record, _ = metadata.read(Path("large-before-highres-fix.png"))
    assert "hires" not in record.more
    assert run("generate", "--from", "large-before-highres-fix.png", "-O", "again.png").code == 0
    assert (pixels("again.png") == draw()).all()


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
@pytest.mark.parametrize("size", ["128x96", "96x128", "64x128", "128x64"])
def test_a_second_pass_of_another_shape_is_as_large_as_asked(draw, size, upscaler):
    width, height = map(int, size.split("x"))
    assert draw("--hires", size, "--hires-upscaler", upscaler).shape == (height, width, 3)


def test_what_a_mask_leaves_black_stays_as_it_was(draw, files):
    outside = np.ones((64, 64), dtype=bool)
    outside[2:62, 2:62] = False  # the blur of 4 pixels reaches 10
    made, before = draw("--init", "apple.png", "--mask", "mask.png", "--denoise", 1), pixels("apple.png")
    assert (made[outside] == before[outside]).all()
    assert abs(made - before)[24:40, 24:40].max() > 8


def test_a_changed_picture_to_begin_from_is_said_and_nothing_is_written(run, files):
    assert run("generate", "a cat", *SMALL, "--init", "apple.png", "-O", "a.png").code == 0
    Image.new("RGB", (64, 64)).save("apple.png")
    ran = run("generate", "--from", "a.png", "-O", "out/b.png")
    assert_refused(ran, 2, "a.png was made from apple.png: changed or not there; give --init")
    assert not Path("out").exists()
    assert run("generate", "--from", "a.png", "--init", "apple.png", "-O", "b.png").code == 0


# -- pictures of A1111 -------------------------------------------------------------------------------------------------


def a1111(path, fields, prompt="a red apple\nNegative prompt: blurry"):
    info = PngInfo()
    info.add_text("parameters", f"{prompt}\nSteps: 3, {fields}, CFG scale: 3, Seed: 1, Size: 64x64, Version: v1.10.1")
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)
    return path


def test_a_picture_of_a1111_is_taken_over_and_what_is_left_is_said(run):
    hires = "Denoising strength: 0.6, Hires upscale: 1.5, Hires steps: 2, Hires upscaler: Latent"
    source = a1111(
        "theirs.png", f"Sampler: DPM++ 2M, Schedule type: Karras, Model: foo, Clip skip: 2, ENSD: 7, {hires}"
    )
    ran = run("generate", "--from", source, "-O", "a.png")
    assert ran.code == 0
    assert "theirs.png: not taken over: Model: foo" in ran.said
    ours = ("--sampler", "DPM++ 2M Karras", "--clip-skip", 2, "--eta-noise-seed-delta", 7, "--rng", "nv")
    second = ("--hires", 1.5, "--hires-steps", 2, "--hires-denoise", 0.6)
    said = ("generate", "a red apple", "--negative", "blurry", "--guidance", 3, *SMALL, *ours, *second)
    assert run(*said, "-O", "b.png").code == 0
    assert (pixels("a.png") == pixels("b.png")).all()


def test_the_schedule_that_a1111_names_beside_dpm_fast_is_left(run):
    source = a1111("theirs.png", "Sampler: DPM fast, Schedule type: Karras")
    ran = run("generate", "--from", source, "-O", "a.png")
    assert (ran.code, ran.said) == (0, ["theirs.png: not taken over: Schedule type: Karras"])


def test_a_picture_of_a1111_may_be_begun_from(run, files):
    source = a1111("theirs.png", "Sampler: Euler a, Denoising strength: 0.4, Mask blur: 2")
    assert run("generate", "--from", source, "--init", "apple.png", "--mask", "mask.png", "-O", "a.png").code == 0
    more = metadata.read(Path("a.png"))[0].more
    assert (more["denoise"], more["mask_blur"]) == (0.4, 2)


# -- prompts -----------------------------------------------------------------------------------------------------------

WORDS = {
    "plain": "a cat",
    "weights": "a (cat:1.4)",
    "BREAK": "a cat BREAK a dog",
    "scheduled": "a [cat:dog:0.5]",
    "alternating": "a [cat|dog]",
    "removed": "a cat [a hat::2]",
    "AND": "a cat AND a dog",
    "AND with a weight": "a cat AND a dog :0.5",
    "long": " ".join(f"cat number {i}," for i in range(70)),
    "text": r"\(cat\)",
}


def test_each_way_of_writing_a_prompt_draws_a_picture_of_its_own(run, folder):
    small = ("--model", folder, "--steps", 4, "--seed", 1, "--width", 32, "--height", 32, "--quiet")
    pictures = {}
    for name, prompt in WORDS.items():
        ran = run("generate", prompt, *small, "-O", "a.png")
        assert ran.code == 0, (name, ran.err)
        pictures[name] = pixels("a.png").tobytes()
        assert run("generate", "--from", "a.png", "--quiet", "-O", "b.png").code == 0
        assert pixels("b.png").tobytes() == pictures[name], name
    assert len(set(pictures.values())) == len(WORDS)


def test_words_change_in_a_sampler_of_two_evaluations_a_step_and_in_a_second_pass(run, folder):
    small = ("--model", folder, "--steps", 4, "--seed", 1, "--width", 32, "--height", 32, "--quiet")
    made = []
    for prompt in ("a cat", "a [cat:dog:0.5]", "a [cat:dog:1.5]"):
        assert run("generate", prompt, *small, "--sampler", "Heun", "--hires", 1.5, "-O", "a.png").code == 0
        made.append(pixels("a.png").tobytes())
    assert len(set(made)) == 3


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """A folder with style.safetensors in a folder below: weights for the UNet and for the text encoder."""
    import torch
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    place, pipe = tmp_path_factory.mktemp("loras"), tiny.sd()
    torch.manual_seed(3)
    targets = {"unet": ["to_q", "to_k", "to_v"], "text_encoder": ["q_proj", "k_proj", "v_proj"]}
    for part, modules in targets.items():
        config = LoraConfig(r=4, init_lora_weights=False, target_modules=modules)
        getattr(pipe, part).add_adapter(config)
    layers = {f"{part}_lora_layers": get_peft_model_state_dict(getattr(pipe, part)) for part in targets}
    StableDiffusionPipeline.save_lora_weights(place / "below", **layers, weight_name="style.safetensors")
    return place


def test_a_lora_in_the_prompt_is_the_lora_of_the_flag(run, folder, loras):
    file = loras / "below" / "style.safetensors"
    small = ("--model", folder, "--steps", 2, "--seed", 1, "--width", 32, "--height", 32, "--lora-dir", loras)

    def drawn_with(prompt, *flags):
        ran = run("generate", prompt, *small, *flags, "-O", "a.png")
        assert (ran.code, ran.said) == (0, []), ran.err
        assert run("generate", "--from", "a.png", "-O", "b.png").code == 0
        assert (pixels("b.png") == pixels("a.png")).all()
        return pixels("a.png")

    plain = drawn_with("a cat")
    both, split = drawn_with("a cat <lora:style:0.5>"), drawn_with("a cat <lora:below/style:0.5:0.9>")
    unet = drawn_with("a cat <lora:style:te=0:unet=0.9>")
    assert (both == drawn_with("a cat", "--lora", f"{file}=0.5")).all()
    assert (split == drawn_with("a cat", "--lora", f"{file}=0.5:0.9")).all()
    assert abs(drawn_with("a cat <lora:style:0>") - plain).max() <= 1
    assert len({picture.tobytes() for picture in (plain, both, split, unet)}) == 4
    twice = drawn_with("a cat <lora:style:0.3> <lora:style:0.2>")
    assert abs(twice - both).max() <= 1


def test_a_lora_that_is_not_in_the_folder_names_the_nearest(run, folder, loras):
    asked = ("generate", "a cat <lora:stile:1>", "--model", folder, "--lora-dir")
    assert_refused(run(*asked, loras), 2, "unknown LoRA 'stile': did you mean style")
    assert_refused(run(*asked, "missing"), 2, "--lora-dir missing: no such folder")


# -- other families ----------------------------------------------------------------------------------------------------


@pytest.fixture
def other(run, family, files):
    """Draws with the tiny pipeline of another family at 32 pixels."""
    small = ("--model", family[1], "--steps", 3, "--seed", 1, "--width", 32, "--height", 32, "--quiet")
    return lambda *flags: run("generate", "a cat", *small, *flags, "-O", "a.png")


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
@pytest.mark.parametrize(("hires", "shape"), [("1.5", (48, 48, 3)), ("64x48", (48, 64, 3))])
def test_every_family_draws_a_second_pass(other, run, hires, shape, upscaler):
    ran = other("--hires", hires, "--hires-upscaler", upscaler)
    assert ran.code == 0, ran.err
    assert pixels("a.png").shape == shape
    assert run("generate", "--from", "a.png", "--quiet", "-O", "b.png").code == 0
    assert (pixels("b.png") == pixels("a.png")).all()


@pytest.mark.parametrize(
    "flags",
    [
        ("--denoise", 0.6),
        ("--mask", "mask.png", "--denoise", 0.6),
        ("--mask", "mask.png", "--mask-area", "masked", "--mask-content", "noise", "--denoise", 1),
    ],
    ids=ascii,
)
def test_every_family_begins_from_a_picture_and_heeds_a_mask(other, run, flags):
    ran = other("--init", "apple.png", *flags, "--count", 2, "--batch-size", 2)
    assert ran.code == 0, ran.err
    assert abs(pixels("a-0000.png") - pixels("a-0001.png")).max() > 4
    assert run("generate", "--from", "a-0001.png", "--quiet", "-O", "b.png").code == 0
    assert (pixels("b.png") == pixels("a-0001.png")).all()


def test_a_little_drawn_anew_stays_near_the_picture_in_every_family(other, family, files):
    with Image.open("apple.png") as picture:
        picture.resize((32, 32)).save("small.png")
    drawn_anew = []
    for denoise in (0.05, 1):
        assert other("--init", "small.png", "--denoise", denoise, "--steps", 20).code == 0
        drawn_anew.append(pixels("a.png"))
    assert abs(drawn_anew[0] - drawn_anew[1]).mean() > 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--sampler", "DDIM"), "'DDIM' is not for a flow-matching model"),
        (("--sampler", "DPM fast"), "not for a flow-matching model"),
        (("--sampler", "Euler", "--s-churn", 2), "s-churn is not for a flow-matching model"),
        (("--sampler", "Euler", "--schedule", "KL Optimal"), "not for a flow-matching model"),
        (("--clip-skip", 2), "has other text encoders than CLIP"),
    ],
    ids=ascii,
)
def test_what_a_flow_model_cannot_do_is_refused_with_the_reason(other, family, flags, says):
    if family[0] != "sdxl":
        assert_refused(other(*flags), 2, says)


def test_a_negative_prompt_counts_or_is_refused(other, family):
    assert other().code == 0
    plain = pixels("a.png")
    ran = other("--negative", "a dog")
    if family[0] == "flux":  # its pipeline takes one, and leaves it aside
        assert_refused(ran, 2, "FluxPipeline takes no negative prompt: leave it out")
    else:
        assert ran.code == 0
        assert abs(pixels("a.png") - plain).max() > 0


def test_a_negative_prompt_without_guidance_is_said_to_do_nothing(run, folder):
    small = ("--model", folder, "--steps", 1, "--seed", 1, "--width", 32, "--height", 32)
    ran = run("generate", "a cat", *small, "--guidance", 1, "--negative", "a dog", "-O", "a.png")
    assert (ran.code, ran.said) == (0, ["safelight: guidance is 1: the negative prompt does nothing"])


# -- what goes wrong in the second pass --------------------------------------------------------------------------------


@pytest.fixture
def second_pass_raises(monkeypatch):
    """Puts an error into the denoiser, once its latents are larger than the first pass's 16 cells.

    Not where it is traced without numbers, for a prediction.
    """
    from diffusers import UNet2DConditionModel
    from torch._subclasses import FakeTensor

    real = UNet2DConditionModel.forward

    def install(error):
        def forward(unet, sample, *arguments, **keywords):
            if sample.shape[-1] > 16 and not isinstance(sample, FakeTensor):
                raise error
            return real(unet, sample, *arguments, **keywords)

        monkeypatch.setattr(UNet2DConditionModel, "forward", forward)

    return install


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (MemoryError(), 6, ("hires of 1 picture(s)", "ran out of memory", "smaller --batch-size or --hires")),
        (KeyboardInterrupt(), 130, ("interrupted: 0 of 1 pictures were written",)),
    ],
    ids=["memory", "interrupt"],
)
def test_an_end_in_the_second_pass_is_one_line_and_leaves_nothing(run, folder, second_pass_raises, error, code, says):
    second_pass_raises(error)
    small = ("--model", folder, "--steps", 2, "--seed", 1, "--width", 32, "--height", 32, "--quiet")
    ran = run("generate", "a cat", *small, "--hires", 1.5, "--keep-first-pass", "-O", "out/a.png")
    assert_refused(ran, code, *says)
    assert not [path for path in Path("out").rglob("*") if path.is_file()]


# -- presets -----------------------------------------------------------------------------------------------------------


def test_a_preset_asks_by_name_and_flags_win(run):
    ran = run("generate", "a cat", "--preset", "exploration", *SMALL, "--count", 2, "--batch-size", 2, "-O", "a.png")
    assert ran.code == 0, ran.err
    assert len(ran.out.splitlines()) == 2
