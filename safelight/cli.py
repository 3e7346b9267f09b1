"""The command line: reads flags, calls the API, prints. One function per command; torch is loaded only to run.

Results go to stdout (paths, or one JSON document with --json), everything else to stderr.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

import safelight
from safelight import config
from safelight.errors import EnvironmentProblem, PartlyDone, SafelightError, UnknownName, UsageError
from safelight.report.terminal import mib, progress, say

if TYPE_CHECKING:
    from safelight.run.generate import Picture
    from safelight.run.metadata import Record
    from safelight.session import Result, Run, Session

INTERRUPTED, TERMINATED = 130, 143


class Interrupted(SafelightError):
    exit_code = INTERRUPTED


class Commands(click.Group):
    """t2i is generate; an unknown command names the nearest."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return super().get_command(ctx, {"t2i": "generate"}.get(name, name))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:
            raise UnknownName("command", args[0], (*self.commands, "t2i"))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # click would print an empty line
            raise Interrupted("interrupted") from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(safelight.__version__, prog_name="safelight")
def app() -> None:
    """Run diffusion models fast and in little memory, without spoiling the picture."""


def main() -> NoReturn:
    """Runs the command line and turns every ending into its exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app.main(prog_name="safelight", standalone_mode=False) or 0
    except SafelightError as error:
        code = _fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        code = 2
    except click.UsageError as error:
        code = _fail(_usage(error), 2)
    except (click.Abort, KeyboardInterrupt):
        code = _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:  # a name too long, a file that may not be read
        code = _fail(f"cannot use {error.filename}: {error.strerror or error}", EnvironmentProblem.exit_code)
    sys.exit(code)


def _usage(error: click.UsageError) -> str:
    """What click says, and what to do about it."""
    command = error.ctx.command if error.ctx else app
    path = error.ctx.command_path if error.ctx else "safelight"
    if isinstance(error, click.NoSuchOption):
        known = [name for option in command.params for name in option.opts if name.startswith("-")]
        return str(UnknownName("flag", error.option_name, (*known, "--help")))
    return f"{error.format_message()} (a prompt of several words wants quotes; {path} --help tells all)"


def _fail(message: str, code: int) -> int:
    say(f"safelight: {_harmless(' '.join(message.split()))}")
    return code


def _harmless(text: str) -> str:
    """Control characters, which command a terminal, written out; but for the line break."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", lambda found: ascii(found[0])[1:-1], text)


def _terminate(_signal: int, _frame: Any) -> NoReturn:
    say("safelight: terminated")
    sys.exit(TERMINATED)


GENERATE_FLAGS = (
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
    click.option("-o", "--optimize", help='"auto", or names: "dtype=bfloat16,vae-tiling=256"; none by default.'),
    click.option("--without", multiple=True, metavar="NAME", help="Never this optimizer; may be given again."),
    click.option("--out", "-O", help="A .png, .jpg or .webp file, or a folder."),
    click.option("--from", "source", metavar="PICTURE", help="Make this picture again; other flags change it."),
    click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
    click.option("--quiet", "-q", is_flag=True, help="No progress."),
)


def _flags(command: Any) -> Any:
    for flag in reversed(GENERATE_FLAGS):
        command = flag(command)
    return command


@app.command()
@click.argument("prompt", required=False)
@_flags
def generate(prompt: str | None, **flags: Any) -> None:
    """Draw PROMPT. Also called t2i."""
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
    for folder in sorted({path.parent for path in paths}):
        metadata.check_folder(folder)
    _hush()
    done: list[dict[str, Any]] = []
    with safelight.load(**_load_arguments(run, request)) as session:
        targets = dict(enumerate(paths)) if only is None else {only: paths[0]}
        try:
            result = _draw(session, request, targets, done, quiet=flags["quiet"] or flags["as_json"])
        finally:
            for entry in [] if flags["as_json"] else done:
                click.echo(entry["path"])
    _report(done, result, session, as_json=flags["as_json"])


