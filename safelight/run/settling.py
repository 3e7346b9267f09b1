"""A Request with nothing left open: the model's own defaults filled in, and what it cannot do refused."""

import inspect
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from safelight.errors import DoesNotApply, UsageError
from safelight.optimizers.target import denoiser
from safelight.request import DENOISE, MAX_SEED, Request
from safelight.run import canvas
from safelight.run.hires import hires_plan
from safelight.sampling import schedulers, upscalers
from safelight.sampling.checkpoint import Checkpoint
from safelight.sampling.schedulers import Recipe
from safelight.simulate.inputs import check_sides

DEFAULT_STEPS = 20


def check_supported(pipe: Any) -> None:
    """Raises UsageError for a pipeline that does not turn a prompt into latents of a picture, such as one for video."""
    parts = ("vae_scale_factor", "prepare_latents", "encode_prompt", "scheduler", "vae")
    takes = inspect.signature(pipe.__call__).parameters
    missing = [name for name in parts if not hasattr(pipe, name)]
    missing += [name for name in ("prompt", "width", "callback_on_step_end") if name not in takes]
    if missing or "num_frames" in takes or not (hasattr(pipe, "unet") or hasattr(pipe, "transformer")):
        raise UsageError(f"{type(pipe).__name__} is not a text-to-image pipeline that Safelight can run yet")


def settle(pipe: Any, request: Request, defaults: Mapping[str, Any], checkpoint: Checkpoint) -> Request:
    """The request with nothing left open. Raises UsageError for what this model cannot do."""
    asked = inspect.signature(pipe.__call__).parameters
    if request.negative and "negative_prompt" not in asked:
        raise DoesNotApply(f"{type(pipe).__name__} takes no negative prompt: leave it out")
    multiple = size_multiple(pipe)
    width, height = _sides(pipe, request, multiple)
    recipe = _recipe(request, defaults, checkpoint)
    schedulers.check(recipe, request.sampler_options, checkpoint, family(pipe))
    settled = replace(
        request,
        width=width,
        height=height,
        steps=request.steps or defaults.get("steps", DEFAULT_STEPS),
        guidance=request.guidance if request.guidance is not None else _own_guidance(asked, defaults),
        seed=request.seed if request.seed is not None else secrets.randbelow(MAX_SEED + 1),
        variation_seed=_variation_seed(request),
        sampler=recipe.label,
        schedule=recipe.schedule_label,
        denoise=DENOISE if request.init and request.denoise is None else request.denoise,
    )
    check_sides(multiple, width=width, height=height)
    if settled.hires:
        hires_plan(width, height, settled.hires, multiple)
        upscalers.find(settled.hires_upscaler or "Latent")
    return settled


def _sides(pipe: Any, request: Request, multiple: int) -> tuple[int, int]:
    """(width, height): the model's own, or those of the picture to begin from."""
    if request.init and request.width is None and request.height is None and request.mask_area == "whole":
        return canvas.own_size(request.init, multiple)
    side = own_side_px(pipe)
    return request.width or side, request.height or side


def _variation_seed(request: Request) -> int | None:
    if not request.variation_strength or request.variation_seed is not None:
        return request.variation_seed
    return secrets.randbelow(MAX_SEED + 1)


def _recipe(request: Request, defaults: Mapping[str, Any], checkpoint: Checkpoint) -> Recipe:
    """What is asked for, or the model's own; but what only our samplers can do is done by one of these."""
    name, schedule = request.sampler, request.schedule
    if name is None:
        name, schedule = defaults.get("sampler"), schedule or defaults.get("schedule")
    wants = [flag for flag, is_wanted in OURS_ALONE.items() if is_wanted(request)]
    if name is None and wants:
        name = "Euler" if checkpoint.is_flow else "DPM++ 2M"
    recipe = schedulers.find(name, schedule)
    if isinstance(recipe.sampler, str) and wants:
        raise DoesNotApply(f"{' and '.join(wants)} and sampler {recipe.sampler}: give a sampler by A1111's name for it")
    return recipe


OURS_ALONE = {
    "init": lambda request: request.init is not None,
    "hires": lambda request: request.hires is not None,
    "variation-strength": lambda request: request.variation_strength > 0,
    "rng": lambda request: request.rng != "cpu",
    "eta-noise-seed-delta": lambda request: request.eta_noise_seed_delta > 0,
}


def family(pipe: Any) -> str | None:
    """For schedules that were computed for one family: sd15, sdxl; None for all others."""
    if type(pipe).__name__.startswith("StableDiffusionXL"):
        return "sdxl"
    sd15 = 768  # CLIP ViT-L/14, whose words SD 2 replaced with OpenCLIP's 1024
    is_sd = type(pipe).__name__.startswith("StableDiffusionPipeline")
    return "sd15" if is_sd and denoiser(pipe).config.get("cross_attention_dim") == sd15 else None


def own_side_px(pipe: Any) -> int:
    """The side of the square picture that the model was trained for, in pixels."""
    size = getattr(pipe, "default_sample_size", None) or denoiser(pipe).config.sample_size
    side = size if isinstance(size, int) else size[0]
    return side * pipe.vae_scale_factor


def size_multiple(pipe: Any) -> int:
    """Width and height are multiples of this: the VAE's factor, twice that where latents are packed two by two."""
    packed = hasattr(pipe, "_unpack_latents")
    patch = 1 if packed else getattr(denoiser(pipe).config, "patch_size", 1) or 1
    return pipe.vae_scale_factor * (2 if packed else patch)


def _own_guidance(asked: Mapping[str, inspect.Parameter], defaults: Mapping[str, Any]) -> float | None:
    if "guidance" in defaults:
        return defaults["guidance"]
    return asked["guidance_scale"].default if "guidance_scale" in asked else None


def final_size(request: Request, multiple: int) -> tuple[int, int]:
    """(width, height) in pixels of the last pass of a settled request, before any upscaling of pictures."""
    assert request.width and request.height, "the request is settled"
    if request.hires is None:
        return request.width, request.height
    plan = hires_plan(request.width, request.height, request.hires, multiple)
    return plan.target_width, plan.target_height
