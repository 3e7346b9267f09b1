"""A Request with nothing left open: the model's own defaults filled in, and what it cannot do refused."""

import inspect
import math
import secrets
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from safelight.errors import DoesNotApply, UsageError
from safelight.optimizers.target import denoiser
from safelight.request import DENOISE, MAX_SEED, Request
from safelight.run import canvas
from safelight.run.hires import hires_plan
from safelight.sampling import adaptive, schedulers, upscalers
from safelight.sampling.checkpoint import Checkpoint
from safelight.sampling.samplers import Sampler
from safelight.sampling.schedulers import Recipe
from safelight.simulate.inputs import UNETS_MULTIPLE, check_sides

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
    if request.negative and not _hears_negative(asked):
        raise DoesNotApply(f"{type(pipe).__name__} takes no negative prompt: leave it out")
    multiple = size_multiple(pipe)
    width, height = _sides(pipe, request, multiple)
    recipe = recipe_of(request, defaults, checkpoint)
    schedulers.check(recipe, request.sampler_options, checkpoint, family(pipe))
    check_levels(recipe)
    settled = replace(
        request,
        batch_size=_batch_size(recipe, request),
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
    _tell_steps(recipe, settled, checkpoint)
    if settled.negative and "true_cfg_scale" not in asked and settled.guidance is not None and settled.guidance <= 1:
        warnings.warn(f"guidance is {settled.guidance:g}: the negative prompt does nothing", stacklevel=2)
    return settled


def _hears_negative(asked: Mapping[str, inspect.Parameter]) -> bool:
    """FLUX's pipeline takes one, and leaves it aside without a second scale, which we do not give."""
    second = asked.get("true_cfg_scale")
    return "negative_prompt" in asked and (second is None or second.default > 1)


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


def recipe_of(request: Request, defaults: Mapping[str, Any], checkpoint: Checkpoint | None) -> Recipe:
    """What is asked for, or the model's own; but what only our samplers can do is done by one of these.

    checkpoint: None where nobody knows the model's scheduler.
    """
    name, schedule = request.sampler, request.schedule
    if name is None:
        name, schedule = defaults.get("sampler"), schedule or defaults.get("schedule")
    wants = [flag for flag, is_wanted in OURS_ALONE.items() if is_wanted(request)]
    if name is None and wants:
        name = "Euler" if checkpoint is not None and checkpoint.is_flow else "DPM++ 2M"
    recipe = schedulers.find(name, schedule)
    if isinstance(recipe.sampler, str) and wants:
        raise DoesNotApply(f"{' and '.join(wants)} and sampler {recipe.sampler}: give a sampler by A1111's name for it")
    return recipe


def check_levels(recipe: Recipe) -> None:
    """DPM fast and DPM adaptive take from a schedule its ends alone, and these hardly differ. Raises DoesNotApply."""
    finds_own = isinstance(recipe.sampler, Sampler) and recipe.sampler.run in (adaptive.dpm_fast, adaptive.dpm_adaptive)
    if finds_own and recipe.schedule not in (None, "uniform"):
        raise DoesNotApply(f"sampler {recipe.label!r} finds its own levels: leave out schedule {recipe.schedule_label}")


def _batch_size(recipe: Recipe, request: Request) -> int:
    """A sampler that measures its error takes one step size for a whole batch: pictures would depend on each other."""
    sampler = recipe.sampler
    if not isinstance(sampler, Sampler) or sampler.evaluations(1) is not None or request.batch_size == 1:
        return request.batch_size
    if request.count > 1:
        warnings.warn(f"{sampler.label} finds the steps of each picture: drawn one at a time", stacklevel=3)
    return 1


def _tell_steps(recipe: Recipe, request: Request, checkpoint: Checkpoint) -> None:
    """Of A1111's DDIM schedule, whose stride is whole: where it divides nothing there are more steps than asked for."""
    sampler = recipe.sampler
    if not isinstance(sampler, Sampler) or request.init or request.steps is None:
        return
    if (recipe.schedule or (None if checkpoint.is_flow else sampler.schedule)) != "ddim":
        return
    levels, asked = checkpoint.config.get("num_train_timesteps", 1000), request.steps + sampler.discards
    taken = len(range(1, levels, max(levels // asked, 1))) - sampler.discards
    if taken != request.steps:
        warnings.warn(
            f"the DDIM schedule takes {taken} steps where {request.steps} are asked for, as in A1111: "
            f"{request.steps} does not divide {levels}",
            stacklevel=3,
        )


OURS_ALONE = {
    "init": lambda request: request.init is not None,
    "hires": lambda request: request.hires is not None,
    "variation-strength": lambda request: request.variation_strength > 0,
    "rng": lambda request: request.rng != "cpu",
    "eta-noise-seed-delta": lambda request: request.eta_noise_seed_delta > 0,
}


def family(pipe: Any) -> str | None:
    return family_of(type(pipe).__name__, denoiser(pipe).config)


def family_of(pipeline: str, config: Mapping[str, Any]) -> str | None:
    """For schedules that were computed for one family: sd15, sdxl; None for all others.

    pipeline: the name of its class. config: of its denoiser.
    """
    if pipeline.startswith("StableDiffusionXL"):
        return "sdxl"
    is_sd15 = config.get("cross_attention_dim") == CLIP_L
    return "sd15" if pipeline.startswith("StableDiffusionPipeline") and is_sd15 else None


CLIP_L = 768  # width of the words of CLIP ViT-L/14, which SD 2 replaced


def own_side_px(pipe: Any) -> int:
    """The side of the square picture that the model was trained for, in pixels."""
    size = getattr(pipe, "default_sample_size", None) or denoiser(pipe).config.sample_size
    side = size if isinstance(size, int) else size[0]
    return side * pipe.vae_scale_factor


def size_multiple(pipe: Any) -> int:
    """Width and height are multiples of this: the VAE's factor, twice that where latents are packed two by two.

    Of UNETS_MULTIPLE, too, with a UNet.
    """
    packed = hasattr(pipe, "_unpack_latents")
    patch = 1 if packed else getattr(denoiser(pipe).config, "patch_size", 1) or 1
    multiple = pipe.vae_scale_factor * (2 if packed else patch)
    return math.lcm(multiple, UNETS_MULTIPLE) if hasattr(pipe, "unet") else multiple


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
