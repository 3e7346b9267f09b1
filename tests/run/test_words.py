"""The words of a request: a pipeline's own text where it reads it, A1111's syntax encoded where not."""

import pytest
import tiny
import torch

from safelight.errors import DoesNotApply, UsageError
from safelight.request import Request
from safelight.run.words import words_of
from safelight.sampling import schedulers

EULER = schedulers.find("Euler")


@pytest.fixture(scope="module")
def unet():
    return tiny.sd()


@pytest.fixture(scope="module")
def flux():
    return tiny.flux()


def request(prompt, **fields):
    return Request(prompt, guidance=7.5, **fields)


def words(pipe, asked, *, count=2, steps=4, first_pass=None, sampler="Euler"):
    return words_of(pipe, asked, schedulers.find(sampler))(count, steps, first_pass)


def test_a_plain_prompt_is_left_to_the_pipeline(unet):
    made = words(unet, request("a cat", negative="a dog"))
    assert made.arguments == {"prompt": ["a cat"] * 2, "negative_prompt": ["a dog"] * 2}
    assert made.at(0) is None


def test_a_prompt_without_a_negative_one_says_nothing_of_it(unet):
    assert words(unet, request("a cat")).arguments.keys() == {"prompt"}


@pytest.mark.parametrize("prompt", ["a (cat:1.3)", "a [cat|dog]", "a cat AND a dog", "a cat BREAK a dog", "cat " * 100])
def test_what_a_pipeline_cannot_read_is_encoded_for_each_picture(unet, prompt):
    made = words(unet, request(prompt))
    assert "prompt" not in made.arguments
    assert {len(rows) for rows in made.arguments.values()} == {2}
    lengths = {rows.shape[1] for rows in made.arguments.values()}
    assert len(lengths) == 1
    assert lengths.pop() % 77 == 0


def test_clip_skip_is_encoded_and_changes_the_numbers(unet):
    last, before = (words(unet, request("a (cat)", clip_skip=skip)).arguments["prompt_embeds"] for skip in (1, 2))
    assert not torch.equal(last, before)
    assert "prompt" not in words(unet, request("a cat", clip_skip=2)).arguments


def test_a_word_changes_at_the_step_it_names(unet):
    made = words(unet, request("a [cat:dog:0.5]"))
    changes = [made.at(index) is not None for index in range(4)]
    assert changes == [False, False, True, False]  # as A1111: "up to step 2" includes the third


@pytest.mark.parametrize(("when", "at"), [("0.5", 4), ("3", 3)])
def test_words_count_the_evaluations_of_a_sampler_that_takes_two_a_step(unet, when, at):
    """As A1111: a share is one of the run, and a whole number counts evaluations, not steps."""
    made = words(unet, request(f"a [cat:dog:{when}]"), sampler="Heun")
    assert [index for index in range(7) if made.at(index) is not None] == [at]


def test_a_scheduler_of_diffusers_that_takes_two_a_step_changes_words_by_its_steps(unet):
    made = words(unet, request("a [cat:dog:0.5]"), sampler="HeunDiscreteScheduler")
    assert len([index for index in range(7) if made.at(index) is not None]) == 1


def test_a_word_may_change_in_the_second_pass_alone(unet):
    asked = request("a [cat:dog:1.5]")
    assert not any(words(unet, asked).at(index) for index in range(4))
    assert any(words(unet, asked, first_pass=4).at(index) is not None for index in range(4))


@pytest.mark.parametrize(
    ("prompt", "negative", "says"),
    [
        ("a [cat:dog:x]", "", "column 12"),
        ("a cat <lora:style:1>", "", "<lora:style> stands in the prompt"),
        ("a cat", "a <lora:x:1>", "column 3"),
    ],
)
def test_a_mistake_is_said_before_anything_is_encoded(unet, prompt, negative, says):
    with pytest.raises(UsageError, match=says):
        words_of(unet, request(prompt, negative=negative), EULER)


def test_a_model_that_reads_words_only_takes_brackets_for_words_and_says_so(flux):
    with pytest.warns(UserWarning, match=r"takes these literally: .*column 7"):
        made = words_of(flux, request("a (cat:1.3)"), EULER)(1, 4, None)
    assert made.arguments == {"prompt": ["a (cat:1.3)"]}


def test_clip_skip_is_refused_where_other_encoders_read(flux):
    with pytest.raises(DoesNotApply, match="FluxPipeline has other text encoders than CLIP"):
        words_of(flux, request("a cat", clip_skip=2), EULER)
