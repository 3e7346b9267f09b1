"""`safelight advise`: what is usual, wasted and wrong, with who says so; nothing is run."""

import json

import pytest
from click.testing import CliRunner

from safelight.cli.advise import advise
from safelight.errors import SafelightError, UnknownName, UsageError
from safelight.sampling.advice import families


@pytest.fixture
def told():
    def call(*arguments):
        outcome = CliRunner().invoke(advise, [str(argument) for argument in arguments], catch_exceptions=False)
        assert outcome.exit_code == 0, outcome.output
        return outcome.stdout

    return call


def refused(kind, match, *arguments):
    with pytest.raises(kind, match=match):
        advise.main([str(argument) for argument in arguments], standalone_mode=False)


def test_alone_it_lists_samplers_and_kinds_of_models(told):
    text = told()
    assert all(name in text for name in ("DPM++ SDE", "useless over", "sdxl-turbo", "--help"))
    assert max(map(len, text.splitlines())) <= 120


def test_each_topic_has_its_lines_and_their_sources(told):
    lines = told("--sampler", "DPM++ SDE Karras", "--steps", 30, "--model", "sd15", "--width", 768).splitlines()
    assert lines[0] == "kind of model: sd15"
    assert "steps" in lines
    steps = lines[lines.index("steps") + 1 :]
    assert "59 model evaluations, 2 a step" in steps[0]
    assert steps[1].strip().startswith("https://")


def test_what_will_look_wrong_is_marked(told):
    lines = told("--model", "sd15", "--width", 1024, "--height", 1024).splitlines()
    assert any(line.startswith("  ! 1024x1024") and "--hires 2" in line for line in lines)


def test_the_kind_of_a_model_is_found_without_its_weights(told, folder):
    (folder_only,) = {json.loads(told("--model", folder, "--json"))["family"]}
    assert folder_only is None or folder_only in families()
    assert json.loads(told("--model", "flux1-dev", "--json"))["family"] == "flux1-dev"


def test_a_model_alone_tells_all_that_is_usual(told):
    topics = {one["topic"] for one in json.loads(told("--model", "sdxl", "--json"))["advice"]}
    assert topics == {"vae", "size", "guidance", "steps"}


def test_json_is_one_document(told):
    document = json.loads(told("--sampler", "Euler", "--eta", 0.5, "--json"))
    assert document["schema"] == 1
    warned = [one for one in document["advice"] if one["level"] == "warning"]
    assert warned[0]["topic"] == "noise"
    assert "does not take eta" in warned[0]["text"]


def test_one_thing_may_be_asked_alone(told):
    assert "denoise 0.5" in told("--denoise", 0.5)
    assert "exploring: 8 to 12 pictures" in told("--for", "exploring")
    assert "0.67 is not special" in told("--eta", 0.67)
    assert "over 0.5" in told("--hires", 2, "--hires_denoise", 0.3)


def test_what_nobody_knows_of_is_said(told):
    assert "nothing is known of that" in told("--count", 1)


def test_what_cannot_be_asked_is_one_line():
    refused(UnknownName, "did you mean Euler", "--sampler", "Eular")
    refused(UsageError, "steps is '0'|steps is 0", "--steps", 0)
    refused(UsageError, "hires-denoise is given without hires", "--hires-denoise", 0.5)
    refused(UnknownName, "did you mean final", "--for", "finale")
    refused(SafelightError, "no model at", "--model", "no/such/folder.safetensors")
