"""The samplers without a picture: beside what k-diffusion and A1111 give, and what driving them costs beside diffusers.

The recorded latents, and what they were recorded on, are those of tests/sampling/reference.
"""

import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from safelight.firstlight import BUNDLED
from safelight.sampling import schedules
from safelight.sampling.checkpoint import Checkpoint
from safelight.sampling.samplers import SAMPLERS, Sampler
from safelight.sampling.schedulers import CLASSES, Recipe, build

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "sampling" / "reference"))
import mixture

Row = dict[str, Any]
DTYPES = {"float64": torch.float64, "float32": torch.float32}
LATENTS = (1, 4, 64, 64)  # of a picture of 512 px
STEPS, RUNS = 20, 15


def recorded() -> Iterator[Row]:
    """By sampler: runs that were recorded, and the largest relative difference to them (of norms)."""
    known = load_file(mixture.RECORDED)
    cases = list(mixture.cases([sampler.label for sampler in SAMPLERS]))
    for sampler in SAMPLERS:
        mine = [(key, options, sigmas) for key, label, options, sigmas in cases if label == sampler.label]
        far = {
            name: max(apart(_ended(sampler, sigmas, options, dtype), known[key]) for key, options, sigmas in mine)
            for name, dtype in DTYPES.items()
        }
        yield {"sampler": sampler.label, "runs": len(mine), **far}


def _ended(sampler: Sampler, sigmas: list[float], options: dict[str, Any], dtype: torch.dtype) -> torch.Tensor:
    noise = {"noise": mixture.noises(dtype)} if sampler.draws_noise else {}
    steps = sampler.run(mixture.start(sigmas[0], dtype), sigmas, **noise, **options)
    share = mixture.GUIDANCE / 12.5  # A1111's for CFG++
    model = (lambda x, sigma: mixture.guided(x, sigma, share)) if sampler.unguided else mixture.denoised
    return mixture.drive(steps, model)[0]


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# -- seconds -----------------------------------------------------------------------------------------------------------


def overhead() -> Iterator[Row]:
    """Processor milliseconds per evaluation, ours and diffusers' in turns, on a model that gives a tenth of what it
    sees."""
    known = checkpoint()
    for sampler in SAMPLERS:
        recipe = Recipe(sampler, schedules.find(sampler.schedule).name)
        cls = next((name for name in sampler.cls if name in CLASSES and not CLASSES[name].flow), None)
        pairs = [(ours(recipe, known), None if cls is None else theirs(cls, known)) for _ in range(RUNS)]
        mine, others = zip(*pairs[2:], strict=True)
        beside = None if cls is None else statistics.median(others)
        yield {"sampler": sampler.label, "ms": statistics.median(mine), "class": cls, "diffusers ms": beside}


def checkpoint() -> Checkpoint:
    from diffusers import DPMSolverMultistepScheduler

    config = DPMSolverMultistepScheduler.load_config(BUNDLED["firstlight"], subfolder="scheduler")
    return Checkpoint(config["_class_name"], config)


def ours(recipe: Recipe, checkpoint: Checkpoint) -> float:
    scheduler = build(recipe, checkpoint)
    noise = torch.randn(LATENTS)
    scheduler.noise = lambda sigmas: lambda sigma, later: noise
    return walked(scheduler)


def theirs(cls: str, checkpoint: Checkpoint) -> float:
    return walked(checkpoint.built(cls, **CLASSES[cls].settings))


@torch.inference_mode()
def walked(scheduler: Any) -> float:
    """Milliseconds of one evaluation; set_timesteps is not among them."""
    scheduler.set_timesteps(STEPS)
    x, count = torch.randn(LATENTS) * scheduler.init_noise_sigma, 0
    began = time.process_time()
    for at in scheduler.timesteps:
        x = scheduler.step(scheduler.scale_model_input(x, at) * 0.1, at, x, return_dict=False)[0]
        count += 1
    return (time.process_time() - began) / count * 1000
