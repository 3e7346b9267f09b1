"""Samplers that step below the next level and add fresh noise: Euler a, DPM2 a, DPM++ 2S a, DDIM, DDIM CFG++, LCM.

How a sampler is called stands in `steps`. Noise is drawn only where some is added: eta 0 draws none.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from safelight.sampling.deterministic import dpm2_step
from safelight.sampling.steps import Noise, PairedSteps, Steps, ancestral, midway, moved, slope

if TYPE_CHECKING:
    from torch import Tensor


def euler_ancestral(x: Tensor, sigmas: list[float], *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0) -> Steps:
    """Euler's step with ancestral noise: Crowson, k-diffusion."""
    for sigma, target in pairwise(sigmas):
        denoised = yield x, sigma
        down, up = ancestral(sigma, target, eta)
        x = moved(x, denoised, sigma, down)
        if up > 0:
            x = x + noise(sigma, target) * (up * s_noise)
    return x


def dpm2_ancestral(x: Tensor, sigmas: list[float], *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0) -> Steps:
    """DPM-Solver-2's midpoint (Lu et al. 2022, arXiv:2206.00927) with ancestral noise: Crowson, k-diffusion."""
    for sigma, target in pairwise(sigmas):
        down, up = ancestral(sigma, target, eta)
        x = yield from dpm2_step(x, sigma, down)
        if up > 0:  # k-diffusion leaves it out where `down` is 0, which an eta over 1 brings about
            x = x + noise(sigma, target) * (up * s_noise)
    return x


def dpmpp_2s_ancestral(
    x: Tensor, sigmas: list[float], *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0
) -> Steps:
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv:2211.01095, Algorithm 1) with ancestral noise: Crowson, k-diffusion."""
    for sigma, target in pairwise(sigmas):
        denoised = yield x, sigma
        down, up = ancestral(sigma, target, eta)
        if down > 0:
            middle = midway(sigma, down)
            denoised = yield moved(x, denoised, sigma, middle), middle
        x = moved(x, denoised, sigma, down)
        if up > 0:
            x = x + noise(sigma, target) * (up * s_noise)
    return x


def ddim(x: Tensor, sigmas: list[float], *, noise: Noise, eta: float = 0.0) -> Steps:
    """Song et al. 2020 (arXiv:2010.02502), equation 12: on sigmas it is Euler a, but its eta is 0 unless asked for."""
    return euler_ancestral(x, sigmas, noise=noise, eta=eta)


def ddim_cfgpp(x: Tensor, sigmas: list[float], *, noise: Noise, eta: float = 0.0) -> PairedSteps:
    """CFG++: Chung et al. 2024 (arXiv:2406.08070). Is sent (denoised, denoised without guidance).

    The noise that is left in x is what the model sees without guidance. Guidance is the paper's, 0 to 1: A1111 has
    people set 12.5 times as much, and whoever drives this divides.
    """
    for sigma, target in pairwise(sigmas):
        denoised, unguided = yield x, sigma
        down, up = ancestral(sigma, target, eta)
        x = denoised + slope(x, unguided, sigma) * down
        if up > 0:
            x = x + noise(sigma, target) * up
    return x


def lcm(x: Tensor, sigmas: list[float], *, noise: Noise) -> Steps:
    """Multistep consistency sampling: Luo et al. 2023 (arXiv:2310.04378), Algorithm 3. All noise is drawn anew.

    `denoised` is taken as it is. The boundary that LCM was trained with mixes in less than 7e-6 of x at its lowest
    timestep, 19, and less above: nothing that float16 could hold.
    """
    for sigma, target in pairwise(sigmas):
        x = yield x, sigma
        if target > 0:
            x = x + noise(sigma, target) * target
    return x
