"""safelight measurements: what runs took here, beside what was predicted for them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from safelight.errors import UnknownName
from safelight.report.terminal import mib, say

if TYPE_CHECKING:
    from safelight.simulate.measurements import Measurement, Store

HEAD = ("when (UTC)", "device", "model", "size", "batch", "plan", "ms per step", "peak")


@click.command()
@click.option("--device", help="Those of this device alone, by its name in the table.")
@click.option("--model", help="Those of this model alone.")
@click.option("--clear", is_flag=True, help="Delete them; a damaged file as a whole.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def measurements(*, device: str | None, model: str | None, clear: bool, as_json: bool) -> None:
    """List what runs took here, predicted -> measured, newest first: later predictions are corrected by it."""
    from safelight.simulate.measurements import here

    store = here()
    if clear:
        _clear(store, device, model, as_json=as_json)
        return
    rows = _rows(store, device, model)
    if as_json:
        _print({"file": str(store.path), "measurements": [asdict(row) for row in rows]})
    elif rows:
        click.echo("\n".join(_table([HEAD, *map(_cells, rows)])))
    else:
        say("no measurements yet")


def _clear(store: "Store", device: str | None, model: str | None, *, as_json: bool) -> None:
    was_there = store.path.exists()
    count = store.clear(device, model)
    if was_there and not store.path.exists():
        say(f"{store.path} was damaged, and is deleted")
    if as_json:
        _print({"file": str(store.path), "cleared": count})
    else:
        say(f"{count} measurement{'' if count == 1 else 's'} deleted")


def _print(document: dict[str, object]) -> None:
    click.echo(json.dumps({"schema": 1, **document}, indent=2))


def _rows(store: "Store", device: str | None, model: str | None) -> list["Measurement"]:
    """Raises UnknownName for a device or a model of which nothing was measured, while of others there was."""
    everything = store.rows()
    for kind, asked in (("device", device), ("model", model)):
        names = {getattr(row, kind) for row in everything}
        if names and asked is not None and asked not in names:
            raise UnknownName(f"measured {kind}", asked, names)
    return [row for row in everything if device in (None, row.device) and model in (None, row.model)]


def _cells(row: "Measurement") -> tuple[str, ...]:
    size = f"{row.width}x{row.height}" + (f", {row.frames} frames" if row.frames > 1 else "")
    step = f"{1e3 * row.predicted_step_seconds:.1f} -> {1e3 * row.step_seconds:.1f}"
    peak = f"{mib(row.predicted_peak_bytes)} -> {mib(row.peak_bytes)}"
    when = row.when[:19].replace("T", " ")
    return when, row.device, row.model, size, str(row.batch_size), row.plan or "plain", step, peak


def _table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell. Control characters, which command a terminal, are written out."""
    shown = [[ascii(cell)[1:-1] if not cell.isprintable() else cell for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in shown)
    return [line.rstrip() for line in padded]
