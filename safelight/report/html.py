"""A benchmark's result as one HTML file: it needs no network and no other file, and works from file://.

Comes in: a Result and the folder of its pictures. Goes out: the page's text. Every text of the result goes through
`escape`, its JSON through `embedded_json`; the page's policy allows no script but its own, by its hash.
"""

import base64
import hashlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from safelight.config import VERSION
from safelight.measure.results import Result
from safelight.report import charts
from safelight.report.bench_figures import (
    SHOWN,
    UNMEASURED,
    Row,
    amount,
    better,
    counted,
    duration,
    environment,
    failed,
    machine,
    metrics,
    percent,
    picture,
    plural,
    required,
    rows,
    size,
    subject,
    value,
    when,
    with_error,
)
from safelight.report.bench_pictures import album
from safelight.report.bench_plots import breakpoints, frontier, memory, pictures, time
from safelight.report.markup import details, dot, embedded_json, facts, table, two


def page(result: Result, folder: Path | None) -> str:
    """folder: what the pictures' paths are relative to; None shows no pictures."""
    template = resources.files("safelight.report").joinpath("page.html").read_text("utf-8")
    found = rows(result)
    return Template(template).substitute(
        title=escape(f"{subject(result)}: plain beside planned"),
        script_hash=_script_hash(template),
        light=charts.variables(0),
        dark=charts.variables(1),
        breakpoints=breakpoints(),
        header=_header(result, found),
        main="".join(_sections(result, found, folder)),
        maker=f"safelight {VERSION}",
    )


def _script_hash(template: str) -> str:
    script = template.rpartition("<script>")[2].partition("</script>")[0]
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


# -- head --------------------------------------------------------------------------------------------------------------


def _header(result: Result, found: Sequence[Row]) -> str:
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title in TITLES.items())
    return (
        f'<p class="mark"><span class="lamp" aria-hidden="true"></span>safelight bench</p>'
        f"<h1>{escape(subject(result))}</h1>"
        f'<p class="lead">{escape(counted(result))}. {escape(machine(result))}. {escape(when(result))}.</p>'
        f"{_pill(result)}{_headline(found)}"
        f'<nav aria-label="On this page"><ul>{links}</ul></nav>'
    )


def _pill(result: Result) -> str:
    verdict = result.verdict
    lacking = [
        *(one["name"] for one in failed(verdict.conditions)),
        *(r.written for r in result.requirements if not r.met),
    ]
    holds = f"all {plural(len(verdict.conditions), 'condition')} hold" if verdict.conditions else "no condition was set"
    said = f"not met: {', '.join(map(str, lacking))}" if lacking else holds
    tone = "bad" if lacking or not verdict.valid else "good"
    return f'<a class="pill {tone}" href="#verdict"><b>{verdict.word}</b> <span>{escape(said)}</span></a>'


def _headline(found: Sequence[Row]) -> str:
    """The fastest plan that ran, in four figures."""
    timed = [row for row in found[1:] if row.seconds is not None and row.plan.failure is None]
    if not timed:
        return '<p class="lead bad">No plan ran to its end.</p>'
    plain, best = found[0], min(timed, key=lambda row: row.seconds or 0)
    metric = next(
        (name for name in (*SHOWN[::-1], *(best.plan.quality or {})) if name in (best.plan.quality or {})), None
    )
    looks = (best.plan.quality or {})[metric]["median"] if metric else None
    tiles = (
        (
            f"Speed, {best.plan.name}",
            _times(best.faster),
            f"{duration(plain.seconds)} to {duration(best.seconds)} a picture",
        ),
        ("Memory, of plain's", _share(best.of_plain), f"{size(plain.peak)} to {size(best.peak)} at the peak"),
        (f"Picture, {metric.upper()}" if metric else "Picture", amount(metric or "", looks), _worst(best, metric)),
        ("Error of the prediction", _error(best.seconds_error), f"in seconds; in bytes {_error(best.peak_error)}"),
    )
    return f'<dl class="figures">{"".join(_tile(*tile) for tile in tiles)}</dl>'


