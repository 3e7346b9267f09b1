"""The decoding optimizers, switched off inside."""

import atexit
import shutil
import tempfile
from contextlib import contextmanager, nullcontext

from diffusers import AutoencoderKL, AutoencoderTiny

from safelight.optimizers import decode, taesd
from safelight.optimizers.registry import swapped


def taesd_folder(levels=2, **config):
    """A random tiny VAE in a folder that lasts as long as the tests; two levels fit tests/tiny.py."""
    sizes = {f"{part}_block_out_channels": (8,) * levels for part in ("encoder", "decoder")}
    counts = {f"num_{part}_blocks": (1,) * levels for part in ("encoder", "decoder")}
    folder = tempfile.mkdtemp(prefix="taesd-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    AutoencoderTiny(**sizes, **counts, **config).save_pretrained(folder)
    return folder


WRITTEN = {"vae-tiling": "vae-tiling=16", "tiny-vae": f"tiny-vae={taesd_folder()}"}
BATCH = {"vae-slicing": 2}


@contextmanager
def whole():
    """diffusers decodes everything in one go, whatever was switched on."""

    def decode(self, z, return_dict=True, generator=None):
        return (self.decoder(self.post_quant_conv(z) if self.config.use_post_quant_conv else z),)

    with swapped(AutoencoderKL, decode=decode):
        yield


@contextmanager
def nothing_stands_in():
    """The pipeline keeps its own VAE."""
    with swapped(decode, standing_in=lambda pipe, tiny: nullcontext()):
        yield


@contextmanager
def nothing_is_previewed():
    """tiny-vae.use=preview: the tiny VAE is there and decodes nothing."""
    with swapped(taesd, picture=lambda tiny, latents: latents.new_zeros(len(latents), 3, 32, 32)):
        yield


OFF = {"vae-slicing": whole, "vae-tiling": whole, "tiny-vae": nothing_stands_in}
