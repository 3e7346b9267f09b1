"""The noise levels a run visits, by the names people know. One table.

A schedule takes the number of steps and the model's levels, and gives descending sigmas, n + 1 of them, the last 0.0
where its text says nothing else. Names and numbers are those of A1111 1.10 modules/sd_schedulers.py and
k-diffusion; Turbo is Forge's; trailing, leading and linspace are diffusers'. On flow models as ComfyUI has them.
"""

import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from safelight.errors import DoesNotApply, UnknownName, UsageError
from safelight.sampling.levels import Levels, stretched

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Schedule:
    """label: as A1111 writes it. function: None stands for the sampler's own. flow: True, or why not.

    families: the only ones it was made for; empty for any.
    """

    name: str
    label: str
    function: Callable[..., list[float]] | None
    aliases: tuple[str, ...] = ()
    flow: Literal[True] | str = True
    families: tuple[str, ...] = ()

    def sigmas(self, n: int, levels: Levels, family: str | None = None, **options: Any) -> list[float]:
        """options: those of `options`; None is the schedule's own value. Raises UsageError with the reason."""
        if self.function is None:
            raise UsageError(f"schedule {self.label!r} stands for the sampler's own: name the one to build")
        if n < 1:
            raise UsageError(f"schedule {self.label!r} was asked for {n} steps: ask for 1 or more")
        if reason := self.refuses(levels.flow, family):
            raise DoesNotApply(reason)
        given = {key: value for key, value in options.items() if value is not None}
        for key in given:
            if key not in self.options:
                raise UnknownName(f"option of schedule {self.label!r}", key, self.options)
        _check_range(levels, given)
        if self.families:
            given["family"] = family
        return self.function(n, levels, **given)

    def refuses(self, flow: bool, family: str | None = None) -> str | None:
        """Why it is not for such a model, or None. family: sd15, sdxl or None for others."""
        if flow and isinstance(self.flow, str):
            return f"schedule {self.label!r} is not for a flow-matching model: {self.flow}"
        if self.families and family not in self.families:
            return f"schedule {self.label!r} was computed for {' and '.join(self.families)} alone: use Karras"
        return None

    @property
    def options(self) -> tuple[str, ...]:
        """What may be given beside the steps and the levels: rho, sigma_min, ..."""
        if self.function is None:
            return ()
        return tuple(name for name in inspect.signature(self.function).parameters if name not in NOT_OPTIONS)


NOT_OPTIONS = frozenset({"n", "levels", "family"})


def _check_range(levels: Levels, given: dict[str, Any]) -> None:
    low = given.get("sigma_min", levels.sigma_min)
    high = given.get("sigma_max", levels.sigma_max)
    if not 0 < low < high:
        raise UsageError(f"sigma_min {low:g} and sigma_max {high:g}: use 0 < sigma_min < sigma_max")


def find(name: str) -> Schedule:
    """By name, label or alias; case, spaces, hyphens and underscores do not count. Raises UnknownName."""
    for schedule in SCHEDULES:
        if compared(name) in map(compared, (schedule.name, schedule.label, *schedule.aliases)):
            return schedule
    raise UnknownName("schedule", name, [schedule.label for schedule in SCHEDULES])


def compared(name: str) -> str:
    """A name as it is compared: case, spaces, hyphens and underscores do not count."""
    return re.sub(r"[\s_-]+", "", name.lower())


def uniform(n: int, levels: Levels) -> list[float]:
    """Evenly spaced levels from the last to the first: k-diffusion's DiscreteSchedule.get_sigmas."""
    return [levels.sigma_at(index) for index in _even(len(levels.sigmas) - 1, 0, n)] + [0.0]


def karras(
    n: int, levels: Levels, *, rho: float = 7.0, sigma_min: float | None = None, sigma_max: float | None = None
) -> list[float]:
    """Karras et al. 2022, equation 5."""
    low, high = _range(levels, sigma_min, sigma_max)
    return [root**rho for root in _even(high ** (1 / rho), low ** (1 / rho), n)] + [0.0]


