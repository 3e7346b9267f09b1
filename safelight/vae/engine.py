"""Pictures to latents and back in as much memory as there is: whole, exact in strips, or in blended tiles.

Comes in: a VAE of diffusers and a tensor. Goes out: what the VAE itself would have made, or its rows. The exact way is
the usual one, as it is the fastest too; tiles are blended only where it is asked for, or where the module cannot be
walked and an approximation is allowed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from safelight.errors import UsageError
from safelight.probe.blueprint import Part
from safelight.simulate import inputs
from safelight.vae import tiles
from safelight.vae.blended import blended
from safelight.vae.exact import Sink
from safelight.vae.graph import CannotWalk
from safelight.vae.running import Exact

HOW = ("auto", "whole", "exact", "blended")


@dataclass(frozen=True, slots=True)
class Seam:
    """Where a VAE class is cut. module: its part, "" for itself. method: of that, is replaced; takes a tensor first.

    call: gives, for a VAE, what runs `module` on one tensor, where that is not the module's own forward.
    together: a batch is the frames of one video.
    """

    module: str
    method: str
    call: Callable[[Any], Callable[[Any], Any]] | None = None
    together: bool = False


def _own(name: str) -> Callable[[Any], Callable[[Any], Any]]:
    """The VAE's own method on the whole video, as its class has it."""
    return lambda vae: lambda given: _plain(getattr(type(vae), name)(vae, given))


def _plain(made: Any) -> Any:
    import torch

    return made if isinstance(made, torch.Tensor) else made[0]


DECODER, ENCODER = Seam("decoder", "forward"), Seam("encoder", "forward")
# video VAEs that call their decoder frame by frame, with what it remembers
STREAMED = (
    "AutoencoderKLWan",
    "AutoencoderKLQwenImage",
    "AutoencoderKLCogVideoX",
    "AutoencoderKLMochi",
    "AutoencoderKLMagvit",
)
SEAMS: Mapping[str, Mapping[str, Seam]] = {
    "AutoencoderKLTemporalDecoder": {"decode": Seam("decoder", "forward", together=True)},
    **{
        name: {"decode": Seam("", "_decode", _own("_decode")), "encode": Seam("", "_encode", _own("_encode"))}
        for name in STREAMED
    },
}


def seam(vae: Any, what: str) -> Seam:
    """what: "decode" or "encode"."""
    return SEAMS.get(type(vae).__name__, {}).get(what) or {"decode": DECODER, "encode": ENCODER}[what]


def exact_of(vae: Any, what: str, budget_bytes: int | None = None) -> Exact:
    """Raises CannotWalk for a VAE without such a part."""
    cut = seam(vae, what)
    module = getattr(vae, cut.module, None) if cut.module else vae
    if module is None:
        raise CannotWalk(f"{type(vae).__name__} has no {cut.module}")
    # the forward that is there now, as it may be replaced by what is made here
    return Exact(module, module.forward if cut.call is None else cut.call(vae), budget_bytes, cut.together)


@contextmanager
def exactly(
    vae: Any, what: str = "decode", budget_bytes: int | None = None, sink: Sink | None = None
) -> Iterator[Exact]:
    """While this is open, the VAE decodes (or encodes) in strips, whoever calls it."""
    cut = seam(vae, what)
    exact = exact_of(vae, what, budget_bytes)
    owner = getattr(vae, cut.module) if cut.module else vae

    def instead(given: Any, *args: Any, **kwargs: Any) -> Any:
        from diffusers.models.autoencoders.vae import DecoderOutput

        made = exact(given, *args, sink=sink, **kwargs)
        return DecoderOutput(sample=made) if cut.method == "_decode" else made

    with _replaced(owner, cut.method, instead), _untiled(vae):
        yield exact


@contextmanager
def _replaced(owner: Any, method: str, instead: Any) -> Iterator[None]:
    """A method of one object, not of its class."""
    before = vars(owner).get(method)
    setattr(owner, method, instead)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, method)
        else:
            setattr(owner, method, before)


@contextmanager
def _untiled(vae: Any) -> Iterator[None]:
    """diffusers' own tiles would each be decoded exactly, and blended."""
    tiled = getattr(vae, "use_tiling", False)
    if tiled:
        vae.use_tiling = False
    try:
        yield
    finally:
        if tiled:
            vae.use_tiling = True


