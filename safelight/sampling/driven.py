"""A sampler of ours as a diffusers scheduler: any pipeline drives it, one step() for each evaluation of the model.

Comes in: a sampler (a generator over sigmas), its levels of noise, the model's output. Goes out: the latents to
evaluate next. What is under way stays in float32, whatever dtype the pipeline's latents have. Knows no prompts.

Latents have the shape and the scaling that the pipeline uses: clean + sigma * noise, or for flow matching
(1 - sigma) * clean + sigma * noise.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safelight.errors import DoesNotApply
from safelight.sampling.checkpoint import Checkpoint
from safelight.sampling.levels import Levels

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from safelight.sampling.samplers import Sampler

Noise = Callable[[float, float], "Tensor"]  # (sigma, next sigma) -> normal, of the shape of the pipeline's latents
NoiseOf = Callable[[list[float] | None], Noise]  # of the sigmas that a Brownian tree spans, None for any other noise
MOST_SHARE = 1 - 1e-4  # of noise in flow matching: at 1 its ratio to what is clean is infinite


@dataclass(frozen=True, slots=True)
class Walk:
    """Which part of a schedule is walked: of one for `total` steps the last `steps`. None: all of it."""

    total: int | None = None
    steps: int | None = None

    def of(self, sigmas: list[float]) -> list[float]:
        """The sigmas of the steps that are walked, one more than steps."""
        return sigmas if self.steps is None else sigmas[max(len(sigmas) - 1 - self.steps, 0) :]


@dataclass(frozen=True, slots=True, eq=False)
class Inpaint:
    """Outside the mask the clean latents are the picture's, after every evaluation, as A1111 has it.

    clean, mask: broadcast to the pipeline's latents, float32; mask is 1 where is drawn.
    """

    clean: "Tensor"
    mask: "Tensor"

    def __call__(self, denoised: "Tensor") -> "Tensor":
        return self.clean + (denoised - self.clean) * self.mask


@dataclass(eq=False)
class DrivenScheduler:
    """sampler: a row of the table. schedule: sigmas of so many steps; None: the grid of the checkpoint's own scheduler.

    options: the sampler's keywords (eta, s_churn, ...). noise: for samplers that draw some; may be set until the first
    evaluation. batch_size: pictures, as
    pipelines scale them twice for guidance. guidance: only for samplers that want what the model gives without it,
    through `hear`.
    """

    sampler: "Sampler"
    schedule: Callable[[int, Levels], list[float]] | None
    checkpoint: Checkpoint
    options: Mapping[str, float] = field(default_factory=dict)
    noise: NoiseOf | None = None
    batch_size: int = 1
    walk: Walk = field(default_factory=Walk)
    inpaint: Inpaint | None = None
    guidance: float | None = None

    order = 1  # a step() for each evaluation: pipelines count these
    # diffusers' own names from here on
    timesteps: Any = None
    sigmas: Any = None
    num_inference_steps: int | None = None
    init_noise_sigma: float = 1.0

    def __post_init__(self) -> None:
        self.config = self.checkpoint.own().config  # with diffusers' defaults, and read as it reads
        self.is_flow = self.checkpoint.is_flow
        self._scaled = self.is_flow and self.sampler.flow == "scaled"
        self._running: Any = None
        self._heard: Tensor | None = None

    # -- the schedule --------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: "str | torch.device | None" = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """sigmas: only their number counts, as pipelines give those of an unshifted schedule with it."""
        import torch

        steps = num_inference_steps if sigmas is None else len(sigmas)
        assert steps, "a schedule has steps"
        self.levels = Levels.of(self.checkpoint.cls, self.config, mu)
        total = self.walk.total or steps
        self._sigmas = self.walk.of(self._grid(total, spaced=sigmas is not None, mu=mu))
        self.num_inference_steps = steps
        told = [self.levels.t_of(sigma) for sigma in self._evaluated()]
        self.timesteps = torch.tensor(told, dtype=torch.float32, device=device)
        if self.sampler.evaluations(steps) is None:
            self.timesteps = _unforeseen(self.timesteps, self)
        self.sigmas = torch.tensor(self._sigmas, dtype=torch.float32)
        self.init_noise_sigma = 1.0 if self.is_flow else self._sigmas[0]
        self._running = self._given = self._result = None

    def noised(self, clean: "Tensor", noise: "Tensor") -> "Tensor":
        """Where a walk begins that has `clean` to begin from: before a pipeline multiplies by init_noise_sigma."""
        sigma = self._sigmas[0]
        return (1 - sigma) * clean + sigma * noise if self.is_flow else clean / sigma + noise

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Pipelines that know where they begin say so, to spare a search; ours always begin at the first."""

    def _grid(self, total: int, *, spaced: bool, mu: float | None) -> list[float]:
        if self.schedule is None:
            return self._own_grid(total, spaced=spaced, mu=mu)
        if not self.sampler.discards:
            return self.schedule(total, self.levels)
        sigmas = self.schedule(total + 1, self.levels)
        return [*sigmas[:-2], sigmas[-1]]

    def _own_grid(self, total: int, *, spaced: bool, mu: float | None) -> list[float]:
        """As diffusers' scheduler of the checkpoint has it, called as the pipeline calls it."""
        import numpy

        own = self.checkpoint.own()
        more = {} if mu is None else {"mu": mu}
        if spaced:
            own.set_timesteps(sigmas=numpy.linspace(1.0, 1 / total, total), **more)
        else:
            own.set_timesteps(total, **more)
        return own.sigmas.tolist()

    def _evaluated(self) -> list[float]:
        """The sigmas at which the sampler evaluates the model, found by letting it run on nothing."""
        import torch

        nothing = torch.zeros(1, 1, 1, 1)
        running = self._started(nothing, lambda sigmas: lambda sigma, later: nothing)
        found = []
        try:
            _, sigma = next(running)
            while True:
                found.append(self._outer(sigma))
                _, sigma = running.send((nothing, nothing) if self.sampler.unguided else nothing)
        except StopIteration:
            return found

    def _started(self, x: "Tensor", noise: NoiseOf | None) -> Any:
        sigmas = [self._inner(sigma) for sigma in self._sigmas]
        more: dict[str, Any] = dict(self.options)
        if self.sampler.draws_noise:
            spans = sigmas if self.sampler.brownian else None
            # those that draw some only when asked to run without, too
            more["noise"] = None if noise is None else noise(spans)
        return self.sampler.run(x, sigmas, **more)

    # -- flow matching, in the scaling that samplers are written for --------------------------------------------------

    def _inner(self, sigma: float) -> float:
        """Noise per clean, of the share of noise."""
        return min(sigma, MOST_SHARE) / (1 - min(sigma, MOST_SHARE)) if self._scaled else sigma

    def _outer(self, sigma: float) -> float:
        return sigma / (1 + sigma) if self._scaled else sigma

    # -- the run -------------------------------------------------------------------------------------------------------

    def scale_model_input(self, sample: "Tensor", timestep: Any) -> "Tensor":
        """What the model is shown at the evaluation under way; `sample` may hold the batch twice, for guidance."""
        if self._running is None:
            self._begin(sample[: self.batch_size])
        if self.is_flow:
            return sample
        x, sigma = self._pending
        shown = x / (sigma**2 + 1) ** 0.5
        return shown.repeat(len(sample) // len(x), *(1,) * (x.ndim - 1)).to(sample.dtype)

    def step(
        self, model_output: "Tensor", timestep: Any, sample: "Tensor", return_dict: bool = True, **_: Any
    ) -> "Any | tuple[Tensor, Tensor]":
        """(what is evaluated next, the clean latents seen in this evaluation); the end result at the last."""
        if self._running is None:
            self._begin(sample)
        if self._given is not None and sample is not self._given and not sample.equal(self._given):
            raise DoesNotApply(f"latents were changed between steps, and {self.sampler.label} goes on from its own")
        denoised = self._clean(model_output.float())
        try:
            self._pending = self._running.send(denoised)
            x = self._shown()
        except StopIteration as end:
            x = self._result = end.value
        self._given = x.to(sample.dtype)
        seen = denoised[0] if self.sampler.unguided else denoised
        return _output(self._given, seen.to(sample.dtype), return_dict)

    def hear(self, output: "Tensor") -> None:
        """What the denoiser gave, without guidance first, for samplers that want it apart."""
        self._heard = output.detach()

    @property
    def is_done(self) -> bool:
        return self._result is not None

    @property
    def next_timestep(self) -> float:
        """Of the evaluation under way."""
        sigma = self._sigmas[0] if self._running is None else self._outer(self._pending[1])
        return self.levels.t_of(sigma)

    def _begin(self, sample: "Tensor") -> None:
        x = sample.float()
        if self._scaled:
            x = x * (1 + self._inner(self._sigmas[0]))
        self._running = self._started(x, self.noise)
        self._pending = next(self._running)

    def _shown(self) -> "Tensor":
        """The latents of the evaluation under way, in the pipeline's scaling."""
        x, sigma = self._pending
        return x / (1 + sigma) if self._scaled else x

    def _clean(self, output: "Tensor") -> Any:
        if not self.sampler.unguided:
            return self._painted(self._denoised(output))
        guided, unguided = self._apart(output)
        return self._painted(self._denoised(guided)), self._painted(self._denoised(unguided))

    def _painted(self, denoised: "Tensor") -> "Tensor":
        return denoised if self.inpaint is None else self.inpaint(denoised)

    def _apart(self, output: "Tensor") -> "tuple[Tensor, Tensor]":
        """CFG++ mixes by a share of its own, 12.5 times smaller than the scale of plain guidance, as A1111 has it."""
        heard = None if self._heard is None else self._heard.float()
        if heard is None or len(heard) != 2 * len(output):
            return output, output
        unguided, prompted = heard.chunk(2)
        return unguided + (self.guidance or 1.0) / CFGPP_SCALE * (prompted - unguided), unguided

    def _denoised(self, output: "Tensor") -> "Tensor":
        """What is behind the noise, of the model's output at the evaluation under way."""
        x, sigma = self._pending
        if self.is_flow:
            return self._shown() - self._outer(sigma) * output
        return DENOISED[self.config.get("prediction_type", "epsilon")](x, output, sigma)


CFGPP_SCALE = 12.5  # https://github.com/AUTOMATIC1111/stable-diffusion-webui/pull/16035
# of latents clean + sigma * noise; the model sees them divided by (sigma^2 + 1)^0.5
DENOISED: dict[str, Callable[["Tensor", "Tensor", float], "Tensor"]] = {
    "epsilon": lambda x, output, sigma: x - sigma * output,
    "sample": lambda x, output, sigma: output,
    "v_prediction": lambda x, output, sigma: x / (sigma**2 + 1) - output * (sigma / (sigma**2 + 1) ** 0.5),
}


def _output(sample: "Tensor", denoised: "Tensor", return_dict: bool) -> Any:
    if not return_dict:
        return sample, denoised
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput

    return EulerDiscreteSchedulerOutput(prev_sample=sample, pred_original_sample=denoised)


def _unforeseen(timesteps: "Tensor", scheduler: DrivenScheduler) -> "Tensor":
    """Timesteps of a sampler that finds out its steps as it goes: walked once, each is the one that comes next.

    Read in any other way they are those of a run without errors, a guess.
    """
    import torch

    class Unforeseen(torch.Tensor):
        def __iter__(self) -> "Iterator[Tensor]":
            while not scheduler.is_done:
                yield torch.tensor(scheduler.next_timestep, device=self.device)

    return timesteps.as_subclass(Unforeseen)
