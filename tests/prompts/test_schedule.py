"""Words that change: as A1111's own examples say, and as its parser was seen to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.errors import UsageError
from safelight.prompts.schedule import DEEPEST, schedule, text_at

TEXTS = st.text(alphabet="ab[]():|\\ .3\n", max_size=30)


def of(text, steps=10, **first_pass):
    return [[entry.until, entry.text] for entry in schedule(text, steps, **first_pass)]


def turns(*options, steps=10):
    return [[step, options[(step - 1) % len(options)]] for step in range(1, steps + 1)]


# the docstring of get_learned_conditioning_prompt_schedules, A1111 1.10
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test", [[10, "test"]]),
        ("a [b:3]", [[3, "a "], [10, "a b"]]),
        ("a [b: 3]", [[3, "a "], [10, "a b"]]),
        ("a [[[b]]:2]", [[2, "a "], [10, "a [[b]]"]]),
        ("[(a:2):3]", [[3, ""], [10, "(a:2)"]]),
        ("a [b : c : 1] d", [[1, "a b  d"], [10, "a  c  d"]]),
        ("a[b:[c:d:2]:1]e", [[1, "abe"], [2, "ace"], [10, "ade"]]),
        ("a [unbalanced", [[10, "a [unbalanced"]]),
        ("a [b:.5] c", [[5, "a  c"], [10, "a b c"]]),
        ("a [{b|d{:.5] c", [[10, "a [{b|d{:.5] c"]]),  # "not handling this right now", it says; its parser gives up
        ("((a][:b:c [d:3]", [[3, "((a][:b:c "], [10, "((a][:b:c d"]]),
        ("[a|(b:1.1)]", turns("a", "(b:1.1)")),
        ("[fe|]male", turns("female", "male")),
        ("[fe|||]male", turns("female", "male", "male", "male")),
    ],
)
def test_a1111s_own_examples(text, expected):
    assert of(text) == expected


def test_the_example_of_its_page():
    text = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
        "[ in foreground::0.6][: in background:0.25] [shoddy:masterful:0.5]"
    )
    assert of(text, 100) == [
        [25, "fantasy landscape with a mountain and an oak in foreground shoddy"],
        [50, "fantasy landscape with a lake and an oak in foreground in background shoddy"],
        [60, "fantasy landscape with a lake and an oak in foreground in background masterful"],
        [75, "fantasy landscape with a lake and an oak in background masterful"],
        [100, "fantasy landscape with a lake and a christmas tree in background masterful"],
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a:b:1]", [[1, "a"], [10, "b"]]),
        ("[a:b:1.0]", [[10, "a"]]),
        ("[a:b:0]", [[10, "b"]]),
        ("[a:b:-3]", [[10, "b"]]),
        ("[a:b:1e1]", [[10, "a"]]),
        ("[a:b:1e999]", [[10, "a"]]),
        ("[a:b:99]", [[10, "a"]]),
        ("[a::4]", [[4, "a"], [10, ""]]),
    ],
)
def test_a_point_makes_a_share_of_the_steps(text, expected):
    assert of(text) == expected


def test_a_second_pass_counts_on_from_the_first():
    assert of("a [b:.5] c", first_pass=10) == [[10, "a b c"]]
    assert of("a [b:1.5] c", first_pass=10) == [[5, "a  c"], [10, "a b c"]]
    assert of("[a:b:13]", first_pass=10) == [[3, "a"], [10, "b"]]


def test_escaped_brackets_open_nothing():
    assert of(r"\[a:b:3\]") == [[10, r"\[a:b:3\]"]]


@pytest.mark.parametrize("text", ["a | b", "(a|b)", "a [b:c:3] | d", "a [b:3] \\"])
def test_a_bar_or_a_lone_backslash_in_the_open_stops_all_change(text):
    assert of(text) == [[10, text]]


def test_a_text_holds_until_its_end_counted_as_a1111_counts():
    entries = schedule("[a|b]", 6)
    assert "".join(text_at(entries, step) for step in range(6)) == "aababa"
    entries = schedule("[a:b:3]", 6)
    assert "".join(text_at(entries, step) for step in range(6)) == "aaaabb"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a [b:c:x] d", "column 8: the time 'x' is no number"),
        ("a [b:c:]", "column 8: the time '' is no number"),
        ("[b:0,5]", "column 4: the time '0,5' is no number"),
        ("[b:50%]", "column 4: the time '50%' is no number"),
        ("a (cat:1.x)", "column 8: the weight '1.x' is no number"),
        ("(cat:1.2.3)", "column 6: the weight '1.2.3' is no number"),
        ("(cat:.)", "column 6: the weight '.' is no number"),
    ],
)
def test_a_slip_in_a_number_is_refused_with_its_column(text, message):
    with pytest.raises(UsageError, match="^" + message):
        schedule(text, 10)


@pytest.mark.parametrize(
    "text", ["[a photo: a cat]", "(style:3d)", "(cat :)", "(at 10:30pm)", "[cat:dog]", "(a:b:1.2)"]
)
def test_what_may_be_meant_as_text_is_text(text):
    assert of(text) == [[10, text]]


def test_brackets_without_end_are_refused_and_not_recursed_into():
    with pytest.raises(UsageError, match=f"more than {DEEPEST} brackets are open"):
        schedule("[a:" * 2000 + "b" + ":1]" * 2000, 10)
    assert of("(" * 5000) == [[10, "(" * 5000]]


@given(TEXTS, st.integers(1, 30))
def test_ends_rise_to_the_last_step(text, steps):
    try:
        entries = schedule(text, steps)
    except UsageError:
        return
    ends = [entry.until for entry in entries]
    assert ends == sorted(set(ends))
    assert ends[-1] == steps and ends[0] >= 1


@given(st.text(alphabet="ab(): ,.\n", max_size=30))
def test_without_square_brackets_nothing_changes(text):
    try:
        assert of(text) == [[10, text]]
    except UsageError as error:
        assert "is no number" in str(error)
