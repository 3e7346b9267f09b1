"""A benchmark's result as text: a table for a terminal, and a page of markdown to commit under benchmarks/.

Comes in: a Result. Goes out: text, plain first. What was not measured is said.
"""

import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from safelight.measure.results import PlanResult, Requirement, Result
from safelight.report.bench_figures import (
    NOTHING,
    PERCENTILES,
    SHOWN,
    UNMEASURED,
    Row,
    counted,
    duration,
    environment,
    failed,
    machine,
    metrics,
    percentiles,
    picture,
    ratio,
    required,
    rows,
    size,
    subject,
    took_effect,
    value,
    when,
    with_error,
)
from safelight.report.terminal import harmless

WIDTH = 120
PAGE_WIDTH = 110
NAME = 24  # columns that a plan's name has in a table
INDENT = "  "


# -- terminal ----------------------------------------------------------------------------------------------------------


def table(result: Result) -> str:
    """Of 120 columns where the words allow it."""
    found = rows(result)
    blocks = [
        [f"{subject(result)}: {counted(result)}", machine(result)],
        aligned(*_seconds(found)),
        aligned(*_memory_and_picture(found, result)),
        list(_predicted(found)),
        list(_engaged(found)),
        list(verdict(result)),
    ]
    return "\n\n".join("\n".join(_wrapped(line) for line in block) for block in blocks if block) + "\n"


def _seconds(found: Sequence[Row]) -> tuple[Sequence[str], list[list[str]]]:
    head = ("", "a picture", "x", "evaluation", "decode", "first image", "opening")
    return head, [[short(row.plan), *_seconds_cells(row)] for row in found]


def _seconds_cells(row: Row) -> list[str]:
    if row.plan.failure and row.seconds is None:
        return [f"FAILED: {row.plan.failure}"]
    times = [duration(row.seconds), ratio(row.faster), duration(row.evaluation), duration(row.decode)]
    return [*times, duration(row.first), duration(row.opened)]


def _memory_and_picture(found: Sequence[Row], result: Result) -> tuple[Sequence[str], list[list[str]]]:
    shown = [name for name in SHOWN if name in metrics(result)]
    head = ("", "peak", "of plain", *(f"{name} (worst)" for name in shown))
    measured = [row for row in found if row.seconds is not None]
    return head, [[short(row.plan), *_memory_cells(row, shown)] for row in measured]


def _memory_cells(row: Row, shown: Sequence[str]) -> list[str]:
    return [size(row.peak), ratio(row.of_plain), *(picture(row, name) for name in shown)]


def _predicted(found: Sequence[Row]) -> Iterator[str]:
    """Beside what was measured, the error in brackets."""
    measured = [row for row in found if row.seconds is not None]
    cells = [[short(row.plan), *prediction(row)] for row in measured]
    if measured:
        yield from aligned(("predicted", "a picture", "measured", "peak", "measured"), cells)


def prediction(row: Row) -> list[str]:
    return [
        with_error(row.predicted_seconds, row.seconds_error, duration),
        duration(row.seconds),
        with_error(row.predicted_peak, row.peak_error, size),
        size(row.peak),
    ]


def _engaged(found: Sequence[Row]) -> Iterator[str]:
    """Each plan as -o takes it, what took effect in it, and what is wrong with its pictures."""
    for row in found[1:]:
        plan = row.plan
        yield f"{plan.name}: -o {plan.written or plan.optimize or 'none'}"
        for status in plan.statuses:
            mark = "+" if status["engaged"] else "!"
            yield f"{INDENT}{mark} {status['name']:24s} {took_effect(status)}: {status['evidence']}"
        yield from (f"{INDENT}! {artifact}" for artifact in plan.artifacts)


def verdict(result: Result) -> Iterator[str]:
    yield result.verdict.word
    for condition in failed(result.verdict.conditions):
        yield f"{INDENT}! {condition['name']}: {value(condition['found'])}, wanted {value(condition['wanted'])}"
    for one in result.requirements:
        yield f"{INDENT}{'+' if one.met else '!'} {_required(one)}"


def _required(one: Requirement) -> str:
    return f"{one.written} for {one.plan}: {required(one)}, {'met' if one.met else 'NOT MET'}"


def short(plan: PlanResult) -> str:
    return plan.name if len(plan.name) <= NAME else f"{plan.name[: NAME - 3]}..."


