"""DPM-Solver with levels of its own: DPM fast (even in log sigma) and DPM adaptive (as far apart as the error allows).

How a sampler is called stands in `steps`. Of the schedule count the ends, its last level above 0 being the lower one,
and for DPM fast the number of steps. That lower level is where they stop, as in A1111; a schedule of a single level is
one step to `denoised`. Source of both: Lu et al. 2022 (arXiv:2206.00927), and Crowson, k-diffusion.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from itertools import pairwise
from typing import TYPE_CHECKING

from safelight.errors import SpoiledPicture
from safelight.sampling.steps import Noise, Steps, ancestral, gap, slope

if TYPE_CHECKING:
    from torch import Tensor

THIRD = 1 / 3
NEAR = 1e-5  # of log sigma: this close to the end is the end
FIRST_STEP = 0.05  # of log sigma
ACCEPTED = 0.81  # a step that should have been smaller than this share of itself is taken back


def dpm_fast(x: Tensor, sigmas: list[float], *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0) -> Steps:
    """DPM-Solver-fast: steps of order 3 as far as the evaluations go, then of what is left. eta 1 as in A1111."""
    steps, lowest = len(sigmas) - 1, _lowest(sigmas)
    if lowest == sigmas[0]:
        return (yield x, lowest)
    for order, (sigma, target) in zip(_orders(steps), pairwise(_even(steps // 3 + 1, sigmas[0], lowest)), strict=True):
        down, up = _above(lowest, sigma, target, eta)
        denoised = yield x, sigma
        x = yield from SOLVERS[order](x, slope(x, denoised, sigma), sigma, down)
        if up > 0:
            x = x + noise(sigma, target) * (up * s_noise)
    return x


def _orders(evaluations: int) -> list[int]:
    """Of every step; their sum is `evaluations`: Lu et al. 2022, section 3.4."""
    thirds, rest = divmod(evaluations, 3)
    return [3] * thirds + [rest] if rest else [3] * (thirds - 1) + [2, 1]


def _even(steps: int, highest: float, lowest: float) -> list[float]:
    return [highest * (lowest / highest) ** (i / steps) for i in range(steps)] + [lowest]


def _lowest(sigmas: list[float]) -> float:
    return min(sigma for sigma in sigmas if sigma > 0)


def _above(lowest: float, sigma: float, target: float, eta: float) -> tuple[float, float]:
    """(down, up) of an ancestral step that never goes below the last level."""
    down = max(lowest, ancestral(sigma, target, eta)[0]) if eta else target
    return down, math.sqrt(max(0.0, target**2 - down**2))


def _first(x: Tensor, start: Tensor, sigma: float, target: float) -> Steps:
    yield from ()
    return x + start * (target - sigma)


def _second(x: Tensor, start: Tensor, sigma: float, target: float) -> Steps:
    """DPM-Solver-2. start: the slope at x."""
    ahead = yield from _stage(x + start * (_part(sigma, target, 0.5) - sigma), _part(sigma, target, 0.5))
    return x + ahead * (target - sigma)


def _third(x: Tensor, start: Tensor, sigma: float, target: float) -> Steps:
    """DPM-Solver-3. start: the slope at x."""
    low, more = yield from _second_and_third(x, start, sigma, target)
    return low + more


def _second_and_third(
    x: Tensor, start: Tensor, sigma: float, target: float
) -> Generator[tuple[Tensor, float], Tensor, tuple[Tensor, Tensor]]:
    """One step by DPM-Solver-2 with its stage at a third, and what DPM-Solver-3 adds to it; they share that stage.

    The sum would do, but subtracting it again loses the error of small steps to float32's rounding.
    """
    near, far = _part(sigma, target, THIRD), _part(sigma, target, 2 * THIRD)
    bend = (yield from _stage(x + start * (near - sigma), near)) - start
    ahead = x + start * (far - sigma) - bend * (2 * far * _phi(gap(sigma, far)))
    wider = (yield from _stage(ahead, far)) - start
    lower = bend * ((target - sigma) / (2 * THIRD))
    higher = wider * (target / (2 * THIRD) * _phi(gap(sigma, target)))
    return x + start * (target - sigma) + lower, -higher - lower


def _stage(x: Tensor, sigma: float) -> Steps:
    """The slope at x."""
    denoised = yield x, sigma
    return slope(x, denoised, sigma)


def _part(sigma: float, target: float, share: float) -> float:
    """The level at that share of the way in log sigma."""
    return sigma * (target / sigma) ** share


def _phi(width: float) -> float:
    return math.expm1(width) / width - 1


SOLVERS = {1: _first, 2: _second, 3: _third}


def dpm_adaptive(
    x: Tensor,
    sigmas: list[float],
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
    rtol: float = 0.05,
    atol: float = 0.0078,
) -> Steps:
    """DPM-Solver-23. rtol, atol: how far orders 2 and 3 may differ, of x and beside it. eta 1 as in A1111.

    The error is one number for the whole batch, as in k-diffusion, so the pictures of a batch share their steps.
    """
    sigma, lowest = sigmas[0], _lowest(sigmas)
    if lowest == sigma:
        return (yield x, sigma)
    step, order, before, start = FIRST_STEP, 1.5 if eta else 3, x, None
    while gap(sigma, lowest) > NEAR:
        target = max(lowest, sigma * math.exp(-step))
        down, up = _above(lowest, sigma, target, eta)
        if start is None:  # after a step that was taken back it is known
            start = yield from _stage(x, sigma)
        low, more = yield from _second_and_third(x, start, sigma, down)
        growth = _growth(_error(low, more, before, rtol, atol), order, sigma)
        step *= growth
        if growth >= ACCEPTED:
            x = low + more + noise(sigma, target) * (up * s_noise) if up > 0 else low + more
            before, sigma, start = low, target, None
    return x


def _error(low: Tensor, more: Tensor, before: Tensor, rtol: float, atol: float) -> float:
    """Root mean square of `more`, in units of what is allowed."""
    allowed = (low.abs().maximum(before.abs()) * rtol).clamp(min=atol)
    return float((more / allowed).square().mean().sqrt())


def _growth(error: float, order: float, sigma: float) -> float:
    """What the step is multiplied by: 1 at an error of 1, between 0.2 and 2.6."""
    if not math.isfinite(error):
        raise SpoiledPicture(f"DPM adaptive: the model gave not-a-number near noise level {sigma:.4g}: use float32")
    return 1 + math.atan((error + 1e-8) ** (-1 / order) - 1)
