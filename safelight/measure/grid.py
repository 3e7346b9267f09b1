"""A grid: one picture for each pair of values of two axes, or three; what each took, and how far they are apart.

Comes in: cells, each with the request that it draws and the model that it wants, and what opens a model. Goes out: a
Found for each cell, with its picture's file or with the reason why there is none. Knows no flags and no page.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.errors import OutOfMemory, SafelightError, UnknownName
from safelight.measure import quality
from safelight.measure.axes import NO_AXIS, ORDERED, REPLACED, Axis, applied
from safelight.measure.bench import News, Tell
from safelight.request import Request, hires_size

if TYPE_CHECKING:
    from PIL.Image import Image

    from safelight.run.record import Record
    from safelight.session import Session

SCHEMA = 1
MOST_CELLS = 10_000
METRICS = ("psnr", "ssim", "lpips")
FIRST, NONE = "first", "none"
USUAL_PX, USUAL_STEPS = 512, 20  # where a request leaves them open, to tell the larger of two
# what libraries raise for what they cannot do: it is one cell's, and the others go on
FAILURES = (SafelightError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, OSError)
Open = Callable[..., "AbstractContextManager[Session]"]
At = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Cell:
    """at: (column, row, sheet). name: "sampler=Euler, steps=10". load: arguments of safelight.load, but for the request
    and how many pictures there will be. request: of one picture, with its seed."""

    at: At
    name: str
    load: Mapping[str, Any]
    request: Request

    @property
    def key(self) -> str:
        """The same for cells that one session can draw."""
        return json.dumps(self.load, sort_keys=True, default=str)

    @property
    def pixels(self) -> int:
        width, height = self.request.width or USUAL_PX, self.request.height or USUAL_PX
        return math.prod(hires_size(self.request.hires, width, height)) if self.request.hires else width * height

    @property
    def work(self) -> int:
        """What its seconds are about in proportion to."""
        return self.pixels * (self.request.steps or USUAL_STEPS)


@dataclass(frozen=True, slots=True)
class Found:
    """request: settled. path: of the picture, None where there is none. seconds: by stage. evaluations: of the model.

    error: why it is blank; None, too, where it was never begun. metrics: against the cell of its row that the grid is
    held against; None with the reason in `unequal`, or where it is that cell.
    """

    cell: Cell
    request: Request | None = None
    path: Path | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    evaluations: int | None = None
    error: str | None = None
    metrics: Mapping[str, float] | None = None
    unequal: str | None = None
    record: "Record | None" = None

    @property
    def total(self) -> float | None:
        return sum(self.seconds.values()) if self.seconds else None

    def image(self) -> "Image":
        from PIL import Image

        assert self.path is not None, "only of cells that were drawn"
        with Image.open(self.path) as image:
            return image.convert("RGB")


@dataclass(frozen=True, slots=True)
class Grid:
    """axes: x, y and z. found: row by row, sheet by sheet. against: the column that the others are held against."""

    axes: tuple[Axis, Axis, Axis]
    found: tuple[Found, ...]
    against: int | None = None
    interrupted: bool = False
    when: str = ""
    command: tuple[str, ...] = ()

    def at(self, column: int, row: int, sheet: int) -> Found:
        x, y, _ = self.axes
        return self.found[column + len(x.values) * (row + len(y.values) * sheet)]

    def sheet(self, number: int) -> Iterator[list[Found]]:
        """Row by row."""
        x, y, _ = self.axes
        for row in range(len(y.values)):
            yield [self.at(column, row, number) for column in range(len(x.values))]

    @property
    def drawn(self) -> list[Found]:
        return [one for one in self.found if one.path]

    @property
    def failed(self) -> list[Found]:
        return [one for one in self.found if one.error]


# -- which cells -------------------------------------------------------------------------------------------------------


def places(axes: Sequence[Axis]) -> list[At]:
    """Of every cell, row by row, sheet by sheet."""
    x, y, z = (range(len(axis.values)) for axis in axes)
    return [(column, row, sheet) for sheet in z for row in y for column in x]


def name_of(axes: Sequence[Axis], at: At) -> str:
    return ", ".join(f"{axis.name}={axis.labels[i]}" for axis, i in zip(axes, at, strict=True) if axis != NO_AXIS)


def settings_at(axes: Sequence[Axis], at: At, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with every axis at its value. Raises UsageError."""
    found = dict(settings)
    pairs = list(zip(axes, at, strict=True))
    # the words of a prompt last: another axis may have said what they stand in
    for axis, i in sorted(pairs, key=lambda pair: pair[0].name in (REPLACED, ORDERED)):
        found = applied(axis, axis.values[i], found)
    return found


