"""The VAE in strips of rows or in blended tiles of our own: vae/, as optimizers.

What does the work is imported where it is used: every `--help` lists optimizers, and the engine is a dozen modules.
"""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from safelight.config import bytes_of
from safelight.errors import UnknownName, UsageError
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer
from safelight.optimizers.target import Part, Target
from safelight.simulate import inputs
from safelight.simulate.cost import Cost
from safelight.vae.families import BLENDED, EXACT

if TYPE_CHECKING:
    from safelight.vae.blending import Blending
    from safelight.vae.running import Exact

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
    vae = _vae(target)
    if target.frames > 1 or vae.cls.__name__ not in BLENDED:  # what needs more than a picture
        return cost
    exact, latents, weights = _foreseen(vae.cls, _config(vae), target.height, target.width)
    narrow = _narrow(cost, weights)
    exact = replace(exact, share=SHARES[plan], budget_bytes=round(bytes_of(budget) / narrow) if budget else None)
    chosen = exact.plan(latents)
    done = (target.batch_size - 1) * _picture_bytes(target)
    cost = cost.scaled(decode=chosen.work / exact.whole_work * PACE)
    return cost.changed("decode", live=round((chosen.peak_bytes + done) * narrow))


def _vae(target: Target) -> Part:
    assert target.vae is not None, "`fits` has said that there is none"
    return target.vae


def _config(vae: Part) -> str:
    return json.dumps(dict(vae.config), sort_keys=True, default=repr)


def _narrow(cost: Cost, weights: int) -> float:
    """Bytes of a number, relative to those of float32: 0.5 in 16 bits. weights: bytes of all in float32."""
    return cost.parts["vae"].total / weights if weights else 1.0


def _picture_bytes(target: Target) -> int:
    """Of one picture in float32."""
    return target.height * target.width * 3 * 4


@functools.lru_cache(maxsize=16)
def _foreseen(cls: type, config: str, height: int, width: int) -> "tuple[Exact, Any, int]":
    """(plans on tensors without numbers, latents, bytes of the weights) in float32."""
    from safelight.vae import advice, seams

    with advice.faked(Part(cls, json.loads(config)), height, width) as (vae, latents):
        exact = seams.exact_of(vae, "decode")
        exact.plans(latents)
        return exact, latents, _weight_bytes(vae)


def _weight_bytes(vae: Any) -> int:
    return sum(weight.nbytes for weight in vae.parameters())


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
    from safelight.vae import seams

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


def _said(exact: "Exact") -> str:
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


def _blended_predict(cost: Cost, target: Target, tile_px: int, overlap: float) -> Cost:
    """On a CPU by the plans of crops and tiles; else work goes with the pixels that are decoded, memory with one tile
    and the picture in float32."""
    if target.device.kind != "cpu" or target.frames > 1:
        return _tiles_guessed(cost, target, tile_px, overlap)
    vae, sides = _vae(target), (target.height, target.width)
    nbytes, work, weights = _tiles_foreseen(vae.cls, _config(vae), *sides, tile_px, overlap)
    live = round(nbytes * _narrow(cost, weights)) + (target.batch_size - 1) * _picture_bytes(target)
    return cost.scaled(decode=work * PACE).changed("decode", live=live)


def _tiles_guessed(cost: Cost, target: Target, tile_px: int, overlap: float) -> Cost:
    from safelight.vae import tiles

    px = inputs.factor(_vae(target))
    tile = tile_px // px
    grid = tiles.grid(target.height // px, target.width // px, tile, round(overlap * tile), even=True)
    largest = grid.tile[0] * grid.tile[1] / (grid.size[0] * grid.size[1])
    live = round(cost.decode.live * largest) + target.batch_size * _picture_bytes(target)
    return cost.scaled(decode=tiles.decoded_share(grid)).changed("decode", live=live)


@functools.lru_cache(maxsize=16)
def _tiles_foreseen(
    cls: type, config: str, height: int, width: int, tile_px: int, overlap: float
) -> tuple[int, float, int]:
    """(bytes, work relative to the whole's, bytes of the weights) in float32."""
    from safelight.vae import advice, seams
    from safelight.vae.blending import Blending

    with advice.faked(Part(cls, json.loads(config)), height, width) as (vae, latents):
        blending = Blending(vae, "decode", tile_px, overlap)
        grid = blending.grid(latents)
        whole = seams.exact_of(vae, "decode")
        whole.plans(latents)
        work = blending.work(latents, grid) / whole.whole_work
        return blending.peak_bytes(latents, grid), work, _weight_bytes(vae)


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
    from safelight.vae.blending import blending

    with blending(pipe.vae, tile_px, overlap) as tiled:
        yield Proof(lambda: _tiles_said(tiled), begin=lambda pipe: tiled.counts.clear())


def _tiles_said(tiled: "Blending") -> str:
    count = sum(tiled.counts)
    return f"{count} tiles of {tiled.tile_px} px at most" if count > len(tiled.counts) else ""


def _exact_here(target: Target) -> bool:
    return target.device.kind == "cpu" and target.vae is not None and target.vae.cls.__name__ in EXACT
