"""A1111's `parameters` text: written from a Record, read from any tool's picture, and turned into a Request's fields.

Text to read is taken for hostile. Not known here: files. Source: AUTOMATIC1111/stable-diffusion-webui 1.10,
modules/infotext_utils.py, processing.py (create_infotext) and sd_samplers_common.py (Sampler.initialize).
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safelight.errors import UsageError
from safelight.request import DENOISE, Request
from safelight.run.record import USUAL, Record, is_text

# A1111's own pattern finds the same, but takes quadratic time on a long foreign line: hence no leading \s*, which
# changes no group, and no name longer than 100 characters
FIELD = re.compile(r'(\w[\w \-/]{1,99}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
LEAST_FIELDS = 3
NEGATIVE = "Negative prompt:"
AUTOMATIC = "Automatic"
MASKED_CONTENTS = {"original": "original", "fill": "fill", "noise": "latent noise", "nothing": "latent nothing"}
AREAS = {"whole": "Whole picture", "masked": "Only masked"}
# what these write has another name, and another usual value: sd_samplers_timesteps.py
DDIM = ("DDIM", "DDIM CFG++")

# -- written -----------------------------------------------------------------------------------------------------------


def infotext(record: Record) -> str:
    """A1111's `parameters` text: the prompt, the negative prompt if there is one, and one line of fields."""
    line = ", ".join(key if key == value else f"{key}: {_quoted(value)}" for key, value in _fields(record).items())
    negative = f"\n{NEGATIVE} {record.negative}" if record.negative else ""
    return f"{record.prompt}{negative}\n{line}".strip()


def _fields(record: Record) -> dict[str, str]:
    """In A1111's order, those without a value left out."""
    label, schedule = _sampler(record)
    upscaled = record.upscale > 1
    values = {
        "Steps": record.steps,
        "Sampler": label,
        "Schedule type": schedule,
        "CFG scale": record.guidance,
        "Seed": record.seed,
        "Size": f"{record.width}x{record.height}",
        "Model hash": record.model_hash and record.model_hash[:10],
        "Model": record.model_name,
        "VAE": Path(record.vae).name if record.vae else None,
        "Variation seed": _unusual(record, "variation_seed"),
        "Variation seed strength": _unusual(record, "variation_strength"),
        "Denoising strength": _denoising(record),
        "Clip skip": _unusual(record, "clip_skip"),
        "ENSD": _unusual(record, "eta_noise_seed_delta"),
        "Init image hash": record.init_hash,
        "RNG": str(record.asked("rng")).upper(),
        **_hires(record),
        **_masked(record),
        **_options(record, label),
        "Postprocess upscale by": record.upscale if upscaled else None,
        "Postprocess upscaler": record.upscaler if upscaled else None,
        "Optimizers": ", ".join(f"{name}={value}" if value else name for name, value in record.optimizers) or None,
        "Version": f"safelight {record.versions['safelight']}" if "safelight" in record.versions else None,
    }
    return {key: _plain(value) for key, value in values.items() if value is not None}


def _sampler(record: Record) -> tuple[str, str | None]:
    """(label, schedule) as A1111 has them; a class of diffusers has the schedule of its config, which has no name."""
    from safelight.sampling.schedulers import CLASSES

    if row := CLASSES.get(record.sampler):
        return row.label, None
    own = None if record.sampler.endswith("Scheduler") else AUTOMATIC
    return record.sampler, record.schedule or own


def _unusual(record: Record, name: str, usual: float | None = None) -> Any:
    """What was asked for, or None where A1111 does it anyway. usual: where a Request has no value of its own."""
    asked = record.asked(name)
    return None if asked in (usual, USUAL[name]) else asked


def _denoising(record: Record) -> float | None:
    if record.asked("hires") is not None:
        return record.asked("hires_denoise")
    if record.asked("init") is None:
        return None
    said = record.asked("denoise")
    return DENOISE if said is None else said


def _hires(record: Record) -> dict[str, Any]:
    if (asked := record.asked("hires")) is None:
        return {}
    size = {"Hires resize": asked} if "x" in asked else {"Hires upscale": float(asked)}
    steps = record.asked("hires_steps")
    return size | {"Hires steps": steps, "Hires upscaler": record.asked("hires_upscaler") or "Latent"}


