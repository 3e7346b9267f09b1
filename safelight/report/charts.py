"""Charts as inline SVG text: stacked bars, lines over time, a frontier. Plain functions; nothing is measured here.

Comes in: numbers and names. Goes out: one <svg> each, drawn for a width in CSS pixels, so that its text is never
scaled. Colours are CSS variables of the page with the light scheme's value behind them. Names are escaped here.
Every shape that stands for a number has a <title> that says it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

# light and dark. Each is 3:1 or more on its page (WCAG 1.4.11), and stays apart from the others to eyes that lack red,
# green or blue cones: tests/report/test_charts.py computes both
PLANS = (
    ("#646260", "#9f9992"),
    ("#206cb3", "#4bb5fe"),
    ("#b03100", "#fa9052"),
    ("#239465", "#55e0a9"),
    ("#752f87", "#bb7cc7"),
    ("#a98818", "#f6d862"),
)
STAGES = (
    ("#a83a12", "#f0764a"),
    ("#cc8128", "#ffc98a"),
    ("#5f2d1c", "#b8553a"),
    ("#8c7a66", "#d8c7b2"),
)
STAGE_COLOURS = {"denoise": 0, "decode": 1, "text": 2, "encode": 3, "upscale": 2, "preview": 3}
FONT_PX = 12
CHARACTER_PX = 6.9  # of the widest usual system font at 12 px, on average over words; names are cut by it
BAR_PX, ROW_PX = 22, 56
MARGIN_TOP, MARGIN_BOTTOM, MARGIN_RIGHT = 14, 46, 14
LABEL_PX = 15  # a line of labels


@dataclass(frozen=True, slots=True)
class Bar:
    """parts: seconds of each stage, in order. said: what stands at the right of the name."""

    name: str
    parts: Mapping[str, float]
    said: str


@dataclass(frozen=True, slots=True)
class Line:
    """points: (seconds, bytes) in order. predicted: the peak that was predicted, in bytes. index: of the plan."""

    name: str
    points: Sequence[Sequence[float]]
    predicted: float | None
    index: int


@dataclass(frozen=True, slots=True)
class Point:
    """peak: in bytes, None where it was not measured. said: all of it in words."""

    name: str
    seconds: float
    quality: float
    peak: float | None
    index: int
    said: str


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to pixels, linear. ticks: value and label."""

    low: float
    high: float
    start_px: float
    end_px: float
    ticks: tuple[tuple[float, str], ...]

    def at(self, value: float) -> float:
        return self.start_px + (value - self.low) / (self.high - self.low) * (self.end_px - self.start_px)


def plan_colour(index: int) -> str:
    """The first is plain's; after the last they begin again with the second."""
    return _colour("plan", PLANS, index if index < len(PLANS) else 1 + (index - 1) % (len(PLANS) - 1))


def stage_colour(name: str, position: int = 0) -> str:
    """position: among the stages of a chart, for a name that has no colour of its own."""
    return _colour("stage", STAGES, STAGE_COLOURS.get(name, position) % len(STAGES))


def _colour(kind: str, palette: Sequence[tuple[str, str]], index: int) -> str:
    return f"var(--{kind}-{index}, {palette[index][0]})"


def variables(scheme: int) -> str:
    """The palette as CSS declarations. scheme: 0 light, 1 dark."""
    palettes = {"plan": PLANS, "stage": STAGES}
    return " ".join(f"--{kind}-{i}: {pair[scheme]};" for kind, all_ in palettes.items() for i, pair in enumerate(all_))


