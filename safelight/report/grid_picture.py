"""A grid as one picture for each sheet: the cells in rows and columns, their values beside them, a text in the file.

Comes in: a Grid whose pictures are files. Goes out: a picture, and the bytes of a PNG with A1111's fields of its X/Y/Z
plot. Letters that Pillow's own font lacks are taken from a font of the system, where one of FONTS is there.
"""

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safelight.measure.axes import NO_AXIS
from safelight.measure.grid import Found, Grid
from safelight.run.infotext import infotext

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

MOST_PIXELS = 200_000_000  # A1111's limit, img_max_size_mp
LEAST_FONT_PX, MOST_FONT_PX = 9, 48
FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msgothic.ttc")
PAPER, INK, SOFT, BLANK = "#ffffff", "#1d1a17", "#6b645c", "#efebe5"
DOTS = "..."


@dataclass(frozen=True, slots=True)
class Sheet:
    """scale: of the cells; 1 unless the whole would be larger than MOST_PIXELS."""

    image: "Image"
    scale: float


@dataclass(frozen=True, slots=True)
class Plan:
    """In pixels. columns, rows: lines of text of each heading."""

    cell: tuple[int, int]
    font: Any
    line: int
    gap: int
    side: int
    title: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def top(self) -> int:
        lines = len(self.title) + max(map(len, self.columns))
        return lines * self.line + (2 if self.title else 1) * self.gap if lines else 0

    @property
    def size(self) -> tuple[int, int]:
        wide = self.side + len(self.columns) * (self.cell[0] + self.gap) + self.gap
        return wide, self.top + len(self.rows) * (self.cell[1] + self.gap) + self.gap

    def corner(self, column: int, row: int) -> tuple[int, int]:
        left = self.side + self.gap + column * (self.cell[0] + self.gap)
        return left, self.top + self.gap + row * (self.cell[1] + self.gap)


def sheet(grid: Grid, number: int, most_pixels: int = MOST_PIXELS) -> Sheet:
    from PIL import Image, ImageDraw

    cell = _cell(grid, number)
    scale, plan = 1.0, _plan(grid, number, cell)
    while math.prod(plan.size) > most_pixels and min(plan.cell) > 1:
        scale *= min(0.98, math.sqrt(most_pixels / math.prod(plan.size)))
        plan = _plan(grid, number, (max(1, int(cell[0] * scale)), max(1, int(cell[1] * scale))))
    canvas = Image.new("RGB", plan.size, PAPER)
    draw = ImageDraw.Draw(canvas)
    _headings(draw, plan)
    for row, line in enumerate(grid.sheet(number)):
        for column, found in enumerate(line):
            _put(canvas, draw, plan, found, plan.corner(column, row), scale)
    return Sheet(canvas, scale)


def _cell(grid: Grid, number: int) -> tuple[int, int]:
    """The size of the largest picture of the sheet; where there is none, of what was asked for."""
    from PIL import Image

    sizes = []
    for found in (one for row in grid.sheet(number) for one in row):
        if found.path:
            with Image.open(found.path) as image:
                sizes.append(image.size)
    if not sizes:
        asked = [one.cell.request for row in grid.sheet(number) for one in row]
        sizes = [(one.width or 256, one.height or 256) for one in asked]
    return max(width for width, _ in sizes), max(height for _, height in sizes)


