"""The scheduler that a model came with: whatever draws a picture is built from it, never from the one in use.

Flags such as use_karras_sigmas travel through diffusers' `from_config` into classes that do not know them, and come
out at the next class.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safelight.sampling import levels


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """cls: the name of diffusers' class. config: of the scheduler."""

    cls: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, pipe: Any) -> "Checkpoint":
        return cls(type(pipe.scheduler).__name__, dict(pipe.scheduler.config))

    @property
    def is_flow(self) -> bool:
        """Noise and picture are mixed in a straight line, and the timestep says in which shares."""
        return levels.is_flow(self.cls, self.config)

    def own(self) -> Any:
        """diffusers' scheduler as the checkpoint has it, fresh; but never one that ends in not-a-number."""
        import diffusers

        return getattr(diffusers, self.cls).from_config(self.config, **self._mended())

    def _mended(self) -> dict[str, Any]:
        """UniPC's "bh1" divides by the last step's logarithm, and a last sigma of zero makes that infinite."""
        ends_at_zero = self.config.get("final_sigmas_type", "zero") == "zero"
        spoils = self.cls == "UniPCMultistepScheduler" and self.config.get("solver_type") == "bh1" and ends_at_zero
        return {"final_sigmas_type": "sigma_min"} if spoils else {}

    def built(self, cls: str, **settings: Any) -> Any:
        """Another of diffusers' classes, with the noise that the checkpoint was trained on."""
        import diffusers

        kept = {key: value for key, value in self.config.items() if key not in _FLAGS}
        return getattr(diffusers, cls).from_config(kept, **settings)


# what a sampler decides, not the checkpoint
_FLAGS = frozenset(
    {"_class_name", "_use_default_values", "algorithm_type", "solver_type", "clip_sample", "set_alpha_to_one"}
    | {f"use_{kind}_sigmas" for kind in ("karras", "exponential", "beta")}
)
