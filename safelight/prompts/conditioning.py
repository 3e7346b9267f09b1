"""What a pipeline is conditioned with at every step: words that change, and prompts joined by AND.

Comes in: a pipeline (`encode.supports`), a prompt and a negative one in A1111's syntax, the number of steps. Goes out:
the pipeline's arguments, and what its callback returns where a word changes. Each distinct text is encoded once.

    conditioned = plan(pipe, "a [cat|dog] AND fog :0.5", "", 20, count=4, guidance=7.0)
    with conditioned.composed():
        pipe(**conditioned.arguments, callback_on_step_end=lambda pipe, i, t, values: conditioned.at(i) or values)
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from safelight.prompts.compose import Pull, Pulls, composed
from safelight.prompts.encode import Embedding, Encoder
from safelight.prompts.schedule import Entry, schedule, text_at
from safelight.prompts.syntax import parse, parse_negative

if TYPE_CHECKING:
    from torch import Tensor

Texts = tuple[str, ...]  # the negative one, then one for each part of the prompt


@dataclass(slots=True)
class Conditioned:
    """One batch of `count` pictures of one prompt.

    negative, parts: which text holds when. weights: of the parts. at: to be called after each step of the pipeline.
    """

    pipe: Any
    count: int
    guided: bool
    negative: tuple[Entry, ...]
    parts: tuple[tuple[Entry, ...], ...]
    weights: tuple[float, ...]
    step_of: Callable[[int], int]
    known: dict[tuple[str, bool], Embedding]
    _index: int = field(default=0)

    @property
    def is_composed(self) -> bool:
        """Whether `composed` has work to do: more than one part, or one that does not count 1."""
        return self.weights != (1.0,)

    @property
    def arguments(self) -> "dict[str, Tensor]":
        """What the pipeline is called with in place of its prompts, a row for each picture."""
        negative, positive = self._rows(self._texts(0))
        named = {"prompt_embeds": positive.tokens, "pooled_prompt_embeds": positive.pooled}
        if self.guided:
            named |= {"negative_prompt_embeds": negative.tokens, "negative_pooled_prompt_embeds": negative.pooled}
        return {name: value for name, value in named.items() if value is not None}

    def at(self, index: int) -> "dict[str, Tensor] | None":
        """What the callback of step `index` of the pipeline, from 0, returns for the next one; None for no change.

        With guidance the negative rows come first, as diffusers has them by then.
        """
        import torch

        self._index = index + 1
        now, then = self._texts(index), self._texts(index + 1)
        if now[:2] == then[:2]:
            return None
        halves = self._rows(then)[0 if self.guided else 1 :]
        changed = {"prompt_embeds": torch.cat([half.tokens for half in halves])}
        if (pooled := [half.pooled for half in halves if half.pooled is not None]) != []:
            changed["add_text_embeds"] = torch.cat(pooled)
        return changed

    @contextmanager
    def composed(self) -> Iterator[None]:
        """For the time of one run, further prompts pull at the denoiser's output; without any nothing changes."""
        self._index = 0
        if not self.is_composed:
            yield
            return
        with composed(self.pipe.unet, self._pulls):
            yield

    def _pulls(self) -> Pulls:
        texts = self._texts(self._index)
        own, *weights = self.weights
        asked = list(zip(weights, texts[2:], [False] * len(weights), strict=True))
        if not self.guided and (rest := _missing(self.weights)):
            asked.append((rest, texts[0], True))
        others = [Pull(weight, *self._repeated(self.known[text, negative])) for weight, text, negative in asked]
        return Pulls(own, others, self.guided)

    def _texts(self, index: int) -> Texts:
        step = self.step_of(index)
        return tuple(text_at(entries, step) for entries in (self.negative, *self.parts))

    def _rows(self, texts: Texts) -> tuple[Embedding, Embedding]:
        made = [self.known[texts[0], True]] if self.guided else [self.known[texts[1], False]]
        made.append(self.known[texts[1], False])
        negative, positive = (Embedding(*self._repeated(embedding)) for embedding in made)
        return negative, positive

    def _repeated(self, embedding: Embedding) -> "tuple[Tensor, Tensor | None]":
        pooled = None if embedding.pooled is None else embedding.pooled.repeat(self.count, 1)
        return embedding.tokens.repeat(self.count, 1, 1), pooled


def _missing(weights: Sequence[float]) -> float:
    """What weights lack to 1: then the negative prompt counts without guidance, too."""
    lack = 1 - math.fsum(weights)
    return 0.0 if abs(lack) < 1e-6 else lack


def is_guided(pipe: Any, guidance: float) -> bool:
    """As the pipelines decide: some distilled models take the scale as an input, and have no negative half."""
    return guidance > 1 and pipe.unet.config.time_cond_proj_dim is None


def plan(
    pipe: Any,
    prompt: str,
    negative: str,
    steps: int,
    count: int,
    *,
    guidance: float,
    clip_skip: int = 1,
    emphasis: str = "Original",
    step_of: Callable[[int], int] = int,
    first_pass: int | None = None,
) -> Conditioned:
    """steps: of the sampler. count: pictures in the batch. step_of: the pipeline's step -> the sampler's, from 0.

    clip_skip: 1 is CLIP's last layer. first_pass: in the second of two passes, the steps of the first. LoRA tags are
    left out: `parse` names them. Raises UsageError that names the column.
    """
    parsed = parse(prompt)
    when = partial(schedule, steps=steps, first_pass=first_pass)
    parts = tuple(when(part.text) for part in parsed.parts)
    unwanted = when(parse_negative(negative))
    weights = tuple(part.weight for part in parsed.parts)
    guided = is_guided(pipe, guidance)
    wanted = {(entry.text, False) for part in parts for entry in part}
    if guided or _missing(weights):
        wanted |= {(entry.text, True) for entry in unwanted}
    encoder = Encoder(pipe, clip_skip, emphasis)
    chunks = max(encoder.chunk_count(text) for text, _ in wanted)
    # a scheduled negative that is empty for a while was still asked for: only an empty one is the model's own zeros
    known = {
        (text, is_negative): (encoder.encode_negative if is_negative and not negative else encoder.encode)(text, chunks)
        for text, is_negative in sorted(wanted)
    }
    return Conditioned(pipe, count, guided, unwanted, parts, weights, step_of, known)