def aligned(head: Sequence[str], cells: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as needed, the first to the left; a row of two cells is a name and what is said instead."""
    lines = [head, *cells]
    full = [line for line in lines if len(line) == len(head)]
    widths = [max(len(line[i]) for line in full) for i in range(len(head))]
    widths[0] = max(len(line[0]) for line in lines)
    return [
        "  ".join([f"{line[0]:{widths[0]}}", *map(_right, line[1:], widths[1:] if len(line) == len(head) else [0])])
        for line in lines
    ]


def _right(cell: str, width: int) -> str:
    return f"{cell:>{width}}"


def _wrapped(text: str) -> str:
    text = harmless(text).replace("\n", " ").rstrip()
    if len(text) <= WIDTH:
        return text
    indent = " " * (len(text) - len(text.lstrip()) + 4)
    lines = textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


# -- markdown ----------------------------------------------------------------------------------------------------------


def markdown(result: Result) -> str:
    """The page to commit: command, environment, plain beside planned, stages, picture, conditions, all plans."""
    found = rows(result)
    sections = {
        "Command": [f"    {_line(shlex.join(result.command))}", "", *_paragraph(_everything(result))],
        "Plain beside planned": _beside(found, result),
        "Seconds by stage": list(_stages(found)),
        "Prediction": _grid(("plan", "seconds (error)", "measured", "peak (error)", "measured"), map(_foreseen, found)),
        "Picture": list(_pictures(found, result)),
        "Memory and energy": _grid(_MEMORY, map(_bytes, found)),
        "Conditions": list(_conditions(result)),
        "Plans": [line for row in found for line in _plan(row)],
    }
    lines = [f"# {_text(subject(result))}: plain beside planned", ""]
    lines += _paragraph(f"{result.verdict.word}. {counted(result)}; {when(result)}.")
    for title, body in sections.items():
        lines += ["", f"## {title}", "", *body]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _everything(result: Result) -> str:
    return "; ".join(f"{name} {said}" for name, said in environment(result).items())


def _beside(found: Sequence[Row], result: Result) -> list[str]:
    shown = [name for name in SHOWN if name in metrics(result)]
    quality = [f"{name} (worst)" for name in shown] or ["picture"]
    head = (
        "plan",
        "a picture",
        "x",
        *quality,
        "peak",
        "of plain",
        "evaluation",
        "decode",
        "first image",
        "took effect",
    )
    return _grid(head, (_beside_cells(row, shown) for row in found))


def _beside_cells(row: Row, shown: Sequence[str]) -> list[str]:
    looks = [picture(row, name) for name in shown] or [NOTHING if row.is_plain else UNMEASURED]
    pace = [duration(row.seconds), ratio(row.faster)]
    memory = [size(row.peak), ratio(row.of_plain)]
    parts = [duration(row.evaluation), duration(row.decode), duration(row.first)]
    return [row.plan.name, *pace, *looks, *memory, *parts, _took(row.plan)]


def _took(plan: PlanResult) -> str:
    if plan.failure:
        return f"failed: {plan.failure}"
    engaged = sum(bool(status["engaged"]) for status in plan.statuses)
    return f"{engaged} of {len(plan.statuses)}" if plan.statuses else NOTHING


def _stages(found: Sequence[Row]) -> Iterator[str]:
    said = "Of one picture; an evaluation is one of the model. p99 only from 100 samples; spread: (p90 - p10) / median."
    cells = [line for row in found for line in percentiles(row)]
    yield from (*_paragraph(said), "", *_grid(PERCENTILES, cells)) if cells else [UNMEASURED]


def _foreseen(row: Row) -> list[str]:
    return [row.plan.name, *prediction(row)]


def _pictures(found: Sequence[Row], result: Result) -> Iterator[str]:
    names = metrics(result)
    if not names:
        yield UNMEASURED
        return
    yield from _paragraph("Against plain's picture of the same noise: the median, and the worst of them in brackets.")
    yield ""
    yield from _grid(("plan", *names), ([row.plan.name, *(picture(row, name) for name in names)] for row in found[1:]))
    for row in found:
        yield from (line for one in row.plan.artifacts for line in ("", f"{_text(row.plan.name)}: {_text(one)}"))


_MEMORY = ("plan", "tensors", "reserved", "process", "device", "energy", "utilisation")
_PEAKS = ("tensor_bytes", "reserved_bytes", "process_bytes", "device_bytes")


def _bytes(row: Row) -> list[str]:
    plan = row.plan
    energy = [round.energy_joules for round in plan.rounds if round.energy_joules is not None]
    busy = [round.utilisation for round in plan.rounds if round.utilisation is not None]
    joules = f"{sum(energy):.0f} J" if energy else UNMEASURED
    share = f"{sum(busy) / len(busy):.0%}" if busy else UNMEASURED
    return [plan.name, *(size(plan.peak(kind)) for kind in _PEAKS), joules, share]


def _conditions(result: Result) -> Iterator[str]:
    yield from _grid(
        ("condition", "found", "wanted", ""),
        (
            [str(one["name"]), value(one["found"]), value(one["wanted"]), "ok" if one["ok"] else "NOT MET"]
            for one in result.verdict.conditions
        ),
    )
    if result.requirements:
        yield from ("", *(f"- {_text(_required(one))}" for one in result.requirements))


def _plan(row: Row) -> Iterator[str]:
    plan = row.plan
    yield from (f"### {_text(plan.name)}", "", f"    -o {_line(plan.written or plan.optimize or 'none')}", "")
    notes = [f"Failed: {plan.failure}"] if plan.failure else []
    for status in plan.statuses:
        asked = "asked for" if status["requested"] else "planned"
        name = f"{status['name']} ({asked}, {status['fidelity'].lower()})"
        notes.append(f"{name}: {took_effect(status)}: {status['evidence']}")
    yield from (f"- {_text(note)}" for note in notes)
    yield from [""] if notes else []


def _grid(head: Sequence[str], cells: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *cells]
    return [f"| {' | '.join(_text(cell) for cell in line)} |" for line in lines]


def _text(text: str) -> str:
    """One line that markdown reads as it stands: no cell, no HTML and no link begins in it."""
    return re.sub(r"([\\`|<*\[\]]|^[>#])", r"\\\1", _line(text))


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", harmless(text)).strip()


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(_text(text), PAGE_WIDTH, break_long_words=False, break_on_hyphens=False)
