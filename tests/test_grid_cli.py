"""safelight grid as a person types it: refused before anything is loaded, or a picture, a page and an exit code."""

import json
from importlib import import_module
from pathlib import Path

import pytest
from commandline import as_nobody, in_process
from PIL import Image

from safelight.run import metadata

grid = import_module("safelight.cli.grid")  # the package has the command by that name

pytestmark = pytest.mark.filterwarnings("default")
SMALL = ("--width", 64, "--height", 64, "--optimize", "none", "--device", "cpu")


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """Nobody's settings, and an empty folder."""
    as_nobody(monkeypatch, tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))


@pytest.fixture
def run(monkeypatch, capsys, unset):
    with in_process(monkeypatch, capsys, "grid") as call:
        yield call


# -- what cannot be is said at once ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "which columns"),
        (["--x", "steps"], "has no values"),
        (["--x", "stpes=1,2"], "did you mean steps"),
        (["--x", "steps=5,0"], "cell steps=0: steps is 0"),
        (["--x", "sampler=Euler,Eular", "--y", "steps=2,3"], "cell sampler=Eular, steps=2: unknown sampler"),
        (["--x", "sampler=Euler,Eular", "--y", "steps=2,3"], "(and 1 more)"),
        (["--x", "optimize=none,dtpye=bfloat16"], "cell optimize=dtpye=bfloat16: unknown"),
        (["--x", "preset=speed,spede"], "cell preset=spede: unknown preset"),
        (["--x", "model=firstlight,nothing-here"], "cell model=nothing-here:"),
        (["--x", "vae=own,nothing-here"], "cell vae=nothing-here:"),
        (["--x", "goal=fast,fats"], "cell goal=fats:"),
        (["--x", "prompt-sr=dog,cat"], "stands neither in the prompt"),
        (["--x", "schedule=Karras"], "schedule is given without sampler"),
        (["--x", "steps=1-200", "--y", "guidance=1-100"], "20000 cells"),
        (["--x", "steps=1,2", "--y", "steps=3,4"], "on two axes"),
        (["--x", "seed=1,2", "--vary-seeds"], "axis of seeds"),
        (["--x", "steps=1,2", "--compare", "tiers"], "leave out --x"),
        (["--compare", "tires"], "did you mean tiers"),
        (["--x", "steps=1,2", "--against", "3"], "for --against"),
        (["--x", "steps=1,2", "--out", "a.jpg"], "end it in .png"),
        (["--x", "steps=1,2", "--steps", "3", "--sampler", "Eular"], "safelight: unknown sampler"),
        (["--x", "steps=1,2", "--html", "/dev/null/a.html"], "/dev/null"),
        (["--x", "steps=1,2", "--count", "2"], "unknown flag"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_the_first_picture(run, tmp_path, arguments, says):
    code, out, err = run("a red apple", *arguments)
    assert code in (2, 4), err
    assert says in err
    assert out == ""
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.rglob("*.png"))


def test_a_prompt_is_needed_once(run):
    code, _, err = run("--x", "steps=1,2")
    assert (code, err.count("what shall be drawn")) == (2, 1)
    assert "cell" not in err


# -- what becomes of the words -----------------------------------------------------------------------------------------


def cells(prompt="a red apple", *, vary=False, compare=None, x=None, y=None, z=None, **given):
    own = {"x": x, "y": y, "z": z, "compare": compare}
    axes, common = grid._axes(prompt, given, own)
    return grid._cells(prompt, common, axes, vary=vary)


def test_all_cells_have_one_seed_also_where_none_was_named(unset):
    drawn = {cell.request.seed for cell in cells(x="steps=1,2", y="guidance=1,2")}
    assert len(drawn) == 1
    assert {cell.request.seed for cell in cells(x="steps=1,2", seed="5")} == {5}
    assert [cell.request.seed for cell in cells(x="seed=5,9")] == [5, 9]


def test_varied_seeds_count_from_the_seed_and_wrap(unset):
    found = cells(x="steps=1,2", y="guidance=1,2", z="eta=0,1", seed=str(2**32 - 2), vary=True, sampler="Euler a")
    assert [cell.request.seed for cell in found] == [2**32 - 2, 2**32 - 1, 0, 1, 2, 3, 4, 5]


def test_the_noise_of_a_variation_is_one_for_all_and_only_where_there_is_one(unset):
    plain, *others = cells(x="variation-strength=0,0.1,0.2")
    assert plain.request.variation_seed is None
    assert len({cell.request.variation_seed for cell in others}) == 1
    assert others[0].request.variation_seed is not None


def test_axes_are_flags_and_win_over_settings_and_presets(unset, tmp_path):
    (tmp_path / "safelight.toml").write_text('steps = 9\nguidance = 3.0\noptimize = "vae-slicing"\n')
    first, second = cells(x="steps=2,4", preset="speed")
    assert (first.request.steps, second.request.steps) == (2, 4)
    assert first.request.guidance == 6.5
    assert first.request.count == 1
    assert cells(x="optimize=none,dtype=bfloat16")[0].load["optimize"] == "none"
    assert set(cells(x="optimize=none,dtype=bfloat16")[1].load["optimize"]) == {"vae-slicing", "dtype"}


