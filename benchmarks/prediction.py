"""How true predictions are: seconds and bytes of a denoising step and of a VAE decode, predicted and measured.

python benchmarks/prediction.py --out benchmarks/prediction_cpu_2026-11-22
python benchmarks/prediction.py --device cuda --out benchmarks/prediction_h200_2026-11-22

Each part of each case is measured in processes of its own. Models but firstlight are of full size with random weights,
which is honest for seconds and bytes. Writes OUT.md and OUT.json anew after each part; how each number is measured
stands on the page. --without leaves quantities out ("--without seconds" on a busy machine).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import prediction_page as page

MINUTES = 10.0  # for one process: what takes longer is stopped, and told
PARTS = ("denoise", "decode")
# by kind of device: what is measured, and how far a prediction may be off
TARGETS = {
    "cpu": {"live": 0.03, "taken": 0.15, "growth": 0.15, "seconds": 0.30},
    "cuda": {"peak": 0.08, "seconds": 0.25},
}
# glibc keeps what is freed for later, and gives back at once what it mapped: from this size on, for "taken"
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}


@dataclass(frozen=True, slots=True)
class Case:
    """model: bundled, or of fullsize.MODELS. side: pixels. plan: as after -o, besides the dtype. calls: timed."""

    model: str
    side: int
    dtype: str = "float32"
    plan: str = ""
    batch: int = 1
    calls: int = 5

    @property
    def name(self) -> str:
        words = [f"{self.model} {self.side} px", self.dtype, self.plan]
        return ", ".join(word for word in (*words, f"{self.batch} at once" * (self.batch > 1)) if word)


def _cpu_cases() -> list[Case]:
    dtypes, last = ("float32", "bfloat16"), "channels-last"
    cases = [Case("firstlight", 64, dtype, batch=batch) for batch in (1, 8) for dtype in dtypes]
    cases += [Case("firstlight", side, dtype) for side in (128, 256) for dtype in dtypes]
    cases += [Case("dit-s2", 256, dtype) for dtype in dtypes]
    for side, calls in ((256, 5), (512, 3)):
        cases += [Case("sd15", side, dtype, calls=calls) for dtype in dtypes]
        cases.append(Case("sd15", side, "bfloat16", last, calls=calls))
    return cases


def _card_cases() -> list[Case]:
    models = {"sd15": (512, 1024), "sdxl": (1024, 1536), "flux1-dev": (1024, 1536)}
    plans = {"sd15": (), "sdxl": (), "flux1-dev": ("streamed-blocks=8",)}
    return [
        Case(model, side, "bfloat16" if model == "flux1-dev" else "float16", plan)
        for model, sides in models.items()
        for plan in ("", "model-offload", "vae-tiling", *plans[model])
        for side in sides
    ] + [Case("sd15", 512, "float16", "vae-slicing", batch=4), Case("sd15", 512, "float16", "streamed-blocks=2")]


CASES = {kind: {case.name: case for case in cases} for kind, cases in (("cpu", _cpu_cases()), ("cuda", _card_cases()))}


def main() -> None:
    args = parse()
    if args.one:
        print(json.dumps(one(args.device, *args.one)))
        return
    print(measure(args).read_text())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--cases", nargs="*", default=[], help="names, or words in them (sd15); default: all")
    parser.add_argument("--without", nargs="*", default=[], help="quantities that are not measured: live, seconds, ...")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("CASE", "PARTS", "QUANTITIES"), help=argparse.SUPPRESS)
    return parser.parse_args()


def kind_of(device: str) -> str:
    return "cpu" if device == "cpu" else "cuda"


# -- in a process of its own -------------------------------------------------------------------------------------------


def one(device: str, case: str, parts: str, quantities: str) -> dict[str, Any]:
    """By part: what was predicted and what was measured."""
    known = CASES[kind_of(device)][case]
    if kind_of(device) == "cuda":
        import prediction_card

        return prediction_card.rows(known, device)
    import prediction_cpu

    return {part: prediction_cpu.row(known, part, quantities.split(",")) for part in parts.split(",")}


def run(device: str, case: str, parts: Sequence[str], quantities: Sequence[str]) -> dict[str, Any]:
    """`one`, in a new process; {part: {"error": ...}} if it fails."""
    command = [sys.executable, __file__, "--device", device, "--one", case, ",".join(parts), ",".join(quantities)]
    environment = os.environ | (GIVING_BACK if list(quantities) == ["taken"] else {})
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60 * MINUTES)
    except subprocess.TimeoutExpired:
        return {part: {"error": f"took more than {MINUTES:.0f} minutes"} for part in parts}
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {part: {"error": said[-1][:300]} for part in parts}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# -- all of them -------------------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> Path:
    kind = kind_of(args.device)
    wanted = [name for name in TARGETS[kind] if name not in args.without]
    rows: list[dict[str, Any]] = []
    for case in CASES[kind]:
        if args.cases and not any(word in case for word in args.cases):
            continue
        for job in jobs(kind, wanted):
            join(rows, case, run(args.device, case, *job))
            print(case, *job, file=sys.stderr, flush=True)
        write(args.out, kind, rows)
    return args.out.with_suffix(".md")


def jobs(kind: str, wanted: Sequence[str]) -> list[tuple[Sequence[str], Sequence[str]]]:
    """(parts, quantities) of each process of a case."""
    if kind == "cuda":
        return [(PARTS, wanted)]  # one run of the pipeline has both
    others, taken = [name for name in wanted if name != "taken"], [name for name in wanted if name == "taken"]
    return [([part], names) for part in PARTS for names in (others, taken) if names]


def join(rows: list[dict[str, Any]], case: str, found: dict[str, Any]) -> None:
    """One row for each part, with what all its processes found."""
    for part, row in found.items():
        known = next((known for known in rows if (known["case"], known["part"]) == (case, part)), None)
        if known is None:
            rows.append(known := {"case": case, "part": part})
        for name, value in row.items():
            known[name] = {**known.get(name, {}), **value} if isinstance(value, dict) else value


def write(out: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    libraries = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    book = {
        "schema": 1,
        "command": " ".join(["python", "benchmarks/prediction.py", *sys.argv[1:]]),
        "machine": rows[0].get("machine", "") if rows else "",
        "versions": {**libraries, "python": platform.python_version()},
        "targets": TARGETS[kind],
        "rows": rows,
    }
    out.with_suffix(".json").write_text(json.dumps(book, indent=1) + "\n")
    out.with_suffix(".md").write_text(page.markdown(kind, book))


if __name__ == "__main__":
    main()
