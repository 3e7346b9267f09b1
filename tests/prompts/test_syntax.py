"""The parts of a prompt, its tags, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.errors import UsageError
from safelight.prompts.syntax import Part, has_syntax, ignored, parse, parse_negative
from safelight.prompts.tags import Lora, lora_file, without_tags


def test_and_joins_parts_with_weights():
    assert parse("a cat :1.2 AND a dog AND fog:-.5").parts == (Part("a cat", 1.2), Part("a dog"), Part("fog", -0.5))
    assert parse("SAND AND BAND").parts == (Part("SAND"), Part("BAND"))
    assert parse("a\nb :2 AND c").parts == (Part("a\nb", 2.0), Part("c"))


def test_a_number_at_the_end_weighs_only_beside_and():
    assert parse("a poster, 16:9").parts == (Part("a poster, 16:9"),)


def test_lora_tags_are_taken_out_and_read():
    prompt = parse("a <lora:one:0.5>cat<lora:two:0.5:0.7> <lyco:three:te=0.2:unet=0.4><lora:four>")
    assert prompt.parts == (Part("a cat "),)
    assert prompt.loras == (Lora("one", 0.5, 0.5), Lora("two", 0.5, 0.7), Lora("three", 0.2, 0.4), Lora("four", 1, 1))
    assert parse("<lora:x:unet=0.3>").loras == (Lora("x", 1.0, 0.3),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a cat <lora:foo", "column 7: <lora: has no end"),
        ("<lora:foo <lora:bar:1>", "column 1: <lora: has no end"),
        ("a <lora::1>", "column 3: <lora: names no file"),
        ("a <lora:x:big>", "column 3: the weight 'big' of a LoRA is no number"),
        ("a <lora:x:nan>", "column 3: the weight 'nan' of a LoRA is no number"),
        ("a <lora:x:1:1:4>", "column 3: '4' of a LoRA is not supported"),
        ("a <lroa:x:1>", "column 3: <lroa:...> is no tag that Safelight knows"),
        ("a <hypernet:x:1>", "column 3: <hypernet:...> is no tag"),
        ("AND a", "column 1: AND has nothing beside it"),
        ("a AND", "column 6: AND has nothing beside it"),
        ("a AND :1.2 AND b", "column 6: AND has nothing beside it"),
        ("a <lora:x:1> AND (b:1.x)", "column 21: the weight '1.x' is no number"),
        ("<lora:x:1> [a:b:c]", "column 17: the time 'c' is no number"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_column(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_a_tag_of_another_kind_is_text():
    assert without_tags("<b:bold> <3:d> i <3 you") == ("<b:bold> <3:d> i <3 you", ())


def test_a_negative_prompt_has_no_and_and_no_lora():
    assert parse_negative("a AND b") == "a AND b"
    with pytest.raises(UsageError, match=r"column 3: <lora:x:1> in the negative prompt does nothing"):
        parse_negative("a <lora:x:1>")


@pytest.mark.parametrize("text", ["(a)", "[a]", r"a \\ b", "a BREAK b", "a AND b", "<lora:x:1>"])
def test_every_sign_of_syntax_is_seen(text):
    assert has_syntax(text)


@pytest.mark.parametrize("text", ["a cat, on a mat", "BREAKFAST AT TIFFANYS", "16:9", "a | b", "a < b"])
def test_plain_words_are_plain(text):
    assert not has_syntax(text)


def test_a_model_that_reads_words_says_what_it_takes_literally():
    said = ignored("a (red:1.3) [cat:dog:0.5] AND b")
    assert said is not None
    assert "weights (column 7), words that change in square brackets (column 13), AND (column 27)" in said
    assert ignored("a cat (Felis catus) [sic], 16:9") is None


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_in_one_line_with_a_column(text):
    try:
        assert parse(text).parts
    except UsageError as error:
        assert str(error).startswith("column ")


@given(st.text(alphabet="ab ,.:-\n", max_size=40))
def test_a_prompt_without_syntax_is_itself(text):
    assert parse(text).parts == (Part(text),)


def test_a_lora_is_found_by_path_by_name_or_by_its_place_in_a_folder(tmp_path):
    inner = tmp_path / "style" / "ink.safetensors"
    inner.parent.mkdir()
    inner.touch()
    for name in (str(inner), "ink", "ink.safetensors", "style/ink"):
        assert lora_file(name, [tmp_path]) == inner


def test_a_lora_that_is_not_there_names_the_nearest(tmp_path):
    (tmp_path / "watercolor.safetensors").touch()
    with pytest.raises(UsageError, match=r"unknown LoRA 'watercolour': did you mean watercolor\?"):
        lora_file("watercolour", [tmp_path])
    with pytest.raises(UsageError, match=r"give the path of a .safetensors file"):
        lora_file("x", [])