def _plan(grid: Grid, number: int, cell: tuple[int, int]) -> Plan:
    """The letters shrink until the longest word of a column's heading fits over it."""
    x, y, z = grid.axes
    texts = (*x.headings, *y.headings, z.headings[number])
    px = max(LEAST_FONT_PX, min(MOST_FONT_PX, sum(cell) // 25))
    words = [word for text in x.headings for word in text.split()]
    while px > LEAST_FONT_PX and any(_font(px, texts).getlength(word) > cell[0] for word in words):
        px -= 1
    font = _font(px, texts)
    most = max(cell[0], 12 * px)  # of the headings at the side
    rows = tuple(wrapped(text, font, most) for text in y.headings)
    side = max((math.ceil(font.getlength(line)) for lines in rows for line in lines), default=0)
    gap, columns = max(2, px // 2), tuple(wrapped(text, font, cell[0]) for text in x.headings)
    wide = side + len(columns) * (cell[0] + gap)
    title = wrapped(z.headings[number], font, wide)
    return Plan(cell, font, math.ceil(px * 1.3), gap, side + 2 * gap if side else 0, title, columns, rows)


def _font(px: int, texts: Sequence[str]) -> Any:
    from PIL import ImageFont

    names = () if all(text.isascii() for text in texts) else FONTS
    for name in names:
        try:
            return ImageFont.truetype(name, px)
        except OSError:
            continue
    return ImageFont.load_default(px)


def wrapped(text: str, font: Any, most_px: float) -> tuple[str, ...]:
    """Lines that are no wider; broken between words, and within a word only where it alone is too wide."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= most_px:
            lines[-1] = joined
            continue
        lines.append(word)
        while font.getlength(lines[-1]) > most_px and len(lines[-1]) > 1:
            fits = max(1, next(i for i in range(len(lines[-1]), -1, -1) if font.getlength(lines[-1][:i]) <= most_px))
            lines[-1:] = [lines[-1][:fits], lines[-1][fits:]]
    return tuple(lines)


def _headings(draw: "ImageDraw", plan: Plan) -> None:
    for i, line in enumerate(plan.title):
        draw.text((plan.size[0] / 2, plan.gap + i * plan.line), line, INK, plan.font, "ma")
    for column, lines in enumerate(plan.columns):
        left, _ = plan.corner(column, 0)
        for i, line in enumerate(lines):
            over = plan.top - (len(lines) - i) * plan.line  # the last line stands on the picture
            draw.text((left + plan.cell[0] / 2, over), line, INK, plan.font, "ma")
    for row, lines in enumerate(plan.rows):
        _, top = plan.corner(0, row)
        first = top + max(0, (plan.cell[1] - len(lines) * plan.line) // 2)
        for i, line in enumerate(lines):
            draw.text((plan.side - plan.gap, first + i * plan.line), line, INK, plan.font, "ra")


def _put(canvas: "Image", draw: "ImageDraw", plan: Plan, found: Found, corner: tuple[int, int], scale: float) -> None:
    left, top = corner
    width, height = plan.cell
    if found.path:
        from PIL import Image

        image = found.image()
        if scale < 1:
            sides = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
            image = image.resize(sides, Image.Resampling.LANCZOS)
        canvas.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
        return
    draw.rectangle((left, top, left + width - 1, top + height - 1), BLANK)
    most = max(0, (height - 2 * plan.gap) // plan.line)
    lines = wrapped(found.error or "not drawn", plan.font, width - 2 * plan.gap)
    shown = lines if len(lines) <= most else (*lines[: max(0, most - 1)], DOTS)[:most]
    for i, line in enumerate(shown):
        draw.text((left + plan.gap, top + plan.gap + i * plan.line), line, SOFT, plan.font)


# -- the file ----------------------------------------------------------------------------------------------------------


def parameters(grid: Grid, number: int) -> str:
    """A1111's text: that of the sheet's first picture, and what the axes were.

    Source: scripts/xyz_grid.py of A1111 1.10.
    """
    fields = {"Script": "X/Y/Z plot"}
    for letter, axis in zip("XYZ", grid.axes, strict=True):
        if axis != NO_AXIS:
            fields |= {f"{letter} Type": axis.kind, f"{letter} Values": axis.written}
    line = ", ".join(f"{key}: {_quoted(value)}" for key, value in fields.items())
    first = next((one for row in grid.sheet(number) for one in row if one.record), None)
    return line if first is None or first.record is None else f"{infotext(first.record)}, {line}"


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search("[,\n:]", value) else value


def encoded(image: "Image", text: str) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("parameters", text)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=chunks)
    return file.getvalue()
