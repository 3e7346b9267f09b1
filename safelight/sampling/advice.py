"""Whether what is asked for makes a good picture, and what would: the popular claims, corrected, each with its source.

Comes in: the fields of a request, and the kind of model. Goes out: Advice, by topic. Nothing is run or loaded.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from safelight.errors import UnknownName
from safelight.sampling import advice_options, advice_rules, samplers
from safelight.sampling.advice_rules import Advice, Asked, each
from safelight.sampling.advice_tables import ALIASES, FAMILIES, SAMPLERS, family_of

__all__ = ["Advice", "Asked", "advise", "families", "family_of", "overview", "warnings"]

# in the order in which warnings count: what spoils the picture most comes first
RULES: tuple[Callable[[Asked], Iterator[Advice]], ...] = (
    advice_options.vae,
    advice_rules.size,
    advice_rules.guidance,
    advice_rules.steps,
    advice_rules.schedule,
    advice_options.second_pass,
    advice_options.noise,
    advice_options.beginning,
    advice_options.batches,
)
MOST_WARNINGS = 3
FIELDS = frozenset(field.name for field in fields(Asked))


def advise(**asked: Any) -> list[Advice]:
    """All that there is to say. asked: fields of Asked; None is open, and its usual range is told.

    family: a key of `families`, or a name of probe.known. Raises UnknownName for samplers, schedules and families.
    """
    found = Asked(**{**asked, "family": _family(asked.get("family"))})
    return [advice for rule in RULES for advice in rule(found)]


def warnings(family: str | None = None, **fields_of_request: Any) -> list[str]:
    """At most three short lines of what will look wrong; of a Request's fields the ones that nobody advises on are
    left out, and so are those of a second pass where there is none."""
    asked = {name: value for name, value in fields_of_request.items() if name in FIELDS}
    found = advise(family=family if family in families() else None, **asked)
    return [advice.text for advice in found if advice.level == "warning"][:MOST_WARNINGS]


def families() -> list[str]:
    """The kinds of models that are known, and other names of them."""
    return [*FAMILIES, *ALIASES]


def _family(name: str | None) -> str | None:
    if name is None:
        return None
    if name not in families():
        raise UnknownName("kind of model", name, families())
    return ALIASES.get(name, name)


def overview() -> list[str]:
    """Two tables for people who ask for nothing: the samplers, and the kinds of models."""
    lines = [f"{'sampler':18s} {'steps':>9} {'evaluations':>12}  {'fewest':>6} {'useless over':>12}  more steps"]
    for sampler in samplers.SAMPLERS:
        if (known := SAMPLERS.get(sampler.label)) is None:
            lines.append(f"{sampler.label:18s} {'its own':>9}")
            continue
        n, (first, last) = each(sampler), known.best
        steps = f"{-(-first // n)}-{-(-last // n)}"
        end = "come nearer to one picture" if known.converges else "draw other pictures"
        numbers = f"{steps:>9} {f'{first}-{last}':>12}  {-(-known.least // n):>6} {-(-known.most // n):>12}"
        lines.append(f"{sampler.label:18s} {numbers}  {end}")
    lines += ["", f"{'kind of model':18s} {'own size':>9} {'guidance':>9}  {'steps':>7}"]
    for name, family in FAMILIES.items():
        usual = f"{family.guidance[1]:g}-{family.guidance[2]:g}"
        steps = f"{family.steps[1]}-{family.steps[2]}" if family.steps else "sampler"
        lines.append(f"{name:18s} {f'{family.side}x{family.side}':>9} {usual:>9}  {steps:>7}")
    return lines
