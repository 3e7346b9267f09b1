"""A tiny Stable Diffusion 1.5 in the single-file layout that checkpoints are shared in (CompVis' key names).

Four levels, as the real one: diffusers knows the kind by its keys and shapes.
"""

import tiny
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel

WIDTHS = [32, 64, 128, 128]


def pipeline() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=2, block_out_channels=WIDTHS, cross_attention_dim=32, attention_head_dim=8
    )
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=WIDTHS,
        layers_per_block=2,
        sample_size=64,
    )
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=tiny.clip_text(),
        tokenizer=tiny.clip_tokenizer(),
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def state_dict(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """The whole pipeline's tensors under CompVis' names."""
    text = {f"cond_stage_model.transformer.text_model.{k}": v for k, v in _text(pipe).items()}
    unet = {f"model.diffusion_model.{_unet(k)}": v for k, v in pipe.unet.state_dict().items()}
    vae = dict(_vae(k, v) for k, v in pipe.vae.state_dict().items())
    return {k: v.contiguous() for k, v in {**unet, **vae, **text}.items()}


def _text(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    return {k.removeprefix("text_model."): v for k, v in pipe.text_encoder.state_dict().items()}


def _renamed(key: str, names: list[tuple[str, str]]) -> str:
    for theirs, ours in names:
        key = key.replace(ours, theirs)
    return key


def _unet(key: str) -> str:
    outer = [
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("input_blocks.0.0", "conv_in"),
        ("out.0", "conv_norm_out"),
        ("out.2", "conv_out"),
    ]
    for theirs, ours in outer:
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs, 1)
    if "resnets" in key:
        inner = [
            ("in_layers.0", "norm1"),
            ("in_layers.2", "conv1"),
            ("out_layers.0", "norm2"),
            ("out_layers.3", "conv2"),
            ("emb_layers.1", "time_emb_proj"),
            ("skip_connection", "conv_shortcut"),
        ]
        key = _renamed(key, inner)
    return _renamed(key, _unet_blocks())


def _unet_blocks() -> list[tuple[str, str]]:
    names = [("middle_block.1.", "mid_block.attentions.0.")]
    names += [(f"middle_block.{2 * j}.", f"mid_block.resnets.{j}.") for j in range(2)]
    for i in range(4):
        for j in range(2):
            names.append((f"input_blocks.{3 * i + j + 1}.0.", f"down_blocks.{i}.resnets.{j}."))
            names.append((f"input_blocks.{3 * i + j + 1}.1.", f"down_blocks.{i}.attentions.{j}."))
        for j in range(3):
            names.append((f"output_blocks.{3 * i + j}.0.", f"up_blocks.{i}.resnets.{j}."))
            names.append((f"output_blocks.{3 * i + j}.1.", f"up_blocks.{i}.attentions.{j}."))
        names.append((f"input_blocks.{3 * (i + 1)}.0.op.", f"down_blocks.{i}.downsamplers.0.conv."))
        names.append((f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}.", f"up_blocks.{i}.upsamplers.0."))
    return names


def _vae(key: str, value: torch.Tensor) -> tuple[str, torch.Tensor]:
    names = [
        ("nin_shortcut", "conv_shortcut"),
        ("norm_out", "conv_norm_out"),
        ("mid.attn_1.", "mid_block.attentions.0."),
        *((f"mid.block_{i + 1}.", f"mid_block.resnets.{i}.") for i in range(2)),
    ]
    for i in range(4):
        names += [(f"encoder.down.{i}.block.{j}.", f"encoder.down_blocks.{i}.resnets.{j}.") for j in range(2)]
        names += [(f"decoder.up.{3 - i}.block.{j}.", f"decoder.up_blocks.{i}.resnets.{j}.") for j in range(3)]
        names.append((f"encoder.down.{i}.downsample.", f"encoder.down_blocks.{i}.downsamplers.0."))
        names.append((f"decoder.up.{3 - i}.upsample.", f"decoder.up_blocks.{i}.upsamplers.0."))
    if "attentions" in key:
        attention = [
            ("norm.", "group_norm."),
            ("q.", "to_q."),
            ("k.", "to_k."),
            ("v.", "to_v."),
            ("proj_out.", "to_out.0."),
        ]
        key = _renamed(key, attention)
        if key.endswith("weight") and value.ndim == 2:
            value = value[:, :, None, None]
    return f"first_stage_model.{_renamed(key, names)}", value
