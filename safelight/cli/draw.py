"""safelight generate: flags, settings and an older picture's record become one request; pictures become files."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import safelight
from safelight import config
from safelight.cli import flags
from safelight.cli.wanted import load_arguments, wanted
from safelight.errors import Interrupted, PartlyDone, SafelightError, UsageError
from safelight.measure.memory import collected_later
from safelight.report.terminal import mib, progress, say
from safelight.request import Request

if TYPE_CHECKING:
    from PIL.Image import Image

    from safelight.session import Result, Session
    from safelight.simulate.cost import Cost

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def hyphens(token: str) -> str:
    """--enable_vae_tiling is --enable-vae-tiling."""
    return token.replace("_", "-")


@click.command(context_settings={"token_normalize_func": hyphens})
@click.argument("prompt", required=False)
@flags.on
def generate(prompt: str | None, **values: Any) -> None:
    """Draw PROMPT. Also called t2i.

    --enable-NAME is short for -o NAME; underscores count as hyphens, and diffgentor's flags are understood.
    """
    given = flags.given(values)
    run = wanted(prompt, given)
    request = config.request(run)
    from safelight.run import metadata
    from safelight.sampling import schedulers

    schedulers.find(request.sampler, request.schedule)  # before a model is loaded, which may take minutes
    only = run.get("only")  # of a batch that is drawn again for the sake of one picture
    paths = _paths(run.get("out"), 1 if only is not None else request.count)
    preview = _preview(run, paths)
    for folder in sorted({path.parent for path in (*paths, *([preview.path] if preview else []))}):
        metadata.check_folder(folder)
    hush()
    done: list[dict[str, Any]] = []
    with safelight.load(**load_arguments(run, request)) as session:
        targets = dict(enumerate(paths)) if only is None else {only: paths[0]}
        try:
            keep_first, quiet = values["keep_first_pass"], values["quiet"] or values["as_json"]
            said = () if quiet else (given if "source" in given else run)  # of a picture to repeat, what is changed
            result = _draw(session, request, targets, done, preview, said, keep_first=keep_first, quiet=quiet)
        finally:
            for entry in [] if values["as_json"] else done:
                click.echo(entry["path"])
        expected = session.predicted(result.request)
    _report(done, result, session, expected, as_json=values["as_json"])


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
    warnings.filterwarnings("ignore", module=r"(diffusers|transformers|torch|accelerate|huggingface_hub|peft)\b")
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
    said: Iterable[str],
    *,
    keep_first: bool,
    quiet: bool,
) -> "Result":
    """Writes each picture that has a path as soon as it is done, and adds it to `done`: at most one batch is lost.

    said: what the person named of the request, which may get a word of advice.
    """
    from safelight.run import metadata

    told: list[str] = []
    with progress(quiet=quiet) as report:

        def begun(stage: str, done: int, total: int) -> None:
            while told:  # only now: a request that is refused gets one line, and no advice
                say(f"safelight: {told.pop(0)}")
            report(stage, done, total)

        show, every = (preview.show, preview.every) if preview else (None, 1)
        run = session.start(request, begun, show, every, keep_first)
        told += advised(session, run.request, said)
        session.predicted(run.request)  # now, so that what the run takes is kept beside it
        try:
            for picture in run:
                if (path := paths.get(picture.index)) is None:
                    continue
                metadata.write(picture.image, path, session.record(run.request, picture))
                if picture.first is not None:
                    first = path.with_stem(f"{path.stem}-before-highres-fix")
                    metadata.write(picture.first, first, session.record(run.request.first_pass(), picture))
                done.append({"path": str(path), "seed": picture.seed, "vae_retried": picture.vae_retried})
        except SafelightError as error:
            if done:
                raise PartlyDone(f"{len(done)} of {len(paths)} pictures were written, then: {error}") from error
            raise
        except KeyboardInterrupt as error:
            raise Interrupted(f"interrupted: {len(done)} of {len(paths)} pictures were written") from error
    return run.result(())


# of a request, what is judged together: if one of them is said
TOGETHER = (
    ("steps",),
    ("guidance",),
    ("width", "height"),
    ("schedule",),
    ("eta",),
    ("s_churn", "s_tmin", "s_tmax", "s_noise"),
    ("hires", "hires_steps", "hires_denoise", "hires_upscaler"),
    ("denoise",),
)


def advised(session: "Session", request: Request, said: Iterable[str]) -> list[str]:
    """At most three warnings of what will look wrong in a settled request, of what was said alone."""
    from safelight.optimizers.target import denoiser
    from safelight.run.settling import own_side_px
    from safelight.sampling import advice, schedulers
    from safelight.sampling.samplers import Sampler

    pipe, named = session.pipe, session.loaded.name if session.loaded else ""
    family = advice.family_of(type(pipe).__name__, denoiser(pipe).config, named, own_side_px(pipe))
    chosen = set(said)
    names = {name for group in TOGETHER if chosen & set(group) for name in group}
    if family is None:
        names.discard("steps")  # of a model nobody knows, which may be one for few
    if not names:
        return []
    sampler = schedulers.find(request.sampler).sampler
    asked = {name: value for name, value in request.as_dict().items() if name in names}
    if isinstance(sampler, Sampler):  # the others are diffusers' alone, and the advice knows none of them
        asked["sampler"] = sampler.label
    return advice.warnings(family, **asked)


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
            "evaluations": session.evaluations(result.request),
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
    told = f"{session.evaluations(result.request)} evaluations a picture"
    say(f"measured {_stages(result.seconds)}; {told}; peak {mib(result.peak_bytes)}; seed {result.request.seed}")


def _stages(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {value:.2f} s" for stage, value in seconds.items())


def _predicted(cost: "Cost", batches: int) -> dict[str, Any]:
    """Of the whole request, by the stages that are measured."""
    stages = {"text": cost.encode, "denoise": cost.denoise, "decode": cost.decode}
    seconds = {stage: round(phase.seconds * batches, 4) for stage, phase in stages.items()}
    return {"seconds": seconds, "peak_bytes": cost.peak_bytes}
