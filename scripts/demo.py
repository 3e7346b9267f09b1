"""Plain against planned on the bundled model, each in a fresh process: seconds, peak bytes, difference of the pictures.

python scripts/demo.py --out demo      (make demo)

Writes DIR/plain/, DIR/planned/, DIR/side-by-side.png and DIR/demo.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from safelight.measure.structure import psnr

PROMPTS = (
    "a red apple, 3d, on a blue background",
    "a fox, flat, on a green background",
    "a rocket, noto, on a purple background",
    "an owl, 3d, on a yellow background",
)
RUNS = {"plain": "none", "planned": "auto"}
SEED = 1
COUNT, BATCH_SIZE = 8, 4


def draw(prompt: str, folder: Path, optimize: str) -> dict:
    """One process, COUNT pictures of one prompt; the first batch pays for warming up."""
    command = [sys.executable, "-m", "safelight", "generate", prompt, "--out", str(folder), "--upscale", "4"]
    command += ["--seed", str(SEED), "--count", str(COUNT), "--batch-size", str(BATCH_SIZE)]
    command += ["--optimize", optimize, "--json"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if finished.returncode:
        sys.exit(finished.returncode)
    return json.loads(finished.stdout)


def read(path: str) -> Image.Image:
    return Image.open(path).convert("RGB")


def side_by_side(runs: dict[str, list[dict]]) -> Image.Image:
    """A row per run, its name at the left, a column per prompt."""
    side, margin, name = 256, 8, 80
    sheet = Image.new("RGB", (name + len(PROMPTS) * (side + margin), len(runs) * (side + margin)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (label, documents) in enumerate(runs.items()):
        pen.text((margin, row * (side + margin) + side // 2), label, fill="black")
        for column, document in enumerate(documents):
            picture = Image.open(document["pictures"][0]["path"]).resize((side, side))
            sheet.paste(picture, (name + column * (side + margin), row * (side + margin)))
    return sheet


def row(label: str, documents: list[dict], plain: list[dict]) -> dict:
    """Per picture: seconds of each stage, and the difference from the plain picture of the same seed."""
    pictures = sum(len(document["pictures"]) for document in documents)
    stages = {stage for document in documents for stage in document["seconds"]}
    pairs = [
        psnr(read(one["path"]), read(other["path"]))
        for mine, theirs in zip(documents, plain, strict=True)
        for one, other in zip(mine["pictures"], theirs["pictures"], strict=True)
    ]
    return {
        "run": label,
        "seconds": {s: sum(d["seconds"].get(s, 0.0) for d in documents) / pictures for s in sorted(stages)},
        "peak_bytes": max(d["peak_bytes"] or 0 for d in documents) or None,
        "psnr_db": None if label == "plain" else {"median": float(np.median(pairs)), "worst": min(pairs)},
        "engaged": [f"{o['name']} {o['value']}".strip() for o in documents[0]["optimizers"]],
    }


def show(rows: list[dict]) -> None:
    print(f"\n{'run':10s}{'seconds':>9s}{'denoise':>9s}{'peak':>11s}   picture against plain, engaged")
    for r in rows:
        seconds = sum(r["seconds"].values())
        peak = f"{r['peak_bytes'] / 2**20:.0f} MiB" if r["peak_bytes"] else "unmeasured"
        far = f"PSNR {r['psnr_db']['median']:.1f} dB (worst {r['psnr_db']['worst']:.1f})" if r["psnr_db"] else "-"
        print(
            f"{r['run']:10s}{seconds:9.3f}{r['seconds']['denoise']:9.3f}{peak:>11s}   {far} {', '.join(r['engaged'])}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    out = parser.parse_args().out
    runs: dict[str, list[dict]] = {label: [] for label in RUNS}
    for i, prompt in enumerate(PROMPTS):  # interleaved, so that a busy moment meets both
        for label, optimize in RUNS.items():
            print(f"{label}: {prompt}", flush=True)
            runs[label].append(draw(prompt, out / label / f"{i}", optimize))
    rows = [row(label, documents, runs["plain"]) for label, documents in runs.items()]
    (out / "demo.json").write_text(json.dumps(rows, indent=2) + "\n")
    side_by_side(runs).save(out / "side-by-side.png")
    show(rows)
    print(f"\nseconds per picture of 256 px, peak of the whole process; pictures: {out / 'side-by-side.png'}")


if __name__ == "__main__":
    main()
