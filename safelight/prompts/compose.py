"""AND: several prompts pull at one picture, each with its weight.

Comes in: a denoiser, and what pulls besides the prompt that the pipeline itself was given. While a block runs the
denoiser's output for that prompt is

    uncond + sum over all prompts of weight * (cond - uncond)

so that the pipeline's own guidance scales the sum. Each further prompt is a call of its own, so that no call grows; the
outermost, so that whatever optimizers put into `forward` serves them all.

Source: https://arxiv.org/abs/2206.01714 (Composable Diffusion), equation 11.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pull:
    """One prompt, for a whole batch. tokens: (batch, tokens, channels). pooled: (batch, channels) for SDXL."""

    weight: float
    tokens: "Tensor"
    pooled: "Tensor | None" = None


@dataclass(frozen=True, slots=True)
class Pulls:
    """own: the weight of the prompt that the pipeline was given. others: the further ones.

    guided: the denoiser's batch has the negative prompt first, and half of its rows. Without guidance nothing is
    subtracted, and `others` must have the negative prompt too if the weights do not add up to 1.
    """

    own: float
    others: Sequence[Pull]
    guided: bool


@contextmanager
def composed(denoiser: Any, now: Callable[[], Pulls]) -> Iterator[None]:
    """now: what pulls in the step under way. The denoiser's `forward` is put back at the end, as it was."""
    inner, had = denoiser.forward, vars(denoiser).get("forward")

    def composed_forward(*args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        first, pulls = output[0], now()

        def answer(pull: Pull) -> "Tensor":
            own = (args, kwargs) if not pulls.guided else _positive((args, kwargs), len(first))
            return inner(*own[0], **_asking(own[1], pull))[0]

        mixed = _mixed(first, answer, pulls)
        return (mixed, *output[1:]) if isinstance(output, tuple) else type(output)(sample=mixed)

    denoiser.forward = composed_forward
    try:
        yield
    finally:
        if had is None:
            del denoiser.forward
        else:
            denoiser.forward = had


def _mixed(first: "Tensor", answer: Callable[[Pull], "Tensor"], pulls: Pulls) -> "Tensor":
    """The whole batch again, its positive half (or all of it, without guidance) replaced by the sum."""
    import torch

    if not pulls.guided:
        return _total([(pulls.own, first), *((pull.weight, answer(pull)) for pull in pulls.others)])
    uncond, cond = first.chunk(2)
    pulled = [(pulls.own, cond - uncond), *((pull.weight, answer(pull) - uncond) for pull in pulls.others)]
    return torch.cat([uncond, uncond + _total(pulled)])


def _total(terms: Sequence[tuple[float, "Tensor"]]) -> "Tensor":
    (weight, tensor), *others = terms
    total = weight * tensor
    for weight, tensor in others:
        total = total + weight * tensor
    return total


def _asking(arguments: Mapping[str, Any], pull: Pull) -> dict[str, Any]:
    """The arguments of a call, with another prompt; the pipelines hand it over by name."""
    asked = {**arguments, "encoder_hidden_states": pull.tokens}
    if pull.pooled is not None:
        asked["added_cond_kwargs"] = {**asked["added_cond_kwargs"], "text_embeds": pull.pooled}
    return asked


def _positive(value: Any, batch: int) -> Any:
    """An argument for the positive half: its rows of what carries the whole batch, everything else as it is."""
    if isinstance(value, dict):
        return {key: _positive(item, batch) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_positive(item, batch) for item in value)
    carries = getattr(value, "ndim", 0) > 0 and len(value) == batch
    return value[batch // 2 :] if carries else value
