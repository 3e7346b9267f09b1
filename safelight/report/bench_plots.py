"""The sections of a benchmark's page that show: bars, lines, frontier, pairs of pictures. Each returns markup."""

from collections.abc import Callable, Sequence
from html import escape

from safelight.measure.results import Result
from safelight.report import charts
from safelight.report.bench_figures import (
    PERCENTILES,
    UNMEASURED,
    Row,
    amount,
    better,
    duration,
    known,
    metrics,
    percentiles,
    perfect,
    picture,
    plotted,
    rows,
    size,
    stages_of,
)
from safelight.report.bench_pictures import Album, Embedded, Pair
from safelight.report.markup import details, legend, table

WIDTHS = (290, 440, 640, 820, 1020)  # in CSS pixels, that each chart is drawn for
SMALL_PX = 256  # pictures up to this size are shown larger with their pixels as they are


def breakpoints() -> str:
    """CSS: of a chart's drawings the widest that has room, else the narrowest."""
    starts, ends = (0, *WIDTHS[1:]), (*WIDTHS[1:], 100_000)
    return "\n".join(
        f"@container ({start}px <= width < {end}px) {{ .chart.w{width} {{ display: block; }} }}"
        for width, start, end in zip(WIDTHS, starts, ends, strict=True)
    )


def _drawn(draw: Callable[[int], str], below: str) -> str:
    return f'<figure class="card"><div class="charts">{"".join(map(draw, WIDTHS))}</div>{below}</figure>'


def _nothing(said: str) -> str:
    return f'<p class="soft">{escape(said)}</p>'


# -- time --------------------------------------------------------------------------------------------------------------


def time(found: Sequence[Row]) -> str:
    timed = [(row, stages_of(row.plan)) for row in found if row.seconds is not None]
    if not timed:
        return _nothing(f"Seconds: {UNMEASURED}.")
    bars = [charts.Bar(row.plan.name, stages, _pace(row)) for row, stages in timed]
    stages = list(dict.fromkeys(name for _, stages in timed for name in stages))
    below = legend((name, charts.stage_colour(name, i)) for i, name in enumerate(stages))
    cells = table("Percentiles by stage", PERCENTILES, [line for row, _ in timed for line in percentiles(row)])
    note = _nothing("Of one picture. p99 only from 100 samples; spread is (p90 - p10) / median.")
    chart = _drawn(lambda width: charts.stage_bars(bars, width), below)
    return (
        f"{_nothing('Median seconds of one picture, by stage.')}{chart}{details('Percentiles by stage', note + cells)}"
    )


def _pace(row: Row) -> str:
    times = "" if row.is_plain or row.faster is None else f", {row.faster:.2f} x"
    return f"{duration(row.seconds)}{times}"


# -- memory ------------------------------------------------------------------------------------------------------------


def memory(found: Sequence[Row]) -> str:
    lines = [
        charts.Line(row.plan.name, row.plan.rounds[0].timeline, row.predicted_peak, row.index)
        for row in found
        if row.plan.rounds and row.plan.rounds[0].timeline
    ]
    if not lines:
        return _nothing(f"Memory over time: {UNMEASURED}.")
    foreseen = any(line.predicted is not None for line in lines)
    alone = "" if all(row.tensors_measured for row in found if row.peak) else ", of tensors alone"
    item = f'<li><span class="dash" aria-hidden="true"></span>the peak that was predicted{alone}</li>'
    below = legend(((line.name, charts.plan_colour(line.index)) for line in lines), item if foreseen else "")
    said = "Each plan's first process from its start: loading, opening, pictures. A dot marks the highest moment."
    peaks = details("Peaks as each meter saw them", _peaks(found))
    return f"{_nothing(said)}{_drawn(lambda width: charts.memory_timeline(lines, width), below)}{peaks}"


def _peaks(found: Sequence[Row]) -> str:
    head = ("Plan", "Tensors", "Reserved", "Process", "Device", "Predicted, tensors")
    kinds = ("tensor_bytes", "reserved_bytes", "process_bytes", "device_bytes")
    cells = ([row.plan.name, *(size(row.plan.peak(kind)) for kind in kinds), _foreseen(row)] for row in found)
    return table("Peaks as each meter saw them", head, cells)


def _foreseen(row: Row) -> str:
    return "not predicted" if row.predicted_peak is None else size(row.predicted_peak)


# -- frontier ----------------------------------------------------------------------------------------------------------


