"""A record makes its picture again, exactly; one that nobody could have asked for is refused, whoever wrote it."""

import json
import os
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import FULL, INPAINTED, PLAIN, TWO_PASSES, mores, record_with

from safelight.errors import UsageError
from safelight.request import Request
from safelight.run.record import KINDS, Record, changed_files, file_hash, more_of


@pytest.mark.parametrize("record", [PLAIN, FULL, TWO_PASSES, INPAINTED], ids=["plain", "full", "twice", "inpainted"])
def test_json_keeps_the_record(record):
    assert Record.from_json(record.to_json()) == record
    assert json.loads(record.to_json())["safelight"] == 1
    assert record.to_json().isascii()


def test_every_field_has_its_kind():
    assert KINDS.keys() == asdict(FULL).keys()


@given(more=mores)
def test_json_keeps_all_that_a_request_may_ask(more):
    record = record_with(more)

    again = Record.from_json(record.to_json())

    assert again == record
    assert [type(value) for value in again.more.values()] == [type(value) for value in more.values()]


def test_a_record_of_before_is_read():
    table = json.loads(PLAIN.to_json())
    older = {name: value for name, value in table.items() if name not in ("schedule", "more", "init_hash", "mask_hash")}

    assert Record.from_json(json.dumps(older)) == PLAIN


WRONG = {
    "prompt": [None, 1, ["a"], "\ud800"],
    "width": ["512", 5.5, True, -1, 2**64, None],
    "seed": [-1, 2**32, 1.0],
    "guidance": ["7", True, -1, 10**400, float("nan"), float("inf")],
    "model_hash": ["xyz", 5, "ab" * 31],
    "lora": ["a", [1], [["a"]], {"a": "b"}],
    "optimizers": [["a"], [["a"]], [["a", 1]], "ab", [["a", "b", "c"]]],
    "versions": [[], {"a": 1}, "x", None],
    "schedule": [1, ["Karras"], "\ud800"],
    "more": [[], "x", None, {"eta": [1]}, {"eta": {"a": 1}}, {"eta": None}, {"clip_skip": True}, {"init": "\ud800"}],
    "init_hash": ["xyz", 5, "AB" * 32],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_field_of_the_wrong_kind_is_refused_by_name(name, value):
    text = json.dumps({**json.loads(FULL.to_json()), name: value})

    with pytest.raises(UsageError, match=f"^the record's {name} is .*: expected ") as caught:
        Record.from_json(text)

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 160


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"safelight": 1' + "0" * 5000 + "}", "not valid JSON"),
        ("[]", "names no schema"),
        ('"safelight"', "names no schema"),
        ("{}", "names no schema"),
        ('{"safelight": 2}', "is of schema 2, this safelight reads 1"),
        ('{"safelight": true}', "is of schema True"),
        ('{"safelight": "1"}', "is of schema '1'"),
        ('{"safelight": [1]}', "is of schema of type list"),
        ('{"safelight": 1}', "not complete"),
        ('{"safelight": 1, "pro\\nmpt": ""}', r"does not know: 'pro\nmpt'"),
    ],
)
def test_what_is_not_a_record_is_refused_in_one_line(text, message):
    with pytest.raises(UsageError) as caught:
        Record.from_json(text)

    assert message in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"eta": 99}, "asks for what cannot be: eta is 99"),
        ({"clip_skip": 1.5}, "asks for what cannot be: clip-skip is 1.5"),
        ({"eta": float("inf")}, "asks for what cannot be: eta is inf"),
        ({"hires": "huge"}, "asks for what cannot be: hires is 'huge'"),
        ({"rng": "dice"}, "asks for what cannot be: unknown rng 'dice'"),
        ({"hires_steps": 5}, "asks for what cannot be: hires-steps is given without hires"),
        ({"mask": "b.png"}, "asks for what cannot be: mask is given without init"),
        ({"prompt": "another"}, "does not know: 'prompt'"),
        ({"count": 100_000}, "does not know: 'count'"),
        ({"batch_size": 9}, "does not know: 'batch_size'"),
        ({"as_\ndict": 1}, r"does not know: 'as_\ndict'"),
        ({"variation_strength": 0.5}, "has a variation_strength and no variation_seed"),
        ({"init": "a.png"}, "init and init_hash belong together"),
    ],
)
def test_what_nobody_could_have_asked_for_is_refused_in_one_line(more, message):
    with pytest.raises(UsageError) as caught:
        Record.from_json(json.dumps({**json.loads(PLAIN.to_json()), "more": more}))

    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_a_hash_of_a_picture_that_is_not_named_is_refused():
    with pytest.raises(UsageError, match="mask and mask_hash belong together"):
        replace(PLAIN, mask_hash="ab" * 32)


