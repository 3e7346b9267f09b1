"""The page of sampling.py: evaluations to the limit, schedules, what pictures show, parity, cost, batches."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prediction_page import table, wrapped

Row = Mapping[str, Any]
NEAR_DB, SAME_DB = 30.0, 40.0
COMMANDS = (
    "sampling.py --out OUT",
    "sampling_judge.py --work build/firstlight --captions 152 --out OUT",
    "sampling_judge.py --work build/firstlight --captions 610 --style --only 0 3 --out OUT",
    "sampling.py --page --out OUT",
)
GOALS = (
    # part, figure, told, limit
    ("parity", "float64", "recorded latents, largest relative difference in float64", 1e-6),
    ("parity", "float32", "recorded latents, largest relative difference in float32", 1e-4),
    ("batches", "picture", "picture of a batch beside it alone, largest difference of values from 0 to 1", 1e-3),
)
SHARED_STEPS = "DPM adaptive"  # one error for a whole batch, as in k-diffusion: a batch is not its singles
ABOUT = {
    "convergence": "PSNR in dB of the decoded pictures, all together, to the limit, by model evaluations: each column "
    "is the most steps that take no more than so many. Each sampler has its own schedule. Limits: flow, the "
    "probability flow's one picture (DPM++ 2M Karras in 120 evaluations; by Heun in 119 it is {check:.1f} dB from it); "
    "path, its own picture in 120 evaluations on the same Brownian path, which spans the model's noise levels here; "
    "own, its own picture in 120 evaluations. 30 dB: evaluations from which on it stays that near to the limit, when "
    "what is drawn is settled; 40 dB: the same, beyond which hardly anything can be seen to change. One picture that "
    "goes another way is enough for a dip. DDIM CFG++ shows no limit: every "
    "step adds its share of guidance, so that more steps are more guidance.",
    "unlimited": "There is no limit for these: noise is drawn anew for each step, so every number of steps draws "
    "another picture. PSNR to their own picture in 60 evaluations, to show it. Restart draws noise only where it goes "
    "back, which it does as often in 40 as in 60.",
    "schedules": "PSNR in dB to the flow's picture, for samplers that draw no noise, in 20 evaluations (Heun and PLMS "
    "19). DDIM is Euler in this scaling, step for step. Schedules that are the same for this model and 20 steps share "
    "a row (PLMS's 19 steps take DDIM's schedule to 20 levels, Leading's to 19); Align Your Steps is SD1.5's, whose "
    "noise levels firstlight has. The best of a column is in bold.",
    "parity": "Latents that k-diffusion and A1111 give on an analytic denoiser, with options and without, on five "
    "schedules of 10 and 20 steps (tests/sampling/reference). Difference: of norms, the largest of all runs.",
    "overhead": "Processor milliseconds per model evaluation spent in the scheduler, on latents of 4 x 64 x 64 and a "
    "model that is one multiplication; beside diffusers' class of that name, built from the same config. One "
    "evaluation of firstlight's denoiser, the smallest that is in use, takes about 30 ms.",
    "batches": "Three pictures in a batch beside each alone, 10 evaluations. DPM adaptive finds its steps by one error "
    "for the whole batch, as k-diffusion has it: its batches share their steps, and are no singles.",
    "judged": "What pictures show, judged as training/evaluate.py does: {captions} captions that were held out in "
    "training, every object in turn, seeds by place, guidance 3, the denoiser in bfloat16. Likeness: mean cosine of "
    "features to the asked object's drawing. Beside the first row: mean difference in likeness of the same captions "
    "with its standard error, and pictures right here and wrong there and the other way round.",
    "evaluated": "The captions and seeds of benchmarks/firstlight-evaluation_cpu_2026-11-21.json, which has DPM++ 2M "
    "on the Uniform schedule, 20 steps, float32: top-1 79.0, top-5 92.6, background 100.0, style 92.3.",
}
TITLES = {
    "convergence": "Evaluations to the limit",
    "unlimited": "Without a limit",
    "schedules": "Which schedule",
    "parity": "Beside k-diffusion and A1111",
    "overhead": "What driving costs",
    "batches": "Batches",
    "judged": "What pictures show",
    "evaluated": "As firstlight was evaluated",
}


def markdown(book: Row) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in book["versions"].items())
    lines = ["# The samplers", "", "## Command", "", *[f"    python benchmarks/{command}" for command in COMMANDS], ""]
    lines += [f"{versions}; {book['machine']}, one thread.", ""]
    lines += [*wrapped("The bundled model, guidance 3, 64 px, 8 prompts, float32; the seed is a prompt's place."), ""]
    lines += ["## Goals", "", *table(("goal", "limit", "found", "met"), goals(book))]
    for part, cells in PARTS.items():
        if found := cells(book):
            lines += ["", f"## {TITLES[part]}", "", *wrapped(about(part, book)), "", *table(*found)]
    return "\n".join(lines) + "\n"


def about(part: str, book: Row) -> str:
    check = next((row["psnr"] for row in book.get("convergence", ()) if "at" not in row), 0.0)
    captions = next((row["captions"] for row in book.get("judged", ()) if "style" not in row), 0)
    return ABOUT[part].format(check=check, captions=captions)


def goals(book: Row) -> list[list[str]]:
    found = []
    for part, figure, told, limit in GOALS:
        if rows := [row for row in book.get(part, ()) if part != "batches" or row["sampler"] != SHARED_STEPS]:
            worst = max(rows, key=lambda row, figure=figure: row[figure])
            value, where = worst[figure], worst["sampler"]
            found.append([told, f"<= {limit:g}", f"{value:.1e} ({where})", "yes" if value <= limit else "NO"])
    return found


# -- convergence -------------------------------------------------------------------------------------------------------


def evaluations_for(row: Row, decibels: float) -> int | None:
    """From which on the sampler stays as near as that to its limit; None where it does not."""
    reached = None
    for at in reversed(row["at"]):
        if at["psnr"] < decibels:
            break
        reached = at["evaluations"]
    return reached


def convergence(book: Row) -> tuple[Sequence[str], list[list[str]]] | None:
    rows = [row for row in book.get("convergence", ()) if row["limit"] in ("flow", "path", "own") and "at" in row]
    if not rows:
        return None
    counts = [str(at["asked"]) for at in rows[0]["at"]]
    cells = [
        [
            row["sampler"],
            row["schedule"],
            row["limit"],
            *[f"{at['psnr']:.1f}" for at in row["at"]],
            *[reached(row, decibels) for decibels in (NEAR_DB, SAME_DB)],
        ]
        for row in rows
    ]
    cells += [adaptive(row, len(counts)) for row in book["convergence"] if row["limit"] == "adaptive"]
    return ("sampler", "schedule", "limit", *counts, f"{NEAR_DB:.0f} dB", f"{SAME_DB:.0f} dB"), cells


def reached(row: Row, decibels: float) -> str:
    count = evaluations_for(row, decibels)
    return f"over {row['at'][-1]['evaluations']}" if count is None else str(count)


def adaptive(row: Row, columns: int) -> list[str]:
    """Its one number, under the count that it comes nearest to from above."""
    here = row["at"][0]
    said = f"{here['psnr']:.1f} in {here['evaluations']}, eta 0; by itself {row['evaluations with noise']}, no limit"
    return [row["sampler"], "its own", "flow", said, *[""] * (columns - 1), "-", "-"]


def unlimited(book: Row) -> tuple[Sequence[str], list[list[str]]] | None:
    rows = [row for row in book.get("convergence", ()) if row["limit"] == "none"]
    if not rows:
        return None
    counts = [str(at["asked"]) for at in rows[0]["at"]]
    cells = [[row["sampler"], row["schedule"], *[f"{at['psnr']:.1f}" for at in row["at"]]] for row in rows]
    return ("sampler", "schedule", *counts), cells


# -- the other tables --------------------------------------------------------------------------------------------------


def schedules(book: Row) -> tuple[Sequence[str], list[list[str]]] | None:
    rows = book.get("schedules", ())
    if not rows:
        return None
    labels = [name for name in rows[0] if name != "schedule"]
    best = {label: max(row[label]["psnr"] for row in rows) for label in labels}
    return ("schedule", *labels), [
        [row["schedule"], *[bold(row[label]["psnr"], best[label]) for label in labels]] for row in rows
    ]


def bold(value: float, best: float) -> str:
    return f"**{value:.1f}**" if value == best else f"{value:.1f}"


def parity(book: Row) -> tuple[Sequence[str], list[list[str]]] | None:
    rows = [
        [row["sampler"], str(row["runs"]), f"{row['float64']:.1e}", f"{row['float32']:.1e}"]
        for row in book.get("parity", ())
    ]
    return (("sampler", "runs", "float64", "float32"), rows) if rows else None


def overhead(book: Row) -> tuple[Sequence[str], list[list[str]]] | None:
    rows = [
        [row["sampler"], f"{row['ms']:.3f}", row["class"] or "-", number(row["diffusers ms"])]
        for row in book.get("overhead", ())
    ]
    return (("sampler", "ours, ms", "diffusers' class", "diffusers, ms"), rows) if rows else None


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def batches(book: Row) -> tuple[Sequence[str], list[list[str]]] | None:
    rows = [[row["sampler"], f"{row['latents']:.1e}", f"{row['picture']:.1e}"] for row in book.get("batches", ())]
    return (("sampler", "latents", "picture, values from 0 to 1"), rows) if rows else None


JUDGED = ("sampler", "schedule", "steps", "evaluations", "top-1", "top-5", "background", "likeness", "beside the first")


def judged(book: Row) -> tuple[Sequence[str], list[list[str]]] | None:
    rows = [row for row in book.get("judged", ()) if "style" not in row]
    return (JUDGED, [shown(row, rows[0]) for row in rows]) if rows else None


EVALUATED = ("sampler", "schedule", "steps", "captions", "top-1", "top-5", "background", "style")


def evaluated(book: Row) -> tuple[Sequence[str], list[list[str]]] | None:
    rows = [
        [
            row["sampler"],
            row["schedule"] or "its own",
            *[str(row[name]) for name in ("steps", "captions")],
            *[f"{row[name]:.1f}" for name in ("object top-1", "object top-5", "background", "style")],
        ]
        for row in book.get("judged", ())
        if "style" in row
    ]
    return (EVALUATED, rows) if rows else None


def shown(row: Row, first: Row) -> list[str]:
    figures = [f"{row[name]:.1f}" for name in ("object top-1", "object top-5", "background")]
    return [
        row["sampler"],
        row["schedule"] or "its own",
        str(row["steps"]),
        str(row["evaluations"]),
        *figures,
        f"{row['likeness']:.3f}",
        "-" if row is first else beside(row, first),
    ]


def beside(row: Row, first: Row) -> str:
    mean, error = paired(row["likeness of each"], first["likeness of each"])
    both = list(zip(row["right"], first["right"], strict=True))
    more, less = sum(mine > other for mine, other in both), sum(mine < other for mine, other in both)
    return f"{mean:+.3f} +- {error:.3f}; +{more} -{less}"


def paired(some: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """(mean difference, its standard error)."""
    apart = [one - other for one, other in zip(some, others, strict=True)]
    mean = sum(apart) / len(apart)
    spread = sum((one - mean) ** 2 for one in apart) / max(len(apart) - 1, 1)
    return mean, (spread / len(apart)) ** 0.5


PARTS: Mapping[str, Callable[[Row], tuple[Sequence[str], list[list[str]]] | None]] = {
    "convergence": convergence,
    "unlimited": unlimited,
    "schedules": schedules,
    "judged": judged,
    "evaluated": evaluated,
    "parity": parity,
    "overhead": overhead,
    "batches": batches,
}
