"""The 20 samplers of A1111 1.10, in its order. One table: what a name means, and what a run of it takes.

Labels, aliases, own schedules and who discards a level: modules/sd_samplers_*.py.
"""

import inspect
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from safelight.sampling import adaptive, ancestral, deterministic, stochastic
from safelight.sampling.unipc import unipc

Run = Callable[..., Generator[Any, Any, Any]]  # `steps` says how it is called
Evaluations = Callable[[int], int | None]


def once(steps: int) -> int | None:
    return steps


def twice(steps: int) -> int | None:
    """The step to 0 takes one."""
    return 2 * steps - 1


def once_and_one(steps: int) -> int | None:
    """The first step takes two, unless it is the step to 0."""
    return steps + (steps > 1)


def unforeseen(steps: int) -> int | None:
    """The sampler finds its steps as it goes."""
    return None


@dataclass(frozen=True, slots=True)
class Sampler:
    """label: as A1111 writes it. cls: diffusers' classes that people call it by.

    schedule: the name of its own one. discards: of a schedule for one step more the last level before 0 is left out.
    brownian: wants noise of one Brownian path. unguided: is sent a pair, (denoised, denoised without guidance).
    evaluations: of the model, by the number of steps, on a schedule that ends at 0; None where nobody can know.

    flow: "native", dx/dsigma = (x - denoised) / sigma is all it uses, and a flow-matching model has it, too (but for
    churn, which is for x = clean + sigma * noise); "scaled", right for x / (1 - sigma) at sigma / (1 - sigma); or why
    it is refused for such models.
    """

    label: str
    run: Run
    aliases: tuple[str, ...]
    cls: tuple[str, ...] = ()
    schedule: str = "uniform"
    discards: bool = False
    brownian: bool = False
    unguided: bool = False
    flow: str = "scaled"
    evaluations: Evaluations = once

    @property
    def options(self) -> tuple[str, ...]:
        """What may be given beside x, the sigmas and the noise: eta, s_churn, ..."""
        keywords = [p for p in inspect.signature(self.run).parameters.values() if p.kind is p.KEYWORD_ONLY]
        return tuple(p.name for p in keywords if p.name != "noise")

    @property
    def draws_noise(self) -> bool:
        """Whether it can; eta 0 and no churn draw none."""
        return "noise" in inspect.signature(self.run).parameters


NOT_DDIM = "on a flow-matching model it is the same as Euler: use Euler, or Euler a for what eta does"
NOT_CFGPP = "its guidance is derived for models that predict noise: use Euler"
NOT_PLMS = "its weights are for even timesteps of a noise-predicting model: use LMS, or UniPC"
NOT_FAST = "it puts its levels where a noise-predicting model needs them, in place of the schedule: use DPM++ 2M"
NOT_RESTART = "it goes back between noise levels that were found for noise-predicting models: use Heun"

SAMPLERS = (
    Sampler("DPM++ 2M", deterministic.dpmpp_2m, ("k_dpmpp_2m",), ("DPMSolverMultistepScheduler",), schedule="karras"),
    Sampler(
        "DPM++ SDE",
        stochastic.dpmpp_sde,
        ("k_dpmpp_sde",),
        ("DPMSolverSDEScheduler",),
        schedule="karras",
        brownian=True,
        evaluations=twice,
    ),
    Sampler("DPM++ 2M SDE", stochastic.dpmpp_2m_sde, ("k_dpmpp_2m_sde",), schedule="exponential", brownian=True),
    Sampler(
        "DPM++ 2M SDE Heun",
        stochastic.dpmpp_2m_sde_heun,
        ("k_dpmpp_2m_sde_heun",),
        schedule="exponential",
        brownian=True,
    ),
    Sampler("DPM++ 2S a", ancestral.dpmpp_2s_ancestral, ("k_dpmpp_2s_a",), schedule="karras", evaluations=twice),
    Sampler(
        "DPM++ 3M SDE",
        stochastic.dpmpp_3m_sde,
        ("k_dpmpp_3m_sde",),
        schedule="exponential",
        discards=True,
        brownian=True,
    ),
    Sampler(
        "Euler a", ancestral.euler_ancestral, ("k_euler_a", "k_euler_ancestral"), ("EulerAncestralDiscreteScheduler",)
    ),
    Sampler(
        "Euler",
        deterministic.euler,
        ("k_euler",),
        ("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
        flow="native",
    ),
    Sampler("LMS", deterministic.lms, ("k_lms",), ("LMSDiscreteScheduler",), flow="native"),
    Sampler(
        "Heun",
        deterministic.heun,
        ("k_heun",),
        ("HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
        flow="native",
        evaluations=twice,
    ),
    Sampler(
        "DPM2",
        deterministic.dpm2,
        ("k_dpm_2",),
        ("KDPM2DiscreteScheduler",),
        schedule="karras",
        discards=True,
        flow="native",
        evaluations=twice,
    ),
    Sampler(
        "DPM2 a",
        ancestral.dpm2_ancestral,
        ("k_dpm_2_a",),
        ("KDPM2AncestralDiscreteScheduler",),
        schedule="karras",
        discards=True,
        evaluations=twice,
    ),
    Sampler("DPM fast", adaptive.dpm_fast, ("k_dpm_fast",), flow=NOT_FAST),
    Sampler("DPM adaptive", adaptive.dpm_adaptive, ("k_dpm_ad",), flow=NOT_FAST, evaluations=unforeseen),
    Sampler("Restart", stochastic.restart, ("restart",), schedule="karras", flow=NOT_RESTART, evaluations=twice),
    Sampler("DDIM", ancestral.ddim, ("ddim",), ("DDIMScheduler",), schedule="ddim", flow=NOT_DDIM),
    Sampler("DDIM CFG++", ancestral.ddim_cfgpp, ("ddim_cfgpp",), schedule="ddim", unguided=True, flow=NOT_CFGPP),
    Sampler(
        "PLMS",
        deterministic.plms,
        ("plms",),
        ("PNDMScheduler",),
        schedule="ddim",
        flow=NOT_PLMS,
        evaluations=once_and_one,
    ),
    Sampler("UniPC", unipc, ("unipc",), ("UniPCMultistepScheduler",), schedule="ddim"),
    Sampler("LCM", ancestral.lcm, ("k_lcm",), ("LCMScheduler", "FlowMatchLCMScheduler"), schedule="lcm"),
)
