"""The clean latents that a denoiser sees behind the noise: at an early step they say far more than the latents do.

Comes in: a scheduler, whose steps are watched. Goes out: latents of the shape that the pipeline has them in.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from safelight.sampling.driven import DrivenScheduler

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a scheduler. output: the denoiser's, with guidance, for `sample` at `timestep`.

    returned: what the scheduler gave back; the latents of the next step come first.
    """

    output: "Tensor"
    timestep: Any
    sample: "Tensor"
    returned: tuple[Any, ...]


@contextmanager
def watched(scheduler: Any) -> Iterator[list[Step]]:
    """The latest step of the scheduler, alone in a list that is empty until there is one."""
    own = scheduler.step
    signature = inspect.signature(own)
    seen: list[Step] = []

    @wraps(own)  # pipelines read the signature, to see whether a step takes a generator
    def step(*args: Any, **kwargs: Any) -> Any:
        returned = own(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        outcome = returned if isinstance(returned, tuple) else returned.to_tuple()
        seen[:] = [Step(given["model_output"], given["timestep"], given["sample"], outcome)]
        return returned

    scheduler.step = step
    try:
        yield seen
    finally:
        del scheduler.step


def clean(scheduler: Any, step: Step) -> "Tensor":
    """What is behind the noise at `step`, as the denoiser predicts it; the latents themselves where nobody knows.

    Computed from what the denoiser gave, as DPM++, UniPC, PLMS and flow matching do not return it. Those whose first
    noise is not scaled to 1 (Euler, Heun, DPM2, LMS) do, and are believed: of a second evaluation and of Karras' sigmas
    the timestep tells the noise level only roughly.
    """
    if isinstance(scheduler, DrivenScheduler):
        return step.returned[1]
    latents = step.returned[0]
    if step.output.shape != step.sample.shape or getattr(step.timestep, "ndim", 0):
        return latents
    if _is_flow(scheduler):
        return step.sample.float() - float(step.timestep) / scheduler.config.num_train_timesteps * step.output.float()
    if float(scheduler.init_noise_sigma) != 1:
        return step.returned[1] if len(step.returned) > 1 else latents
    formula = FORMULAS.get(scheduler.config.get("prediction_type", "epsilon"))
    if formula is None:
        return latents
    signal = float(scheduler.alphas_cumprod[int(step.timestep)])
    return formula(step.sample.float(), step.output.float(), signal**0.5, (1 - signal) ** 0.5)


def _is_flow(scheduler: Any) -> bool:
    """Noise and picture are mixed in a straight line, and the timestep says in which shares."""
    return (
        type(scheduler).__name__.startswith("FlowMatch") or scheduler.config.get("prediction_type") == "flow_prediction"
    )


# sample = signal * clean + noise * eps; a denoiser gives eps, clean itself, or v = signal * eps - noise * clean
# (Salimans and Ho, https://arxiv.org/abs/2202.00512)
FORMULAS: dict[str, Callable[["Tensor", "Tensor", float, float], "Tensor"]] = {
    "epsilon": lambda sample, output, signal, noise: (sample - noise * output) / signal,
    "sample": lambda sample, output, signal, noise: output,
    "v_prediction": lambda sample, output, signal, noise: signal * sample - noise * output,
}
