"""How far pixels and their local structure are apart: PSNR, SSIM, MS-SSIM.

Comes in: two pictures, PIL RGB of one size. Goes out: a number. SSIM is taken of each of the three channels and their
mean told, as scikit-image does it with channel_axis; luma alone would not see a change of colour.
"""

import math
from typing import TYPE_CHECKING

from safelight.measure import pixels

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image

PEAK = 255
# Wang, Bovik, Sheikh, Simoncelli, 2004: a Gaussian of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03
RADIUS, SIGMA = 5, 1.5
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
WINDOW_PX = 2 * RADIUS + 1
# Wang, Simoncelli, Bovik, 2003, section 3.2: fine to coarse
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_PX = WINDOW_PX * 2 ** (len(SCALES) - 1)  # the window must fit the coarsest scale


def psnr(plain: "Image", other: "Image") -> float:
    """dB of the mean squared error over pixels and channels against 255; inf for equal pictures."""
    import numpy as np

    a, b = pixels.pair(plain, other)
    squared = 0
    for strip in pixels.strips(*a.shape[:2]):
        apart = a[strip.rows].astype(np.int32) - b[strip.rows]
        squared += int((apart * apart).sum(dtype=np.int64))
    return 10 * math.log10(PEAK**2 * a.size / squared) if squared else math.inf


def ssim(plain: "Image", other: "Image") -> float:
    """-1..1, 1 is equal: the mean over all whole windows and the three channels. At least 11 px."""
    similar, _ = _similarity(*pixels.pair(plain, other))
    return float(similar.mean())


def ms_ssim(plain: "Image", other: "Image") -> float:
    """0..1, 1 is equal: contrast and structure at five scales, luminance at the coarsest. At least 176 px.

    A negative mean (structure turned round) counts as 0, so that it has a power. An odd last row or column is not seen
    at the coarser scales.
    """
    import numpy as np

    a, b = pixels.pair(plain, other)
    product = np.ones(3)
    for scale, weight in enumerate(SCALES):
        similar, contrast = _similarity(a, b)
        last = scale == len(SCALES) - 1
        product *= np.clip(similar if last else contrast, 0, None) ** weight
        if not last:
            a, b = _halved(a), _halved(b)
    return float(product.mean())


def _similarity(a: "ndarray", b: "ndarray") -> "tuple[ndarray, ndarray]":
    """Of each channel the mean of SSIM, and of its contrast and structure alone; float64 (3,) both."""
    import numpy as np

    height, width = a.shape[:2]
    total, contrasts = np.zeros(3), np.zeros(3)
    for strip in pixels.strips(height - 2 * RADIUS, width):
        seen = slice(strip.rows.start, strip.rows.stop + 2 * RADIUS)
        x: ndarray = a[seen].astype(np.float64)
        y: ndarray = b[seen].astype(np.float64)
        mean_x, mean_y = _blurred(x), _blurred(y)
        squares = mean_x**2 + mean_y**2
        product = mean_x * mean_y
        variances = _blurred(x * x + y * y) - squares
        contrast = (2 * (_blurred(x * y) - product) + C2) / (variances + C2)
        contrasts += contrast.sum((0, 1))
        total += (contrast * (2 * product + C1) / (squares + C1)).sum((0, 1))
    count = (height - 2 * RADIUS) * (width - 2 * RADIUS)
    return total / count, contrasts / count


def _blurred(x: "ndarray") -> "ndarray":
    """(rows, columns, 3) -> (rows - 10, columns - 10, 3): only where the whole window is inside."""
    import numpy as np
    from scipy.ndimage import correlate1d

    window = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    window /= window.sum()
    rows = correlate1d(x, window, axis=0)[RADIUS:-RADIUS]
    return correlate1d(rows, window, axis=1)[:, RADIUS:-RADIUS]


def _halved(x: "ndarray") -> "ndarray":
    """float32, the mean of each 2 x 2."""
    import numpy as np

    height, width = (side // 2 * 2 for side in x.shape[:2])
    x = x[:height, :width]
    upper = x[0::2, 0::2].astype(np.float32) + x[0::2, 1::2]
    lower = x[1::2, 0::2].astype(np.float32) + x[1::2, 1::2]
    return (upper + lower) / 4
