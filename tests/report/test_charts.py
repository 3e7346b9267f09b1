"""Charts: well-formed, labelled, inside their frame, and in colours that everybody can tell apart."""

import itertools
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.report import charts
from safelight.report.charts import Bar, Line, Point

PAGES = ("#ffffff", "#1b1816")  # what charts stand on: --card of page.html, light and dark
MIB = 2**20
BARS = (
    Bar("plain", {"text": 0.02, "denoise": 0.26, "decode": 0.04}, "0.32 s"),
    Bar("a <b> & 'c'", {"denoise": 0.1}, "0.1 s"),
)
LINES = (
    Line("plain", [(0, 0), (1, 300 * MIB), (2, 500 * MIB), (3, 200 * MIB)], 450 * MIB, 0),
    Line("auto", [(0, 0), (2, 320 * MIB)], None, 1),
)
POINTS = (
    Point("plain", 0.32, 0.0, 500 * MIB, 0, "plain: all of it"),
    Point("auto", 0.14, 0.011, 560 * MIB, 1, "auto: faster"),
    Point("worse", 0.40, 0.03, None, 2, "worse: nothing is known of its bytes"),
)
DRAWN = {
    "stages": lambda width: charts.stage_bars(BARS, width),
    "memory": lambda width: charts.memory_timeline(LINES, width),
    "frontier": lambda width: charts.frontier(POINTS, width, metric="LPIPS", better="lower"),
}


def elements(svg: str, tag: str):
    return [one for one in ElementTree.fromstring(svg).iter() if one.tag == tag]


@pytest.fixture(params=DRAWN.values(), ids=DRAWN)
def draw(request):
    return request.param


# -- every chart -------------------------------------------------------------------------------------------------------


def test_a_chart_says_its_numbers_to_who_cannot_see_it(draw):
    root = ElementTree.fromstring(draw(640))
    named = root.get("aria-labelledby").split()
    title, summary = (next(one for one in root.iter() if one.get("id") == name) for name in named)
    assert root.get("role") == "img"
    assert title.text
    assert "plain" in summary.text


@pytest.mark.parametrize("width", [290, 1020])
def test_no_shape_leaves_the_frame(draw, width):
    root = ElementTree.fromstring(draw(width))
    height = float(root.get("height"))
    for one in root.iter():
        across = [float(one.get(name)) for name in ("x", "x1", "x2", "cx") if one.get(name)]
        upward = [float(one.get(name)) for name in ("y", "y1", "y2", "cy") if one.get(name)]
        assert all(0 <= value <= width for value in across), one.attrib
        assert all(0 <= value <= height for value in upward), one.attrib


def test_the_same_chart_in_two_widths_has_ids_of_its_own(draw):
    ids = [one.get("id") for width in (290, 640) for one in ElementTree.fromstring(draw(width)).iter() if one.get("id")]
    assert len(ids) == len(set(ids)) == 4


# -- bars --------------------------------------------------------------------------------------------------------------


def test_bars_are_as_long_as_their_seconds():
    widths = [float(one.get("width")) for one in elements(charts.stage_bars(BARS, 1000), "rect")]
    assert widths[1] / widths[2] == pytest.approx(0.26 / 0.04, rel=0.05)


def test_a_name_is_escaped_and_a_long_one_is_cut():
    assert "a &lt;b&gt; &amp; &#x27;c&#x27;" in charts.stage_bars(BARS, 640)
    cut = charts.stage_bars([Bar("long " * 40, {"denoise": 1.0}, "1 s")], 290)
    assert "\u2026" in cut
    assert "<title>" + "long " * 40 in cut


def test_a_stage_has_its_colour_wherever_it_stands():
    assert charts.stage_colour("denoise", 0) == charts.stage_colour("denoise", 3)
    assert len({charts.stage_colour(name) for name in ("text", "denoise", "decode", "preview")}) == 4


# -- lines -------------------------------------------------------------------------------------------------------------


def test_a_prediction_is_a_dashed_line_and_only_where_there_is_one():
    dashed = [one for one in elements(charts.memory_timeline(LINES, 640), "line") if one.get("class") == "predicted"]
    assert len(dashed) == 1
    assert "450 MiB predicted" in dashed[0].find("title").text


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=3000), st.integers(2, 500))
def test_thinning_keeps_the_peak_and_the_order(sizes, most):
    points = charts.thinned(list(enumerate(sizes)), most)
    assert len(points) <= most
    assert max(size for _, size in points) == max(sizes)
    assert points == sorted(points)


