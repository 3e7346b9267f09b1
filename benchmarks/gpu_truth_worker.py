"""One process of scripts/gpu-truth: builds a pipeline, measures rows one after the other, prints a line for each.

python benchmarks/gpu_truth_worker.py '{"model": "sd15", "dtype": "float16", "rows": [{"plan": "auto", ...}], ...}'

A row's line is MARK and a JSON object; whatever a library prints besides is not one. A row that fails is told with its
error, and ends the process: what a failure left behind shall not be measured. One that shows no effect, or does not
fit, was undone and ends nothing.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fullsize
import numpy as np

from safelight.errors import DidNotEngage, UsageError
from safelight.optimizers.registry import swapped
from safelight.planner import wish
from safelight.probe.device import Device, here
from safelight.request import Request
from safelight.run.load import Loaded, pipeline
from safelight.session import Session

MARK = "ROW "
PROMPT, SEED = "a lighthouse on a cliff, 3d", 1
SAMPLES, WANTED_SECONDS = 5, 15.0  # runs of one row: at most so many, and about so long
PAIRED_SECONDS = 4.0  # plain is measured again after each row that shares its process, if that takes less


def main(specification: dict[str, Any]) -> None:
    device = here(specification["device"])
    pipe = build(specification["model"], specification["dtype"], specification["build_on"])
    for row in specification["rows"]:
        found = attempt(pipe, device, specification, row)
        sys.stdout.write(f"{MARK}{json.dumps({'key': row['key'], **found})}\n")
        sys.stdout.flush()
        if found["status"] == "failed" and not found.get("undone"):
            return


def build(model: str, dtype: str, device: str) -> Any:
    if model in fullsize.MODELS:
        return fullsize.build(model, dtype, device)
    pipe, _ = pipeline(model, dtype=dtype)
    return pipe


def attempt(pipe: Any, device: Device, specification: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """One job of a batch: whatever goes wrong with it is its result."""
    try:
        return {"status": "measured", **measured(pipe, device, specification, row)}
    except DidNotEngage as error:  # the session has put everything back: the next row may follow
        return {"status": "failed", "why": one_line(error), "undone": True}
    except UsageError as error:
        return {"status": "does not fit", "why": one_line(error)}
    except Exception as error:  # noqa: BLE001
        return {"status": "failed", "why": one_line(error)}


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]


def measured(pipe: Any, device: Device, specification: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    side, batch = specification["side_px"], specification["batch_size"]
    # a process that ends with its row keeps nothing to give back, as `safelight.load` does
    loaded = Loaded(specification["model"], specification["model"]) if specification["fresh"] else None
    compiled, began = compile_seconds(), time.perf_counter()
    with Session(pipe, device, wish(row["plan"]), loaded, {}, side, side, batch) as session:
        setup = time.perf_counter() - began
        first, seen = look(session, row["steps"], batch)  # warms up what compiles late, too
        again = max(1, min(SAMPLES, int(WANTED_SECONDS / first["seconds"])))
        runs = [run(session, row["steps"], batch)[0] for _ in range(again)]
        best = sorted(runs, key=lambda one: one["seconds"])[len(runs) // 2]
        found = {
            **best,
            "samples": [one["seconds"] for one in runs],
            "first_seconds": first["seconds"],
            "setup_seconds": setup,
            "compile_seconds": compile_seconds() - compiled,
            "steps": row["steps"],
            "engaged": {status.name: status.evidence for status in session.status()},
            **predicted(session, row["steps"], batch),
        }
    if row["comparable"]:
        found |= compared(seen, Path(specification["reference"]), is_plain=not row["plan"])
    return found | paired(pipe, device, specification, row)


def run(session: Session, steps: int, batch: int) -> tuple[dict[str, Any], np.ndarray]:
    """Seconds of all stages, and of one denoising step; peak bytes: allocated by tensors, reserved from the card."""
    free_unused(session.device)
    result = session.generate(PROMPT, seed=SEED, steps=steps, count=batch, batch_size=batch)
    figures = {
        "seconds": sum(result.seconds.values()),
        "seconds_per_step": result.seconds["denoise"] / steps,
        "stages": dict(result.seconds),
        "peak_bytes": result.peak_bytes,
        "held_bytes": result.held_bytes,
        "reserved_bytes": reserved_bytes(session.device),
        "vae_retried": any(picture.vae_retried for picture in result.pictures),
    }
    return figures, np.stack([np.asarray(picture.image) for picture in result.pictures])


def look(session: Session, steps: int, batch: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run, and what it drew: latents as they reach the VAE, pictures."""
    with spied(session.pipe) as latents:
        first, pictures = run(session, steps, batch)
    return first, {"latents": latents[0], "pictures": pictures}


