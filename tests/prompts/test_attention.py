"""Weights of words, as A1111's own examples say."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.prompts.attention import DOWN, UP, weighted


def of(text):
    return [[(piece.text, piece.weight) for piece in section] for section in weighted(text)]


# the docstring of parse_prompt_attention, A1111 1.10
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        ),
    ],
)
def test_a1111s_own_examples(text, expected):
    assert of(text) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1.0)]),
        ("[less]", [("less", DOWN)]),
        ("(a:-1.5)", [("a", -1.5)]),
        ("(a: 1.3)", [("a: 1.3", UP)]),  # a space, and it is text there, too
        ("a:1.3)", [("a:1.3)", 1.0)]),
        ("(a [b) c]", [("a ", UP), ("b", UP * DOWN), (" c", DOWN)]),
        (r"a\b \\ c", [("ab \\ c", 1.0)]),
    ],
)
def test_what_its_parser_does_beyond_them(text, expected):
    assert of(text) == [expected]


def test_break_divides_also_within_brackets():
    assert of("a BREAK b") == [[("a", 1.0)], [("b", 1.0)]]
    assert of("(a BREAK b:1.2) c") == [[("a", 1.2)], [("b", 1.2), (" c", 1.0)]]
    assert of("BREAKFAST") == [[("BREAKFAST", 1.0)]]
    assert of("a BREAK BREAK b") == [[("a", 1.0)], [("", 1.0)], [("b", 1.0)]]


@given(st.text(alphabet="ab()[]:\\ 1.B", max_size=30))
def test_neighbours_differ_in_weight_and_no_letter_is_made_up(text):
    (section,) = weighted(text)
    assert all(left.weight != right.weight for left, right in pairwise(section))
    letters = iter(text)
    assert all(letter in letters for letter in "".join(piece.text for piece in section))
