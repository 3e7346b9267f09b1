"""safelight generate: flags, settings and an older picture's record become one request; pictures become files."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import safelight
from safelight import config
from safelight.errors import Interrupted, PartlyDone, SafelightError, UsageError
from safelight.measure.memory import collected_later
from safelight.optimizers import OPTIMIZERS, words
from safelight.report.terminal import mib, progress, say
from safelight.request import MAX_SEED, Request

if TYPE_CHECKING:
    from PIL.Image import Image

    from safelight.session import Result, Session
    from safelight.simulate.cost import Cost

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# what a plan is made for
PLANNED = (
    click.option("--goal", help="balanced (default), fast, quality, low-memory or throughput."),
    click.option("--vram", metavar="SIZE", help="What the device may spend: 8GiB; all there is by default."),
    click.option("--max-seconds", metavar="S", help="Of one picture."),
    click.option("--fidelity", help="What the picture may lose: exact, rounding, approximate; the goal's by default."),
    click.option("--keep", multiple=True, metavar="NAMES", help="Optimizers to plan around; written as for -o."),
    click.option("--without", multiple=True, metavar="NAME", help="Never this optimizer; may be given again."),
)
FLAGS = (
    click.option(
        "--model", help="firstlight (bundled), a diffusers folder, a .safetensors file, or a hub id[@revision]."
    ),
    click.option("--vae", help="Another VAE: a folder, a .safetensors file or a hub id."),
    click.option("--lora", multiple=True, metavar="FILE[=WEIGHT]", help="A LoRA; may be given again."),
    click.option("--config", "config_folder", help="Configs and tokenizers for a single file, where there is no hub."),
    click.option("--allow-pickle", is_flag=True, help="Read .ckpt files, with weights_only=True."),
    click.option("--negative", help="What the picture should not show."),
    click.option("--width", metavar="PIXELS", help="A multiple of the VAE's factor; the model's own by default."),
    click.option("--height", metavar="PIXELS", help="Like --width."),
    click.option("--steps", metavar="N", help="Denoising steps, 20 by default."),
    click.option("--guidance", metavar="X", help="Scale of classifier-free guidance."),
    click.option("--seed", metavar="N", help="Picture i uses seed + i; random by default."),
    click.option("--count", metavar="N", help="How many pictures, 1 by default."),
    click.option("--batch-size", metavar="N", help="How many at a time; changes no picture."),
    click.option("--sampler", help='As A1111 writes it ("DPM++ 2M Karras") or a diffusers class.'),
    click.option("--upscale", metavar="N", help="4: enlarge with the bundled Real-ESRGAN."),
    click.option("--dtype", help="float32, bfloat16 or float16; short for -o dtype=..."),
    click.option("--device", help="cpu, cuda, cuda:1, mps, ...; the best there is by default."),
    click.option(
        "-o",
        "--optimize",
        help='Names: "dtype=bfloat16,vae-tiling=256"; "none" is plain, "auto" what is planned, as without -o.',
    ),
    *PLANNED,
    click.option("--preset", metavar="NAME", help="Goal, limits and request by a name; safelight presets lists them."),
    click.option("--plan", metavar="FILE", help="A plan file, as safelight plan --toml writes it; flags win."),
    click.option("--out", "-O", help="A .png, .jpg or .webp file, or a folder; safelight-0000.png and on by default."),
    click.option(
        "--preview", metavar="FILE", help="The first picture as it is, after each step; wants -o tiny-vae.use=preview."
    ),
    click.option("--preview-every", type=click.IntRange(1), metavar="N", help="Only every N steps, from the first on."),
    click.option("--from", "source", metavar="PICTURE", help="Make this picture again; other flags change it."),
    click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
    click.option("--quiet", "-q", is_flag=True, help="No progress."),
)


# diffgentor's flags that take a value; they are understood and not shown
VALUES = ("torch-dtype", "attention-backend", "cache-type", "compile-mode", "group-offload-type", "storage-dtype")
SWITCHES = ("compile-fullgraph",)


def _single_flags() -> Iterator[Any]:
    """--enable-NAME for every optimizer and every other name of one, and diffgentor's own."""
    names = [*OPTIMIZERS, *(alias for alias, ours in words.ALIASES.items() if "." not in ours)]
    for name in (*(f"enable-{name}" for name in names), *SWITCHES):
        yield click.option(f"--{name}", is_flag=True, hidden=True, help=f"Short for -o {name}.")
    for name in VALUES:
        yield click.option(f"--{name}", metavar="X", hidden=True, help=f"Short for -o {name}=X.")


