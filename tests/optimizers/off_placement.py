"""The optimizers of placement, switched off inside."""

from contextlib import contextmanager, nullcontext

from safelight.optimizers import grouped, streaming, weights
from safelight.optimizers.registry import swapped

# tensors that come back with the same numbers, but not to the same address
ELSEWHERE = {
    "disk-offload": "their memory was given back: it is the point of it",
    "drop-text-encoders": "their memory was given back: it is the point of it",
}


@contextmanager
def nothing_lent():
    """What should be copied to the device stays where it is."""
    with swapped(weights, copies=lambda device: lambda tensor: tensor):
        yield


@contextmanager
def nothing_leaves():
    """What should go to a file or to host memory stays in memory."""
    with (
        swapped(weights.InFile, leave=lambda self: None),
        swapped(weights.OnHost, leave=lambda self: None),
    ):
        yield


@contextmanager
def no_groups():
    """diffusers takes the call for group offload, and ignores it."""
    with swapped(grouped, in_groups=lambda *_: nullcontext()):
        yield


@contextmanager
def nothing_streamed():
    """Blocks are announced to the mover, which never copies one."""
    with swapped(streaming.PlainMover, copy_in=lambda self, block: None):
        yield


OFF = {
    "model-offload": nothing_lent,
    "sequential-offload": nothing_lent,
    "group-offload": no_groups,
    "disk-offload": nothing_leaves,
    "drop-text-encoders": nothing_leaves,
    "streamed-blocks": nothing_streamed,
}