def vary(axes: Sequence[Axis], at: At) -> int:
    """What A1111's "vary seeds" adds to the seed of a cell."""
    x, y, _ = (len(axis.values) for axis in axes)
    return at[0] + at[1] * x + at[2] * x * y


def walked(cells: Iterable[Cell], axes: Sequence[Axis]) -> list[Cell]:
    """In the order in which they are drawn: what costs most to change changes least; then sheets, rows, columns."""
    order = sorted(range(3), key=lambda i: (-axes[i].cost, -i))
    return sorted(cells, key=lambda cell: tuple(cell.at[i] for i in order))


def groups(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Those that one session can draw together, in the order of their firsts."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.key, []).append(cell)
    return list(found.values())


def column_of(axis: Axis, asked: str) -> int | None:
    """The column that --against names. Raises UnknownName."""
    if asked in (FIRST, NONE):
        return 0 if asked == FIRST else None
    labels = [label.lower() for label in axis.labels]
    if asked.strip().lower() not in labels:
        raise UnknownName(f"value of the axis {axis.name} for --against", asked, (*axis.labels, FIRST, NONE))
    return labels.index(asked.strip().lower())


# -- drawn -------------------------------------------------------------------------------------------------------------


@dataclass
class Drawing:
    """A grid under way. opening: `safelight.load`. folder: where the pictures go. now: a clock in seconds."""

    opening: Open
    folder: Path
    tell: Tell
    cells: int
    now: Callable[[], float] = time.monotonic
    found: dict[At, Found] = field(default_factory=dict)
    opened: list[float] = field(default_factory=list)
    drawing: float = 0.0
    worked: int = 0

    def draw(self, together: Sequence[list[Cell]]) -> None:
        for i, group in enumerate(together):
            self.draw_group(group, together[i + 1 :])

    def draw_group(self, group: list[Cell], later: Sequence[list[Cell]]) -> None:
        """With one session, unless memory ran out, after which a session may be closed."""
        rest = list(group)
        while rest:
            began = self.now()
            try:
                largest = max(rest, key=lambda cell: cell.pixels)  # the plan's peak is to hold for all of them
                opened = self.opening(**largest.load, request=largest.request, pictures=len(rest))
            except FAILURES as error:
                for cell in rest:
                    self.note(Found(cell, error=_line(error)), 0.0, later, [])
                return
            self.opened.append(self.now() - began)
            with opened as session:
                self.draw_cells(session, rest, later)

    def draw_cells(self, session: "Session", rest: list[Cell], later: Sequence[list[Cell]]) -> None:
        """Takes those that are done out of `rest`."""
        while rest:
            cell, began, error = rest.pop(0), self.now(), None
            try:
                found = drawn(session, cell, self.folder)
            except FAILURES as failure:
                error, found = failure, Found(cell, error=_line(failure))
            self.note(found, self.now() - began, later, rest)
            if isinstance(error, OutOfMemory):
                return

    def note(self, found: Found, seconds: float, later: Sequence[list[Cell]], rest: Sequence[Cell]) -> None:
        self.found[found.cell.at] = found
        if found.path:
            self.drawing += seconds
            self.worked += found.cell.work
        said = f"failed: {found.error}" if found.error else f"{seconds:.2f} s"
        left = self.left(later, rest)
        self.tell(News(f"cell {len(self.found)} of {self.cells}: {found.cell.name}: {said}", left))

    def left(self, later: Sequence[list[Cell]], rest: Sequence[Cell]) -> float | None:
        """Seconds, by what the cells and the openings took so far; None where nothing was drawn, or nothing is left."""
        cells = [*rest, *(cell for group in later for cell in group)]
        if not self.worked or not cells:
            return None
        an_opening = sum(self.opened) / len(self.opened)
        return self.drawing / self.worked * sum(cell.work for cell in cells) + an_opening * len(later)


def draw(
    cells: Sequence[Cell],
    axes: Sequence[Axis],
    opening: Open,
    folder: Path,
    tell: Tell = lambda news: None,
    now: Callable[[], float] = time.monotonic,
) -> tuple[tuple[Found, ...], bool]:
    """(what was found, in the order of `cells`; whether it was interrupted, and then not all were begun).

    Every picture is a file as soon as it is drawn. A cell that fails is told so, and the others go on.
    """
    drawing, interrupted = Drawing(opening, folder, tell, len(cells), now), False
    try:
        drawing.draw(groups(walked(cells, axes)))
    except KeyboardInterrupt:
        interrupted = True
    return tuple(drawing.found.get(cell.at, Found(cell)) for cell in cells), interrupted


def drawn(session: "Session", cell: Cell, folder: Path) -> Found:
    """Draws one cell and writes its picture. Raises what drawing and writing raise."""
    from safelight.run import metadata

    evaluations = 0

    def count(stage: str, done: int, total: int) -> None:
        nonlocal evaluations
        evaluations += stage == "denoise" and done > 0

    path = folder / f"{'-'.join(f'{i:03d}' for i in cell.at)}.png"
    run = session.start(cell.request, count)
    (picture,) = run
    record = session.record(run.request, picture)
    metadata.write(picture.image, path, record)
    return Found(cell, run.request, path, run.seconds, evaluations or None, record=record)


def _line(error: BaseException) -> str:
    """One line, which names the kind of what we did not raise ourselves."""
    said = " ".join(str(error).split())[:500]
    return said if isinstance(error, SafelightError) else f"{type(error).__name__}: {said}"


# -- compared ----------------------------------------------------------------------------------------------------------


def compared(grid: Grid) -> Grid:
    """With the metrics of each cell against the one of its row in the column `grid.against`."""
    if grid.against is None:
        return grid
    found: list[Found] = []
    for sheet in range(len(grid.axes[2].values)):
        for row in grid.sheet(sheet):
            found += _row(row, row[grid.against])
    return replace(grid, found=tuple(found))


def _row(row: Iterable[Found], reference: Found) -> Iterator[Found]:
    plain = reference.image() if reference.path else None
    for one in row:
        if one is reference or not one.path:
            yield one
        elif plain is None:
            yield replace(one, unequal="the picture to hold it against is not there")
        else:
            yield _against(one, reference, plain)


def _against(one: Found, reference: Found, plain: "Image") -> Found:
    image = one.image()
    if image.size != plain.size:
        return replace(one, unequal="of another size")
    if _noise(one) != _noise(reference):
        return replace(one, unequal="from other noise")
    reasons = quality.left_out(*image.size)
    names = [name for name in METRICS if name not in reasons]
    return replace(one, metrics=quality.compare(plain, image, names))


def _noise(found: Found) -> tuple[Any, ...]:
    request = found.request
    assert request is not None, "of cells that were drawn"
    return request.seed, request.rng, request.variation_strength, request.variation_seed


# -- as JSON -----------------------------------------------------------------------------------------------------------


def document(grid: Grid) -> dict[str, Any]:
    """All of it as JSON has it. What is infinite, as the PSNR of equal pictures, is the text "inf"."""
    return {
        "schema": SCHEMA,
        "kind": "grid",
        "when": grid.when,
        "command": list(grid.command),
        "axes": [{"name": axis.name, "values": list(axis.labels)} for axis in grid.axes if axis != NO_AXIS],
        "against": None if grid.against is None else grid.axes[0].labels[grid.against],
        "interrupted": grid.interrupted,
        "cells": [_cell(one) for one in grid.found],
    }


def _cell(found: Found) -> dict[str, Any]:
    column, row, sheet = found.cell.at
    request = found.request or found.cell.request
    return {
        "x": column,
        "y": row,
        "z": sheet,
        "name": found.cell.name,
        "load": json.loads(found.cell.key),
        "request": request.as_dict(),
        "seconds": {stage: round(seconds, 4) for stage, seconds in found.seconds.items()},
        "evaluations": found.evaluations,
        "path": None if found.path is None else str(found.path),
        "error": found.error,
        "metrics": found.metrics and {name: _finite(value) for name, value in found.metrics.items()},
        "unequal": found.unequal,
    }


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
