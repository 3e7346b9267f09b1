"""Tiny random pipelines of real classes: no download, a second to make, the same numbers every time."""

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from safelight.optimizers.target import target_of
from safelight.planner import Forecast
from safelight.probe import blueprint
from safelight.probe.device import Device, here
from safelight.probe.rates import COMPUTING, KINDS, Curve, Rates

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'-()"


def clip_tokenizer() -> CLIPTokenizer:
    tokens = [*LETTERS, *(c + "</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((c, -3.0) for c in LETTERS)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=77)


def clip_config() -> CLIPTextConfig:
    size = 2 * len(LETTERS) + 2
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )


def clip_text() -> CLIPTextModel:
    return CLIPTextModel(clip_config()).eval()


def clip_text_projected() -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(clip_config()).eval()


def t5_text(width: int = 32) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=128, d_model=width, d_kv=8, d_ff=64, num_layers=1, num_heads=4)).eval()


def vae(**config) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[32, 64],
        latent_channels=4,
        sample_size=64,
        **config,
    ).eval()


def sd() -> StableDiffusionPipeline:
    """A UNet pipeline that draws 32 x 32 pixels; the VAE's factor is 2."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=[32, 64],
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        cross_attention_dim=32,
        attention_head_dim=4,
    ).eval()
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipe = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux() -> FluxPipeline:
    """A transformer pipeline that draws 32 x 32 pixels; latents are packed two by two."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=[4, 6, 6],
    ).eval()
    t5 = t5_text()
    plain = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1, "scaling_factor": 0.36}
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(**plain),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )
    pipe.default_sample_size = 16
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sdxl() -> StableDiffusionXLPipeline:
    """A UNet with two text encoders and size embeddings that draws 32 x 32 pixels; the VAE's factor is 2."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=[32, 64],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        transformer_layers_per_block=[1, 2],
        use_linear_projection=True,
        cross_attention_dim=64,
        attention_head_dim=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 32,
    ).eval()
    pipe = StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text_projected(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd3() -> StableDiffusion3Pipeline:
    """A transformer pipeline with three text encoders that draws 32 x 32 pixels; the VAE's factor is 2.

    The first of its two blocks has a second attention over the picture alone, as those of SD 3.5 medium.
    """
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    ).eval()
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip_text_projected(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text_projected(),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text(64),  # as wide as both CLIP encoders side by side
        tokenizer_3=t5_tokenizer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cpu() -> Device:
    return here("cpu")


PIPELINES = {"unet": sd, "transformer": flux}


def rates(*, fast: float = 200e12, slow: float = 15e12, queued: bool = True) -> Rates:
    """Of a machine that computes 16 bits faster than 32; a kernel takes 3 us, calling it 11 us."""
    flops = {"float32": slow, "bfloat16": fast, "float16": fast}
    curves = {
        kind: {dtype: Curve.straight(flops[dtype] if kind in COMPUTING else 1.5e12, 3e-6) for dtype in flops}
        for kind in KINDS
    }
    return Rates(curves, 1.1e-5, queued, 24e9 if queued else None, "made up")


def forecast(pipe, device: Device, **size) -> Forecast:
    return Forecast(blueprint.of(pipe), target_of(pipe, device, **size), rates(queued=device.kind != "cpu"))
