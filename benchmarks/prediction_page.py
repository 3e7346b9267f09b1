"""The page of prediction.py: predicted, measured and error of each quantity, the worst of each, seconds by kind."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
MIB = 2**20
ABOUT = {
    "live": "bytes of the tensors that are alive at the worst moment, each storage once, inputs included, weights not; "
    "measured on real tensors, operator by operator",
    "taken": "by how much resident memory grows (VmHWM after a reset of it, less VmRSS before) in a process whose "
    "malloc gives back at once what is freed (MALLOC_MMAP_THRESHOLD_=65536): tensors and what kernels take for "
    "themselves",
    "growth": "the same in an ordinary process, where malloc keeps what is freed for later; predicted is what a plan "
    "counts with",
    "peak": "most bytes allocated on the card during the part (max_memory_allocated), weights included",
    "seconds": "median of the calls after a warm-up; predicted from the rates that were probed in the same process "
    "just before",
}
HOW = {
    "cpu": "A denoising step is one call of the denoiser, with and without the prompt as one batch; a decode is one "
    "call of the VAE. Each is measured in a process of its own with torch's own number of threads. Before memory is "
    "measured, the part draws one picture a quarter as wide and high (32 px at least), so that libraries are loaded "
    "and thread pools are there, and nothing of this size is.",
    "cuda": "Each case is a process of its own: a session with its plan draws the picture in 4 steps, once to warm up "
    "and then as often as told; seconds are those of events around each call of the denoiser (per step) and of the "
    "VAE's decoder.",
}


def markdown(kind: str, book: Mapping[str, Any]) -> str:
    rows, targets = book["rows"], book["targets"]
    versions = ", ".join(f"{name} {number}" for name, number in book["versions"].items())
    lines = [
        "# Predicted and measured",
        "",
        "## Command",
        "",
        f"    {book['command']}",
        "",
        f"{versions}; {book['machine']}.",
        "",
        *wrapped(HOW[kind]),
        "",
        *[line for name in targets for line in wrapped(f"- {name}: {ABOUT[name]}")],
        "",
        "Models but firstlight are of full size with random weights. Errors are (predicted - measured) / measured.",
        "",
        "## Errors",
        "",
        *table(["quantity", "aim", "within it", "median", "worst", "where"], summary(rows, targets)),
    ]
    for name in targets:
        lines += ["", f"## {name.capitalize()}", "", *quantity(rows, name)]
    if any(row.get("kinds") for row in rows):
        lines += ["", "## Seconds by kind of work", "", "Predicted / measured, in ms.", "", *kinds(rows)]
    if failed := [row for row in rows if "error" in row]:
        lines += ["", "## Failed", "", *[f"- {row['case']}, {row['part']}: {row['error']}" for row in failed]]
    return "\n".join(lines) + "\n"


def error(row: Row, name: str) -> float | None:
    """(predicted - measured) / measured; None where one of them is not there."""
    told, taken = (row.get(key, {}).get(name) for key in ("predicted", "measured"))
    return (told - taken) / taken if told is not None and taken else None


def summary(rows: Sequence[Row], targets: Mapping[str, float]) -> list[list[str]]:
    found = []
    for name, aim in targets.items():
        errors = sorted(((abs(off), off, row) for row in rows if (off := error(row, name)) is not None), key=size)
        if errors:
            _, worst, row = errors[-1]
            inside = sum(abs(off) <= aim for _, off, _ in errors)
            middle = errors[len(errors) // 2][0]
            where = f"{row['case']}, {row['part']}"
            counted = f"{inside} of {len(errors)}"
            found.append([name, f"{aim:.0%}", counted, f"{middle:.1%}", f"{worst:+.1%}", where])
    return found


def size(found: tuple[float, float, Row]) -> float:
    return found[0]


def quantity(rows: Sequence[Row], name: str) -> list[str]:
    lines = []
    for row in rows:
        if (off := error(row, name)) is not None:
            told, taken = (shown(name, row[key][name]) for key in ("predicted", "measured"))
            lines.append([row["case"], row["part"], told, taken, f"{off:+.1%}"])
    return table(["case", "part", "predicted", "measured", "error"], lines)


def shown(name: str, value: float) -> str:
    return f"{value:.4g} s" if name == "seconds" else f"{value / MIB:.1f} MiB"


def kinds(rows: Sequence[Row]) -> list[str]:
    timed = [row for row in rows if row.get("kinds")]
    names = list(timed[0]["kinds"])
    cells = [[f"{1000 * a:.3g} / {1000 * b:.3g}" for a, b in (row["kinds"][name] for name in names)] for row in timed]
    lines = [[row["case"], row["part"], *mine] for row, mine in zip(timed, cells, strict=True)]
    return table(["case", "part", *names], lines)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines)]


def wrapped(text: str, width: int = 118) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width, subsequent_indent="  " if text.startswith("- ") else "")
