"""How latents become a picture: in one go, picture by picture, or tile by tile."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safelight.errors import UsageError
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.target import Part, Target


def _slicing_fits(target: Target) -> str | None:
    if target.vae is None or not _can_switch(target.vae.cls, "enable_slicing"):
        return "this pipeline's VAE has no slicing"
    return None if target.batch_size > 1 else "one picture at a time: there is nothing to slice"


def _can_switch(cls: type, method: str) -> bool:
    # hasattr(enable_tiling) is no support: several classes inherit the method and raise NotImplementedError
    return cls.__name__ in ("AutoencoderKL", "AutoencoderTiny") and hasattr(cls, method)


@optimizer(
    stage=Stage.DECODE,
    fidelity=Fidelity.ROUNDING,
    source="https://huggingface.co/docs/diffusers/optimization/memory#vae-slicing",
    fits=_slicing_fits,
    predict=lambda cost, target: cost.scaled(activations=1 / target.batch_size),
)
def vae_slicing(pipe: Any, target: Target) -> Iterator[Proof]:
    """Decode a batch one picture at a time: the decoder needs the memory of one."""
    with decoder_inputs(pipe.vae) as shapes, swapped(pipe.vae, use_slicing=True):
        yield Proof(lambda: _sliced(shapes))


def _sliced(shapes: list[tuple[int, ...]]) -> str:
    single = sum(shape[0] == 1 for shape in shapes)
    return f"{single} decoder calls, all with one picture" if single > 1 and single == len(shapes) else ""


def tile_latent_px(target: Target, tile_px: int) -> int:
    """Latent pixels of a tile's side; `tile_px` counts picture pixels, 0 is the model's own size."""
    return (tile_px or _own_tile_px(target)) // _factor(target)


def _own_tile_px(target: Target) -> int:
    size = _vae(target).config.get("sample_size", 512)
    return size[0] if isinstance(size, list | tuple) else size


def _factor(target: Target) -> int:
    """Picture pixels per latent pixel."""
    return 2 ** (len(_vae(target).config["block_out_channels"]) - 1)


def _vae(target: Target) -> Part:
    assert target.vae is not None, "asked only after `fits` has seen a VAE"
    return target.vae


def _tiling_fits(target: Target, tile_px: int, overlap: float) -> str | None:
    if target.vae is None or not _can_switch(target.vae.cls, "enable_tiling"):
        return "this pipeline's VAE has no tiling"
    if not 0 <= overlap < 1:
        raise UsageError(f"vae-tiling.overlap is {overlap}: give a share from 0 to 0.9")
    factor = _factor(target)
    if tile_px % factor or (tile_px and tile_px < 4 * factor):
        raise UsageError(f"vae-tiling={tile_px}: give a multiple of {factor}, {4 * factor} or more (pixels)")
    tile = tile_latent_px(target, tile_px) * factor
    if max(target.width, target.height) <= tile:
        return f"the picture ({target.width}x{target.height}) is not larger than one tile of {tile} px"
    return None


@optimizer(
    stage=Stage.DECODE,
    slot="vae-tiles",
    fidelity=Fidelity.APPROXIMATE,
    source="https://huggingface.co/docs/diffusers/optimization/memory#vae-tiling",
    fits=_tiling_fits,
    predict=lambda cost, target, tile_px, overlap: cost.scaled(decode=1.2, activations=0.5),
)
def vae_tiling(pipe: Any, target: Target, tile_px: int = 0, overlap: float = 0.25) -> Iterator[Proof]:
    """Decode in overlapping tiles of tile_px and blend them: little memory, and tones may shift from tile to tile."""
    latent_px = tile_latent_px(target, tile_px)
    # all three together: tile_latent_min_size alone gives a picture of the wrong size, without an error
    sizes = {
        "use_tiling": True,
        "tile_sample_min_size": latent_px * _factor(target),
        "tile_latent_min_size": latent_px,
        "tile_overlap_factor": overlap,
    }
    with decoder_inputs(pipe.vae) as shapes, swapped(pipe.vae, **sizes):
        yield Proof(lambda: _tiled(shapes, latent_px))


def _tiled(shapes: list[tuple[int, ...]], latent_px: int) -> str:
    small = [shape for shape in shapes if max(shape[-2:]) <= latent_px]
    if len(shapes) < 2 or len(small) != len(shapes):
        return ""
    return f"{len(small)} decoder calls, none larger than {latent_px}x{latent_px} latents"


@contextmanager
def decoder_inputs(vae: Any) -> Iterator[list[tuple[int, ...]]]:
    """The shapes that the decoder is called with, as they come; the latest few hundred."""
    shapes: list[tuple[int, ...]] = []

    def look(_module: Any, inputs: tuple[Any, ...]) -> None:
        shapes.append(tuple(inputs[0].shape))
        del shapes[:-256]

    hook = vae.decoder.register_forward_pre_hook(look)
    try:
        yield shapes
    finally:
        hook.remove()
