"""safelight plan and safelight presets: what a run would take, on a machine that need not be here, and why."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safelight import config
from safelight.cli.draw import hush, hyphens
from safelight.cli.flags import PLANNED, put
from safelight.errors import EnvironmentProblem, UsageError
from safelight.optimizers import words
from safelight.report.terminal import harmless, say
from safelight.request import DENOISE, Request

if TYPE_CHECKING:
    from safelight.planner.ahead import Outlook
    from safelight.planner.presets import Preset

STDOUT = "-"
AUTO = "auto"  # as a batch size
FLAGS = (
    click.option(
        "--model", help='A name like "sdxl", a diffusers folder, a .safetensors file, or a hub id[@revision].'
    ),
    click.option("--config", "config_folder", metavar="FOLDER", help="Configs for a single file."),
    click.option(
        "--device",
        help='Here: cpu, cuda:0, ...; or a card: rtx-3080-10gb, or "cuda,memory=12GiB,tflops=40,bandwidth=400".',
    ),
    click.option("--width", metavar="PIXELS", help="The model's own by default."),
    click.option("--height", metavar="PIXELS", help="Like --width."),
    click.option("--frames", metavar="N", help="Of a video; the model's own by default."),
    click.option("--steps", metavar="N", help="Denoising steps, 20 by default."),
    click.option("--guidance", metavar="X", help="1 and less is without, which takes half the time."),
    click.option("--sampler", help='As for generate: "DPM++ 2M Karras"; some ask the model twice a step.'),
    click.option("--schedule", metavar="NAME", help="Karras, Exponential, ...; the sampler's by default."),
    click.option("--hires", metavar="X|WxH", help="A second pass, 1.5 times larger or of this size."),
    click.option("--hires-steps", metavar="N", help="Steps of the second pass; as many as the first by default."),
    click.option("--hires-denoise", metavar="X", help="How much it draws anew; all its steps are run, whatever it is."),
    click.option("--hires-upscaler", metavar="NAME", help="Latent (default), Lanczos, ...: between the two passes."),
    click.option("--denoise", metavar="X", help="For a picture to begin from: how much is drawn anew, 0 to 1."),
    click.option("--batch-size", metavar="N|auto", help="How many at a time; auto finds the most pictures per second."),
    click.option("--count", metavar="N", help="How many pictures will be made, which pay for compiling."),
    click.option("--preset", metavar="NAME", help="What a guide recommends: see safelight presets. Other flags win."),
    *PLANNED,
    click.option("-o", "--optimize", help='Names: predict these alone; "none" is plain, "auto" plans, as without -o.'),
    click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
    click.option(
        "--toml",
        is_flag=False,
        flag_value=STDOUT,
        metavar="[FILE]",
        help="A plan file that generate --plan runs: in FILE, or on stdout instead of the text.",
    ),
)
WISHES = ("goal", "vram", "max_seconds", "fidelity")
PICTURE = ("width", "height", "steps", "guidance")
# what a plan and its file have of a request besides
DRAWN = ("sampler", "schedule", "hires", "hires_steps", "hires_denoise", "hires_upscaler")


@click.command(context_settings={"token_normalize_func": hyphens})
@put(FLAGS)
def plan(*, as_json: bool, toml: str | None, preset: str | None, **flags: Any) -> None:
    """Predict seconds and memory, plain and planned, and say why each optimizer is taken or left; nothing is run."""
    if as_json and toml == STDOUT:
        raise UsageError("--json and --toml both want stdout: name a file, --toml FILE")
    run = _wanted(preset, {name: value for name, value in flags.items() if value not in (None, ())})
    hush()
    from safelight import opening

    outlook = opening.foreseen(**_arguments(run))
    verdicts = _verdicts(preset, outlook)
    if toml is not None:
        _write(toml, outlook, run)
    if as_json:
        from safelight.report.plan_files import document

        click.echo(json.dumps({**document(outlook, verdicts), "asked": {"preset": preset}}, indent=2))
    elif toml != STDOUT:
        from safelight.report.plan import lines

        for line in lines(outlook, verdicts):
            click.echo(harmless(line))


def _verdicts(preset: str | None, outlook: "Outlook") -> Any:
    from safelight.planner import presets

    return () if preset is None else presets.find(preset).verdicts(outlook.plan)


def _wanted(preset: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, then the preset, then flags."""
    from safelight.planner import presets

    settings = config.settings()
    spoken = [*settings.pop("optimize", []), [given["optimize"]] if "optimize" in given else []]
    said = {name: value for name, value in given.items() if name != "optimize"}
    for name in ("keep", "without"):
        if name in said:
            said[name] = tuple(filter(None, map(str.strip, ",".join(said[name]).split(","))))
    asked = presets.planned(preset, said)
    if "usual" in asked:
        settings = {name: value for name, value in settings.items() if name not in ("sampler", "schedule")}
    if "count" in settings:
        settings["pictures"] = settings.pop("count")
    run = settings | asked
    run["optimize"] = words.merged(spoken).mapping or words.NONE if any(map(any, spoken)) else words.AUTO
    return run


