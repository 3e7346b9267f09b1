"""Pictures as arrays, and the strips of rows that keep the memory of a large one bounded. Knows no metric."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safelight.errors import UsageError

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image

STRIP_PIXELS = 2**18  # pixels at a time: three channels of them are 6 MiB in float64


def of(image: "Image") -> "ndarray":
    """uint8 (height, width, 3). Raises UsageError for what is not RGB: what an alpha channel hides is not guessed."""
    import numpy as np

    if image.mode != "RGB":
        raise UsageError(f"pictures are compared in RGB, this one is {image.mode}: convert it first")
    return np.asarray(image)


def pair(plain: "Image", other: "Image") -> "tuple[ndarray, ndarray]":
    """uint8 (height, width, 3) both. Raises UsageError for two sizes."""
    if plain.size != other.size:
        sizes = " and ".join(f"{image.width}x{image.height}" for image in (plain, other))
        raise UsageError(f"pictures of {sizes} cannot be compared: make both of one size")
    return of(plain), of(other)


@dataclass(frozen=True, slots=True)
class Strip:
    """rows: of the picture, with what is seen around them. inner: those the strip is for, counted within `rows`."""

    rows: slice
    inner: slice


def strips(height: int, width: int, halo: int = 0) -> Iterator[Strip]:
    """Covers all rows once by `inner`; each strip sees `halo` rows more above and below, where the picture has them."""
    count = max(1, STRIP_PIXELS // width)
    for begin in range(0, height, count):
        end = min(begin + count, height)
        first = max(0, begin - halo)
        yield Strip(slice(first, min(height, end + halo)), slice(begin - first, end - first))
