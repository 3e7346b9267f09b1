"""LPIPS: how far AlexNet's features of two pictures are apart, weighted as people judged (v0.1).

Comes in: two pictures, PIL RGB of one size, or tensors. Goes out: 0 and up, 0 is equal. Nothing is scaled down: a large
picture is done in strips of rows, each layer with exactly the rows it needs: strips change no more than rounding.

Source: Zhang, Isola, Efros, Shechtman, Wang, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
2018. Weights: weights/NOTICE.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.measure import pixels

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

WEIGHTS = Path(__file__).parent / "weights"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ScalingLayer of the reference implementation
STRIP_PIXELS = 2**19  # of two pictures 64 features at a quarter of their sides are 16 MiB in float32
LEAST_PX = 31  # below it nothing is left after the second pooling


@dataclass(frozen=True, slots=True)
class Step:
    """One convolution or pooling along one side: a window of `size` every `stride`, over zeros beyond the edge."""

    size: int
    stride: int
    padding: int = 0

    def count(self, length: int) -> int:
        """How many answers so many rows give."""
        return (length + 2 * self.padding - self.size) // self.stride + 1

    def needs(self, begin: int, end: int, length: int) -> tuple[int, int, int, int]:
        """For answers begin to end: first and last row read, and rows of zeros before and after them."""
        first = begin * self.stride - self.padding
        last = (end - 1) * self.stride - self.padding + self.size
        return max(first, 0), min(last, length), max(-first, 0), max(last - length, 0)


POOL = Step(3, 2)
# one entry per layer that is compared: the steps that lead to it, its convolution last (Krizhevsky, 2014)
LAYERS = ((Step(11, 4, 2),), (POOL, Step(5, 1, 2)), (POOL, Step(3, 1, 1)), (Step(3, 1, 1),), (Step(3, 1, 1),))


@dataclass(frozen=True, slots=True, eq=False)
class Alex:
    """convolutions: of five layers (weight, bias). heads: of each, how much a feature counts, (features,)."""

    convolutions: "tuple[tuple[Tensor, Tensor], ...]"
    heads: "tuple[Tensor, ...]"

    @classmethod
    def read(cls, device: str = "cpu") -> "Alex":
        from safetensors.torch import load_file

        named = {name: tensor.float().to(device) for name, tensor in load_file(FILE).items()}
        numbers = range(len(LAYERS))
        pairs = tuple((named[f"conv{i}.weight"], named[f"conv{i}.bias"]) for i in numbers)
        return cls(pairs, tuple(named[f"lin{i}"].flatten() for i in numbers))

    def __call__(self, ones: "Tensor", others: "Tensor") -> "Tensor":
        """(batch, 3, height, width) both, uint8 or float32 in -1..1 -> (batch,). Gradients pass."""
        height, width = ones.shape[-2:]
        total = self.heads[0].new_zeros(len(ones))
        for strip in _strips(height, width):
            total = total + self._over(strip, ones, others)
        return total

    def _over(self, strip: "tuple[Part, ...]", ones: "Tensor", others: "Tensor") -> "Tensor":
        """(batch,): what a strip adds to the distance."""
        import torch

        begin, end = strip[0].reads
        x = _scaled(torch.cat([batch[..., begin:end, :] for batch in (ones, others)]))
        total = x.new_zeros(len(ones))
        for steps, part, (weight, bias), head in zip(LAYERS, strip, self.convolutions, self.heads, strict=True):
            x = _layer(x, steps, part, weight, bias)
            mine, theirs = _unit(x[..., part.owned, :]).chunk(2)
            apart = torch.einsum("bfhw,f->b", (mine - theirs).square(), head)
            total = total + apart / (part.height * x.shape[-1])
            x = x[..., part.passed, :]
        return total


FILE = WEIGHTS / "lpips_alex.fp16.safetensors"


@dataclass(frozen=True, slots=True)
class Part:
    """What one strip does in one layer.

    reads: first and last row it takes of what came before. above, below: rows of zeros its convolution adds to them.
    height: rows of the whole layer. owned: the rows that this strip counts. passed: those that the next layer reads;
    both within its own.
    """

    reads: tuple[int, int]
    above: int
    below: int
    height: int
    owned: slice
    passed: slice


def lpips(plain: "Image", other: "Image") -> float:
    """0 and up, 0 is equal; 0.1 is seen at a glance. At least 31 px."""
    import torch

    with torch.inference_mode():
        return float(_alex()(*(torch.tensor(array).permute(2, 0, 1)[None] for array in pixels.pair(plain, other))))


@lru_cache(maxsize=1)
def _alex() -> Alex:
    return Alex.read()


def _scaled(x: "Tensor") -> "Tensor":
    import torch

    if x.dtype == torch.uint8:
        x = x.float() / 127.5 - 1
    return (x - x.new_tensor(SHIFT).view(1, 3, 1, 1)) / x.new_tensor(SCALE).view(1, 3, 1, 1)


def _unit(x: "Tensor") -> "Tensor":
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _layer(x: "Tensor", steps: tuple[Step, ...], part: Part, weight: "Tensor", bias: "Tensor") -> "Tensor":
    from torch.nn import functional

    *pools, step = steps
    for pool in pools:
        x = functional.max_pool2d(x, pool.size, pool.stride)
    x = functional.pad(x, (step.padding, step.padding, part.above, part.below))
    return functional.relu(functional.conv2d(x, weight, bias, step.stride))


def _strips(height: int, width: int) -> "Iterator[tuple[Part, ...]]":
    """Every row of every layer is owned once."""
    lengths = [height]
    for step in (step for steps in LAYERS for step in steps):
        lengths.append(step.count(lengths[-1]))
    count = min(lengths[-1], -(-height * width // STRIP_PIXELS))
    return (_strip(lengths, number, count) for number in range(count))


def _strip(lengths: list[int], number: int, count: int) -> tuple[Part, ...]:
    """From the last layer to the first, as what a layer needs is known once the next one's needs are."""
    parts: list[Part] = []
    wanted: tuple[int, int] | None = None
    at = len(lengths) - 1
    for steps in reversed(LAYERS):
        height = lengths[at]
        owned = height * number // count, height * (number + 1) // count
        begin, end = (min(owned[0], wanted[0]), max(owned[1], wanted[1])) if wanted else owned
        passed = slice(wanted[0] - begin, wanted[1] - begin) if wanted else slice(0, 0)
        at -= 1
        *rows, above, below = steps[-1].needs(begin, end, lengths[at])
        for pool in steps[:-1]:
            at -= 1
            rows = list(pool.needs(rows[0], rows[1], lengths[at])[:2])
        wanted = rows[0], rows[1]
        parts.append(Part(wanted, above, below, height, slice(owned[0] - begin, owned[1] - begin), passed))
    return tuple(reversed(parts))
