"""A grid draws every cell once, with as few models as can be; what fails is one cell's, and what is apart is told."""

import math
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from safelight.errors import DoesNotApply, OutOfMemory, UnknownName, UsageError
from safelight.measure import comparisons, grid
from safelight.measure.axes import NO_AXIS, PLAIN, axis
from safelight.measure.grid import Cell, Found, Grid
from safelight.probe import blueprint
from safelight.request import Request
from safelight.run.record import Record

X, Y = axis("steps=2,4"), axis("sampler=Euler,Heun")


def cells_of(*axes, models=("a",), **fields):
    """model: by the sheet."""
    return [
        Cell(
            at,
            grid.name_of(axes, at),
            {"model": models[at[2]]},
            Request("p", seed=7, steps=axes[0].values[at[0]], **fields),
        )
        for at in grid.places(axes)
    ]


def record(request, seed):
    said = {"prompt": request.prompt, "negative": "", "guidance": None, "model_hash": None, "revision": None}
    files = {"vae": None, "sampler": "Euler", "model": "m", "model_name": "m"}
    return Record(**said, **files, width=16, height=16, steps=request.steps, seed=seed)


@dataclass
class Fake:
    """Stands where safelight.load does; its pictures are grey, the lighter the more steps."""

    fails: dict = field(default_factory=dict)  # steps or model -> what is raised
    loads: list = field(default_factory=list)
    asked: list = field(default_factory=list)
    open: int = 0

    @contextmanager
    def __call__(self, model, request, pictures):
        if model in self.fails:
            raise self.fails[model]
        self.loads.append((model, request.width, pictures))
        self.open += 1
        assert self.open == 1, "one model at a time"
        try:
            yield self
        finally:
            self.open -= 1

    def start(self, request, progress):
        self.asked.append(request)
        if request.steps in self.fails:
            raise self.fails[request.steps]
        for i in range(request.steps):
            progress("denoise", i + 1, request.steps)
        image = Image.new("RGB", (request.width or 16, 16), (40 * request.steps,) * 3)
        pictures = [SimpleNamespace(image=image, seed=request.seed, index=0)]

        class Run(list):
            seconds = {"denoise": 0.5}  # noqa: RUF012

        run = Run(pictures)
        run.request = request
        return run

    def record(self, request, picture):
        return record(request, picture.seed)


def opens(fake):
    """safelight.load raises at once; a context manager of contextlib only when it is entered."""

    def load(**arguments):
        if arguments["model"] in fake.fails:
            raise fake.fails[arguments["model"]]
        return fake(**arguments)

    return load


def draw(cells, axes, folder, fake=None, **more):
    return grid.draw(cells, axes, opens(fake or Fake()), folder, **more)


# -- which cells -------------------------------------------------------------------------------------------------------


def test_cells_stand_row_by_row_and_are_named_by_their_axes():
    assert grid.places((X, Y, NO_AXIS)) == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]
    assert grid.name_of((X, Y, NO_AXIS), (1, 0, 0)) == "steps=4, sampler=Euler"


def test_words_are_replaced_after_the_other_axes_said_theirs():
    axes = (axis("prompt-sr=ugly,dark"), axis('negative="ugly","ugly, blurred"'), NO_AXIS)
    found = grid.settings_at(axes, (1, 1, 0), {"prompt": "a cat"})
    assert found["negative"] == "dark, blurred"


@given(st.tuples(*[st.integers(1, 5)] * 3))
def test_varied_seeds_are_all_different_and_count_from_0(counts):
    axes = [axis(f"seed=1-{count} [{count}]") for count in counts]
    assert sorted(grid.vary(axes, at) for at in grid.places(axes)) == list(range(math.prod(counts)))


@pytest.mark.parametrize("costly", [0, 1, 2])
def test_the_axis_that_costs_most_is_walked_slowest_wherever_it_stands(costly):
    axes = [X, Y, axis("guidance=1,2")]
    axes[costly] = axis("model=a,b")
    cells = [Cell(at, "", {"model": "ab"[at[costly]]}, Request("p")) for at in grid.places(axes)]
    walked = [cell.load["model"] for cell in grid.walked(cells, axes)]
    assert walked == ["a"] * 4 + ["b"] * 4