SINGLE = tuple(_single_flags())
_ENABLE = [f"enable-{name}" for name in (*OPTIMIZERS, *words.ALIASES)]
WORDS = frozenset(flag.replace("-", "_") for flag in ("optimize", "dtype", *VALUES, *SWITCHES, *_ENABLE))


def _flags(command: Any) -> Any:
    for flag in reversed((*FLAGS, *SINGLE)):
        command = flag(command)
    return command


def hyphens(token: str) -> str:
    """--enable_vae_tiling is --enable-vae-tiling."""
    return token.replace("_", "-")


@click.command(context_settings={"token_normalize_func": hyphens})
@click.argument("prompt", required=False)
@_flags
def generate(prompt: str | None, **flags: Any) -> None:
    """Draw PROMPT. Also called t2i.

    --enable-NAME is short for -o NAME; underscores count as hyphens, and diffgentor's flags are understood.
    """
    # not "in (None, (), False)": 0 == False, and --seed 0 is a seed
    given = {name: value for name, value in flags.items() if not (value is None or value is False or value == ())}
    run = _wanted(prompt, given)
    request = config.request(run)
    from safelight.run import metadata
    from safelight.sampling import schedulers

    if request.sampler is not None:  # before a model is loaded, which may take minutes
        schedulers.find(request.sampler)
    only = run.get("only")  # of a batch that is drawn again for the sake of one picture
    paths = _paths(run.get("out"), 1 if only is not None else request.count)
    preview = _preview(run, paths)
    for folder in sorted({path.parent for path in (*paths, *([preview.path] if preview else []))}):
        metadata.check_folder(folder)
    hush()
    done: list[dict[str, Any]] = []
    with safelight.load(**_load_arguments(run, request)) as session:
        targets = dict(enumerate(paths)) if only is None else {only: paths[0]}
        try:
            result = _draw(session, request, targets, done, preview, quiet=flags["quiet"] or flags["as_json"])
        finally:
            for entry in [] if flags["as_json"] else done:
                click.echo(entry["path"])
        expected = session.predicted(result.request)
    _report(done, result, session, expected, as_json=flags["as_json"])


