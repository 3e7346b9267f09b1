"""The decoding optimizers, switched off inside."""

from contextlib import contextmanager

from diffusers import AutoencoderKL

from safelight.optimizers.registry import swapped

WRITTEN = {"vae-tiling": "vae-tiling=16"}
BATCH = {"vae-slicing": 2}


@contextmanager
def whole():
    """diffusers decodes everything in one go, whatever was switched on."""

    def decode(self, z, return_dict=True, generator=None):
        return (self.decoder(self.post_quant_conv(z) if self.config.use_post_quant_conv else z),)

    with swapped(AutoencoderKL, decode=decode):
        yield


OFF = {"vae-slicing": whole, "vae-tiling": whole}
