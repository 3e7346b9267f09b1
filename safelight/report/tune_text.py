"""What a search by measuring found: a table for a terminal, a JSON document, and the lines of a plan file.

Comes in: a Tuned and the Judge it was made by. Goes out: text, or a dict for json. What was not measured is said.
"""

import math
from collections.abc import Iterator
from typing import Any

from safelight.measure.frontier import PLAIN, Judge, Setting, Tried
from safelight.measure.tune import Part, Tuned
from safelight.report.bench_figures import duration, ratio, size
from safelight.report.terminal import harmless

Found = dict[str, Any]
BEST, FRONT, BROKEN = "*", "+", "-"  # the winner, what none beats, what cannot be taken
HEAD = ("", "a run", "speed", "peak")
NOTHING = ""
LEGEND = f"{BEST} the best, {FRONT} beaten by none in seconds, memory and picture, {BROKEN} out, for what is said of it"


def table(tuned: Tuned, judge: Judge) -> str:
    blocks = [
        [headline(tuned, judge)],
        [*_rows(tuned, judge), LEGEND],
        list(parts(tuned, judge)),
        list(tuned.notes),
        list(_unfit(tuned)),
    ]
    return "\n\n".join("\n".join(harmless(line).rstrip() for line in block) for block in blocks if block) + "\n"


def limits(judge: Judge) -> str:
    return ", ".join(limit.written for limit in judge.limits)


def headline(tuned: Tuned, judge: Judge) -> str:
    asked = f"goal {judge.goal}, every picture inside {limits(judge)}"
    if tuned.winner is None:
        return f"{asked}: nothing that was measured is better than plain"
    return f"{asked}: -o {tuned.winner.setting.written}; {gained(tuned.winner, tuned.plain, judge)}"


def gained(one: Tried, plain: Tried, judge: Judge) -> str:
    """ "812 ms a run, 1.62 times as fast as plain; 602 MiB, plain 780 MiB; lpips 0.0312 at the worst of 3 pictures"."""
    speed = judge.seconds(plain) / judge.seconds(one)
    pictures = len(one.outcome.pictures)
    worst = ", ".join(f"{limit.metric} {_number(one.outcome.worst[limit.metric])}" for limit in judge.limits)
    memory = f"{size(one.outcome.peak_bytes)}, plain {size(plain.outcome.peak_bytes)}"
    return (
        f"{duration(judge.seconds(one))} a run, {speed:.2f} times as fast as plain; {memory}; {worst} {_of(pictures)}"
    )


def _of(pictures: int) -> str:
    return "in the one picture" if pictures == 1 else f"at the worst of {pictures} pictures"


def _rows(tuned: Tuned, judge: Judge) -> list[str]:
    """The fastest first; the plan last, as it may be long."""
    metrics = [limit.metric for limit in judge.limits]
    ordered = sorted(tuned.tried, key=lambda one: (judge.seconds(one), one.setting.written))
    front = {one.setting for one in judge.frontier([o for o in tuned.tried if o.setting in tuned.complete])}
    cells = [(*HEAD, *metrics), *(_cells(one, tuned, judge, front) for one in ordered)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    told = ["plan", *(_told(one, tuned, judge) for one in ordered)]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells]
    return [f"{line}  {text}" for line, text in zip(lines, told, strict=True)]


def _cells(one: Tried, tuned: Tuned, judge: Judge, front: set[Setting]) -> tuple[str, ...]:
    metrics = [limit.metric for limit in judge.limits]
    if not one.outcome.seconds:
        return (BROKEN, *[NOTHING] * (len(HEAD) - 1 + len(metrics)))
    mark = BROKEN if judge.broken(one) else BEST if one == tuned.winner else FRONT if one.setting in front else NOTHING
    speed = ratio(judge.seconds(tuned.plain) / judge.seconds(one))
    worst = [_number(one.outcome.worst[name]) if name in one.outcome.worst else NOTHING for name in metrics]
    return (mark, duration(judge.seconds(one)), speed, size(one.outcome.peak_bytes), *worst)


