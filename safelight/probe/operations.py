"""The operators that speed.py times: of every kind and dtype, from small to large, as diffusion models use them.

Goes out: functions that make an Operation, so that large tensors are there only once they are needed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from safelight.probe.device import Device
from safelight.probe.rates import COMPUTING, MOVING

KIB, MIB = 2**10, 2**20


@dataclass(frozen=True, slots=True)
class Operation:
    """work: FLOP (2 x multiply-adds) or bytes read and written, of one call. calls: the same work, to be made in turn.

    Of a model's layers each has weights of its own, which are not in a CPU's cache when their turn comes; so the calls
    have different weights. What only moves has an input that the operator before it has just written.
    """

    work: float
    calls: Sequence[Callable[[], object]]


Sizes = Sequence[Callable[[], Operation]]  # by rising work

WEIGHTS = 3  # that take turns
CHANNELS, GROUPS = 64, 32  # of what is normalized

# The smallest of each are what a call costs at least. (tokens, channels in, channels out)
MATMUL = ((8, 64, 64), (64, 256, 256), (256, 768, 768), (1024, 1280, 1280), (4096, 1280, 1280))
# (channels in and out, height and width), batches of two: with and without the prompt
CONVOLUTION = ((8, 4), (64, 8), (256, 16), (320, 32), (320, 64))
# (heads, tokens)
ATTENTION = ((1, 16), (4, 64), (8, 256), (8, 1024), (8, 4096))
# Bytes of a tensor, of which two or three are read or written. glibc gives a tensor of 32 MiB and more (from 64 MiB on
# always) back to the system at once and takes it anew, page by page: 8 times slower (silu, torch 2.13, AMD EPYC).
TENSOR = (2 * KIB, 64 * KIB, MIB, 30 * MIB, 64 * MIB)

# a card reaches its rate in milliseconds only
MATMUL_LARGE = ((64, 256, 256), (1024, 1280, 1280), (4096, 1280, 5120), (8192, 4096, 4096))
CONVOLUTION_LARGE = ((64, 8), (320, 32), (320, 64), (640, 128))
ATTENTION_LARGE = ((4, 64), (8, 1024), (8, 4096), (16, 8192))
TENSOR_LARGE = (2 * KIB, 512 * KIB, 8 * MIB, 128 * MIB)

HEAD = 40  # channels of an attention head


class Maker:
    """Makes tensors of random numbers, as zeros take a card less power and so less time.

    A block of them is repeated: drawing 64 MiB takes longer than timing. It is drawn by a generator of its own, so that
    nobody's pictures change. most: bytes of a tensor that is only moved; a card may be nearly full.
    """

    def __init__(self, torch: Any, device: Device, dtype: str) -> None:
        sizes = TENSOR if device.kind == "cpu" else TENSOR_LARGE
        self.most = max([sizes[0], *(size for size in sizes if size <= device.free_bytes // 8)])
        block = torch.randn(2**14, generator=torch.Generator().manual_seed(0))
        self.block = block.to(device.torch_name, getattr(torch, dtype))
        self.long: dict[bool, Any] = {}

    def __call__(self, *shape: int) -> Any:
        count = math.prod(shape)
        return self.block.repeat(-(-count // self.block.numel()))[:count].view(shape)

    def rows(self, nbytes: int, other: bool = False) -> Any:
        """CHANNELS rows in a memory that all kinds share, as to fill it takes longer than timing too."""
        if other not in self.long:
            self.long[other] = self(self.most // self.block.element_size())
            # a virtual machine gets memory that it never had before from its host, 3 times slower than ever after
            self.long[other].clone()
        return self.long[other][: nbytes // self.block.element_size()].view(CHANNELS, -1)


def _matmul(torch: Any, make: Maker, tokens: int, inner: int, outer: int) -> Operation:
    inputs, bias = make(tokens, inner), make(outer)
    linear = torch.nn.functional.linear
    calls = [partial(linear, inputs, make(outer, inner), bias) for _ in range(WEIGHTS)]
    return Operation(2.0 * tokens * inner * outer, calls)


def _convolution(torch: Any, make: Maker, channels: int, side: int) -> Operation:
    inputs, bias = make(2, channels, side, side), make(channels)
    convolve = partial(torch.nn.functional.conv2d, padding=1)
    calls = [partial(convolve, inputs, make(channels, channels, 3, 3), bias) for _ in range(WEIGHTS)]
    return Operation(2.0 * 2 * channels * channels * 9 * side * side, calls)


def _attention(torch: Any, make: Maker, heads: int, tokens: int) -> Operation:
    query, key, value = (make(2, heads, tokens, HEAD) for _ in range(3))
    call = partial(torch.nn.functional.scaled_dot_product_attention, query, key, value)
    return Operation(4.0 * 2 * heads * tokens * tokens * HEAD, [call])


def _copy(torch: Any, make: Maker, nbytes: int) -> Operation:
    """Channels first to channels last, and what a skip connection does."""
    inputs = make.rows(nbytes)
    halves = inputs.chunk(2)
    return Operation(2.0 * inputs.nbytes, [lambda: inputs.t().contiguous(), lambda: torch.cat(halves)])


def _pointwise(torch: Any, make: Maker, nbytes: int) -> Operation:
    one, other = make.rows(nbytes), make.rows(nbytes, other=True)
    return Operation(3.0 * one.nbytes, [partial(torch.add, one, other)])


def _activation(torch: Any, make: Maker, nbytes: int) -> Operation:
    inputs = make.rows(nbytes)
    return Operation(2.0 * inputs.nbytes, [partial(torch.nn.functional.silu, inputs)])


def _norm(torch: Any, make: Maker, nbytes: int) -> Operation:
    inputs, weight, bias = make.rows(nbytes)[None], make(CHANNELS), make(CHANNELS)
    call = partial(torch.nn.functional.group_norm, inputs, GROUPS, weight, bias)
    return Operation(2.0 * inputs.nbytes, [call])


@dataclass(frozen=True, slots=True)
class _Kind:
    """sizes: on a CPU. large: on a card."""

    make: Callable[..., Operation]
    sizes: Sequence[tuple[int, ...]]
    large: Sequence[tuple[int, ...]]


_TENSOR, _TENSOR_LARGE = ([(size,) for size in sizes] for sizes in (TENSOR, TENSOR_LARGE))
_KINDS: Mapping[str, _Kind] = {
    "matmul": _Kind(_matmul, MATMUL, MATMUL_LARGE),
    "convolution": _Kind(_convolution, CONVOLUTION, CONVOLUTION_LARGE),
    "attention": _Kind(_attention, ATTENTION, ATTENTION_LARGE),
    "copy": _Kind(_copy, _TENSOR, _TENSOR_LARGE),
    "pointwise": _Kind(_pointwise, _TENSOR, _TENSOR_LARGE),
    "activation": _Kind(_activation, _TENSOR, _TENSOR_LARGE),
    "norm": _Kind(_norm, _TENSOR, _TENSOR_LARGE),
}


def operations(torch: Any, device: Device) -> dict[tuple[str, str], Sizes]:
    """By kind and dtype. What moves comes first: it is quick, and leaves its time to what computes."""
    makers = {dtype: Maker(torch, device, dtype) for dtype in device.fast_dtypes}
    wanted = [(kind, dtype) for kind in (*MOVING, *COMPUTING) for dtype in device.fast_dtypes]
    if "tf32" in device.features:
        wanted.append(("matmul", "tf32"))
        makers["tf32"] = makers["float32"]
    return {(kind, dtype): _sizes(torch, device, kind, makers[dtype]) for kind, dtype in wanted}


def _sizes(torch: Any, device: Device, kind: str, make: Maker) -> Sizes:
    row = _KINDS[kind]
    sizes = row.sizes if device.kind == "cpu" else row.large
    if kind in MOVING:
        sizes = [size for size in sizes if size[0] <= make.most]
    return [partial(row.make, torch, make, *size) for size in sizes]


# -- what calling costs ------------------------------------------------------------------------------------------------

LITTLE = 16  # channels: no work to speak of


def module(torch: Any, device: Device) -> Callable[[], object]:
    """Two operators in a module as diffusers' are: of modules, with a view before and after."""

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # not initialized at random: that would change the numbers that others draw after us
            self.inner = torch.nn.utils.skip_init(torch.nn.Linear, LITTLE, LITTLE)
            for parameter in self.inner.parameters():
                parameter.zero_()
            self.activation = torch.nn.SiLU()

        def forward(self, inputs: Any) -> Any:
            hidden = self.activation(self.inner(inputs.reshape(-1, LITTLE)))
            return hidden.reshape(inputs.shape)

    return partial(Layer().to(device.torch_name), torch.ones(2, 4, LITTLE, device=device.torch_name))


def functions(torch: Any, device: Device) -> Callable[[], object]:
    """The same two operators, called directly."""
    inputs, weight = (torch.ones(count, LITTLE, device=device.torch_name) for count in (8, LITTLE))
    bias = torch.ones(LITTLE, device=device.torch_name)
    linear, silu = torch.nn.functional.linear, torch.nn.functional.silu
    return lambda: silu(linear(inputs, weight, bias))