def _arguments(run: Mapping[str, Any]) -> dict[str, Any]:
    """As `opening.foreseen` takes them; numbers are no texts any more."""
    batch, frames, without = run.get("batch_size"), run.get("frames"), run.get("without") or ()
    request = _request(run)
    found = {
        **{name: run.get(name) for name in ("model", "device", "keep", "config_folder", "usual", *WISHES)},
        "optimize": run["optimize"],
        "without": without.split(",") if isinstance(without, str) else without,
        "pictures": request.count if "pictures" in run else None,
        "frames": int(frames) if frames and frames.isascii() and frames.isdigit() else frames,
        "batch_size": batch if batch in (None, AUTO) else request.batch_size,
        "denoise": DENOISE if request.init and request.denoise is None else request.denoise,
        **{name: getattr(request, name) for name in (*PICTURE, *DRAWN) if name in run},
    }
    return {name: value for name, value in found.items() if value is not None}


def _request(run: Mapping[str, Any]) -> Request:
    """What is said of the pictures, checked. The picture to begin from is not looked at, and need not be there."""
    batch = run.get("batch_size")
    said = {name: run[name] for name in (*PICTURE, *DRAWN, "denoise") if name in run}
    said |= {"count": run["pictures"]} if "pictures" in run else {}
    said |= {} if batch in (None, AUTO) else {"batch_size": batch}
    said |= {"init": "a picture"} if "denoise" in run or "init" in run else {}
    said |= {"sampler": run["usual"]} if "usual" in run else {}
    return config.request({"prompt": "", **said})


# -- plan files --------------------------------------------------------------------------------------------------------


def read_plan(path: Path) -> dict[str, Any]:
    """What a plan file asks for, as `config.settings` gives it; all of it may be given in safelight.toml, too.

    Raises UsageError for a file that is not there or no TOML, UnknownName for a key that nobody reads.
    """
    if not path.is_file():
        raise UsageError(f"there is no plan file {path}: safelight plan --toml {path} makes one")
    return config.read(path)


def _write(file: str, outlook: "Outlook", run: Mapping[str, Any]) -> None:
    from safelight.report.plan_files import toml

    device, asked = outlook.target.device, _arguments(run)
    kept = {name: asked.get(name) for name in ("model", "guidance", "denoise", *DRAWN)}
    kept |= {"model": asked.get("model", "firstlight"), "count": asked.get("pictures")}
    kept["sampler"] = outlook.request and outlook.request.sampler
    kept["device"] = None if device.elsewhere else device.torch_name
    text = toml(outlook, kept)
    if file == STDOUT:
        click.echo(text, nl=False)
        return
    path = Path(file).expanduser()
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {path}: {error.strerror or error}") from error
    say(f"{path}: safelight generate --plan {path} runs it")


# -- presets -----------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def presets(name: str | None, *, as_json: bool) -> None:
    """List the sets that guides recommend, as goals for the planner; or all about NAME, with what is known of it."""
    from safelight.planner.presets import PRESETS, find

    chosen = PRESETS if name is None else {words.normal(name): find(name)}
    if as_json:
        document = {"schema": 1, "presets": [_document(name, preset) for name, preset in chosen.items()]}
        click.echo(json.dumps(document, indent=2))
    elif name:
        click.echo("\n".join(line for known, preset in chosen.items() for line in _page(known, preset)))
    else:
        for known, preset in chosen.items():
            click.echo(f"{known:20s} {preset.summary} ({preset.guide})")


def _document(name: str, preset: "Preset") -> dict[str, Any]:
    from safelight.planner.claims import CLAIMS

    def claim(key: str | None) -> dict[str, str] | None:
        return key and {"says": CLAIMS[key].says, "found": CLAIMS[key].found, "source": CLAIMS[key].source}  # type: ignore[return-value]

    wanted = [{"says": one.says, "optimizers": one.names, "claim": claim(one.claim)} for one in preset.wanted]
    told = {"summary": preset.summary, "guide": preset.guide, "section": preset.section}
    return {"name": name, **told, "asks": preset.asks, "wanted": wanted}


def _page(name: str, preset: "Preset") -> Iterator[str]:
    """A line for each thing that there is to know."""
    from safelight.planner.claims import CLAIMS

    yield f"{name}: {preset.summary}"
    yield ""
    yield f"{'from':12s} {preset.guide}, {preset.section}"
    yield f"{'asks for':12s} safelight plan {_as_flags(preset.asks)}"
    for wanted in preset.wanted:
        does = f" ({' or '.join(wanted.names)})" if wanted.names else ""
        yield f"{'names':12s} {wanted.says}{does}"
        if wanted.claim:
            yield f"{'':12s}   {CLAIMS[wanted.claim].cited}"


def _as_flags(asks: Mapping[str, Any]) -> str:
    flags = {name.replace("_", "-"): value for name, value in asks.items()}
    return " ".join(f"--{name} {json.dumps(value) if ' ' in str(value) else value}" for name, value in flags.items())
