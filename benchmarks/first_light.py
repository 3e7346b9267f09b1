"""Each optimizer against plain on the bundled model: seconds, peak bytes, picture; a fresh process each, interleaved.

python benchmarks/first_light.py --repeats 5 --out benchmarks/first-light_cpu_2026-11-21

Writes OUT.md and OUT.json. Seconds are of one picture, all stages, load and smoke run left out: the median over
repeats. The peak is that of the whole process, libraries and all. The picture is compared with the plain one
of the same seed, case and batch size.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from PIL import Image

import safelight
from safelight.measure import structure

PROMPT = "a red apple, 3d, on a blue background"
ALONE = ["dtype=bfloat16", "channels-last", "attention-backend=math", "prompt-cache", "auto"]
CASES = {  # name -> flags of plain, then what is put beside it
    "64 px, one by one": (["--count", "6"], ALONE),
    "64 px, batches of 8": (
        ["--count", "16", "--batch-size", "8"],
        ["dtype=bfloat16", "channels-last", "vae-slicing", "auto"],
    ),
    "256 px, one by one": (
        ["--count", "2", "--width", "256", "--height", "256"],
        ["dtype=bfloat16", "channels-last", "vae-tiling=64", "auto"],
    ),
}


def run(flags: list[str], optimize: str, folder: Path) -> dict:
    command = [sys.executable, "-m", "safelight", "generate", PROMPT, "--seed", "1", "--out", str(folder), "--json"]
    finished = subprocess.run([*command, *flags, "-o", optimize], check=True, stdout=subprocess.PIPE)
    return json.loads(finished.stdout)


def psnr(a: Path, b: Path) -> float:
    """dB; infinite for equal pictures."""
    return structure.psnr(*(Image.open(path).convert("RGB") for path in (a, b)))


def measure(repeats: int) -> list[dict]:
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for case, (flags, others) in CASES.items():
            plans = ["none", *others]
            made: dict[str, list[dict]] = {plan: [] for plan in plans}
            for repeat in range(repeats):
                for plan in plans:
                    made[plan].append(run(flags, plan, Path(work) / case / plan / str(repeat)))
                    print(case, plan, repeat, flush=True)
            rows += [row(case, plan, made[plan], made["none"]) for plan in plans]
    return rows


def row(case: str, plan: str, runs: list[dict], plain: list[dict]) -> dict:
    def seconds(document: dict) -> float:
        return sum(document["seconds"].values()) / len(document["pictures"])

    pairs = [
        psnr(Path(one["path"]), Path(other["path"]))
        for one, other in zip(runs[0]["pictures"], plain[0]["pictures"], strict=True)
    ]
    base = statistics.median(map(seconds, plain))
    mine = statistics.median(map(seconds, runs))
    peaks = [d["peak_bytes"] for d in runs if d["peak_bytes"]]
    return {
        "case": case,
        "plan": "plain" if plan == "none" else plan,
        "seconds": mine,
        "samples": [seconds(document) for document in runs],
        "speed": base / mine,
        "peak_bytes": statistics.median(peaks) if peaks else None,
        "psnr_db": None if plan == "none" else statistics.median(pairs),
        "engaged": [o["evidence"] for o in runs[0]["optimizers"]],
    }


def markdown(rows: list[dict], command: str) -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    versions = f"safelight {safelight.__version__}, {libraries}"
    lines = ["# firstlight: each optimizer against plain, on a CPU", "", "## Command", "", f"    {command}", ""]
    lines += [
        f"{versions}, Python {platform.python_version()}; {processor()}; 20 steps of DPM++ 2M, float32 plain.",
        "",
    ]
    lines += [
        "| case | plan | seconds per picture (least to most) | x plain | peak of the process | PSNR against plain |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        peak = "not measured" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:.0f} MiB"
        spread = f"{min(r['samples']):.3f} to {max(r['samples']):.3f}"
        far = "-" if r["psnr_db"] is None else "equal" if r["psnr_db"] == float("inf") else f"{r['psnr_db']:.1f} dB"
        lines.append(
            f"| {r['case']} | {r['plan']} | {r['seconds']:.3f} ({spread}) | {r['speed']:.2f} | {peak} | {far} |"
        )
    lines += ["", "Medians of whole processes; where the spreads of two rows overlap, their order is chance."]
    return "\n".join(lines) + "\n"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = measure(args.repeats)
    command = f"python benchmarks/first_light.py --repeats {args.repeats} --out {args.out}"
    args.out.with_suffix(".json").write_text(
        json.dumps({"schema": 1, "command": command, "rows": rows}, indent=1) + "\n"
    )
    args.out.with_suffix(".md").write_text(page := markdown(rows, command))
    print(page)


if __name__ == "__main__":
    main()
