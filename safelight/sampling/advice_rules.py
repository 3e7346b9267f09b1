"""What to say of a sampler, its steps and schedule, of guidance and of the size of a picture, for a kind of model.

Comes in: Asked, all of it optional. Goes out: Advice, one or more for each topic. Of what is not asked the usual range
is told.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, log, log2, sqrt
from typing import Literal

from safelight.sampling import names, schedules
from safelight.sampling.advice_tables import ANY, FAMILIES, SAMPLERS, SCHEDULES, Family, Steps
from safelight.sampling.names import SamplerChoice
from safelight.sampling.samplers import Sampler
from safelight.sampling.schedules import Schedule

OVEREXPOSED = "https://arxiv.org/abs/2305.08891"
DOUBLED = "https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/4490"
NATIVE = "native", "scaled"  # of Sampler.flow: it runs on flow-matching models
WASTEFUL = 1.5  # times the evaluations beyond which nothing is gained


@dataclass(frozen=True, slots=True)
class Advice:
    """One line. source: an address, or a file of this project. level: a warning is for what will look wrong, or does
    nothing."""

    topic: str
    level: Literal["fine", "note", "warning"]
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Asked:
    """As in Request; purpose: "exploring" or "final"."""

    sampler: str | None = None
    schedule: str | None = None
    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    family: str | None = None
    batch_size: int | None = None
    count: int | None = None
    eta: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None
    hires: str | None = None
    hires_steps: int | None = None
    hires_denoise: float | None = None
    hires_upscaler: str | None = None
    denoise: float | None = None
    vae: str | None = None
    purpose: str | None = None

    @property
    def model(self) -> Family | None:
        return None if self.family is None else FAMILIES[self.family]

    @property
    def choice(self) -> SamplerChoice | None:
        """Raises UnknownName."""
        return None if self.sampler is None else names.find(self.sampler)

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height), the model's own where one side is not said; None where nobody knows."""
        side = self.model.side if self.model else None
        width, height = self.width or side, self.height or side
        return (width, height) if width and height else None


# -- steps -------------------------------------------------------------------------------------------------------------


def each(sampler: Sampler | None) -> int:
    """Model evaluations of one step; the last one takes fewer."""
    count = sampler.evaluations(8) if sampler else 8
    return 1 if count is None else round(count / 8)


def steps(asked: Asked) -> Iterator[Advice]:
    choice, model = asked.choice, asked.model
    sampler = choice.sampler if choice else None
    if sampler and sampler.label not in SAMPLERS:
        yield Advice("steps", "note", f"{sampler.label} finds its steps itself: their number does nothing", ANY.source)
        return
    if sampler and model and model.flow and sampler.flow not in NATIVE:
        yield Advice("steps", "warning", f"{sampler.label} is not for {model.told}: {sampler.flow}", model.source)
    if sampler and sampler.label == "LCM" and model and model.steps is None:
        yield Advice(
            "steps", "warning", f"LCM is for models distilled by it, or with its LoRA, not {model.told}", ANY.source
        )
    known = _known(sampler, model)
    if asked.steps is None:
        if sampler or model:
            yield _range(sampler, model, known)
        return
    yield _count(asked.steps, sampler, known, of_model=model if model and model.steps else None)


def _known(sampler: Sampler | None, model: Family | None) -> Steps:
    """The model's own where it decides: distilled to a few steps, or used with one sampler."""
    known = SAMPLERS[sampler.label] if sampler else ANY
    if model is None or model.steps is None:
        return known
    least, first, last, most = model.steps
    return Steps(least, (first, last), most, model.source, known.converges)


def _range(sampler: Sampler | None, model: Family | None, known: Steps) -> Advice:
    n, (first, last) = each(sampler), known.best
    who = sampler.label if sampler else model.told if model else ""
    text = f"{who}: best in {_steps(first, n)} to {_steps(last, n)} steps"
    text += f", {first} to {last} model evaluations as it takes {n} a step" if n > 1 else ""
    kind = "nothing is gained" if known.converges else "only other pictures are"
    return Advice(
        "steps",
        "fine",
        f"{text}; under {_steps(known.least, n)} mush, over {_steps(known.most, n)} {kind}",
        known.source,
    )


