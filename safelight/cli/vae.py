"""safelight vae decode, encode and roundtrip: files and folders through a VAE alone, within a budget of memory.

Beside them advise, which computes nothing, and list, the catalogue.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safelight import config
from safelight.cli.draw import hush, hyphens
from safelight.errors import Interrupted, OutOfMemory, PartlyDone, SafelightError, UnknownName, UsageError
from safelight.report.terminal import harmless, mib, progress, say

if TYPE_CHECKING:
    from safelight.run.coding import Coded, Coder
    from safelight.vae.advice import Advice, Option

HOWS = ("auto", "whole", "exact", "fast", "blended")
FIDELITIES = ("exact", "rounding", "approximate")
PICTURES = (".png", ".tif", ".tiff")  # what is written
LATENTS = (".safetensors",)
FLAGS = (
    click.option("--model", help="The model whose VAE it is, as for generate; its denoiser is not loaded."),
    click.option("--vae", help="Another VAE: a folder, a .safetensors file or a hub id."),
    click.option("--config", "config_folder", help="Configs for a single file, where there is no hub."),
    click.option("--allow-pickle", is_flag=True, help="Read .ckpt files, with weights_only=True."),
    click.option(
        "--budget", metavar="SIZE", help="What it may take beside the weights: 2GiB; all there is by default."
    ),
    click.option(
        "--how",
        metavar="|".join(HOWS),
        default="auto",
        help="whole and exact give the same; fast is near, blended less.",
    ),
    click.option(
        "--fidelity",
        metavar="|".join(FIDELITIES),
        default="rounding",
        help="What the picture may lose with --how auto; approximate blends tiles where strips do not fit.",
    ),
    click.option("--dtype", default="float32", help="float32 (default), bfloat16 or float16."),
    click.option("--device", help="cpu, cuda, cuda:1, mps, ...; the best there is by default."),
    click.option("--out", "-O", metavar="PATH", help="A file, or a folder for several; named after FILE by default."),
    click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
    click.option("--quiet", "-q", is_flag=True, help="No progress."),
)


class Verbs(click.Group):
    """An unknown one names the nearest."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:
            raise UnknownName("command", f"vae {args[0]}", [f"vae {name}" for name in self.commands])
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs)
def vae() -> None:
    """Decode latents, encode pictures, or do both and compare, through a VAE alone, in little memory."""


def _flags(command: Any) -> Any:
    for flag in reversed(FLAGS):
        command = flag(command)
    return click.argument("files", metavar="FILE...", nargs=-1, required=True, type=Path)(command)


def _verb(command: Any) -> Any:
    return vae.command(context_settings={"token_normalize_func": hyphens})(_flags(command))


@_verb
def decode(files: tuple[Path, ...], **flags: Any) -> None:
    """Decode latents to pictures.

    FILE is a .safetensors file or a folder of them; the pictures are .png, or .tif with --out NAME.tif.
    Pictures are written row by row, so they need not fit in memory; one whose sides were padded is cropped again.
    """
    from safelight.run import coding

    _run(Verb(coding.decode, reads=LATENTS, writes=PICTURES), files, flags)


@_verb
def encode(files: tuple[Path, ...], **flags: Any) -> None:
    """Encode pictures to latents.

    FILE is a picture or a folder of them; the latents are .safetensors files, scaled as the pipelines use them.
    Sides that are no multiple of the VAE's factor are padded by reflection; the files keep the true size.
    """
    from safelight.run import coding, picture_files

    def work(coder: "Coder", source: Path, name: Name) -> "Coded":
        return coding.encode(coder, source, *name(1))

    _run(Verb(work, reads=tuple(picture_files.FORMATS), writes=LATENTS), files, flags)


@_verb
def roundtrip(files: tuple[Path, ...], **flags: Any) -> None:
    """Encode and decode pictures, and compare.

    FILE is a picture or a folder of them; what comes back is written, and its PSNR to FILE told.
    Sides that are no multiple of the VAE's factor are padded by reflection, and what comes back is cropped.
    """
    from safelight.run import coding, picture_files

    def work(coder: "Coder", source: Path, name: Name) -> "Coded":
        return coding.roundtrip(coder, source, *name(1))

    _run(Verb(work, reads=tuple(picture_files.FORMATS), writes=PICTURES, tag="-roundtrip"), files, flags)


@vae.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def list_(*, as_json: bool) -> None:
    """The VAEs that --vae takes by name: whose latents they are for, and what they are known for."""
    from safelight.probe import vae_catalog

    rows = [asdict(row) for row in vae_catalog.CATALOGUE]
    click.echo(json.dumps({"schema": 1, "vaes": rows}, indent=2) if as_json else "\n".join(vae_catalog.listing()))


