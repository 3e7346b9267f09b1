"""Strides of a single picture, as real tensors have them.

Fake tensors give a first dimension of 1 another stride than real ones do in two places, which changes no result but
does change what follows: torch takes a picture for channels last, or not, by that stride. Where the VAE's attention
hands its result on, real tensors go on contiguous and fake ones channels last, which takes a third less memory.
"""

from typing import Any

VIEWS = ("view", "_unsafe_view")
# that keep the strides of their first argument
KEEPING = ("add", "sub", "mul", "div", "silu", "gelu", "sigmoid")


def real_strides() -> Any:
    """A mode for fake tensors; enter it inside of theirs."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class RealStrides(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            name = function.overloadpacket.__name__
            if name not in (*VIEWS, *KEEPING) or made.dim() < 2 or made.shape[0] != 1:
                return made
            first = (_of_view if name in VIEWS else _of_keeping)(args[0], made)
            return made if first == made.stride(0) else made.as_strided(made.shape, (first, *made.stride()[1:]))

    return RealStrides()


def _of_view(given: Any, made: Any) -> int:
    """at::detail::computeStride: as if it went on where the second dimension ends."""
    return int(made.stride(0) if given.is_contiguous() else made.shape[1] * made.stride(1))


def _of_keeping(given: Any, made: Any) -> int:
    import torch

    alike = isinstance(given, torch.Tensor) and given.shape == made.shape and given.stride()[1:] == made.stride()[1:]
    return int(given.stride(0) if alike else made.stride(0))