# -- frontier ----------------------------------------------------------------------------------------------------------


def test_the_better_quality_is_higher_whatever_better_means():
    for better in ("higher", "lower"):
        svg = charts.frontier(POINTS, 640, metric="X", better=better)
        heights = {one.find("title").text: float(one.get("cy")) for one in elements(svg, "circle")}
        assert (heights["plain: all of it"] < heights["auto: faster"]) == (better == "lower")


def test_the_frontier_leaves_out_what_is_slower_and_worse():
    assert [point.name for point in charts.undominated(POINTS, "lower")] == ["auto", "plain"]
    assert [point.name for point in charts.undominated(POINTS, "higher")] == ["auto", "worse"]


def test_bytes_that_were_not_measured_are_a_ring_and_not_a_point():
    rings = [one for one in elements(DRAWN["frontier"](640), "circle") if one.get("fill") == "none"]
    assert [one.find("title").text for one in rings] == [POINTS[2].said]


def test_names_at_one_place_do_not_cover_each_other():
    crowd = [Point(f"plan {i}", 1.0, 30.0, MIB, i, f"plan {i}") for i in range(6)]
    names = [
        one
        for one in elements(charts.frontier(crowd, 440, metric="PSNR", better="higher"), "text")
        if one.get("class") == "name"
    ]
    heights = sorted(float(one.get("y")) for one in names)
    assert len(heights) == 6
    assert all(below - above >= charts.LABEL_PX for above, below in itertools.pairwise(heights))


# -- axes --------------------------------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 12))
def test_ticks_are_few_even_and_inside(low, span, most):
    high = low + span
    found = charts.ticks(low, high, most)
    slack = 1e-6 * span + 1e-9 * max(abs(low), abs(high))
    assert len(found) <= most
    assert all(low - slack <= value <= high + slack for value in found)
    steps = [after - before for before, after in itertools.pairwise(found)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-6, abs_tol=slack) for step in steps)


@given(st.integers(1, 2**42))
def test_the_axis_of_bytes_reaches_over_its_highest_value(highest):
    axis = charts.bytes_axis(highest, 200, 0)
    assert axis.high >= highest
    assert -1e-6 <= axis.at(highest) <= 200
    assert axis.ticks[0][1].startswith("0 ")


# -- colours -----------------------------------------------------------------------------------------------------------

# Machado, Oliveira, Fernandes, 2009, https://doi.org/10.1109/TVCG.2009.113, severity 1, on linear RGB
BLIND = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
    "none": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
}


def linear(colour: str) -> list[float]:
    values = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]


def luminance(colour: str) -> float:
    red, green, blue = linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def lab(rgb: list[float]) -> list[float]:
    clipped = [min(1.0, max(0.0, value)) for value in rgb]
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    white = (0.9505, 1.0, 1.089)
    xyz = [sum(map(lambda a, b: a * b, row, clipped)) / w for row, w in zip(rows, white, strict=True)]
    x, y, z = (value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116 for value in xyz)
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


def seen(colour: str, kind: str) -> list[float]:
    rgb = linear(colour)
    return lab([sum(a * b for a, b in zip(row, rgb, strict=True)) for row in BLIND[kind]])


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("palette", [charts.PLANS, charts.STAGES], ids=["plans", "stages"])
def test_every_colour_stands_out_from_the_page(palette, scheme):
    for pair in palette:
        assert contrast(pair[scheme], PAGES[scheme]) >= 3, pair[scheme]


@pytest.mark.parametrize("kind", BLIND)
@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("palette", [charts.PLANS, charts.STAGES], ids=["plans", "stages"])
def test_colours_are_told_apart_whatever_cones_one_has(palette, scheme, kind):
    for one, other in itertools.combinations([pair[scheme] for pair in palette], 2):
        assert math.dist(seen(one, kind), seen(other, kind)) >= 15, (one, other)


def test_the_page_has_every_colour_in_both_schemes():
    names = re.findall(r"--(?:plan|stage)-\d", charts.variables(0))
    assert names == re.findall(r"--(?:plan|stage)-\d", charts.variables(1))
    assert len(names) == len(charts.PLANS) + len(charts.STAGES)
