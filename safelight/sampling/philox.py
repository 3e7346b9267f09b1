"""The normal numbers that torch.randn draws on an NVIDIA card, drawn here: A1111's RNG source "NV".

Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), one counter for each number, and
Box-Muller. Equal to a card's up to rounding, as long as the tensor has no more elements than the card runs threads
at once (43 thousand on an RTX 3060); beyond that they are A1111's, on any machine.
"""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and the root of 3, less one
ROUNDS = 10
LOW = 0xFFFFFFFF


class Philox:
    """seed: its lowest 64 bits count. Every call of `normal` goes on to the next counter, as on the card."""

    def __init__(self, seed: int) -> None:
        self.seed = seed % 2**64
        self.offset = 0

    def normal(self, shape: tuple[int, ...]) -> "Tensor":
        """float32."""
        import numpy
        import torch

        count = math.prod(shape)
        words: list[Any] = [numpy.full(count, self.offset, "uint64"), *(numpy.zeros(count, "uint64") for _ in range(3))]
        words[2] = numpy.arange(count, dtype="uint64")
        self.offset += 1
        first, second = _scrambled(words, self.seed & LOW, self.seed >> 32)[:2]
        return torch.from_numpy(_box_muller(first, second)).reshape(shape)


def _scrambled(words: list[Any], low_key: int, high_key: int) -> list[Any]:
    """words: four uint64 arrays that hold 32 bits each, the counter; out come four of random bits."""
    import numpy

    a, b, c, d = words
    for step in range(ROUNDS):
        keys = [
            numpy.uint64((key + step * more) & LOW) for key, more in zip((low_key, high_key), KEY_STEPS, strict=True)
        ]
        left, right = (word * numpy.uint64(factor) for word, factor in zip((a, c), MULTIPLIERS, strict=True))
        a, b, c, d = (right >> 32) ^ b ^ keys[0], right & LOW, (left >> 32) ^ d ^ keys[1], left & LOW
    return [a, b, c, d]


def _box_muller(first: Any, second: Any) -> Any:
    """The sine half, as the card's first of two. float64 within, of constants that cuRAND has in float32."""
    import numpy

    turn = float(numpy.float32(2.3283064e-10))
    angle = float(numpy.float32(2.3283064e-10 * 6.2831855))
    radius = numpy.sqrt(-2.0 * numpy.log(first * turn + turn / 2))
    return (radius * numpy.sin(second * angle + angle / 2)).astype("float32")
