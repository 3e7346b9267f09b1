"""UniPC: a predictor and a corrector of any order, one evaluation a step.

How a sampler is called stands in `steps`. Source: Zhao et al. 2023 (arXiv:2302.04867), Algorithms 5 to 8, written on
sigmas, where the signal's own scale drops out.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from safelight.sampling.steps import Steps, gap, moved

if TYPE_CHECKING:
    from torch import Tensor

# B(h) of the paper, h below 0 as the data are predicted
VARIANTS = {"bh1": lambda h: h, "bh2": math.expm1}


def unipc(x: Tensor, sigmas: list[float], *, order: int = 3, variant: str = "bh1") -> Steps:
    """order: 1 to 3, lower over the first steps and the last ones. variant: "bh1", A1111's, or "bh2"."""
    steps = len(sigmas) - 1
    seen: list[tuple[Tensor, float]] = []  # (denoised, sigma), newest first
    started, rank = x, 0
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = yield x, sigma
        if seen:
            x = _step(started, seen[:rank], sigma, variant, corrected_by=denoised)
        seen = [(denoised, sigma), *seen][:order]
        started, rank = x, min(order, i + 1, steps - i)
        x = _step(started, seen[:rank], target, variant)
    return x


def _step(
    x: Tensor, seen: list[tuple[Tensor, float]], target: float, variant: str, corrected_by: Tensor | None = None
) -> Tensor:
    """From the newest level in `seen` to `target`. corrected_by: `denoised` at the target, for the corrector."""
    (denoised, sigma), earlier = seen[0], seen[1:]
    straight = moved(x, denoised, sigma, target)
    ratios = [gap(sigma, level) / gap(sigma, target) for _, level in earlier]
    changes = [(each - denoised) / ratio for (each, _), ratio in zip(earlier, ratios, strict=True)]
    if corrected_by is not None:
        ratios, changes = [*ratios, 1.0], [*changes, corrected_by - denoised]
    if not changes:
        return straight
    h = -gap(sigma, target)
    scale = VARIANTS[variant](h)
    weights = _weights(ratios, h, scale)
    return straight - sum(weight * change for weight, change in zip(weights, changes, strict=True)) * scale


def _weights(ratios: list[float], h: float, scale: float) -> list[float]:
    """The weight of each change, so that the step is exact for a `denoised` that is a polynomial in log sigma."""
    import torch

    if len(ratios) == 1:
        return [0.5]  # the paper's and CompVis' choice: it makes the step of order 2 for any B(h)
    size = len(ratios)
    powers = torch.tensor([[ratio**k for ratio in ratios] for k in range(size)], dtype=torch.float64)
    return torch.linalg.solve(powers, torch.tensor(_moments(size, h, scale), dtype=torch.float64)).tolist()


def _moments(size: int, h: float, scale: float) -> list[float]:
    """b of the paper: phi_{k+1}(h) * h * k! / B(h) for k = 1 to size."""
    found, phi = [], math.expm1(h) / h - 1
    for k in range(1, size + 1):
        found.append(phi * math.factorial(k) / scale)
        phi = phi / h - 1 / math.factorial(k + 1)
    return found
