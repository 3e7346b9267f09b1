"""What kernels take beside their inputs and outputs: while they run, and on a CPU what stays of them."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What oneDNN and ATen allocate was read off allocation by allocation, for torch 2.13 on an x86 CPU with avx512_bf16:
# float32 and bfloat16, 3 to 2560 channels, 8 to 256 px, batches of 1 to 16, 1 and 2 threads.
BLOCK = 16  # channels: oneDNN pads what it reorders to a multiple
PLAIN_CHANNELS = 16  # an image with fewer (the latents) is read as it is
SMALL_OUTPUT = 128  # height + width: up to here ATen enlarges a picture through a copy with the channels innermost
ROWS, KEYS = 256, 512  # of queries and keys that a thread takes at once in attention, at most
# Bytes that stay of a kernel that oneDNN has compiled for a shape: resident memory less what was alive, 8 to 55 kernels
# of firstlight, DiT-S/2 and SD1.5 each; 60 to 240 KiB, and matrix products in float32 are MKL's, which compiles none.
COMPILED = {4: 100 * 2**10, 2: 150 * 2**10}  # by bytes of a number
# glibc gives the end of its heap back once twice its largest block (32 MiB) is free there, and nothing in between: on
# top of what was taken resident memory grew by 0 to 60 % of it, and above 500 MiB by 60 MiB at most.
KEPT, KEPT_MOST = 1 / 3, 64 * 2**20


@dataclass(frozen=True, slots=True)
class Workspace:
    """Bytes that one operator allocates for itself and gives back. before: until the result is made. through: from
    before the result to the end. after: once the result is there."""

    before: int = 0
    through: int = 0
    after: int = 0

    def most(self, made: int) -> int:
        """By how much memory is higher at its worst moment than before the operator. made: bytes of the result."""
        return self.through + max(self.before, made + self.after)


NONE = Workspace()
Tensors = Sequence[Any]


def workspace(device: str, name: str, given: Tensors, made: Tensors) -> Workspace:
    """device: "cpu" or "cuda". name: as aten has it."""
    kernels = ON_CPU if device == "cpu" else ON_CARD
    return kernels[name](given, made) if name in kernels else NONE


def _convolution_on_card(given: Tensors, made: Tensors) -> Workspace:
    image, weight = given[:2]
    if channels_last(image) or channels_last(weight):
        return NONE
    # cuDNN computes channels last, and copies what is not: an estimate, no card has been asked yet
    return Workspace(after=_bytes(image) + _bytes(weight))


def _group_norm_on_card(given: Tensors, made: Tensors) -> Workspace:
    """at::group_norm copies what is channels last, but on a CPU."""
    return Workspace(through=_bytes(given[0])) if channels_last(given[0]) else NONE


def _convolution(given: Tensors, made: Tensors) -> Workspace:
    """oneDNN reorders image, weight and result into blocks of channels; of what is channels last the weight alone."""
    image, weight = given[:2]
    if channels_last(image) or channels_last(weight):
        return Workspace(through=0 if channels_last(image) else _bytes(image), after=_bytes(weight))
    blocked = _bytes(made[0]) * -(-made[0].shape[1] // BLOCK) * BLOCK // made[0].shape[1]
    if image.shape[1] < PLAIN_CHANNELS:
        return Workspace(through=blocked)
    return Workspace(before=_bytes(image) + _bytes(weight) + _sums(weight, made[0]), through=blocked)


def _sums(weight: Any, made: Any) -> int:
    """A 1x1 convolution in bfloat16 is summed up in float32, by each thread for the picture it is at."""
    import torch

    if weight.element_size() != 2 or weight.shape[2:].numel() != 1:
        return 0
    return 4 * int(made[0].numel()) * min(torch.get_num_threads(), len(made))


def _layer_norm(given: Tensors, made: Tensors) -> Workspace:
    return NONE if given[0].is_contiguous() else Workspace(through=_bytes(given[0]))


def _upsample(given: Tensors, made: Tensors) -> Workspace:
    if channels_last(given[0]) or sum(made[0].shape[-2:]) > SMALL_OUTPUT:
        return NONE
    return Workspace(after=_bytes(given[0]) + _bytes(made[0]))


def _attention(given: Tensors, made: Tensors) -> Workspace:
    """Scores and sums of the block that a thread is at, in float32."""
    import torch

    query, key = given[:2]
    rows, keys = min(ROWS, query.shape[-2]), min(KEYS, key.shape[-2])
    return Workspace(after=4 * torch.get_num_threads() * rows * (keys + query.shape[-1]))


Kernel = Callable[[Tensors, Tensors], Workspace]
ON_CPU: Mapping[str, Kernel] = {
    "convolution": _convolution,
    "native_layer_norm": _layer_norm,
    "upsample_nearest2d": _upsample,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
}
ON_CARD: Mapping[str, Kernel] = {
    "convolution": _convolution_on_card,
    "native_group_norm": _group_norm_on_card,
    "native_layer_norm": _layer_norm,
}
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


def compiled(name: str, given: Tensors) -> tuple[Hashable, int] | None:
    """(what tells it from others, bytes) of the kernel that a CPU compiles for an operator, if it does."""
    if name != "convolution" and (name not in PRODUCTS or given[0].element_size() != 2):
        return None
    shapes = tuple(tuple(tensor.shape) for tensor in given)
    return (name, given[0].dtype, shapes), COMPILED.get(given[0].element_size(), 0)


def kept(device: str, taken: int) -> int:
    """Bytes that a CPU's process grows by besides those that are taken at its worst moment: freed, not given back."""
    return min(round(KEPT * taken), KEPT_MOST) if device == "cpu" else 0


def channels_last(tensor: Any) -> bool:
    """Also in memory: one channel or one pixel alone lies so in any format."""
    import torch

    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats.get(tensor.dim())
    return wanted is not None and tensor.is_contiguous(memory_format=wanted) and not tensor.is_contiguous()


def _bytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())
