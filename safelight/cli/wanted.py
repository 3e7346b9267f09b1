"""What safelight generate is asked for: settings, an older picture, a plan, a preset and flags, the later ones winning.

Comes in: the prompt and the flags that were given. Goes out: one table of names, and the arguments of `safelight.load`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight import config
from safelight.cli import flags
from safelight.errors import DoesNotApply, UsageError
from safelight.optimizers import words
from safelight.report.terminal import say
from safelight.request import SAMPLER_OPTIONS, Request

if TYPE_CHECKING:
    from safelight.prompts.tags import Lora
    from safelight.run.record import Record


def wanted(prompt: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, then the picture to repeat, then flags; `optimize` holds what all of them say of the optimizers."""
    found = config.settings()
    if source := given.get("source"):
        found = _from_picture(Path(source), given, found)
    repeated = found.pop("repeated", False)
    places = found.pop("optimize", [])
    if file := given.get("plan"):
        found |= _from_plan(Path(file))
        places = [[found.pop("optimize", "")]]
    found |= _from_preset(given)
    found |= {name: value for name, value in given.items() if name not in (*OTHERS, *flags.WORDS)}
    foreign = [] if repeated else config.diffgentor(str(found.get("model", "")))
    spoken = [foreign, *places, _words(given)]
    silent = not repeated and not any(map(any, spoken))
    found["optimize"] = words.merged([[words.AUTO]] if silent else spoken).mapping
    if prompt is not None:
        found["prompt"] = prompt
    _check_flags(given, found)
    if not str(found.get("prompt", "")).strip():
        raise UsageError('what shall be drawn? safelight generate "a red apple, 3d, on a blue background"')
    return _with_loras(found)


# (a flag, what it needs, the value that needs to have); a Request cannot tell these from what is usual
NEEDS = (
    ("hires_denoise", "hires", None),
    ("keep_first_pass", "hires", None),
    ("mask_blur", "mask", None),
    ("mask_padding", "mask_area", "masked"),
)