# -- axes --------------------------------------------------------------------------------------------------------------


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round values that lie in low..high, 1, 2 or 5 times a power of ten apart."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    power = 10 ** math.floor(math.log10(span / most))
    step = next(power * by for by in (1, 2, 5, 10, 20) if span / (power * by) <= most - 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def seconds_axis(high: float, start_px: float, end_px: float) -> Axis:
    """From 0; the unit is told by `seconds_unit`."""
    scale = 1000.0 if high < 0.5 else 1.0
    found = ticks(0, high * scale, max(5, int((end_px - start_px) / 90)))
    return Axis(0, high, start_px, end_px, tuple((value / scale, f"{value:g}") for value in found))


def seconds_unit(high: float) -> str:
    return "milliseconds" if high < 0.5 else "seconds"


def bytes_axis(high: float, start_px: float, end_px: float) -> Axis:
    """From 0 to the tick above `high`."""
    unit, name = (2**30, "GiB") if high >= 2**30 else (2**20, "MiB")
    found = ticks(0, high / unit, 5)
    step = found[1] - found[0] if len(found) > 1 else 1.0
    top = math.ceil(high / unit / step - 1e-9) * step
    values = [i * step for i in range(round(top / step) + 1)]
    return Axis(0, top * unit, start_px, end_px, tuple((value * unit, f"{value:g} {name}") for value in values))


def value_axis(values: Sequence[float], start_px: float, end_px: float) -> Axis:
    """Around the values, with room at both ends; end_px is where the best of them is to lie."""
    low, high = min(values), max(values)
    room = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
    low, high = low - room, high + room
    return Axis(low, high, start_px, end_px, tuple((value, f"{value:g}") for value in ticks(low, high, 6)))


def _across(axis: Axis, top_px: float, bottom_px: float, title: str) -> Iterator[str]:
    """Upright grid lines with their values below, and the axis' title."""
    for value, label in axis.ticks:
        x = axis.at(value)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top_px:.1f}" y2="{bottom_px:.1f}"/>'
        # the first label would be cut off at the left edge
        inside = x >= text_px(label) / 2
        yield _text(x if inside else 0, bottom_px + 17, label, "middle" if inside else "start", "tick")
    yield _text(axis.start_px, bottom_px + 37, title, "start", "axis")


def _upward(axis: Axis, left_px: float, right_px: float) -> Iterator[str]:
    for value, label in axis.ticks:
        y = axis.at(value)
        yield f'<line class="grid" x1="{left_px:.1f}" x2="{right_px:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(left_px - 8, y + 4, label, "end", "tick")


# -- text --------------------------------------------------------------------------------------------------------------


def text_px(text: str) -> float:
    return len(text) * CHARACTER_PX


def cut(text: str, room_px: float) -> str:
    """What of a name fits, with an ellipsis where something was cut off."""
    most = max(1, int(room_px / CHARACTER_PX))
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"


def _text(x: float, y: float, text: str, anchor: str, cls: str) -> str:
    return f'<text class="{cls}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(key: str, width_px: int, height_px: float, title: str, summary: str, body: Iterable[str]) -> str:
    """key: makes the ids of the title and the summary unique on the page, with the width."""
    ids = f"{key}-{width_px}"
    return (
        f'<svg class="chart w{width_px}" role="img" aria-labelledby="{ids}-title {ids}-summary" width="{width_px}" '
        f'height="{height_px:.0f}" viewBox="0 0 {width_px} {height_px:.0f}" font-size="{FONT_PX}">'
        f'<title id="{ids}-title">{escape(title)}</title><desc id="{ids}-summary">{escape(summary)}</desc>'
        f"{''.join(body)}</svg>"
    )


# -- stacked bars ------------------------------------------------------------------------------------------------------


def stage_bars(bars: Sequence[Bar], width_px: int, *, key: str = "stages") -> str:
    """A bar for each plan, its name above it; seconds go right from 0."""
    longest = max((sum(bar.parts.values()) for bar in bars), default=0.0) or 1.0
    axis = seconds_axis(longest, 0.5, width_px - MARGIN_RIGHT)
    bottom = len(bars) * ROW_PX + 4
    body = [*_across(axis, 0, bottom, seconds_unit(longest)), *_rows(bars, axis)]
    summary = "; ".join(f"{bar.name}: {bar.said}" for bar in bars)
    return _svg(key, width_px, bottom + MARGIN_BOTTOM, "Seconds of a picture by stage", summary, body)


