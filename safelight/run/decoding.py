"""Latents become pictures, each checked; and pictures latents, scaled as the pipeline uses them.

Tensors: latents are (batch, channels, latent_height, latent_width) or packed as the pipeline likes; pictures are
float (batch, 3, height, width) in 0..1.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from safelight.errors import SpoiledPicture
from safelight.optimizers.precision import kept_tensors
from safelight.optimizers.target import denoiser
from safelight.run.latents import scaled, unscaled

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

BLACK = 2 / 255  # no pixel brighter than this: the picture is taken for black


def decode_checked(pipe: Any, latents: "Tensor", height: int, width: int) -> tuple["Tensor", list[bool]]:
    """Decodes, looks for NaN and black, and tries once more in float32: (pictures, which of them needed that).

    height, width: of the pictures in pixels, which packed latents do not tell. Raises SpoiledPicture.
    """
    import torch

    if not torch.isfinite(latents).all():
        dtype = next(denoiser(pipe).parameters()).dtype
        raise SpoiledPicture(f"the denoiser gave not-a-number ({dtype}): try --dtype float32 or bfloat16")
    decoded = decode(pipe, latents, height, width)
    spoiled = [not good(picture) for picture in decoded]
    if any(spoiled):
        if any(parameter.is_meta for parameter in pipe.vae.parameters()):
            # what offloads the weights brings them in their own dtype, whatever is set here
            raise SpoiledPicture("the picture is black or not a number, and an offloaded VAE is not upcast")
        with kept_tensors(pipe, "vae"):
            pipe.vae.to(dtype=torch.float32)
            again = decode(pipe, latents.float(), height, width)
        if not all(good(picture) for picture in again):
            raise SpoiledPicture("the picture is black or not a number, also with the VAE in float32: not written")
        decoded = torch.stack([new if bad else old for old, new, bad in zip(decoded, again, spoiled, strict=True)])
    return decoded.float(), spoiled


def good(picture: "Tensor") -> bool:
    """A (3, height, width) picture in 0..1 without NaN, and not all black."""
    import torch

    return bool(torch.isfinite(picture).all()) and float(picture.max()) > BLACK


def unpacked(pipe: Any, latents: "Tensor", height: int, width: int) -> "Tensor":
    """(batch, channels, latent_height, latent_width) of latents as the pipeline has them."""
    if latents.ndim == 4:
        return latents
    # packed two by two, as FLUX does
    return pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)


def decode(pipe: Any, latents: "Tensor", height: int, width: int) -> "Tensor":
    """Latents as the pipeline returns them -> (batch, 3, height, width) in 0..1, in the VAE's dtype."""
    import torch

    latents = unpacked(pipe, latents, height, width)
    with torch.inference_mode(), _upcast_if_the_vae_overflows(pipe):
        latents = unscaled(latents.to(next(pipe.vae.parameters()).dtype), pipe.vae.config)
        return (pipe.vae.decode(latents, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)


def encode(pipe: Any, pictures: "Tensor") -> "Tensor":
    """(batch, 3, height, width) in 0..1 -> scaled latents (batch, channels, latent_height, latent_width), float32.

    The middle of what the VAE's encoder gives, not a draw from it: the same picture gives the same latents.
    """
    import torch

    first = next(pipe.vae.parameters())
    with torch.inference_mode(), _upcast_if_the_vae_overflows(pipe):
        dtype = next(pipe.vae.parameters()).dtype
        encoded = pipe.vae.encode((2 * pictures - 1).to(first.device, dtype), return_dict=False)[0]
        latents = encoded if isinstance(encoded, torch.Tensor) else encoded.mode()
        latents = scaled(latents.float(), pipe.vae.config)
    if not torch.isfinite(latents).all():
        raise SpoiledPicture(f"the VAE's encoder gave not-a-number ({dtype}): try -o upcast-vae or --dtype bfloat16")
    return latents


@contextmanager
def _upcast_if_the_vae_overflows(pipe: Any) -> Iterator[None]:
    """SDXL's VAE says of itself (force_upcast) that it overflows in float16."""
    import torch

    if not (pipe.vae.dtype == torch.float16 and pipe.vae.config.get("force_upcast")):
        yield
        return
    with kept_tensors(pipe, "vae"):
        pipe.vae.to(dtype=torch.float32)
        yield


def to_images(decoded: "Tensor") -> list["Image"]:
    """(batch, 3, height, width) in 0..1 -> 8 bit pictures."""
    from PIL import Image

    pixels = (decoded * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


def to_tensor(images: "Sequence[Image]") -> "Tensor":
    """8 bit pictures of one size -> (batch, 3, height, width) in 0..1, float32, on the CPU."""
    import numpy
    import torch

    pixels = numpy.stack([numpy.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
