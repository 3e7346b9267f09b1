"""What scripts/gpu-truth found, as a page: one table for each case, then evidence, then what gave no figure and why.

Comes in: the document that is also written as JSON. Goes out: Markdown. Every figure is of the document; shares and
factors are worked out here.
"""

from collections.abc import Iterable, Mapping
from typing import Any

HEAD = (
    "| plan | s per step | end to end, s (least to most) | x plain | peak, GiB | reserved, GiB | latents differ "
    "| picture, PSNR | setup, s | compiling, s | predicted, s | error | predicted peak, GiB | error |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)
NOTES = (
    "The weights of all but firstlight are random: seconds and bytes are those of the real model, pictures are noise. "
    "How far latents and pictures move tells rounding from another computation, not how good a trained model's picture "
    "stays. Step caches decide by how much a block's output changes, so with random weights they may skip more or "
    "fewer blocks than with trained ones: the evidence says how many.",
    "End to end: text, denoising and decoding of one request, the median of its runs, after a smoke run and a first "
    "run (so a prompt cache is filled). x plain: plain's seconds over the plan's; where a row shares its process with "
    "others, plain measured right after it. Rows with fewer steps than their case are compared by the step. Peak: "
    "bytes that tensors held; reserved: what the allocator took from the card for them; of a CPU, the whole process. "
    "Setup: placing the weights, applying, and the smoke run that proves, compiling included.",
    "Predicted: before the run, from a trace on fake tensors and rates that were measured on this card in two seconds; "
    "error: predicted over measured, less one.",
)


def markdown(document: Mapping[str, Any]) -> str:
    rows = document["rows"]
    parts = [f"# Plain against each optimizer on {document['card']}, {document['date']}", "## Command"]
    parts += [f"    {document['command']}", versions(document), *NOTES]
    for case in dict.fromkeys(row["case"] for row in rows):
        of_case = [row for row in rows if row["case"] == case]
        if measured := [row for row in of_case if row["status"] == "measured"]:
            parts += [f"## {case}", of_case[0]["about"], table(measured, plain_of(measured))]
            parts += evidence(measured)
    for status, title in (("failed", "Failed"), ("does not fit", "Does not fit"), ("not run", "Not run")):
        if found := [row for row in rows if row["status"] == status]:
            parts += [f"## {title}", "\n".join(f"- {row['key']}: {row['why']}" for row in found)]
    return "\n\n".join(parts) + "\n"


def versions(document: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in document["versions"].items()) + f"; {document['about']}."


def plain_of(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((row for row in rows if not row["plan"]), None)


def table(rows: list[Mapping[str, Any]], plain: Mapping[str, Any] | None) -> str:
    return "\n".join([HEAD, *(line(row, plain) for row in rows)])


def line(row: Mapping[str, Any], plain: Mapping[str, Any] | None) -> str:
    share = seconds_share(row, plain)
    cells = [
        row["plan"] or "plain",
        f"{row['seconds_per_step']:.4f}",
        f"{row['seconds']:.3f} ({min(row['samples']):.3f} to {max(row['samples']):.3f})" + remarks(row, plain),
        f"{1 / share:.2f}" if share else "-",
        gib(row["peak_bytes"]),
        gib(row["reserved_bytes"]),
        difference(row),
        quality(row),
        f"{row['setup_seconds']:.1f}",
        f"{row['compile_seconds']:.1f}" if row["compile_seconds"] else "-",
        *prediction(row),
    ]
    return f"| {' | '.join(cells)} |"


def prediction(row: Mapping[str, Any]) -> list[str]:
    """Seconds and bytes with their errors."""
    if "predicted_seconds" not in row:
        return [""] * 4
    return [
        f"{row['predicted_seconds']:.3f}",
        f"{row['predicted_seconds'] / row['seconds'] - 1:+.0%}",
        gib(row["predicted_peak_bytes"]),
        f"{row['predicted_peak_bytes'] / row['peak_bytes'] - 1:+.0%}" if row["peak_bytes"] else "-",
    ]


def seconds_share(row: Mapping[str, Any], plain: Mapping[str, Any] | None) -> float | None:
    """The row's seconds over plain's: of the run, or of a step where the row has fewer steps. None without a plain."""
    if "plain_seconds" in row:
        return row["seconds"] / row["plain_seconds"]
    if plain is None:
        return None
    unit = "seconds" if row["steps"] == plain["steps"] else "seconds_per_step"
    return row[unit] / plain[unit]


def remarks(row: Mapping[str, Any], plain: Mapping[str, Any] | None) -> str:
    said = [f", {row['steps']} steps"] if plain and row["steps"] != plain["steps"] else []
    return "".join([*said, ", VAE retried in float32"] if row["vae_retried"] else said)


def gib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**30:.2f}"


def difference(row: Mapping[str, Any]) -> str:
    share = row.get("latents_differ")
    if share is None:
        return "-"
    return f"{share:.1e}" if share else "equal"


def quality(row: Mapping[str, Any]) -> str:
    if "psnr_db" not in row:
        return "-"
    return "equal" if row["psnr_db"] is None else f"{row['psnr_db']:.1f} dB"


def evidence(rows: list[Mapping[str, Any]]) -> list[str]:
    """What each plan's optimizers showed; no paragraph for plain alone."""
    said = [f"- {row['plan']}: " + "; ".join(f"{k}: {v}" for k, v in row["engaged"].items()) for row in rows]
    engaged = "\n".join(line for line, row in zip(said, rows, strict=True) if row["engaged"])
    return [f"Evidence:\n\n{engaged}"] if engaged else []
