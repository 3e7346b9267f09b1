"""Pictures of the bundled model are judged by the words of their prompts."""

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from safelight.errors import UsageError
from safelight.measure import following
from safelight.measure.following import Asked, asked, prompt_following


def named(thing, style=None, background=None):
    known = following.gallery()
    return Asked(
        known.things.index(thing),
        None if style is None else known.styles.index(style),
        None if background is None else list(known.backgrounds).index(background),
    )


@pytest.fixture(scope="module")
def pipe():
    import torch
    from diffusers import StableDiffusionPipeline

    from safelight.firstlight import BUNDLED

    pipe = StableDiffusionPipeline.from_pretrained(BUNDLED["firstlight"], dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a dog, 3d, on a red background", named("dog", "3d", "red")),
        ("a hot dog, flat, on a white background", named("hot dog", "flat", "white")),
        ("a red apple on a green background, noto style", named("red apple", "noto", "green")),
        ("Grapes", named("grapes")),
        ("a 3D picture of an ice cream on a blue background", named("ice cream", "3d", "blue")),
        ("a black and white photo of a cat", named("cat")),
        ("a cat and a dog", None),
        ("a castle made of cheese", None),
        ("a view of Paris", None),
    ],
)
def test_a_prompt_is_read_by_the_words_it_was_trained_with(prompt, found):
    assert asked(prompt) == found


def test_every_object_is_found_in_its_own_caption():
    for thing in following.gallery().things:
        assert asked(f"a {thing}, flat, on a yellow background") == named(thing, "flat", "yellow")


def test_the_gallery_is_of_all_styles_and_objects():
    known = following.gallery()
    assert known.drawings.shape == (len(known.styles), len(known.things), 1280)
    with safe_open(following.FILE, "np") as stored:
        assert stored.get_tensor("gallery").dtype == np.float16


def test_a_drawing_is_nearest_to_itself():
    drawings = following.gallery().drawings
    for style, thing in ((0, 0), (1, 50), (2, 304)):
        assert following.nearest_things(drawings[style, thing], style)[0] == thing
        assert following.nearest_things(drawings[style, thing], None)[0] == thing
        assert following.nearest_style(drawings[style, thing], thing) == style


def test_the_background_is_that_of_the_border():
    known = list(following.gallery().backgrounds.items())
    for number, (_, colour) in enumerate(known):
        picture = np.full((64, 64, 3), 77, np.uint8)
        picture[:, :3] = picture[:, -3:] = picture[:3] = picture[-3:] = colour
        assert following.nearest_background(picture) == number


def test_firstlight_follows_its_own_prompts_and_not_others(pipe):
    import torch

    prompts = [
        "a banana, 3d, on a blue background",
        "a strawberry, flat, on a white background",
        "a red apple, 3d, on a green background",
        "a sunflower, noto, on a purple background",
    ]
    seeds = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    made = pipe(prompts, num_inference_steps=12, guidance_scale=3.0, generator=seeds).images
    right = prompt_following(made, prompts)
    assert right.object >= 0.5
    assert right.object_top5 >= right.object
    assert right.background == 1.0
    assert (right.judged, right.pictures) == (4, 4)
    assert prompt_following(made, prompts[1:] + prompts[:1]).object == 0.0


def test_only_what_is_named_is_judged():
    picture = Image.new("RGB", (64, 64), "white")
    found = prompt_following([picture, picture], ["a cat", "a view of Paris"])
    assert (found.style, found.background, found.judged, found.pictures) == (None, None, 1, 2)


def test_prompts_that_name_nothing_known_are_refused():
    with pytest.raises(UsageError, match="names one object"):
        prompt_following([Image.new("RGB", (64, 64))], ["a view of Paris"])


def test_a_prompt_for_each_picture_is_needed():
    with pytest.raises(UsageError, match="1 pictures and 2 prompts"):
        prompt_following([Image.new("RGB", (64, 64))], ["a cat", "a dog"])