def _count(count: int, sampler: Sampler | None, known: Steps, of_model: Family | None) -> Advice:
    n = each(sampler)
    spent = (sampler.evaluations(count) if sampler else count) or count
    who = of_model.told if of_model else sampler.label if sampler else "a sampler"
    what = f"{count} step{'s' if count > 1 else ''} of {sampler.label if sampler else 'most samplers'}"
    what += f" are {spent} model evaluations, {n} a step" if n > 1 else ""
    best = f"{_steps(known.best[0], n)} to {_steps(known.best[1], n)} steps are best"
    if spent < known.least - n + 1:  # the last step takes fewer
        return Advice("steps", "warning", f"{what}: too few for {who}, noise or mush is left; {best}", known.source)
    if spent > known.most:
        why = "nothing changes any more" if known.converges else "more steps draw another picture, not a better one"
        level: Literal["note", "warning"] = "warning" if spent > WASTEFUL * known.most else "note"
        return Advice("steps", level, f"{what}: over {_steps(known.most, n)} {why}; {best}", known.source)
    within = known.best[0] - n + 1 <= spent <= known.best[1]
    tail = "" if known.converges else "; another number of steps draws another picture"
    return Advice("steps", "fine" if within else "note", f"{what}: {'good' if within else best}{tail}", known.source)


