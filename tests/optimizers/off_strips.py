"""The VAE in strips and in tiles of our own, switched off inside."""

from contextlib import contextmanager, nullcontext

from safelight.optimizers.registry import swapped
from safelight.vae import seams

WRITTEN = {"blended-vae": "blended-vae=16"}


@contextmanager
def nothing_is_replaced():
    """The VAE keeps its own forward."""
    with swapped(seams, _replaced=lambda owner, method, instead: nullcontext()):
        yield


OFF = {"exact-vae": nothing_is_replaced, "blended-vae": nothing_is_replaced}
