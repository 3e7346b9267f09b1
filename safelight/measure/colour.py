"""How far colours are apart to the eye: CIEDE2000 on sRGB pictures under D65.

Comes in: two pictures, PIL RGB of one size, or Lab values. Goes out: differences; 1 is about the least that is seen.
"""

from typing import TYPE_CHECKING

from safelight.measure import pixels

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image

# linear sRGB -> XYZ (D65), exact fractions of the primaries in ITU-R BT.709; white is their sum by rows
XYZ_OF_RGB = (
    (10135552 / 24577794, 8788810 / 24577794, 4435075 / 24577794),
    (2613072 / 12288897, 8788810 / 12288897, 887015 / 12288897),
    (1425312 / 73733382, 8788810 / 73733382, 70074185 / 73733382),
)
DELTA = 6 / 29  # CIE 15: below DELTA**3 the cube root of Lab is a line


def mean_difference(plain: "Image", other: "Image") -> float:
    """CIEDE2000, mean over pixels."""
    return float(differences(plain, other).mean(dtype="float64"))


def difference_p95(plain: "Image", other: "Image") -> float:
    """CIEDE2000 that 95 % of the pixels keep within."""
    import numpy as np

    return float(np.percentile(differences(plain, other), 95))


def differences(plain: "Image", other: "Image") -> "ndarray":
    """float32 (height, width), CIEDE2000 of each pixel."""
    import numpy as np

    a, b = pixels.pair(plain, other)
    out = np.zeros(a.shape[:2], np.float32)
    for strip in pixels.strips(*a.shape[:2]):
        here, there = a[strip.rows], b[strip.rows]
        changed = (here != there).any(-1)
        out[strip.rows][changed] = ciede2000(lab(linear(here[changed])), lab(linear(there[changed])))
    return out


def linear(eight_bit: "ndarray") -> "ndarray":
    """uint8 sRGB -> float64 linear in 0..1 (IEC 61966-2-1)."""
    import numpy as np

    levels = np.arange(256) / 255
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)[eight_bit]


def xyz(rgb: "ndarray") -> "ndarray":
    """Linear RGB (..., 3) -> XYZ, 1 for white in each."""
    import numpy as np

    matrix = np.array(XYZ_OF_RGB)
    return rgb @ (matrix / matrix.sum(1, keepdims=True)).T


def lab(rgb: "ndarray") -> "ndarray":
    """Linear RGB (..., 3) -> L 0..100, a, b."""
    import numpy as np

    relative = xyz(rgb)
    root = np.where(relative > DELTA**3, np.cbrt(relative), relative / (3 * DELTA**2) + 4 / 29)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def ciede2000(one: "ndarray", two: "ndarray") -> "ndarray":
    """Lab (..., 3) both -> (...). Sharma, Wu, Dalal, 2005, equations 2 to 22; kL = kC = kH = 1."""
    import numpy as np

    mean = (np.hypot(one[..., 1], one[..., 2]) + np.hypot(two[..., 1], two[..., 2])) / 2
    stretch = 1.5 - 0.5 * _saturating(mean)
    (l1, c1, h1), (l2, c2, h2) = (_cylindrical(colour, stretch) for colour in (one, two))
    grey = c1 * c2 == 0
    turn = np.where(grey, 0.0, (h2 - h1 + 180) % 360 - 180)
    turn = np.where(~grey & (h2 - h1 == 180), 180.0, turn)  # half a turn up stays one: equation 10
    hue = np.where(grey, h1 + h2, _between(h1, h2))
    light, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    t = 1 - 0.17 * _cos(hue - 30) + 0.24 * _cos(2 * hue) + 0.32 * _cos(3 * hue + 6) - 0.20 * _cos(4 * hue - 63)
    by_light = (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2))
    by_chroma = (c2 - c1) / (1 + 0.045 * chroma)
    by_hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * t)
    blues = np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2)))
    rotated = -np.sin(blues) * 2 * _saturating(chroma) * by_chroma * by_hue
    return np.sqrt(np.maximum(by_light**2 + by_chroma**2 + by_hue**2 + rotated, 0))


def _saturating(chroma: "ndarray") -> "ndarray":
    import numpy as np

    seventh: ndarray = chroma**7
    return np.sqrt(seventh / (seventh + 25.0**7))


def _cylindrical(colour: "ndarray", stretch: "ndarray") -> "tuple[ndarray, ndarray, ndarray]":
    """(L, C', h' in degrees 0..360)."""
    import numpy as np

    a, b = colour[..., 1] * stretch, colour[..., 2]
    return colour[..., 0], np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360


def _between(h1: "ndarray", h2: "ndarray") -> "ndarray":
    """The hue in the middle of the shorter way round: equation 14."""
    import numpy as np

    total = h1 + h2
    far = np.abs(h1 - h2) > 180
    return np.where(far, np.where(total < 360, total + 360, total - 360), total) / 2


def _cos(degrees: "ndarray") -> "ndarray":
    import numpy as np

    return np.cos(np.radians(degrees))