def _wanted(prompt: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, then the picture to repeat, then flags; `optimize` holds the dtype, too."""
    wanted = config.settings()
    if source := given.get("source"):
        # of the settings only the place: any other would change the picture
        wanted = {name: wanted[name] for name in ("out",) if name in wanted} | _from_picture(Path(source))
        if given.keys() & {"seed", "count", "batch_size"}:
            seed = (wanted["seed"] + wanted.pop("only")) % (config.MAX_SEED + 1)
            wanted |= {"count": 1, "batch_size": 1, "seed": seed}
    optimize = [_dtype(wanted), *_texts(given.get("optimize") or wanted.get("optimize")), _dtype(given)]
    wanted |= {name: value for name, value in given.items() if name != "source"}
    wanted["optimize"] = ",".join(filter(None, optimize))
    if prompt is not None:
        wanted["prompt"] = prompt
    if not str(wanted.get("prompt", "")).strip():
        raise UsageError('what shall be drawn? safelight generate "a red apple, 3d, on a blue background"')
    return wanted


def _dtype(settings: Mapping[str, Any]) -> str:
    return f"dtype={config.dtype_name(settings['dtype'])}" if settings.get("dtype") else ""


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
    first = (record.seed - record.batch_index) % (config.MAX_SEED + 1)
    same |= {"seed": first, "count": record.batch_size, "batch_size": record.batch_size, "only": record.batch_index}
    if record.revision and "@" not in record.model:
        same["model"] = f"{record.model}@{record.revision}"
    # the last batch of a run may be a single picture, and then there is nothing to slice: asking for it would fail
    idle = ("vae-slicing",) if record.batch_size == 1 else ()
    same["optimize"] = ",".join(_written(name, value) for name, value in record.optimizers if name not in idle)
    return {name: value for name, value in same.items() if value is not None}


def _written(name: str, value: str) -> str:
    """("vae-tiling", "256,overlap=0.5") -> "vae-tiling=256,vae-tiling.overlap=0.5"."""
    first, *others = value.split(",") if value else [""]
    return ",".join([f"{name}={first}" if first else name, *(f"{name}.{other}" for other in others)])


def _load_arguments(run: Mapping[str, Any], request: config.Request) -> dict[str, Any]:
    return {
        "model": run.get("model") or "firstlight",
        "optimize": run["optimize"],
        "without": tuple(filter(None, map(str.strip, ",".join(_texts(run.get("without"))).split(",")))),
        "device": run.get("device"),
        "vae": run.get("vae"),
        "loras": _texts(run.get("lora")),
        "config": run.get("config_folder"),
        "allow_pickle": bool(run.get("allow_pickle")),
        "width": request.width,
        "height": request.height,
        "batch_size": min(request.batch_size, request.count),
    }


def _paths(out: str | None, count: int) -> list[Path]:
    """One path per picture: OUT itself, OUT-0001.png and on for several, or numbered files in a folder."""
    path = Path(out or "safelight.png").expanduser()
    if path.is_dir() or path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        if path.suffix and not path.is_dir():
            raise UsageError(f"--out {out}: end it in .png, .jpg or .webp, or give a folder")
        return [path / f"{i:06d}.png" for i in range(count)]
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i:04d}{path.suffix}") for i in range(count)]


def _hush() -> None:
    """The libraries' own progress bars and advice stay off; their errors reach us as exceptions."""
    import warnings

    import diffusers
    import huggingface_hub
    import transformers

    huggingface_hub.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module=r"(diffusers|transformers|torch|accelerate|huggingface_hub)\b")
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _draw(
    session: "Session",
    request: config.Request,
    paths: Mapping[int, Path],
    done: list[dict[str, Any]],
    *,
    quiet: bool,
) -> "Result":
    """Writes each picture that has a path as soon as it is done, and adds it to `done`: at most one batch is lost."""
    from safelight.run import metadata

    with progress(quiet=quiet) as report:
        run = session.start(request, report)
        try:
            for picture in run:
                if (path := paths.get(picture.index)) is None:
                    continue
                metadata.write(picture.image, path, record_of(session, run, picture))
                done.append({"path": str(path), "seed": picture.seed, "vae_retried": picture.vae_retried})
        except SafelightError as error:
            if done:
                raise PartlyDone(f"{len(done)} of {len(paths)} pictures were written, then: {error}") from error
            raise
        except KeyboardInterrupt as error:
            raise Interrupted(f"interrupted: {len(done)} of {len(paths)} pictures were written") from error
    return run.result(())


