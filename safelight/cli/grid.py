"""safelight grid: pictures over two or three options, in one picture and perhaps one page.

Comes in: axes, and the flags of generate. Goes out: a PNG for each value of the third axis, the cells' own pictures
beside it; exit code 3 where a cell failed, 130 after Ctrl-C.
"""

import io
import json
import re
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import safelight
from safelight import config
from safelight.cli import flags
from safelight.cli.bench import Telling
from safelight.cli.draw import generate, hush, hyphens
from safelight.cli.wanted import load_arguments, wanted
from safelight.errors import Interrupted, PartlyDone, UsageError
from safelight.report.terminal import say
from safelight.request import MAX_SEED, Request

if TYPE_CHECKING:
    from safelight.measure.axes import Axis
    from safelight.measure.grid import Cell, Grid
    from safelight.probe.blueprint import Blueprint

Axes = tuple["Axis", "Axis", "Axis"]
NOT_HERE = ("prompt", "out", "preview", "preview_every", "keep_first_pass", "count", "batch_size")
FLAGS = (
    click.option("--x", metavar="NAME=VALUES", help='Columns: "sampler=DPM++ 2M Karras,Euler a", "steps=10-30 (+10)".'),
    click.option("--y", metavar="NAME=VALUES", help='Rows: "guidance=3-9 [4]", "prompt-sr=cat,dog", "size=512x768".'),
    click.option("--z", metavar="NAME=VALUES", help="A picture of its own for each value."),
    click.option("--compare", metavar="WHAT", help="Ready made, without --x: samplers, vaes, presets, tiers."),
    click.option("--against", metavar="VALUE", default="first", help="Of --x: what metrics are against; first, none."),
    click.option("--vary-seeds", is_flag=True, help="Another seed for each cell, counted up."),
    click.option("--out", "-O", metavar="PLACE", help="FILE.png, or a folder; safelight-grid-0000.png by default."),
    click.option("--html", metavar="FILE", help="As a page, too: seconds, evaluations and metrics of each cell."),
)
OWN = ("x", "y", "z", "compare", "against", "vary_seeds", "out", "html", "as_json", "quiet")
MOST_SAID = 3  # reasons of cells that failed


@click.command(
    context_settings={"token_normalize_func": hyphens},
    params=[flag for flag in generate.params if flag.name not in NOT_HERE],
)
@click.argument("prompt", required=False)
@flags.put(FLAGS)
def grid(prompt: str | None, **values: Any) -> None:
    """Draw PROMPT over the values of two or three options, written as in A1111's X/Y/Z plot.

    Any option of generate can be an axis; also prompt-sr, prompt-order and size. All cells have one seed.
    """
    own = {name: values.pop(name) for name in OWN}
    given = flags.given(values)
    axes, given = _axes(prompt, given, own)
    place = _place(own["out"])
    from safelight.measure import grid as measuring
    from safelight.run import metadata

    against = measuring.column_of(axes[0], own["against"])
    with _said_once():
        cells = _cells(prompt, given, axes, vary=own["vary_seeds"])
    folder = place.with_name(f"{place.stem}-cells")
    for needed in {place.parent, folder, *([Path(own["html"]).expanduser().parent] if own["html"] else [])}:
        metadata.check_folder(needed)
    hush()
    tell = Telling(quiet=own["quiet"] or own["as_json"])
    when = datetime.now(UTC).isoformat(timespec="seconds")
    found, interrupted = measuring.draw(cells, axes, safelight.load, folder, tell)
    made = measuring.Grid(axes, found, against, interrupted, when, ("safelight", *sys.argv[1:]))
    made = made if interrupted else measuring.compared(made)
    _report(made, _write(made, place, own["html"]), as_json=own["as_json"])
    _end(made)


# -- what is to be drawn -----------------------------------------------------------------------------------------------


