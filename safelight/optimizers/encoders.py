"""Text encoders that make room: between two prompts nobody needs them."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.optimizers import transfer
from safelight.optimizers.placement import before, entrances, mib
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer
from safelight.optimizers.target import Target, denoiser, models
from safelight.optimizers.weights import InFile, OnHost, Weights


@dataclass(eq=False)
class Away:
    """stored: where the encoders go. seen, away: calls of the denoiser in the latest run, and those without them."""

    stored: InFile | OnHost
    seen: int = 0
    away: int = 0
    times_back: int = 0
    _gone: bool = False

    def come(self, *_: Any) -> None:
        if self._gone:
            self.stored.come()
            self.times_back += 1
            self._gone = False

    def leave(self, *_: Any) -> None:
        if not self._gone:
            self.stored.leave()
            self._gone = True

    def look(self, *_: Any) -> None:
        self.seen += 1
        self.away += self.stored.away_bytes() == self.stored.weights.bytes > 0

    def begin(self, _pipe: Any) -> None:
        self.seen = self.away = self.times_back = 0

    def evidence(self) -> str:
        if not self.seen or self.away < self.seen:
            return ""
        size = mib(self.stored.weights.bytes)
        return (
            f"{size} of text encoders were away at all {self.seen} calls of the denoiser, back {self.times_back} times"
        )


def _fits(target: Target) -> str | None:
    return None if target.text_is_encoded else "this pipeline has no text encoder"


@optimizer(
    stage=Stage.PLACEMENT,
    slot="text-encoders",
    fidelity=Fidelity.EXACT,
    source="https://huggingface.co/docs/diffusers/optimization/memory#model-offloading",
    fits=_fits,
    predict=lambda cost, target: transfer.without_encoders(cost),
)
def drop_text_encoders(pipe: Any, target: Target) -> Iterator[Proof]:
    """Send the text encoders away before denoising: from a card to host memory, from there to a file."""
    encoders = [model for name, model in models(pipe).items() if name.startswith("text_encoder")]
    weights = Weights.of(encoders)
    with ExitStack() as stack:
        if target.device.kind == "cpu":
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="safelight-"))
            stored: InFile | OnHost = InFile(weights, Path(folder) / "weights")
        else:
            stored = OnHost(weights)
        stack.callback(stored.close)
        state = Away(stored)
        # not around encode_prompt: pipelines and callers enter the encoders by other ways, too, and a prompt that
        # a cache knows enters by none
        stack.enter_context(before([inner for model in encoders for inner in entrances(model)], state.come))
        for act in (state.leave, state.look):
            stack.enter_context(before([denoiser(pipe)], act))
        yield Proof(state.evidence, begin=state.begin)
