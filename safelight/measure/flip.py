"""FLIP: the difference that is seen when one picture is flipped for the other (LDR).

Comes in: two pictures, PIL RGB of one size. Goes out: 0..1, the mean over pixels. Nothing is scaled down: a large
picture is done in strips of rows with all they see around them.

Source: Andersson, Nilsson, Akenine-Moller, Oskarsson, Astrom, Fairchild, "FLIP: A Difference Evaluator for Alternating
Images", 2020. Constants without another word are its own.
"""

import math
from typing import TYPE_CHECKING

from safelight.measure import colour, pixels

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image

PIXELS_PER_DEGREE = 67  # 0.7 m before a screen of 0.7 m with 3840 pixels: the paper's default
# contrast sensitivity: (a, b) of each Gaussian a * sqrt(pi / b) * exp(-pi^2 x^2 / b); grey, red-green, blue-yellow
SENSITIVITY = (((1.0, 0.0047),), ((1.0, 0.0053),), ((34.1, 0.04), (13.5, 0.025)))
WIDEST = 0.04
FEATURE_DEGREES = 0.082
COLOUR_POWER, FEATURE_POWER = 0.7, 0.5
KNEE, KNEE_VALUE = 0.4, 0.95  # differences up to 0.4 of the largest are spread over 0..0.95
SIGMA = 0.5 * FEATURE_DEGREES * PIXELS_PER_DEGREE
CONTRAST_RADIUS = math.ceil(3 * math.sqrt(WIDEST / (2 * math.pi**2)) * PIXELS_PER_DEGREE)
FEATURE_RADIUS = math.ceil(3 * SIGMA)
HALO = max(CONTRAST_RADIUS, FEATURE_RADIUS)


def flip(plain: "Image", other: "Image") -> float:
    """0..1, 0 is equal."""
    a, b = pixels.pair(plain, other)
    total = 0.0
    for strip in pixels.strips(a.shape[0], a.shape[1], HALO):
        total += float(differences(a[strip.rows], b[strip.rows])[strip.inner].sum())
    return total / (a.shape[0] * a.shape[1])


def differences(plain: "ndarray", other: "ndarray") -> "ndarray":
    """uint8 (height, width, 3) both -> float64 (height, width) in 0..1. The edge's pixels go on beyond it."""
    import numpy as np

    (seen, features), (other_seen, other_features) = (_perceived(picture) for picture in (plain, other))
    coloured = _spread(_hyab(seen, other_seen) ** COLOUR_POWER)
    apart = np.max([np.abs(x - y) for x, y in zip(features, other_features, strict=True)], axis=0)
    return coloured ** (1 - (apart / math.sqrt(2)) ** FEATURE_POWER)


def _perceived(picture: "ndarray") -> "tuple[ndarray, list[ndarray]]":
    """(Lab as the eye takes it from afar, [how much of an edge, how much of a point])."""
    import numpy as np

    rgb = colour.linear(picture)
    x, y, z = np.moveaxis(colour.xyz(rgb), -1, 0)
    opponents = (116 * y - 16, 500 * (x - y), 200 * (y - z))  # YCxCz: Lab without the cube root
    filtered = [_filtered(channel, bells) for channel, bells in zip(opponents, SENSITIVITY, strict=True)]
    return _hunt(colour.lab(np.clip(_rgb(*filtered), 0, 1))), _features(y)


def _rgb(light: "ndarray", red: "ndarray", blue: "ndarray") -> "ndarray":
    """YCxCz -> linear RGB (height, width, 3)."""
    import numpy as np

    y = (light + 16) / 116
    relative = np.stack([y + red / 500, y, y - blue / 200], -1)
    matrix = np.array(colour.XYZ_OF_RGB)
    return relative @ np.linalg.inv(matrix / matrix.sum(1, keepdims=True)).T


def _filtered(channel: "ndarray", bells: tuple[tuple[float, float], ...]) -> "ndarray":
    """A sum of Gaussians is not separable, each of them is; the sum of all weights is 1."""
    import numpy as np

    degrees = np.arange(-CONTRAST_RADIUS, CONTRAST_RADIUS + 1) / PIXELS_PER_DEGREE
    lines = [np.exp(-((math.pi * degrees) ** 2) / b) for _, b in bells]
    heights = [a * math.sqrt(math.pi / b) for a, b in bells]
    whole = sum(height * line.sum() ** 2 for height, line in zip(heights, lines, strict=True))
    parts = (height / whole * _along(channel, line, line) for height, line in zip(heights, lines, strict=True))
    return sum(parts, np.zeros_like(channel))


def _features(brightness: "ndarray") -> "list[ndarray]":
    """Sizes of the first and second derivative, each weighted so that its lobes sum to 1 and -1."""
    import numpy as np

    x = np.arange(-FEATURE_RADIUS, FEATURE_RADIUS + 1)
    bell = np.exp(-(x**2) / (2 * SIGMA**2))
    lobes = (-x * bell, (x**2 / SIGMA**2 - 1) * bell)
    bell = bell / bell.sum()
    lines = [np.where(lobe > 0, lobe / lobe[lobe > 0].sum(), lobe / -lobe[lobe < 0].sum()) for lobe in lobes]
    return [np.hypot(_along(brightness, bell, line), _along(brightness, line, bell)) for line in lines]


def _along(channel: "ndarray", rows: "ndarray", columns: "ndarray") -> "ndarray":
    """One line of weights down the rows, another along the columns; the edge's pixels go on beyond it."""
    from scipy.ndimage import correlate1d

    return correlate1d(correlate1d(channel, rows, axis=0, mode="nearest"), columns, axis=1, mode="nearest")


def _hunt(lab: "ndarray") -> "ndarray":
    """Colours of dark places look less coloured."""
    import numpy as np

    light = lab[..., :1]
    return np.concatenate([light, lab[..., 1:] * light / 100], -1)


def _hyab(one: "ndarray", two: "ndarray") -> "ndarray":
    import numpy as np

    apart = np.abs(one - two)
    return apart[..., 0] + np.hypot(apart[..., 1], apart[..., 2])


def _spread(powered: "ndarray") -> "ndarray":
    """0..1, where 1 is the difference of pure green and pure blue."""
    import numpy as np

    green, blue = (_hunt(colour.lab(np.array(rgb))) for rgb in ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    largest = float(_hyab(green, blue)) ** COLOUR_POWER
    knee = KNEE * largest
    above = KNEE_VALUE + (powered - knee) / (largest - knee) * (1 - KNEE_VALUE)
    return np.where(powered < knee, KNEE_VALUE / knee * powered, above)
