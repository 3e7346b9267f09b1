"""Which optimizers to use, in which order, and why: for each one taken and each one left.

Comes in: a Target, a Wish, and a Forecast where something is left to plan. Goes out: a frozen Plan. Touches no
pipeline.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from safelight.errors import Conflict, DoesNotApply, OutOfMemory, UsageError
from safelight.optimizers import conflicts, words
from safelight.optimizers.precision import chosen_dtypes
from safelight.optimizers.registry import OPTIMIZERS, Optimizer, Registry
from safelight.optimizers.target import Target
from safelight.planner import reasons
from safelight.planner.forecast import Chosen, Forecast, written
from safelight.planner.goals import GOALS, Wish
from safelight.planner.search import Limits, Point, Search, best, steps
from safelight.probe.device import Device, gib
from safelight.simulate.cost import Cost, usable_bytes

AUTO = words.AUTO


@dataclass(frozen=True, slots=True)
class Choice:
    optimizer: Optimizer
    options: Mapping[str, Any]
    requested: bool  # by name; otherwise the planner took it
    why: str

    @property
    def value(self) -> str:
        """The options as a person writes them: "dtype=bfloat16" without "dtype=", "" if there are none.

        An option that is "" says nothing of its own, and is left out.
        """
        options = enumerate(self.options.items())
        return ",".join(f"{v}" if i == 0 else f"{k}={v}" for i, (k, v) in options if v != "")

    @property
    def written(self) -> str:
        return f"{self.optimizer.name}={self.value}" if self.value else self.optimizer.name


@dataclass(frozen=True, slots=True)
class Step:
    """A neighbour of the plan: what it takes besides, what it does without, and what that costs."""

    adds: tuple[str, ...]
    drops: tuple[str, ...]
    cost: Cost


@dataclass(frozen=True, slots=True)
class Plan:
    """choices: in the order they are applied. left: why each other optimizer was not taken.

    cost, plain: predicted with the choices, and without any; None where nothing was to be planned. budget_bytes: what
    tensors may take on the device. up: the next faster plan, which needs more memory. down: the next smaller one.
    """

    choices: tuple[Choice, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    cost: Cost | None = None
    plain: Cost | None = None
    budget_bytes: int | None = None
    up: Step | None = None
    down: Step | None = None

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """As `wish` and `load` take them."""
        return {choice.optimizer.name: dict(choice.options) for choice in self.choices}

    @property
    def written(self) -> str:
        """As -o takes it: "dtype=bfloat16,channels-last"; "none" for plain."""
        return written((choice.optimizer, choice.options) for choice in self.choices) or words.NONE

    def lines(self) -> list[str]:
        taken = [f"+ {choice.written:24s} {choice.why}" for choice in self.choices]
        return taken + [f"  {name:24s} {why}" for name, why in self.left.items()]


def plan(
    target: Target,
    wished: Wish,
    registry: Registry = OPTIMIZERS,
    forecast: Forecast | None = None,
    *,
    below_bytes: int | None = None,
) -> Plan:
    """forecast: of the same target; needed where something is left to plan (`wished.auto`). below_bytes: what the peak
    must stay below, besides what the wish says.

    Raises DoesNotApply for an optimizer asked for that does not fit, Conflict for two that do not combine, OutOfMemory
    for a budget that no plan can meet, UsageError for seconds that none can.
    """
    if both := sorted(wished.without & wished.options.keys()):
        raise Conflict(f"{both[0]} is asked for and ruled out at once: drop it from one of the two")
    asked = [_asked(registry[name], given, _as_computing(target, wished)) for name, given in wished.options.items()]
    _check_conflicts(asked, wished, registry)
    if not wished.auto:
        left = {name: "not asked for" for name in registry if name not in wished.options}
        choices = tuple(Choice(optimizer, options, True, "asked for") for optimizer, options in asked)
        return Plan(tuple(sorted(choices, key=lambda choice: choice.optimizer.stage)), left)
    assert forecast is not None, "a plan that is left to us wants a forecast"
    limit = budget(forecast.target.device, wished.vram_bytes)
    limits = Limits(limit if below_bytes is None else min(limit, below_bytes - 1), wished.max_seconds)
    return _planned(wished, registry, forecast, tuple(asked), limits)


def _planned(wished: Wish, registry: Registry, forecast: Forecast, pins: tuple[Chosen, ...], limits: Limits) -> Plan:
    search = Search(forecast, registry, pins, wished.without, wished.paid_by)
    frontier = search.frontier(wished.speed, wished.memory)
    point = _best(frontier, limits, search, wished)
    if point is None:
        raise _out_of_reach(frontier, limits, search, wished)
    up, down = steps(frontier, point, search.seconds)
    plain = search.point(()).cost
    told = reasons.Reasons(search, point, plain, limits.budget_bytes, wished.speed, wished.memory)
    choices = tuple(
        Choice(
            optimizer, options, requested := (optimizer, options) in pins, told.taken((optimizer, options), requested)
        )
        for optimizer, options in point.chosen
    )
    left = {known.name: told.left(known) for known in registry.values() if known.name not in point.names}
    return Plan(choices, left, point.cost, plain, limits.budget_bytes, _step(point, up), _step(point, down))


def _best(frontier: Sequence[Point], limits: Limits, search: Search, wished: Wish) -> Point | None:
    """What a picture may lose only to fit into memory it loses only if it would not fit otherwise."""
    if GOALS[wished.goal].smallest:
        return best(frontier, limits, search.seconds, smallest=True)
    gentle = [point for point in frontier if search.fidelity(point) <= wished.speed]
    return best(gentle, limits, search.seconds) or best(frontier, limits, search.seconds)


def still_fitting(plan: Plan, target: Target) -> Plan:
    """A plan that was made before the weights were loaded, for what was loaded (LoRAs, another VAE): what the planner
    took and does not fit now is left. Raises DoesNotApply for what was asked for."""
    choices, left = [], dict(plan.left)
    for choice in plan.choices:
        if (reason := choice.optimizer.fits(target, **choice.options)) is None:
            choices.append(choice)
        elif choice.requested:
            raise DoesNotApply(f"{choice.optimizer.name} was asked for, but {reason}; leave it out")
        else:
            left[choice.optimizer.name] = reason
    return replace(plan, choices=tuple(choices), left=left)


def budget(device: Device, vram_bytes: int | None = None) -> int:
    """Bytes of tensors that a plan may count on. vram_bytes: at most, in all."""
    there = device.free_bytes if vram_bytes is None else min(vram_bytes, device.free_bytes)
    return usable_bytes(device.kind, there)


def _step(taken: Point, other: Point | None) -> Step | None:
    if other is None:
        return None
    here, there = ([written([choice]) for choice in point.chosen] for point in (taken, other))
    adds, drops = (tuple(name for name in one if name not in rest) for one, rest in ((there, here), (here, there)))
    return Step(adds, drops, other.cost)


def _out_of_reach(frontier: Sequence[Point], limits: Limits, search: Search, wished: Wish) -> Exception:
    least = min(frontier, key=lambda point: (point.cost.peak_bytes, search.seconds(point)))
    shown = written(least.chosen) or words.NONE
    missing = least.cost.peak_bytes - limits.budget_bytes
    if missing > 0:
        phase = least.cost.largest
        looser = "" if wished.memory == max(type(wished.memory)) else ", --fidelity approximate"
        return OutOfMemory(
            f"{gib(limits.budget_bytes)} are there for tensors, and the smallest plan needs "
            f"{gib(least.cost.peak_bytes)} while it does {phase}, {gib(missing)} too much: -o {shown}; "
            f"give a smaller picture or batch{looser}, or a larger device"
        )
    fitting = [point for point in frontier if point.cost.peak_bytes <= limits.budget_bytes]
    quickest = min(fitting, key=search.seconds)
    return UsageError(
        f"max-seconds is {limits.max_seconds:g}, and the fastest plan that fits takes "
        f"{reasons.seconds(search.seconds(quickest))}: -o {written(quickest.chosen) or words.NONE}; "
        "give fewer steps, a smaller picture, a looser --fidelity or more time"
    )


def fitting(target: Target, registry: Registry = OPTIMIZERS) -> dict[str, str | None]:
    """Every optimizer by name: None where it fits as it is, or the reason why not."""
    found: dict[str, str | None] = {}
    for known in registry.values():
        try:
            found[known.name] = known.fits(target, **known.defaults())
        except UsageError as error:  # a default that is no value for this model
            found[known.name] = str(error)
    return found


def loading_dtype(wished: Wish, device: Device) -> str:
    """The dtype that the plan will want, so that weights are loaded in it at once and never held twice.

    float32 if its parts want different ones: what was loaded in fewer bits cannot be given more.
    """
    if (dtypes := _asked_dtypes(wished, device)) is None:
        return "float32"
    names = set(dtypes.values())
    if len(names) > 1 or (names == {"float16"} and device.kind == "cpu"):  # the plan will refuse it, with the reason
        return "float32"
    return names.pop()


def _asked_dtypes(wished: Wish, device: Device) -> dict[str, str] | None:
    """Those of the parts, as `dtype` will set them; None when it was not asked for."""
    given = wished.options.get("dtype")
    return None if given is None else chosen_dtypes(device, **given)


def _as_computing(target: Target, wished: Wish) -> Target:
    """The target with the dtype that its denoiser will have once `dtype` has acted."""
    dtypes = _asked_dtypes(wished, target.device)
    return target if dtypes is None else replace(target, dtype=dtypes["denoiser"])


def _asked(found: Optimizer, given: Mapping[str, Any], target: Target) -> Chosen:
    options = {**found.defaults(), **given}
    if reason := found.fits(target, **options):
        raise DoesNotApply(f"{found.name} was asked for, but {reason}; leave it out or take it back with --without")
    return found, options


def _check_conflicts(asked: list[Chosen], wished: Wish, registry: Registry) -> None:
    options = {optimizer.name: chosen for optimizer, chosen in asked}
    found = next(conflicts.clashes(options, registry), None)
    if found is None:
        return
    nearest = conflicts.nearest_set(options, registry)
    given = {name: _said(wished.options[name], options[name], values) for name, values in nearest.items()}
    keep = ",".join(filter(None, [AUTO if wished.auto else "", words.written(given, registry)]))
    raise Conflict(f"{found.first} and {found.second} exclude each other: {found.reason}; keep: {keep}")


def _said(given: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, and what has to be given instead."""
    return {**given, **{name: value for name, value in after.items() if value != before[name]}}