def _tile(name: str, large: str, said: str) -> str:
    none = " none" if large == UNMEASURED else ""
    return (
        f'<div><dt>{escape(name)}</dt><dd class="large{none}">{escape(large)}</dd>'
        f'<dd class="soft small">{escape(said)}</dd></div>'
    )


def _times(faster: float | None) -> str:
    return UNMEASURED if faster is None else f"{faster:.2f} x"


def _share(of_plain: float | None) -> str:
    return UNMEASURED if of_plain is None else f"{of_plain:.0%}".replace("%", " %")


def _error(off: float | None) -> str:
    return UNMEASURED if off is None else percent(off)


def _worst(row: Row, metric: str | None) -> str:
    if metric is None:
        return "no metric was computed"
    worst = (row.plan.quality or {})[metric]["worst"]
    return f"worst {amount(metric, worst)}; {better(metric)} is better"


# -- sections ----------------------------------------------------------------------------------------------------------

TITLES = {
    "plans": "Plain and planned",
    "time": "Time",
    "memory": "Memory",
    "frontier": "Frontier",
    "pictures": "Pictures",
    "engaged": "What took effect",
    "verdict": "Verdict",
    "environment": "Environment",
    "raw": "Every number",
}


def _sections(result: Result, found: Sequence[Row], folder: Path | None) -> Iterator[str]:
    bodies: Mapping[str, Callable[[], str]] = {
        "plans": lambda: _plans(result, found),
        "time": lambda: time(found),
        "memory": lambda: memory(found),
        "frontier": lambda: frontier(result, found),
        "pictures": lambda: pictures(result, album(result, folder)),
        "engaged": lambda: f'<div class="stack">{"".join(map(_engaged, found[1:]))}</div>',
        "verdict": lambda: _verdict(result),
        "environment": lambda: _environment(result),
        "raw": lambda: _raw(result),
    }
    for key, title in TITLES.items():
        head = f'<h2 id="{key}-title">{title}</h2>'
        yield f'<section id="{key}" aria-labelledby="{key}-title">{head}{bodies[key]()}</section>\n'


def _plans(result: Result, found: Sequence[Row]) -> str:
    shown = [name for name in SHOWN if name in metrics(result)] or ["picture"]
    head = ("Plan", "A picture", "One evaluation", "Decode", "First image", "Peak memory", *map(_named, shown))
    lines = "".join(_plan_row(row, head, shown) for row in found)
    titles = "".join(f'<th scope="col" role="columnheader">{escape(name)}</th>' for name in head)
    return (
        '<p class="soft">Medians. Plain is the model as it comes; all others draw the same pictures from the same '
        "noise. Small: beside plain, and what was predicted before anything ran.</p>"
        '<div class="scroll" role="region" tabindex="0" aria-label="Plans beside plain">'
        f'<table class="plans" role="table"><thead role="rowgroup"><tr role="row">{titles}</tr></thead>'
        f'<tbody role="rowgroup">{lines}</tbody></table></div>'
    )


def _plan_row(row: Row, head: Sequence[str], shown: Sequence[str]) -> str:
    plan = row.plan
    written = plan.written or plan.optimize or ("" if row.is_plain else "none")
    code = f"<code>{escape(written).replace(',', ',<wbr>')}</code>" if written and not row.is_plain else ""
    name = f'<th scope="row" role="rowheader">{dot(charts.plan_colour(row.index))}{escape(plan.name)}{code}</th>'
    first = ' class="first"' if row.is_plain else ""
    if plan.failure and row.seconds is None:
        said = f'<td role="cell" class="said bad" colspan="{len(head) - 1}">Failed: {escape(plan.failure)}</td>'
        return f'<tr role="row"{first}>{name}{said}</tr>'
    cells = (
        two(duration(row.seconds), _beside(row, row.faster, _times), _seconds_foreseen(row)),
        two(duration(row.evaluation)),
        two(duration(row.decode)),
        two(duration(row.first), "" if row.opened is None else f"opened in {duration(row.opened)}"),
        two(size(row.peak), _beside(row, row.of_plain, _of_plain), _peak_foreseen(row)),
        *(two(*_looks(row, metric)) for metric in shown),
    )
    body = "".join(
        f'<td role="cell" data-label="{escape(title)}">{cell}</td>' for title, cell in zip(head[1:], cells, strict=True)
    )
    return f'<tr role="row"{first}>{name}{body}</tr>'


