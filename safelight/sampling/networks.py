"""Networks that enlarge pictures, the ESRGAN family, as plain functions on tensors: SRVGGNetCompact and RRDBNet.

Comes in: weights by name. Goes out: callables on (batch, 3, height, width) in 0..1. Knows nothing of files and tiles.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

CHANNELS = 3


class Network(Protocol):
    """scale: how many times larger the answer is. reach_px: how far away a pixel can matter, before enlarging.

    margin_px: how much of its surroundings a tile is to see; where it is reach_px, tiles change nothing.
    tile_px: the side of a tile that takes about 1 GiB at most in float32. kind: what it is, for people.
    """

    @property
    def scale(self) -> int: ...

    @property
    def reach_px(self) -> int: ...

    @property
    def margin_px(self) -> int: ...

    @property
    def tile_px(self) -> int: ...

    @property
    def align_px(self) -> int: ...

    @property
    def kind(self) -> str: ...

    @property
    def kernel(self) -> "Tensor": ...

    def __call__(self, pictures: "Tensor", /) -> "Tensor": ...


# -- SRVGGNetCompact ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """kernel: (out, in, 3, 3). bias: (out,). slopes: the PReLU's after it, (out,); None after the last."""

    kernel: "Tensor"
    bias: "Tensor"
    slopes: "Tensor | None"


@dataclass(frozen=True, slots=True, eq=False)
class Compact:
    """SRVGGNetCompact: 3x3 convolutions in a row, pixel shuffle, and the picture itself enlarged added on top.

    Source: https://github.com/xinntao/Real-ESRGAN/blob/master/realesrgan/archs/srvgg_arch.py
    """

    scale: int
    layers: tuple[Layer, ...]
    tile_px = 512
    align_px = 1

    @property
    def reach_px(self) -> int:
        """Every 3x3 convolution looks one pixel further."""
        return len(self.layers)

    @property
    def margin_px(self) -> int:
        return self.reach_px

    @property
    def kernel(self) -> "Tensor":
        """One of its tensors, for its device and dtype."""
        return self.layers[0].kernel

    @property
    def kind(self) -> str:
        return f"SRVGGNetCompact of {len(self.layers)} layers, {len(self.kernel)} features, x{self.scale}"

    def __call__(self, pictures: "Tensor") -> "Tensor":
        """(batch, 3, height, width) -> (batch, 3, scale * height, scale * width), not clamped."""
        from torch.nn import functional

        x = pictures
        for layer in self.layers:
            x = functional.conv2d(x, layer.kernel, layer.bias, padding=1)
            if layer.slopes is not None:
                x = functional.prelu(x, layer.slopes)
        enlarged = functional.interpolate(pictures, scale_factor=self.scale, mode="nearest")
        return functional.pixel_shuffle(x, self.scale).add_(enlarged)


# -- RRDBNet -----------------------------------------------------------------------------------------------------------

SLOPE = 0.2  # of every leaky ReLU: ESRGAN, https://arxiv.org/abs/1809.00219, and all files since
RESIDUAL = 0.2  # what is added back is scaled by it: same paper, section 3.1
DENSE_BLOCKS, DENSE_LAYERS = 3, 5
TAIL_HALO = 2  # latent rows: the last convolutions see 1.125 (x8) to 2 (x1) of them, in latent rows, to each side
TAIL_PIXELS = 2**19  # enlarged pixels at a time: 64 features of them are 128 MiB in float32