def _rows(bars: Sequence[Bar], axis: Axis) -> Iterator[str]:
    stages = list(dict.fromkeys(stage for bar in bars for stage in bar.parts))
    for i, bar in enumerate(bars):
        top = i * ROW_PX
        room = axis.end_px - axis.start_px - text_px(bar.said) - 12
        yield f"<g><title>{escape(bar.name)}</title>{_text(0, top + 19, cut(bar.name, room), 'start', 'name')}</g>"
        yield _text(axis.end_px, top + 19, bar.said, "end", "said")
        yield from _parts(bar, axis, top + 27, stages)


def _parts(bar: Bar, axis: Axis, top_px: float, stages: Sequence[str]) -> Iterator[str]:
    begun = 0.0
    for stage, spent in bar.parts.items():
        left, right = axis.at(begun), axis.at(begun + spent)
        begun += spent
        wide = max(right - left - 1.5, 0.5)  # a gap between neighbours: not told apart by colour alone
        colour = stage_colour(stage, stages.index(stage))
        yield (
            f'<rect x="{left:.1f}" y="{top_px:.1f}" width="{wide:.1f}" height="{BAR_PX}" rx="2" fill="{colour}">'
            f"<title>{escape(bar.name)}: {escape(stage)} {spent:.3g} s</title></rect>"
        )


# -- lines over time ---------------------------------------------------------------------------------------------------


