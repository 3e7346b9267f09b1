"""A realistic result of safelight bench: plain, a faster plan, a smaller one, one that failed; not all was measured."""

import math
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw

from safelight.measure.results import PlanResult, Requirement, Result, Round, Verdict

MIB = 2**20
PROMPTS = (
    'a "red" apple & a <b>pear</b>, 3d </script><script>alert(1)</script>',
    "Äpfel, 苹果 🍎 on a blue background, '</title>' \u2028 $main",
)
SEEDS = (7, 8, 9, 4294967295)


def run(text: float, denoise: float, decode: float, i: int) -> dict[str, float]:
    drift = 1 + 0.02 * math.sin(i)
    stages = {"text": text * drift, "denoise": denoise * drift, "decode": decode * drift}
    return {"total": sum(stages.values()) * 1.04, **stages}


def round_of(stages, peak, *, start: float, tensors: bool = True, i: int = 0) -> Round:
    runs = tuple(run(*stages, 5 * i + j) for j in range(5))
    return Round(
        load_seconds=2.31,
        open_seconds=start,
        first_seconds=runs[0]["total"] * 1.6,
        warmups=(runs[0]["total"] * 1.1, runs[0]["total"]),
        runs=runs,
        peaks={
            "tensor_bytes": peak if tensors else None,
            "reserved_bytes": int(peak * 1.12) if tensors else None,
            "process_bytes": peak + 700 * MIB,
            "device_bytes": None,
        },
        timeline=tuple(timeline(peak, start)),
        evaluations=20,
        threads=2,
    )


def timeline(peak: int, start: float):
    for i in range(240):
        at = i * (start + 6) / 240
        loaded = min(1.0, at / 2.3) * 0.55
        working = 0.0 if at < start + 2.3 else 0.2 + 0.25 * (math.sin(at * 5) > 0.9)
        yield round(at, 3), int(peak * (loaded + working))


def status(name: str, value: str, evidence: str, *, requested: bool = False, engaged: bool = True, fidelity="EXACT"):
    return {
        "name": name,
        "value": value,
        "requested": requested,
        "engaged": engaged,
        "evidence": evidence,
        "fidelity": fidelity,
    }


