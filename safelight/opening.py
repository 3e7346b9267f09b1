"""A model's name becomes a session: planned by its configs first, then loaded in the dtype that the plan wants.

The one place that knows the order of things: probe, plan, load, apply.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from safelight import firstlight
from safelight.config import MOST_FRAMES, cache_folder
from safelight.errors import CannotPredict, SafelightError, UsageError
from safelight.measure.memory import collected_later
from safelight.optimizers.words import Words
from safelight.planner import GOALS, Wish, ahead, loading_dtype, wish
from safelight.planner.ahead import Machine, Outlook, look_ahead
from safelight.probe import device as devices
from safelight.probe import speed
from safelight.probe.blueprint import Blueprint, read
from safelight.probe.device import Device
from safelight.request import Request
from safelight.run.expected import kept
from safelight.run.load import pipeline
from safelight.session import Session


@dataclass(frozen=True, slots=True)
class Files:
    """What is loaded. model: as --model takes it. vae: another one. loras: each with an optional "=weight". config: a
    folder of configs for a single file."""

    model: str
    vae: str | None = None
    loras: tuple[str, ...] = ()
    config: str | None = None
    allow_pickle: bool = False


def opened(
    files: Files,
    wish: Wish,
    device: str | None = None,
    *,
    width: int | None = None,
    height: int | None = None,
    batch_size: int = 1,
    steps: int | None = None,
) -> Session:
    """None stands for the best device there is, and for the model's own size.

    Raises SafelightError's children: whatever loading, planning and proving raise.
    """
    found = devices.here(device)
    outlook = None
    if wish.auto and (blueprint := _readable(files)) is not None:
        try:
            outlook = _outlook(blueprint, found, wish, width, height, batch_size, steps)
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
    return Session(
        pipe,
        found,
        wish,
        loaded,
        firstlight.DEFAULTS if loaded.asked in firstlight.BUNDLED else {},
        width,
        height,
        batch_size,
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
    width: int | None = None,
    height: int | None = None,
    frames: int | None = None,
    batch_size: int | str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    config_folder: str | None = None,
    **limits: Any,
) -> Outlook:
    """What a run would take: `safelight.plan` with a preset's wishes in it. Nothing is loaded.

    device: also a card that is not here. batch_size: None is 1, but for a goal that is about batches; "auto" is the
    best there is. sampler: for those who run the plan. limits: as `planner.wish` takes them.
    """
    wished = wish(optimize, without, keep=keep, **limits)
    if batch_size is None and GOALS[wished.goal].batches:
        batch_size = "auto"
    size: Any = 1 if batch_size in (None, "auto") else batch_size
    Request("", width=width, height=height, steps=steps, guidance=guidance, batch_size=size, sampler=sampler)
    if frames is not None and not (isinstance(frames, int) and 1 <= frames <= MOST_FRAMES):
        raise UsageError(f"frames is {frames!r:.80}: give a whole number from 1 to {MOST_FRAMES}")
    machine = ahead.machine(device, cache_folder())
    blueprint = read(model, config_folder=config_folder)
    return look_ahead(
        blueprint,
        machine,
        wished,
        width=width,
        height=height,
        frames=frames,
        batch_size=None if batch_size == "auto" else size,
        steps=steps,
        guidance=guidance,
        measurements=() if machine.device.elsewhere else kept(machine.device.name, blueprint.name),
        cache=cache_folder(),
    )


def _readable(files: Files) -> Blueprint | None:
    """None for what can only be planned once it is loaded: a pickle, a single file of a kind that has no table. What is
    wrong with a model, loading says better."""
    try:
        return read(files.model, config_folder=files.config)
    except SafelightError:
        return None


def _outlook(
    blueprint: Blueprint,
    device: Device,
    wish: Wish,
    width: int | None,
    height: int | None,
    batch_size: int,
    steps: int | None,
) -> Outlook:
    return look_ahead(
        blueprint,
        Machine(device, speed.measured(device, cache=cache_folder())),
        wish,
        width=width,
        height=height,
        batch_size=batch_size,
        steps=steps,
        measurements=kept(device.name, blueprint.name),
        cache=cache_folder(),
    )