@vae.command(context_settings={"token_normalize_func": hyphens})
@click.argument("size", metavar="WIDTHxHEIGHT")
@click.option("--model", help="The model whose VAE it is; nothing but its configs is read.")
@click.option("--config", "config_folder", help="Configs for a single file, where there is no hub.")
@click.option("--budget", metavar="SIZE", help="What it may take beside the weights: 2GiB.")
@click.option("--dtype", default="float32", help="float32 (default), bfloat16 or float16.")
@click.option("--encode", "encodes", is_flag=True, help="Encoding, not decoding.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def advise(size: str, **flags: Any) -> None:
    """What each way would take, and which to use: whole, strips, tiles and their overlap.

    Nothing is loaded; bytes are those of the plans that would run, work is relative to the whole's.
    """
    hush()
    from safelight.probe.blueprint import read
    from safelight.vae import advice

    wanted = config.settings() | {name: value for name, value in flags.items() if value is not None}
    width, height = _sides(size)
    model = str(wanted.get("model") or "firstlight")
    budget = wanted.get("budget")
    part = read(model, config_folder=flags["config_folder"]).parts.get("vae")
    if part is None:
        raise UsageError(f"{model} has no VAE")
    made = advice.advise(
        part,
        height,
        width,
        what="encode" if flags["encodes"] else "decode",
        dtype=config.dtype_name(flags["dtype"]),
        budget_bytes=None if budget is None else config.bytes_of(budget),
    )
    click.echo(json.dumps(_advice(made), indent=2) if flags["as_json"] else "\n".join(advice.lines(made)))
    if made.best is None:
        raise OutOfMemory(f"no way to {made.what} {size} fits in {budget}")


def _sides(size: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", size, re.ASCII)
    if found is None:
        raise UsageError(f"{size!r:.80} is no size: give such as 1024x768 (pixels)")
    return int(found[1]), int(found[2])


def _advice(made: "Advice") -> dict[str, Any]:
    def told(option: "Option") -> dict[str, Any]:
        return {**asdict(option), "fidelity": option.fidelity}

    whole = {name: value for name, value in asdict(made).items() if name not in ("options", "overlaps")}
    best = None if made.best is None else told(made.best)
    lists = {"options": list(map(told, made.options)), "overlaps": list(map(told, made.overlaps))}
    return {"schema": 1, **whole, "best": best, **lists}


# -- one run over all files --------------------------------------------------------------------------------------------

Name = Callable[[int], Sequence[Path]]  # so many pictures -> their paths


@dataclass(frozen=True, slots=True)
class Verb:
    """What is done with each file. reads, writes: suffixes; of a folder those it reads are taken, and the first that it
    writes is the default. tag: what a file's name gets by default."""

    work: "Callable[[Coder, Path, Name], Coded]"
    reads: Sequence[str]
    writes: Sequence[str]
    tag: str = ""


@dataclass
class Tally:
    """What became of the files."""

    sources: Sequence[Path]
    done: list[Any] = field(default_factory=list)
    failed: dict[Path, SafelightError] = field(default_factory=dict)

    def each(self, work: Callable[[Path], Any]) -> Iterator[Any]:
        """What `work` makes of each file that has not failed yet; a failure is kept, and told among several files."""
        for source in self.sources:
            if source in self.failed:
                continue
            try:
                made = work(source)
            except SafelightError as error:
                self.failed[source] = error
                if len(self.sources) > 1:
                    _tell_failure(source, str(error))
            else:
                yield made

    def check(self) -> None:
        """One file's failure is the command's; of several files it does not lose the others."""
        if self.failed and len(self.sources) == 1:
            raise self.failed[self.sources[0]]
        if self.failed:
            kind = PartlyDone if self.done else SafelightError
            raise kind(f"{len(self.done)} of {len(self.sources)} files are done, {len(self.failed)} failed")


def _run(verb: Verb, files: Sequence[Path], flags: dict[str, Any]) -> None:
    settings = _settings(flags)
    tally = Tally(list(dict.fromkeys(source for file in files for source in _sources(file, verb))))
    _check_out(flags["out"], verb, len(tally.sources))
    for _ in tally.each(_check_there):
        pass  # asked of all before a model is loaded, which may take minutes
    try:
        if len(tally.failed) < len(tally.sources):
            _work(verb, tally, settings, flags)
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted: {len(tally.done)} of {len(tally.sources)} files are done") from error
    if flags["as_json"] and (tally.done or len(tally.sources) > 1):
        click.echo(json.dumps(_document(tally, settings), indent=2))
    tally.check()


def _work(verb: Verb, tally: Tally, settings: dict[str, Any], flags: dict[str, Any]) -> None:
    with progress(quiet=flags["quiet"] or flags["as_json"]) as report:
        coder = _coder(settings, flags, report)
        for made in tally.each(lambda source: verb.work(coder, source, _namer(flags["out"], source, verb))):
            tally.done.append(made)
            report("pictures", len(tally.done), len(tally.sources))
            if not flags["as_json"]:
                _tell(made)


def _settings(flags: dict[str, Any]) -> dict[str, Any]:
    """What is run, and how: flags over settings. Raises UsageError for what no file could be done with."""
    wanted = config.settings() | {name: value for name, value in flags.items() if value is not None}
    if wanted["how"] not in HOWS:
        raise UnknownName("way to run a VAE", wanted["how"], HOWS)
    if wanted["fidelity"] not in FIDELITIES:
        raise UnknownName("fidelity", wanted["fidelity"], FIDELITIES)
    budget = wanted.get("budget")
    return {
        "model": str(wanted.get("model") or "firstlight"),
        "vae": wanted.get("vae"),
        "device": wanted.get("device"),
        "dtype": config.dtype_name(flags["dtype"]),
        "how": wanted["how"],
        "fidelity": wanted["fidelity"],
        "budget_bytes": None if budget is None else config.bytes_of(budget),
    }


def _coder(settings: dict[str, Any], flags: dict[str, Any], report: Any) -> "Coder":
    hush()
    from safelight.probe.device import here
    from safelight.run.coding import Coder
    from safelight.run.load_vae import load_vae
    from safelight.vae.engine import Engine

    device = here(settings["device"])
    loaded, source = load_vae(
        settings["model"],
        vae=settings["vae"],
        dtype=settings["dtype"],
        config=flags["config_folder"],
        allow_pickle=flags["allow_pickle"],
    )
    settings["device"] = device.name
    on_device = loaded.to(device.torch_name)
    engine = Engine(on_device, settings["budget_bytes"], settings["how"], settings["fidelity"])
    return Coder(on_device, source, device, engine, report)


# -- files in and out --------------------------------------------------------------------------------------------------


def _sources(file: Path, verb: Verb) -> list[Path]:
    """The file itself; of a folder all that the verb reads, by name. Raises UsageError for a folder without any."""
    path = file.expanduser()
    if not path.is_dir():
        return [path]
    found = sorted(inside for inside in path.iterdir() if inside.suffix.lower() in verb.reads and inside.is_file())
    if not found:
        raise UsageError(f"{file} holds no {' or '.join(verb.reads)} file")
    return found


def _check_there(source: Path) -> None:
    if not source.is_file():
        raise UsageError(f"no file at {source}")


def _check_out(out: str | None, verb: Verb, count: int) -> None:
    """Before a model is loaded. Raises UsageError, or EnvironmentProblem for what cannot be written."""
    from safelight.run import metadata, picture_files

    path = Path(out or ".").expanduser()
    if _is_folder(path):
        metadata.check_folder(path)
        return
    if path.suffix.lower() not in verb.writes:
        raise UsageError(f"--out {out}: end it in {' or '.join(verb.writes)}, or give a folder")
    if count > 1:
        raise UsageError(f"--out {out} is one file, and there are {count} to be done: give a folder")
    if verb.writes == PICTURES:
        picture_files.writer_of(path)
    metadata.check_folder(path.parent)


def _is_folder(path: Path) -> bool:
    return path.is_dir() or not path.suffix


def _namer(out: str | None, source: Path, verb: Verb) -> Name:
    """--out itself, written anew; in a folder, and without --out, names that nothing has yet, after the source's."""
    path = Path(out or ".").expanduser()

    def name(count: int) -> list[Path]:
        numbers = [f"-{i:04d}" for i in range(count)] if count > 1 else [""]
        if _is_folder(path):
            return _free(path, f"{source.stem}{verb.tag}", numbers, verb.writes[0])
        paths = [path.with_name(f"{path.stem}{number}{path.suffix}") for number in numbers]
        if source.resolve() in [other.resolve() for other in paths]:
            raise UsageError(f"--out {out} is what is read: name another file")
        return paths

    return name


def _free(folder: Path, stem: str, numbers: Sequence[str], suffix: str) -> list[Path]:
    """stem.png; stem-1.png, stem-2.png, ... where that is taken."""
    for again in itertools.count():
        tried = f"{stem}-{again}" if again else stem
        paths = [folder / f"{tried}{number}{suffix}" for number in numbers]
        if not any(path.exists() for path in paths):
            return paths
    raise AssertionError("itertools.count ends never")


# -- what is told ------------------------------------------------------------------------------------------------------


def _tell(made: "Coded") -> None:
    """Paths on stdout; on stderr the size, how near the picture is, seconds and bytes."""
    for path in made.paths:
        click.echo(path)
    facts = [f"{made.width}x{made.height}"]
    if (made.padded_width, made.padded_height) != (made.width, made.height):
        facts.append(f"padded to {made.padded_width}x{made.padded_height} for the VAE")
    if made.mse is not None:
        facts.append("no difference" if made.psnr_db is None else f"PSNR {made.psnr_db:.2f} dB")
    facts += [f"{stage} {seconds:.2f} s" for stage, seconds in made.seconds.items()]
    say(harmless(f"{made.file}: {', '.join(facts)}; peak {mib(made.peak_bytes)}"))


def _tell_failure(source: Path, error: str) -> None:
    named = error if str(source) in error else f"{source}: {error}"
    say(f"safelight: {harmless(' '.join(named.split()))}")


def _document(tally: Tally, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": 1,
        "files": [asdict(made) for made in tally.done],
        "failed": [{"file": str(source), "error": str(error)} for source, error in tally.failed.items()],
        **settings,
    }
