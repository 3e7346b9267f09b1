"""Samplers of the reverse SDE: DPM++ SDE, DPM++ 2M SDE, DPM++ 2M SDE Heun, DPM++ 3M SDE; and Restart.

How a sampler is called stands in `steps`. Noise is drawn only where some is added: eta 0 draws none.
The four SDE samplers want noise of one Brownian path: the sum over two steps is then the noise over both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from safelight.sampling.deterministic import heun_step
from safelight.sampling.steps import Noise, Steps, ancestral, gap, midway, moved, reversed_sde

if TYPE_CHECKING:
    from torch import Tensor

RHO = 7  # Karras et al. 2022
# A1111 1.10, modules/sd_samplers_extra.py: from this many steps on, so many of them are spent on going back
RESTARTS_FROM, RESTARTS_TWICE_FROM = 20, 36
RESTART_LOW, RESTART_HIGH = 0.1, 2.0


def dpmpp_sde(x: Tensor, sigmas: list[float], *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0) -> Steps:
    """DPM-Solver++, stochastic, with a stage midway: Crowson, k-diffusion, after Lu et al. 2022 (arXiv:2211.01095)."""
    for sigma, target in pairwise(sigmas):
        denoised = yield x, sigma
        if target > 0:
            middle = midway(sigma, target)
            between = _ancestral_step(x, denoised, sigma, middle, noise, eta, s_noise)
            denoised = yield between, middle
        x = _ancestral_step(x, denoised, sigma, target, noise, eta, s_noise)
    return x


def _ancestral_step(
    x: Tensor, denoised: Tensor, sigma: float, target: float, noise: Noise, eta: float, s_noise: float
) -> Tensor:
    down, up = ancestral(sigma, target, eta)
    x = moved(x, denoised, sigma, down)
    return x + noise(sigma, target) * (up * s_noise) if up > 0 else x


def dpmpp_2m_sde(x: Tensor, sigmas: list[float], *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0) -> Steps:
    """SDE-DPM-Solver++(2M), midpoint: Lu et al. 2022 (arXiv:2211.01095), section 5; k-diffusion's "midpoint"."""
    return _two_level_sde(x, sigmas, noise, eta, s_noise, lambda width: -math.expm1(-width) / 2)


def dpmpp_2m_sde_heun(x: Tensor, sigmas: list[float], *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0) -> Steps:
    """The same with the correction of k-diffusion's "heun", which integrates the slope of `denoised` exactly."""
    return _two_level_sde(x, sigmas, noise, eta, s_noise, _phi_2)


def _two_level_sde(
    x: Tensor, sigmas: list[float], noise: Noise, eta: float, s_noise: float, weight: Callable[[float], float]
) -> Steps:
    """weight: of the change of `denoised` over a step, by that step's size in log sigma times 1 + eta."""
    last: Tensor | None = None
    last_gap = 0.0
    for sigma, target in pairwise(sigmas):
        denoised = yield x, sigma
        if target == 0:
            return denoised
        width = gap(sigma, target)
        down, up = reversed_sde(sigma, target, eta)
        x = moved(x, denoised, sigma, down)
        if last is not None:
            x = x + (denoised - last) * (weight(width * (1 + eta)) * width / last_gap)
        if up > 0:
            x = x + noise(sigma, target) * (up * s_noise)
        last, last_gap = denoised, width
    return x


def dpmpp_3m_sde(x: Tensor, sigmas: list[float], *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0) -> Steps:
    """SDE-DPM-Solver++(3M): Crowson, k-diffusion, after Lu et al. 2022 (arXiv:2211.01095).

    Its second difference counts half of what Taylor's series asks, in their code and here: with eta 0 it is of order 2.
    """
    seen: list[tuple[Tensor, float]] = []  # (denoised, gap to the level after it), newest first
    for sigma, target in pairwise(sigmas):
        denoised = yield x, sigma
        if target == 0:
            return denoised
        width = gap(sigma, target)
        down, up = reversed_sde(sigma, target, eta)
        x = moved(x, denoised, sigma, down) + _curvature(denoised, seen, width, width * (1 + eta))
        if up > 0:
            x = x + noise(sigma, target) * (up * s_noise)
        seen = [(denoised, width), *seen][:2]
    return x


def _curvature(denoised: Tensor, seen: list[tuple[Tensor, float]], width: float, decay: float) -> Tensor | float:
    """What the first and second differences of `denoised` over the last levels add to a step of that decay."""
    if not seen:
        return 0.0
    first, first_ratio = seen[0][0], seen[0][1] / width
    near = (denoised - first) / first_ratio
    if len(seen) == 1:
        return near * _phi_2(decay)
    second, second_ratio = seen[1][0], seen[1][1] / width
    far = (first - second) / second_ratio
    bend = (near - far) / (first_ratio + second_ratio)
    return (near + bend * first_ratio) * _phi_2(decay) - bend * (_phi_2(decay) / decay - 0.5)


def _phi_2(decay: float) -> float:
    return 1 + math.expm1(-decay) / decay


def restart(x: Tensor, sigmas: list[float], *, noise: Noise, s_noise: float = 1.0) -> Steps:
    """Restart sampling: Xu et al. 2023 (arXiv:2306.14878). Heun's steps, and from 20 on, back up and down again."""
    reached = sigmas[0]
    for sigma, target in restarted(sigmas):
        if sigma > reached:
            x = x + noise(reached, sigma) * (s_noise * math.sqrt(sigma**2 - reached**2))
        x = yield from heun_step(x, sigma, target)
        reached = target
    return x


def restarted(sigmas: list[float]) -> list[tuple[float, float]]:
    """(from, to) of every step. From 20 steps on, 9 of them (from 36 on, half of them in two rounds) lead again from
    about 2 down to about 0.1, and the others stand on Karras' levels whatever the schedule: A1111's rule.
    """
    steps = len(sigmas) - 1
    if steps < RESTARTS_FROM:
        return list(pairwise(sigmas))
    rounds, each = (2, steps // 4) if steps >= RESTARTS_TWICE_FROM else (1, 9)
    levels = [*_karras(steps - rounds * each, sigmas[0], sigmas[-2]), 0.0]
    low, high = _nearest(levels, RESTART_LOW), _nearest(levels, RESTART_HIGH)
    way = list(pairwise(levels))
    if high >= low:  # all levels lie near one another: nowhere to go back to
        return way
    again = list(pairwise(_karras(each + 1, levels[high], levels[low])))
    return [*way[:low], *again * rounds, *way[low:]]


def _karras(n: int, high: float, low: float) -> list[float]:
    """n levels, 2 or more, both ends met exactly: Karras et al. 2022, equation 5."""
    start, end = high ** (1 / RHO), low ** (1 / RHO)
    return [high, *((start + (end - start) * i / (n - 1)) ** RHO for i in range(1, n - 1)), low]


def _nearest(levels: list[float], level: float) -> int:
    return min(range(len(levels)), key=lambda i: abs(levels[i] - level))
