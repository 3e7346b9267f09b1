"""Figures of docs/claims.md: each is read out of a benchmark's JSON, by the file, the row and the field.

Comes in: a name of FIGURES. Goes out: the figure as text, and the files it was read from. A figure may be worked out
from several rows, of several files.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

FOLDER = Path(__file__).parent
FIRST = "first-light_cpu_2026-11-21.json"
OPTIMIZERS = "optimizers_cpu_2026-11-21.json"
SD15 = "optimizers-sd15_cpu_2026-11-21.json"
SPEED = "prediction-seconds_cpu_2026-11-21.json"
VAE = "vae_cpu_2026-11-21.json"
SMALL = "claims_cpu_2026-11-21.json"  # claims_measure.py's

ONE, EIGHT = "firstlight 64 px", "firstlight 64 px, batches of 8"
SD15_CASE = "SD1.5, random weights, 256 px"
BF16, LAST = "dtype=bfloat16", "dtype=bfloat16,channels-last"
COMPILED = f"{LAST},compile"
DECODE, ENCODE = "sd15 decode 1024 px bfloat16", "sd15 encode 1024 px bfloat16"
MIB, GIB = 2**20, 2**30
Row = Mapping[str, Any]


@cache
def book(file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / file).read_text())
    return found


@dataclass
class Reader:
    """Reads rows, and notes out of which files."""

    files: list[str] = field(default_factory=list)

    def row(self, file: str, part: str = "rows", /, **match: Any) -> Row:
        """The one row with these values. Fails where there are none or several: a figure has one parent."""
        if file not in self.files:
            self.files.append(file)
        rows = [row for row in book(file)[part] if all(row[key] == value for key, value in match.items())]
        if len(rows) != 1:
            raise LookupError(f"{file}, {part}: {len(rows)} rows with {match}")
        found: Row = rows[0]
        return found

    def sd15(self, plan: str) -> Row:
        return self.row(SD15, case=SD15_CASE, plan=plan)

    def one(self, plan: str) -> Row:
        return self.row(OPTIMIZERS, case=ONE, plan=plan)

    def eight(self, plan: str) -> Row:
        return self.row(OPTIMIZERS, case=EIGHT, plan=plan)

    def vae(self, way: str, case: str = DECODE) -> Row:
        return self.row(VAE, case=case, way=way)

    def seconds(self, case: str, part: str) -> float:
        return float(self.row(SPEED, case=case, part=part)["measured"]["seconds"])

    def small(self, part: str, /, **match: Any) -> Row:
        return self.row(SMALL, part, **match)

    def steps(self, sampler: str, steps: int) -> Row:
        return self.small("steps", sampler=sampler, steps=steps)

    def weights(self, model: str, dtype: str, *parts: str) -> int:
        return sum(int(self.small("weights", model=model, part=part, dtype=dtype)["weight_bytes"]) for part in parts)

    def tiled(self, side: int, tile: int | None = None, overlap: float | None = None) -> Row:
        return self.small("overlap", side_px=side, tile_px=tile, overlap=overlap)

    def batch(self, side: int, size: int) -> Row:
        return self.small("counts", side_px=side, batch=size)


Read = Callable[[Reader], float]


@dataclass(frozen=True, slots=True)
class Figure:
    read: Read
    show: Callable[[float], str]


def times(value: float) -> str:
    return f"{value:.2f} times" if value < 10 else f"{value:.0f} times"


def percent(value: float) -> str:
    return f"{100 * value:.0f} %" if abs(value) >= 0.1 else f"{100 * value:.2g} %"


def gib(value: float) -> str:
    return f"{value / GIB:.2f} GiB"


def mib(value: float) -> str:
    return f"{value / MIB:.0f} MiB"


def decibel(value: float) -> str:
    return f"{value:.1f} dB"


def second(value: float) -> str:
    return f"{value:.3g} s"


def tflop(value: float) -> str:
    return f"{value:.3g} TFLOP"


def number(value: float) -> str:
    return f"{value:.3g}"


def whole_bytes(row: Row) -> float:
    """Of a batch, its pictures decoded together: weights, and the larger of both phases."""
    return float(row["weight_bytes"] + max(row["denoise_bytes"], row["decode_bytes"]))


def stage(row: Row, name: str) -> float:
    return median(sample["stages"][name] for sample in row["samples"])


def speed(part: str, of: str | float, than: str | float, key: str) -> Read:
    """How many times as fast one row of a small part is as another."""
    return lambda r: r.small(part, **{key: than})["seconds"] / r.small(part, **{key: of})["seconds"]


def small_ratio(what: str) -> Read:
    def read(r: Reader) -> float:
        row = r.small("tiles", what=what)
        return float(row["before_ms"] / row["after_ms"])

    return read


def per_picture(r: Reader, size: int) -> float:
    return float(r.small("batches", pictures=size)["seconds"] / size)


def decoded_share(r: Reader, size_px: int, steps: int) -> float:
    """Of the operations of a picture with guidance, those of its decode."""
    row = r.batch(size_px, 1)
    return float(row["decode_tflop"] / (row["decode_tflop"] + steps * row["denoise_tflop"]))


SD15_PARTS, SDXL_PARTS = ("unet", "vae", "text_encoder"), ("unet", "vae", "text_encoder", "text_encoder_2")
FLUX_PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
DECODED = {"model": "sdxl", "part": "vae", "dtype": "float16"}

FIGURES: Mapping[str, Figure] = {
    # weights and activations, counted
    "sd15_16": Figure(lambda r: r.weights("sd15", "float16", *SD15_PARTS), gib),
    "sd15_32": Figure(lambda r: r.weights("sd15", "float32", *SD15_PARTS), gib),
    "sd15_unet_16": Figure(lambda r: r.weights("sd15", "float16", "unet"), gib),
    "sd15_vae_16": Figure(lambda r: r.weights("sd15", "float16", "vae"), gib),
    "sdxl_16": Figure(lambda r: r.weights("sdxl", "float16", *SDXL_PARTS), gib),
    "sdxl_unet_16": Figure(lambda r: r.weights("sdxl", "float16", "unet"), gib),
    "flux_16": Figure(lambda r: r.weights("flux1-dev", "bfloat16", *FLUX_PARTS), gib),
    "flux_transformer_16": Figure(lambda r: r.weights("flux1-dev", "bfloat16", "transformer"), gib),
    "decode_512": Figure(lambda r: r.batch(512, 1)["decode_bytes"], gib),
    "decode_512_32": Figure(lambda r: r.small("weights", model="sd15", part="vae", dtype="float32")["peak_bytes"], gib),
    "decode_1024": Figure(lambda r: r.tiled(1024)["peak_bytes"], gib),
    "decode_2048": Figure(lambda r: r.tiled(2048)["peak_bytes"], gib),
    "decode_512_of_six": Figure(lambda r: r.batch(512, 6)["decode_bytes"], gib),
    "sdxl_decode": Figure(lambda r: r.small("weights", **DECODED)["peak_bytes"], gib),
    "sdxl_decode_32": Figure(lambda r: r.small("weights", **(DECODED | {"dtype": "float32"}))["peak_bytes"], gib),
    "sd15_run_16": Figure(lambda r: whole_bytes(r.batch(512, 1)), gib),
    "sd15_run_32": Figure(
        lambda r: (
            r.weights("sd15", "float32", *SD15_PARTS)
            + r.small("weights", model="sd15", part="vae", dtype="float32")["peak_bytes"]
        ),
        gib,
    ),
    "sdxl_run_16": Figure(
        lambda r: r.weights("sdxl", "float16", *SDXL_PARTS) + r.small("weights", **DECODED)["peak_bytes"], gib
    ),
    **{
        f"batch_{side}_{size}": Figure(lambda r, side=side, size=size: whole_bytes(r.batch(side, size)), gib)
        for side, size in ((512, 4), (512, 6), (768, 2), (768, 3), (1024, 1), (1024, 2))
    },
    "step_512": Figure(lambda r: r.batch(512, 1)["denoise_tflop"], tflop),
    "step_768_share": Figure(lambda r: r.batch(768, 2)["denoise_tflop"] / 2 / r.batch(512, 1)["denoise_tflop"], times),
    "step_1024_share": Figure(lambda r: r.batch(1024, 1)["denoise_tflop"] / r.batch(512, 1)["denoise_tflop"], times),
    "second_pass": Figure(
        lambda r: (15 * r.batch(768, 2)["denoise_tflop"] / 2) / (20 * r.batch(512, 1)["denoise_tflop"]), times
    ),
    "decode_share_20": Figure(lambda r: decoded_share(r, 512, 20), percent),
    "decode_share_measured": Figure(
        lambda r: (lambda d, s: d / (d + 20 * s))(
            r.seconds("sd15 512 px, float32", "decode"), r.seconds("sd15 512 px, float32", "denoise")
        ),
        percent,
    ),
    "pixels": Figure(
        lambda r: r.small("pixels", on="pixels")["tflop"] / r.small("pixels", on="latents")["tflop"], times
    ),
    # tiles
    **{
        f"tiles_{str(share)[2:]}": Figure(lambda r, share=share: r.tiled(2048, 512, share)["peak_bytes"], mib)
        for share in (0.125, 0.25, 0.5)
    },
    **{
        f"tiles_{str(share)[2:]}_work": Figure(lambda r, share=share: r.tiled(2048, 512, share)["tflop"], tflop)
        for share in (0.125, 0.25, 0.5)
    },
    "tiles_small": Figure(lambda r: r.tiled(2048, 256, 0.25)["peak_bytes"], mib),
    "tiles_small_work": Figure(lambda r: r.tiled(2048, 256, 0.25)["tflop"], tflop),
    "whole_2048_work": Figure(lambda r: r.tiled(2048)["tflop"], tflop),
    "tiling_1024_bytes": Figure(lambda r: r.vae("tiling")["peak_bytes"] / r.vae("whole")["peak_bytes"], percent),
    "tiling_1024_time": Figure(lambda r: r.vae("tiling")["cpu_seconds"] / r.vae("whole")["cpu_seconds"], times),
    "tiling_1024_psnr": Figure(lambda r: r.vae("tiling")["to_whole"]["psnr"], decibel),
    "tiling_firstlight_psnr": Figure(
        lambda r: r.row(FIRST, case="256 px, one by one", plan="vae-tiling=64")["psnr_db"], decibel
    ),
    "blended": Figure(lambda r: r.vae("tiling")["cpu_seconds"] / r.vae("blended")["cpu_seconds"], times),
    "exact": Figure(lambda r: r.vae("whole")["cpu_seconds"] / r.vae("exact 0.30")["cpu_seconds"], times),
    "exact_bytes": Figure(lambda r: r.vae("exact 0.30")["peak_bytes"] / r.vae("whole")["peak_bytes"], percent),
    "exact_encode": Figure(
        lambda r: r.vae("whole", ENCODE)["cpu_seconds"] / r.vae("exact 0.40", ENCODE)["cpu_seconds"], times
    ),
    "last_decode": Figure(
        lambda r: (
            r.seconds("sd15 512 px, bfloat16", "decode") / r.seconds("sd15 512 px, bfloat16, channels-last", "decode")
        ),
        times,
    ),
    "in_place": Figure(small_ratio("multiplying a tile"), times),
    "contiguous": Figure(small_ratio("a convolution of a window"), times),
    "two_ramps": Figure(small_ratio("blending by a plane or by two ramps"), times),
    "ramp_share": Figure(
        lambda r: (
            r.small("tiles", what="a cosine ramp")["before_ms"]
            / 1e3
            / r.vae("whole", "sd15 decode 512 px float32")["cpu_seconds"]
        ),
        percent,
    ),
    "slicing_bytes": Figure(lambda r: r.eight("vae-slicing")["peak_bytes"] / r.eight("none")["peak_bytes"], percent),
    "slicing_x": Figure(lambda r: r.eight("vae-slicing")["x_plain"], times),
    # attention
    "fused_x": Figure(speed("attention", "fused", "plain", "way"), times),
    "sliced_x": Figure(speed("attention", "sliced, half the heads", "fused", "way"), times),
    "sliced_plain_x": Figure(speed("attention", "sliced, half the heads", "plain", "way"), times),
    "fused_bytes": Figure(lambda r: r.small("attention", way="fused")["peak_bytes"], mib),
    "plain_bytes": Figure(lambda r: r.small("attention", way="plain")["peak_bytes"], mib),
    "sliced_bytes": Figure(lambda r: r.small("attention", way="sliced, half the heads")["peak_bytes"], mib),
    "sliced_error": Figure(lambda r: r.small("attention", way="sliced, half the heads")["difference"], number),
    "sliced_picture_x": Figure(lambda r: r.one("attention-slicing")["x_plain"], times),
    "merged_25": Figure(speed("merging", 0.25, 0.0, "ratio"), times),
    "merged_50": Figure(speed("merging", 0.5, 0.0, "ratio"), times),
    # dtypes
    "bf16_step": Figure(lambda r: r.sd15(BF16)["x_step"], times),
    "bf16_x": Figure(lambda r: r.sd15(BF16)["x_plain"], times),
    "bf16_bytes": Figure(lambda r: 1 - r.sd15(BF16)["peak_bytes"] / r.sd15("none")["peak_bytes"], percent),
    "bf16_psnr": Figure(lambda r: r.sd15(BF16)["psnr_db"], decibel),
    "bf16_firstlight": Figure(lambda r: r.one(BF16)["x_plain"], times),
    "bf16_firstlight_psnr": Figure(lambda r: r.one(BF16)["psnr_db"], decibel),
    "bf16_block": Figure(speed("dtypes", "bfloat16", "float32", "dtype"), times),
    "fp16_block": Figure(speed("dtypes", "float16", "float32", "dtype"), times),
    "bf16_error": Figure(lambda r: r.small("dtypes", dtype="bfloat16")["error"], number),
    "fp16_error": Figure(lambda r: r.small("dtypes", dtype="float16")["error"], number),
    "fp16_weights": Figure(
        lambda r: 1 - r.weights("sd15", "float16", *SD15_PARTS) / r.weights("sd15", "float32", *SD15_PARTS), percent
    ),
    "fp16_run": Figure(
        lambda r: (
            1
            - whole_bytes(r.batch(512, 1))
            / (
                r.weights("sd15", "float32", *SD15_PARTS)
                + r.small("weights", model="sd15", part="vae", dtype="float32")["peak_bytes"]
            )
        ),
        percent,
    ),
    "storage_x": Figure(lambda r: r.one("layerwise-casting")["x_plain"], times),
    "storage_bytes": Figure(lambda r: r.one("layerwise-casting")["peak_bytes"] / r.one("none")["peak_bytes"], percent),
    "storage_psnr": Figure(lambda r: r.one("layerwise-casting")["psnr_db"], decibel),
    # compiling, caches, batches, guidance
    "compile_sd15": Figure(lambda r: r.sd15(COMPILED)["x_step"] / r.sd15(BF16)["x_step"], times),
    "compile_firstlight": Figure(lambda r: r.one(LAST)["step_seconds"] / r.one(COMPILED)["step_seconds"], times),
    "compile_ready": Figure(lambda r: r.sd15(COMPILED)["ready_seconds"] - r.sd15(BF16)["ready_seconds"], second),
    "compile_bytes": Figure(lambda r: r.one(COMPILED)["peak_bytes"] / r.one(LAST)["peak_bytes"], times),
    "compile_decode": Figure(
        lambda r: (
            stage(r.eight(COMPILED), "decode")
            / stage(r.eight(f"{COMPILED},compile.parts=denoiser+vae,deep-cache=4"), "decode")
        ),
        times,
    ),
    "stack_sd15": Figure(lambda r: r.sd15(COMPILED)["x_plain"], times),
    "stack_lossy": Figure(
        lambda r: r.eight(f"{COMPILED},deep-cache=4,guidance-cutoff=0.7,guidance-cutoff.reuse=true")["x_plain"], times
    ),
    "stack_lossy_psnr": Figure(
        lambda r: r.eight(f"{COMPILED},deep-cache=4,guidance-cutoff=0.7,guidance-cutoff.reuse=true")["psnr_db"], decibel
    ),
    "tier_1": Figure(
        lambda r: (
            r.sd15(BF16)["x_plain"]
            * r.steps("DDIM", 50)["evaluations"]
            / r.steps("DPM++ 2M Uniform", 20)["evaluations"]
        ),
        times,
    ),
    "tier_2": Figure(
        lambda r: (
            r.sd15(COMPILED)["x_plain"]
            * r.steps("DDIM", 50)["evaluations"]
            / r.steps("DPM++ 2M Uniform", 20)["evaluations"]
        ),
        times,
    ),
    "fused_qkv": Figure(lambda r: r.one("fused-qkv")["x_plain"], times),
    "cache_x": Figure(lambda r: r.one("deep-cache=3")["x_plain"], times),
    "cache_psnr": Figure(lambda r: r.one("deep-cache=3")["psnr_db"], decibel),
    "cache_sd15": Figure(lambda r: r.sd15("deep-cache=3")["x_plain"], times),
    "cache_bytes": Figure(lambda r: r.sd15("deep-cache=3")["peak_bytes"] / r.sd15("none")["peak_bytes"], times),
    "cache_compiled": Figure(lambda r: r.one(f"{COMPILED},deep-cache=5")["x_plain"], times),
    "cache_compiled_over": Figure(
        lambda r: r.one(f"{COMPILED},deep-cache=5")["x_plain"] / r.one(COMPILED)["x_plain"], times
    ),
    "batch_8": Figure(lambda r: r.one("none")["seconds"] / r.eight("none")["seconds"], times),
    "batch_16_x": Figure(lambda r: per_picture(r, 1) / per_picture(r, 16), times),
    "batch_4_x": Figure(lambda r: per_picture(r, 1) / per_picture(r, 4), times),
    "batch_16_bytes": Figure(
        lambda r: r.small("batches", pictures=16)["peak_bytes"] / r.small("batches", pictures=1)["peak_bytes"], times
    ),
    "unguided_x": Figure(
        lambda r: (
            r.small("guidance", latents=64, guided=True)["seconds"]
            / r.small("guidance", latents=64, guided=False)["seconds"]
        ),
        times,
    ),
    **{
        f"cut_{name}": Figure(lambda r, scale=scale: r.small("scales", guidance=scale)["cut"], percent)
        for name, scale in (("3", 3.0), ("7", 7.5), ("12", 12.0))
    },
    # samplers
    **{
        f"{name}_{count}": Figure(lambda r, label=label, count=count: r.steps(label, count)["psnr"], decibel)
        for name, label, counts in (
            ("karras", "DPM++ 2M Karras", (10, 15, 20, 25, 30, 50)),
            ("multistep", "DPM++ 2M Uniform", (20, 25)),
            ("sde", "DPM++ SDE Karras", (20, 25, 30)),
            ("unipc", "UniPC", (12, 15, 20, 25)),
            ("euler", "Euler", (15, 20)),
            ("heun", "Heun", (15, 20)),
            ("lms", "LMS Karras", (15, 25)),
            ("ddim", "DDIM", (20, 30, 50, 100)),
        )
        for count in counts
    },
    "few_steps": Figure(lambda r: r.steps("DDIM", 50)["seconds"] / r.steps("DPM++ 2M Uniform", 20)["seconds"], times),
    "hundred": Figure(lambda r: r.steps("DDIM", 100)["seconds"] / r.steps("DPM++ 2M Karras", 20)["seconds"], times),
    "sde_cost": Figure(
        lambda r: r.steps("DPM++ SDE Karras", 20)["seconds"] / r.steps("DPM++ 2M Karras", 20)["seconds"], times
    ),
    "heun_cost": Figure(lambda r: r.steps("Heun", 20)["seconds"] / r.steps("Euler", 20)["seconds"], times),
    "run_bytes": Figure(
        lambda r: r.small("runs", steps=20)["peak_bytes"] / r.small("runs", steps=50)["peak_bytes"] - 1, percent
    ),
    "sigma_trained": Figure(lambda r: r.small("schedules", betas="scaled_linear")["largest_sigma"], number),
    "sigma_cosine": Figure(lambda r: r.small("schedules", betas="squaredcos_cap_v2")["largest_sigma"], number),
    "psnr_trained": Figure(lambda r: r.small("schedules", betas="scaled_linear")["psnr"], decibel),
    "psnr_cosine": Figure(lambda r: r.small("schedules", betas="squaredcos_cap_v2")["psnr"], decibel),
}


def read(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """(text of each figure, files they were read from)."""
    reader = Reader()
    return {name: FIGURES[name].show(FIGURES[name].read(reader)) for name in names}, reader.files
