"""Every VAE class that exact-vae names decodes, and encodes, in strips what it does as a whole."""

import diffusers
import pytest
import torch

from safelight.probe.blueprint import Part
from safelight.simulate import inputs
from safelight.vae import engine, seams
from safelight.vae.families import BLENDED, EXACT

TWO = {"down_block_types": ("DownEncoderBlock2D",) * 2, "block_out_channels": (32, 32)}
UP = {"up_block_types": ("UpDecoderBlock2D",) * 2}
FOUR = {"block_out_channels": (32,) * 4, "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 16}
ASYMMETRIC = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "down_block_out_channels": (32, 32),
    "up_block_out_channels": (32, 32),
}
LTX = {
    "block_out_channels": (8,) * 4,
    "decoder_block_out_channels": (8,) * 4,
    "layers_per_block": (1,) * 5,
    "decoder_layers_per_block": (1,) * 5,
    "latent_channels": 8,
}
MOCHI = {
    "encoder_block_out_channels": (32,) * 4,
    "decoder_block_out_channels": (32,) * 4,
    "layers_per_block": (1,) * 5,
    "latent_channels": 4,
}
HUNYUAN_IMAGE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 8,
    "block_out_channels": (32,) * 3,
    "layers_per_block": 1,
    "spatial_compression_ratio": 4,
    "sample_size": 32,
}
SMALL_WAN = {"base_dim": 16, "dim_mult": [1, 1, 2, 2]}
# (class, config, shape of latents, of pictures or None where that is not claimed)
FAMILIES = [
    ("AutoencoderKLFlux2", {**TWO, **UP, "latent_channels": 8, "layers_per_block": 1}, (1, 8, 16, 12), (1, 3, 32, 24)),
    ("AutoencoderKLTemporalDecoder", {**TWO, "layers_per_block": 1}, (3, 4, 16, 12), (3, 3, 32, 24)),
    ("AsymmetricAutoencoderKL", ASYMMETRIC, (1, 4, 16, 12), (1, 3, 32, 24)),
    ("VQModel", {**TWO, **UP, "norm_num_groups": 16, "latent_channels": 4}, (1, 4, 16, 12), None),
    ("AutoencoderKLHunyuanImage", HUNYUAN_IMAGE, (1, 8, 12, 10), None),
    ("AutoencoderKLHunyuanVideo", FOUR, (1, 4, 2, 8, 6), (1, 3, 5, 64, 48)),
    ("AutoencoderKLQwenImage", SMALL_WAN, (1, 16, 1, 12, 10), (1, 3, 1, 64, 48)),
    ("AutoencoderKLLTXVideo", LTX, (1, 8, 2, 8, 6), (1, 3, 9, 128, 96)),
    ("AutoencoderKLMochi", MOCHI, (1, 4, 2, 8, 6), None),
    ("AutoencoderKLCogVideoX", FOUR, (1, 4, 2, 8, 6), None),
    ("AutoencoderKLMagvit", FOUR, (1, 4, 2, 8, 6), None),
]
ELSEWHERE = {"AutoencoderKL", "AutoencoderTiny", "AutoencoderDC", "AutoencoderKLWan"}  # test_exact.py


def test_all_that_the_optimizer_names_are_here_or_there():
    assert {name for name, *_ in FAMILIES} | ELSEWHERE == set(EXACT)


@pytest.mark.parametrize(("name", "config", "latents", "pictures"), FAMILIES, ids=[name for name, *_ in FAMILIES])
def test_strips_are_equal_to_the_whole(name, config, latents, pictures):
    torch.manual_seed(0)
    vae = getattr(diffusers, name)(**config).eval()
    for weight in (weight for weight in vae.parameters() if weight.ndim >= 4):
        weight.data = torch.randn_like(weight) * weight[0].numel() ** -0.5  # numbers that neither die out nor explode
    more = {"num_frames": latents[0]} if name == "AutoencoderKLTemporalDecoder" else {}
    with torch.no_grad():
        for what, shape in (("decode", latents), ("encode", pictures)):
            if shape is None:
                continue
            given = torch.randn(shape)

            def run(what=what, given=given):
                if what == "decode":
                    return vae.decode(given, return_dict=False, **more)[0]
                return engine.encode(vae, given, how="whole")

            whole = run()
            with seams.exactly(vae, what) as exact:
                made = run()
            assert exact.used and whole.std() > 0.1
            torch.testing.assert_close(made, whole, atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", BLENDED)
def test_the_factor_of_what_is_cut_into_tiles_is_known_from_its_config(name):
    vae = getattr(diffusers, name)(**{row[0]: row[1] for row in FAMILIES}.get(name, {}))
    factor = inputs.factor(Part(type(vae), vae.config))
    side = 2 * factor
    with torch.no_grad():
        assert engine.encode(vae.eval(), torch.zeros(1, 3, side, side), how="whole").shape[-2:] == (2, 2)
