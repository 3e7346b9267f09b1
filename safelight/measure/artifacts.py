"""What a spoiled picture looks like: black, one colour, clipped, seams at the borders of tiles.

Comes in: a picture, PIL RGB; the plain one beside it, where there is one, so that what that shows as well is not held
against the picture. Goes out: a list of findings, one line each, empty for a picture without any. Not-a-number cannot
be in 8 bits: it has become black.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from safelight.errors import UsageError
from safelight.measure import pixels

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image

# Ours; the reasons stand in each function. Seams: found where there are none in 3 of 1071 cases (16 photographs and 102
# pictures of firstlight, tiles of 16 to 256 px). Tiles of 64 px that are brighter or darker by 4 levels (standard
# deviation) are found in all 5 photographs tried, by 1 level in all 5 with the plain picture beside them.
BLACK = 2  # no level brighter: run/decoding.py takes the same for black
FLAT = 8  # levels between the 1st and the 99th percentile of each channel
CLIPPED = 0.5
CLIPPED_MORE = 0.02
SEAM_LEVELS = 0.5
SEAM_SPREADS = 8.0
SEAM_TIMES = 1.5


def artifacts(image: "Image", tile_px: int | None = None, plain: "Image | None" = None) -> list[str]:
    """tile_px: distance of tile borders from each other, which begin at 0; None: no tiles, no seams are looked for."""
    if tile_px is not None and tile_px < 4:
        raise UsageError(f"tiles of {tile_px} px are all border: seams are looked for from 4 px on")
    here = pixels.of(image)
    there = None if plain is None else pixels.pair(plain, image)[0]
    return [*_empty(here, there), *_clipped(here, there), *(_seams(here, there, tile_px) if tile_px else ())]


def clipped_share(picture: "ndarray") -> tuple[float, float]:
    """Shares of pixels that are black in all channels, and white in all: one channel at its end is a pure colour."""
    return tuple(float((picture == end).all(-1).mean()) for end in (0, 255))  # type: ignore[return-value]


def _empty(here: "ndarray", there: "ndarray | None") -> Iterator[str]:
    """Black, or one colour: a picture of nothing. One colour is what a denoiser gives that was fed not-a-number."""
    import numpy as np

    if there is not None and (there.max() <= BLACK or _range(there) <= FLAT):
        return
    if here.max() <= BLACK:
        yield f"black: no level above {BLACK} of 255; not-a-number looks like this too"
    elif _range(here) <= FLAT:
        red, green, blue = np.median(here, (0, 1)).astype(int)
        yield f"flat: nearly all pixels within {FLAT} levels of one colour, about ({red}, {green}, {blue})"


def _range(picture: "ndarray") -> float:
    """The most that any channel's percentiles 1 and 99 are apart: a few stray pixels do not make a picture."""
    import numpy as np

    low, high = np.percentile(picture, (1, 99), axis=(0, 1))
    return float((high - low).max())


def _clipped(here: "ndarray", there: "ndarray | None") -> Iterator[str]:
    """Alone: over half of the picture. Beside the plain one: two in a hundred more, as a drawing may stand on white."""
    shares = clipped_share(here)
    if min(here.max(), 255 - here.min()) <= BLACK:
        return  # told as black, or all white, which is flat
    before = clipped_share(there) if there is not None else (0.0, 0.0)
    for name, share, plain in zip(("black", "white"), shares, before, strict=True):
        if there is None and share > CLIPPED:
            yield f"clipped: {share:.0%} of the pixels are pure {name}"
        elif there is not None and share - plain > CLIPPED_MORE:
            yield f"clipped: {share:.0%} of the pixels are pure {name}, {plain:.0%} in the plain picture"


def _seams(here: "ndarray", there: "ndarray | None", tile_px: int) -> Iterator[str]:
    """Steps across columns (rows) at the borders of tiles against those at every other distance from a border.

    A seam must be the largest of all distances, by half as much again, and stand out of their spread: edges of what is
    shown lie at any distance, seams at one. Against the plain picture only what was added counts, which shows far
    weaker seams, as its edges are not in the way.
    """
    import numpy as np

    picture = here.astype(np.float32).mean(-1)
    if there is not None:
        picture -= there.astype(np.float32).mean(-1)
    for name, turned in (("columns", picture), ("rows", picture.T)):
        steps = _steps(turned)
        if turned.shape[1] <= tile_px + 2:
            continue  # one tile across: no border
        seam, *others = (float(steps[distance::tile_px].mean()) for distance in range(tile_px))
        middle = float(np.median(others))
        spread = 1.4826 * float(np.median(np.abs(np.array(others) - middle)))
        least = middle + max(SEAM_LEVELS, SEAM_SPREADS * spread)
        if seam > least and seam > SEAM_TIMES * max(others):
            where = f"{name} {tile_px}, {2 * tile_px}, ..."
            yield f"seams: steps of {seam:.1f} levels more at {where} than beside them, {middle:.1f} elsewhere"


def _steps(picture: "ndarray") -> "ndarray":
    """Of each column, how much larger the step to it is than the steps beside it, mean over rows, levels.

    The steps beside it are taken off because a busy column has large ones all around. The first two and the last column
    have none beside them: 0.
    """
    import numpy as np

    sizes = np.abs(np.diff(picture, axis=1)).mean(0)
    out = np.zeros(picture.shape[1])
    out[2:-1] = sizes[1:-1] - (sizes[:-2] + sizes[2:]) / 2
    return out
