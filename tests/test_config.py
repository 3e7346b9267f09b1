"""Requests that cannot be right are refused; settings come from files, then the environment."""

import pytest

from safelight.config import MAX_SEED, Request, dtype_name, settings
from safelight.errors import UnknownName, UsageError


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 0},
        {"steps": -4},
        {"width": 0},
        {"height": 1.5},
        {"count": 0},
        {"batch_size": True},
        {"guidance": -1},
        {"guidance": float("nan")},
        {"seed": -1},
        {"seed": MAX_SEED + 1},
        {"upscale": 3},
    ],
    ids=str,
)
def test_a_request_that_cannot_be_right_is_a_usage_error(fields):
    with pytest.raises(UsageError) as raised:
        Request("a cat", **fields)
    assert next(iter(fields)).replace("_", "-") in str(raised.value)


def test_seeds_go_up_by_one_and_wrap_around():
    assert Request("a cat", seed=MAX_SEED - 1, count=4).seeds() == [MAX_SEED - 1, MAX_SEED, 0, 1]


def test_dtypes_have_short_names():
    assert [dtype_name(name) for name in ("bf16", "fp16", "FP32", "bfloat16")] == [
        "bfloat16",
        "float16",
        "float32",
        "bfloat16",
    ]


def test_the_environment_wins_over_the_folder_and_the_folder_over_the_user(tmp_path):
    user = tmp_path / "home" / "safelight"
    user.mkdir(parents=True)
    (user / "config.toml").write_text('steps = 1\nguidance = 2.0\nmodel = "mine"\n')
    (tmp_path / "safelight.toml").write_text("guidance = 3.0\nbatch-size = 2\n")
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "home"), "SAFELIGHT_BATCH_SIZE": "4", "HOME": "/nowhere"}
    assert settings(environ, tmp_path) == {"steps": 1, "model": "mine", "guidance": 3.0, "batch_size": "4"}


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [("stepps = 3", UnknownName, "did you mean steps"), ("steps = = 3", UsageError, "not valid TOML")],
)
def test_a_settings_file_with_a_mistake_is_named(tmp_path, text, error, says):
    (tmp_path / "safelight.toml").write_text(text)
    with pytest.raises(error, match=says):
        settings({}, tmp_path)


def test_a_misspelt_variable_is_named():
    with pytest.raises(UnknownName, match="did you mean SAFELIGHT_STEPS"):
        settings({"SAFELIGHT_STEPPS": "3"})
