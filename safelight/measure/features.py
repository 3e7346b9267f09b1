"""What a picture shows, as 1280 numbers: EfficientNet-lite0's ImageNet features, pooled over the picture.

Comes in: pictures. Goes out: float32 (n, 1280). Knows nothing of distances.

Source: Tan and Le, "EfficientNet", 2019; lite: no squeeze-and-excitation, ReLU6. Weights: weights/NOTICE.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from safelight.measure import pixels
from safelight.measure.lpips import WEIGHTS

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image
    from torch import Tensor

FILE = WEIGHTS / "efficientnet_lite0_features.fp16.safetensors"
COUNT = 1280
SIDE_PX = 224  # what the network was trained on
BATCH = 16
# repeats and stride of the first, as in the paper's table 1; kernels and widths follow from the weights
STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
STRIDES = tuple(stride if i == 0 else 1 for repeats, stride in STAGES for i in range(repeats))
EPSILON = 1e-3  # of its batch normalisation


@dataclass(frozen=True, slots=True, eq=False)
class EfficientNet:
    """weights: float32, by the names of the file."""

    weights: "Mapping[str, Tensor]"

    @classmethod
    def read(cls, device: str = "cpu") -> "EfficientNet":
        from safetensors.torch import load_file

        return cls({name: tensor.float().to(device) for name, tensor in load_file(FILE).items()})

    def __call__(self, pictures: "Tensor") -> "Tensor":
        """(n, 3, height, width) in 0..255 -> float32 (n, 1280)."""
        from torch.nn import functional

        x = (pictures.float() - 127) / 128
        x = functional.relu6(self._norm(self._convolved(x, "_conv_stem", 2), "_bn0"))
        for number, stride in enumerate(STRIDES):
            x = self._block(x, f"_blocks.{number}.", stride)
        return functional.relu6(self._norm(self._convolved(x, "_conv_head", 1), "_bn1")).mean((2, 3))

    def _block(self, x: "Tensor", name: str, stride: int) -> "Tensor":
        from torch.nn import functional

        y = x
        if f"{name}_expand_conv.weight" in self.weights:
            y = functional.relu6(self._norm(self._convolved(y, f"{name}_expand_conv", 1), f"{name}_bn0"))
        y = functional.relu6(self._norm(self._convolved(y, f"{name}_depthwise_conv", stride), f"{name}_bn1"))
        y = self._norm(self._convolved(y, f"{name}_project_conv", 1), f"{name}_bn2")
        return x + y if stride == 1 and x.shape == y.shape else y

    def _convolved(self, x: "Tensor", name: str, stride: int) -> "Tensor":
        from torch.nn import functional

        weight = self.weights[f"{name}.weight"]
        kernel, groups = weight.shape[-1], x.shape[1] // weight.shape[1]  # depthwise: a kernel for each channel
        # TensorFlow's "same": what is missing goes below and to the right first
        rows, columns = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:])
        x = functional.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return functional.conv2d(x, weight, stride=stride, groups=groups)

    def _norm(self, x: "Tensor", name: str) -> "Tensor":
        from torch.nn import functional

        mean, variance, weight, bias = (
            self.weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, variance, weight, bias, eps=EPSILON)


@lru_cache(maxsize=1)
def network() -> EfficientNet:
    return EfficientNet.read()


def of(pictures: "Sequence[Image]") -> "ndarray":
    """float32 (n, 1280). Each picture is brought to 224 x 224 first, whatever its shape, as is usual.

    By Pillow's bicubic filter, which smooths before it leaves pixels out: without, the distance is that of the resizing
    (Parmar, Zhang, Zhu, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", 2022).
    """
    import numpy as np
    import torch
    from PIL.Image import Resampling

    out: list[ndarray] = [np.zeros((0, COUNT), np.float32)]
    for begin in range(0, len(pictures), BATCH):
        part = pictures[begin : begin + BATCH]
        for picture in part:
            pixels.of(picture)  # refuses what is not RGB
        sized = [np.array(picture.resize((SIDE_PX, SIDE_PX), Resampling.BICUBIC)) for picture in part]
        with torch.inference_mode():
            out.append(network()(torch.from_numpy(np.stack(sized)).permute(0, 3, 1, 2)).numpy())
    return np.concatenate(out)
