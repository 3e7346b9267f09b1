"""How latents become a picture: in one go, picture by picture, or tile by tile."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from safelight.errors import UnknownName, UsageError
from safelight.optimizers import taesd
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.target import Part, Target
from safelight.simulate.cost import Cost

Config = Mapping[str, Any]


def _levels(name: str) -> Callable[[Config], int]:
    return lambda config: 2 ** (len(config[name]) - 1)


def _ltx_factor(config: Config) -> int:
    return config.get("spatial_compression_ratio") or config["patch_size"] * 2 ** sum(config["spatio_temporal_scaling"])


@dataclass(frozen=True, slots=True)
class Vae:
    """How a VAE class of diffusers is tiled.

    factor: picture pixels per latent pixel, from the config. side_px: of its own tile; None is config.sample_size.
    strides: it has a tile and a stride for each side; otherwise one tile size and the share that tiles overlap by.
    slices: False where diffusers' slicing does not work.
    """

    factor: Callable[[Config], int]
    side_px: int | None = None
    strides: bool = False
    slices: bool = True


# Read in diffusers 0.42.1, and held against an instance of each in tests/optimizers/test_decode.py. A VAE that is not
# here is not tiled: hasattr(enable_tiling) is no support, as several classes inherit it and raise NotImplementedError.
VAES = {
    "AutoencoderKL": Vae(_levels("block_out_channels")),
    "AutoencoderKLFlux2": Vae(_levels("block_out_channels")),
    "AutoencoderKLHunyuanImage": Vae(lambda config: config["spatial_compression_ratio"]),
    "AutoencoderKLKVAE": Vae(_levels("ch_mult")),
    "AutoencoderTiny": Vae(_levels("block_out_channels"), 512),
    "AutoencoderDC": Vae(_levels("encoder_block_out_channels"), 512, strides=True),
    "AutoencoderKLHunyuanVideo": Vae(lambda config: config["spatial_compression_ratio"], 256, strides=True),
    "AutoencoderKLLTXVideo": Vae(_ltx_factor, 512, strides=True),
    "AutoencoderKLLTX2Video": Vae(_ltx_factor, 512, strides=True),
    # each slice begins with the cache of convolutions that the one before has left
    "AutoencoderKLMagvit": Vae(_levels("block_out_channels"), 512, strides=True, slices=False),
    "AutoencoderKLMochi": Vae(lambda config: prod(config["spatial_expansions"]), 256, strides=True),
    "AutoencoderKLQwenImage": Vae(lambda config: 2 ** len(config["temperal_downsample"]), 256, strides=True),
    "AutoencoderKLQwenImage21": Vae(lambda config: config["scale_factor_spatial"], 256, strides=True),
    "AutoencoderKLWan": Vae(lambda config: config["scale_factor_spatial"], 256, strides=True),
}


def factor(vae: Part) -> int:
    """Picture pixels per latent pixel of a VAE in VAES."""
    return VAES[vae.cls.__name__].factor(vae.config)


def _switch_missing(vae: Part | None, switch: str, what: str) -> str | None:
    """Why a VAE has no "use_tiling" or "use_slicing" that does something; None if it has."""
    if vae is None:
        return f"this pipeline has no VAE, so that there is no {what}"
    if vae.cls.__name__ in VAES:
        return None
    # what __init__ never sets, enable_... refuses with NotImplementedError
    cls: Any = vae.cls
    if switch not in inspect.unwrap(cls.__init__).__code__.co_names:
        return f"{vae.cls.__name__} has no {what}: diffusers raises NotImplementedError"
    return f"Safelight does not know how {vae.cls.__name__} does its {what}"


def _slicing_fits(target: Target) -> str | None:
    if reason := _switch_missing(target.vae, "use_slicing", "slicing"):
        return reason
    assert target.vae is not None, "a pipeline without a VAE has its reason"
    if not VAES[target.vae.cls.__name__].slices:
        return f"slicing of {target.vae.cls.__name__} mixes its slices in diffusers"
    return None if target.batch_size > 1 else "one picture at a time: there is nothing to slice"


@optimizer(
    stage=Stage.DECODE,
    fidelity=Fidelity.ROUNDING,
    source="https://huggingface.co/docs/diffusers/optimization/memory#vae-slicing",
    fits=_slicing_fits,
    traced=("vae",),
)
def vae_slicing(pipe: Any, target: Target) -> Iterator[Proof]:
    """Decode a batch one picture at a time: the decoder needs the memory of one."""
    with decoder_inputs(pipe.vae) as shapes, swapped(pipe.vae, use_slicing=True):
        yield Proof(lambda: _sliced(shapes), begin=lambda pipe: shapes.clear())


def _sliced(shapes: list[tuple[int, ...]]) -> str:
    single = sum(shape[0] == 1 for shape in shapes)
    return f"{single} decoder calls, all with one picture" if single > 1 and single == len(shapes) else ""


def tile_latent_px(vae: Part, tile_px: int) -> int:
    """Latent pixels of a tile's side; `tile_px` counts picture pixels, 0 is the model's own size."""
    own = VAES[vae.cls.__name__].side_px or vae.config.get("sample_size", 512)
    return max(4, (tile_px or (own[0] if isinstance(own, list | tuple) else own)) // factor(vae))


def overlap_latent_px(vae: Part, latent_px: int, overlap: float) -> int:
    """Latent pixels that neighbours share: the whole number nearest to the asked share that keeps the picture's size.

    diffusers rounds the share down once in latents and once in pixels. Where the two do not agree (a tile of 8 with a
    share of 0.3, a tile of 49 with 1/49) the picture comes out in the wrong size, without an error.
    """
    strides = VAES[vae.cls.__name__].strides
    near = sorted(range(latent_px), key=lambda shared: abs(shared - overlap * latent_px))
    return next(shared for shared in near if strides or _keeps_size(vae, latent_px, shared))


def _keeps_size(vae: Part, latent_px: int, shared: int) -> bool:
    share, side_px = shared / latent_px, latent_px * factor(vae)
    if vae.cls.__name__ == "AutoencoderTiny":  # without an overlap its mask is 0, and all tiles but the first are black
        return int(latent_px * share) >= 1
    return int(latent_px * (1 - share)) * factor(vae) == side_px - int(side_px * share)


def tile_settings(vae: Part, tile_px: int, overlap: float) -> dict[str, Any]:
    """The attributes of a VAE that make it tile. They belong together: one alone gives a picture of the wrong size."""
    latent_px = tile_latent_px(vae, tile_px)
    shared, side_px = overlap_latent_px(vae, latent_px, overlap), latent_px * factor(vae)
    if not VAES[vae.cls.__name__].strides:
        # diffusers takes 2 to the number of colours for AutoencoderTiny's factor
        scale = {"spatial_scale_factor": factor(vae)} if vae.cls.__name__ == "AutoencoderTiny" else {}
        return scale | {
            "use_tiling": True,
            "tile_sample_min_size": side_px,
            "tile_latent_min_size": latent_px,
            "tile_overlap_factor": shared / latent_px,
        }
    wanted: dict[str, Any] = {"use_tiling": True}
    for side in ("height", "width"):
        wanted[f"tile_sample_min_{side}"] = side_px
        wanted[f"tile_sample_stride_{side}"] = (latent_px - shared) * factor(vae)
        if vae.cls.__name__ == "AutoencoderDC":  # it alone keeps a copy in latents
            wanted[f"tile_latent_min_{side}"] = latent_px
    return wanted


def _tiling_fits(target: Target, tile_px: int, overlap: float) -> str | None:
    vae = target.vae
    if reason := _switch_missing(vae, "use_tiling", "tiling"):
        return reason
    assert vae is not None, "a pipeline without a VAE has its reason"
    if not 0 <= overlap < 1:
        raise UsageError(f"vae-tiling.overlap is {overlap}: give a share from 0 to 0.9")
    px = factor(vae)
    if tile_px % px or (tile_px and tile_px < 4 * px):
        raise UsageError(f"vae-tiling={tile_px}: give a multiple of {px}, {4 * px} or more (pixels)")
    tile = tile_latent_px(vae, tile_px) * px
    if max(target.width, target.height) <= tile:
        return f"the picture ({target.width}x{target.height}) is not larger than one tile of {tile} px"
    return None


def _tiling_predict(cost: Cost, target: Target, tile_px: int, overlap: float) -> Cost:
    """A decoder's work and memory go with the pixels; what is decoded waits until all is blended, in float32 at most.

    Not traced: diffusers blends row by row, in thousands of operators.
    """
    vae = target.vae
    assert vae is not None, "`fits` has said that there is none"
    latent_px, px = tile_latent_px(vae, tile_px), factor(vae)
    step = latent_px - overlap_latent_px(vae, latent_px, overlap)
    sides = [side // px for side in (target.height, target.width)]
    tiles = [[min(latent_px, side - start) for start in range(0, side, step)] for side in sides]
    whole, decoded = prod(sides), prod(map(sum, tiles))
    largest = prod(min(latent_px, side) for side in sides)
    waiting = target.batch_size * decoded * px * px * 3 * BLENDED_BYTES
    cost = cost.scaled(decode=decoded / whole)
    return cost.changed("decode", live=round(cost.decode.live * largest / whole) + waiting)


BLENDED_BYTES = 4


@optimizer(
    stage=Stage.DECODE,
    slot="vae-tiles",
    fidelity=Fidelity.APPROXIMATE,
    source="https://huggingface.co/docs/diffusers/optimization/memory#vae-tiling",
    fits=_tiling_fits,
    predict=_tiling_predict,
    variants=lambda cost, target: [{}, {"tile_px": 512}, {"tile_px": 256}],
)
def vae_tiling(pipe: Any, target: Target, tile_px: int = 0, overlap: float = 0.25) -> Iterator[Proof]:
    """Decode in overlapping tiles of tile_px and blend them: little memory, and tones may shift from tile to tile."""
    vae = Part(type(pipe.vae), pipe.vae.config)
    latent_px = tile_latent_px(vae, tile_px)
    with decoder_inputs(pipe.vae) as shapes, swapped(pipe.vae, **tile_settings(vae, tile_px, overlap)):
        yield Proof(lambda: _tiled(shapes, latent_px), begin=lambda pipe: shapes.clear())


def _tiled(shapes: list[tuple[int, ...]], latent_px: int) -> str:
    small = [shape for shape in shapes if max(shape[-2:]) <= latent_px]
    if len(shapes) < 2 or len(small) != len(shapes):
        return ""
    return f"{len(small)} decoder calls, none larger than {latent_px}x{latent_px} latents"


def _tiny_fits(target: Target, model: str, use: str) -> str | None:
    if use not in USES:
        raise UnknownName("use of tiny-vae", use, USES)
    vae = target.vae
    if vae is None or vae.cls.__name__ != "AutoencoderKL":
        return f"tiny VAEs stand in for AutoencoderKL, and this pipeline has {vae.cls.__name__ if vae else 'no VAE'}"
    if (found := taesd.chosen(model, target)) is None:
        name = target.pipeline.__name__ if target.pipeline else "this pipeline"
        return f"no TAESD is known for {name}: give one with tiny-vae=MODEL"
    latents = taesd.latents_of(found)
    return taesd.mismatch(found, latents, _latents(vae)) if latents else None


def _tiny_predict(cost: Cost, target: Target, model: str, use: str) -> Cost:
    """At 512 px TAESD decodes with 0.141 of 2.515 TFLOP, in a quarter of the memory, and has 1.2 of 49.5 M weights
    (counted on fake tensors). A preview decodes besides, once a step, between two calls of the denoiser."""
    share, live = 0.141 / 2.515, cost.decode.live // 4
    if use == "preview":
        waiting = cost.denoise.waiting + cost.decode.seconds * share * cost.steps
        return cost.changed("denoise", waiting=waiting, live=max(cost.denoise.live, live))
    own = cost.parts["vae"].total
    cost = cost.reweighted("vae", 1.2 / 49.5).scaled(decode=share).changed("decode", live=live)
    if target.device.kind == "cpu":  # the pipeline's own waits in the same memory
        for phase in cost.phases:
            cost = cost.changed(phase, resident=cost.phase(phase).resident + own)
        return cost
    return replace(cost, host_bytes=cost.host_bytes + own)


def _latents(vae: Part) -> tuple[int, int]:
    """(channels, picture pixels per latent pixel)."""
    return vae.config["latent_channels"], factor(vae)


@optimizer(
    # before all that acts on the VAE as it then is: number formats, layouts, tiles, offloading
    stage=Stage.PRECISION,
    slot="vae",
    fidelity=Fidelity.APPROXIMATE,
    source="https://github.com/madebyollin/taesd",
    fits=_tiny_fits,
    predict=_tiny_predict,
)
def tiny_vae(pipe: Any, target: Target, model: str = taesd.AUTO, use: str = "final") -> Iterator[Proof]:
    """Decode with a TAESD, small and fast: the picture, which loses fine detail, or previews (use=preview)."""
    asked, vae = taesd.chosen(model, target), pipe.vae
    assert asked is not None, "`fits` has said that there is none"
    weight = next(vae.parameters())
    tiny = taesd.load(asked, weight.dtype)
    taesd.check_latents(asked, _latents(Part(type(tiny), tiny.config)), _latents(Part(type(vae), vae.config)))
    yield from USES[use](pipe, tiny)


def _final(pipe: Any, tiny: Any) -> Iterator[Proof]:
    vae = pipe.vae
    tiny.to(next(vae.parameters()).device)
    with decoder_inputs(tiny) as inputs, decoder_inputs(vae) as others, standing_in(pipe, tiny):

        def begin(_pipe: Any) -> None:
            inputs.clear()
            others.clear()

        yield Proof(lambda: _stood_in(len(inputs), len(others), vae), begin=begin)


def _preview(pipe: Any, tiny: Any) -> Iterator[Proof]:
    with decoder_inputs(tiny) as inputs:
        yield Proof(
            lambda: f"{len(inputs)} previews decoded" if inputs else "",
            begin=lambda pipe: inputs.clear(),
            preview=lambda latents: taesd.picture(tiny, latents),
        )


USES = {"final": _final, "preview": _preview}


def _stood_in(tiny_calls: int, calls: int, vae: Any) -> str:
    if calls or not tiny_calls:
        return ""
    return f"{tiny_calls} decoder calls of AutoencoderTiny, none of {type(vae).__name__}"


@contextmanager
def standing_in(pipe: Any, tiny: Any) -> Iterator[None]:
    """`tiny` is the pipeline's VAE meanwhile; its own waits in host memory, and comes back to where it was."""
    vae = pipe.vae
    device = next(vae.parameters()).device
    vae.to("cpu")
    try:
        with swapped(pipe, vae=tiny):
            yield
    finally:
        vae.to(device)


@contextmanager
def decoder_inputs(vae: Any) -> Iterator[list[tuple[int, ...]]]:
    """The shapes that the decoder is called with, as they come; the latest few thousand."""
    shapes: list[tuple[int, ...]] = []

    def look(_module: Any, inputs: tuple[Any, ...]) -> None:
        shapes.append(tuple(inputs[0].shape))
        del shapes[:-4096]

    hook = vae.decoder.register_forward_pre_hook(look)
    try:
        yield shapes
    finally:
        hook.remove()
