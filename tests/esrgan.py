"""Tiny upscalers with random weights: RRDBNet as plain modules, and its state under the names of every age."""

import re

import torch
from torch import nn
from torch.nn import functional as F

SLOPE = 0.2


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, 1, 1)


class DenseBlock(nn.Module):
    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for i in range(5):
            setattr(self, f"conv{i + 1}", conv(features + i * growth, growth if i < 4 else features))

    def forward(self, x):
        x1 = F.leaky_relu(self.conv1(x), SLOPE)
        x2 = F.leaky_relu(self.conv2(torch.cat((x, x1), 1)), SLOPE)
        x3 = F.leaky_relu(self.conv3(torch.cat((x, x1, x2), 1)), SLOPE)
        x4 = F.leaky_relu(self.conv4(torch.cat((x, x1, x2, x3), 1)), SLOPE)
        return self.conv5(torch.cat((x, x1, x2, x3, x4), 1)) * 0.2 + x


class Block(nn.Module):
    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(features, growth) for _ in range(3))

    def forward(self, x):
        return self.rdb3(self.rdb2(self.rdb1(x))) * 0.2 + x


class RRDBNet(nn.Module):
    """As the paper and BasicSR have it; fold: how many pixels of a side go into channels first."""

    def __init__(self, *, features=8, blocks=2, growth=4, doublings=2, fold=1, seed=0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.doublings, self.fold = doublings, fold
        self.conv_first = conv(3 * fold**2, features)
        self.body = nn.Sequential(*(Block(features, growth) for _ in range(blocks)))
        self.conv_body = conv(features, features)
        for i in range(doublings):
            setattr(self, f"conv_up{i + 1}", conv(features, features))
        self.conv_hr, self.conv_last = conv(features, features), conv(features, 3)

    def forward(self, x):
        first = self.conv_first(F.pixel_unshuffle(x, self.fold))
        x = first + self.conv_body(self.body(first))
        for i in range(self.doublings):
            up = getattr(self, f"conv_up{i + 1}")
            x = F.leaky_relu(up(F.interpolate(x, scale_factor=2, mode="nearest")), SLOPE)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), SLOPE))


def state(**sizes) -> dict[str, torch.Tensor]:
    """Larger than torch's own start, so that features count, and bright enough to be inside 0..1."""
    found = {name: tensor.detach() * 1.5 for name, tensor in RRDBNet(**sizes).state_dict().items()}
    return found | {"conv_last.bias": torch.tensor([0.4, 0.5, 0.6])}


def of_bsrgan(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """RRDB_trunk.0.RDB1.conv1.weight, upconv1, HRconv."""
    found = {}
    for name, tensor in weights.items():
        new = re.sub(r"body\.(\d+)\.rdb(\d)", r"RRDB_trunk.\1.RDB\2", name)
        for old, other in (("conv_body", "trunk_conv"), ("conv_up", "upconv"), ("conv_hr", "HRconv")):
            new = new.replace(old, other)
        found[new] = tensor
    return found


def of_the_first(weights: dict[str, torch.Tensor], blocks: int, doublings: int) -> dict[str, torch.Tensor]:
    """model.0.weight, model.1.sub.0.RDB1.conv1.0.weight, model.3.weight, ..."""
    last = 3 * doublings + 4
    places = {"conv_first": "model.0", "conv_body": f"model.1.sub.{blocks}"}
    places |= {f"conv_up{i + 1}": f"model.{3 * (i + 1)}" for i in range(doublings)}
    places |= {"conv_hr": f"model.{last - 2}", "conv_last": f"model.{last}"}
    found = {}
    for name, tensor in weights.items():
        layer, _, kind = name.rpartition(".")
        layer = re.sub(r"body\.(\d+)\.rdb(\d)\.conv(\d)", r"model.1.sub.\1.RDB\2.conv\3.0", layer)
        found[f"{places.get(layer, layer)}.{kind}"] = tensor
    return found


def compact_state(*, features=6, layers=4, scale=2, seed=0) -> dict[str, torch.Tensor]:
    """SRVGGNetCompact's: convolutions at even places, PReLUs between them."""
    made = torch.Generator().manual_seed(seed)
    found = {}
    for i in range(layers):
        inputs, outputs = 3 if i == 0 else features, 3 * scale**2 if i == layers - 1 else features
        found[f"body.{2 * i}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=made) * 0.1
        found[f"body.{2 * i}.bias"] = torch.randn(outputs, generator=made) * 0.01
        if i < layers - 1:
            found[f"body.{2 * i + 1}.weight"] = torch.full((features,), 0.25)
    return found


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(1, 3, height, width) in 0..1."""
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