def _check_flags(given: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """A flag that would do nothing is refused. Settings may: they are for many runs."""
    for name, needed, value in NEEDS:
        there = found.get(needed)
        if name in given and (there is None or value not in (None, there)):
            flag = f"--{needed} {value}" if value else f"--{needed}"
            raise UsageError(f"--{name} is given without {flag}: it would do nothing".replace("_", "-"))


def _with_loras(found: dict[str, Any]) -> dict[str, Any]:
    """<lora:name:weight> in the prompt is a --lora; the prompt goes on without."""
    from safelight.prompts.tags import lora_file, without_tags

    if not isinstance(found["prompt"], str):
        return found  # Request says what is wrong with it
    plain, loras = without_tags(found["prompt"])
    folders = [Path(folder).expanduser() for folder in texts(found.get("lora_dir"))] or [Path()]
    if loras and (missing := [folder for folder in folders if not folder.is_dir()]):
        raise UsageError(f"--lora-dir {missing[0]}: no such folder")
    asked = [_weighted(str(lora_file(lora.name, folders)), lora) for lora in loras]
    return {**found, "prompt": plain, "lora": (*texts(found.get("lora")), *asked)} if asked else found


def _weighted(file: str, lora: "Lora") -> str:
    same = lora.text_weight == lora.denoiser_weight
    return f"{file}={lora.text_weight:g}" if same else f"{file}={lora.text_weight:g}:{lora.denoiser_weight:g}"


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
    single = {name: value for name, value in given.items() if name in flags.WORDS and name != "optimize"}
    return [given.get("optimize", ""), single]


def texts(value: Any) -> tuple[str, ...]:
    """Flags that may be given again come as tuples, settings as text or as lists."""
    return (value,) if isinstance(value, str) else tuple(value or ())


ALONE = {"seed", "count", "batch_size", "variation_seed", "variation_strength"}  # then not its whole batch is drawn


def _from_picture(path: Path, given: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Request and settings that make the picture at `path` again, as far as no flag says otherwise."""
    from safelight.run import metadata

    record, text = metadata.read(path)
    if record is not None:
        _check_files(path, record, given)
        # of the settings only the place: any other would change the picture
        same = {name: settings[name] for name in ("out",) if name in settings} | _from_record(record, given)
    elif text is not None:
        # not a word of a Request from the settings: the picture's are complete, as its tool had them
        same = {name: value for name, value in settings.items() if name not in config.REQUEST_FIELDS}
        same |= _from_infotext(path, text, given)
    else:
        raise UsageError(f"{path} says nothing of how it was made: no tool's parameters are in it")
    replaced = ("schedule", *SAMPLER_OPTIONS) if "sampler" in given else ()
    return {name: value for name, value in same.items() if name not in replaced}


def _from_infotext(path: Path, text: str, given: Mapping[str, Any]) -> dict[str, Any]:
    from safelight.run.infotext import request_of

    fields, left = request_of(text, init="init" in given)
    left += _idle_schedule(fields)
    if left:
        say(f"{path}: not taken over: {', '.join(left)}")
    return fields


def _idle_schedule(fields: dict[str, Any]) -> list[str]:
    """Taken out of the fields: A1111 names one beside DPM fast and DPM adaptive, too, which take no notice of it."""
    from safelight.run.settling import check_levels
    from safelight.sampling import schedulers

    try:
        check_levels(schedulers.find(fields.get("sampler"), fields.get("schedule")))
    except DoesNotApply:
        return [f"Schedule type: {fields.pop('schedule')}"]
    return []


def _check_files(path: Path, record: "Record", given: Mapping[str, Any]) -> None:
    """Raises UsageError where it was made from pictures that are not there any more."""
    from safelight.run.record import PICTURES, changed_files

    needed = {record.more.get(name) for name in PICTURES if name not in given}
    if changed := [name for name in changed_files(record) if name in needed]:
        raise UsageError(f"{path} was made from {' and '.join(changed)}: changed or not there; give --init, --mask")


def _from_record(record: "Record", given: Mapping[str, Any]) -> dict[str, Any]:
    same = {name: getattr(record, name) for name in ("model", "device", "vae", "lora")}
    if given.keys() & ALONE:
        same |= record.request_fields()
    else:  # its whole batch, of which it alone is written: another batch size would round otherwise
        same |= record.batch_fields() | {"only": record.batch_index}
    if record.revision:  # the commit itself: a branch or a tag may have moved on
        same["model"] = f"{record.model.partition('@')[0]}@{record.revision}"
    # the last batch of a run may be a single picture, and then there is nothing to slice: asking for it would fail
    idle = ("vae-slicing",) if record.batch_size == 1 else ()
    same["optimize"] = [[_written(name, value) for name, value in record.optimizers if name not in idle]]
    same["repeated"] = True  # also what it was drawn with, where that is nothing
    return {name: value for name, value in same.items() if value is not None}


def _written(name: str, value: str) -> str:
    """("vae-tiling", "256,overlap=0.5") -> "vae-tiling=256,vae-tiling.overlap=0.5"."""
    first, *others = value.split(",") if value else [""]
    if "=" in first:  # the first option says nothing of its own
        first, others = "", [first, *others]
    return ",".join([f"{name}={first}" if first else name, *(f"{name}.{other}" for other in others)])


def load_arguments(run: Mapping[str, Any], request: Request) -> dict[str, Any]:
    return {
        "model": run.get("model") or "firstlight",
        "optimize": _optimize(run),
        "without": tuple(filter(None, map(str.strip, ",".join(texts(run.get("without"))).split(",")))),
        "device": run.get("device"),
        "vae": run.get("vae"),
        "loras": texts(run.get("lora")),
        "config_folder": run.get("config_folder"),
        "allow_pickle": bool(run.get("allow_pickle")),
        "request": request,
        "keep": texts(run.get("keep")),
        "pictures": request.count,
        **{name: run.get(name) for name in ("goal", "vram", "max_seconds", "fidelity")},
    }


def _optimize(run: Mapping[str, Any]) -> Any:
    """As it was said, or "none" where nothing of it is left, so that nothing is planned."""
    return run["optimize"] or words.NONE
