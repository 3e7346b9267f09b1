"""Styles, as A1111's CSV has them."""

import pytest

from safelight.errors import UnknownName, UsageError
from safelight.prompts.styles import Style, applied, load

STYLES = {
    "ink": Style("ink", "ink drawing of {prompt}, black", "colour"),
    "best": Style("best", "best quality", ""),
}


def test_a_place_is_filled_and_else_the_style_is_appended():
    assert applied("a cat", "", ["ink", "best"], STYLES) == ("ink drawing of a cat, black, best quality", "colour")
    assert applied("", "bad", ["best"], STYLES) == ("best quality", "bad")


def test_an_unknown_style_names_the_nearest():
    with pytest.raises(UnknownName, match=r"unknown style 'inc': did you mean ink\?"):
        applied("a", "", ["inc"], STYLES)


def test_a_file_is_read_as_a1111_writes_it(tmp_path):
    path = tmp_path / "styles.csv"
    path.write_text('\ufeffname,prompt,negative_prompt\r\n# old,x,y\r\n"ink, wet","a, {prompt}",\r\n', "utf-8")
    assert load(path) == {"ink, wet": Style("ink, wet", "a, {prompt}", "")}
    path.write_text("name,text\nold,words\n")
    assert load(path) == {"old": Style("old", "words")}


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="have no column called name"):
        load(tmp_path / "other.csv")
