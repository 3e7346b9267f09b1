"""The VAE in strips of rows or in blended tiles of our own: vae/, as optimizers."""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from safelight.config import bytes_of
from safelight.errors import UnknownName, UsageError
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer
from safelight.optimizers.target import Target
from safelight.probe.blueprint import Blueprint, Part
from safelight.simulate import inputs
from safelight.simulate.cost import Cost
from safelight.simulate.fake import fake
from safelight.vae import seams, tiles
from safelight.vae.blending import BLENDED, Blending, blending
from safelight.vae.running import Exact

# decoded here as a whole and in strips, and compared: tests/vae/test_engine.py
EXACT = (
    *BLENDED,
    *("AutoencoderKLTemporalDecoder", "AutoencoderKLHunyuanImage", "AutoencoderKLHunyuanVideo"),
    *("AutoencoderKLWan", "AutoencoderKLQwenImage", "AutoencoderKLLTXVideo", "AutoencoderKLMochi"),
    *("AutoencoderKLCogVideoX", "AutoencoderKLMagvit"),
)
SHARES = {"fast": 1.0, "small": 0.6, "smallest": 0.0}  # of what the fastest plan takes
PLANS = tuple(SHARES)
LEAST_PX = 512
PACE = 0.7  # of a whole decode's seconds for as many multiply-adds, on a CPU: strips stay in its cache, channels last
NOT_ON_CARDS = "it has been measured on CPUs alone: ask for it, -o exact-vae"


def _fits(target: Target, plan: str, budget: str) -> str | None:
    if plan not in PLANS:
        raise UnknownName("plan of exact-vae", plan, PLANS)
    if budget:
        bytes_of(budget)
    if target.vae is None:
        return "this pipeline has no VAE"
    name = target.vae.cls.__name__
    return None if name in EXACT else f"{name} has not been decoded in strips yet"


def _pointless(target: Target) -> str | None:
    if target.device.kind != "cpu":
        return NOT_ON_CARDS
    if max(target.width, target.height) < LEAST_PX:
        return f"a decode of less than {LEAST_PX} px is short and small as it is"
    return None


def _predict(cost: Cost, target: Target, plan: str, budget: str) -> Cost:
    """By the engine's own plans: bytes as they are, seconds by their multiply-adds."""
    assert target.vae is not None, "`fits` has said that there is none"
    known = _foreseen(target.vae.cls, _config(target), target.height, target.width, target.frames)
    if known is None:
        return cost
    exact, latents, weights = known
    narrow = cost.parts["vae"].total / weights if weights else 1.0  # 0.5 in 16 bits
    exact = replace(exact, share=SHARES[plan], budget_bytes=round(bytes_of(budget) / narrow) if budget else None)
    chosen = exact.plan(latents)
    pictures = (target.batch_size - 1) * target.frames * target.height * target.width * 3 * 4
    cost = cost.scaled(decode=chosen.work / exact.whole_work * PACE)
    return cost.changed("decode", live=round((chosen.peak_bytes + pictures) * narrow))