def thinned(points: Sequence[Sequence[float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points, the highest of each stretch kept: a peak is never lost."""
    stretch = math.ceil(len(points) / most) or 1
    parts = (points[i : i + stretch] for i in range(0, len(points), stretch))
    return [(float(top[0]), float(top[1])) for top in (max(part, key=lambda point: point[1]) for part in parts)]


def memory_timeline(lines: Sequence[Line], width_px: int, *, height_px: int = 260, key: str = "memory") -> str:
    """A line for each plan; the peak that was predicted for it is a dashed line of the same colour."""
    drawn = [line for line in lines if line.points]
    points = [point for line in drawn for point in line.points]
    highest = max([*(point[1] for point in points), *(line.predicted or 0 for line in drawn)], default=0) or 1
    left, bottom = 68, height_px - MARGIN_BOTTOM
    upward = bytes_axis(highest, bottom, MARGIN_TOP)
    longest = max((point[0] for point in points), default=1) or 1
    across = seconds_axis(longest, left, width_px - MARGIN_RIGHT)
    body = [*_across(across, bottom, bottom + 4, f"{seconds_unit(longest)} since the process began")]
    body += _upward(upward, left, width_px - MARGIN_RIGHT)
    for line in drawn:
        body += _predicted(line, across, upward)
    for line in drawn:
        body += _line(line, across, upward)
    summary = "; ".join(f"{line.name}: {_peaks(line)}" for line in drawn)
    return _svg(key, width_px, height_px, "Memory over time", summary, body)


def _predicted(line: Line, across: Axis, upward: Axis) -> Iterator[str]:
    if line.predicted is not None:
        y = upward.at(line.predicted)
        yield (
            f'<line class="predicted" x1="{across.start_px:.1f}" x2="{across.end_px:.1f}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="{plan_colour(line.index)}"><title>{escape(line.name)}: {_gib(line.predicted)} predicted</title>'
            f"</line>"
        )


def _line(line: Line, across: Axis, upward: Axis) -> Iterator[str]:
    points = thinned(line.points, int(across.end_px - across.start_px))
    path = "L".join(f"{across.at(x):.1f} {upward.at(y):.1f}" for x, y in points)
    colour, said = plan_colour(line.index), escape(f"{line.name}: {_peaks(line)}")
    yield f'<path class="line" d="M{path}" stroke="{colour}"><title>{said}</title></path>'
    x, y = max(points, key=lambda point: point[1])
    at = f'cx="{across.at(x):.1f}" cy="{upward.at(y):.1f}"'
    yield f'<circle {at} r="3.5" fill="{colour}"><title>{said}</title></circle>'


def _peaks(line: Line) -> str:
    highest = f"highest {_gib(max(point[1] for point in line.points))}"
    return highest if line.predicted is None else f"{highest}, {_gib(line.predicted)} predicted"


def _gib(nbytes: float) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.0f} MiB"


# -- frontier ----------------------------------------------------------------------------------------------------------


def undominated(points: Sequence[Point], better: str) -> list[Point]:
    """Those that no other beats in seconds without losing in quality, fastest first. better: "higher" or "lower"."""
    sign = 1 if better == "higher" else -1
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.seconds, -sign * point.quality)):
        if not found or sign * point.quality > sign * found[-1].quality:
            found.append(point)
    return found


def frontier(
    points: Sequence[Point], width_px: int, *, metric: str, better: str, height_px: int = 320, key: str = "frontier"
) -> str:
    """Seconds against quality, the better quality higher up; the area of a circle is its peak bytes."""
    left, bottom = 58, height_px - MARGIN_BOTTOM
    ends = (bottom - 16, 40) if better == "higher" else (40, bottom - 16)
    upward = value_axis([point.quality for point in points] or [0.0], *ends)
    longest = max((point.seconds for point in points), default=1) * 1.08 or 1
    across = seconds_axis(longest, left, width_px - MARGIN_RIGHT)
    body = [*_across(across, 30, bottom, f"{seconds_unit(longest)} a picture")]
    body += _upward(upward, left, width_px - MARGIN_RIGHT)
    body += [_text(0, 14, f"{metric}, {better} is better: the best is top left", "start", "axis")]
    placed = [(across.at(point.seconds), upward.at(point.quality)) for point in undominated(points, better)]
    if len(placed) > 1:
        steps = "".join(f"V{y:.1f}H{x2:.1f}" for (_, y), (x2, _) in pairwise(placed))
        body.append(f'<path class="frontier" d="M{placed[0][0]:.1f} {placed[0][1]:.1f}{steps}V{placed[-1][1]:.1f}"/>')
    body += _circles(points, across, upward)
    body += _names(points, across, upward)
    summary = "; ".join(point.said for point in points)
    return _svg(key, width_px, height_px, f"Seconds against {metric}", summary, body)


def _radius(points: Sequence[Point]) -> Callable[[Point], float]:
    """Area by bytes, 18 px for the largest; a small ring where bytes were not measured."""
    largest = max((point.peak or 0 for point in points), default=0) or 1
    return lambda point: 5.0 if point.peak is None else max(3.0, 18 * math.sqrt(point.peak / largest))


def _circles(points: Sequence[Point], across: Axis, upward: Axis) -> Iterator[str]:
    radius = _radius(points)
    for point in sorted(points, key=radius, reverse=True):
        style = 'fill="none" stroke-dasharray="3 2"' if point.peak is None else f'fill="{plan_colour(point.index)}"'
        yield (
            f'<circle class="bubble" cx="{across.at(point.seconds):.1f}" cy="{upward.at(point.quality):.1f}" '
            f'r="{radius(point):.1f}" stroke="{plan_colour(point.index)}" {style}>'
            f"<title>{escape(point.said)}</title></circle>"
        )


def _names(points: Sequence[Point], across: Axis, upward: Axis) -> Iterator[str]:
    """Beside the circles, moved up or down until none covers another."""
    radius, taken = _radius(points), list[tuple[float, float, float]]()
    for point in sorted(points, key=lambda point: upward.at(point.quality)):
        x, y = across.at(point.seconds), upward.at(point.quality) + 4
        away = radius(point) + 5
        right = x + away + text_px(point.name) <= across.end_px
        room = across.end_px - x - away if right else x - away - across.start_px
        name = cut(point.name, room)
        start = x + away if right else x - away - text_px(name)
        y = _free(start, start + text_px(name), y, taken)
        taken.append((start, start + text_px(name), y))
        yield _text(x + away if right else x - away, y, name, "start" if right else "end", "name")


def _free(left: float, right: float, y: float, taken: Sequence[tuple[float, float, float]]) -> float:
    """The nearest height at which nothing of `taken` (left, right, y) lies in the way."""
    in_way = [other for a, b, other in taken if a < right and left < b]
    tries = (y + sign * i * LABEL_PX / 2 for i in range(2 * len(taken) + 2) for sign in (1, -1))
    return next((to for to in tries if all(abs(to - other) >= LABEL_PX for other in in_way)), y)
