"""A model's trained noise levels, from its scheduler config alone: no model, no scheduler object.

Two kinds. Noise-predicting models: x = clean + sigma * noise, sigma from the betas. Flow-matching models:
x = (1 - sigma) * clean + sigma * noise, sigma in 0..1, shifted towards noise as the config says.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safelight.errors import DoesNotApply

if TYPE_CHECKING:
    from torch import Tensor

# zero terminal SNR makes the last alpha 0 and its sigma infinite; A1111 modules/sd_models.py puts this there
LAST_ALPHA = 4.8973451890853435e-08


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """sigmas: float64, ascending, one per trained level (1000 mostly).

    Three units. An *index* counts levels from 0, with fractions between. A *t* is what the model is given: the index
    itself for a noise-predicting model, sigma * 1000 for a flow model. A *sigma* is how much noise there is.
    terminal: where a flow schedule is stretched to end (shift_terminal), 0 if it is not.
    """

    sigmas: "Tensor"
    flow: bool = False
    terminal: float = 0.0

    @classmethod
    def of(cls, cls_name: str, config: Mapping[str, Any], mu: float | None = None) -> "Levels":
        """cls_name, config: of a diffusers scheduler. mu: the shift that a pipeline computes from the image's size.

        Raises DoesNotApply where they do not say what the levels are.
        """
        if is_flow(cls_name, config):
            return _flow(config, mu)
        alphas = _alphas(config)
        return cls(((1 - alphas) / alphas).sqrt())

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def sigma_at(self, index: float) -> float:
        """Between two levels: log-linear as k-diffusion's DiscreteSchedule, linear for flow. Ends are held."""
        index = min(max(index, 0.0), len(self.sigmas) - 1.0)
        low, high = math.floor(index), math.ceil(index)
        part, below, above = index - low, float(self.sigmas[low]), float(self.sigmas[high])
        if self.flow or not part:
            return below + part * (above - below)
        return math.exp((1 - part) * math.log(below) + part * math.log(above))

    def index_of(self, sigma: float) -> float:
        """The other way round; 0 below the least level, len - 1 above the greatest."""
        import torch

        low = int(torch.searchsorted(self.sigmas, sigma, right=True)) - 1
        if low < 0:
            return 0.0
        low = min(low, len(self.sigmas) - 2)
        below, above = float(self.sigmas[low]), float(self.sigmas[low + 1])
        if not self.flow:
            sigma, below, above = math.log(sigma), math.log(below), math.log(above)
        return low + min((sigma - below) / (above - below), 1.0)

    def sigma_of(self, t: float) -> float:
        """t: as the model is given it."""
        return t / len(self.sigmas) if self.flow else self.sigma_at(t)

    def t_of(self, sigma: float) -> float:
        """What to give the model as its timestep."""
        return sigma * len(self.sigmas) if self.flow else self.index_of(sigma)


def is_flow(cls_name: str, config: Mapping[str, Any]) -> bool:
    return (
        cls_name.startswith("FlowMatch")
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )


def _alphas(config: Mapping[str, Any]) -> "Tensor":
    """Cumulative products of 1 - beta, float64, each rounded to float32 as checkpoints and A1111 hold them."""
    import torch

    alphas = torch.cumprod(1 - _betas(config), 0)
    if config.get("rescale_betas_zero_snr"):
        alphas = _zero_snr(alphas)
    return alphas.float().double()


def _betas(config: Mapping[str, Any]) -> "Tensor":
    import torch

    if config.get("trained_betas") is not None:
        return torch.tensor(list(config["trained_betas"]), dtype=torch.float64)
    kind = str(config.get("beta_schedule"))
    if kind not in BETAS:
        raise DoesNotApply(f"noise levels from beta_schedule {kind!r} are not known: use {', '.join(BETAS)}")
    n = int(config.get("num_train_timesteps", 1000))
    return BETAS[kind](float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02)), n)


def _linear(start: float, end: float, n: int) -> "Tensor":
    import torch

    return torch.linspace(start, end, n, dtype=torch.float64)


def _scaled_linear(start: float, end: float, n: int) -> "Tensor":
    """Latent diffusion's: linear in the root."""
    return _linear(start**0.5, end**0.5, n) ** 2


def _cosine(start: float, end: float, n: int) -> "Tensor":
    """Nichol and Dhariwal 2021, equation 17; each beta at most 0.999. Knows no start and no end."""
    import torch

    bar = torch.cos((torch.arange(n + 1, dtype=torch.float64) / n + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)


BETAS: Mapping[str, Callable[[float, float, int], "Tensor"]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _cosine,
}


def _zero_snr(alphas: "Tensor") -> "Tensor":
    """Lin et al. 2023, algorithm 1: the last level is all noise, the first stays as it was."""
    roots = alphas.sqrt()
    roots = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
    rescaled = roots**2
    rescaled[-1] = LAST_ALPHA
    return rescaled


def _flow(config: Mapping[str, Any], mu: float | None) -> Levels:
    import torch

    n = int(config.get("num_train_timesteps", 1000))
    plain = torch.arange(1, n + 1, dtype=torch.float64) / n
    terminal = float(config.get("shift_terminal") or 0.0)
    return Levels(stretched(_shifted(plain, config, mu), terminal), flow=True, terminal=terminal)


def _shifted(plain: "Tensor", config: Mapping[str, Any], mu: float | None) -> "Tensor":
    """diffusers' FlowMatchEulerDiscreteScheduler: m / (m + 1 / s - 1), with m = shift, mu or exp(mu)."""
    if not config.get("use_dynamic_shifting"):
        shift = float(config.get("shift") or config.get("flow_shift") or 1.0)
    elif mu is None:
        raise DoesNotApply("this model's noise levels depend on the image's size: pass mu, as its pipeline computes it")
    else:
        shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
    return shift * plain / (1 + (shift - 1) * plain)


def stretched(sigmas: "Tensor", terminal: float) -> "Tensor":
    """Ascending flow sigmas, with 1 held and the least moved to `terminal`; as they are if that is 0."""
    if not terminal:
        return sigmas
    return 1 - (1 - sigmas) * ((1 - terminal) / (1 - sigmas[0]))