def decode(
    vae: Any,
    latents: Any,
    *,
    budget_bytes: int | None = None,
    how: str = "auto",
    sink: Sink | None = None,
) -> Any:
    """latents: (batch, channels, [frames,] height, width), unscaled, as `vae.decode` takes them.

    how: of HOW; "auto" is exact, and blended where the VAE cannot be walked. sink: takes (first row, rows) in the
    picture's order instead of the result, for pictures that do not fit in memory. budget_bytes: beside weights and
    latents. Returns (batch, 3, [frames,] height, width), about -1 to 1, in the VAE's dtype; None with a sink.
    Raises OutOfMemory for too small a budget, saying what the least is, CannotWalk for how="exact".
    """
    return _coded(vae, "decode", latents, budget_bytes, how, sink)


def encode(vae: Any, pictures: Any, *, budget_bytes: int | None = None, how: str = "auto") -> Any:
    """pictures: (batch, 3, [frames,] height, width), -1 to 1. Returns unscaled latents, the mode where they vary."""
    return _coded(vae, "encode", pictures, budget_bytes, how, None)


def _coded(vae: Any, what: str, given: Any, budget_bytes: int | None, how: str, sink: Sink | None) -> Any:
    if how not in HOW:
        raise UsageError(f"{how!r} is no way to {what}: {', '.join(HOW)} are there")
    import torch

    with torch.no_grad():
        if how == "whole":
            return _handed(_native(vae, what, given), sink)
        if how == "blended":
            return _blended(vae, what, given, sink)
        try:
            with exactly(vae, what, budget_bytes, sink):
                made = _native(vae, what, given)
        except CannotWalk:
            if how == "exact" or type(vae).__name__ not in BLENDED:
                raise
            return _blended(vae, what, given, sink)
        return None if sink is not None else made


# whose decoders and encoders take a tile by itself
BLENDED = (
    "AutoencoderKL",
    "AutoencoderKLFlux2",
    "AutoencoderTiny",
    "AutoencoderDC",
    "AsymmetricAutoencoderKL",
    "VQModel",
)
TILE_PX, OVERLAP = 512, 0.25


@contextmanager
def blending(vae: Any, tile_px: int = TILE_PX, overlap: float = OVERLAP, what: str = "decode") -> Iterator[list[int]]:
    """While this is open, the VAE decodes (or encodes) in blended tiles, whoever calls it; gives how many each time.

    Raises UsageError.
    """
    cut = seam(vae, what)
    if type(vae).__name__ not in BLENDED:
        raise UsageError(f"{type(vae).__name__} cannot be cut into tiles by itself: {', '.join(BLENDED)} can")
    owner = getattr(vae, cut.module)
    run = getattr(owner, cut.method)

    counts: list[int] = []

    def instead(given: Any, *_: Any, **__: Any) -> Any:
        made, count = _in_tiles(vae, run, given, what, tile_px, overlap)
        counts.append(count)
        return made

    with _replaced(owner, cut.method, instead), _untiled(vae):
        yield counts


def _in_tiles(
    vae: Any, run: Callable[[Any], Any], given: Any, what: str, tile_px: int, overlap: float
) -> tuple[Any, int]:
    """The result, and of how many tiles."""
    factor = inputs.factor(Part(type(vae), vae.config))
    tile = max(1, tile_px // factor)
    small = [side if what == "decode" else side // factor for side in given.shape[-2:]]
    if max(small) <= tile:
        return run(given), 1
    grid = tiles.grid(small[0], small[1], tile, round(overlap * tile), even=True)
    scale = Fraction(factor) if what == "decode" else Fraction(1, factor)
    return blended(run, given, grid, scale=scale).to(given.dtype), len(grid)


def _blended(vae: Any, what: str, given: Any, sink: Sink | None) -> Any:
    with blending(vae, what=what):
        return _handed(_native(vae, what, given), sink)


def _native(vae: Any, what: str, given: Any) -> Any:
    import torch

    if what == "decode":
        return vae.decode(given, return_dict=False)[0]
    made = vae.encode(given, return_dict=False)[0]
    return made if isinstance(made, torch.Tensor) else made.mode()


def _handed(made: Any, sink: Sink | None) -> Any:
    if sink is None:
        return made
    sink(0, made)
    return None
