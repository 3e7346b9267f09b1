"""Pictures and latents in another size without a network: Lanczos and nearest as Pillow has them, latents as A1111.

Comes in: tensors. Goes out: the same of exactly the size asked for. Knows nothing of files and networks.
"""

from typing import TYPE_CHECKING

from safelight.errors import UnknownName

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

PILLOW = ("lanczos", "nearest")

# A1111's name -> (mode of torch's interpolate, antialias). Source: modules/shared.py of 1.10, latent_upscale_modes
LATENT_MODES = {
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}


def upscale_latents(latents: "Tensor", height: int, width: int, mode: str = "Latent") -> "Tensor":
    """(batch, channels, h, w) -> (batch, channels, height, width), sides in latent pixels; dtype and device stay.

    mode: of LATENT_MODES, in any case. Raises UnknownName.
    """
    from torch.nn.functional import interpolate

    by_lower = {name.lower(): found for name, found in LATENT_MODES.items()}
    if (found := by_lower.get(mode.lower())) is None:
        raise UnknownName("latent upscale mode", mode, LATENT_MODES)
    # float32: on a CPU not every mode is there in 16 bit, and the result would be rounded twice
    larger = interpolate(latents.float(), size=(height, width), mode=found[0], antialias=found[1])
    return larger.to(latents.dtype)


def resized(pictures: "Tensor", height: int, width: int, how: str = "lanczos") -> "Tensor":
    """(batch, 3, h, w) -> (batch, 3, height, width), both uint8 or both floats in 0..1; through 8 bit, as A1111 does.

    how: of PILLOW. Pictures of that size already come back as they are.
    """
    import torch

    if tuple(pictures.shape[2:]) == (height, width):
        return pictures
    from PIL import Image

    larger = []
    for picture in as_bytes(pictures).permute(0, 2, 3, 1).cpu().numpy():
        larger.append(pixels(resized_image(Image.fromarray(picture), width, height, how)))
    made = torch.stack(larger).to(pictures.device)
    return made if pictures.dtype == torch.uint8 else made.to(pictures.dtype).div_(255)


def resized_image(image: "Image", width: int, height: int, how: str = "lanczos") -> "Image":
    from PIL import Image

    return image.resize((width, height), getattr(Image.Resampling, how.upper()))


def as_bytes(pictures: "Tensor") -> "Tensor":
    """0..1 -> uint8 in 0..255, rounded; uint8 as it is."""
    import torch

    return pictures if pictures.dtype == torch.uint8 else pictures.mul(255).round_().clamp_(0, 255).byte()


def pixels(image: "Image") -> "Tensor":
    """An RGB picture -> uint8 (3, height, width)."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
