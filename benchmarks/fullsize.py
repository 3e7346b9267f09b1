"""Pipelines of full size with random weights, made offline from config tables: honest for seconds and bytes.

    pipe = build("flux1-dev", "bfloat16")

Comes in: a name of MODELS, a dtype, a device. Goes out: a diffusers pipeline whose parts have the published shapes.
The weights are random: the pictures are noise, and how far a technique changes them says little of a trained model.
The tokenizers know single letters alone, under ids as high as the real ones. Nothing is downloaded.
"""

from itertools import islice
from math import prod
from typing import Any

# a part: (library, class, config). The configs are the config.json of the hub's repositories named at MODELS, less
# what equals the class's defaults
Part = tuple[str, str, dict[str, Any]]

CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}
CLIP_G = {
    **CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
VAE_16 = {**VAE, "latent_channels": 16, "sample_size": 1024, "use_quant_conv": False, "use_post_quant_conv": False}
SD15_UNET = {
    "sample_size": 64,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL_UNET = {
    "sample_size": 128,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD35_MEDIUM = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
FLUX = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "axes_dims_rope": (16, 56, 56),
}
DIT_S2 = {
    "sample_size": 32,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 12,
    "num_attention_heads": 6,
    "attention_head_dim": 64,
}
SD_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
FLUX_DEV_NOISE = {"shift": 3.0, "use_dynamic_shifting": True, "max_image_seq_len": 4096}


def _flux(guidance: bool, noise: dict[str, Any]) -> dict[str, Part]:
    vae = {**VAE_16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    return {
        "transformer": ("diffusers", "FluxTransformer2DModel", {**FLUX, "guidance_embeds": guidance}),
        "vae": ("diffusers", "AutoencoderKL", vae),
        "text_encoder": ("transformers", "CLIPTextModel", CLIP_L),
        "text_encoder_2": ("transformers", "T5EncoderModel", T5_XXL),
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler", noise),
    }


MODELS: dict[str, dict[str, Part]] = {
    "sd15": {  # stable-diffusion-v1-5/stable-diffusion-v1-5
        "unet": ("diffusers", "UNet2DConditionModel", SD15_UNET),
        "vae": ("diffusers", "AutoencoderKL", VAE),
        "text_encoder": ("transformers", "CLIPTextModel", CLIP_L),
        "scheduler": ("diffusers", "PNDMScheduler", {**SD_NOISE, "skip_prk_steps": True}),
    },
    "sdxl": {  # stabilityai/stable-diffusion-xl-base-1.0
        "unet": ("diffusers", "UNet2DConditionModel", SDXL_UNET),
        "vae": ("diffusers", "AutoencoderKL", {**VAE, "sample_size": 1024, "scaling_factor": 0.13025}),
        "text_encoder": ("transformers", "CLIPTextModel", CLIP_L),
        "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", CLIP_G),
        "scheduler": ("diffusers", "EulerDiscreteScheduler", {**SD_NOISE, "timestep_spacing": "leading"}),
    },
    "sd35-medium": {  # stabilityai/stable-diffusion-3.5-medium
        "transformer": ("diffusers", "SD3Transformer2DModel", SD35_MEDIUM),
        "vae": ("diffusers", "AutoencoderKL", {**VAE_16, "scaling_factor": 1.5305, "shift_factor": 0.0609}),
        "text_encoder": ("transformers", "CLIPTextModelWithProjection", CLIP_L),
        "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", CLIP_G),
        "text_encoder_3": ("transformers", "T5EncoderModel", T5_XXL),
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    },
    "flux1-dev": _flux(True, FLUX_DEV_NOISE),  # black-forest-labs/FLUX.1-dev
    "flux1-schnell": _flux(False, {"shift": 1.0}),  # black-forest-labs/FLUX.1-schnell
    # DiT-S/2 of https://arxiv.org/abs/2212.09748 as diffusers has it: each block embeds steps and labels itself
    "dit-s2": {
        "transformer": ("diffusers", "DiTTransformer2DModel", DIT_S2),
        "vae": ("diffusers", "AutoencoderKL", VAE),
        "scheduler": ("diffusers", "DDIMScheduler", {"beta_schedule": "linear", "clip_sample": False}),
    },
}
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
PIPELINES: dict[str, tuple[str, dict[str, Any]]] = {  # class, and what it wants beside its parts
    "sd15": ("StableDiffusionPipeline", NO_CHECKER),
    "sdxl": ("StableDiffusionXLPipeline", {"add_watermarker": False}),
    "sd35-medium": ("StableDiffusion3Pipeline", {}),
    "flux1-dev": ("FluxPipeline", {}),
    "flux1-schnell": ("FluxPipeline", {}),
    "dit-s2": ("DiTPipeline", {}),
}
T5_TOKENS = {"sd35-medium": 256, "flux1-dev": 512, "flux1-schnell": 256}  # model_max_length of the T5 tokenizer
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'-()"
# prime: no row of a weight matrix repeats the row above, as its length never divides this one
NOISE_VALUES = 16_777_213


def build(name: str, dtype: str, device: str = "cpu") -> Any:
    """The pipeline, its weights made in `dtype` ("bfloat16") on `device` at once; on "meta" they take no bytes.

    The same weights, but for rounding, for every dtype and device.
    """
    import diffusers
    import torch

    noise = None if device == "meta" else _noise(getattr(torch, dtype), device)
    made: dict[str, Any] = {}
    for part, specification in MODELS[name].items():
        made[part] = _scheduler(specification) if part == "scheduler" else _model(specification)
        if part != "scheduler":
            _fill(made[part], getattr(torch, dtype), device, noise)
    for part in [part for part in made if part.startswith("text_encoder")]:
        made[part.replace("text_encoder", "tokenizer")] = _tokenizer(MODELS[name][part], T5_TOKENS.get(name, 0))
    cls, extras = PIPELINES[name]
    pipe = getattr(diffusers, cls)(**made, **extras)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def parameters(model: Any) -> int:
    """How many numbers a model has learnt; shared ones count once."""
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


def _scheduler(specification: Part) -> Any:
    import diffusers

    _, cls, config = specification
    return getattr(diffusers, cls)(**config)


def _model(specification: Part) -> Any:
    """Parameters on the meta device, where setting them costs nothing; buffers hold what their class computes."""
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    library, cls, config = specification
    with init_empty_weights(include_buffers=False):
        if library == "diffusers":
            return getattr(diffusers, cls)(**config).eval()
        made = getattr(transformers, cls)
        return made(made.config_class(**config)).eval()


def _noise(dtype: Any, device: str) -> Any:
    """NOISE_VALUES of normal noise, drawn on the CPU: the same on every device. All weights are cut from it.

    Drawing each weight anew would take FLUX two minutes on a CPU.
    """
    import torch

    drawn = torch.randn(NOISE_VALUES, generator=torch.Generator("cpu").manual_seed(0))
    return drawn.to(dtype=dtype, device=device)


def _fill(model: Any, dtype: Any, device: str, noise: Any) -> None:
    """Gives each parameter its tensor, and floating point buffers the dtype. `noise` is None for the meta device."""
    import torch
    import transformers

    start = 0
    for module, name, parameter in [(m, *pair) for m in model.modules() for pair in m.named_parameters(recurse=False)]:
        if noise is None:
            value = torch.empty(parameter.shape, dtype=dtype, device=device)
        elif parameter.ndim == 1:
            value = torch.full(parameter.shape, float(name == "weight"), dtype=dtype, device=device)
        else:
            value = _cut(noise, start, parameter.shape)
            start = (start + value.numel()) % NOISE_VALUES
        setattr(module, name, torch.nn.Parameter(value, requires_grad=False))
    for module, name, buffer in [(m, *pair) for m in model.modules() for pair in m.named_buffers(recurse=False)]:
        setattr(module, name, buffer.to(device=device, dtype=dtype if buffer.is_floating_point() else buffer.dtype))
    if isinstance(model, transformers.PreTrainedModel):
        model.tie_weights()  # T5 holds its embedding under two names


def _cut(noise: Any, start: int, shape: tuple[int, ...]) -> Any:
    """A weight of this shape, scaled to keep the size of what flows through it: deviation 1 / sqrt(fan in)."""
    count, fan_in = prod(shape), prod(shape[1:])
    value = noise.new_empty(count)
    done = 0
    while done < count:
        piece = noise[start : start + count - done]
        value[done : done + len(piece)] = piece
        done, start = done + len(piece), 0
    return value.mul_(fan_in**-0.5).view(shape)


def _tokenizer(specification: Part, t5_tokens: int) -> Any:
    return _t5_tokenizer(t5_tokens) if specification[1] == "T5EncoderModel" else _clip_tokenizer()


def _clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    tokens = [*LETTERS, *(letter + "</w>" for letter in LETTERS)]
    tokens += [f"<unused{i}>" for i in range(CLIP_L["vocab_size"] - 2 - len(tokens))]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _t5_tokenizer(tokens: int) -> Any:
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((c, -3.0) for c in LETTERS)]
    spare = ((f"<unused{i}>", -99.0) for i in range(T5_XXL["vocab_size"]))
    pieces += islice(spare, T5_XXL["vocab_size"] - 128 - len(pieces))  # above them T5 has 28 unused, and 100 extra ids
    return T5Tokenizer(vocab=pieces, extra_ids=100, model_max_length=tokens)
