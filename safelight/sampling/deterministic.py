"""Samplers that follow the probability flow: Euler, Heun, DPM2 (with churn if asked), LMS, DPM++ 2M, PLMS.

How a sampler is called stands in `steps`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from safelight.sampling.steps import Noise, Steps, churning, gap, midway, moved, slope

if TYPE_CHECKING:
    from torch import Tensor

# two points of Gauss integrate a cubic exactly, and four levels are joined by a cubic
GAUSS = (0.5 - math.sqrt(3) / 6, 0.5 + math.sqrt(3) / 6)
LMS_ORDER = 4
# Adams-Bashforth for even steps, newest first, by how many slopes there are
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def euler(
    x: Tensor,
    sigmas: list[float],
    *,
    noise: Noise,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Steps:
    """Euler's method: Karras et al. 2022 (arXiv:2206.00364), Algorithm 2 without its second-order correction."""
    churned = churning(len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
    for level, target in pairwise(sigmas):
        x, sigma = churned(x, level, target)
        denoised = yield x, sigma
        x = moved(x, denoised, sigma, target)
    return x


def heun(
    x: Tensor,
    sigmas: list[float],
    *,
    noise: Noise,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Steps:
    """Heun's method: Karras et al. 2022 (arXiv:2206.00364), Algorithm 2."""
    churned = churning(len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
    for level, target in pairwise(sigmas):
        x, sigma = churned(x, level, target)
        x = yield from heun_step(x, sigma, target)
    return x


def heun_step(x: Tensor, sigma: float, target: float) -> Steps:
    """From `sigma` to `target` by the mean of both ends' slopes; two evaluations, one where the target is 0."""
    denoised = yield x, sigma
    end = moved(x, denoised, sigma, target)
    if target == 0:
        return end
    denoised_end = yield end, target
    return x + (slope(x, denoised, sigma) + slope(end, denoised_end, target)) * ((target - sigma) / 2)


def dpm2(
    x: Tensor,
    sigmas: list[float],
    *,
    noise: Noise,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Steps:
    """DPM-Solver-2's midpoint (Lu et al. 2022, arXiv:2206.00927) with Karras' churn, as Crowson put them together."""
    churned = churning(len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
    for level, target in pairwise(sigmas):
        x, sigma = churned(x, level, target)
        x = yield from dpm2_step(x, sigma, target)
    return x


def dpm2_step(x: Tensor, sigma: float, target: float) -> Steps:
    """From `sigma` to `target` by the slope midway in log sigma; two evaluations, one where the target is 0."""
    denoised = yield x, sigma
    if target == 0:
        return denoised
    middle = midway(sigma, target)
    between = moved(x, denoised, sigma, middle)
    denoised_between = yield between, middle
    return x + slope(between, denoised_between, middle) * (target - sigma)


def lms(x: Tensor, sigmas: list[float]) -> Steps:
    """Linear multistep: the slopes at the last four levels are joined by a polynomial in sigma, and that integrated.

    Source: Adams and Bashforth for uneven steps; Crowson, k-diffusion.
    """
    slopes: list[Tensor] = []
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        denoised = yield x, sigma
        slopes = [slope(x, denoised, sigma), *slopes][:LMS_ORDER]
        levels = sigmas[i::-1][: len(slopes)]
        x = x + sum(weight * each for weight, each in zip(_lagrange(levels, target), slopes, strict=True))
    return x


def _lagrange(levels: list[float], target: float) -> list[float]:
    """The integral from the first level to `target` of each level's Lagrange polynomial; four levels at most."""
    start, width = levels[0], target - levels[0]
    points = [start + width * at for at in GAUSS]

    def value(level: float, point: float) -> float:
        return math.prod((point - other) / (level - other) for other in levels if other != level)

    return [width / len(GAUSS) * sum(value(level, point) for point in points) for level in levels]


def dpmpp_2m(x: Tensor, sigmas: list[float]) -> Steps:
    """DPM-Solver++(2M): Lu et al. 2022 (arXiv:2211.01095), Algorithm 2."""
    last: Tensor | None = None
    last_gap = 0.0
    for sigma, target in pairwise(sigmas):
        denoised = yield x, sigma
        ahead, width = denoised, gap(sigma, target)
        if last is not None and target > 0:
            ahead = denoised + (denoised - last) * (width / last_gap / 2)
        x = moved(x, ahead, sigma, target)
        last, last_gap = denoised, width
    return x


def plms(x: Tensor, sigmas: list[float]) -> Steps:
    """Pseudo linear multistep: Liu et al. 2022 (arXiv:2202.09778), S-PNDM's first step, then F-PNDM's of order 4.

    The mean of the last noises, weighted for even steps whatever the schedule, in DDIM's step. The first step takes
    two evaluations. On DDIM's own levels it is CompVis' `plms.py`.
    """
    slopes: list[Tensor] = []
    for sigma, target in pairwise(sigmas):
        denoised = yield x, sigma
        slopes = [slope(x, denoised, sigma), *slopes][: len(ADAMS_BASHFORTH)]
        weights = ADAMS_BASHFORTH[len(slopes) - 1]
        mean = sum(weight * each for weight, each in zip(weights, slopes, strict=True))
        if len(slopes) == 1 and target > 0:
            end = moved(x, denoised, sigma, target)
            denoised_end = yield end, target
            mean = (slopes[0] + slope(end, denoised_end, target)) / 2
        x = x + mean * (target - sigma)
    return x
