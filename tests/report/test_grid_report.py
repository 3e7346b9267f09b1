"""A grid's picture holds every cell where it belongs, A1111's fields in its text; its page is one safe file."""

import math
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from safelight.measure.axes import NO_AXIS, axis
from safelight.measure.grid import Cell, Found, Grid, name_of, places
from safelight.report import grid as pages
from safelight.report import grid_picture
from safelight.request import Request
from safelight.run.infotext import parse_infotext
from safelight.run.record import Record

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
AXES = (axis("sampler=DPM++ 2M Karras,Euler a"), axis("steps=10,20"), NO_AXIS)
COLOURS = {(0, 0, 0): "red", (1, 0, 0): "blue", (0, 1, 0): "lime"}


def record(seed=7):
    said = {"prompt": "a cat", "negative": "", "sampler": "Euler", "model": "m", "model_name": "m"}
    return Record(
        **said,
        **dict.fromkeys(("guidance", "model_hash", "revision", "vae")),
        width=64,
        height=64,
        steps=10,
        seed=seed,
        versions={"safelight": "0.1.0"},
    )


def made(folder, axes=AXES, colours=COLOURS, size=(64, 64), prompt="a cat"):
    """Cells of one colour each; the others failed."""
    found = []
    for at in places(axes):
        cell = Cell(at, name_of(axes, at), {"model": "m"}, Request(prompt, seed=7, steps=10, width=64, height=64))
        if at not in colours:
            found.append(Found(cell, error="out of memory"))
            continue
        path = folder / f"{'-'.join(map(str, at))}.png"
        Image.new("RGB", size, colours[at]).save(path)
        metrics = None if at[0] == 0 else {"psnr": math.inf, "lpips": 0.021}
        more = {"seconds": {"denoise": 1.25}, "evaluations": 20, "metrics": metrics, "record": record()}
        found.append(Found(cell, cell.request, path, **more))
    return Grid(axes, tuple(found), 0, False, "2026-11-21T20:14:00+00:00", ("safelight", "grid", prompt))


# -- the picture -------------------------------------------------------------------------------------------------------


def centre(sheet, plan, column, row):
    left, top = plan.corner(column, row)
    return sheet.image.getpixel((left + plan.cell[0] // 2, top + plan.cell[1] // 2))


def test_every_cell_stands_in_its_column_and_row(tmp_path):
    grid = made(tmp_path)
    sheet, plan = grid_picture.sheet(grid, 0), grid_picture._plan(grid, 0, (64, 64))
    assert sheet.scale == 1
    assert sheet.image.size == plan.size
    colours = [centre(sheet, plan, column, row) for column, row in ((0, 0), (1, 0), (0, 1))]
    assert colours == [(255, 0, 0), (0, 0, 255), (0, 255, 0)]


def test_headings_are_drawn_beside_the_pictures_and_never_over_them(tmp_path):
    grid = made(tmp_path)
    sheet, plan = grid_picture.sheet(grid, 0), grid_picture._plan(grid, 0, (64, 64))
    left, top = plan.corner(0, 0)
    for margin in (
        sheet.image.crop((0, 0, sheet.image.width, top)),
        sheet.image.crop((0, 0, left, sheet.image.height)),
    ):
        assert len(margin.getcolors(1 << 16)) > 2
    assert sheet.image.crop((left, top, left + 64, top + 64)).getcolors() == [(64 * 64, (255, 0, 0))]


def test_a_cell_that_failed_is_blank_and_says_why(tmp_path):
    grid = made(tmp_path)
    sheet, plan = grid_picture.sheet(grid, 0), grid_picture._plan(grid, 0, (64, 64))
    left, top = plan.corner(1, 1)
    colours = {colour for _, colour in sheet.image.crop((left, top, left + 64, top + 64)).getcolors(1 << 16)}
    assert (0xEF, 0xEB, 0xE5) in colours
    assert len(colours) > 2, "some words"


def test_of_a_grid_that_would_be_too_large_the_cells_are_made_smaller(tmp_path):
    grid = made(tmp_path, size=(400, 300))
    sheet = grid_picture.sheet(grid, 0, most_pixels=120_000)
    assert math.prod(sheet.image.size) <= 120_000
    assert 0.1 < sheet.scale < 1


def test_pictures_of_several_sizes_and_none_at_all_make_a_picture(tmp_path):
    grid = made(tmp_path)
    Image.new("RGB", (96, 32), "red").save(grid.found[0].path)
    assert grid_picture._plan(grid, 0, grid_picture._cell(grid, 0)).cell == (96, 64)
    assert grid_picture.sheet(grid, 0).image.width > 192
    assert grid_picture.sheet(made(tmp_path, colours={}), 0).image.width > 128


def test_a_third_axis_gives_each_sheet_its_title(tmp_path):
    axes = (AXES[0], NO_AXIS, axis("guidance=3,5"))
    grid = made(tmp_path, axes, {(0, 0, 0): "red", (0, 0, 1): "blue"})
    plans = [grid_picture._plan(grid, number, (64, 64)) for number in (0, 1)]
    assert [" ".join(plan.title) for plan in plans] == ["guidance: 3", "guidance: 5"]
    assert centre(grid_picture.sheet(grid, 1), plans[1], 0, 0) == (0, 0, 255)


@given(st.text("abc 1", max_size=60), st.integers(5, 200))
def test_wrapped_lines_fit_and_lose_no_letter(text, most):
    font = ImageFont.load_default(10)
    lines = grid_picture.wrapped(text, font, most)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(font.getlength(line) <= most or len(line) == 1 for line in lines)


# -- its text ----------------------------------------------------------------------------------------------------------


def test_the_file_says_what_a1111_says_of_its_own_grids(tmp_path):
    axes = (axis('prompt-sr=cat,"dog, wet"'), axis("guidance=3,5"), NO_AXIS)
    grid = made(tmp_path, axes, {(0, 0, 0): "red"})
    (tmp_path / "grid.png").write_bytes(
        grid_picture.encoded(grid_picture.sheet(grid, 0).image, grid_picture.parameters(grid, 0))
    )
    with Image.open(tmp_path / "grid.png") as image:
        prompt, _, fields = parse_infotext(image.text["parameters"])
    assert prompt == "a cat"
    assert fields["Seed"] == "7"
    assert fields["Script"] == "X/Y/Z plot"
    assert (fields["X Type"], fields["Y Type"]) == ("Prompt S/R", "CFG Scale")
    assert axis(f"prompt-sr={fields['X Values']}").values == axes[0].values
    assert fields["Y Values"] == "3,5"
    assert "Z Type" not in fields


def test_without_a_picture_the_text_still_names_the_axes(tmp_path):
    assert grid_picture.parameters(made(tmp_path, colours={}), 0).startswith("Script: X/Y/Z plot, X Type: Sampler")


# -- the page ----------------------------------------------------------------------------------------------------------

VOID = {"meta", "img", "br", "wbr"}


class Walk(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.said = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs))
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.said.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.said).split())

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_is_whole_and_loads_nothing(tmp_path):
    text = pages.page(made(tmp_path))
    walk = Walk(text)
    assert walk.open == []
    ids = [attributes["id"] for _, attributes in walk.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"].removeprefix("#") for link in walk.of("a")} <= set(ids)
    assert not walk.of("script") and not walk.of("link")
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in walk.of("img"))
    assert "default-src 'none'" in text
    assert "script-src" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert "$" not in text.replace("$title", "")


