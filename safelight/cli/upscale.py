"""safelight upscale: pictures and folders of them, enlarged. safelight get: fetches the weights of upscalers."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safelight import config
from safelight.cli.vae import Tally
from safelight.errors import Interrupted, UsageError
from safelight.report.terminal import harmless, progress, say

if TYPE_CHECKING:
    from safelight.run.upscaling import Enlarger, Upscaled
    from safelight.sampling.catalog_upscalers import Upscaler

DEFAULT = "realesr-animevideov3-x4"
MOST_SCALE = 32.0
# first that is fast on the device: a card runs both alike, and x4plus in float16 is 71 dB from float32, in bfloat16 52
FAST_DTYPES = ("float16", "bfloat16")


@click.command()
@click.argument("files", metavar="IN... OUT", nargs=-1, required=True, type=Path)
@click.option("--model", default=DEFAULT, metavar="NAME|FILE", help="An upscaler's name, or its weights; see get.")
@click.option("--scale", type=float, metavar="X", help="How many times larger, such as 2 or 1.5; the upscaler's own.")
@click.option("--tile", "tile_px", type=click.IntRange(16, 8192), metavar="PX", help="Longest side computed at once.")
@click.option("--dtype", help="float32, bfloat16 or float16; by default what is fast on the device.")
@click.option("--device", help="cpu, cuda, cuda:1, mps, ...; the best there is by default.")
@click.option("--allow-pickle", is_flag=True, help="Read a .pth FILE, with weights_only=True.")
@click.option("--overwrite", is_flag=True, help="Write pictures of a folder anew that are there already.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def upscale(files: tuple[Path, ...], **flags: Any) -> None:
    """Enlarge pictures.

    IN is a picture, or a folder: all pictures in it and below. OUT is a file name ending in .png, .jpg or .webp for one
    picture, or a folder, where each keeps its name. Transparency is kept where OUT's format has it, and so is what
    a picture says of how it was made. 16 bit pictures are read as 8 bit.
    """
    if len(files) < 2:
        raise UsageError("give what is enlarged and where it goes: safelight upscale IN... OUT")
    row = _row(flags["model"])
    scale = _scale(flags["scale"], row)
    targets = dict(_targets(files[:-1], files[-1].expanduser()))
    tally = Tally(list(targets))
    for _ in tally.each(lambda source: _check(source, targets[source], files[-1], flags)):
        pass  # asked of all before weights are read
    settings: dict[str, Any] = {"upscaler": row.name, "scale": scale, "tile_px": flags["tile_px"]}
    try:
        if len(tally.failed) < len(tally.sources):
            _work(row, tally, targets, settings, flags)
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted: {len(tally.done)} of {len(tally.sources)} pictures are done") from error
    if flags["as_json"] and (tally.done or len(tally.sources) > 1):
        click.echo(json.dumps(_document(tally, settings), indent=2))
    tally.check()


def _row(asked: str) -> "Upscaler":
    from safelight.sampling import catalog_upscalers as catalog

    row = catalog.find(asked)
    if row.kind != "image":
        raise UsageError(f"{row.name!r} is for latents, between two passes: for pictures give Lanczos or a network")
    if row.way == "network":
        catalog.weights_of(row)
    return row


def _scale(asked: float | None, row: "Upscaler") -> float | None:
    """None where only the file of weights can tell."""
    if asked is None:
        return float(row.scale) or None
    if not 0 < asked <= MOST_SCALE:
        raise UsageError(f"--scale {asked:g}: give more than 0 and at most {MOST_SCALE:g}")
    return asked


def _work(
    row: "Upscaler", tally: Tally, targets: dict[Path, Path], settings: dict[str, Any], flags: dict[str, Any]
) -> None:
    from safelight.run import metadata, upscaling

    metadata.check_folder(next(iter(targets.values())).parent)
    with progress(quiet=flags["quiet"] or flags["as_json"]) as report:
        enlarger = _enlarger(row, settings, flags, report)
        for made in tally.each(lambda source: upscaling.upscale(enlarger, source, targets[source])):
            tally.done.append(made)
            report("pictures", len(tally.done), len(tally.sources))
            if not flags["as_json"]:
                _tell(made, quiet=flags["quiet"])


def _enlarger(row: "Upscaler", settings: dict[str, Any], flags: dict[str, Any], report: Any) -> "Enlarger":
    """Opened; what was settled is added to the settings."""
    import torch

    from safelight.probe.device import here
    from safelight.run.upscaling import Enlarger
    from safelight.sampling import upscalers

    asked = config.dtype_name(flags["dtype"]) if flags["dtype"] else None
    device = here(flags["device"] or config.settings().get("device"))
    dtype = asked or next((name for name in FAST_DTYPES if name in device.fast_dtypes), "float32")
    network = None
    if row.way == "network":
        network = upscalers.open_network(
            row, device=device.torch_name, dtype=getattr(torch, dtype), allow_pickle=flags["allow_pickle"]
        )
        settings["scale"] = settings["scale"] or float(network.scale)
    settings |= {"device": device.name, "dtype": dtype, "network": network.kind if network else None}
    return Enlarger(row, network, settings["scale"], device, settings["tile_px"], report)


# -- files in and out --------------------------------------------------------------------------------------------------


def _targets(sources: Sequence[Path], out: Path) -> Iterator[tuple[Path, Path]]:
    """(source, where it goes), each source once. Raises UsageError."""
    from safelight.run import metadata

    found = list(dict.fromkeys(picture for source in sources for picture in _pictures(source.expanduser(), out)))
    if out.is_dir() or not out.suffix:
        yield from _into(out, found)
        return
    metadata.check_suffix(out)
    if len(found) > 1 or sources[0].is_dir():
        raise UsageError(f"{out} is one file, and there are {len(found)} pictures to be enlarged: give a folder")
    yield found[0], out


def _pictures(source: Path, out: Path) -> list[Path]:
    """The file itself; of a folder all pictures in it and below, but for those in `out`, by path."""
    from safelight.run.picture_files import FORMATS

    if not source.is_dir():
        return [source]
    inside = (path for path in source.rglob("*") if path.suffix.lower() in FORMATS and path.is_file())
    found = sorted(path for path in inside if source == out or out not in path.parents)
    if not found:
        raise UsageError(f"{source} holds no picture: {', '.join(FORMATS)}")
    return found


def _into(folder: Path, sources: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Names as they are, in a format that is written; a second a.png from another folder becomes a-1.png."""
    from safelight.run.upscaling import SAVED

    taken: set[str] = set()
    for source in sources:
        suffix = source.suffix if source.suffix.lower() in SAVED else ".png"
        names = (f"{source.stem}{f'-{again}' if again else ''}{suffix}" for again in range(len(sources)))
        name = next(name for name in names if name.lower() not in taken)
        taken.add(name.lower())
        yield source, folder / name