def _wanted(prompt: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, then the picture to repeat, then flags; `optimize` holds what all of them say of the optimizers."""
    wanted = config.settings()
    if source := given.get("source"):
        # of the settings only the place: any other would change the picture
        wanted = {name: wanted[name] for name in ("out",) if name in wanted} | _from_picture(Path(source))
        if given.keys() & {"seed", "count", "batch_size"}:
            seed = (wanted["seed"] + wanted.pop("only")) % (MAX_SEED + 1)
            wanted |= {"count": 1, "batch_size": 1, "seed": seed}
    places = wanted.pop("optimize", [])
    if file := given.get("plan"):
        wanted |= _from_plan(Path(file))
        places = [[wanted.pop("optimize", "")]]
    wanted |= _from_preset(given)
    wanted |= {name: value for name, value in given.items() if name not in (*OTHERS, *WORDS)}
    foreign = [] if source else config.diffgentor(str(wanted.get("model", "")))
    spoken = [foreign, *places, _words(given)]
    silent = not source and not any(map(any, spoken))
    wanted["optimize"] = words.merged([[words.AUTO]] if silent else spoken).mapping
    if prompt is not None:
        wanted["prompt"] = prompt
    if not str(wanted.get("prompt", "")).strip():
        raise UsageError('what shall be drawn? safelight generate "a red apple, 3d, on a blue background"')
    return wanted


OTHERS = ("source", "plan", "preset")  # flags that stand for several


def _from_plan(path: Path) -> dict[str, Any]:
    from safelight.cli.planning import read_plan

    return read_plan(path.expanduser())


def _from_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a preset asks of a run: not its card, which is for plans alone, and not the best batch, which is for them to
    find."""
    from safelight.planner import presets

    asked = presets.applied(given.get("preset"), {})
    return {name: value for name, value in asked.items() if name != "device" and value != presets.AUTO}


def _words(given: Mapping[str, Any]) -> list[words.Words]:
    """What the flags say of the optimizers."""
    single = {name: value for name, value in given.items() if name in WORDS and name != "optimize"}
    return [given.get("optimize", ""), single]


def _texts(value: Any) -> tuple[str, ...]:
    """Flags that may be given again come as tuples, settings as text or as lists."""
    return (value,) if isinstance(value, str) else tuple(value or ())


def _from_picture(path: Path) -> dict[str, Any]:
    """Request and settings that make the picture at `path` again."""
    from safelight.run import metadata
    from safelight.sampling import schedulers

    record, _ = metadata.read(path)
    if record is None:
        raise UsageError(f"{path} carries no safelight record: only pictures that safelight made can be made again")
    kept = ("prompt", "negative", "width", "height", "steps", "guidance", "upscale", "model", "device", "vae", "lora")
    same = {name: getattr(record, name) for name in kept}
    same["sampler"] = record.sampler if record.sampler != schedulers.DEFAULT else None
    # its whole batch, of which it alone is written: another batch size would round otherwise
    first = (record.seed - record.batch_index) % (MAX_SEED + 1)
    same |= {"seed": first, "count": record.batch_size, "batch_size": record.batch_size, "only": record.batch_index}
    if record.revision:  # the commit itself: a branch or a tag may have moved on
        same["model"] = f"{record.model.partition('@')[0]}@{record.revision}"
    # the last batch of a run may be a single picture, and then there is nothing to slice: asking for it would fail
    idle = ("vae-slicing",) if record.batch_size == 1 else ()
    same["optimize"] = [[_written(name, value) for name, value in record.optimizers if name not in idle]]
    return {name: value for name, value in same.items() if value is not None}


def _written(name: str, value: str) -> str:
    """("vae-tiling", "256,overlap=0.5") -> "vae-tiling=256,vae-tiling.overlap=0.5"."""
    first, *others = value.split(",") if value else [""]
    if "=" in first:  # the first option says nothing of its own
        first, others = "", [first, *others]
    return ",".join([f"{name}={first}" if first else name, *(f"{name}.{other}" for other in others)])


def _load_arguments(run: Mapping[str, Any], request: Request) -> dict[str, Any]:
    return {
        "model": run.get("model") or "firstlight",
        "optimize": _optimize(run),
        "without": tuple(filter(None, map(str.strip, ",".join(_texts(run.get("without"))).split(",")))),
        "device": run.get("device"),
        "vae": run.get("vae"),
        "loras": _texts(run.get("lora")),
        "config_folder": run.get("config_folder"),
        "allow_pickle": bool(run.get("allow_pickle")),
        "width": request.width,
        "height": request.height,
        "batch_size": min(request.batch_size, request.count),
        "steps": request.steps,
        "keep": _texts(run.get("keep")),
        "pictures": request.count,
        **{name: run.get(name) for name in ("goal", "vram", "max_seconds", "fidelity")},
    }


def _optimize(run: Mapping[str, Any]) -> Any:
    """As it was said, or "none" where nothing of it is left, so that nothing is planned."""
    return run["optimize"] or words.NONE


def _paths(out: str | None, count: int) -> list[Path]:
    """One path per picture: OUT itself, OUT-0000.png and on for several, or numbered files in a folder.

    A file named by --out is written anew; in a folder, and without --out, nothing that is there is overwritten.
    """
    if out is None:
        return _numbered(Path(), "safelight-", 4, count)
    path = Path(out).expanduser()
    if path.is_dir() or path.suffix.lower() not in SUFFIXES:
        if path.suffix and not path.is_dir():
            raise UsageError(f"--out {out}: end it in .png, .jpg or .webp, or give a folder")
        return _numbered(path, "", 6, count)
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i:04d}{path.suffix}") for i in range(count)]


@dataclass(frozen=True, slots=True)
class Preview:
    """The file that shows a run under way. index: of the picture in its batch."""

    path: Path
    every: int
    index: int

    def show(self, step: int, pictures: "list[Image]") -> None:
        from safelight.run import metadata

        metadata.write_preview(pictures[self.index], self.path)