# -- again -------------------------------------------------------------------------------------------------------------


@given(more=mores)
def test_a_record_gives_the_request_that_makes_its_picture_again(more):
    record = record_with(more)

    request = Request(**record.request_fields())

    assert request.seeds() == [record.seed]
    assert request.variation_seeds() in (None, [more.get("variation_seed")])
    assert more_of(request, 0) == {name: value for name, value in more.items() if value != getattr(Request(""), name)}
    assert (request.sampler, request.width, request.steps) == ("Euler", 512, 20)


def test_what_the_request_had_can_be_asked_for_one_by_one():
    assert (TWO_PASSES.asked("hires_steps"), TWO_PASSES.asked("clip_skip"), TWO_PASSES.asked("init")) == (12, 1, None)


@pytest.mark.parametrize(
    ("sampler", "asked"),
    [
        *(("DPM++ 2M", "DPM++ 2M"), ("DPM++ 2M Karras", "DPM++ 2M Karras"), ("PNDMScheduler", "PNDMScheduler")),
        *(("checkpoint's own", None), ("CogVideoXDPMScheduler", None)),
    ],
)
def test_the_models_own_scheduler_is_not_asked_for_by_a_name_that_nobody_knows(sampler, asked):
    assert Request(**replace(PLAIN, sampler=sampler).request_fields()).sampler == asked


@pytest.mark.parametrize("strength", [0.0, 0.25])
@given(first=st.integers(0, 2**32 - 1), count=st.integers(1, 5), data=st.data())
def test_a_record_gives_the_request_of_its_whole_batch(strength, first, count, data):
    asked = Request(
        "a", seed=first, variation_strength=strength, variation_seed=first if strength else None, count=count
    )
    index = data.draw(st.integers(0, count - 1))
    record = replace(PLAIN, seed=asked.seeds()[index], batch_size=count, batch_index=index, more=more_of(asked, index))

    again = Request(**record.batch_fields())

    assert (again.seeds(), again.variation_seeds()) == (asked.seeds(), asked.variation_seeds())
    assert (again.count, again.batch_size) == (count, count)


# -- the pictures it was made from -------------------------------------------------------------------------------------


def begun_from(folder):
    """A record, and the files it was made from."""
    files = [folder / "init.png", folder / "mask.png"]
    for file in files:
        file.write_text(file.name)
    init, mask = map(str, files)
    more = {"init": init, "mask": mask}
    return replace(PLAIN, more=more, init_hash=file_hash(init), mask_hash=file_hash(mask)), *files


def test_files_that_are_as_they_were_are_not_named(tmp_path):
    record, _, _ = begun_from(tmp_path)

    assert changed_files(record) == []
    assert changed_files(PLAIN) == []


def test_a_changed_file_and_one_that_is_gone_are_named(tmp_path):
    record, init, mask = begun_from(tmp_path)
    init.write_text("other")
    mask.unlink()

    assert changed_files(record) == [str(init), str(mask)]


@pytest.mark.parametrize("name", ["a\0b.png", "~nobody-of-this-name/a.png", "x" * 5000, ".", "/dev/zero"])
def test_a_name_that_is_no_files_is_one_that_changed(name):
    assert changed_files(replace(PLAIN, more={"init": name}, init_hash="ab" * 32)) == [name]
    with pytest.raises(UsageError) as caught:
        file_hash(name)
    assert str(caught.value).isprintable()


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")

    with pytest.raises(UsageError, match="is no picture's file"):
        file_hash(str(tmp_path / "pipe.png"))


def test_the_hash_is_that_of_sha256sum(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")

    assert file_hash(str(tmp_path / "a")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