def _steps(evaluations: int, n: int) -> int:
    return -(-evaluations // n)


# -- schedule ----------------------------------------------------------------------------------------------------------


def schedule(asked: Asked) -> Iterator[Advice]:
    if (row := _schedule(asked)) is None or (said := SCHEDULES.get(row.label)) is None:
        return
    model = asked.model
    if model and (reason := row.refuses(model.flow, AYS_FAMILIES.get(asked.family or ""))):
        yield Advice("schedule", "warning", reason, said.source)
    elif model and _few(model) and not said.few_steps and asked.schedule is not None:
        text = f"{row.label} is not what {model.told} was distilled on: SGM Uniform is"
        yield Advice("schedule", "warning", text, FAMILIES["sdxl-lightning"].source)
    elif said.most is not None and asked.steps is not None and asked.steps > said.most:
        yield Advice("schedule", "note", f"{row.label}: {said.text}", said.source)
    elif model and model.flow and not said.flow:
        yield Advice(
            "schedule", "note", f"{row.label} gains nothing on {model.told}, which has a shift of its own", said.source
        )
    else:
        yield Advice("schedule", "fine", f"{row.label}: {said.text}", said.source)


# SD2.1 was trained on the noise levels of SD1.5, but its were not searched
AYS_FAMILIES = {"sd15": "sd15", "sdxl": "sdxl"}


def _schedule(asked: Asked) -> Schedule | None:
    """The one that is asked for, that stands in the sampler's name, or that is the sampler's own."""
    choice = asked.choice
    said = asked.schedule or (choice and (choice.schedule or choice.sampler.schedule))
    return schedules.find(said) if said else None


def _few(model: Family) -> bool:
    """Distilled to a few steps of a noise-predicting model."""
    return bool(model.steps and model.steps[1] < 10 and not model.flow)


# -- guidance ----------------------------------------------------------------------------------------------------------


def guidance(asked: Asked) -> Iterator[Advice]:
    model = asked.model
    if model is None:
        if asked.guidance is not None:
            text = (
                "5 to 9 is usual for SD1.5 and SD2, 4 to 8 for SDXL, 0 to 2 for turbo, Lightning and LCM, 3.5 for FLUX"
            )
            yield Advice("guidance", "note", f"which model is not said: {text}", OVEREXPOSED)
        return
    least, first, last, most = model.guidance
    usual = f"{first:g} to {last:g} is usual for {model.told}"
    if model.distilled:
        usual += ", whose guidance is an input of the model, at no cost in time; 3.5 is its makers'"
    value = asked.guidance
    if value is None or first <= value <= last:
        yield Advice("guidance", "fine", usual, model.source)
    elif (last <= 1 < value and not model.flow) or (value > most and most <= 2):
        yield Advice("guidance", "warning", _unguided(value, model), model.source)
    elif value > most:
        text = f"{value:g} over-exposes the picture and brings artefacts: {usual}"
        yield Advice("guidance", "warning", text, OVEREXPOSED)
    elif value <= 1 and first > 1 and not model.distilled:
        text = f"{value:g} is without guidance: half the time, and no negative prompt; {usual}"
        yield Advice("guidance", "note", text, "https://arxiv.org/abs/2207.12598")
    elif value < least:
        yield Advice("guidance", "note", f"{value:g} follows the prompt loosely: {usual}", model.source)
    else:
        yield Advice("guidance", "note", usual, model.source)


def _unguided(value: float, model: Family) -> str:
    if model.flow:
        return f"{model.told} knows no guidance: {value:g} does nothing"
    return (
        f"{model.told} was distilled with its guidance: {value:g} doubles the time and burns the colours; give 0 or 1"
    )


# -- size --------------------------------------------------------------------------------------------------------------


def size(asked: Asked) -> Iterator[Advice]:
    model, wanted = asked.model, asked.size
    if model is None or wanted is None:
        return
    width, height = wanted
    area = width * height / model.side**2
    if asked.width is None and asked.height is None:
        yield Advice("size", "fine", _own_size(model), model.source)
    elif area > model.area[1] or max(wanted) > model.longest:
        yield Advice("size", "warning", _too_large(model, width, height), DOUBLED)
    elif area < model.area[0]:
        text = f"{width}x{height} is smaller than {model.told} has learned to draw: {_own_size(model)}"
        yield Advice("size", "warning", text, model.source)
    elif model.sizes and wanted not in model.sizes:
        near = nearest_size(model, width, height)
        text = f"{model.told} was not trained on {width}x{height}: {near[0]}x{near[1]} is the nearest of its sizes"
        yield Advice("size", "note", text, model.source)
    elif width % model.multiple or height % model.multiple:
        text = f"{width}x{height}: {model.told}'s sizes are multiples of {model.multiple}"
        yield Advice("size", "note", text, model.source)
    else:
        yield Advice("size", "fine", f"{width}x{height} is one that {model.told} draws well", model.source)


def _own_size(model: Family) -> str:
    own = f"{model.told} draws {model.side}x{model.side} by itself"
    if model.sizes:
        return f"{own}; its other sizes have as many pixels: 1152x896, 1216x832, 1344x768, 1536x640, and upright"
    least, most = (model.side**2 * area for area in model.area)
    return f"{own}; other shapes from {least / 1e6:.2g} to {most / 1e6:.2g} megapixels, no side over {model.longest}"


def _too_large(model: Family, width: int, height: int) -> str:
    text = (
        f"{width}x{height} is beyond what {model.told} was trained on ({model.side}x{model.side}): subjects are doubled"
    )
    wanted = max(sqrt(width * height) / model.side, max(width, height) / model.longest)
    factor = next((f for f in (1.25, 1.5, 1.75) if f >= wanted - 0.05), 2)
    whole = 2 ** max(0, ceil(log2(wanted) - 0.07))  # of sides, beyond a second pass
    shrunk = max(factor, whole) if wanted > 2 else factor
    first = [max(model.multiple, round(side / shrunk / model.multiple) * model.multiple) for side in (width, height)]
    rest = ", and enlarge that with --upscale" if shrunk > 2 else ""
    return f"{text}; draw {first[0]}x{first[1]} with --hires {factor:g}{rest}"


def nearest_size(model: Family, width: int, height: int) -> tuple[int, int]:
    """Of the model's own list, by shape."""
    return min(model.sizes, key=lambda own: abs(log(own[0] / own[1]) - log(width / height)))
