"""Enlarges pictures by a network of the ESRGAN family or by resampling; large ones by tiles, in bounded memory.

Comes in: tensors of pictures, uint8 or floats in 0..1. Goes out: the same, larger. Knows nothing of prompts, pipelines
and picture files; catalog_upscalers.py has the names, networks.py the networks, recognition.py reads their weights.

Tiles change nothing beyond rounding where the network's margin covers its reach, as with every SRVGGNetCompact. RRDBNet
of 23 blocks reaches further than its margin: see networks.MARGIN_PX for what that may change at tiles' borders.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.errors import SpoiledPicture, UnknownName, UsageError
from safelight.sampling import catalog_upscalers as catalog
from safelight.sampling import recognition, resampling
from safelight.sampling.catalog_upscalers import Upscaler, find
from safelight.sampling.networks import CHANNELS, Network
from safelight.sampling.resampling import upscale_latents

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["NAMES", "Upscaler", "enlarged", "enlarging", "find", "load", "open_network", "upscale", "upscale_latents"]

NAMES = {4: "realesr-animevideov3-x4"}  # by factor: what `generate --upscale` uses
MOST_PASSES = 3  # A1111's modules/upscaler.py: a network runs that often at most before Lanczos does the rest

Report = Callable[[int, int], None]  # (tiles done, of how many)
Enlarge = Callable[["Tensor", int, int], "Tensor"]  # (pictures, height, width) -> pictures of that size


def load(scale: int = 4, *, device: "str | torch.device" = "cpu", dtype: "torch.dtype | None" = None) -> Network:
    """The bundled network, in float32 unless `dtype` says otherwise.

    Raises UnknownName, EnvironmentProblem when the file is missing, DamagedModel when it cannot be read.
    """
    if scale not in NAMES:
        raise UnknownName("upscale factor", str(scale), map(str, NAMES))
    return open_network(catalog.UPSCALERS[NAMES[scale]], device=device, dtype=dtype)


def open_network(
    row: Upscaler,
    *,
    device: "str | torch.device" = "cpu",
    dtype: "torch.dtype | None" = None,
    allow_pickle: bool = False,
) -> Network:
    """The row's network, in float32 unless `dtype` says otherwise.

    Raises EnvironmentProblem for weights that are not here, DamagedModel; UsageError for a network that is not known, a
    pickle that was not allowed, or a row without a network.
    """
    if row.way != "network":
        raise UsageError(f"{row.name} has no network: it resamples")
    path = Path(catalog.weights_of(row))
    weights = recognition.read(path, allow_pickle=allow_pickle)
    return recognition.recognised(weights, str(path), device=device, dtype=dtype)


def enlarging(
    asked: str | None,
    *,
    device: "str | torch.device" = "cpu",
    dtype: "torch.dtype | None" = None,
    allow_pickle: bool = False,
) -> Enlarge | None:
    """What makes pictures larger by the upscaler of that name, loaded; None for a latent mode, or for no name.

    Raises UnknownName, ModelNotFound, and what `open_network` does.
    """
    row = None if asked is None else find(asked)
    if row is None or row.kind == "latent":
        return None
    network = None
    if row.way == "network":
        network = open_network(row, device=device, dtype=dtype, allow_pickle=allow_pickle)

    def enlarge(pictures: "Tensor", height: int, width: int) -> "Tensor":
        return enlarged(row, network, pictures, height, width)

    return enlarge


def enlarged(
    row: Upscaler,
    network: Network | None,
    pictures: "Tensor",
    height: int,
    width: int,
    *,
    tile_px: int | None = None,
    report: Report = lambda done, total: None,
) -> "Tensor":
    """(batch, 3, h, w) -> (batch, 3, height, width), in the dtype and on the device of `pictures`.

    As A1111's upscalers: the network again and again until it covers that size, at most MOST_PASSES times, then Lanczos
    to it exactly. A network that does not enlarge runs once. network: the row's own, if it has one.
    """
    if row.kind != "image":
        raise UsageError(f"{row.name} is for latents, between two passes; for pictures there are Lanczos and networks")
    if network is None:
        return resampling.resized(pictures, height, width, row.way)
    start = tuple(pictures.shape[2:])
    for _ in range(MOST_PASSES):
        now = tuple(pictures.shape[2:])
        # asked for the size that is there already, the network runs once, to mend: as A1111 has it
        if now[0] >= height and now[1] >= width and not (now == start == (height, width)):
            break
        pictures = upscale(network, pictures, tile_px=tile_px, report=report)
        if network.scale == 1:
            break
    return resampling.resized(pictures, height, width)


def upscale(
    network: Network,
    pictures: "Tensor",
    *,
    tile_px: int | None = None,
    margin_px: int | None = None,
    report: Report = lambda done, total: None,
) -> "Tensor":
    """(batch, 3, height, width) -> (batch, 3, scale * height, scale * width), both uint8, or both floats in 0..1.

    The answer has the dtype and device of `pictures`, whatever the network's own are.

    tile_px: longest side that is computed at once, before its margin; bounds the memory, and is the network's own
    (512, some 1 GiB in float32 at most) unless said. margin_px: how much of its neighbours a tile sees.
    Raises SpoiledPicture for not-a-number.
    """
    import torch

    assert pictures.ndim == 4, f"expected (batch, 3, height, width), got {tuple(pictures.shape)}"
    assert pictures.shape[1] == CHANNELS, f"expected 3 channels, got {pictures.shape[1]}"
    batch, _, height, width = pictures.shape
    larger = pictures.new_empty(batch, CHANNELS, height * network.scale, width * network.scale)
    boxes = list(_boxes(height, width, network.tile_px if tile_px is None else tile_px, network.align_px))
    margin = network.margin_px if margin_px is None else _aligned(margin_px, network.align_px)
    report(0, batch * len(boxes))
    with torch.no_grad():
        # one by one: a batch takes other paths through the convolutions, and rounds otherwise than its pictures alone
        for i, (picture, place) in enumerate(zip(pictures.split(1), larger.split(1), strict=True)):
            for k, box in enumerate(boxes):
                _fill(network, picture, place, box, margin)
                report(i * len(boxes) + k + 1, batch * len(boxes))
    return larger


Box = tuple[int, int, int, int]  # top, bottom, left, right


def _boxes(height: int, width: int, tile_px: int, align_px: int) -> Iterator[Box]:
    assert tile_px > 0, f"tile_px is {tile_px}"
    for top, bottom in _spans(height, tile_px, align_px):
        for left, right in _spans(width, tile_px, align_px):
            yield top, bottom, left, right


def _spans(length: int, most: int, align: int) -> Iterator[tuple[int, int]]:
    """Cuts 0..length into as few pieces of at most `most` as there can be, about equal, beginning at multiples."""
    pieces = -(-length // _aligned(most, align))
    step = _aligned(-(-length // pieces), align)
    for start in range(0, length, step):
        yield start, min(start + step, length)


def _aligned(length: int, align: int) -> int:
    return -(-length // align) * align


def _fill(network: Network, picture: "Tensor", place: "Tensor", box: Box, margin: int) -> None:
    """Computes one tile, `box` in pixels before enlarging, and puts it in its place of the larger picture.

    The tile sees its true neighbours as far as the margin. At the picture's own edge there are none: there the
    convolutions pad with zeros, as they do for the whole picture.
    """
    import torch

    top, bottom, left, right = box
    scale, above, before = network.scale, max(top - margin, 0), max(left - margin, 0)
    seen = picture[:, :, above : bottom + margin, before : right + margin]
    tile = network(_as_floats(seen, network.kernel))
    rows = slice(scale * (top - above), scale * (bottom - above))
    columns = slice(scale * (left - before), scale * (right - before))
    inner = tile[:, :, rows, columns].float()
    if not torch.isfinite(inner).all():
        raise SpoiledPicture(f"the upscaler gave not-a-number ({network.kernel.dtype}): try --dtype float32")
    inner.clamp_(0, 1)
    target = place[:, :, scale * top : scale * bottom, scale * left : scale * right]
    target.copy_(inner.mul_(255).round_() if place.dtype == torch.uint8 else inner)


def _as_floats(seen: "Tensor", kernel: "Tensor") -> "Tensor":
    """On the device and in the dtype of the network."""
    import torch

    moved = seen.to(kernel.device, kernel.dtype)
    return moved.div_(255) if seen.dtype == torch.uint8 else moved
