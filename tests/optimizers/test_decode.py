"""Every VAE that can be tiled gives a picture of the right size, where a setting alone would spoil it in silence."""

from types import SimpleNamespace

import diffusers
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

import safelight
from optimizers.off_decode import taesd_folder
from safelight.errors import DoesNotApply, UsageError
from safelight.optimizers import OPTIMIZERS, Target
from safelight.optimizers.decode import VAES, factor, overlap_latent_px, tile_latent_px, tile_settings
from safelight.optimizers.target import Part

EIGHTS = (8, 8, 8, 8)
TWO = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
DC = {
    f"{part}_{name}": value
    for part in ("encoder", "decoder")
    for name, value in (
        ("block_types", ("ResBlock", "EfficientViTBlock")),
        ("block_out_channels", (8, 8)),
        ("qkv_multiscales", ((), (5,))),
        ("layers_per_block", (1, 1)),
    )
}
CAUSAL = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
LTX = {"latent_channels": 8, "block_out_channels": EIGHTS, "layers_per_block": (1,) * 5, "patch_size": 1}
# config of a small one of each class; latent channels are 4 unless the config says otherwise
CONFIGS = {
    "AutoencoderKL": {**TWO, "block_out_channels": [32, 64], "sample_size": 64},
    "AutoencoderKLFlux2": {**TWO, "block_out_channels": [32, 64], "sample_size": 64, "latent_channels": 4},
    "AutoencoderKLHunyuanImage": {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": (64, 64, 64),
        "layers_per_block": 1,
        "spatial_compression_ratio": 4,
        "sample_size": 64,
    },
    "AutoencoderKLKVAE": {"channels": 32, "num_enc_blocks": 1, "num_dec_blocks": 1, "z_channels": 4, "ch_mult": (1, 2)},
    "AutoencoderTiny": {
        "encoder_block_out_channels": EIGHTS,
        "decoder_block_out_channels": EIGHTS,
        "num_encoder_blocks": (1,) * 4,
        "num_decoder_blocks": (1,) * 4,
    },
    "AutoencoderDC": {
        **DC,
        "latent_channels": 4,
        "attention_head_dim": 2,
        "downsample_block_type": "conv",
        "upsample_block_type": "interpolate",
    },
    "AutoencoderKLHunyuanVideo": {
        "latent_channels": 4,
        "block_out_channels": EIGHTS,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "AutoencoderKLLTXVideo": {
        **LTX,
        "decoder_block_out_channels": EIGHTS,
        "decoder_layers_per_block": (1,) * 5,
        "spatio_temporal_scaling": (True, True, False, False),
        "decoder_spatio_temporal_scaling": (True, True, False, False),
        "decoder_inject_noise": (False,) * 5,
        "upsample_residual": (False,) * 4,
        "upsample_factor": (1,) * 4,
        "patch_size_t": 1,
    },
    "AutoencoderKLLTX2Video": {
        "latent_channels": 8,
        "block_out_channels": EIGHTS,
        "decoder_block_out_channels": (16, 32, 64),
        "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 4,
        "spatial_compression_ratio": 32,
    },
    "AutoencoderKLMagvit": {
        "latent_channels": 4,
        "block_out_channels": EIGHTS,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "AutoencoderKLMochi": {
        "latent_channels": 4,
        "encoder_block_out_channels": (64,) * 4,
        "decoder_block_out_channels": (64,) * 4,
        "layers_per_block": (1,) * 5,
    },
    "AutoencoderKLQwenImage": CAUSAL,
    "AutoencoderKLQwenImage21": {**CAUSAL, "scale_factor_spatial": 8},
    "AutoencoderKLWan": CAUSAL,
}
FLAT = {name for name in VAES if "sample_size" in CONFIGS[name]} | {
    "AutoencoderKLKVAE",
    "AutoencoderTiny",
    "AutoencoderDC",
}


def made(name, **more):
    torch.manual_seed(0)
    return getattr(diffusers, name)(**CONFIGS[name] | more).eval()


def part(vae):
    return Part(type(vae), vae.config)


def latents(vae, side=16, batch=1):
    channels = vae.config.get("latent_channels") or CONFIGS[type(vae).__name__].get("z_dim", 4)
    shape = (batch, channels, side, side) if type(vae).__name__ in FLAT else (batch, channels, 1, side, side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def decode(vae, given):
    with torch.inference_mode():
        return vae.decode(given, return_dict=False)[0]


def target(vae, side_px, batch=1):
    return Target(tiny.cpu(), {"vae": part(vae)}, side_px, side_px, batch)


class Applied:
    """One decoding optimizer on a bare VAE: video pipelines are none that a session runs."""

    def __init__(self, vae, name, **options):
        known = OPTIMIZERS[name]
        options = known.defaults() | options
        side_px = 16 * factor(part(vae))
        assert known.fits(target(vae, side_px, batch=2), **options) is None
        self.steps = known.apply(SimpleNamespace(vae=vae), target(vae, side_px, batch=2), **options)

    def __enter__(self):
        return next(self.steps)

    def __exit__(self, *_):
        next(self.steps, None)


@pytest.mark.parametrize("name", VAES)
def test_the_table_says_of_a_vae_what_an_instance_is(name):
    vae = made(name)
    seen = decode(vae, latents(vae, side=4)).shape[-1] // 4
    assert factor(part(vae)) == seen
    own = getattr(vae, "tile_sample_min_size", None) or vae.tile_sample_min_height
    assert tile_latent_px(part(vae), 0) == own // seen
    assert hasattr(vae, "tile_sample_stride_height") is VAES[name].strides


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.75])
@pytest.mark.parametrize("name", VAES)
def test_tiles_keep_the_size_of_the_picture_and_leave_no_trace(name, overlap):
    vae = made(name)
    given = latents(vae)
    whole, before = decode(vae, given), sorted(vars(vae))
    settings = {key: vars(vae)[key] for key in before if "til" in key}
    with Applied(vae, "vae-tiling", tile_px=8 * factor(part(vae)), overlap=overlap) as proof:
        tiled = decode(vae, given)
        assert "none larger than 8x8 latents" in proof.evidence()
    assert tiled.shape == whole.shape
    assert torch.isfinite(tiled).all()
    assert float(tiled[..., -8:, -8:].std()) > 0, "the last tile is empty"
    assert sorted(vars(vae)) == before
    assert {key: vars(vae)[key] for key in settings} == settings
    assert torch.equal(decode(vae, given), whole)


@pytest.mark.parametrize("name", [name for name in VAES if VAES[name].slices])
def test_a_batch_is_sliced_and_without_slicing_nothing_is_said(name):
    vae = made(name)
    given = latents(vae, side=4, batch=2)
    whole = decode(vae, given)
    with Applied(vae, "vae-slicing") as proof:
        sliced = decode(vae, given)
        assert "all with one picture" in proof.evidence()
        vae.use_slicing = False
        proof.begin(None)
        decode(vae, given)
        assert proof.evidence() == ""
        vae.use_slicing = True
    assert torch.allclose(sliced, whole, atol=1e-4)


def test_plain_diffusers_a_tile_size_alone_spoils_the_size():
    """What vae-tiling guards against: latents alone, or the smallest tile without its stride."""
    vae = made("AutoencoderKL")
    vae.use_tiling, vae.tile_latent_min_size = True, 8
    assert decode(vae, latents(vae)).shape[-1] != 32
    for name, shrunk in (("AutoencoderDC", 64), ("AutoencoderKLWan", 256)):
        vae = made(name)
        px = factor(part(vae))
        vae.enable_tiling(tile_sample_min_height=shrunk // 2, tile_sample_min_width=shrunk // 2)
        assert decode(vae, latents(vae, side=shrunk // px)).shape[-1] < shrunk


def test_plain_diffusers_an_overlap_between_two_latents_spoils_the_size():
    vae = made("AutoencoderKL")
    vae.use_tiling, vae.tile_latent_min_size, vae.tile_sample_min_size, vae.tile_overlap_factor = True, 8, 16, 0.3
    assert decode(vae, latents(vae)).shape[-1] != 32


def test_plain_diffusers_tiles_of_a_tiny_vae_without_overlap_are_black():
    vae = made("AutoencoderTiny")
    vae.use_tiling, vae.tile_latent_min_size, vae.tile_overlap_factor = True, 8, 0.0
    assert not decode(vae, latents(vae))[..., 64:, 64:].any()


@given(latent_px=st.integers(4, 300), overlap=st.floats(0, 0.99))
def test_an_overlap_is_a_number_of_latents_that_keeps_the_size(latent_px, overlap):
    shared = overlap_latent_px(Part(diffusers.AutoencoderKL, {"block_out_channels": [1] * 4}), latent_px, overlap)
    stride_px, kept_px = (
        int(latent_px * (1 - shared / latent_px)),
        8 * latent_px - int(8 * latent_px * (shared / latent_px)),
    )
    assert 0 <= shared < latent_px
    assert 8 * stride_px == kept_px


@pytest.mark.parametrize(("overlap", "shared"), [(0, 0), (0.25, 16), (0.3, 19), (0.99, 63)])
@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderKLWan"])
def test_an_overlap_is_near_the_one_asked_for(name, overlap, shared):
    config = {"block_out_channels": [1] * 4, "scale_factor_spatial": 8}
    assert overlap_latent_px(Part(getattr(diffusers, name), config), 64, overlap) == shared


def test_plain_diffusers_slices_of_magvit_are_mixed():
    vae = made("AutoencoderKLMagvit")
    given = latents(vae, side=4, batch=2)
    assert "mixes its slices" in OPTIMIZERS["vae-slicing"].fits(target(vae, 32, batch=2))
    vae.enable_slicing()
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        decode(vae, given)


@pytest.mark.parametrize("name", ["AsymmetricAutoencoderKL", "AutoencoderKLTemporalDecoder", "VQModel"])
def test_a_vae_that_only_inherits_the_switches_is_refused(name):
    vae = getattr(diffusers, name)()
    with pytest.raises(NotImplementedError):
        vae.enable_tiling()
    assert "raises NotImplementedError" in OPTIMIZERS["vae-tiling"].fits(target(vae, 64), 0, 0.25)
    assert "raises NotImplementedError" in OPTIMIZERS["vae-slicing"].fits(target(vae, 64, batch=2))


def test_a_vae_with_other_tiles_is_refused():
    asked = Target(tiny.cpu(), {"vae": Part(diffusers.AutoencoderKLCosmos, {})}, 64, 64)
    assert (
        OPTIMIZERS["vae-tiling"].fits(asked, 0, 0.25)
        == "Safelight does not know how AutoencoderKLCosmos does its tiling"
    )
    assert "no VAE" in OPTIMIZERS["vae-tiling"].fits(Target(tiny.cpu(), {}, 64, 64), 0, 0.25)


def test_tiles_of_a_tiny_vae_know_its_factor():
    config = {name: value[:2] for name, value in CONFIGS["AutoencoderTiny"].items()}
    vae = diffusers.AutoencoderTiny(**config)
    assert vae.spatial_scale_factor == 8  # what diffusers takes it for
    assert tile_settings(Part(type(vae), vae.config), 32, 0.25)["spatial_scale_factor"] == 2


@pytest.mark.parametrize(("written", "says"), [("vae-tiling=15", "a multiple of 2"), ("vae-tiling.overlap=1", "share")])
def test_a_tile_that_cannot_be_is_refused(unet_pipe, written, says):
    with pytest.raises(UsageError, match=says):
        safelight.optimize(unet_pipe, written)


def test_the_tiny_vae_decodes_in_place_of_the_large_one_which_comes_back(pipe):
    large, config = pipe.vae, dict(pipe.config)
    with safelight.optimize(pipe, f"tiny-vae={taesd_folder()}") as session:
        assert type(pipe.vae) is diffusers.AutoencoderTiny
        (status,) = session.status()
        assert status.evidence == "1 decoder calls of AutoencoderTiny, none of AutoencoderKL"
        session.generate("a cat", steps=2, seed=1, count=3)
        assert session.status()[0].evidence.startswith("1 decoder calls"), "each batch is counted anew"
    assert pipe.vae is large
    assert dict(pipe.config) == config


def test_a_tiny_vae_takes_latents_as_the_denoiser_has_them(pipe):
    """TAESD is trained on latents that are scaled and shifted already: what comes in is what the denoiser gave."""
    given = []
    with safelight.optimize(pipe, f"tiny-vae={taesd_folder()}") as session:
        pipe.vae.decoder.register_forward_pre_hook(lambda _module, inputs: given.append(inputs[0]))
        session.generate("a cat", steps=2, seed=1)
        generator = torch.Generator().manual_seed(1)
        with torch.inference_mode():
            made = pipe("a cat", num_inference_steps=2, generator=generator, output_type="latent").images
    if made.ndim == 3:
        made = pipe._unpack_latents(made, 32, 32, pipe.vae_scale_factor)
    assert torch.allclose(given[0], made, atol=1e-5)


def test_what_acts_on_the_vae_acts_on_the_tiny_one():
    pipe = eight_to_one()
    asked = f"vae-tiling=32,dtype=bfloat16,channels-last,tiny-vae={taesd_folder(levels=4)}"
    with safelight.optimize(pipe, asked, width=64, height=64) as session:
        assert len(session.status()) == 4
        assert session.generate("a cat", steps=2, seed=1).pictures[0].image.size == (64, 64)
        assert next(pipe.vae.parameters()).dtype == torch.bfloat16
    assert type(pipe.vae) is diffusers.AutoencoderKL
    assert next(pipe.vae.parameters()).dtype == torch.float32


def eight_to_one():
    """A pipeline whose VAE has a factor of 8, as those have that TAESD is made for; it draws 64 x 64 pixels."""
    parts = tiny.sd().components
    vae = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[32] * 4,
        sample_size=64,
    )
    parts["unet"].register_to_config(sample_size=8)
    pipe = diffusers.StableDiffusionPipeline(**parts | {"vae": vae.eval()}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_picture_of_one_tile_is_not_tiled(unet_pipe):
    with pytest.raises(DoesNotApply, match=r"\(32x32\) is not larger than one tile of 64 px"):
        safelight.optimize(unet_pipe, "vae-tiling")
