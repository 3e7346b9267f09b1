"""Expected seconds and bytes of one picture, stage by stage, as optimizers change them.

Knows nothing of pipelines. Relative for now: `TYPICAL` is a plain run of 20 steps whose seconds add up to 1, so a
prediction says by what factor an optimizer shortens a stage, not how long it takes.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds per stage, and the bytes of weights and of live activations at the worst moment."""

    encode: float
    denoise: float
    decode: float
    weights: float
    activations: float

    @property
    def seconds(self) -> float:
        return self.encode + self.denoise + self.decode

    @property
    def peak(self) -> float:
        return self.weights + self.activations

    def scaled(self, **factors: float) -> "Cost":
        """`cost.scaled(denoise=0.8)`: each named field times its factor."""
        return replace(self, **{field: getattr(self, field) * factor for field, factor in factors.items()})


# The VAE is 7 % of SD1.5's flops at 20 steps, text encoding under 3 %; weights and activations weigh about the same
# at 1024 px (Stable Diffusion 1.5, 16 bit: 2.0 and 1.5 GiB).
TYPICAL = Cost(encode=0.03, denoise=0.90, decode=0.07, weights=0.5, activations=0.5)