def test_a_model_is_outside_of_a_vae_and_a_vae_of_a_preset():
    axes = (axis("preset=plain,speed"), axis("vae=own,b"), axis("model=a,b"))
    walked = [cell.at for cell in grid.walked([Cell(at, "", {}, Request("p")) for at in grid.places(axes)], axes)]
    assert walked[:4] == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]


def test_the_column_to_hold_against_is_named_by_its_value():
    assert [grid.column_of(Y, asked) for asked in ("first", "none", "heun")] == [0, None, 1]
    with pytest.raises(UnknownName, match="Heun"):
        grid.column_of(Y, "Huen")


# -- drawn -------------------------------------------------------------------------------------------------------------


def test_one_model_is_loaded_for_all_cells_that_it_serves_and_planned_for_the_largest(tmp_path):
    axes, fake = (X, Y, axis("model=a,b")), Fake()
    cells = cells_of(*axes, models=("a", "b"))
    cells = [replace(cell, request=replace(cell.request, width=16 * (1 + cell.at[1]))) for cell in cells]
    found, interrupted = draw(cells, axes, tmp_path, fake)
    assert fake.loads == [("a", 32, 4), ("b", 32, 4)]
    assert [one.cell.at for one in found] == grid.places(axes)
    assert not interrupted
    assert all(one.path.is_file() and one.record.seed == 7 for one in found)


def test_seconds_and_evaluations_are_of_each_cell(tmp_path):
    found, _ = draw(cells_of(X, Y, NO_AXIS), (X, Y, NO_AXIS), tmp_path)
    assert [one.evaluations for one in found] == [2, 4, 2, 4]
    assert found[0].total == 0.5


@pytest.mark.parametrize("error", [DoesNotApply("not for\nthis model"), RuntimeError("shapes differ"), KeyError("x")])
def test_a_cell_that_fails_says_why_and_the_others_go_on(tmp_path, error):
    fake = Fake(fails={4: error})
    found, _ = draw(cells_of(X, Y, NO_AXIS), (X, Y, NO_AXIS), tmp_path, fake)
    assert [one.path is None for one in found] == [False, True, False, True]
    assert "\n" not in found[1].error
    assert isinstance(error, DoesNotApply) or type(error).__name__ in found[1].error
    assert len(fake.loads) == 1


def test_a_mistake_of_our_own_is_not_hidden_in_a_cell(tmp_path):
    with pytest.raises(AssertionError):
        draw(cells_of(X, Y, NO_AXIS), (X, Y, NO_AXIS), tmp_path, Fake(fails={4: AssertionError("ours")}))


def test_a_model_that_cannot_be_had_leaves_its_cells_blank(tmp_path):
    axes = (X, Y, axis("model=a,b"))
    fake = Fake(fails={"a": UsageError("a is not in the cache")})
    found, _ = draw(cells_of(*axes, models=("a", "b")), axes, tmp_path, fake)
    assert [one.error for one in found[:4]] == ["a is not in the cache"] * 4
    assert all(one.path for one in found[4:])


def test_after_memory_ran_out_the_model_is_loaded_again(tmp_path):
    fake = Fake(fails={4: OutOfMemory("too large")})
    found, _ = draw(cells_of(X, Y, NO_AXIS), (X, Y, NO_AXIS), tmp_path, fake)
    assert [one.error for one in found] == [None, "too large", None, "too large"]
    assert len(fake.loads) == 2


def test_ctrl_c_keeps_what_is_there(tmp_path):
    fake = Fake(fails={4: KeyboardInterrupt()})
    found, interrupted = draw(cells_of(X, Y, NO_AXIS), (X, Y, NO_AXIS), tmp_path, fake)
    assert interrupted
    assert fake.open == 0, "the session is closed"
    assert [one.path is None for one in found] == [False, True, True, True]
    assert [one.error for one in found] == [None] * 4


