"""A grid's axes are written as in A1111's X/Y/Z plot, and mean the same; what cannot be meant is refused."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.errors import UnknownName, UsageError
from safelight.measure.axes import applied, axis, names


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("steps=10,20,30", (10, 20, 30)),
        ("steps=1-5", (1, 2, 3, 4, 5)),
        ("steps=1-5 (+2)", (1, 3, 5)),
        ("steps=1-6 (+2)", (1, 3, 5)),
        ("steps=10-5 (-3)", (10, 7)),
        ("steps=5-1", (5, 4, 3, 2, 1)),
        ("guidance=1-3 (+0.5)", (1.0, 1.5, 2.0, 2.5, 3.0)),
        ("guidance=1-10 [5]", (1.0, 3.25, 5.5, 7.75, 10.0)),
        ("seed=1-3, 7", (1, 2, 3, 7)),
        ("sampler=DPM++ 2M Karras, Euler a,UniPC", ("DPM++ 2M Karras", "Euler a", "UniPC")),
        ('negative="ugly, blurred", none', ("ugly, blurred", "none")),
        ("size=512x768, 768 x 512", ((512, 768), (768, 512))),
        ("prompt-sr=cat,dog", (("cat", "cat"), ("cat", "dog"))),
    ],
)
def test_values_are_a_line_of_csv_with_ranges_for_numbers(written, values):
    assert axis(written).values == values


@pytest.mark.parametrize(
    ("written", "error", "says"),
    [
        ("step=1", UnknownName, "did you mean steps"),
        ("steps", UsageError, "has no values"),
        ("steps=1,,2", UsageError, "empty value"),
        ("steps=a", UsageError, "is no number"),
        ("steps=1-2 (+0.5)", UsageError, "whole numbers"),
        ("steps=1-5 (-1)", UsageError, "not walked in steps of -1"),
        ("steps=1-5 (+0)", UsageError, "not walked"),
        ("steps=1-99999", UsageError, "are the most"),
        ("guidance=1-2 [0]", UsageError, "can be drawn"),
        ("size=512", UsageError, "WIDTHxHEIGHT"),
        ("prompt-order=a,b,c,d,e,f,g", UsageError, "6 words"),
        ("prompt=cat", UnknownName, "prompt-sr"),
    ],
)
def test_what_cannot_be_meant_is_refused(written, error, says):
    with pytest.raises(error, match=says):
        axis(written)


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 9))
def test_a_range_stays_inside_its_ends_and_walks_evenly(first, last, step):
    first, last = abs(first) + 1, abs(last) + 1
    found = axis(f"seed={first}-{last} ({'+' if last >= first else '-'}{step})").values
    assert found[0] == first
    assert min(first, last) <= min(found) <= max(found) <= max(first, last)
    assert {abs(b - a) for a, b in pairwise(found)} <= {step}
    assert abs(last - found[-1]) < step


def test_labels_are_what_a_person_reads():
    assert axis("guidance=1-2 (+0.1)").labels[1] == "1.1"
    assert axis("prompt-sr=cat,dog").labels == ("cat", "dog")
    assert axis("size=64x32").labels == ("64x32",)


def test_each_value_takes_its_place_in_the_settings():
    before = {"prompt": "a cat and a dog, red", "negative": "", "steps": 20}
    steps, words, order = axis("steps=3,4"), axis("prompt-sr=cat,fox"), axis("prompt-order=cat,dog")
    assert applied(steps, 4, before)["steps"] == 4
    assert applied(words, words.values[1], before)["prompt"] == "a fox and a dog, red"
    assert {applied(order, value, before)["prompt"] for value in order.values} == {
        "a cat and a dog, red",
        "a dog and a cat, red",
    }
    with pytest.raises(UsageError, match="neither in the prompt"):
        applied(axis("prompt-sr=horse,cow"), ("horse", "cow"), before)


def test_every_field_of_a_request_that_one_cell_may_have_is_an_axis():
    assert {"sampler", "schedule", "hires-denoise", "vae", "optimize", "clip-skip"} <= set(names())
