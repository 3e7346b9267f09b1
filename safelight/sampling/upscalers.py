"""Makes pictures four times larger with Real-ESRGAN's compact network; large ones by tiles that change nothing.

Comes in: tensors of pictures in 0..1. Goes out: the same, larger. Knows nothing of files, prompts and pipelines.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.errors import DamagedModel, EnvironmentProblem, UnknownName

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NAMES = {4: "realesr-animevideov3-x4"}
CHANNELS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """kernel: (out, in, 3, 3). bias: (out,). slopes: the PReLU's after it, (out,); None after the last."""

    kernel: "Tensor"
    bias: "Tensor"
    slopes: "Tensor | None"


@dataclass(frozen=True, slots=True, eq=False)
class UpscaleNetwork:
    """SRVGGNetCompact: 3x3 convolutions in a row, pixel shuffle, and the picture itself enlarged added on top.

    Source: https://github.com/xinntao/Real-ESRGAN/blob/master/realesrgan/archs/srvgg_arch.py
    """

    scale: int
    layers: tuple[Layer, ...]

    @property
    def reach_px(self) -> int:
        """How far away a pixel can matter: every 3x3 convolution looks one pixel further."""
        return len(self.layers)

    def __call__(self, pictures: "Tensor") -> "Tensor":
        """(batch, 3, height, width) -> (batch, 3, scale * height, scale * width), not clamped."""
        import torch.nn.functional as F

        x = pictures
        for layer in self.layers:
            x = F.conv2d(x, layer.kernel, layer.bias, padding=1)
            if layer.slopes is not None:
                x = F.prelu(x, layer.slopes)
        enlarged = F.interpolate(pictures, scale_factor=self.scale, mode="nearest")
        return F.pixel_shuffle(x, self.scale).add_(enlarged)


def load(scale: int = 4, *, device: "str | torch.device" = "cpu", dtype: "torch.dtype | None" = None) -> UpscaleNetwork:
    """The bundled network, in float32 unless `dtype` says otherwise.

    Raises UnknownName, EnvironmentProblem when the file is missing, DamagedModel when it cannot be read.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if scale not in NAMES:
        raise UnknownName("upscale factor", str(scale), map(str, NAMES))
    path = Path(__file__).parent / "weights" / f"{NAMES[scale]}.safetensors"
    try:
        weights = load_file(path, device=str(device))
    except FileNotFoundError as error:
        raise EnvironmentProblem(f"the upscaler's weights are missing ({path}): install safelight again") from error
    except SafetensorError as error:
        raise DamagedModel(f"the upscaler's weights cannot be read ({path}): {error}") from error
    return _network(scale, {name: tensor.to(dtype or torch.float32) for name, tensor in weights.items()})


def _network(scale: int, weights: "dict[str, Tensor]") -> UpscaleNetwork:
    """From keys as upstream writes them: body.0 is a convolution, body.1 its PReLU, and so on by twos."""
    places = range(0, 1 + max(int(name.split(".")[1]) for name in weights), 2)
    layers = [
        Layer(weights[f"body.{i}.weight"], weights[f"body.{i}.bias"], weights.get(f"body.{i + 1}.weight"))
        for i in places
    ]
    return UpscaleNetwork(scale, tuple(layers))


def upscale(network: UpscaleNetwork, pictures: "Tensor", *, tile_px: int = 512) -> "Tensor":
    """(batch, 3, height, width) in 0..1 -> (batch, 3, scale * height, scale * width) in 0..1.

    The answer has the dtype and device of `pictures`, whatever the network's own are.

    tile_px: longest side that is computed at once, before its margin; bounds the memory, at 512 to some 0.3 GiB in
    float32, and changes no picture beyond rounding.
    """
    import torch

    assert pictures.ndim == 4, f"expected (batch, 3, height, width), got {tuple(pictures.shape)}"
    assert pictures.shape[1] == CHANNELS, f"expected 3 channels, got {pictures.shape[1]}"
    assert tile_px > 0, f"tile_px is {tile_px}"
    batch, _, height, width = pictures.shape
    larger = pictures.new_empty(batch, CHANNELS, height * network.scale, width * network.scale)
    with torch.no_grad():
        for top, bottom in _spans(height, tile_px):
            for left, right in _spans(width, tile_px):
                _fill(network, pictures, larger, (top, bottom, left, right))
    return larger


def _spans(length: int, most: int) -> Iterator[tuple[int, int]]:
    """Cuts 0..length into pieces of `most`, the last one shorter."""
    for start in range(0, length, most):
        yield start, min(start + most, length)


def _fill(network: UpscaleNetwork, pictures: "Tensor", larger: "Tensor", box: tuple[int, int, int, int]) -> None:
    """Computes one tile of every picture, `box` in pixels before enlarging, and puts it in its place in `larger`.

    The tile sees its true neighbours as far as the network reaches. At the picture's own edge there are none: there
    the convolutions pad with zeros, as they do for the whole picture.
    """
    top, bottom, left, right = box
    reach, scale = network.reach_px, network.scale
    above, before = max(top - reach, 0), max(left - reach, 0)
    kernel = network.layers[0].kernel
    # one by one: a batch takes other paths through the convolutions, and rounds in other ways than its pictures alone
    for picture, place in zip(pictures.split(1), larger.split(1), strict=True):
        seen = picture[:, :, above : bottom + reach, before : right + reach].to(kernel.device, kernel.dtype)
        tile = network(seen)
        inner = tile[
            :, :, scale * (top - above) : scale * (bottom - above), scale * (left - before) : scale * (right - before)
        ]
        place[:, :, scale * top : scale * bottom, scale * left : scale * right] = inner.clamp(0, 1)