def test_every_cell_has_its_seconds_evaluations_and_metrics(tmp_path):
    walk = Walk(pages.page(made(tmp_path)))
    assert len(walk.of("img")) == 3
    for said in ("DPM++ 2M Karras", "steps: 20", "1.25 s", "20", "PSNR equal", "LPIPS 0.021", "out of memory"):
        assert said in walk.text, said
    assert "3 of 4 cells drawn; 1 failed. 2026-11-21 20:14 UTC" in walk.text
    assert "against DPM++ 2M Karras of the same row" in walk.text


def test_a_click_enlarges_without_a_script(tmp_path):
    walk = Walk(pages.page(made(tmp_path)))
    assert len([one for one in walk.of("details") if one.get("class") == "zoom"]) == 3
    assert "seed 7" in walk.text


def test_hostile_words_stay_words(tmp_path):
    axes = (axis(f'prompt-sr=cat,"{HOSTILE.replace(chr(34), chr(34) * 2)}"'), NO_AXIS, NO_AXIS)
    grid = made(tmp_path, axes, {(0, 0, 0): "red"}, prompt=HOSTILE)
    failed = replace(grid.found[1], error=HOSTILE)
    walk = Walk(pages.page(replace(grid, found=(grid.found[0], failed))))
    assert not walk.of("script")
    assert [image for image in walk.of("img") if "onerror" in image] == []
    assert walk.text.count("alert(1)") >= 4


def test_cells_that_were_not_drawn_and_why_metrics_are_missing_is_said(tmp_path):
    grid = made(tmp_path)
    apart = replace(grid.found[1], metrics=None, unequal="of another size")
    blank = replace(grid.found[3], error=None)
    found = (grid.found[0], apart, grid.found[2], blank)
    said = Walk(pages.page(replace(grid, found=found, interrupted=True))).text
    assert "none: of another size" in said
    assert "not drawn" in said
    assert "interrupted" in said


@pytest.mark.parametrize(("pictures", "side"), [(0, 768), (100, 768), (101, 384), (10_000, 192)])
def test_a_page_of_many_pictures_holds_smaller_ones(pictures, side):
    assert pages._side_px(pictures) == side
