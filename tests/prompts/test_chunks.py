"""Chunks of tokens: what A1111's tokenize_line does."""

from hypothesis import given
from hypothesis import strategies as st

from safelight.prompts.chunks import BACKTRACK, filled

COMMA = 0


def words(*tokens, weight=1.0):
    return [(token, weight) for token in tokens]


def lengths(chunks):
    return [len(chunk) for chunk in chunks]


def test_an_empty_prompt_is_one_empty_chunk():
    assert filled([[]], 75, COMMA) == [[]]


def test_what_does_not_fit_begins_the_next_chunk():
    assert lengths(filled([words(*range(1, 77))], 75, COMMA)) == [75, 1]


def test_the_cut_is_behind_a_near_comma():
    tokens = [*range(1, 60), COMMA, *range(60, 90)]
    first, second = filled([words(*tokens)], 75, COMMA)
    assert first[-1][0] == COMMA and len(first) == 60
    assert second[0][0] == 60


def test_a_comma_too_far_from_the_end_does_not_count():
    tokens = [*range(1, 76 - BACKTRACK), COMMA, *range(100, 130)]
    assert lengths(filled([words(*tokens)], 75, COMMA))[0] == 76 - BACKTRACK  # the last place that counts
    tokens = [*range(1, 75 - BACKTRACK), COMMA, *range(100, 130)]
    assert lengths(filled([words(*tokens)], 75, COMMA))[0] == 75


def test_a_section_fills_its_chunk():
    assert filled([words(1), words(2)], 75, COMMA) == [words(1), words(2)]
    assert filled([words(1), []], 75, COMMA) == [words(1)]
    assert filled([[], words(1)], 75, COMMA) == [[], words(1)]


@given(st.lists(st.lists(st.integers(0, 3), max_size=60), min_size=1, max_size=4), st.integers(3, 30))
def test_no_token_is_lost_or_moved(sections, size):
    chunks = filled([words(*section) for section in sections], size, COMMA)
    assert [token for chunk in chunks for token, _ in chunk] == [token for section in sections for token in section]
    assert max(lengths(chunks)) <= size