def _axes(prompt: str | None, given: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[Axes, dict[str, Any]]:
    """(x, y and z, the flags that the cells have in common). Raises UsageError."""
    from safelight.measure.axes import NO_AXIS, axis

    if own["compare"] and own["x"]:
        raise UsageError(f"--compare {own['compare']} has columns of its own: leave out --x")
    if not (own["x"] or own["compare"]):
        raise UsageError('which columns? --x "steps=10,20,30", or --compare samplers')
    said = {name: axis(own[name]) for name in "xyz" if own[name]}
    common = dict(given)
    if own["compare"]:
        x, *others = _compared(own["compare"], prompt, given)
        said = {"x": x, **dict(zip("y", others, strict=False)), **said}
        if x.name == "preset":  # one model for all: a preset may name another
            common["model"] = _model(prompt, given)
    names = [one.name for one in said.values()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{twice[0]} is on two axes: a cell can have only one value of it")
    return (said["x"], said.get("y", NO_AXIS), said.get("z", NO_AXIS)), common


def _compared(name: str, prompt: str | None, given: Mapping[str, Any]) -> "list[Axis]":
    from safelight.measure.comparisons import axes_of

    def blueprint() -> "Blueprint":
        from safelight.probe.blueprint import read

        return read(_model(prompt, given), config_folder=given.get("config_folder"))

    return axes_of(name, blueprint)


def _model(prompt: str | None, given: Mapping[str, Any]) -> str:
    with redirect_stderr(io.StringIO()):  # the cells say it again
        return str(wanted(prompt, given).get("model") or "firstlight")


def _cells(prompt: str | None, given: Mapping[str, Any], axes: Axes, *, vary: bool) -> "list[Cell]":
    """Every cell, checked before anything is loaded. Raises UsageError that names the first that cannot be."""
    from safelight.measure import grid as measuring

    places = measuring.places(axes)
    if len(places) > measuring.MOST_CELLS:
        raise UsageError(f"a grid of {len(places)} cells: {measuring.MOST_CELLS} are the most")
    if vary and any(axis.name == "seed" for axis in axes):
        raise UsageError("--vary-seeds and an axis of seeds are both given: give one")
    common = _with_prompt(prompt, given, axes) | {"count": 1, "batch_size": 1}
    seeds = Seeds()
    cells: list[Cell] = []
    wrong: dict[str, str] = {}
    for at in places:
        name = measuring.name_of(axes, at)
        try:
            settings = measuring.settings_at(axes, at, common)
            load, request = _checked(settings.pop("prompt", prompt), settings)
        except UsageError as error:
            wrong[name] = str(error)
            continue
        cells.append(measuring.Cell(at, name, load, seeds.put(request, measuring.vary(axes, at) if vary else 0)))
    _refuse(wrong, len(places))
    return cells


def _refuse(wrong: Mapping[str, str], cells: int) -> None:
    """What is wrong with all of them for one reason is not the axes' fault."""
    if not wrong:
        return
    name, reason = next(iter(wrong.items()))
    if len(wrong) == cells and set(wrong.values()) == {reason}:
        raise UsageError(reason)
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    raise UsageError(f"cell {name}: {reason}{more}")


def _with_prompt(prompt: str | None, given: Mapping[str, Any], axes: Axes) -> dict[str, Any]:
    """With the words that an axis is to find, wherever they were said."""
    from safelight.measure.axes import ORDERED, REPLACED

    if not any(axis.name in (ORDERED, REPLACED) for axis in axes):
        return dict(given)
    said = {name: given[name] for name in ("source", "plan", "preset", "negative", "lora", "lora_dir") if name in given}
    found = wanted(prompt, said)
    texts = {"prompt": found["prompt"] if prompt is None else prompt, "negative": found.get("negative", "")}
    loras = {"lora": found["lora"]} if prompt is None and "lora" in found else {}  # its tags were taken out
    return {**given, **texts, **loras}


def _checked(prompt: str | None, settings: Mapping[str, Any]) -> tuple[dict[str, Any], Request]:
    """(arguments of safelight.load, the request), as far as they can be checked without a model. Raises UsageError."""
    from safelight import planner
    from safelight.probe import model as models
    from safelight.probe import vae_catalog
    from safelight.run import load_vae
    from safelight.run.settling import check_levels
    from safelight.sampling import schedulers

    run = wanted(prompt, settings)
    request = config.request(run)
    check_levels(schedulers.find(request.sampler, request.schedule))
    load = load_arguments(run, request)
    del load["request"], load["pictures"]
    limits = {name: load[name] for name in ("goal", "vram", "max_seconds", "fidelity")}
    planner.wish(load["optimize"], load["without"], keep=load["keep"], **limits)
    models.find(load["model"], allow_pickle=load["allow_pickle"])
    if load["vae"] and vae_catalog.named(load["vae"]) is None:  # those of the catalogue may have to be fetched
        load_vae.located(load["vae"], allow_pickle=load["allow_pickle"])
    return load, request


@dataclass(frozen=True, slots=True)
class Seeds:
    """What nobody named is drawn once, for all cells."""

    seed: int
    variation: int

    def __init__(self) -> None:
        object.__setattr__(self, "seed", secrets.randbelow(MAX_SEED + 1))
        object.__setattr__(self, "variation", secrets.randbelow(MAX_SEED + 1))

    def put(self, request: Request, more: int) -> Request:
        seed = self.seed if request.seed is None else request.seed
        named = replace(request, seed=(seed + more) % (MAX_SEED + 1))
        if request.variation_strength and request.variation_seed is None:
            return replace(named, variation_seed=self.variation)
        return named


@contextmanager
def _said_once() -> Iterator[None]:
    """What is said of a picture or a setting is said once, and not for each cell."""
    heard = io.StringIO()
    try:
        with redirect_stderr(heard):
            yield
    finally:
        for line in dict.fromkeys(heard.getvalue().splitlines()):
            say(line)


# -- where it goes -----------------------------------------------------------------------------------------------------


def _place(out: str | None) -> Path:
    """Of the PNG. One that --out names is written anew; else nothing that is there is overwritten."""
    if out is None:
        return _next(Path(), "safelight-grid-")
    path = Path(out).expanduser()
    if path.is_dir() or not path.suffix:
        return _next(path, "grid-")
    if path.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: end it in .png, or give a folder")
    return path


def _next(folder: Path, prefix: str) -> Path:
    names = [path.name for path in folder.glob(f"{prefix}*")]
    numbers = [int(match[1]) for name in names if (match := re.match(rf"{prefix}(\d{{4,9}})", name, re.ASCII))]
    return folder / f"{prefix}{max(numbers, default=-1) + 1:04d}.png"


def _write(made: "Grid", place: Path, html: str | None) -> list[Path]:
    """The files that were written, but for the cells' own."""
    from safelight.report import grid_picture
    from safelight.run import metadata

    written = []
    sheets = len(made.axes[2].values)
    for number in range(sheets):
        path = place if sheets == 1 else place.with_name(f"{place.stem}-{number}{place.suffix}")
        sheet = grid_picture.sheet(made, number)
        metadata.stored(path, grid_picture.encoded(sheet.image, grid_picture.parameters(made, number)))
        if sheet.scale < 1:
            most = grid_picture.MOST_PIXELS // 1_000_000
            say(f"{path}: cells are {sheet.scale:.2f} times their size, as {most} megapixels are the most")
        written.append(path)
    if html is not None:
        from safelight.report import grid as pages

        metadata.stored(Path(html).expanduser(), pages.page(made).encode())
        written.append(Path(html).expanduser())
    return written


def _report(made: "Grid", written: Sequence[Path], *, as_json: bool) -> None:
    from safelight.measure import grid as measuring

    if as_json:
        click.echo(json.dumps({**measuring.document(made), "files": list(map(str, written))}, indent=2))
        return
    for path in written:
        click.echo(str(path))
    if made.drawn and made.drawn[0].path:
        say(f"{made.drawn[0].path.parent}: the cells' own pictures")


def _end(made: "Grid") -> None:
    """Raises Interrupted and PartlyDone."""
    total = len(made.found)
    if made.interrupted:
        raise Interrupted(f"interrupted: {len(made.drawn)} of {total} cells were drawn and are kept")
    if failed := made.failed:
        said = [f"{one.cell.name}: {one.error}" for one in failed[:MOST_SAID]]
        more = [f"and {len(failed) - MOST_SAID} more"] if len(failed) > MOST_SAID else []
        raise PartlyDone(f"{len(failed)} of {total} cells failed: {'; '.join([*said, *more])}")
