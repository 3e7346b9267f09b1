"""Pictures of a run under way: how they are decoded, who sees them, and how often."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safelight.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Show = Callable[[int, list["Image"]], None]  # (steps done, the batch's pictures as they are then)


@dataclass(frozen=True, slots=True)
class Previews:
    """decode: (batch, channels, latent_height, latent_width) as the denoiser has them -> (batch, 3, height, width).

    The pictures of `decode` are in 0..1. show: runs inside the run, and its exceptions end it.
    every: steps from one to the next; the first step has one. A sampler with two evaluations has two steps for one.
    """

    decode: Callable[["Tensor"], "Tensor"]
    show: Show
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageError(f"previews every {self.every} steps: give a whole number, 1 or more")

    def due(self, step: int) -> bool:
        """step: counted from 0."""
        return step % self.every == 0