def exponential(
    n: int, levels: Levels, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> list[float]:
    """Evenly spaced logarithms."""
    return polyexponential(n, levels, sigma_min=sigma_min, sigma_max=sigma_max)


def polyexponential(
    n: int, levels: Levels, *, rho: float = 1.0, sigma_min: float | None = None, sigma_max: float | None = None
) -> list[float]:
    """A polynomial in the logarithm; with rho 1, the default, it is Exponential."""
    low, high = map(math.log, _range(levels, sigma_min, sigma_max))
    return [math.exp(low + part**rho * (high - low)) for part in _even(1, 0, n)] + [0.0]


def sgm_uniform(
    n: int, levels: Levels, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> list[float]:
    """Evenly spaced, without the last: Stability's generative-models."""
    first, last = _ends(levels, sigma_min, sigma_max)
    return [levels.sigma_at(index) for index in _even(first, last, n + 1)[:-1]] + [0.0]


def normal(n: int, levels: Levels, *, sigma_min: float | None = None, sigma_max: float | None = None) -> list[float]:
    """Evenly spaced between two sigmas. On a flow model: what FlowMatchEulerDiscreteScheduler does by itself."""
    first, last = _ends(levels, sigma_min, sigma_max)
    return [levels.sigma_at(index) for index in _even(first, last, n)] + [0.0]


def kl_optimal(
    n: int, levels: Levels, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> list[float]:
    """Sabour et al. 2024 (Align Your Steps), theorem 3.1: evenly spaced arctangents. Ends at sigma_min, not at 0."""
    low, high = map(math.atan, _range(levels, sigma_min, sigma_max))
    return [math.tan(angle) for angle in _even(high, low, n + 1)]


# https://research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html
STEPS: dict[str, tuple[float, ...]] = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}


def align_your_steps(n: int, levels: Levels, *, family: str) -> list[float]:
    """Sabour et al. 2024: optimised for SD 1.5 and for SDXL, log-linear between their 11 levels.

    One step begins at the top here; in A1111 at 0.029, which is no noise at all.
    """
    return uniform(n, Levels(_tensor(STEPS[family][::-1])))


def simple(n: int, levels: Levels) -> list[float]:
    """Every len / n th level, counted from the last, rounded towards it."""
    count = len(levels.sigmas)
    return [float(levels.sigmas[count - 1 - int(step * count / n)]) for step in range(n)] + [0.0]


def ddim(n: int, levels: Levels) -> list[float]:
    """Levels 1, 1 + k, 1 + 2k, ... with k = len // n, from the last: DDIM's own.

    As in A1111: where n does not divide the number of levels there are more steps than n (30 of 1000 give 31), and
    one step is level 1 alone.
    """
    stride = max(len(levels.sigmas) // n, 1)
    return [float(sigma) for sigma in levels.sigmas[1::stride].flip(0)] + [0.0]


def beta(
    n: int,
    levels: Levels,
    *,
    alpha: float = 0.6,
    beta: float = 0.6,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> list[float]:
    """Lee et al. 2024 (Beta Sampling is All You Need): quantiles of a beta distribution.

    Over sigmas for a noise-predicting model, as A1111 (ComfyUI's are over levels); over levels for a flow model.
    """
    from scipy.special import betaincinv

    low, high = _range(levels, sigma_min, sigma_max)
    if levels.flow:
        low, high = levels.index_of(low), levels.index_of(high)
    points = [low + float(betaincinv(alpha, beta, part)) * (high - low) for part in _even(1, 0, n)]
    return [levels.sigma_at(point) if levels.flow else point for point in points] + [0.0]


def turbo(n: int, levels: Levels) -> list[float]:
    """Forge's, for SDXL Turbo: the last level, then every len / n th, rounded half to even."""
    count = len(levels.sigmas)
    return [levels.sigma_at(round(count * part - 1)) for part in _even(1, 1 / n, n)] + [0.0]


def lcm(n: int, levels: Levels) -> list[float]:
    """A1111's for the LCM sampler: evenly spaced over the 50 levels that latent consistency models were taught."""
    stride = max(len(levels.sigmas) // 50, 1)
    return uniform(n, Levels(levels.sigmas[stride - 1 :: stride], levels.flow))


def trailing(n: int, levels: Levels) -> list[float]:
    """diffusers' timestep_spacing "trailing". On a flow model: what FLUX's and Qwen-Image's pipelines pass."""
    indexes = [len(levels.sigmas) * part - 1 for part in _even(1, 1 / n, n)]
    if not levels.flow:
        return [levels.sigma_at(round(index + 1) - 1) for index in indexes] + [0.0]
    ascending = _tensor([levels.sigma_at(index) for index in reversed(indexes)])
    return [*stretched(ascending, levels.terminal).flip(0).tolist(), 0.0]


def leading(n: int, levels: Levels, *, steps_offset: int = 1) -> list[float]:
    """diffusers' timestep_spacing "leading"; steps_offset as Stable Diffusion's configs have it."""
    stride = len(levels.sigmas) // n
    return [levels.sigma_at(step * stride + steps_offset) for step in reversed(range(n))] + [0.0]


def linspace(n: int, levels: Levels) -> list[float]:
    """diffusers' timestep_spacing "linspace": Uniform, but linear between levels. On a flow model: Normal."""
    if levels.flow:
        return normal(n, levels)
    return uniform(n, Levels(levels.sigmas, flow=True))


def _even(first: float, last: float, n: int) -> list[float]:
    """n numbers from first to last, both met exactly; first alone for n = 1."""
    return [first + (last - first) * step / (n - 1) for step in range(n - 1)] + [last if n > 1 else first]


def _range(levels: Levels, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    return (
        levels.sigma_min if sigma_min is None else sigma_min,
        levels.sigma_max if sigma_max is None else sigma_max,
    )


def _ends(levels: Levels, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """Indexes of sigma_max and sigma_min.

    ComfyUI and diffusers take a flow model's sigma for the share of the way before the shift, and so shift it twice:
    SD3's runs end at 0.009, not at 0.003. People's pictures are made so.
    """
    low, high = _range(levels, sigma_min, sigma_max)
    if levels.flow:
        return len(levels.sigmas) * high - 1, len(levels.sigmas) * low - 1
    return levels.index_of(high), levels.index_of(low)


def _tensor(values: Sequence[float]) -> "Tensor":
    import torch

    return torch.tensor(values, dtype=torch.float64)


NOT_FLOW = "it is derived for clean + sigma * noise with sigma over 1: use Simple or Beta"
SCHEDULES = (
    Schedule("automatic", "Automatic", None),
    Schedule("uniform", "Uniform", uniform),
    Schedule("karras", "Karras", karras),
    Schedule("exponential", "Exponential", exponential),
    Schedule("polyexponential", "Polyexponential", polyexponential),
    Schedule("sgm_uniform", "SGM Uniform", sgm_uniform),
    Schedule("kl_optimal", "KL Optimal", kl_optimal, flow=NOT_FLOW),
    Schedule("align_your_steps", "Align Your Steps", align_your_steps, ("AYS",), NOT_FLOW, tuple(STEPS)),
    Schedule("simple", "Simple", simple),
    Schedule("normal", "Normal", normal),
    Schedule("ddim", "DDIM", ddim, ("ddim_uniform",)),
    Schedule("beta", "Beta", beta),
    Schedule("turbo", "Turbo", turbo),
    Schedule("lcm", "LCM", lcm),
    Schedule("trailing", "Trailing", trailing),
    Schedule("leading", "Leading", leading, flow="diffusers has none for them: use Trailing or Linspace"),
    Schedule("linspace", "Linspace", linspace),
)
