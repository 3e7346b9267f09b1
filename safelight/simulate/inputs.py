"""What each part of a pipeline is called with, as tensors of the right shapes, from its config.

b, c, f, h, w below: batch, channels, frames, height, width of latents; t: tokens of text.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from safelight.errors import CannotPredict, UsageError
from safelight.probe.blueprint import Blueprint, Part

TEXT_TOKENS = 77  # of CLIP; and where a pipeline does not say


@dataclass(frozen=True, slots=True)
class Scene:
    """What is drawn: width, height in pixels, frames of a video or 1, pictures in a batch; guided: with
    classifier-free guidance, which asks the denoiser for two predictions."""

    width: int
    height: int
    frames: int = 1
    batch_size: int = 1
    guided: bool = True


@dataclass(frozen=True, slots=True)
class Call:
    """Of a denoiser. pictures: in one call, guidance included. calls: per step."""

    pictures: int
    calls: int


# pipelines that ask for the two predictions of guidance one after the other
ONE_BY_ONE = ("WanPipeline", "WanImageToVideoPipeline", "WanVACEPipeline", "SkyReelsV2Pipeline", "QwenImagePipeline")
# trained to need no second prediction: their guidance scale is an input
DISTILLED = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "HunyuanVideoPipeline", "Flux2Pipeline")


def call(blueprint: Blueprint, scene: Scene) -> Call:
    """How the pipeline calls its denoiser for a scene."""
    name = blueprint.pipeline.__name__
    if not scene.guided or name in DISTILLED:
        return Call(scene.batch_size, 1)
    return Call(scene.batch_size, 2) if name in ONE_BY_ONE else Call(2 * scene.batch_size, 1)


# -- sizes -------------------------------------------------------------------------------------------------------------


def latent_channels(vae: Part) -> int:
    config = vae.config
    return int(config.get("latent_channels") or config["z_dim"])


def factor(vae: Part | None) -> int:
    """Picture pixels per latent pixel."""
    if vae is None:
        return 1
    config = vae.config
    for name in ("scale_factor_spatial", "spatial_compression_ratio"):
        if isinstance(config.get(name), int):
            return int(config[name])
    if "spatio_temporal_scaling" in config:
        return int(config["patch_size"]) * 2 ** sum(config["spatio_temporal_scaling"])
    if "spatial_expansions" in config:
        return int(_product(config["spatial_expansions"]))
    if "temperal_downsample" in config and "block_out_channels" not in config:
        return 2 ** len(config["temperal_downsample"])
    names = ("block_out_channels", "down_block_out_channels", "encoder_block_out_channels")
    blocks = next(config[name] for name in names if config.get(name))
    return 2 ** (len(blocks) - 1)


def check_sides(least: int, **sides: int | None) -> None:
    """least: of `multiple`. None stands for the model's own. Raises UsageError."""
    for name, side in sides.items():
        if side is not None and side % least:
            below = side // least * least
            near = f"{below} and {below + least}" if below else str(least)
            raise UsageError(f"{name} is {side}: this model draws multiples of {least} pixels ({near} are near)")


def multiple(blueprint: Blueprint) -> int:
    """Width and height are multiples of this many pixels: as run/settling.py has it for a loaded pipeline."""
    packed = hasattr(blueprint.pipeline, "_unpack_latents")
    patch = 2 if packed else blueprint.denoiser.config.get("patch_size") or 1
    sides = patch[1:] if isinstance(patch, list | tuple) else [patch]
    least = factor(blueprint.parts.get("vae")) * max(sides)
    return math.lcm(least, UNETS_MULTIPLE) if "unet" in blueprint.parts else least


UNETS_MULTIPLE = 8  # what check_inputs of every UNet pipeline of diffusers asks for, whatever the VAE's factor is


def frame_factor(vae: Part | None) -> int:
    """Frames per latent frame, 1 for pictures."""
    if vae is None:
        return 1
    config = vae.config
    for name in ("scale_factor_temporal", "temporal_compression_ratio"):
        if isinstance(config.get(name), int):
            return int(config[name])
    if "spatio_temporal_scaling" in config:
        return int(config["patch_size_t"]) * 2 ** sum(config["spatio_temporal_scaling"])
    if "temperal_downsample" in config:
        return 2 ** sum(config["temperal_downsample"])
    return 1


def _product(numbers: Any) -> int:
    product = 1
    for number in numbers:
        product *= number
    return product


def is_video(vae: Part | None) -> bool:
    return vae is not None and frame_factor(vae) > 1


@dataclass(frozen=True, slots=True)
class Grid:
    """Of latents: frames, height, width."""

    frames: int
    height: int
    width: int