def _beside(row: Row, figure: float | None, how: Callable[[float], str]) -> str:
    """Nothing for plain, which stands beside itself."""
    return "" if row.is_plain or figure is None else how(figure)


def _of_plain(share: float) -> str:
    return f"{_share(share)} of plain"


def _seconds_foreseen(row: Row) -> str:
    return (
        f"predicted {with_error(row.predicted_seconds, row.seconds_error, duration)}" if row.predicted_seconds else ""
    )


def _peak_foreseen(row: Row) -> str:
    return f"predicted {with_error(row.predicted_peak, row.peak_error, size)}" if row.predicted_peak else ""


def _looks(row: Row, metric: str) -> tuple[str, str]:
    if row.is_plain:
        return "reference", ""
    median, _, worst = picture(row, metric).partition(" (")
    return median, worst.removesuffix(")")


def _named(metric: str) -> str:
    return "Picture" if metric == "picture" else metric.upper()


# -- words -------------------------------------------------------------------------------------------------------------


def _engaged(row: Row) -> str:
    """One plan: as -o takes it, each optimizer with its evidence, what was left and why."""
    plan = row.plan
    written = plan.written or plan.optimize or "none"
    parts = [
        f"<h3>{dot(charts.plan_colour(row.index))}{escape(plan.name)}</h3><pre><code>-o {escape(written)}</code></pre>"
    ]
    if plan.failure:
        parts.append(f'<p class="bad">Failed: {escape(plan.failure)}</p>')
    parts += [f'<p class="bad">In the pictures: {escape(artifact)}</p>' for artifact in plan.artifacts]
    head = ("Optimizer", "Value", "Picture", "Came by", "Took effect", "Evidence")
    parts.append(
        table(f"Optimizers of {plan.name}", head, map(_status, plan.statuses), words=True) if plan.statuses else ""
    )
    if plan.left:
        parts.append(details(f"{plural(len(plan.left), 'optimizer')} left out, and why", facts(plan.left)))
    return f'<div class="card">{"".join(parts)}</div>'


def _status(status: Mapping[str, Any]) -> list[str]:
    came = "asked for" if status["requested"] else "planned"
    effect = "yes" if status["engaged"] else "NO"
    return [status["name"], str(status["value"]), status["fidelity"].lower(), came, effect, status["evidence"]]


def _verdict(result: Result) -> str:
    valid = result.verdict.valid
    said = "Every condition holds." if valid else "Not every condition holds: read the numbers with that in mind."
    lines = [_condition(one) for one in result.verdict.conditions]
    lines += [
        [f"{one.written}, asked of {one.plan}", "yes" if one.met else "NO", required(one), one.written]
        for one in result.requirements
    ]
    tone = "good" if valid else "bad"
    found = table("Conditions", ("Condition", "Holds", "Found", "Wanted"), lines, words=True) if lines else ""
    return f'<p><strong class="{tone}">{result.verdict.word}.</strong> {said}</p>{found}'


def _condition(one: Mapping[str, Any]) -> list[str]:
    return [str(one["name"]), "yes" if one["ok"] else "NO", value(one["found"]), value(one["wanted"])]


def _environment(result: Result) -> str:
    machine = facts(environment(result))
    drawn = facts({name: str(found) for name, found in result.request.items() if found is not None})
    return (
        f"<h3>Command</h3><pre><code>{escape(shlex.join(result.command))}</code></pre>"
        f"<h3>Machine and versions</h3>{machine}{details('The request, as it was settled', drawn)}"
    )


def _raw(result: Result) -> str:
    """Shown as it stands: a script element can be displayed, and what is no script is never run."""
    text = result.to_json()
    summary = f"The result as JSON, {len(text.encode()) / 1024:.0f} KiB: every sample of every run"
    button = '<button id="save" type="button" hidden>Save as a file</button>'
    data = f'<script type="application/json" id="result" class="raw">{embedded_json(text)}</script>'
    return details(summary, button + data)
