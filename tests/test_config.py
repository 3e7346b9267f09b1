"""Requests that cannot be right are refused; settings come from files, then the environment."""

from pathlib import Path

import pytest

from safelight.config import DIFFGENTOR, cache_folder, diffgentor, dtype_name, settings
from safelight.errors import UnknownName, UsageError
from safelight.request import MAX_SEED, Request


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


def test_what_is_said_of_the_optimizers_is_kept_place_by_place(tmp_path):
    (tmp_path / "safelight.toml").write_text('dtype = "bf16"\n[optimize]\nauto = true\nvae-tiling = {tile_px = 256}\n')
    environ = {"SAFELIGHT_OPTIMIZE": "prompt-cache", "SAFELIGHT_DTYPE": "fp32", "HOME": "/nowhere"}
    assert settings(environ, tmp_path) == {
        "optimize": [
            [{"auto": True, "vae-tiling": {"tile_px": 256}}, {"dtype": "bf16"}],
            ["prompt-cache", {"dtype": "fp32"}],
        ]
    }


@pytest.mark.parametrize("text", ['optimize = "auto"', 'optimize = ["auto", "dtype"]', "optimize.auto = true"])
def test_optimize_may_be_text_a_list_or_a_table(tmp_path, text):
    (tmp_path / "safelight.toml").write_text(text)
    assert len(settings({"HOME": "/nowhere"}, tmp_path)["optimize"]) == 1


@pytest.mark.parametrize("text", ["optimize = 3", "optimize = [3]", "optimize = true", "without = {dtype = true}"])
def test_anything_else_is_refused(tmp_path, text):
    (tmp_path / "safelight.toml").write_text(text)
    with pytest.raises(UsageError, match="give text, or a list"):
        settings({"HOME": "/nowhere"}, tmp_path)


@pytest.mark.parametrize(("variable", "family", "values"), DIFFGENTOR, ids=[entry[0] for entry in DIFFGENTOR])
def test_diffgentors_variables_ask_for_something_where_the_model_is_of_their_family(variable, family, values):
    value, word = next(iter(values.items()))
    assert diffgentor(f"owner/{family.upper()}-edit", {variable: value.upper()}) == [word]
    assert diffgentor(f"owner/{family}", {variable: "0"}) == []
    assert diffgentor("firstlight", {variable: value}) == []


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HOME": "/home/ann"}, "/home/ann/.cache/safelight"),
        ({"HOME": "/home/ann", "XDG_CACHE_HOME": "/fast"}, "/fast/safelight"),
        ({"HOME": "/home/ann", "XDG_CACHE_HOME": ""}, "/home/ann/.cache/safelight"),
        ({"LOCALAPPDATA": "/Users/ann/AppData/Local"}, "/Users/ann/AppData/Local/safelight"),
    ],
    ids=["home", "xdg", "an-empty-variable-is-none", "windows"],
)
def test_what_can_be_made_anew_is_kept_in_the_users_cache(environ, folder):
    assert cache_folder(environ) == Path(folder)