def frontier(result: Result, found: Sequence[Row]) -> str:
    metric = plotted(result)
    if metric is None:
        return _nothing(f"The pictures were {UNMEASURED}: there is nothing to weigh seconds against.")
    points = [point for row in found if (point := _point(row, metric))]
    lacking = [row.plan.name for row in found if row.plan.name not in {point.name for point in points}]
    if not points:
        return _nothing(f"No plan has both seconds and {metric}.")
    below = legend((point.name, charts.plan_colour(point.index)) for point in points)
    note = f" Not shown: {', '.join(lacking)}." if lacking else ""
    said = (
        f"Seconds against the median {metric.upper()}; the area is the peak in bytes, a ring where it is {UNMEASURED}."
    )

    def draw(width: int) -> str:
        return charts.frontier(points, width, metric=metric.upper(), better=better(metric))

    return f"{_nothing(said + note)}{_drawn(draw, below)}"


def _point(row: Row, metric: str) -> charts.Point | None:
    """Plain is where no loss is; None for a plan that lacks one of the figures, and for an infinite one."""
    measured = (row.plan.quality or {}).get(metric)
    quality = perfect(metric) if row.is_plain else measured["median"] if measured else None
    if row.seconds is None or quality is None or abs(quality) == float("inf"):
        return None
    said = (
        f"{row.plan.name}: {duration(row.seconds)} a picture, {metric} {amount(metric, quality)}, peak {size(row.peak)}"
    )
    return charts.Point(row.plan.name, row.seconds, quality, row.peak, row.index, said)


# -- pictures ----------------------------------------------------------------------------------------------------------


def pictures(result: Result, found: Album) -> str:
    missing = "".join(f"<li>{escape(said)}</li>" for said in found.missing)
    lacking = f'<ul class="soft small">{missing}</ul>' if missing else ""
    said = (
        f"{found.chosen} Left of the edge is plain, right of it the plan: drag it, or use arrow keys. The difference "
        f"is that of the channel that differs most, times {found.factor} in all pairs; black is equal. Figures and "
        "differences are of the pictures as they were made; shown here they are at most 768 pixels wide."
    )
    pairs = "".join(map(_pair, found.pairs))
    shown = f'{_nothing(said)}<div class="pairs">{pairs}</div>' if pairs else ""
    return f"{shown}{lacking}{_metrics(result)}"


def _pair(pair: Pair) -> str:
    name, seed = escape(pair.plan.name), f"seed {pair.seed}"
    said = ", ".join(f"{metric.upper()} {amount(metric, value)}" for metric, value in pair.figures.items())
    figures = (
        f"{said}; largest difference {pair.largest} of 255" if said else f"largest difference {pair.largest} of 255"
    )
    slider = (
        f'<div class="ab">{_image(pair.plain, f"plain, {seed}: {pair.prompt}")}'
        f"{_image(pair.planned, f'{pair.plan.name}, {seed}: {pair.prompt}')}"
        f'<span class="edge" aria-hidden="true"></span><span class="tag left" aria-hidden="true">plain</span>'
        f'<span class="tag right" aria-hidden="true">{name}</span>'
        f'<input type="range" min="0" max="100" value="50" aria-label="Edge between plain and {name}, {seed}"></div>'
    )
    difference = (
        f'<div class="difference">{_image(pair.difference, f"difference of {pair.plan.name} to plain, {seed}")}'
        f'<span class="tag left" aria-hidden="true">difference</span></div>'
    )
    return (
        f'<figure class="card pair"><div class="sides">{slider}{difference}</div><figcaption>'
        f"<strong>{name}</strong>, {seed}. {escape(figures)}"
        f'<span class="prompt">{escape(pair.prompt)}</span></figcaption></figure>'
    )


def _image(picture: Embedded, alt: str) -> str:
    cls = ' class="small"' if max(picture.width, picture.height) <= SMALL_PX else ""
    return f'<img{cls} src="{picture.uri}" width="{picture.width}" height="{picture.height}" alt="{escape(alt)}">'


def _metrics(result: Result) -> str:
    """All of them, median and worst of each plan."""
    names, planned = metrics(result), [row for row in rows(result)[1:] if row.plan.quality]
    if not names:
        return _nothing(f"The pictures' quality was {UNMEASURED}.")
    head = ("Metric", *(row.plan.name for row in planned))
    cells = ([_meaning(name), *(_looks(row, name) for row in planned)] for name in names)
    return f'<div class="below">{table("The pictures by every metric", head, cells, words=True)}</div>'


def _meaning(metric: str) -> str:
    found = known(metric)
    summary = f"; {found.summary}" if found else ""
    return f"{metric.upper()}\n{better(metric)} is better{summary}"


def _looks(row: Row, metric: str) -> str:
    median, _, worst = picture(row, metric).partition(" (")
    return f"{median}\n{worst.removesuffix(')')}" if worst else median
