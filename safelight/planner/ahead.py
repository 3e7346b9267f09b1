"""A plan before a weight is loaded: for a model by its configs, on this machine or on a card that is not here.

Comes in: what a person asked for. Goes out: a frozen Outlook with the plan and all that it is made for.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safelight.errors import OutOfMemory, UnknownName
from safelight.measure.memory import collected_later
from safelight.optimizers.configs import target_of_blueprint
from safelight.optimizers.registry import OPTIMIZERS, Registry
from safelight.optimizers.target import Target
from safelight.planner import batches
from safelight.planner.batches import Batches
from safelight.planner.forecast import Chosen, Forecast
from safelight.planner.goals import Wish
from safelight.planner.plans import Plan, budget, plan
from safelight.planner.walks import DEFAULT_STEPS, Walk
from safelight.probe import cards, device, speed
from safelight.probe.blueprint import Blueprint, read
from safelight.probe.device import Device
from safelight.probe.rates import Rates
from safelight.request import Request
from safelight.simulate import inputs
from safelight.simulate.measurements import Measurement


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan is made for. device.elsewhere: a card from the table, or by its numbers."""

    device: Device
    rates: Rates


@dataclass(frozen=True, slots=True)
class Outlook:
    """forecast: asks for any other set of optimizers on the same. plan: always with its predictions.

    walks: what is predicted, one or two. batches: what was weighed where the batch was left to be found.
    request: what the walks come from, as far as it is known before a prompt is; None where they were given.
    """

    blueprint: Blueprint
    machine: Machine
    wish: Wish
    forecast: Forecast
    plan: Plan
    walks: tuple[Walk, ...]
    batches: Batches | None = None
    request: Request | None = None

    @property
    def target(self) -> Target:
        return self.forecast.target

    @property
    def chosen(self) -> tuple[Chosen, ...]:
        return tuple((choice.optimizer, choice.options) for choice in self.plan.choices)


def machine(asked: str | None, cache: Path | None) -> Machine:
    """ "cuda:0" and "cpu" are here and are measured, "rtx-3080-10gb" and "cuda,memory=12GiB,..." are not.

    Raises UnknownName for what is neither a device nor a card, EnvironmentProblem for a device that is not here.
    """
    if asked and (found := cards.by_hand(asked)):
        return Machine(*found)
    try:
        here = device.here(asked)
    except UnknownName:
        assert asked is not None, "what is best here is always known"
        return Machine(*_card(asked))
    return Machine(here, speed.measured(here, cache=cache))


def _card(asked: str) -> tuple[Device, Rates]:
    try:
        return cards.find(asked)
    except UnknownName:
        error = UnknownName("device or card", asked, (*device.KINDS, *cards.CARDS), also=cards.names())
    error.args = (
        f"{error}; what is here (safelight doctor lists it) is measured; or give a card's numbers: "
        f"--device {cards.NUMBERS}",
    )
    raise error


@collected_later()
def look_ahead(
    model: str | Blueprint,
    machine: Machine,
    wish: Wish,
    *,
    width: int | None = None,
    height: int | None = None,
    frames: int | None = None,
    batch_size: int | None = 1,
    steps: int | None = None,
    guidance: float | None = None,
    walks: Sequence[Walk] = (),
    config_folder: str | None = None,
    measurements: Sequence[Measurement] = (),
    registry: Registry = OPTIMIZERS,
    cache: Path | None = None,
) -> Outlook:
    """model: as --model takes it, or read already. None stands for the model's own, of batch_size for the best there
    is. walks: in place of width, height and steps. measurements: of earlier runs of the model on this device, which
    correct the prediction. cache: a folder that keeps what the next plan need not trace again.

    Raises what `blueprint.read` and `plan` do, and CannotPredict.
    """
    blueprint = read(model, config_folder=config_folder) if isinstance(model, str) else model
    walked = tuple(walks) or (_walk(blueprint, width, height, steps),)
    for walk in walked:
        inputs.check_sides(inputs.multiple(blueprint), width=walk.width, height=walk.height)
    guided = None if guidance is None else guidance > 1
    target = target_of_blueprint(blueprint, machine.device, frames=frames, batch_size=batch_size or 1, guided=guided)
    traces = None if cache is None else cache / "traces"
    forecast = Forecast(blueprint, target, machine.rates, measurements=tuple(measurements), traces=traces).along(walked)

    of_batch = functools.cache(forecast.of_batch)

    def at(size: int) -> Outlook:
        try:
            return Outlook(blueprint, machine, wish, of_batch(size), _plan(of_batch(size), wish, registry), walked)
        finally:
            of_batch(size).keep()

    return at(batch_size) if batch_size else _in_batches(at, of_batch, wish, registry)


def _walk(blueprint: Blueprint, width: int | None, height: int | None, steps: int | None) -> Walk:
    """One, by a sampler that asks the model once a step."""
    asked = steps or DEFAULT_STEPS
    return Walk(width or blueprint.width, height or blueprint.height, asked, asked)


def _plan(forecast: Forecast, wish: Wish, registry: Registry) -> Plan:
    """Where nothing is left to plan, what was asked for is predicted."""
    made = plan(forecast.target, wish, registry, forecast)
    if made.cost is not None:
        return made
    chosen = [(choice.optimizer, choice.options) for choice in made.choices]
    limit = budget(forecast.target.device, wish.vram_bytes)
    return replace(made, cost=forecast.cost(chosen), plain=forecast.cost(), budget_bytes=limit)


def _in_batches(
    at: Callable[[int], Outlook], of_batch: Callable[[int], Forecast], wish: Wish, registry: Registry
) -> Outlook:
    """At the best batch: weighed with the plan of a middling one, and planned anew."""
    most = min(batches.MOST, wish.pictures or batches.MOST)
    first = _fitting(at, min(batches.PLANNED, most))
    assert first.plan.budget_bytes is not None, "an outlook is always predicted"
    target = replace(first.target, batch_size=max(2, first.target.batch_size))
    choices = batches.sets(first.chosen, target, registry)
    found = batches.weighed(of_batch, choices, first.plan.budget_bytes, most)
    outlook = first if found.best == first.target.batch_size else _fitting(at, found.best)
    return replace(outlook, batches=replace(found, best=outlook.target.batch_size))


def _fitting(at: Callable[[int], Outlook], size: int) -> Outlook:
    """Half the batch, where it is too large. Raises OutOfMemory where not even one picture fits."""
    while size > 1:
        try:
            return at(size)
        except OutOfMemory:
            size //= 2
    return at(1)
