"""Each optimizer alone and in stacks against plain: seconds per step and per picture, peak bytes, picture.

python benchmarks/optimizers.py --repeats 3 --out benchmarks/optimizers_cpu_2026-11-21

Every run is a fresh process, plans interleaved. On firstlight the pictures are those of 8 prompts, after one more to
warm up; Stable Diffusion 1.5 is at full size with random weights, which is honest for seconds and bytes and says
nothing of pictures. Writes OUT.md and OUT.json after every case, and with --record the rows that
`safelight optimizers NAME` shows.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

import safelight

PROMPTS = (
    "a red apple, 3d, on a blue background",
    "a dog, flat, on a white background",
    "a rocket, line art, on a yellow background",
    "a tree, 3d, on a green background",
    "a violin, 3d, on a pink background",
    "a whale, flat, on a blue background",
    "a pizza, flat, on a red background",
    "a bicycle, line art, on a white background",
)
ROUNDING = "dtype=bfloat16,channels-last,compile"
CUTOFF = "guidance-cutoff=0.7,guidance-cutoff.reuse=true"
CASES: dict[str, dict] = {
    "firstlight 64 px": {
        "model": "firstlight",
        "side": 64,
        "plans": [
            "dtype=bfloat16",
            "channels-last",
            "fused-qkv",
            "attention-slicing",
            "layerwise-casting",
            "prompt-cache",
            "guidance-split",
            CUTOFF,
            "deep-cache=3",
            "deep-cache=5",
            "dtype=bfloat16,channels-last",
            "dtype=bfloat16,channels-last,compile-blocks",
            ROUNDING,
            f"{ROUNDING},deep-cache=5",
        ],
    },
    "firstlight 64 px, batches of 8": {
        "model": "firstlight",
        "side": 64,
        "batch": 8,
        "plans": [
            "dtype=bfloat16",
            "vae-slicing",
            "guidance-split",
            ROUNDING,
            f"{ROUNDING},deep-cache=5",
            f"{ROUNDING},compile.parts=denoiser+vae,deep-cache=4",
        ],
    },
    "SD1.5, random weights, 256 px": {
        "model": "sd15",
        "side": 256,
        "prompts": 1,
        "steps": 6,
        "plans": ["dtype=bfloat16", "deep-cache=3", ROUNDING],
    },
    "firstlight 256 px": {
        "model": "firstlight",
        "side": 256,
        "prompts": 2,
        "plans": ["token-merging=0.5", "vae-tiling=64", "split-attention=256", CUTOFF, "deep-cache=3", ROUNDING],
    },
    "SD1.5, random weights, 512 px, bfloat16": {
        "model": "sd15",
        "side": 512,
        "prompts": 1,
        "steps": 2,
        "base": "dtype=bfloat16,channels-last",
        "plans": ["dtype=bfloat16,channels-last,token-merging=0.5"],
    },
}


def opened(case: dict, optimize: str) -> "safelight.session.Session":
    """The session of one plan; full-size models are built in the dtype that the plan wants."""
    side, batch = case["side"], case.get("batch", 1)
    if case["model"] == "firstlight":
        return safelight.load("firstlight", optimize=optimize, width=side, height=side, batch_size=batch)
    import fullsize

    from safelight import planner
    from safelight.probe.device import here
    from safelight.session import Session

    wish = planner.wish(optimize)
    pipe = fullsize.build(case["model"], planner.loading_dtype(wish, here("cpu")))
    return Session(pipe, here("cpu"), wish, width=side, height=side, batch_size=batch)


def one(case: dict, optimize: str, pixels: Path) -> dict:
    """Measures one plan in this process."""
    started = time.perf_counter()
    steps, batch, side = case.get("steps", 20), case.get("batch", 1), case["side"]
    with opened(case, optimize) as session:
        ready = time.perf_counter() - started
        size = {"width": side, "height": side, "steps": steps, "count": batch, "batch_size": batch}
        if case["model"] == "firstlight":
            session.generate(PROMPTS[0], seed=99, **size)
        results = [
            session.generate(prompt, seed=seed, **size)
            for seed, prompt in enumerate(PROMPTS[: case.get("prompts", len(PROMPTS))])
        ]
        evidence = [status.evidence for status in session.status()]
    np.save(pixels, np.stack([np.asarray(picture.image) for result in results for picture in result.pictures]))
    return {
        "ready_seconds": ready,
        "step_seconds": statistics.median(result.seconds["denoise"] / steps / batch for result in results),
        "seconds": statistics.median(sum(result.seconds.values()) / batch for result in results),
        "stages": {stage: statistics.median(r.seconds[stage] for r in results) for stage in results[0].seconds},
        "peak_bytes": max((result.peak_bytes or 0 for result in results), default=0) or None,
        "evidence": evidence,
    }


def run(name: str, optimize: str, pixels: Path) -> dict:
    command = [sys.executable, __file__, "--one", name, optimize, str(pixels)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        return {"error": finished.stderr.strip().splitlines()[-1]}
    return json.loads(finished.stdout.splitlines()[-1])


def psnr(mine: np.ndarray, plain: np.ndarray) -> tuple[float, float]:
    """dB of the mean squared error over all pictures, and of the worst one; infinite for equal pictures."""
    errors = np.mean((mine.astype(float) - plain) ** 2, axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(255**2 / errors.mean())), float(10 * np.log10(255**2 / errors.max()))


def row(case: str, plan: str, runs: list[dict], plain: list[dict], pixels: Path, base: Path) -> dict:
    if failed := [run["error"] for run in runs if "error" in run]:
        return {"case": case, "plan": plan, "error": failed[0]}
    ratios = [run["step_seconds"] / other["step_seconds"] for run, other in zip(runs, plain, strict=True)]
    whole = [run["seconds"] / other["seconds"] for run, other in zip(runs, plain, strict=True)]
    quality = psnr(np.load(pixels), np.load(base))
    return {
        "case": case,
        "plan": plan,
        "step_seconds": statistics.median(run["step_seconds"] for run in runs),
        "seconds": statistics.median(run["seconds"] for run in runs),
        "x_step": 1 / statistics.median(ratios),
        "x_plain": 1 / statistics.median(whole),
        "x_plain_spread": [1 / max(whole), 1 / min(whole)],
        "ready_seconds": statistics.median(run["ready_seconds"] for run in runs),
        "peak_bytes": statistics.median([run["peak_bytes"] for run in runs if run["peak_bytes"]] or [0]) or None,
        "psnr_db": quality[0] if np.isfinite(quality[0]) else None,
        "worst_psnr_db": quality[1] if np.isfinite(quality[1]) else None,
        "equal": not np.isfinite(quality[0]),
        "evidence": runs[-1]["evidence"],
        "samples": runs,
    }


def measure(cases: list[str], repeats: int, out: Path, command: str) -> list[dict]:
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as work:
        for case in cases:
            base = CASES[case].get("base", "none")
            plans = [base, *CASES[case]["plans"]]
            files = [Path(work) / f"{case}-{i}.npy".replace("/", "-") for i in range(len(plans))]
            made: dict[str, list[dict]] = {plan: [] for plan in plans}
            for repeat in range(repeats):
                for plan, file in zip(plans, files, strict=True):
                    made[plan].append(run(case, plan, file))
                    print(case, plan, repeat, made[plan][-1].get("error", ""), file=sys.stderr, flush=True)
            rows += [row(case, p, made[p], made[base], f, files[0]) for p, f in zip(plans, files, strict=True)]
            write(rows, out, command)
    return rows


def cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def markdown(rows: list[dict], command: str) -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    lines = [
        "# The optimizers against plain, on a CPU",
        "",
        "## Command",
        "",
        f"    {command}",
        "",
        f"safelight {safelight.__version__}, {libraries}, Python {platform.python_version()}; {processor()}.",
        "float32 plain, DPM++ 2M on firstlight. Each run is a process of its own, plans interleaved; ratios are the",
        "medians of pairs of one round. The peak is that of the process, libraries and all. PSNR over all pictures, 8",
        "bits (the worst picture in brackets). Ready: loading, and for compile the compiling, after the first round",
        "from a warm cache.",
        "",
        "| case | plan | step | x | picture | x (spread) | ready | peak | PSNR (worst) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if "error" in r:
            lines.append(f"| {r['case']} | {r['plan']} | failed: {r['error']} | | | | | | |")
            continue
        plain = r["plan"] == CASES[r["case"]].get("base", "none")
        low, high = r["x_plain_spread"]
        quality = "-" if plain else "equal" if r["equal"] else f"{r['psnr_db']:.1f} ({r['worst_psnr_db']:.1f}) dB"
        spread = "-" if plain else f"{r['x_plain']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(
            f"| {r['case']} | {'plain' if r['plan'] == 'none' else r['plan']} | {r['step_seconds'] * 1000:.1f} ms "
            f"| {r['x_step']:.2f} | {r['seconds']:.3f} s | {spread} | {r['ready_seconds']:.0f} s "
            f"| {cell(r['peak_bytes'] and r['peak_bytes'] / 2**20, '{:.0f} MiB')} | {quality} |"
        )
    return "\n".join(lines) + "\n"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.processor()


def write(rows: list[dict], out: Path, command: str) -> None:
    out.with_suffix(".json").write_text(json.dumps({"schema": 1, "command": command, "rows": rows}, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown(rows, command))


def record(rows: list[dict], benchmark: str) -> None:
    """The rows of single optimizers, for `safelight optimizers NAME`; the first case that has one."""
    path = Path(safelight.__file__).parent / "optimizers" / "measured.json"
    found: dict[str, dict] = {}
    for r in rows:
        names = {word.partition("=")[0].partition(".")[0] for word in r["plan"].split(",")}
        if "error" in r or r["plan"] == "none" or len(names) > 1 or (name := names.pop()) in found:
            continue
        kept = {key: r[key] for key in ("case", "plan", "seconds", "x_plain", "peak_bytes", "psnr_db")}
        kept = {key: round(value, 3) if isinstance(value, float) else value for key, value in kept.items()}
        found[name] = {**kept, "benchmark": benchmark}
    path.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--one", nargs=3, metavar=("CASE", "PLAN", "PIXELS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        case, plan, pixels = args.one
        print(json.dumps(one(CASES[case], plan, Path(pixels))))
        return
    command = f"python benchmarks/optimizers.py --repeats {args.repeats} --out {args.out}"
    rows = measure(args.cases, args.repeats, args.out, command)
    if args.record:
        record(rows, f"{args.out}.md")
    print(args.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