def _told(one: Tried, tuned: Tuned, judge: Judge) -> str:
    name = "plain" if one.setting == PLAIN else one.setting.written
    runs = len(one.outcome.seconds)
    looked = f"; {runs} runs only" if runs and one.setting not in tuned.complete else ""
    broken = judge.broken(one)
    return f"{name}{looked}{f'; {broken}' if broken else ''}"


def _number(found: float) -> str:
    return "inf" if math.isinf(found) else f"{found:.4g}"


def parts(tuned: Tuned, judge: Judge) -> Iterator[str]:
    """What each part of the best plan gives, and what it costs the picture."""
    if tuned.parts:
        yield f"what -o {tuned.parts[0].whole.setting.written} owes to each of its parts:"
    yield from (f"  {part.name}: {effect(part, judge)}" for part in tuned.parts)


def effect(part: Part, judge: Judge) -> str:
    if part.without is None:
        return "not left out: the others fail without it, or the budget had no room"
    whole, less = part.whole.outcome, part.without.outcome
    saved = judge.seconds(part.without) - judge.seconds(part.whole)
    told = f"{duration(abs(saved))} {'saved' if saved >= 0 else 'lost'} a run"
    if whole.peak_bytes is not None and less.peak_bytes is not None:
        freed = less.peak_bytes - whole.peak_bytes
        told += f", {size(abs(freed))} {'less' if freed >= 0 else 'more'}"
    for limit in judge.limits:
        before = "as plain" if part.without.setting == PLAIN else _number(less.worst[limit.metric])
        told += f", {limit.metric} {before} -> {_number(whole.worst[limit.metric])}"
    return f"{told}{'' if part.pays else '; does not pay'}"


def _unfit(tuned: Tuned) -> Iterator[str]:
    if tuned.unfit:
        yield f"{tuned.unfit} plans were left out or looked at too briefly: the budget had no room for them (--resume)"


# -- for programs ------------------------------------------------------------------------------------------------------


def document(tuned: Tuned, judge: Judge) -> Found:
    """schema: raised when a key changes its meaning. What is infinite is the text "inf"."""
    front = judge.frontier([one for one in tuned.tried if one.setting in tuned.complete])
    return {
        "schema": 1,
        "goal": judge.goal,
        "limits": [limit.written for limit in judge.limits],
        "winner": None if tuned.winner is None else _tried(tuned.winner, tuned, judge),
        "plain": _tried(tuned.plain, tuned, judge),
        "frontier": [one.setting.written for one in front],
        "tried": [_tried(one, tuned, judge) for one in tuned.tried],
        "parts": [_part(part, judge) for part in tuned.parts],
        "notes": list(tuned.notes),
        "left_out": tuned.unfit,
        "measured": tuned.measured,
    }


def _tried(one: Tried, tuned: Tuned, judge: Judge) -> Found:
    return {
        "plan": one.setting.written,
        "optimize": one.setting.optimize,
        "steps": one.setting.steps,
        "seconds": list(one.outcome.seconds),
        "once_seconds": one.outcome.once_seconds,
        "peak_bytes": one.outcome.peak_bytes,
        "worst": {name: _finite(value) for name, value in one.outcome.worst.items()},
        "complete": one.setting in tuned.complete,
        "out": judge.broken(one) or None,
        "pictures": [dict(picture) for picture in one.outcome.pictures],
    }


def _part(part: Part, judge: Judge) -> Found:
    found: Found = {"name": part.name, "pays": part.pays, "seconds": None, "bytes": None, "worst": None}
    if part.without is None:
        return found
    whole, less = part.whole.outcome, part.without.outcome
    both = whole.peak_bytes is not None and less.peak_bytes is not None
    worst = {limit.metric: [_finite(o.worst.get(limit.metric)) for o in (less, whole)] for limit in judge.limits}
    return found | {
        "seconds": _finite(judge.seconds(part.without) - judge.seconds(part.whole)),
        "bytes": less.peak_bytes - whole.peak_bytes if both else None,  # type: ignore[operator]
        "worst": worst,
    }


def _finite(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
