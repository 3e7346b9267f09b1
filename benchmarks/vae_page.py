"""The page of vae.py: goals, each case beside whole, same memory, 16 bit, edges, predicted bytes, guides' claims."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prediction_page import table, wrapped
from vae_cases import (
    BLENDED_DIFFERENCE,
    BLENDED_FASTER,
    FASTER_THAN_TILING,
    GIB,
    PREDICTED,
    Case,
    Goal,
    Way,
    goals,
    way_of,
)

Row = Mapping[str, Any]
MIB = 2**20
FIELDS = ("vae", "what", "height", "width", "dtype", "threads", "batch", "frames", "ways", "truth")
HOW = (
    "Each row is a process of its own. It computes a corner of the input (32 latents a side) first, so that libraries "
    "are loaded and thread pools are there, then the whole input. Seconds are the median of the calls after the first "
    "one of that size; where the first takes more than 30 s, it is the only one. Planning (recording the graph, "
    "choosing what is stored) is done before and not among them; it stands in the JSON. CPU seconds are of all cores; "
    "where there is one thread, times are compared by them, as other work on the machine disturbs them less. "
    "The cores of a shared machine are not always as fast: ratios are to be read within a case.",
    "Bytes are those of tensors alive at the worst moment, each storage once, weights and input left out, counted in "
    "one more call operator by operator. Grown is how much resident memory grows in the first call (on a GPU: what "
    "tensors have allocated). Predicted bytes of exact are those of its plan; of the others they come from the same "
    "code run on tensors without numbers.",
    "exact 0.30: the fastest exact plan that is predicted to take at most 0.30 of whole's bytes. tiling: diffusers' "
    "enable_tiling with its default tile; as exact 0.30: with the tile that takes as much as that plan. fast: one pass "
    "with statistics from crops. blended: as many tiles as tiling has by default, with its overlap, and statistics "
    "from crops. Differences are to whole in the same dtype, PSNR for values from -1 to 1 (of latents: relative to "
    "what they cover). Weights of all but firstlight are random and keep the variance; inputs have large shapes, and "
    "noise that grows across the frame. Weights and inputs are representable in bfloat16, so one float32 result is the "
    "truth for 16 bit.",
)


@dataclass(frozen=True, slots=True)
class Checked:
    """A goal and what was found, None where it was not measured."""

    row: Row
    goal: Goal
    value: float | None

    @property
    def met(self) -> bool | None:
        return None if self.value is None else self.goal.met(self.value)

    @property
    def cells(self) -> list[str]:
        sign = ">=" if self.goal.least else "<="
        said = {True: "yes", False: "NO", None: "not measured"}[self.met]
        figure = "-" if self.value is None else f"{self.value:.3g}"
        return [self.row["case"], self.row["way"], self.goal.figure, f"{sign} {self.goal.limit:g}", figure, said]


def markdown(book: Mapping[str, Any]) -> str:
    rows = [row for row in book["rows"] if "error" not in row]
    versions = ", ".join(f"{name} {number}" for name, number in book["versions"].items())
    checked = list(checks(rows, book["device"]))
    lines = ["# The VAE engine beside decoding whole", "", "## Command", "", f"    {book['command']}", ""]
    lines += [f"{versions}; {book['machine']}.", ""]
    lines += [line for text in HOW for line in (*wrapped(text), "")]
    if any(row["vae"] == "firstlight" for row in rows):
        lines += [f"firstlight's picture: {book['picture'] or 'drawn by vae_models.drawn'}.", ""]
    lines += ["## Goals", "", *summary(checked), "", *table(GOAL_HEAD, [check.cells for check in checked])]
    lines += ["", "## Beside whole", "", *beside_whole(rows, checked)]
    for title, found in SECTIONS.items():
        if cells := [line for row in rows if (line := found.cells(rows, row))]:
            lines += ["", f"## {title}", "", *wrapped(found.about), "", *table(found.head, cells)]
    if failed := [row for row in book["rows"] if "error" in row]:
        lines += ["", "## Without a figure", "", *[f"- {r['case']}, {r['way']}: {r['error']}" for r in failed]]
    return "\n".join(lines) + "\n"


GOAL_HEAD = ("case", "way", "figure", "goal", "found", "met")


def summary(checked: Sequence[Checked]) -> list[str]:
    measured = [check for check in checked if check.value is not None]
    return [f"{sum(bool(check.met) for check in measured)} of {len(measured)} met."]


# -- figures of a row --------------------------------------------------------------------------------------------------


def case_of(row: Row) -> Case:
    return Case(**{name: row[name] for name in FIELDS})


def other(rows: Sequence[Row], row: Row, way: str) -> Row | None:
    """The row of the same case in another way."""
    return next((one for one in rows if (one["case"], one["way"]) == (row["case"], way)), None)


def share(row: Row, beside: Row | None, name: str) -> float | None:
    if beside is None or row.get(name) is None or not beside.get(name):
        return None
    return float(row[name] / beside[name])


def clock(row: Row) -> str:
    """The figure that times are compared by: of one thread, processor seconds, which other work disturbs less."""
    return "cpu_seconds" if row.get("threads") == 1 else "seconds"


def inside(row: Row | None, part: str, name: str) -> float | None:
    return None if row is None else row.get(part, {}).get(name)


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def at_edges(row: Row) -> float | None:
    return ratio(inside(row, "at_edges", "error"), inside(row, "at_edges", "error_elsewhere"))


def bytes_of(row: Row) -> str:
    """The figure that predictions are held against: counted, or what grew where nothing was counted."""
    return "peak_bytes" if row.get("peak_bytes") is not None else "grown_bytes"


def truth_ratio(rows: Sequence[Row], row: Row) -> float | None:
    return ratio(inside(row, "to_truth", "rmse"), inside(other(rows, row, "whole"), "to_truth", "rmse"))


def figure(rows: Sequence[Row], row: Row, name: str) -> float | None:
    whole = other(rows, row, "whole")
    return {
        "time / whole": lambda: share(row, whole, clock(row)),
        "grown / whole": lambda: share(row, whole, "grown_bytes"),
        "difference": lambda: inside(row, "to_whole", "largest"),
        "RMSE to the truth / whole's": lambda: truth_ratio(rows, row),
        "error at edges / elsewhere": lambda: at_edges(row),
        "PSNR to whole, dB": lambda: inside(row, "to_whole", "psnr"),
        "grown, GiB": lambda: ratio(row.get("grown_bytes"), GIB),
    }[name]()


# -- goals -------------------------------------------------------------------------------------------------------------


def checks(rows: Sequence[Row], device: str) -> Iterator[Checked]:
    for row in rows:
        way = way_of(row["way"])
        for goal in goals(case_of(row), way, device):
            yield Checked(row, goal, figure(rows, row, goal.figure))
        yield from against_tiling(rows, row, way)
        off = predicted_error(row)
        if off is not None:
            yield Checked(row, PREDICTED, abs(off))


def against_tiling(rows: Sequence[Row], row: Row, way: Way) -> Iterator[Checked]:
    if way.kind == "tiling" and way.share is not None:
        exact = other(rows, row, Way("exact", way.share).name)
        if exact is not None:
            yield Checked(exact, FASTER_THAN_TILING, share(row, exact, clock(row)))
    tiling = other(rows, row, "tiling")
    if way.kind == "blended" and tiling is not None:
        yield Checked(row, BLENDED_FASTER, share(tiling, row, clock(row)))
        apart = inside(row, "to_whole", "rmse"), inside(tiling, "to_whole", "rmse")
        yield Checked(row, BLENDED_DIFFERENCE, ratio(*apart))


def predicted_error(row: Row) -> float | None:
    """(predicted - measured) / measured."""
    told, taken = row.get("predicted_bytes"), row.get(bytes_of(row))
    return (told - taken) / taken if told is not None and taken else None


# -- tables ------------------------------------------------------------------------------------------------------------

HEAD = (
    "way",
    "seconds",
    "CPU s",
    "time / whole",
    "MiB",
    "bytes / whole",
    "grown, MiB",
    "grown / whole",
    "largest difference",
    "PSNR, dB",
    "goals missed",
)


def beside_whole(rows: Sequence[Row], checked: Sequence[Checked]) -> list[str]:
    lines: list[str] = []
    for case in dict.fromkeys(row["case"] for row in rows):
        of_case = [row for row in rows if row["case"] == case]
        lines += ["", f"### {case}", "", *table(HEAD, [line(rows, row, checked) for row in of_case])]
    return lines[1:]


def line(rows: Sequence[Row], row: Row, checked: Sequence[Checked]) -> list[str]:
    whole = other(rows, row, "whole")
    mine = [check for check in checked if check.row is row]
    missed = ", ".join(check.goal.figure for check in mine if check.met is False)
    return [
        row["way"],
        f"{row['seconds']:.3f}",
        f"{row['cpu_seconds']:.3f}",
        number(share(row, whole, clock(row))),
        mib(row.get("peak_bytes")),
        number(share(row, whole, "peak_bytes")),
        mib(row.get("grown_bytes")),
        number(share(row, whole, "grown_bytes")),
        number(inside(row, "to_whole", "largest"), ".2g"),
        number(inside(row, "to_whole", "psnr"), ".1f"),
        missed or ("none" if mine else "-"),
    ]


def number(value: float | None, how: str = ".2f") -> str:
    return "-" if value is None else f"{value:{how}}"


def mib(value: int | None) -> str:
    return "-" if value is None else f"{value / MIB:.1f}"


def in_same_memory(rows: Sequence[Row], row: Row) -> list[str]:
    way = way_of(row["way"])
    exact = other(rows, row, Way("exact", way.share).name) if way.kind == "tiling" and way.share is not None else None
    if exact is None:
        return []
    taken = [mib(one.get(bytes_of(one))) for one in (row, exact)]
    seconds = [f"{one['seconds']:.3f}" for one in (row, exact)]
    apart = [number(inside(one, "to_whole", "psnr"), ".1f") for one in (row, exact)]
    return [row["case"], exact["way"], *taken, *seconds, number(share(row, exact, clock(row))), *apart]


def sixteen_bit(rows: Sequence[Row], row: Row) -> list[str]:
    to_truth = inside(row, "to_truth", "rmse")
    if to_truth is None:
        return []
    return [row["case"], row["way"], f"{to_truth:.3e}", number(truth_ratio(rows, row), ".3f")]


def edges(rows: Sequence[Row], row: Row) -> list[str]:
    found = row.get("at_edges")
    if not found:
        return []
    of_step = ratio(found["step"], found["step_elsewhere"])
    error, elsewhere = (f"{found[name]:.2e}" for name in ("error", "error_elsewhere"))
    return [row["case"], row["way"], error, elsewhere, number(at_edges(row)), number(of_step)]


def predictions(rows: Sequence[Row], row: Row) -> list[str]:
    off = predicted_error(row)
    if off is None:
        return []
    return [row["case"], row["way"], mib(row["predicted_bytes"]), mib(row[bytes_of(row)]), f"{off:+.1%}"]


# kind of way: what a guide promises of it, in seconds and in bytes, and which way of diffusers it is held against
CLAIMS = {
    "blended": ("tiled: 1.3 to 1.5 times as fast", "tiling"),
    "exact": ("not tiled: 1.2 to 1.3 times as fast", "whole"),
    "compiled": ("compiled: 1.5 to 2.0 times as fast", "whole"),
}


def claims(rows: Sequence[Row], row: Row) -> list[str]:
    claim, beside = CLAIMS.get(way_of(row["way"]).kind, ("", ""))
    before = other(rows, row, beside)
    if before is None:
        return []
    counted = share(row, before, bytes_of(row))
    less = "-" if counted is None else f"{counted - 1:+.0%}"
    return [row["case"], row["way"], claim, number(share(before, row, clock(row))), less]


@dataclass(frozen=True, slots=True)
class Section:
    head: Sequence[str]
    cells: Any
    about: str


SECTIONS = {
    "Against diffusers' tiling in the same memory": Section(
        (
            "case",
            "exact",
            "tiling, MiB",
            "exact, MiB",
            "tiling, s",
            "exact, s",
            "times faster",
            "tiling, dB",
            "exact, dB",
        ),
        in_same_memory,
        "The tile is the one that computes the fewest latents of those that are to take no more than the exact plan.",
    ),
    "16 bit": Section(
        ("case", "way", "RMSE to the float32 truth", "/ whole's"),
        sixteen_bit,
        "The truth is whole in float32, for 2048 px of sd15 the exact way in float32.",
    ),
    "Edges": Section(
        ("case", "way", "error at edges", "elsewhere", "ratio", "step across / elsewhere"),
        edges,
        "Where strips of the last pass meet, or tiles: RMS of the difference to whole in the two lines at each edge "
        "and in others up to 16 lines away, and of its step from one line to the next. A seam is a large step.",
    ),
    "Predicted bytes": Section(
        ("case", "way", "predicted, MiB", "measured, MiB", "error"),
        predictions,
        "Error: (predicted - measured) / measured.",
    ),
    "What guides promise": Section(
        ("case", "way", "promised, and 10 to 15 % less memory", "times as fast", "bytes"),
        claims,
        "Figures that guides give for an optimized VAE, and what was measured: blended beside diffusers' tiling, exact "
        "and compiled beside whole.",
    ),
}
