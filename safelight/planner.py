"""Which optimizers to use, in which order, and why: for each one taken and each one left.

Comes in: a Target, what a person asked for ("auto,vae-tiling=256"), what they ruled out. Goes out: a frozen Plan.
Touches no pipeline.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from safelight.errors import Conflict, DoesNotApply, UsageError
from safelight.optimizers.precision import chosen_dtype
from safelight.optimizers.registry import OPTIMIZERS, Fidelity, Optimizer, Registry
from safelight.optimizers.target import Target
from safelight.probe.device import Device
from safelight.simulate.cost import TYPICAL, Cost

AUTO = "auto"
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
        """The options as a person writes them: "dtype=bfloat16" without "dtype=", "" if there are none."""
        return ",".join(f"{v}" if i == 0 else f"{k}={v}" for i, (k, v) in enumerate(self.options.items()))


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


def wish(optimize: str | Iterable[str] = "", without: Iterable[str] = (), registry: Registry = OPTIMIZERS) -> Wish:
    """Reads "auto,dtype=bfloat16,vae-tiling=256,vae-tiling.overlap=0.5".

    `name=value` sets an optimizer's first option, `name.option=value` any. Raises UnknownName and UsageError.
    """
    words = optimize.split(",") if isinstance(optimize, str) else list(optimize)
    options: dict[str, dict[str, Any]] = {}
    auto = False
    for word in filter(None, (word.strip() for word in words)):
        if word == AUTO:
            auto = True
            continue
        if word == "none":
            continue
        name, equals, text = word.partition("=")
        name, _, option = name.partition(".")
        found = registry.find(name)
        given = options.setdefault(found.name, {})
        if equals:
            known = _option(found, option)
            given[known.name] = known.parse(text)
    return Wish(options, auto, frozenset(registry.find(name).name for name in without))


def _option(found: Optimizer, option: str) -> Any:
    if option:
        return found.option(option.replace("-", "_"))
    if not found.options:
        raise UsageError(f"{found.name} takes no value")
    return found.options[0]


def plan(target: Target, wished: Wish, registry: Registry = OPTIMIZERS) -> Plan:
    """Raises DoesNotApply for an optimizer asked for by name that does not fit, Conflict for two in one slot."""
    if both := sorted(wished.without & wished.options.keys()):
        raise Conflict(f"{both[0]} is asked for and ruled out at once: drop it from one of the two")
    choices: list[Choice] = []
    left: dict[str, str] = {}
    cost = TYPICAL
    for name, given in wished.options.items():
        choice = _asked(registry[name], given, target)
        _check_slot(choice, choices)
        choices.append(choice)
        cost = choice.optimizer.predict(cost, target, **choice.options)
    for known in registry.values():
        if known.name in wished.options:
            continue
        why, after = _worth(known, target, wished, choices, cost)
        if after is None:
            left[known.name] = why
        else:
            choices.append(Choice(known, known.defaults(), requested=False, why=why))
            cost = after
    return Plan(tuple(sorted(choices, key=lambda c: c.optimizer.stage)), left, cost)


def loading_dtype(wished: Wish, device: Device) -> str:
    """The dtype that the plan will want, so that weights are loaded in it at once and never held twice."""
    if (given := wished.options.get("dtype")) is not None:
        value = given.get("value", "auto")
    elif wished.auto and "dtype" not in wished.without:
        value = "auto"
    else:
        return "float32"
    name = chosen_dtype(device, value)
    return "float32" if name == "float16" and device.kind == "cpu" else name  # the plan will refuse it, with the reason


def _asked(found: Optimizer, given: Mapping[str, Any], target: Target) -> Choice:
    options = {**found.defaults(), **given}
    if reason := found.fits(target, **options):
        raise DoesNotApply(f"{found.name} was asked for, but {reason}; leave it out or take it back with --without")
    return Choice(found, options, requested=True, why="asked for")


def _check_slot(choice: Choice, choices: list[Choice]) -> None:
    for other in choices:
        if choice.optimizer.slot and other.optimizer.slot == choice.optimizer.slot:
            raise Conflict(
                f"{other.optimizer.name} and {choice.optimizer.name} exclude each other ({choice.optimizer.slot}): "
                "keep one of them"
            )


def _worth(
    known: Optimizer, target: Target, wished: Wish, choices: list[Choice], cost: Cost
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
    after = known.predict(cost, target, **options)
    if after.seconds <= cost.seconds * WORTH_IT:
        return f"predicted to take {after.seconds / cost.seconds:.0%} of the seconds", after
    if after.peak <= cost.peak * WORTH_IT:
        return f"predicted to take {after.peak / cost.peak:.0%} of the bytes", after
    return "no gain expected here", None
