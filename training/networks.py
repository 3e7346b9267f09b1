"""Two small judges that are not part of firstlight: LPIPS on AlexNet, and EfficientNet-lite0 features.

Weights lie in `safelight/measure/weights` (see NOTICE there). Written for training: gradients, and batches.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

WEIGHTS = Path(__file__).parents[1] / "safelight" / "measure" / "weights"


class Lpips(nn.Module):
    """Learned perceptual distance (Zhang et al., 2018, v0.1, AlexNet): pictures in -1..1 -> [batch], 0 is equal."""

    STRIDE_PADDING = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
    SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in weights.items():
            self.register_buffer(name.replace(".", "_"), tensor.float())
        self.register_buffer("shift", torch.tensor(self.SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(self.SCALE).view(1, 3, 1, 1))

    @classmethod
    def load(cls, folder: Path) -> "Lpips":
        return cls(load_file(folder / "lpips_alex.fp16.safetensors"))

    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        x, out = (pictures - self.shift) / self.scale, []
        for i, (stride, padding) in enumerate(self.STRIDE_PADDING):
            if i in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(F.conv2d(x, getattr(self, f"conv{i}_weight"), getattr(self, f"conv{i}_bias"), stride, padding))
            out.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        return out

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        total = 0
        for i, (x, y) in enumerate(zip(self.features(a), self.features(b), strict=True)):
            total = total + ((x - y).pow(2) * getattr(self, f"lin{i}").view(1, -1, 1, 1)).sum(1).mean((1, 2))
        return total


# kernel, stride, expansion, channels out: EfficientNet-lite0 (Tan and Le, 2019; lite: no squeeze-excite, ReLU6)
_STAGES = (
    (1, (3, 1, 1, 16)),
    (2, (3, 2, 6, 24)),
    (2, (5, 2, 6, 40)),
    (3, (3, 2, 6, 80)),
    (3, (5, 1, 6, 112)),
    (4, (5, 2, 6, 192)),
    (1, (3, 1, 6, 320)),
)


class EfficientNetLite0:
    """ImageNet features: uint8 pictures [n, height, width, 3] -> float32 [n, 1280], pooled over the picture."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = {name: tensor.float() for name, tensor in weights.items()}
        self.blocks = [
            (kernel, stride if i == 0 else 1) for repeats, (kernel, stride, _, _) in _STAGES for i in range(repeats)
        ]

    @classmethod
    def load(cls, folder: Path) -> "EfficientNetLite0":
        return cls(load_file(folder / "efficientnet_lite0_features.fp16.safetensors"))

    @torch.inference_mode()
    def features(self, pictures) -> torch.Tensor:
        x = (torch.as_tensor(pictures).permute(0, 3, 1, 2).float() - 127) / 128
        x = F.relu6(self._norm(self._conv(x, "_conv_stem", 2), "_bn0"))
        for i, (_, stride) in enumerate(self.blocks):
            x = self._block(x, f"_blocks.{i}.", stride)
        return F.relu6(self._norm(self._conv(x, "_conv_head", 1), "_bn1")).mean((2, 3))

    def _block(self, x: torch.Tensor, name: str, stride: int) -> torch.Tensor:
        y = x
        if f"{name}_expand_conv.weight" in self.weights:
            y = F.relu6(self._norm(self._conv(y, f"{name}_expand_conv", 1), f"{name}_bn0"))
        y = F.relu6(self._norm(self._conv(y, f"{name}_depthwise_conv", stride, depthwise=True), f"{name}_bn1"))
        y = self._norm(self._conv(y, f"{name}_project_conv", 1), f"{name}_bn2")
        return x + y if stride == 1 and x.shape == y.shape else y

    def _conv(self, x: torch.Tensor, name: str, stride: int, *, depthwise: bool = False) -> torch.Tensor:
        weight = self.weights[f"{name}.weight"]
        kernel = weight.shape[-1]
        # TensorFlow's "same": what is missing goes below and to the right first
        pad = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:]]
        x = F.pad(x, (pad[1] // 2, pad[1] - pad[1] // 2, pad[0] // 2, pad[0] - pad[0] // 2))
        return F.conv2d(x, weight, stride=stride, groups=x.shape[1] if depthwise else 1)

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        w = self.weights
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-3)
