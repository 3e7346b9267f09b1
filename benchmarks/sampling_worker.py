"""Draws with firstlight as a pipeline would, for many recipes on the same noise: what sampling.py measures with.

Comes in: a recipe, steps, prompts, seeds. Goes out: latents, decoded pictures, evaluations. A Brownian path spans all
of the model's noise levels here, whatever the schedule, so that any number of steps walks along the same one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safelight.firstlight import BUNDLED
from safelight.sampling.checkpoint import Checkpoint
from safelight.sampling.driven import DrivenScheduler
from safelight.sampling.levels import Levels
from safelight.sampling.noise import Noise
from safelight.sampling.samplers import Sampler
from safelight.sampling.schedulers import Recipe, build

FAMILY = "sd15"  # firstlight has Stable Diffusion's noise levels: Align Your Steps can be tried


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """words: (2 * pictures, tokens, features), those without a prompt first. shape: of one picture's latents."""

    pipe: Any
    checkpoint: Checkpoint
    words: Tensor
    guidance: float

    @property
    def pictures(self) -> int:
        return len(self.words) // 2

    @property
    def shape(self) -> tuple[int, int, int]:
        config = self.pipe.unet.config
        return config.in_channels, config.sample_size, config.sample_size

    def only(self, begin: int, end: int) -> "Model":
        """The same with a part of its prompts."""
        without, prompted = self.words.chunk(2)
        return Model(self.pipe, self.checkpoint, torch.cat([without[begin:end], prompted[begin:end]]), self.guidance)


def opened(prompts: Sequence[str], guidance: float, dtype: torch.dtype = torch.float32) -> Model:
    """The bundled model; its denoiser alone in `dtype`."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(BUNDLED["firstlight"], dtype=torch.float32)
    checkpoint = Checkpoint.of(pipe)
    with torch.inference_mode():
        prompted, without = pipe.encode_prompt(list(prompts), "cpu", 1, True, [""] * len(prompts))
    pipe.unet.to(dtype)
    return Model(pipe, checkpoint, torch.cat([without, prompted]).to(dtype), guidance)


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    latents: Tensor
    evaluations: int


@torch.inference_mode()
def drawn(
    model: Model, recipe: Recipe, steps: int, seeds: Sequence[int], options: Mapping[str, float] | None = None
) -> Drawn:
    """A picture for each of the model's prompts and its seed."""
    scheduler = build(recipe, model.checkpoint, options=options, batch_size=len(seeds), family=FAMILY)
    first = begun(scheduler, model, seeds)
    scheduler.guidance = model.guidance
    scheduler.set_timesteps(steps)
    x, count = first * scheduler.init_noise_sigma, 0
    for time in scheduler.timesteps:
        shown = scheduler.scale_model_input(torch.cat([x, x]), time)
        output = model.pipe.unet(shown.to(model.words.dtype), time, model.words).sample.float()
        if isinstance(scheduler, DrivenScheduler):
            scheduler.hear(output)
        without, prompted = output.chunk(2)
        x = scheduler.step(without + model.guidance * (prompted - without), time, x, return_dict=False)[0]
        count += 1
    return Drawn(x, count)


def begun(scheduler: Any, model: Model, seeds: Sequence[int]) -> Tensor:
    """The first noise; the scheduler gets what comes after it."""
    noise = Noise(list(seeds))
    first = noise.first(model.shape)
    levels = Levels.of(model.checkpoint.cls, model.checkpoint.config)

    def of(sigmas: list[float] | None) -> Callable[[float, float], Tensor]:
        if sigmas is None:
            return lambda sigma, later: noise.next()
        return noise.brownian(model.shape, levels.sigma_min, levels.sigma_max)

    if isinstance(scheduler, DrivenScheduler):
        scheduler.noise = of
    return first


@torch.inference_mode()
def pictures(model: Model, latents: Tensor) -> Tensor:
    """float32 (n, 3, side, side) in 0..1."""
    vae = model.pipe.vae
    made = [vae.decode(part / vae.config.scaling_factor).sample for part in latents.split(8)]
    return (torch.cat(made) / 2 + 0.5).clamp(0, 1)


def psnr(some: Tensor, others: Tensor) -> float:
    """dB of the mean squared error over all pictures."""
    return float(-10 * (some - others).square().mean().clamp(min=1e-12).log10())


def steps_for(sampler: Sampler, evaluations: int) -> int:
    """The most steps that take no more evaluations than these."""
    return max((n for n in range(1, evaluations + 1) if (sampler.evaluations(n) or n) <= evaluations), default=1)


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