def test_words_are_replaced_wherever_they_were_said(unset, tmp_path):
    (tmp_path / "safelight.toml").write_text('prompt = "a red apple"\nnegative = "blurred"\n')
    assert [cell.request.prompt for cell in cells(None, x="prompt-sr=apple,pear")] == ["a red apple", "a red pear"]
    assert [cell.request.negative for cell in cells(None, x="prompt-sr=blurred,dark")] == ["blurred", "dark"]
    assert cells("a pear, blurred", x="prompt-order=pear,blurred")[1].request.prompt == "a blurred, pear"


def test_plain_takes_no_preset_and_no_optimizer_and_own_no_vae(unset):
    plain, planned = cells(x="preset=plain,tier-1")
    assert plain.load["optimize"] == "none"
    assert planned.load["optimize"] != "none"
    assert cells(x="vae=own")[0].load["vae"] is None


def test_presets_are_compared_on_one_model(unset):
    found = cells(compare="presets")
    assert {cell.load["model"] for cell in found} == {"firstlight"}
    assert {cell.load["model"] for cell in cells(compare="tiers", model="sd15")} == {"sd15"}


def test_a_ready_made_grid_may_have_other_rows(unset):
    assert {cell.request.steps for cell in cells(compare="samplers")} == {10, 20, 30}
    found = cells(compare="samplers", y="guidance=3,5", steps="4")
    assert {cell.request.guidance for cell in found} == {3.0, 5.0}
    assert {cell.request.steps for cell in found} == {4}


def test_a_picture_is_drawn_again_over_an_axis_and_what_it_lacks_is_said_once(unset, tmp_path, capsys):
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text(
        "parameters", "a red apple\nSteps: 4, Sampler: Euler, CFG scale: 3, Seed: 5, Size: 64x64, Mood: odd"
    )
    Image.new("RGB", (64, 64)).save(tmp_path / "old.png", pnginfo=chunks)
    with grid._said_once():
        found = cells(None, x="steps=2,4", y="prompt-sr=apple,pear", source="old.png")
    assert [cell.request.prompt for cell in found[1:3]] == ["a red apple", "a red pear"]
    assert {(cell.request.seed, cell.request.sampler, cell.request.width) for cell in found} == {(5, "Euler", 64)}
    assert capsys.readouterr().err.count("Mood: odd") == 1


def test_nothing_that_is_there_is_overwritten_unless_it_is_named(unset, tmp_path):
    assert grid._place(None) == Path("safelight-grid-0000.png")
    (tmp_path / "safelight-grid-0004-cells").mkdir()
    assert grid._place(None) == Path("safelight-grid-0005.png")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "grid-0001-2.png").touch()
    assert grid._place("there") == Path("there/grid-0002.png")
    assert grid._place("mine.png") == Path("mine.png")


# -- with the bundled model --------------------------------------------------------------------------------------------


def test_a_grid_is_a_picture_a_page_and_the_cells_own_pictures(run, tmp_path):
    axes = ("--x", "sampler=Euler,Euler a", "--y", "steps=1,2")
    code, out, err = run("a red apple", *axes, *SMALL, "--out", "a.png", "--html", "a.html", "--seed", 3)
    assert code == 0, err
    assert out.split() == ["a.png", "a.html"]
    assert "cell 4 of 4: sampler=Euler a, steps=2" in err
    assert "left, until" in err
    pictures = sorted(path.name for path in (tmp_path / "a-cells").iterdir())
    assert pictures == ["000-000-000.png", "000-001-000.png", "001-000-000.png", "001-001-000.png"]
    record, _ = metadata.read(tmp_path / "a-cells" / "001-001-000.png")
    assert (record.sampler, record.steps, record.seed) == ("Euler a", 2, 3)
    with Image.open("a.png") as image:
        assert "Script: X/Y/Z plot, X Type: Sampler" in image.text["parameters"]
    assert "Euler a" in Path("a.html").read_text()


def test_a_cell_that_fails_is_blank_the_others_are_drawn_and_it_ends_in_3(run, tmp_path):
    axes = ("--x", "width=64,65", "--y", "steps=1")
    code, out, err = run("a red apple", *axes, *SMALL[2:], "--out", "a.png", "--json")
    assert code == 3
    assert "1 of 2 cells failed: width=65, steps=1:" in err
    document = json.loads(out)
    good, bad = document["cells"]
    assert (tmp_path / good["path"]).is_file()
    assert good["evaluations"] == 1
    assert good["seconds"]["denoise"] > 0
    assert (bad["path"], bad["metrics"]) == (None, None)
    assert "65" in bad["error"]
    assert document["files"] == ["a.png"]


def test_ctrl_c_writes_the_grid_of_what_is_there_and_ends_in_130(run, monkeypatch, tmp_path):
    from safelight.measure import grid as measuring

    def interrupted(cells, axes, opening, folder, tell):
        def load(**arguments):
            raise KeyboardInterrupt

        return measure(cells, axes, load, folder, tell)

    measure = measuring.draw
    monkeypatch.setattr(measuring, "draw", interrupted)
    code, out, err = run("a red apple", "--x", "steps=1,2", *SMALL, "--out", "a.png")
    assert (code, out) == (130, "a.png\n")
    assert "interrupted: 0 of 2 cells were drawn" in err
    assert (tmp_path / "a.png").is_file()
