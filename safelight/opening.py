"""A model's name becomes a session: planned by its configs first, then loaded in the dtype that the plan wants.

The one place that knows the order of things: probe, plan, load, apply.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from safelight import firstlight
from safelight.config import MOST_FRAMES, REQUEST_FIELDS, cache_folder
from safelight.errors import CannotPredict, DoesNotApply, SafelightError, UsageError
from safelight.measure.memory import collected_later
from safelight.optimizers.words import Words
from safelight.planner import GOALS, Wish, ahead, loading_dtype, wish
from safelight.planner.ahead import Machine, Outlook, look_ahead
from safelight.planner.walks import DEFAULT_STEPS
from safelight.probe import device as devices
from safelight.probe import speed
from safelight.probe.blueprint import Blueprint, read
from safelight.request import DENOISE, Request
from safelight.run import canvas, load_vae, settling
from safelight.run.expected import Sampling, kept, walks
from safelight.run.load import pipeline
from safelight.sampling import schedulers
from safelight.sampling.checkpoint import Checkpoint
from safelight.session import Session
from safelight.simulate import inputs

ANY = Request("")  # what is drawn when nobody says more


@dataclass(frozen=True, slots=True)
class Files:
    """What is loaded. model: as --model takes it. vae: another one. loras: each with an optional "=weight". config: a
    folder of configs for a single file."""

    model: str
    vae: str | None = None
    loras: tuple[str, ...] = ()
    config: str | None = None
    allow_pickle: bool = False


def opened(files: Files, wish: Wish, device: str | None = None, request: Request = ANY) -> Session:
    """None stands for the best device there is. request: what will be drawn, as far as it is known: what it leaves open
    is the model's own. The plan is for the larger of its two passes, and both of them are in what it says.

    Raises SafelightError's children: whatever loading, planning and proving raise.
    """
    found = devices.here(device)
    defaults = firstlight.DEFAULTS if files.model in firstlight.BUNDLED else {}
    blueprint = _readable(files) if wish.auto or files.vae else None
    if files.vae and blueprint is not None:
        own = blueprint.parts.get("vae")
        load_vae.check_fits(files.vae, own, model=blueprint.name, allow_pickle=files.allow_pickle)
    outlook = None
    if wish.auto and blueprint is not None:
        try:
            outlook = _outlook(blueprint, Machine(found, speed.measured(found, cache=cache_folder())), wish, request)
        except CannotPredict as problem:
            warnings.warn(f"nothing is planned: {problem}", stacklevel=3)
            wish = replace(wish, auto=False)
    wanted = wish if outlook is None else replace(wish, options=outlook.plan.options)
    pipe, loaded = pipeline(
        files.model,
        dtype=loading_dtype(wanted, found),
        vae=files.vae,
        loras=files.loras,
        config=files.config,
        allow_pickle=files.allow_pickle,
    )
    width, height = _final_size(pipe, request, defaults)
    return Session(
        pipe,
        found,
        wish,
        loaded,
        defaults,
        width,
        height,
        _batch_size(request, defaults),
        prepared=None if outlook is None else outlook.plan,
        forecast=None if outlook is None else outlook.forecast,
        remember=True,
    )


@collected_later()
def foreseen(
    *,
    model: str = "firstlight",
    device: str | None = None,
    optimize: Words = "auto",
    without: Iterable[str] = (),
    keep: Words = "",
    frames: int | None = None,
    batch_size: int | str | None = None,
    denoise: float | None = None,
    usual: str | None = None,
    config_folder: str | None = None,
    **asked: Any,
) -> Outlook:
    """What a run would take: `safelight.plan` with a preset's wishes in it. Nothing is loaded.

    device: also a card that is not here. batch_size: None is 1, but for a goal that is about batches; "auto" is the
    best there is. denoise: how much of a picture is drawn anew, which need not be there. usual: a sampler that is taken
    where nobody named one and it is for this kind of model. asked: fields of a Request, and what `planner.wish` takes.
    """
    drawn = {name: asked.pop(name) for name in REQUEST_FIELDS & asked.keys()}
    wished = wish(optimize, without, keep=keep, **asked)
    if batch_size is None and GOALS[wished.goal].batches:
        batch_size = "auto"
    size: Any = 1 if batch_size in (None, "auto") else batch_size
    begins: dict[str, Any] = {} if denoise is None else {"init": "a picture", "denoise": denoise}
    request = Request("", **drawn, **begins, batch_size=size, count=size)
    if frames is not None and not (isinstance(frames, int) and 1 <= frames <= MOST_FRAMES):
        raise UsageError(f"frames is {frames!r:.80}: give a whole number from 1 to {MOST_FRAMES}")
    machine = ahead.machine(device, cache_folder())
    blueprint = read(model, config_folder=config_folder)
    request = replace(
        request,
        width=request.width or blueprint.width,
        height=request.height or blueprint.height,
        sampler=request.sampler or _usual(usual, request, blueprint),
    )
    return _outlook(blueprint, machine, wished, request, frames=frames, is_open=batch_size == "auto")


def _readable(files: Files) -> Blueprint | None:
    """None for what can only be planned once it is loaded: a pickle, a single file of a kind that has no table. What is
    wrong with a model, loading says better."""
    try:
        return read(files.model, config_folder=files.config)
    except SafelightError:
        return None


def _outlook(
    blueprint: Blueprint,
    machine: Machine,
    wish: Wish,
    request: Request,
    *,
    frames: int | None = None,
    is_open: bool = False,
) -> Outlook:
    """is_open: the batch is to be found."""
    defaults = firstlight.DEFAULTS if blueprint.name in firstlight.BUNDLED else {}
    settled = _settled(blueprint, request, defaults)
    here = not machine.device.elsewhere
    outlook = look_ahead(
        blueprint,
        machine,
        wish,
        frames=frames,
        batch_size=None if is_open else _batch_size(request, defaults),
        guidance=request.guidance,
        walks=walks(settled, inputs.multiple(blueprint), _sampling(blueprint, request, defaults)),
        measurements=kept(machine.device.name, blueprint.name) if here else (),
        cache=cache_folder(),
    )
    return replace(outlook, request=settled)


# -- what a request means for a model by its configs -------------------------------------------------------------------


def _settled(blueprint: Blueprint, request: Request, defaults: Mapping[str, Any]) -> Request:
    """With size and steps, as run/settling.py has them of a loaded pipeline."""
    width, height = request.width, request.height
    multiple = inputs.multiple(blueprint)
    if request.init and width is None and height is None and request.mask_area == "whole":
        width, height = canvas.own_size(request.init, multiple)
    settled = replace(
        request,
        width=width or blueprint.width,
        height=height or blueprint.height,
        steps=request.steps or defaults.get("steps", DEFAULT_STEPS),
        denoise=DENOISE if request.init and request.denoise is None else request.denoise,
    )
    inputs.check_sides(multiple, width=settled.width, height=settled.height)
    return settled


def _sampling(blueprint: Blueprint, request: Request, defaults: Mapping[str, Any]) -> Sampling:
    """Raises UnknownName, and DoesNotApply for a sampler that is not for this kind of model."""
    checkpoint = _checkpoint(blueprint)
    recipe = settling.recipe_of(request, defaults, checkpoint)
    family = settling.family_of(blueprint.pipeline.__name__, blueprint.denoiser.config)
    if checkpoint is not None:
        schedulers.check(recipe, request.sampler_options, checkpoint, family)
    return Sampling(recipe, checkpoint, request.sampler_options, family)


def _checkpoint(blueprint: Blueprint) -> Checkpoint | None:
    scheduler = blueprint.scheduler
    return None if scheduler is None else Checkpoint(scheduler.cls.__name__, dict(scheduler.config))


def _usual(name: str | None, request: Request, blueprint: Blueprint) -> str | None:
    """The sampler, where it is for this kind of model."""
    if name is None:
        return None
    try:
        _sampling(blueprint, replace(request, sampler=name), {})
    except DoesNotApply:
        return None
    return name


def _batch_size(request: Request, defaults: Mapping[str, Any]) -> int:
    """Pictures at a time, as settling has it: a sampler that finds its steps as it goes draws them one by one."""
    at_once = min(request.batch_size, request.count)
    return at_once if Sampling(settling.recipe_of(request, defaults, None), None).is_foreseen else 1


def _final_size(pipe: Any, request: Request, defaults: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(width, height) of what is decoded last, where the request alone does not say it."""
    if not (request.hires or request.init):
        return request.width, request.height
    settling.check_supported(pipe)
    settled = settling.settle(pipe, request, defaults, Checkpoint.of(pipe))
    return settling.final_size(settled, settling.size_multiple(pipe))
