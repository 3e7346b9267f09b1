"""What need not be computed again."""

import inspect
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from safelight.errors import UsageError
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.target import Target, models


def _fits(target: Target, entries: int) -> str | None:
    if entries < 1:
        raise UsageError(f"prompt-cache={entries}: give how many prompts to keep, 1 or more")
    return None if target.text_is_encoded else "this pipeline has no text encoder"


@dataclass
class _Encoded:
    """Finished prompts by everything that went into them; the least used goes first."""

    entries: int
    kept: OrderedDict[tuple[Any, ...], Any] = field(default_factory=OrderedDict)
    hits: int = 0

    def get(self, key: tuple[Any, ...], encode: Any) -> Any:
        if key in self.kept:
            self.hits += 1
        else:
            self.kept[key] = encode()
            if len(self.kept) > self.entries:
                self.kept.popitem(last=False)
        self.kept.move_to_end(key)
        return self.kept[key]


@optimizer(
    stage=Stage.CACHE,
    slot="prompt-cache",
    fidelity=Fidelity.EXACT,
    source="https://huggingface.co/docs/diffusers/using-diffusers/weighted_prompts",
    fits=_fits,
    # no gain is predicted: it is there for prompts that come again, and of one batch none does
)
def prompt_cache(pipe: Any, target: Target, entries: int = 64) -> Iterator[Proof]:
    """Encode a prompt once and keep the result: later pictures of it need no text encoder."""
    encode, cache = pipe.encode_prompt, _Encoded(entries)
    signature = inspect.signature(encode)
    encoder_runs = [0]

    def encode_once(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        key = _key(bound.arguments)
        return encode(*args, **kwargs) if key is None else cache.get(key, lambda: encode(*args, **kwargs))

    def count(*_: Any) -> None:
        encoder_runs[0] += 1

    encoders = [part for name, part in models(pipe).items() if name.startswith("text_encoder")]
    hooks = [encoder.register_forward_pre_hook(count) for encoder in encoders]
    with swapped(pipe, encode_prompt=encode_once):
        yield Proof(lambda: _spared(cache, encoder_runs[0]), runs=2)
    for hook in hooks:
        hook.remove()


def _spared(cache: _Encoded, encoder_runs: int) -> str:
    return (
        f"{cache.hits} prompts taken from the cache; the text encoders ran {encoder_runs} times" if cache.hits else ""
    )


def _key(arguments: dict[str, Any]) -> tuple[Any, ...] | None:
    """What tells two prompts apart; None when an argument (ready-made embeddings) cannot be compared cheaply."""
    import torch

    plain = (str, int, float, bool, type(None), torch.device, torch.dtype)
    parts: list[Any] = []
    for name, value in arguments.items():
        if isinstance(value, list) and all(isinstance(item, plain) for item in value):
            value = tuple(value)
        elif not isinstance(value, plain):
            return None
        parts.append((name, value))
    return tuple(parts)