@contextmanager
def _faked(cls: type, config: str, height: int, width: int) -> Iterator[tuple[Any, Any, int]]:
    """(VAE, latents of one picture, bytes of the weights) in float32, without numbers."""
    import torch

    made = json.loads(config)
    part = Part(cls, made)
    fakes, px = fake(Blueprint(cls.__name__, cls, {"vae": part}, None, width, height)), inputs.factor(part)
    with fakes.active():
        vae = fakes.pipe.components["vae"]
        weights = sum(p.numel() * p.element_size() for p in vae.parameters())
        yield vae, torch.empty(1, made["latent_channels"], height // px, width // px), weights


@functools.lru_cache(maxsize=16)
def _foreseen(cls: type, config: str, height: int, width: int, frames: int) -> tuple[Exact, Any, int] | None:
    """(plans on fake tensors, latents, bytes of the weights) in float32; None for what needs more than a picture."""
    if frames > 1 or cls.__name__ not in BLENDED:
        return None
    with _faked(cls, config, height, width) as (vae, latents, weights):
        exact = seams.exact_of(vae, "decode")
        exact.plans(latents)
    return exact, latents, weights


@optimizer(
    stage=Stage.DECODE,
    slot="vae-tiles",
    fidelity=Fidelity.ROUNDING,
    source="https://doi.org/10.6028/jres.126.009",
    fits=_fits,
    predict=_predict,
    pointless=_pointless,
    variants=lambda cost, target: [{"plan": plan} for plan in PLANS],
)
def exact_vae(pipe: Any, target: Target, plan: str = "fast", budget: str = "") -> Iterator[Proof]:
    """Decode in strips of rows, with the whole picture's statistics: the same picture in less memory and time.

    plan: fast, small or smallest, what of the decode is stored and what is computed again; budget: "1GiB", the fastest
    plan within so many bytes, beside weights and the pictures that are done.
    """
    exactly = seams.exactly(pipe.vae, "decode", bytes_of(budget) if budget else None)
    with exactly as exact, scaled_instead_of_upcast(pipe.vae, target.device.kind):
        exact.share = SHARES[plan]
        yield Proof(lambda: _said(exact), begin=lambda pipe: exact.used.clear())


@contextmanager
def scaled_instead_of_upcast(vae: Any, kind: str) -> Iterator[None]:
    """Meanwhile nobody decodes a VAE in float32 that says that it overflows in float16: strips scale what would.

    kind: of the device; float16 is slow on a CPU, where it stays float32.
    """
    import torch

    before = vae.config
    if kind != "cpu" and vae.dtype == torch.float16 and before.get("force_upcast"):
        vae.register_to_config(force_upcast=False)
    try:
        yield
    finally:
        vae._internal_dict = before


def _said(exact: Exact) -> str:
    if not exact.used:
        return ""
    passes = [len(task.strips) for task in exact.used[0].tasks if task.order]
    return f"{len(passes)} passes, {sum(passes)} strips of rows, {exact.used[0].peak_bytes / 2**20:.0f} MiB at most"


def _blended_fits(target: Target, tile_px: int, overlap: float) -> str | None:
    if reason := _no_tiles(target):
        return reason
    assert target.vae is not None, "a pipeline without a VAE has its reason"
    if not 0 <= overlap <= 0.5:
        raise UsageError(f"blended-vae.overlap is {overlap}: give a share from 0 to 0.5")
    px = inputs.factor(target.vae)
    if tile_px % px or tile_px < 8 * px:
        raise UsageError(f"blended-vae={tile_px}: give a multiple of {px}, {8 * px} or more (pixels)")
    if max(target.width, target.height) <= tile_px:
        return f"the picture ({target.width}x{target.height}) is not larger than one tile of {tile_px} px"
    return None


def _no_tiles(target: Target) -> str | None:
    if target.vae is None:
        return "this pipeline has no VAE"
    name = target.vae.cls.__name__
    return None if name in BLENDED else f"Safelight does not cut {name} into tiles: vae-tiling may"


def _grid(target: Target, tile_px: int, overlap: float) -> tiles.Grid:
    assert target.vae is not None, "`fits` has said that there is none"
    px = inputs.factor(target.vae)
    tile = tile_px // px
    return tiles.grid(target.height // px, target.width // px, tile, round(overlap * tile), even=True)


def _config(target: Target) -> str:
    assert target.vae is not None, "`fits` has said that there is none"
    return json.dumps(dict(target.vae.config), sort_keys=True, default=repr)


def _blended_predict(cost: Cost, target: Target, tile_px: int, overlap: float) -> Cost:
    """On a CPU by the plans of crops and tiles; else work goes with the pixels that are decoded, memory with one tile
    and the picture in float32."""
    if target.device.kind == "cpu" and target.frames == 1:
        assert target.vae is not None, "`fits` has said that there is none"
        nbytes, work, weights = _tiles_foreseen(
            target.vae.cls, _config(target), target.height, target.width, tile_px, overlap
        )
        narrow = cost.parts["vae"].total / weights if weights else 1.0
        pictures = (target.batch_size - 1) * target.height * target.width * 3 * 4
        return cost.scaled(decode=work * PACE).changed("decode", live=round(nbytes * narrow) + pictures)
    grid = _grid(target, tile_px, overlap)
    largest = grid.tile[0] * grid.tile[1] / (grid.size[0] * grid.size[1])
    picture = target.batch_size * target.height * target.width * 3 * 4
    cost = cost.scaled(decode=tiles.decoded_share(grid))
    return cost.changed("decode", live=round(cost.decode.live * largest) + picture)


@functools.lru_cache(maxsize=16)
def _tiles_foreseen(
    cls: type, config: str, height: int, width: int, tile_px: int, overlap: float
) -> tuple[int, float, int]:
    """(bytes, work relative to the whole's, bytes of the weights) in float32."""
    with _faked(cls, config, height, width) as (vae, latents, weights):
        blending = Blending(vae, "decode", tile_px, overlap)
        grid = blending.grid(latents)
        whole = seams.exact_of(vae, "decode")
        whole.plans(latents)
        return blending.peak_bytes(latents, grid), blending.work(latents, grid) / whole.whole_work, weights


@optimizer(
    stage=Stage.DECODE,
    slot="vae-tiles",
    fidelity=Fidelity.APPROXIMATE,
    source="https://huggingface.co/docs/diffusers/optimization/memory#vae-tiling",
    fits=_blended_fits,
    predict=_blended_predict,
    pointless=lambda target: "exact-vae is as small, and changes nothing" if _exact_here(target) else None,
)
def blended_vae(pipe: Any, target: Target, tile_px: int = 512, overlap: float = 0.25) -> Iterator[Proof]:
    """Decode in equal tiles with cosine ramps, blended in place: what diffusers' tiling does, in less time."""
    with blending(pipe.vae, tile_px, overlap) as tiled:
        yield Proof(lambda: _tiles_said(tiled), begin=lambda pipe: tiled.counts.clear())


def _tiles_said(tiled: Blending) -> str:
    count = sum(tiled.counts)
    return f"{count} tiles of {tiled.tile_px} px at most" if count > len(tiled.counts) else ""


def _exact_here(target: Target) -> bool:
    return target.device.kind == "cpu" and target.vae is not None and target.vae.cls.__name__ in EXACT
