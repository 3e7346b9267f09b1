"""Decoding and encoding whole, by diffusers' tiling, exact in strips and in blended tiles: seconds, bytes, errors.

python benchmarks/vae.py --out benchmarks/vae_cpu_2026-11-22
python benchmarks/vae.py --cases "sd15 decode 1024" --ways whole exact --out /tmp/some
python benchmarks/vae.py --device cuda --compile --out benchmarks/vae_h200_2026-11-22

Each case in each way is measured in a process of its own; the most important cases come first. Writes OUT.md and
OUT.json anew after each. How each figure is measured stands on the page.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vae_page as page
from vae_cases import Case, cases, way_of

MINUTES = 40.0  # for one process: what takes longer is stopped, and told
TRUTH = "truth"  # a process that makes what 16 bit is held against


def main() -> None:
    args = parse()
    if args.one:
        case, way, folder = args.one
        print(json.dumps(one(Case(**json.loads(case)), way, Path(folder), args.device, args.picture)))
        return
    if args.list:
        print("\n".join(f"{case.name}: {', '.join(case.ways)}" for case in selected(args)))
        return
    print(measure(args).read_text())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--cases", nargs="*", default=[], help="words in their names, any of them; default: all")
    parser.add_argument("--ways", nargs="*", default=[], help="how their names begin (exact); default: all")
    parser.add_argument("--compile", action="store_true", help="whole, compiled, as one more way")
    parser.add_argument("--picture", type=Path, help="a photograph for the bundled VAE; default: a drawn picture")
    parser.add_argument("--side", type=int, help="another size for the chosen cases, for a quick look")
    parser.add_argument("--add", action="store_true", help="keep the cases in OUT.json that are not measured now")
    parser.add_argument("--list", action="store_true", help="the cases and their ways, nothing measured")
    parser.add_argument("--out", type=Path, help="OUT.md and OUT.json are written")
    parser.add_argument("--one", nargs=3, metavar=("CASE", "WAY", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.out is None and not (args.one or args.list):
        parser.error("--out is needed")
    return args


def selected(args: argparse.Namespace) -> list[Case]:
    chosen = cases(args.device, args.cases, compiled=args.compile)
    if args.side is None:
        return chosen
    return list(
        {case.name: case for case in (replace(one, height=args.side, width=args.side) for one in chosen)}.values()
    )


# -- in a process of its own -------------------------------------------------------------------------------------------


def one(case: Case, way: str, folder: Path, device: str, picture: Path | None) -> dict[str, Any]:
    import vae_worker

    if way == TRUTH:
        return vae_worker.truth(case, folder, device, picture)
    return vae_worker.measured(case, way_of(way), folder, device, picture)


def run(case: Case, way: str, folder: Path, device: str, picture: Path | None) -> dict[str, Any]:
    """`one`, in a new process; {"error": ...} if it fails."""
    command = [sys.executable, __file__, "--device", device, "--one", json.dumps(asdict(case)), way, str(folder)]
    command += ["--picture", str(picture)] if picture else []
    threads = {"OMP_NUM_THREADS": str(case.threads)} if case.threads else {}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | threads, timeout=60 * MINUTES, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {MINUTES:.0f} minutes"}
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"error": said[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# -- all of them -------------------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> Path:
    chosen = selected(args)
    rows = earlier(args.out, [case.name for case in chosen]) if args.add else []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for case in chosen:
            for way in processes(case, args.ways, folder):
                found = run(case, way, folder, args.device, args.picture)
                if way != TRUTH or "error" in found:
                    rows.append({"case": case.name, "way": way, **asdict(case), **found})
                    write(args, rows)
    return Path(f"{args.out}.md")


def processes(case: Case, wanted: Sequence[str], folder: Path) -> list[str]:
    """The wanted ways, and whole, which others are held against; before them the truth, if it is not there."""
    import vae_compare

    ways = [way for way in case.ways if way == "whole" or not wanted or way.startswith(tuple(wanted))]
    needed = case.dtype != "float32" and case.truth and not vae_compare.truth_file(case, folder).exists()
    return [TRUTH, *ways] if needed else ways


def earlier(out: Path, measured_now: Sequence[str]) -> list[dict[str, Any]]:
    file = Path(f"{out}.json")
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    return [row for row in rows if row["case"] not in measured_now]


def write(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    from safelight.probe.device import here

    libraries = {name: version(name) for name in ("torch", "diffusers")}
    book = {
        "schema": 1,
        "command": " ".join(["python", "benchmarks/vae.py", *sys.argv[1:]]),
        "device": args.device,
        "machine": here(args.device).name,
        "picture": args.picture.name if args.picture else "",
        "versions": {**libraries, "python": platform.python_version()},
        "rows": rows,
    }
    Path(f"{args.out}.json").write_text(json.dumps(book, indent=1) + "\n")
    Path(f"{args.out}.md").write_text(page.markdown(book))


if __name__ == "__main__":
    main()
