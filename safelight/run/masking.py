"""Masks as A1111 has them: read, blurred, the part of a picture around them, and what is put under them.

Comes in: pictures of one channel ("L"), white where is drawn. Goes out: the same, or boxes in their pixels. Not known
here: requests, latents, what becomes of the drawn picture.

Source: what modules/masking.py and StableDiffusionProcessingImg2Img.init of A1111's web UI 1.10 compute.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.errors import UsageError
from safelight.optimizers.registry import swapped
from safelight.run import picture_files
from safelight.run.metadata import opened, shown

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image

HALF_WHITE = 128  # the least value that a rounded mask counts as drawn
REACH = 2.5  # how many sigmas of the Gaussian A1111 keeps
SHARES = 256  # the kernel's weights are whole 256ths, as in OpenCV
ROWS = 256  # blurred at a time: their transforms take some 100 MB in a picture 16k wide
# (radius of the blur in pixels, how often it is laid on), the broadest below
FILLING = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))


@dataclass(frozen=True, slots=True)
class Box:
    """Pixels from left to right and top to bottom, without the last ones."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """As Pillow has boxes."""
        return self.left, self.top, self.right, self.bottom


# -- reading -----------------------------------------------------------------------------------------------------------


def read_mask(path: Path) -> "Image":
    """Its brightness; where it has transparent parts, what is opaque (over half) is white instead, as A1111 reads it.

    Raises UsageError for what is no whole picture, or a mask without anything to draw.
    """
    from PIL import Image

    pixels = picture_files.read(path)
    mask = _opaque(path) or Image.fromarray(pixels).convert("L")
    if not mask.getbbox():
        raise UsageError(f"the mask {shown(path)} is all black: nothing would be drawn; paint white what is to change")
    return mask


def _opaque(path: Path) -> "Image | None":
    """None where nothing is transparent."""
    from PIL import Image, ImageOps

    formats = tuple(picture_files.FORMATS.values())
    with swapped(Image, MAX_IMAGE_PIXELS=picture_files.LARGEST_PIXELS), opened(path, formats, "is no mask") as image:
        # Pillow makes no RGBA of 16 bit greys; what they name as transparent is one grey, and no mask
        if not image.has_transparency_data or image.mode.startswith("I"):
            return None
        alpha = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
    if alpha.getextrema() == (255, 255):
        return None
    return alpha.point([255 if value > HALF_WHITE else 0 for value in range(256)])


# -- blurring ----------------------------------------------------------------------------------------------------------


def blurred(mask: "Image", sigma: int) -> "Image":
    """Bit for bit what A1111's two calls of cv2.GaussianBlur give, first along the rows. 0 changes nothing.

    Not Pillow's GaussianBlur: that is three box blurs, reaches further and gives other latents at the edge.
    """
    import numpy as np
    from PIL import Image

    if not sigma:
        return mask
    weights = _weights(sigma)
    along_rows = _blurred_rows(np.asarray(mask), weights)
    return Image.fromarray(_blurred_rows(along_rows.T, weights).T.copy())


def _weights(sigma: int) -> "ndarray":
    """Of a Gaussian, whole numbers that sum to SHARES: what rounding takes from one weight goes to the next.

    Source: getGaussianKernelFixedPoint_ED in OpenCV's modules/imgproc/src/smooth.dispatch.cpp.
    """
    import numpy as np

    reach = int(REACH * sigma + 0.5)
    exact = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    exact *= SHARES / exact.sum()
    # rounding the running sum is the same as carrying each weight's error on
    outer = np.diff(np.rint(np.cumsum(exact[:reach])), prepend=0)
    return np.concatenate([outer, [SHARES - 2 * outer.sum()], outer[::-1]])


def _blurred_rows(pixels: "ndarray", weights: "ndarray") -> "ndarray":
    """(height, width) in 8 bit; beyond the edge the picture goes on mirrored, its last pixel not repeated.

    By Fourier transforms: a blur of 256 has 1281 weights. The sums are whole numbers, so rounding makes them exact.
    """
    import numpy as np

    reach = len(weights) // 2
    made = np.empty(pixels.shape, np.uint8)
    for band in picture_files.bands(len(pixels), ROWS):
        padded = np.pad(pixels[band].astype(np.float64), ((0, 0), (reach, reach)), "reflect")
        length = padded.shape[1]
        sums = np.fft.irfft(np.fft.rfft(padded) * np.fft.rfft(weights, length), length)[:, 2 * reach :]
        made[band] = (np.rint(sums).astype(np.int64) + SHARES // 2) // SHARES
    return made


# -- the part around it ------------------------------------------------------------------------------------------------


def crop_region(mask: "Image", padding: int, width: int, height: int) -> Box:
    """What of the picture is drawn at width x height: all that is not black, `padding` pixels around it, and more.

    More on two sides, until it has the shape width : height as near as whole pixels and the picture allow; it is moved
    rather than cut where it would leave the picture. The mask is not all black.
    """
    found = mask.getbbox()
    assert found, "an all black mask was refused before"
    left, top = (max(side - padding, 0) for side in found[:2])
    right, bottom = min(found[2] + padding, mask.width), min(found[3] + padding, mask.height)
    shape = width / height
    if (right - left) / (bottom - top) > shape:
        top, bottom = _grown(top, bottom, (right - left) / shape, mask.height)
    else:
        left, right = _grown(left, right, (bottom - top) * shape, mask.width)
    return Box(left, top, right, bottom)


def _grown(start: int, end: int, wanted: float, limit: int) -> tuple[int, int]:
    """To the whole pixels of `wanted`, which is no less than there is, around the middle, inside 0..limit."""
    more = int(wanted - (end - start))
    length = min(end - start + more, limit)
    start = min(max(start - more // 2, 0), limit - length)
    return start, start + length


def placed(box: Box, width: int, height: int) -> Box:
    """Where the box's picture lies once it fills width x height as far as it can, centred, without changing shape."""
    wide = min(width, max(1, box.width * height // box.height))
    high = min(height, max(1, box.height * width // box.width))
    left, top = width // 2 - wide // 2, height // 2 - high // 2
    return Box(left, top, left + wide, top + high)


def enlarged(picture: "Image", box: Box, width: int, height: int) -> "Image":
    """That box of the picture at width x height; where the shapes differ, its outermost pixels go on to the edge."""
    import numpy as np
    from PIL import Image

    inner = placed(box, width, height)
    part = picture.crop(box.edges).resize((inner.width, inner.height), Image.Resampling.LANCZOS)
    around = ((inner.top, height - inner.bottom), (inner.left, width - inner.right))
    channels = ((0, 0),) * (len(part.getbands()) > 1)
    return Image.fromarray(np.pad(np.asarray(part), (*around, *channels), "edge"))


def put_back(drawn: "Image", picture: "Image", box: Box) -> "Image":
    """The inverse of `enlarged`: a copy of the picture with what was drawn in that box."""
    from PIL import Image

    inner = placed(box, *drawn.size)
    part = drawn.resize((box.width, box.height), Image.Resampling.LANCZOS, box=inner.edges)
    whole = picture.copy()
    whole.paste(part, (box.left, box.top))
    return whole


# -- what is under it --------------------------------------------------------------------------------------------------


def filled(picture: "Image", mask: "Image") -> "Image":
    """What the mask covers takes the colours around it: the rest of the picture, blurred ever less, layer on layer."""
    from PIL import Image, ImageChops, ImageFilter

    # premultiplied ("RGBa"), so that no black of the hole is blurred into the colours
    kept = Image.new("RGBa", picture.size)
    kept.paste(picture.convert("RGBA").convert("RGBa"), mask=ImageChops.invert(mask))
    layers = Image.new("RGBA", picture.size)
    for radius, repeats in FILLING:
        layer = kept.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(repeats):
            layers.alpha_composite(layer)
    return layers.convert("RGB")