def grid(blueprint: Blueprint, scene: Scene) -> Grid:
    vae = blueprint.parts.get("vae")
    side, time = factor(vae), frame_factor(vae)
    return Grid((scene.frames - 1) // time + 1, scene.height // side, scene.width // side)


# -- text --------------------------------------------------------------------------------------------------------------


def text_tokens(blueprint: Blueprint, name: str) -> int:
    """How long a prompt is made for a text encoder: CLIP's own positions, or the pipeline's max_sequence_length."""
    config = blueprint.parts[name].config
    if "CLIP" in blueprint.parts[name].cls.__name__:
        return int(getattr(config, "max_position_embeddings", TEXT_TOKENS))
    parameters = inspect.signature(blueprint.pipeline.__call__).parameters
    said = parameters["max_sequence_length"].default if "max_sequence_length" in parameters else TEXT_TOKENS
    return said if isinstance(said, int) else TEXT_TOKENS


def denoiser_tokens(blueprint: Blueprint) -> int:
    """Tokens of text that the denoiser sees: of the longest encoder, of CLIP and T5 one after the other in SD3."""
    encoders = [name for name in blueprint.parts if name.startswith("text_encoder")]
    lengths = [text_tokens(blueprint, name) for name in encoders]
    if not lengths:
        return TEXT_TOKENS
    return TEXT_TOKENS + max(lengths) if "StableDiffusion3" in blueprint.pipeline.__name__ else max(lengths)


def text_ids(blueprint: Blueprint, name: str, scene: Scene) -> Any:
    """(b or 2b, t) token numbers; with guidance both prompts are encoded."""
    import torch

    prompts = scene.batch_size * (2 if scene.guided and blueprint.pipeline.__name__ not in DISTILLED else 1)
    return torch.zeros(prompts, text_tokens(blueprint, name), dtype=torch.long)


# -- the VAE -----------------------------------------------------------------------------------------------------------


def latents(blueprint: Blueprint, scene: Scene, dtype: Any) -> Any:
    """(b, c, h, w), or (b, c, f, h, w) of a video, as `vae.decode` takes them."""
    import torch

    size, channels = grid(blueprint, scene), latent_channels(blueprint.parts["vae"])
    if is_video(blueprint.parts["vae"]):
        return torch.empty(scene.batch_size, channels, size.frames, size.height, size.width, dtype=dtype)
    return torch.empty(scene.batch_size, channels, size.height, size.width, dtype=dtype)


# -- denoisers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that decides the shapes of a denoiser's inputs. b: pictures in one call. t: tokens of text."""

    config: Mapping[str, Any]
    b: int
    size: Grid
    t: int
    dtype: Any

    def floats(self, *shape: int) -> Any:
        import torch

        return torch.empty(shape, dtype=self.dtype)

    def picture(self, channels: str = "in_channels") -> Any:
        return self.floats(self.b, self.config[channels], self.size.height, self.size.width)

    def video(self) -> Any:
        return self.floats(self.b, self.config["in_channels"], self.size.frames, self.size.height, self.size.width)

    def text(self, width: str) -> Any:
        return self.floats(self.b, self.t, self.config[width])

    def mask(self) -> Any:
        import torch

        return torch.ones(self.b, self.t, dtype=torch.long)

    def timestep(self) -> Any:
        import torch

        return torch.zeros(self.b, dtype=torch.float32)


Inputs = Mapping[str, Any]


def _unet(wanted: Wanted) -> Inputs:
    config = wanted.config
    inputs: dict[str, Any] = {"sample": wanted.picture(), "timestep": wanted.timestep()}
    if (width := config.get("cross_attention_dim")) is not None:
        inputs["encoder_hidden_states"] = wanted.floats(
            wanted.b, wanted.t, width if isinstance(width, int) else width[0]
        )
    if config.get("addition_embed_type") == "text_time":
        ids = 6 * config["addition_time_embed_dim"]
        text = wanted.floats(wanted.b, config["projection_class_embeddings_input_dim"] - ids)
        inputs["added_cond_kwargs"] = {"text_embeds": text, "time_ids": wanted.floats(wanted.b, 6)}
    return inputs


def _sd3(wanted: Wanted) -> Inputs:
    return {
        "hidden_states": wanted.picture(),
        "encoder_hidden_states": wanted.text("joint_attention_dim"),
        "pooled_projections": wanted.floats(wanted.b, wanted.config["pooled_projection_dim"]),
        "timestep": wanted.timestep(),
    }


def _flux(wanted: Wanted) -> Inputs:
    tokens = (wanted.size.height // 2) * (wanted.size.width // 2)  # latents are packed two by two
    inputs = {
        "hidden_states": wanted.floats(wanted.b, tokens, wanted.config["in_channels"]),
        "encoder_hidden_states": wanted.text("joint_attention_dim"),
        "pooled_projections": wanted.floats(wanted.b, wanted.config["pooled_projection_dim"]),
        "timestep": wanted.timestep(),
        "img_ids": wanted.floats(tokens, 3),
        "txt_ids": wanted.floats(wanted.t, 3),
    }
    if wanted.config.get("guidance_embeds"):
        inputs["guidance"] = wanted.timestep()
    return inputs


def _wan(wanted: Wanted) -> Inputs:
    inputs = {
        "hidden_states": wanted.video(),
        "encoder_hidden_states": wanted.text("text_dim"),
        "timestep": wanted.timestep(),
    }
    if width := wanted.config.get("image_dim"):
        inputs["encoder_hidden_states_image"] = wanted.floats(wanted.b, 257, width)
    return inputs


def _captioned(wanted: Wanted) -> Inputs:
    """PixArt and Sana."""
    inputs = {
        "hidden_states": wanted.picture(),
        "encoder_hidden_states": wanted.text("caption_channels"),
        "timestep": wanted.timestep(),
        "encoder_attention_mask": wanted.mask(),
    }
    if "use_additional_conditions" in wanted.config:
        inputs["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    return inputs


def _dit(wanted: Wanted) -> Inputs:
    import torch

    labels = torch.zeros(wanted.b, dtype=torch.long)
    return {"hidden_states": wanted.picture(), "timestep": wanted.timestep(), "class_labels": labels}


def _auraflow(wanted: Wanted) -> Inputs:
    return {
        "hidden_states": wanted.picture(),
        "encoder_hidden_states": wanted.text("joint_attention_dim"),
        "timestep": wanted.timestep(),
    }


def _ltx(wanted: Wanted) -> Inputs:
    size = wanted.size
    return {
        "hidden_states": wanted.floats(wanted.b, size.frames * size.height * size.width, wanted.config["in_channels"]),
        "encoder_hidden_states": wanted.text("caption_channels"),
        "timestep": wanted.timestep(),
        "encoder_attention_mask": wanted.mask(),
        "num_frames": size.frames,
        "height": size.height,
        "width": size.width,
    }


def _cogvideox(wanted: Wanted) -> Inputs:
    size, config = wanted.size, wanted.config
    inputs = {
        "hidden_states": wanted.floats(wanted.b, size.frames, config["in_channels"], size.height, size.width),
        "encoder_hidden_states": wanted.text("text_embed_dim"),
        "timestep": wanted.timestep(),
    }
    if config.get("use_rotary_positional_embeddings"):
        tokens = size.frames * (size.height // config["patch_size"]) * (size.width // config["patch_size"])
        angles = (wanted.floats(tokens, config["attention_head_dim"]) for _ in range(2))
        inputs["image_rotary_emb"] = tuple(angles)
    return inputs


def _qwen(wanted: Wanted) -> Inputs:
    height, width = wanted.size.height // 2, wanted.size.width // 2
    return {
        "hidden_states": wanted.floats(wanted.b, height * width, wanted.config["in_channels"]),
        "encoder_hidden_states": wanted.text("joint_attention_dim"),
        "timestep": wanted.timestep(),
        "img_shapes": [[(1, height, width)]] * wanted.b,
    }


def _hunyuan_video(wanted: Wanted) -> Inputs:
    return {
        "hidden_states": wanted.video(),
        "encoder_hidden_states": wanted.text("text_embed_dim"),
        "encoder_attention_mask": wanted.mask(),
        "pooled_projections": wanted.floats(wanted.b, wanted.config["pooled_projection_dim"]),
        "timestep": wanted.timestep(),
        "guidance": wanted.timestep(),
    }


INPUTS: Mapping[str, Callable[[Wanted], Inputs]] = {
    "UNet2DConditionModel": _unet,
    "UNet2DModel": _unet,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "WanTransformer3DModel": _wan,
    "PixArtTransformer2DModel": _captioned,
    "SanaTransformer2DModel": _captioned,
    "DiTTransformer2DModel": _dit,
    "AuraFlowTransformer2DModel": _auraflow,
    "LTXVideoTransformer3DModel": _ltx,
    "CogVideoXTransformer3DModel": _cogvideox,
    "QwenImageTransformer2DModel": _qwen,
    "HunyuanVideoTransformer3DModel": _hunyuan_video,
}


def denoiser_inputs(blueprint: Blueprint, scene: Scene, dtype: Any) -> Inputs:
    """Raises CannotPredict for a class that is not in INPUTS."""
    denoiser = blueprint.denoiser
    if (make := INPUTS.get(denoiser.cls.__name__)) is None:
        known = ", ".join(sorted(INPUTS))
        raise CannotPredict(
            f"Safelight does not know what {denoiser.cls.__name__} is called with, so that nothing can "
            f"be predicted; it knows {known}"
        )
    pictures = call(blueprint, scene).pictures
    return make(Wanted(denoiser.config, pictures, grid(blueprint, scene), denoiser_tokens(blueprint), dtype))
