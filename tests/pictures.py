"""Pictures for tests of metrics: one by formula, and four ways to damage any picture by degrees."""

import io

import numpy as np
from PIL import Image, ImageChops, ImageFilter


def synthetic(side: int = 192, *, height: int | None = None) -> Image.Image:
    """Smooth colours, a fine pattern in one corner, two discs with hard edges; the same everywhere."""
    height = height or side
    y, x = np.mgrid[0:height, 0:side] / side
    red = 0.25 + 0.5 * x
    green = 0.3 + 0.4 * y
    blue = 0.6 - 0.3 * x * y
    picture = np.stack([red, green, blue], -1)
    weave = 0.12 * np.sin(2 * np.pi * 24 * x) * np.sin(2 * np.pi * 24 * y) * ((x > 0.5) & (y < 0.5))
    picture += weave[..., None]
    picture[(x - 0.3) ** 2 + (y - 0.35) ** 2 < 0.03] = (0.85, 0.2, 0.15)
    picture[(x - 0.65) ** 2 + (y - 0.7) ** 2 < 0.02] = (0.1, 0.15, 0.5)
    return Image.fromarray((picture * 255).round().clip(0, 255).astype(np.uint8))


def blurred(picture: Image.Image, radius: float) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(radius))


def noisy(picture: Image.Image, levels: float) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, levels, (picture.height, picture.width, 3))
    return Image.fromarray((np.asarray(picture) + noise).round().clip(0, 255).astype(np.uint8))


def jpeg(picture: Image.Image, loss: float) -> Image.Image:
    """loss: 100 less the quality."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=round(100 - loss))
    return Image.open(file).convert("RGB")


def shifted(picture: Image.Image, px: float) -> Image.Image:
    return ImageChops.offset(picture, round(px), 0)


# name -> (damage, strengths from weak to strong)
DAMAGES = {
    "blur": (blurred, (0.6, 1.2, 2.5, 5.0)),
    "noise": (noisy, (3.0, 8.0, 20.0, 50.0)),
    "jpeg": (jpeg, (5.0, 30.0, 65.0, 90.0)),
    "shift": (shifted, (1.0, 2.0, 4.0)),
}
