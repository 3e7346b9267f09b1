"""The words of a request, as a pipeline takes them: its own text where it can read it, else A1111's syntax encoded.

Comes in: a pipeline, a settled Request. Goes out: Words for any number of pictures and steps.
"""

import warnings
from collections.abc import Callable
from typing import Any

from safelight.errors import DoesNotApply, UsageError
from safelight.prompts import conditioning, encode, syntax
from safelight.request import Request
from safelight.run.denoising import Words
from safelight.sampling.samplers import Sampler, twice
from safelight.sampling.schedulers import Recipe

WordsFor = Callable[[int, int, int | None], Words]  # (pictures, steps, in a second pass those of the first)


def words_of(pipe: Any, request: Request, recipe: Recipe) -> WordsFor:
    """Raises UsageError that names the column of a mistake."""
    if not encode.supports(pipe):
        return _literal(pipe, request)
    _check(request)
    both = (request.prompt, request.negative)
    if request.clip_skip == 1 and all(encode.is_plain(pipe, text) for text in both):
        return lambda count, steps, first_pass: _plain(request, count)
    return lambda count, steps, first_pass: _conditioned(pipe, request, recipe, count, steps, first_pass)


def _check(request: Request) -> None:
    """An error now rather than later."""
    parsed = syntax.parse(request.prompt)
    syntax.parse_negative(request.negative)
    if parsed.loras:
        name = parsed.loras[0].name
        raise UsageError(f"<lora:{name}> stands in the prompt: the model is loaded with it, by --lora or in `loras`")


def _literal(pipe: Any, request: Request) -> WordsFor:
    """A model whose text encoder is no CLIP: brackets are words."""
    if request.clip_skip > 1:
        raise DoesNotApply(f"clip-skip is {request.clip_skip}: {type(pipe).__name__} has other text encoders than CLIP")
    if ignored := syntax.ignored(request.prompt):
        warnings.warn(ignored, stacklevel=2)
    return lambda count, steps, first_pass: _plain(request, count)


def _plain(request: Request, count: int) -> Words:
    arguments: dict[str, Any] = {"prompt": [request.prompt] * count}
    if request.negative:
        arguments["negative_prompt"] = [request.negative] * count
    return Words(arguments)


def _conditioned(pipe: Any, request: Request, recipe: Recipe, count: int, steps: int, first_pass: int | None) -> Words:
    import torch

    each, step_of = _counted(recipe, steps)
    guidance = 1.0 if request.guidance is None else request.guidance
    with torch.inference_mode():
        made = conditioning.plan(
            pipe,
            request.prompt,
            request.negative,
            steps * each,
            count,
            guidance=guidance,
            clip_skip=request.clip_skip,
            step_of=step_of,
            first_pass=None if first_pass is None else first_pass * each,
        )
    return Words(made.arguments, made.at, made.composed)


def _counted(recipe: Recipe, steps: int) -> tuple[int, Callable[[int], int]]:
    """(what words count a step as, evaluation -> what words count), for the times in [cat:dog:0.5] and for [cat|dog].

    A1111 counts evaluations, with twice as many of them as steps for a sampler that takes two: [cat:dog:10] is then
    half as late as people think, and is so here. Source: A1111 1.10, modules/sd_samplers_common.py
    (SamplerData.total_steps), processing.py (setup_conds), sd_samplers_cfg_denoiser.py (self.step).
    """
    if isinstance(recipe.sampler, Sampler):
        return (2 if recipe.sampler.evaluations is twice else 1), int
    calls = max(recipe.evaluations(steps), 1)
    return 1, lambda index: index * steps // calls