def _check(source: Path, target: Path, out: Path, flags: dict[str, Any]) -> None:
    """Raises UsageError."""
    if not source.is_file():
        raise UsageError(f"no file at {source}")
    if source.resolve() == target.resolve():
        raise UsageError(f"{target} is what is read: give another place")
    if target != out.expanduser() and target.exists() and not flags["overwrite"]:
        raise UsageError(f"{target} is there already: --overwrite writes it anew")


def _tell(made: "Upscaled", *, quiet: bool) -> None:
    click.echo(made.path)
    if not quiet:
        stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in made.seconds.items())
        sizes = f"{made.from_width}x{made.from_height} -> {made.width}x{made.height}"
        say(harmless(f"{made.file}: {sizes}, {stages}"))


def _document(tally: Tally, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": 1,
        "files": [asdict(made) for made in tally.done],
        "failed": [{"file": str(source), "error": str(error)} for source, error in tally.failed.items()],
        **settings,
    }


# -- weights -----------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("name", required=False)
@click.option("--from", "source", metavar="FILE", type=Path, help="Weights that were brought here: no network is used.")
@click.option("--allow-pickle", is_flag=True, help="Read a .pth FILE that is not the published one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def get(name: str | None, source: Path | None, **flags: Any) -> None:
    """Fetch the weights of an upscaler, once; without NAME, list what there is.

    What is fetched is the file that its authors published. It is checked by its SHA-256, and kept as safetensors in the
    cache folder.
    """
    from safelight.run import fetched
    from safelight.sampling import catalog_upscalers as catalog

    if name is None:
        if source is not None:
            raise UsageError(f"--from {source}: say which upscaler it is; safelight get lists them")
        _list(as_json=flags["as_json"])
        return
    row = catalog.UPSCALERS[catalog.known(name)]
    if source is not None:
        path = fetched.take(row, source.expanduser(), allow_pickle=flags["allow_pickle"])
    else:
        with progress(quiet=flags["quiet"] or flags["as_json"]) as report:
            path = fetched.fetch(row, report=report)
    click.echo(json.dumps(_entry(row), indent=2) if flags["as_json"] else str(path))


def _list(*, as_json: bool) -> None:
    from safelight.sampling import catalog_upscalers as catalog

    if as_json:
        click.echo(json.dumps({"schema": 1, "upscalers": [_entry(row) for row in catalog.ROWS]}, indent=2))
        return
    width = max(map(len, catalog.UPSCALERS))
    for row in catalog.ROWS:
        click.echo(f"{row.name:{width}}  {_described(row)}")


def _described(row: "Upscaler") -> str:
    """One line: where it is, what it weighs and whose it is."""
    from safelight.sampling import catalog_upscalers as catalog

    if row.way != "network":
        return row.note or ("for latents, between two passes" if row.kind == "latent" else "no network")
    there = "bundled" if row.bundled else "here" if catalog.is_here(row) else f"safelight get {row.name!r}"
    facts = (f"x{row.scale}", catalog.megabytes(row), row.licence, there, row.note)
    return ", ".join(fact for fact in facts if fact)


def _entry(row: "Upscaler") -> dict[str, Any]:
    from safelight.sampling import catalog_upscalers as catalog

    here = catalog.is_here(row)
    path = str(catalog.place(row)) if here and row.way == "network" else None
    return {**asdict(row), "here": here, "path": path}