def _masked(record: Record) -> dict[str, Any]:
    if record.asked("mask") is None:
        return {}
    content = MASKED_CONTENTS[record.asked("mask_content")]
    area = {"Inpaint area": AREAS["masked"], "Masked area padding": record.asked("mask_padding")}
    return {
        "Mask blur": record.asked("mask_blur") or None,
        **(area if record.asked("mask_area") == "masked" else {}),
        "Masked content": None if content == "original" else content,
    }


def _options(record: Record, label: str) -> dict[str, Any]:
    """Of the sampler, those that are not its usual ones."""
    eta = {"Eta DDIM": _unusual(record, "eta", 0)} if label in DDIM else {"Eta": _unusual(record, "eta", 1)}
    return eta | {
        "Sigma churn": _unusual(record, "s_churn", 0),
        "Sigma tmin": _unusual(record, "s_tmin", 0),
        "Sigma tmax": _unusual(record, "s_tmax", 0),  # there, too, 0 is no limit
        "Sigma noise": _unusual(record, "s_noise", 1),
    }


def _plain(value: Any) -> str:
    """7.0 -> "7", as A1111's page writes it."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if re.search("[,\n:]", text) else text


# -- read --------------------------------------------------------------------------------------------------------------


def parse_infotext(text: str) -> tuple[str, str, dict[str, str]]:
    """(prompt, negative, fields) by A1111's rules; "Size: 512x768" becomes "Size-1" and "Size-2", as there.

    The format itself cannot carry everything; the JSON twin can. Of every prompt line the white space at both ends is
    lost, and so are empty lines before the first full one. A prompt line that begins with "Negative prompt:" begins the
    negative prompt. The last line is taken for fields when three of them are found in it; a "Steps: 1, ..." line inside
    a prompt of ours is safe, as another line follows. A field's value loses white space at its start, and quotes around
    it if it has no comma, colon or line break; it is not there at all when empty or equal to its name.
    """
    *lines, last = text.strip().split("\n")
    found = FIELD.findall(last)
    if len(found) < LEAST_FIELDS:
        lines, found = [*lines, last], []
    prompt, negative = _prompts(lines)
    values: dict[str, str] = {}
    for key, value in found:
        values |= _field(key, _unquoted(value))
    return prompt, negative, values


def _prompts(lines: list[str]) -> tuple[str, str]:
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            part = negative
            line = line.removeprefix(NEGATIVE).strip()
        if line or part:
            part.append(line)
    return "\n".join(prompt), "\n".join(negative)


def _field(key: str, value: str) -> dict[str, str]:
    if size := re.match(r"^(\d+)x(\d+)$", value):
        return {f"{key}-1": size[1], f"{key}-2": size[2]}
    return {key: value} if value else {}


def _unquoted(value: str) -> str:
    if not (value.startswith('"') and value.endswith('"')):
        return value
    try:
        text = json.loads(value)
    except ValueError:
        return value
    return text if is_text(text) else value


# -- asked for again ---------------------------------------------------------------------------------------------------

Fields = dict[str, Any]
Reader = Callable[[str, Fields], Fields]  # (value, what was taken over before it) -> fields of a Request
SAYS_NOTHING = ("Version", "User")  # of the picture
SAME = "Use same"  # "Hires sampler: Use same sampler", and so on


def request_of(text: str, *, init: bool = False) -> tuple[Fields, list[str]]:
    """(fields of a Request, what is not taken over as "Key: value") from the text in a picture of any tool.

    init: a picture to begin from is given beside; how much of it was drawn anew, and how it was masked, is then taken
    over, too. Raises UsageError for a text without parameters.
    """
    prompt, negative, values = parse_infotext(text)
    if not values:
        raise UsageError(
            'the text says nothing of how the picture was made: "Steps: 20, Sampler: Euler, ..." is missing'
        )
    written = _joined(values)
    said = _usual_of_tool(written) | written
    fields: Fields = {"prompt": prompt, "negative": negative}
    taken = set()
    for key, reader in _readers(said, init).items():
        if key in said and (new := _read(reader, said[key], fields, init)) is not None:
            fields |= new
            taken.add(key)
    left = {key: value for key, value in written.items() if key not in taken and key not in SAYS_NOTHING}
    return fields, [f"{key}: {value:.80}" for key, value in left.items() if not value.startswith(SAME)]


def _joined(values: Mapping[str, str]) -> dict[str, str]:
    """Sizes as they were written."""
    pairs = {key[:-2]: f"{value}x{values[f'{key[:-2]}-2']}" for key, value in values.items() if _is_first(key, values)}
    parts = {f"{key}-{number}" for key in pairs for number in (1, 2)}
    return {key: value for key, value in values.items() if key not in parts} | pairs


def _is_first(key: str, values: Mapping[str, str]) -> bool:
    return key.endswith("-1") and f"{key[:-2]}-2" in values


def _usual_of_tool(said: Mapping[str, str]) -> dict[str, str]:
    """What silence stands for: A1111 and Forge draw noise on the card, ComfyUI on the processor."""
    usual = {"RNG": "CPU" if said.get("Version", "").startswith("ComfyUI") else "GPU"}
    return usual | ({"Mask blur": "0"} if "Inpaint area" in said or "Masked content" in said else {})


def _readers(said: Mapping[str, str], init: bool) -> dict[str, Reader]:
    if "Hires upscale" in said or "Hires resize" in said:
        return READERS if init else READERS | HIRES
    return READERS | FROM_PICTURE if init else READERS


def _read(reader: Reader, value: str, fields: Fields, init: bool) -> Fields | None:
    """What a Request takes of it, None where it does not."""
    try:
        new = reader(value.strip(), fields)
        Request(**{**fields, **new, **({"init": "the picture", "mask": "its mask"} if init else {})})
    except (KeyError, ValueError, UsageError):
        return None
    return new


def _one(name: str, convert: Callable[[str], Any]) -> Reader:
    return lambda value, fields: {name: convert(value)}


def _size(value: str, fields: Fields) -> Fields:
    width, height = value.split("x")
    return {"width": int(width), "height": int(height)}


def _sampler_named(value: str, fields: Fields) -> Fields:
    """ "DPM++ 2M Karras", as it was up to 1.8, is a sampler and a schedule."""
    from safelight.sampling.schedulers import find

    recipe = find(value)
    return {"sampler": recipe.label} | ({"schedule": recipe.schedule_label} if recipe.schedule_label else {})


def _schedule_named(value: str, fields: Fields) -> Fields:
    from safelight.sampling.schedulers import find

    label = find(fields["sampler"], value).schedule_label
    return {"schedule": label} if label else {}


def _of_second_pass(value: str, fields: Fields) -> Fields:
    return {"hires_denoise": float(value)} if fields["hires"] else {}


def _option(name: str) -> Reader:
    """Of samplers that take it."""

    def read(value: str, fields: Fields) -> Fields:
        from safelight.sampling.schedulers import find

        sampler = find(fields["sampler"]).sampler
        if sampler is None or isinstance(sampler, str) or name not in sampler.options:
            raise UsageError(f"{fields['sampler']} takes no {name}")
        return {name: float(value)}

    return read


RNGS = {"CPU": "cpu", "NV": "nv", "GPU": "nv"}  # nv is what NVIDIA's cards draw

# what needs another stands after it
READERS: dict[str, Reader] = {
    "Steps": _one("steps", int),
    "Sampler": _sampler_named,
    "Schedule type": _schedule_named,
    "CFG scale": _one("guidance", float),
    "Seed": _one("seed", int),
    "Size": _size,
    "Variation seed strength": _one("variation_strength", float),
    "Variation seed": _one("variation_seed", int),
    "Clip skip": _one("clip_skip", int),
    "ENSD": _one("eta_noise_seed_delta", int),
    "RNG": _one("rng", RNGS.__getitem__),
    "Eta": _option("eta"),
    "Eta DDIM": _option("eta"),
    "Sigma churn": _option("s_churn"),
    "Sigma tmin": _option("s_tmin"),
    "Sigma tmax": _option("s_tmax"),
    "Sigma noise": _option("s_noise"),
}
HIRES: dict[str, Reader] = {
    "Hires upscale": _one("hires", str),
    "Hires resize": _one("hires", str),
    "Hires steps": _one("hires_steps", int),
    "Hires upscaler": _one("hires_upscaler", str),
    "Denoising strength": _of_second_pass,
}
FROM_PICTURE: dict[str, Reader] = {
    "Denoising strength": _one("denoise", float),
    "Mask blur": _one("mask_blur", int),
    "Inpaint area": _one("mask_area", {words: name for name, words in AREAS.items()}.__getitem__),
    "Masked area padding": _one("mask_padding", int),
    "Masked content": _one("mask_content", {words: name for name, words in MASKED_CONTENTS.items()}.__getitem__),
}