def record_of(session: "Session", run: "Run", picture: "Picture") -> "Record":
    """All that makes this one picture again."""
    import diffusers
    import torch

    from safelight.optimizers.target import denoiser
    from safelight.run.metadata import Record
    from safelight.sampling import schedulers

    request, loaded = run.request, session.loaded
    assert loaded is not None
    return Record(
        prompt=request.prompt,
        negative=request.negative,
        width=request.width or 0,
        height=request.height or 0,
        steps=request.steps or 0,
        guidance=request.guidance,
        seed=picture.seed,
        sampler=request.sampler or schedulers.label_of(session.pipe.scheduler),
        model=loaded.asked,
        model_name=loaded.name,
        model_hash=loaded.sha256,
        revision=loaded.revision,
        vae=loaded.vae,
        lora=loaded.loras,
        dtype=str(next(denoiser(session.pipe).parameters()).dtype).removeprefix("torch."),
        device=session.device.kind,
        optimizers=tuple((s.name, s.value) for s in session.status()),
        batch_size=picture.batch_size,
        batch_index=picture.batch_index,
        upscale=request.upscale,
        upscaler="realesr-animevideov3-x4" if request.upscale > 1 else None,
        versions={"safelight": safelight.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
    )


def _report(done: list[dict[str, Any]], result: "Result", session: "Session", *, as_json: bool) -> None:
    if as_json:
        document = {
            "schema": 1,
            "pictures": done,
            "request": result.request.as_dict(),
            "seconds": {stage: round(seconds, 4) for stage, seconds in result.seconds.items()},
            "peak_bytes": result.peak_bytes,
            "held_bytes": result.held_bytes,
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
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in result.seconds.items())
    say(f"{stages}; peak {mib(result.peak_bytes)}; seed {result.request.seed}")


@app.command()
@click.argument("picture", type=Path)
@click.option("--json", "as_json", is_flag=True, help="The record as JSON.")
def info(picture: Path, as_json: bool) -> None:
    """Print what PICTURE says about how it was made."""
    from safelight.run import metadata

    record, text = metadata.read(picture)
    if record is None and text is None:
        raise UsageError(f"{picture} carries no generation parameters")
    if as_json:
        click.echo(json.dumps(asdict(record) if record else {"parameters": text}, indent=2))
    else:
        click.echo(_harmless(text) if text else "no A1111 parameters")
        if record:
            click.echo(json.dumps(asdict(record), indent=2))


@app.command()
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
def doctor(as_json: bool) -> None:
    """Say what is here, what is wrong with it, and how to mend it."""
    from safelight.probe import doctor as examination

    findings = examination.examine(os.environ)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for line in examination.lines(findings):
            click.echo(line)
    sys.exit(examination.worst(findings))


@app.command()
def optimizers() -> None:
    """List every optimizer: what it may do to the picture, and its options."""
    from safelight.optimizers.registry import OPTIMIZERS

    for known in OPTIMIZERS.values():
        options = ", ".join(f"{option.name}={option.default}" for option in known.options)
        click.echo(f"{known.name:18s} {known.fidelity.word:12s} {known.summary}" + (f" ({options})" if options else ""))