@contextmanager
def spied(pipe: Any) -> Iterator[list[np.ndarray]]:
    seen: list[np.ndarray] = []
    decode = pipe.vae.decode

    def look_and_decode(latents: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(latents.detach().float().cpu().numpy())
        return decode(latents, *args, **kwargs)

    with swapped(pipe.vae, decode=look_and_decode):
        yield seen


def free_unused(device: Device) -> None:
    """What the allocator keeps from earlier runs shall not count as reserved by the next."""
    import torch

    if device.kind == "cuda":
        torch.cuda.empty_cache()


def reserved_bytes(device: Device) -> int | None:
    import torch

    return torch.cuda.max_memory_reserved() if device.kind == "cuda" else None


def compile_seconds() -> float:
    """Seconds that torch.compile has spent in this process, by its own count."""
    from torch._dynamo.utils import compilation_time_metrics

    return sum(compilation_time_metrics.get("_compile.compile_inner", []))


def predicted(session: Session, steps: int, batch: int) -> dict[str, Any]:
    """What the run was to take, by rates measured on this device; nothing where nobody can say."""
    side = session.width
    asked = Request(PROMPT, width=side, height=side, seed=SEED, steps=steps, count=batch, batch_size=batch)
    cost = session.predicted(session.settle(asked))
    if cost is None:
        return {}
    return {
        "predicted_seconds": cost.seconds,
        "predicted_seconds_per_step": cost.step_seconds,
        "predicted_peak_bytes": cost.peak_bytes,
    }


def compared(seen: dict[str, Any], reference: Path, *, is_plain: bool) -> dict[str, Any]:
    """Against plain's of the same case, steps and seed: |difference| / |plain| of latents, dB of pictures."""
    if is_plain:
        np.savez(reference, **seen)
        return {}
    if not reference.exists():
        return {}
    plain = np.load(reference)
    return {
        "latents_differ": relative(seen["latents"], plain["latents"]),
        "psnr_db": psnr(seen["pictures"], plain["pictures"]),
    }


def relative(values: np.ndarray, plain: np.ndarray) -> float | None:
    """None for latents of another shape or not a number."""
    if values.shape != plain.shape:
        return None
    share = float(np.linalg.norm(values - plain) / np.linalg.norm(plain))
    return share if math.isfinite(share) else None


def psnr(values: np.ndarray, plain: np.ndarray) -> float | None:
    """Of 8 bit pictures; None where they are equal."""
    error = float(np.mean((values.astype(np.float64) - plain.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else None


def paired(pipe: Any, device: Device, specification: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Plain once more, right after the row: what has drifted in between has drifted for both."""
    if specification["fresh"] or not row["plan"]:
        return {}
    side, batch = specification["side_px"], specification["batch_size"]
    with Session(pipe, device, wish(""), None, {}, side, side, batch) as plain:
        if run(plain, 1, batch)[0]["seconds_per_step"] * row["steps"] > PAIRED_SECONDS:
            return {}
        return {"plain_seconds": run(plain, row["steps"], batch)[0]["seconds"]}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