# The body of 23 blocks reaches 349 px, but what is far hardly counts: the least margin that leaves every pixel within
# half a level of 255. Largest (and mean) difference to the whole of a tile of 32 px, x4plus, float32, torch 2.13, on
# emoji with hard edges: 32 px 12.5 (0.69), 48 px 1.75 (0.14), 56 px 0.62 (0.05), 64 px 0.32 (0.03). On noise, 64 px:
# 0.16. x4plus-anime, of 6 blocks, at 64 px: 0.001
MARGIN_PX = 64


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """RRDBNet: blocks of densely connected convolutions at the picture's own size, which is then doubled by steps.

    weights: under the names of Real-ESRGAN's files: conv_first, body.0.rdb1.conv1, conv_body, conv_up1, conv_hr, ...
    blocks: residual-in-residual dense blocks. doublings: how often the features are doubled in size; where that is
    more than `scale`, the picture's pixels are folded into channels first (x2 and x1 of Real-ESRGAN).
    Source: https://github.com/XPixelGroup/BasicSR/blob/master/basicsr/archs/rrdbnet_arch.py
    """

    scale: int
    blocks: int
    doublings: int
    weights: "Mapping[str, Tensor]"
    tile_px = 512

    @property
    def align_px(self) -> int:
        """Tiles begin at multiples of so many pixels, which are folded into channels."""
        return 2**self.doublings // self.scale

    @property
    def reach_px(self) -> int:
        body = 2 + DENSE_BLOCKS * DENSE_LAYERS * self.blocks
        return (body + TAIL_HALO) * self.align_px

    @property
    def margin_px(self) -> int:
        return min(self.reach_px, MARGIN_PX * self.align_px)

    @property
    def kernel(self) -> "Tensor":
        """One of its tensors, for its device and dtype."""
        return self.weights["conv_first.weight"]

    @property
    def kind(self) -> str:
        growth = len(self.weights["body.0.rdb1.conv1.weight"])
        return f"RRDBNet of {self.blocks} blocks, {len(self.kernel)} features, {growth} growing, x{self.scale}"

    def __call__(self, pictures: "Tensor") -> "Tensor":
        """(batch, 3, height, width) -> (batch, 3, scale * height, scale * width), not clamped."""
        from torch.nn import functional

        height, width = pictures.shape[2:]
        folded = functional.pixel_unshuffle(_padded(pictures, self.align_px), self.align_px)
        return self._enlarged(self._features(folded))[:, :, : height * self.scale, : width * self.scale]

    def _features(self, folded: "Tensor") -> "Tensor":
        first = self._convolved("conv_first", folded)
        x = first
        for block in range(self.blocks):
            inner = x
            for i in range(DENSE_BLOCKS):
                inner = self._dense(f"body.{block}.rdb{i + 1}", inner)
            x = inner.mul_(RESIDUAL).add_(x)
        return self._convolved("conv_body", x).add_(first)

    def _dense(self, name: str, x: "Tensor") -> "Tensor":
        """Each convolution sees what all before it made."""
        import torch

        made = [x]
        for i in range(1, DENSE_LAYERS):
            made.append(self._activated(f"{name}.conv{i}", torch.cat(made, 1)))
        return self._convolved(f"{name}.conv{DENSE_LAYERS}", torch.cat(made, 1)).mul_(RESIDUAL).add_(x)

    def _enlarged(self, features: "Tensor") -> "Tensor":
        """By strips of rows, with those above and below that count: the same as the whole, in bounded memory."""
        import torch

        rows, factor = features.shape[2], 2**self.doublings
        strips = []
        for start, stop in _strips(rows, features.shape[3] * factor**2):
            above = max(start - TAIL_HALO, 0)
            strip = self._tail(features[:, :, above : stop + TAIL_HALO])
            strips.append(strip[:, :, factor * (start - above) : factor * (stop - above)])
        return torch.cat(strips, 2) if len(strips) > 1 else strips[0]

    def _tail(self, x: "Tensor") -> "Tensor":
        from torch.nn import functional

        for i in range(self.doublings):
            x = self._activated(f"conv_up{i + 1}", functional.interpolate(x, scale_factor=2, mode="nearest"))
        return self._convolved("conv_last", self._activated("conv_hr", x))

    def _activated(self, name: str, x: "Tensor") -> "Tensor":
        from torch.nn import functional

        return functional.leaky_relu_(self._convolved(name, x), SLOPE)

    def _convolved(self, name: str, x: "Tensor") -> "Tensor":
        from torch.nn import functional

        return functional.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], padding=1)


def _strips(rows: int, row_pixels: int) -> Iterator[tuple[int, int]]:
    """Cuts 0..rows into pieces of about TAIL_PIXELS enlarged pixels, row_pixels of which come from one row."""
    most = max(1, TAIL_PIXELS // row_pixels)
    for start in range(0, rows, most):
        yield start, min(start + most, rows)


def _padded(pictures: "Tensor", multiple: int) -> "Tensor":
    """At the right and below, to multiples of so many pixels: by reflection, as upstream does, if there is enough."""
    from torch.nn import functional

    height, width = pictures.shape[2:]
    below, right = -height % multiple, -width % multiple
    if not below and not right:
        return pictures
    mode = "reflect" if below < height and right < width else "replicate"
    return functional.pad(pictures, (0, right, 0, below), mode=mode)
