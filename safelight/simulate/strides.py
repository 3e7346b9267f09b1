"""Strides as real tensors have them, where fake ones differ.

They change no result, but they change what follows: by them torch takes an image for channels last, or not. Fake
tensors are a CPU's, and of a single picture two kinds of operators give them another stride than real ones have. Where
the VAE's attention hands its result on, real tensors go on contiguous and fake ones channels last, which takes less
memory.
"""

from typing import Any

VIEWS = ("view", "_unsafe_view")
# that keep the strides of their first argument
KEEPING = ("add", "sub", "mul", "div", "silu", "gelu", "sigmoid")
GROUP_NORM = "native_group_norm"


def real_strides(device: str = "cpu") -> Any:
    """A mode for fake tensors; enter it inside of theirs. device: "cpu", "cuda", ..."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class RealStrides(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            name = function.overloadpacket.__name__
            if name in VIEWS:
                return _of_one(made, _first_of_view(args[0], made))
            if name in KEEPING:
                return _of_one(made, _first_of_keeping(args[0], made))
            return _contiguous(made) if name == GROUP_NORM and device != "cpu" else made

    return RealStrides()


def _of_one(made: Any, first: int) -> Any:
    """With this first stride, if it is a single picture."""
    if made.dim() < 2 or made.shape[0] != 1 or first == made.stride(0):
        return made
    return made.as_strided(made.shape, (first, *made.stride()[1:]))


def _first_of_view(given: Any, made: Any) -> int:
    """at::detail::computeStride: as if the picture went on where its second dimension ends."""
    if given.is_contiguous() or made.dim() < 2:
        return int(made.stride(0)) if made.dim() else 0
    return int(made.shape[1] * made.stride(1))


def _first_of_keeping(given: Any, made: Any) -> int:
    import torch

    alike = isinstance(given, torch.Tensor) and given.shape == made.shape and given.stride()[1:] == made.stride()[1:]
    return int((given if alike else made).stride(0)) if made.dim() else 0


def _contiguous(made: Any) -> Any:
    """at::group_norm keeps what is channels last on a CPU alone."""
    import torch

    normed, *statistics = made
    strides = torch.empty(normed.shape, device="meta").stride()
    return (normed.as_strided(normed.shape, strides), *statistics)
