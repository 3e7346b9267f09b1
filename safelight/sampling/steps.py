"""What the samplers share: how one is called, and the few formulas that all of them are made of.

A sampler is a generator over noise levels. It yields (x, sigma), "evaluate the model here"; is sent `denoised`, of x's
shape; and returns the last x. It knows no model, no pipeline and no random generator: noise comes in as a function.
x is (batch, channels, height, width), x = clean + sigma * noise. sigmas descend, one more than there are steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Noise = Callable[[float, float], "Tensor"]  # (sigma, sigma_next) -> standard normal of x's shape
Steps = Generator["tuple[Tensor, float]", "Tensor", "Tensor"]
PairedSteps = Generator["tuple[Tensor, float]", "tuple[Tensor, Tensor]", "Tensor"]

MOST_CHURN = math.sqrt(2) - 1  # Karras et al. 2022, Algorithm 2: at most doubles the noise's variance


def moved(x: Tensor, denoised: Tensor, sigma: float, target: float) -> Tensor:
    """x of noise level `sigma`, brought to `target` as if `denoised` stayed what it is.

    This is Euler's step, DDIM's, and the first-order exponential integrator's (DPM-Solver++): in this scaling one
    formula. At target 0 it is `denoised`.
    """
    return denoised + (x - denoised) * (target / sigma)


def slope(x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
    """dx/dsigma of the probability flow, which is the predicted noise: Karras et al. 2022, equation 3."""
    return (x - denoised) / sigma


def midway(sigma: float, target: float) -> float:
    """The level between the two in the logarithm of sigma."""
    return math.sqrt(sigma * target)


def gap(sigma: float, target: float) -> float:
    """The step in the logarithm of sigma, above 0 as sigma falls; infinite where the target is 0."""
    return math.log(sigma / target) if target > 0 else math.inf


def ancestral(sigma: float, target: float, eta: float) -> tuple[float, float]:
    """(down, up): go down to the one, add noise of the other, and the level is `target`. eta 0 is (target, 0).

    eta 1 is the variance of the ancestral step of DDPM; DDIM's eta (Song et al. 2020, equation 16) is the same.
    """
    up = min(target, eta * target * math.sqrt(max(0.0, 1 - (target / sigma) ** 2)))
    return math.sqrt(target**2 - up**2), up


def reversed_sde(sigma: float, target: float, eta: float) -> tuple[float, float]:
    """(down, up) as in `ancestral`, but exact for the reverse SDE over a step of any size, where eta 1 is that SDE.

    Source: Lu et al. 2022 (arXiv:2211.01095), SDE-DPM-Solver++; eta as in k-diffusion.
    """
    kept = (target / sigma) ** eta
    return target * kept, target * math.sqrt(1 - kept**2)


def churning(
    steps: int, noise: Noise, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> Callable[[Tensor, float, float], tuple[Tensor, float]]:
    """(x, sigma, target) -> (x, sigma) with noise added, where sigma lies in s_tmin to s_tmax; all that s_churn does.

    Source: Karras et al. 2022 (arXiv:2206.00364), Algorithm 2, lines 4 to 6.
    """
    share = min(s_churn / steps, MOST_CHURN)

    def churned(x: Tensor, sigma: float, target: float) -> tuple[Tensor, float]:
        if share <= 0:
            return x, sigma
        # drawn at levels out of range, too: k-diffusion does, and which draw a step gets is what a seed means
        drawn = noise(sigma, target)
        if not s_tmin <= sigma <= s_tmax:
            return x, sigma
        raised = sigma * (1 + share)
        return x + drawn * (s_noise * math.sqrt(raised**2 - sigma**2)), raised

    return churned