def _preview(run: Mapping[str, Any], paths: list[Path]) -> Preview | None:
    """Asks before a model is loaded, which may take minutes. Raises UsageError."""
    if (file := run.get("preview")) is None:
        if "preview_every" in run:
            raise UsageError("--preview-every is given without --preview FILE")
        return None
    from safelight.run import metadata
    from safelight.session import NO_PREVIEWER

    path = Path(file).expanduser()
    metadata.check_suffix(path)
    if path.resolve() in [other.resolve() for other in paths]:
        raise UsageError(f"--preview {file} is where the picture itself goes: name another file")
    if run["optimize"].get("tiny-vae", {}).get("use") != "preview":
        raise UsageError(NO_PREVIEWER)
    return Preview(path, run.get("preview_every", 1), run.get("only") or 0)


def _numbered(folder: Path, prefix: str, digits: int, count: int) -> list[Path]:
    """PREFIX000000.png and on, beginning after the highest number that is there."""
    taken = [path.stem.removeprefix(prefix) for path in folder.glob(f"{prefix}*.png")]
    first = max((int(number) + 1 for number in taken if number.isascii() and number.isdigit()), default=0)
    return [folder / f"{prefix}{i:0{digits}d}.png" for i in range(first, first + count)]


@collected_later()
def hush() -> None:
    """The libraries' own progress bars and advice stay off; errors reach us as exceptions, our warnings as lines."""
    import warnings

    import diffusers
    import huggingface_hub
    import transformers

    huggingface_hub.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module=r"(diffusers|transformers|torch|accelerate|huggingface_hub)\b")
    warnings.showwarning = lambda message, *_, **__: say(f"safelight: {message}")
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _draw(
    session: "Session",
    request: Request,
    paths: Mapping[int, Path],
    done: list[dict[str, Any]],
    preview: Preview | None,
    *,
    quiet: bool,
) -> "Result":
    """Writes each picture that has a path as soon as it is done, and adds it to `done`: at most one batch is lost."""
    from safelight.run import metadata

    with progress(quiet=quiet) as report:
        run = session.start(request, report, *((preview.show, preview.every) if preview else ()))
        session.predicted(run.request)  # now, so that what the run takes is kept beside it
        try:
            for picture in run:
                if (path := paths.get(picture.index)) is None:
                    continue
                metadata.write(picture.image, path, session.record(run.request, picture))
                done.append({"path": str(path), "seed": picture.seed, "vae_retried": picture.vae_retried})
        except SafelightError as error:
            if done:
                raise PartlyDone(f"{len(done)} of {len(paths)} pictures were written, then: {error}") from error
            raise
        except KeyboardInterrupt as error:
            raise Interrupted(f"interrupted: {len(done)} of {len(paths)} pictures were written") from error
    return run.result(())


def _report(
    done: list[dict[str, Any]], result: "Result", session: "Session", expected: "Cost | None", *, as_json: bool
) -> None:
    batches = -(-result.request.count // result.request.batch_size)
    predicted = None if expected is None else _predicted(expected, batches)
    if as_json:
        document = {
            "schema": 1,
            "pictures": done,
            "request": result.request.as_dict(),
            "seconds": {stage: round(seconds, 4) for stage, seconds in result.seconds.items()},
            "peak_bytes": result.peak_bytes,
            "held_bytes": result.held_bytes,
            "predicted": predicted,
            "optimize": session.plan.written,
            "device": session.device.name,
            "optimizers": [asdict(status) for status in session.status()],
            "left": dict(session.plan.left),
        }
        click.echo(json.dumps(document, indent=2))
        return
    for entry in done:
        if entry["vae_retried"]:
            say(f"{entry['path']}: the VAE gave a black picture or not-a-number; drawn again with the VAE in float32")
    for status in session.status():
        say(f"+ {status.name} {status.value}: {status.evidence}")
    if predicted:
        say(f"predicted {_stages(predicted['seconds'])}; weights and tensors {mib(predicted['peak_bytes'])}")
    say(f"measured {_stages(result.seconds)}; peak {mib(result.peak_bytes)}; seed {result.request.seed}")


def _stages(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {value:.2f} s" for stage, value in seconds.items())


def _predicted(cost: "Cost", batches: int) -> dict[str, Any]:
    """Of the whole request, by the stages that are measured."""
    stages = {"text": cost.encode, "denoise": cost.denoise, "decode": cost.decode}
    seconds = {stage: round(phase.seconds * batches, 4) for stage, phase in stages.items()}
    return {"seconds": seconds, "peak_bytes": cost.peak_bytes}
