"""The optimizers that set one part in another number format, switched off inside."""

from contextlib import contextmanager

from safelight.optimizers import upcast
from safelight.optimizers.registry import swapped

WRITTEN = {"half-vae": "half-vae=bfloat16"}
PSNR = {"half-vae": 28}  # bfloat16 has 8 bits of mantissa


@contextmanager
def no_cast():
    with swapped(upcast, cast=lambda part, dtype: None):
        yield


@contextmanager
def predictions_stay_small():
    """The denoiser's results reach the scheduler in 16 bits, and so do the next latents."""
    with swapped(upcast, raised=lambda made: made):
        yield


OFF = {"upcast-vae": no_cast, "half-vae": no_cast, "upcast-sampling": predictions_stay_small}
