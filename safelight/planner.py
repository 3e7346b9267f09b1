"""Which optimizers to use, in which order, and why: for each one taken and each one left.

Comes in: a Target, what a person asked for ("auto,vae-tiling=256"), what they ruled out. Goes out: a frozen Plan.
Touches no pipeline.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from safelight.errors import Conflict, DoesNotApply, UsageError
from safelight.optimizers import conflicts, words
from safelight.optimizers.precision import chosen_dtypes
from safelight.optimizers.registry import OPTIMIZERS, Fidelity, Optimizer, Registry
from safelight.optimizers.target import Target
from safelight.probe.device import Device
from safelight.simulate.cost import TYPICAL, Cost

AUTO = words.AUTO
WORTH_IT = 0.98  # taken only if the prediction falls to this share of the seconds, or of the bytes


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for. options: by optimizer name, as text or as values. auto: take what pays, too."""

    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    auto: bool = False
    without: frozenset[str] = frozenset()


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


@dataclass(frozen=True, slots=True)
class Plan:
    """choices: in the order they are applied. left: why each other optimizer was not taken."""

    choices: tuple[Choice, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    cost: Cost = TYPICAL

    def lines(self) -> list[str]:
        taken = [f"+ {_written(choice):24s} {choice.why}" for choice in self.choices]
        return taken + [f"  {name:24s} {why}" for name, why in self.left.items()]


def _written(choice: Choice) -> str:
    return f"{choice.optimizer.name}={choice.value}" if choice.value else choice.optimizer.name


def wish(optimize: words.Words = "", without: Iterable[str] = (), registry: Registry = OPTIMIZERS) -> Wish:
    """Reads "auto,dtype=bfloat16,vae-tiling=256,vae-tiling.overlap=0.5", a list of such words, or a mapping.

    `name=value` sets an optimizer's first option, `name.option=value` any; words.py tells all ways, and the names that
    others use. Raises UnknownName and UsageError.
    """
    asked = words.read(optimize, registry=registry)
    without = frozenset(words.resolve(name, registry).name for name in without)
    return Wish(asked.options, bool(asked.auto), without)


def plan(target: Target, wished: Wish, registry: Registry = OPTIMIZERS) -> Plan:
    """Raises DoesNotApply for an optimizer asked for that does not fit, Conflict for two that do not combine."""
    if both := sorted(wished.without & wished.options.keys()):
        raise Conflict(f"{both[0]} is asked for and ruled out at once: drop it from one of the two")
    target = _as_computing(target, wished)
    choices = [_asked(registry[name], given, target) for name, given in wished.options.items()]
    _check_conflicts(choices, wished, registry)
    left: dict[str, str] = {}
    cost = TYPICAL
    for choice in choices:
        cost = choice.optimizer.predict(cost, target, **choice.options)
    for known in registry.values():
        if known.name in wished.options:
            continue
        why, after = _worth(known, target, wished, choices, cost, registry)
        if after is None:
            left[known.name] = why
        else:
            choices.append(Choice(known, known.defaults(), requested=False, why=why))
            cost = after
    return Plan(tuple(sorted(choices, key=lambda c: c.optimizer.stage)), left, cost)


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
    """Those of the parts, as `dtype` will set them; None when it is not to act."""
    given = wished.options.get("dtype")
    if given is None and (not wished.auto or "dtype" in wished.without):
        return None
    return chosen_dtypes(device, **(given or {}))


def _as_computing(target: Target, wished: Wish) -> Target:
    """The target with the dtype that its denoiser will have once `dtype` has acted."""
    dtypes = _asked_dtypes(wished, target.device)
    if dtypes is None or ("dtype" not in wished.options and dtypes["denoiser"] == "float32"):
        return target  # "auto" leaves a model as it is where 16 bits are no faster
    return replace(target, dtype=dtypes["denoiser"])


def _asked(found: Optimizer, given: Mapping[str, Any], target: Target) -> Choice:
    options = {**found.defaults(), **given}
    if reason := found.fits(target, **options):
        raise DoesNotApply(f"{found.name} was asked for, but {reason}; leave it out or take it back with --without")
    return Choice(found, options, requested=True, why="asked for")


def _check_conflicts(choices: list[Choice], wished: Wish, registry: Registry) -> None:
    options = {choice.optimizer.name: choice.options for choice in choices}
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


def _worth(
    known: Optimizer, target: Target, wished: Wish, choices: list[Choice], cost: Cost, registry: Registry
) -> tuple[str, Cost | None]:
    """(the reason, the cost with it, or None when it is left)."""
    if known.name in wished.without:
        return "ruled out", None
    if not wished.auto:
        return "not asked for", None
    options = known.defaults()
    if reason := known.fits(target, **options):
        return reason, None
    if known.fidelity > Fidelity.ROUNDING:
        return f"may change the picture ({known.fidelity.word}): ask for it by name", None
    if known.price:
        return f"{known.price}: ask for it by name", None
    if known.slot and any(known.slot == choice.optimizer.slot for choice in choices):
        return f"the slot {known.slot} is taken", None
    taken = {choice.optimizer.name: choice.options for choice in choices} | {known.name: options}
    for name in taken:
        if name != known.name and (found := conflicts.clash(name, known.name, taken, registry)):
            return f"in conflict with {name}: {found.reason}", None
    after = known.predict(cost, target, **options)
    if after.seconds <= cost.seconds * WORTH_IT:
        return f"predicted to take {after.seconds / cost.seconds:.0%} of the seconds", after
    if after.peak <= cost.peak * WORTH_IT:
        return f"predicted to take {after.peak / cost.peak:.0%} of the bytes", after
    return "no gain expected here", None
