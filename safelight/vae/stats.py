"""Mean and variance of each channel, gathered strip by strip, merged in float64, and the same for any strips.

Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances (1979).
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Statistics:
    """Of a tensor (items, channels, ...). mean, m2: (items, channels), float64; m2: sum of squared distances."""

    items: int
    channels: int
    device: Any
    count: int = 0
    mean: Any = None
    m2: Any = None
    _scratch: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        import torch

        made = {"dtype": torch.float64, "device": self.device}
        self.mean, self.m2 = (torch.zeros(self.items, self.channels, **made) for _ in range(2))
        # what the fast kernel asks for: running statistics, which it leaves alone at a momentum of 0
        self._scratch = [torch.zeros(self.channels, dtype=torch.float32, device=self.device) for _ in range(2)]

    def add(self, rows: Any) -> None:
        """rows: (items, channels, ...), of any number of rows."""
        fresh = rows[0, 0].numel()
        whole = self.count + fresh
        for item in range(self.items):
            mean, variance = self._of(rows[item : item + 1])
            apart = mean - self.mean[item]
            self.m2[item] += variance * fresh + apart * apart * (self.count * fresh / whole)
            self.mean[item] += apart * (fresh / whole)
        self.count = whole

    def _of(self, rows: Any) -> tuple[Any, Any]:
        import torch

        # 20 times faster on a CPU than var_mean over rows and columns of a channels-last tensor
        mean, variance = torch.batch_norm_update_stats(rows, *self._scratch, 0.0)
        return mean.double(), variance.double()

    def groups(self, count: int) -> tuple[Any, Any]:
        """Mean and variance of each group of channels, given to its channels: (items, channels), float32."""
        mean = self.mean.view(self.items, count, -1)
        variance = (self.m2 / self.count).view(self.items, count, -1)
        middle = mean.mean(2, keepdim=True)
        spread = (variance + (mean - middle) ** 2).mean(2, keepdim=True)
        return tuple(value.expand_as(mean).reshape(self.items, -1).float() for value in (middle, spread))
