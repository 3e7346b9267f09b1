"""Which of a denoiser's blocks stay on the device under a budget, and which flow through: arithmetic on their sizes."""

from collections.abc import Sequence

from safelight.errors import OutOfMemory
from safelight.probe.device import gib


def split(block_bytes: Sequence[int], other_bytes: int, budget_bytes: float, ahead: int) -> tuple[int, ...]:
    """The indices of the blocks that stay: as many as fit, so that the streamed ones are spread evenly.

    A streamed block is on the device while it computes and while the `ahead` streamed blocks before it do; a copy has
    the more time, the more resident blocks compute meanwhile. other_bytes: what of the denoiser is in no block.
    Raises OutOfMemory with the least budget that would do.
    """
    count = len(block_bytes)
    found = choices(block_bytes, other_bytes, ahead)
    for need, streamed in found:
        if need <= budget_bytes:
            return tuple(i for i in range(count) if i not in streamed)
    raise OutOfMemory(
        f"streamed-blocks has {gib(max(0, budget_bytes))} for the denoiser, and needs {gib(min(found)[0])} at least: "
        "raise streamed-blocks.budget_gib, lower streamed-blocks.ahead, or take sequential-offload"
    )


def choices(block_bytes: Sequence[int], other_bytes: int, ahead: int) -> list[tuple[int, tuple[int, ...]]]:
    """(bytes of the denoiser on the device at the worst moment, the blocks that flow), from none to all of them."""
    numbers = [_evenly(len(block_bytes), streamed) for streamed in range(len(block_bytes) + 1)]
    return [(other_bytes + _needed(block_bytes, streamed, ahead), streamed) for streamed in numbers]


def _evenly(count: int, chosen: int) -> tuple[int, ...]:
    return tuple(i * count // chosen for i in range(chosen))


def _needed(block_bytes: Sequence[int], streamed: tuple[int, ...], ahead: int) -> int:
    """Bytes of the resident blocks, and of the streamed ones that are there at once at the worst moment.

    Streamed blocks come round and round: behind the last one the first one of the next step is loaded.
    """
    resident = sum(nbytes for i, nbytes in enumerate(block_bytes) if i not in streamed)
    at_once = min(ahead + 1, len(streamed))
    windows = [
        sum(block_bytes[streamed[(first + k) % len(streamed)]] for k in range(at_once))
        for first in range(len(streamed))
    ]
    return resident + max(windows, default=0)