def test_the_end_is_expected_by_the_work_that_is_left(tmp_path):
    seconds = iter(range(0, 100, 10))
    told = []
    axes = (axis("steps=2,6"), NO_AXIS, NO_AXIS)
    draw(cells_of(*axes), axes, tmp_path, tell=told.append, now=lambda: next(seconds))
    assert [news.left_seconds for news in told] == [30.0, None]  # 2 steps took 10 s
    assert told[0].text == "cell 1 of 2: steps=2: 10.00 s"


# -- compared ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path):
    axes = (X, Y, NO_AXIS)
    return Grid(axes, draw(cells_of(*axes), axes, tmp_path)[0], 0)


def test_each_cell_is_held_against_the_one_of_its_row(made):
    found = grid.compared(made).found
    assert [one.metrics is None for one in found] == [True, False, True, False]
    assert found[1].metrics["psnr"] == pytest.approx(20 * math.log10(255 / 80))
    assert set(found[1].metrics) <= set(grid.METRICS)
    assert [one.metrics for one in grid.compared(replace(made, against=None)).found] == [None] * 4


def test_other_noise_another_size_and_a_missing_picture_are_not_compared(made, tmp_path):
    first, *others = made.found
    assert first.request
    noise = replace(others[0], request=replace(others[0].request, seed=8))
    large = tmp_path / "large.png"
    Image.new("RGB", (24, 24)).save(large)
    size = replace(others[2], path=large)
    found = grid.compared(replace(made, found=(first, noise, others[1], size))).found
    assert [found[1].unequal, found[3].unequal] == ["from other noise", "of another size"]
    blank = grid.compared(replace(made, found=(Found(first.cell, error="no"), *others))).found
    assert "not there" in blank[1].unequal


def test_the_document_has_every_cell_and_only_numbers_that_json_knows(made):
    equal = replace(made.found[1], metrics={"psnr": math.inf}, error=None)
    document = grid.document(replace(made, found=(made.found[0], equal, *made.found[2:])))
    assert document["axes"] == [{"name": "steps", "values": ["2", "4"]}, {"name": "sampler", "values": list(Y.labels)}]
    assert document["against"] == "2"
    assert document["cells"][1]["metrics"] == {"psnr": "inf"}
    assert document["cells"][1]["request"]["steps"] == 4
    assert document["cells"][3]["path"].endswith("001-001-000.png")


# -- ready made --------------------------------------------------------------------------------------------------------


def test_samplers_are_those_that_fit_the_model():
    x, y = comparisons.axes_of("samplers", lambda: blueprint.read("firstlight"))
    assert y.values == (10, 20, 30)
    flow, _ = comparisons.axes_of("samplers", lambda: blueprint.read("flux1-dev"))
    assert "DPM++ 2M" in x.values
    assert "PLMS" not in flow.values
    assert "Euler" in flow.values


def test_vaes_are_those_of_the_models_family_its_own_first():
    (x,) = comparisons.axes_of("vaes", lambda: blueprint.read("sd15"))
    assert x.values[0] == "own"
    assert {"ft-mse", "ft-ema", "taesd"} <= set(x.values)
    assert "sdxl-vae" not in x.values
    with pytest.raises(UsageError, match="no other VAE"):
        comparisons.axes_of("vaes", lambda: blueprint.read("firstlight"))


def test_presets_and_tiers_stand_beside_plain():
    (tiers,) = comparisons.axes_of("tiers", lambda: None)
    assert tiers.values == (PLAIN, "tier-1", "tier-2", "tier-3")
    (presets,) = comparisons.axes_of("presets", lambda: None)
    assert {PLAIN, "ultra", "speed", "low-vram"} <= set(presets.values)
    assert not set(tiers.values[1:]) & set(presets.values)
    with pytest.raises(UnknownName, match="did you mean tiers"):
        comparisons.axes_of("tires", lambda: None)
