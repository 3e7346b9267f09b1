"""safelight optimizers and safelight translate: what there is, what fits here, and what other programs call it."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import safelight
from safelight import config
from safelight.errors import UsageError
from safelight.optimizers import OPTIMIZERS, words
from safelight.optimizers.conflicts import PAIRS
from safelight.optimizers.registry import Optimizer
from safelight.report.terminal import say

if TYPE_CHECKING:
    from safelight.optimizers.target import Target

MEASURED = Path(safelight.__file__).parent / "optimizers" / "measured.json"


@click.command()
@click.argument("name", required=False)
@click.option("--model", help="For this model, by its configs alone; firstlight by default.")
@click.option("--device", help="On this device; the best there is by default.")
@click.option("--batch-size", metavar="N", default="1", help="For so many pictures at a time.")
@click.option("--names", is_flag=True, help="Names, fidelity and options alone, at once: nothing is probed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def optimizers(name: str | None, *, names: bool, as_json: bool, **where: str | None) -> None:
    """List every optimizer: its stage, what it may do to the picture, whether it fits here; or all about NAME."""
    chosen = [OPTIMIZERS[words.resolve(name).name]] if name else list(OPTIMIZERS.values())
    fits = None if names else _fits(_target(**where))
    if as_json:
        click.echo(json.dumps([_document(known, fits) for known in chosen], indent=2))
    elif name:
        click.echo("\n".join(_page(chosen[0], fits)))
    else:
        for known in chosen:
            click.echo(_row(known, fits))


def _target(model: str | None = None, device: str | None = None, batch_size: str | None = None) -> "Target":
    from safelight.cli.draw import hush
    from safelight.optimizers.configs import target_from
    from safelight.probe.device import here

    hush()
    settings = config.settings()
    size = config.request({"prompt": "", "batch_size": batch_size}).batch_size
    asked = model or str(settings.get("model") or "firstlight")
    return target_from(asked, here(device or settings.get("device")), batch_size=size)


def _fits(target: "Target") -> dict[str, str | None]:
    from safelight.planner import fitting

    return fitting(target)


def _row(known: Optimizer, fits: Mapping[str, str | None] | None) -> str:
    if fits is None:
        options = ", ".join(f"{option.name}={option.default}" for option in known.options)
        return f"{known.name:27s} {known.fidelity.word:12s} {known.summary}" + (f" ({options})" if options else "")
    why = fits[known.name]
    says = f"fits  {known.summary}" if why is None else f"no    {why}"
    return f"{known.name:27s} {known.stage.name.lower():11s} {known.fidelity.word:12s} {says}"


def _document(known: Optimizer, fits: Mapping[str, str | None] | None) -> dict[str, Any]:
    here = {} if fits is None else {"fits": fits[known.name] is None, "why_not": fits[known.name]}
    return {
        "name": known.name,
        "summary": known.summary,
        "stage": known.stage.name.lower(),
        "slot": known.slot,
        "fidelity": known.fidelity.word,
        "price": known.price,
        "options": {option.name: option.default for option in known.options},
        "aliases": list(words.names_of(known.name)),
        "conflicts": dict(conflicts_of(known)),
        "source": known.source,
        "measured": measured().get(known.name),
        **here,
    }


def _page(known: Optimizer, fits: Mapping[str, str | None] | None) -> list[str]:
    """All about one optimizer, a line for each thing that there is to know."""
    facts = {
        "stage": known.stage.name.lower(),
        "slot": known.slot or "none",
        "fidelity": known.fidelity.word,
        "price": known.price or "none",
        "also called": ", ".join(words.names_of(known.name)) or "nothing else",
        "source": known.source,
        "measured": _measured_row(measured().get(known.name)),
    }
    if fits is not None:
        facts["fits here"] = "yes" if (why := fits[known.name]) is None else f"no: {why}"
    lines = [f"{known.name}: {known.summary}", ""]
    lines += [f"{fact:12s} {value}" for fact, value in facts.items()]
    for i, option in enumerate(known.options):
        word = known.name if i == 0 else f"{known.name}.{option.name}"
        lines.append(f"{'option':12s} {word}={option.default}   ({option.name}, {option.kind.__name__})")
    return lines + [f"{'not with':12s} {other}: {reason}" for other, reason in conflicts_of(known)]


def conflicts_of(known: Optimizer) -> list[tuple[str, str]]:
    """(the other, why): who shares its slot, and its pairs in conflicts.py."""
    mates = [other.name for other in OPTIMIZERS.values() if known.slot and other.slot == known.slot]
    found = [(mate, f"there is one slot {known.slot}") for mate in mates if mate != known.name]
    for names, pair in PAIRS.items():
        for other in names - {known.name} if known.name in names else ():
            where = f", while {pair.only}" if pair.only else ""
            found.append((other, f"{pair.reason}{where} ({pair.source})"))
    return found


def measured() -> dict[str, dict[str, Any]]:
    """What each optimizer was worth where it was measured last, by name; benchmarks/ has the whole of it."""
    return dict(json.loads(MEASURED.read_text(encoding="utf-8")))


def _measured_row(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not measured"
    return ", ".join(f"{name} {value}" for name, value in row.items())


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("flags", nargs=-1, type=click.UNPROCESSED, required=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def translate(flags: tuple[str, ...], *, as_json: bool) -> None:
    """Say what FLAGS of A1111, Forge or diffgentor, and variables like PYTORCH_CUDA_ALLOC_CONF=..., are here.

    The command goes to stdout; what becomes of each flag, and why, to stderr.
    """
    from safelight.optimizers.translate import translate as translated

    found = translated(flags)
    if not found.lines:
        raise UsageError('no flag: safelight translate "--medvram --no-half-vae"')
    if as_json:
        lines = [asdict(line) for line in found.lines]
        document = {"optimize": found.optimize, "flags": dict(found.flags), "command": found.command, "lines": lines}
        click.echo(json.dumps({"schema": 1, **document}, indent=2))
        return
    for line in found.lines:
        told = [line.verdict] if line.verdict != "becomes" else []
        told += [f"becomes {line.becomes}"] if line.becomes else []
        say(f"{line.flag}: {', '.join(told)}; {line.says} ({line.source})")
    click.echo(found.command)
