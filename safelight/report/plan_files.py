"""A plan for programs: a JSON document, and a plan file in TOML that `generate --plan` runs.

Comes in: an Outlook. Goes out: a dict for json, or the text of a file with the keys of safelight.toml.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from safelight.config import VERSION
from safelight.optimizers.words import NONE, ON_OFF
from safelight.planner.ahead import Outlook
from safelight.planner.batches import Batch
from safelight.planner.forecast import unlike, versions
from safelight.planner.plans import Choice, Step
from safelight.planner.presets import Verdict
from safelight.report.plan import lines
from safelight.simulate.cost import Cost, Phase

Found = dict[str, Any]


def document(outlook: Outlook, verdicts: Sequence[Verdict] = ()) -> Found:
    """Bytes and seconds as numbers; seconds are of one batch where nothing else is said. schema: raised when a key
    changes its meaning."""
    plan, target, pictures = outlook.plan, outlook.target, outlook.wish.paid_by
    first = outlook.walks[0]
    assert plan.plain is not None and plan.cost is not None, "an outlook is always predicted"
    return {
        "schema": 1,
        "model": outlook.blueprint.name,
        "device": _device(outlook),
        "size": {"width": first.width, "height": first.height, "frames": target.frames},
        "steps": first.steps,
        "sampler": outlook.request.sampler if outlook.request else None,
        "passes": [_pass(outlook, i) for i in range(len(outlook.walks))],
        "guided": target.guided,
        "batch_size": target.batch_size,
        "goal": _goal(outlook),
        "corrected_by": outlook.forecast.correction(outlook.chosen).because or None,
        "versions": versions(),
        "budget_bytes": plan.budget_bytes,
        "plain": _cost(plan.plain, pictures),
        "planned": _cost(plan.cost, pictures),
        "optimize": plan.written,
        "choices": [_choice(choice) for choice in plan.choices],
        "left": dict(plan.left),
        "up": _step(plan.up, pictures),
        "down": _step(plan.down, pictures),
        "batches": None if outlook.batches is None else _batches(outlook),
        "preset": [asdict(verdict) for verdict in verdicts] or None,
    }


def _pass(outlook: Outlook, index: int) -> Found:
    """Its seconds and its peak are its own; `plain` and `planned` are of all of them."""
    walk, forecast = outlook.walks[index], outlook.forecast
    if index < len(outlook.walks) - 1 and forecast.before is not None:
        forecast = forecast.before
    costs = {"plain": forecast.alone(), "planned": forecast.alone(outlook.chosen)}
    return {
        **{name: getattr(walk, name) for name in ("width", "height", "steps", "evaluations")},
        **{name: {"seconds": cost.seconds, "peak_bytes": cost.peak_bytes} for name, cost in costs.items()},
    }


def _device(outlook: Outlook) -> Found:
    device = outlook.target.device
    return {
        "name": device.name,
        "kind": device.kind,
        "here": not device.elsewhere,
        "memory_bytes": device.memory_bytes,
        "free_bytes": device.free_bytes,
        "rates": outlook.machine.rates.source,
        "findings": list(device.findings),
    }


def _goal(outlook: Outlook) -> Found:
    wish = outlook.wish
    return {
        "name": wish.goal if wish.auto else None,
        "speed": wish.speed.word,
        "memory": wish.memory.word,
        "vram_bytes": wish.vram_bytes,
        "max_seconds": wish.max_seconds,
        "pictures": wish.paid_by,
        "without": sorted(wish.without),
    }


def _cost(cost: Cost, pictures: int) -> Found:
    return {
        "seconds": cost.seconds,
        "seconds_per_picture": cost.per_picture(pictures),
        "once_seconds": cost.once,
        "peak_bytes": cost.peak_bytes,
        "peak_phase": cost.largest,
        "host_bytes": cost.host_bytes,
        "phases": {name: _phase(phase) for name, phase in cost.phases.items()},
    }


def _phase(phase: Phase) -> Found:
    return {
        "seconds": phase.seconds,
        "peak_bytes": phase.peak_bytes,
        "resident_bytes": phase.resident,
        "live_bytes": phase.live,
    }


def _choice(choice: Choice) -> Found:
    return {
        "name": choice.optimizer.name,
        "options": dict(choice.options),
        "requested": choice.requested,
        "why": choice.why,
    }


def _step(step: Step | None, pictures: int) -> Found | None:
    return None if step is None else {"adds": list(step.adds), "drops": list(step.drops), **_cost(step.cost, pictures)}


def _batches(outlook: Outlook) -> Found:
    found = outlook.batches
    assert found is not None
    return {"best": found.best, "largest": found.largest, "tried": [_batch(batch) for batch in found.tried]}


def _batch(batch: Batch) -> Found:
    return {**asdict(batch), "pictures_per_second": batch.per_second}


# -- a plan file -------------------------------------------------------------------------------------------------------


def toml(outlook: Outlook, run: Mapping[str, Any]) -> str:
    """run: what else the file is to hold, by the keys of safelight.toml; None is left out."""
    first, written = outlook.walks[0], outlook.plan.written
    asked = outlook.request.steps if outlook.request else first.steps  # a picture to begin from needs fewer of them
    keys = {
        **run,
        "width": first.width,
        "height": first.height,
        "steps": asked,
        "batch_size": outlook.target.batch_size,
        **({"optimize": NONE} if written == NONE else {}),
    }
    told = [f"# Made by safelight {VERSION}; safelight generate --plan FILE runs it.", "#"]
    told += [f"# {_printable(line)}".rstrip() for line in lines(outlook)]
    told += ["", *(f"{key.replace('_', '-')} = {_value(value)}" for key, value in keys.items() if value is not None)]
    if written != NONE:
        told += ["", "[optimize]", *(_row(choice) for choice in outlook.plan.choices)]
    return "\n".join(told) + "\n"


def _row(choice: Choice) -> str:
    """An option that is as it is by default is left out; the first alone stands without its name."""
    given = unlike(choice.optimizer, choice.options)
    name = choice.optimizer.name
    if not given:
        return f"{name} = true"
    first = choice.optimizer.options[0].name
    # true, false, "on" and the like would switch the optimizer itself
    if list(given) == [first] and not isinstance(given[first], bool) and str(given[first]).lower() not in ON_OFF:
        return f"{name} = {_value(given[first])}"
    inner = ", ".join(f"{option} = {_value(value)}" for option, value in given.items())
    return f"{name} = {{ {inner} }}"


def _value(value: Any) -> str:
    """JSON's texts, numbers, true and false are TOML's."""
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _printable(line: str) -> str:
    """A line break in a name would end the comment."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
