"""What a picture to begin from and a mask become: what is encoded, what is drawn, and what is laid over the result.

Comes in: a Request and the size that is drawn. Goes out: pictures, a mask for latents, and the finished picture. Not
known here: models, noise, steps; `mask_content` "noise" and "nothing" are for those who have the latents.

As A1111's web UI 1.10 (StableDiffusionProcessingImg2Img.init, resize mode "just resize") computes it, so:
- What is transparent in the picture is laid over white and makes no mask. In a mask, what is opaque is drawn.
- The blur counts in the mask's own pixels; then a mask of another size than the picture is stretched to it.
- Under a mask, "noise" and "nothing" too begin from a filled picture, as its edges are encoded with it.
- With the whole picture drawn, the mask counts twice (up to white) when the result is laid over: its soft edge lies
  inside what was drawn anew.

Otherwise than there: a mask of another size is stretched before the masked part is sought, not after; the masked part
goes back by the exact inverse of its enlarging, which may be half a pixel off there; an empty mask is an error.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.errors import UsageError
from safelight.request import MOST, Request
from safelight.run import masking, picture_files
from safelight.run.masking import Box
from safelight.run.metadata import shown

if TYPE_CHECKING:
    from PIL.Image import Image, Resampling
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """image: RGB, as large as is drawn; what is encoded. mask: of its size, "L", white where is drawn, before rounding.

    original: RGB, what the result is laid over: as large as is drawn, or the picture as it was where only a part is.
    shares: of the original's size, "L", how much of the result shows. part: of the original, which is drawn; None for
    the whole of it.
    """

    image: "Image"
    original: "Image"
    mask: "Image | None" = None
    shares: "Image | None" = None
    part: Box | None = None

    @property
    def has_mask(self) -> bool:
        return self.mask is not None

    def latent_mask(self, latent_height: int, latent_width: int) -> "Tensor | None":
        """(1, 1, latent_height, latent_width) float32, 1 where is drawn and 0 elsewhere. None without a mask.

        Raises UsageError where no cell is half covered.
        """
        import numpy as np
        import torch
        from PIL import Image

        if self.mask is None:
            return None
        cells = np.asarray(self.mask.resize((latent_width, latent_height), Image.Resampling.BICUBIC))
        is_drawn = cells >= masking.HALF_WHITE
        if not is_drawn.any():
            raise UsageError("the mask covers half of no latent cell: paint more, or draw only the masked part")
        return torch.from_numpy(is_drawn.astype(np.float32))[None, None]

    def finished(self, picture: "Image") -> "Image":
        """The drawn picture over the original, where the mask is; what it leaves black is the original bit for bit.

        picture: RGB, of the image's size. Without a mask it is the answer itself.
        """
        from PIL import Image

        if self.shares is None:
            return picture
        assert picture.size == self.image.size, f"{picture.size} was drawn on a canvas of {self.image.size}"
        whole = picture if self.part is None else masking.put_back(picture, self.original, self.part)
        return Image.composite(whole, self.original, self.shares)


def canvas(request: Request, width: int, height: int) -> Canvas:
    """Of a request that has `init`. width, height: of what is drawn, in pixels.

    Raises UsageError for what is no whole picture, and for a mask that leaves nothing to draw.
    """
    assert request.init is not None, "without a picture there is no canvas"
    picture = _picture(request.init)
    if request.mask is None:
        image = _resized(picture, width, height)
        return Canvas(image, image)
    if request.mask_area == "whole":
        bare = _whole(request, picture, width, height)
    else:
        bare = _part(request, picture, width, height)
    return bare if request.mask_content == "original" else _filled(bare)


def own_size(path: str | Path, multiple: int) -> tuple[int, int]:
    """(width, height) of the picture upright, rounded down to the multiple; for when nobody names a size.

    One with a side over 16384 is taken smaller, in its shape. Raises UsageError for one smaller than the multiple.
    """
    width, height = _picture(path).size
    longest = max(width, height, MOST["width"])
    sides = [side * MOST["width"] // longest // multiple * multiple for side in (width, height)]
    if not all(sides):
        raise UsageError(
            f"{shown(Path(path))} is {width}x{height}: {multiple} pixels a side are the least that is drawn"
        )
    return sides[0], sides[1]


def _whole(request: Request, picture: "Image", width: int, height: int) -> Canvas:
    from PIL.Image import Resampling

    image, mask = _resized(picture, width, height), _mask(request, width, height, Resampling.LANCZOS)
    return Canvas(image, image, mask, mask.point([min(2 * value, 255) for value in range(256)]))


def _part(request: Request, picture: "Image", width: int, height: int) -> Canvas:
    from PIL.Image import Resampling

    # Lanczos swings over and under at an edge: within the mask some of the original would show through
    mask = _mask(request, *picture.size, Resampling.BILINEAR)
    part = masking.crop_region(mask, request.mask_padding, width, height)
    image, close = (masking.enlarged(one, part, width, height) for one in (picture, mask))
    return Canvas(image, picture, close, mask, part)


def _filled(bare: Canvas) -> Canvas:
    assert bare.mask is not None
    return Canvas(masking.filled(bare.image, bare.mask), bare.original, bare.mask, bare.shares, bare.part)


def _picture(path: str | Path) -> "Image":
    from PIL import Image

    return Image.fromarray(picture_files.read(_place(path)))


def _place(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{shown(Path(path))}: there is no such user") from error


def _mask(request: Request, width: int, height: int, by: "Resampling") -> "Image":
    """Blurred, then stretched. Raises UsageError where that leaves nothing that would be drawn."""
    import numpy as np

    assert request.mask is not None
    path = _place(request.mask)
    mask = masking.blurred(masking.read_mask(path), request.mask_blur).resize((width, height), by)
    brightest = int(np.asarray(mask).max())
    if brightest < masking.HALF_WHITE:
        raise UsageError(
            f"the mask {shown(path)} is at most {brightest} of 255 at {width}x{height} with mask-blur "
            f"{request.mask_blur}: under half white nothing is drawn; blur it less, or paint more of it white"
        )
    return mask


def _resized(picture: "Image", width: int, height: int) -> "Image":
    from PIL import Image

    return picture.resize((width, height), Image.Resampling.LANCZOS)