def quality(psnr: list[float], lpips: list[float | None]) -> dict[str, dict]:
    there = [value for value in lpips if value is not None]
    ordered = sorted(psnr)
    return {
        "psnr": {"median": ordered[len(psnr) // 2], "worst": ordered[0], "values": psnr},
        "ssim": {"median": 0.981, "worst": 0.942, "values": [0.99, 0.981, 0.942, 0.985]},
        "lpips": {"median": sorted(there)[len(there) // 2], "worst": max(there), "values": lpips},
        "ciede2000": {"median": 0.61, "worst": 1.42, "values": [0.4, 0.6, 1.42, 0.62]},
        "frechet": {"median": 12.3, "worst": 12.3, "values": [12.3]},
        "kernel": {"median": None, "worst": None, "values": []},
    }


def pictures(name: str) -> tuple[dict, ...]:
    return tuple({"path": f"{name}/{i}.png", "seed": s, "prompt": PROMPTS[i % 2]} for i, s in enumerate(SEEDS))


def plain() -> PlanResult:
    rounds = tuple(round_of((0.021, 0.262, 0.038), 518 * MIB, start=0.4, i=i) for i in range(2))
    predicted = {"seconds": {"text": 0.02, "denoise": 0.25, "decode": 0.04}, "peak_bytes": 500 * MIB}
    return PlanResult("plain", "none", predicted=predicted, rounds=rounds, pictures=pictures("plain"))


def auto() -> PlanResult:
    rounds = tuple(round_of((0.020, 0.084, 0.031), 566 * MIB, start=9.5, i=i) for i in range(2))
    return PlanResult(
        "auto",
        "auto",
        written="dtype=bfloat16,channels-last,compile-blocks,deep-cache=3",
        statuses=(
            status("dtype", "bfloat16", "212 of 212 tensors are bfloat16", requested=True, fidelity="ROUNDING"),
            status("channels-last", "", "58 convolutions lie channels last"),
            status("compile-blocks", "", "14 compiled graphs, 0 graph breaks", fidelity="ROUNDING"),
            status("deep-cache", "3", "13 of 20 steps took the cached features", fidelity="APPROXIMATE"),
        ),
        left={
            "attention-slicing": "no gain expected here: memory suffices, and it is slower",
            "taesd": "its loss is not allowed here, and <nothing> trained for this latent is there",
            "fp8": "needs torchao >= 0.10: pip install torchao",
        },
        predicted={"seconds": {"text": 0.02, "denoise": 0.092, "decode": 0.03}, "peak_bytes": 540 * MIB},
        rounds=rounds,
        pictures=pictures("auto"),
        quality=quality([38.2, 41.0, 31.7, math.inf], [0.011, 0.008, 0.043, 0.0]),
    )


def small() -> PlanResult:
    rounds = tuple(round_of((0.022, 0.301, 0.052), 305 * MIB, start=0.7, i=i) for i in range(2))
    return PlanResult(
        "layerwise-casting with vae-tiling in a small memory",
        "layerwise-casting,vae-tiling",
        written="layerwise-casting,vae-tiling=512",
        statuses=(status("vae-tiling", "512", "no tile was cut", requested=True, engaged=False),),
        rounds=rounds,
        pictures=pictures("small"),
        quality=quality([33.5, 34.0, 29.3, 35.5], [0.031, 0.027, None, 0.052]),
        artifacts=("seed 9: seams at the borders of tiles",),
    )


def broken() -> PlanResult:
    failure = "DoesNotApply: first-block-cache needs a transformer, this model has a UNet <UNet2DConditionModel>"
    return PlanResult("first-block-cache", "first-block-cache", failure=failure)


def result() -> Result:
    conditions = (
        {
            "name": "enough runs",
            "ok": True,
            "found": "10 of each plan, in 2 rounds",
            "wanted": "10 or more in 2 or more",
        },
        {"name": "spread", "ok": True, "found": "4.1% at most, of auto", "wanted": "under 10% of the median run"},
        {"name": "same noise", "ok": True, "found": "seeds and sampler are equal", "wanted": "the same request"},
        {"name": "proof", "ok": False, "found": "without: vae-tiling", "wanted": "evidence of every optimizer"},
    )
    return Result(
        when="2026-11-21T20:14:05+00:00",
        command=("safelight", "bench", "--model", "firstlight", "--plans", "auto; layerwise-casting,vae-tiling"),
        environment={
            "safelight": "0.1.0",
            "python": "3.11.7",
            "torch": "2.13.0+cpu",
            "diffusers": "0.42.1",
            "processor": "AMD EPYC 7B13",
            "cores": 2,
            "memory_bytes": 24 * 2**30,
            "device": "cpu",
            "load_average_before": 0.41,
        },
        model="firstlight",
        request={
            "prompt": PROMPTS[0],
            "width": 64,
            "height": 64,
            "steps": 20,
            "guidance": 4.0,
            "seed": 7,
            "hires": None,
        },
        plans=(plain(), auto(), small(), broken()),
        verdict=Verdict.of(conditions),
        requirements=(Requirement("speed>=1.5", "auto", 2.39, True), Requirement("psnr>=40", "auto", 38.2, False)),
    )


def draw(folder: Path, side_px: int = 64) -> Path:
    """Writes the pictures of `result` into a folder: a round thing on a gradient, spoiled a little by the plans."""
    noise = Image.effect_noise((side_px, side_px), 60).convert("RGB")
    for i, seed in enumerate(SEEDS):
        ramp = Image.linear_gradient("L").resize((side_px, side_px))
        whole = Image.merge("RGB", (ramp.rotate(90 * i), ramp, ImageChops.invert(ramp)))
        edge = side_px * (2 + i) // 10
        ImageDraw.Draw(whole).ellipse((edge, edge, side_px - edge, side_px - edge // 2), fill=(200, 30 + 30 * i, 40))
        for name, share in (("plain", 0.0), ("auto", 0.02 * i), ("small", 0.07)):
            place = folder / name / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.blend(whole, noise, share).save(place)
        assert seed >= 0
    return folder
