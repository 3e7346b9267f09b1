"""What the runs of a session are expected to take, and what they took: kept, to correct what is expected next.

Comes in: a loaded pipeline, perhaps the forecast that its plan was made with. Goes out: a Cost for any request, and a
row in the user's cache folder for each run that the prediction is of.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from safelight.config import cache_folder
from safelight.errors import CannotPredict, EnvironmentProblem, UnknownName
from safelight.optimizers.target import Target
from safelight.planner.forecast import Chosen, Forecast
from safelight.planner.walks import EACH, ONE, Walk
from safelight.probe import blueprint as blueprints
from safelight.probe import speed
from safelight.prompts import encode, syntax
from safelight.request import Request
from safelight.run import settling
from safelight.run.hires import hires_plan, walk_of
from safelight.run.passes import LATENT
from safelight.sampling import driven, samplers, schedulers, upscalers
from safelight.sampling.checkpoint import Checkpoint
from safelight.sampling.schedulers import Recipe
from safelight.simulate import measurements
from safelight.simulate.cost import Cost
from safelight.simulate.measurements import Measurement


@dataclass
class Expected:
    """name: of the model. remember: what runs take is kept for later predictions.

    grown_bytes: on a CPU, how far memory grew in the first run; later ones find it there already.
    """

    pipe: Any
    target: Target
    name: str
    forecast: Forecast | None = None
    remember: bool = False
    grown_bytes: int | None = None
    _shapes: dict[Any, Forecast] = field(default_factory=dict)

    def made(self) -> Forecast:
        """The forecast that there is, or one of the pipeline as it is."""
        if self.forecast is None:
            blueprint = replace(blueprints.of(self.pipe), name=self.name)
            target = replace(self.target, guided=blueprint.guided)
            rates = speed.measured(target.device, cache=cache_folder())
            self.forecast = Forecast(blueprint, target, rates, measurements=kept(target.device.name, self.name))
        return self.forecast

    def cost(self, request: Request, chosen: Sequence[Chosen]) -> Cost | None:
        """Of one batch of a settled request, all its walks together; None for a model that cannot be predicted.

        Not counted is what makes pictures larger. Takes a second or two for a large model, the first time that a shape
        is asked for.
        """
        shape = self._shape(request)
        try:
            if shape not in self._shapes:
                self._shapes[shape] = _for(shape, self.made())
            return self._shapes[shape].cost(chosen)
        except CannotPredict:
            return None

    def evaluations(self, request: Request) -> int:
        """Of the model, for each picture of a settled request; a guess where the sampler finds its steps as it goes."""
        return sum(walk.evaluations for walk in self._shape(request).walks)

    def keep(
        self, request: Request, chosen: Sequence[Chosen], seconds: Mapping[str, float], peak_bytes: int | None
    ) -> None:
        """seconds: of all batches of the run, by stage (measure/clock.py). peak_bytes: of a card's tensors.

        Kept is what a prediction was asked of, and is of: whole batches, in one walk from noise, of a sampler whose
        evaluations are known before, with one prompt. Else its seconds would be shared out among the wrong number.
        """
        forecast = self._shapes.get(self._shape(request))
        whole = request.count % min(request.batch_size, request.count) == 0
        if not self.remember or forecast is None or not whole or not self._is_plain(request):
            return
        batches = request.count // min(request.batch_size, request.count)
        if self.target.device.kind == "cpu":
            peak_bytes = self._peak_on_cpu(forecast, chosen)
        measurements.here().add(measured(forecast, chosen, seconds, batches, peak_bytes))

    def _shape(self, request: Request) -> "Shape":
        guided = request.guidance is None or request.guidance > 1
        found = walks(request, settling.size_multiple(self.pipe), self._sampling(request))
        return Shape(found, min(request.batch_size, request.count), guided)

    def _sampling(self, request: Request) -> "Sampling":
        recipe = schedulers.find(request.sampler, request.schedule)
        family = settling.family(self.pipe)
        return Sampling(recipe, Checkpoint.of(self.pipe), request.sampler_options, family)

    def _is_plain(self, request: Request) -> bool:
        several = encode.supports(self.pipe) and len(syntax.parse(request.prompt).parts) > 1
        return not (request.hires or request.init or several) and self._sampling(request).is_foreseen

    def _peak_on_cpu(self, forecast: Forecast, chosen: Sequence[Chosen]) -> int | None:
        """The weights, which lay there before, and what the first run grew by."""
        return None if self.grown_bytes is None else forecast.predicted(chosen).weights + self.grown_bytes


def measured(
    forecast: Forecast, chosen: Sequence[Chosen], seconds: Mapping[str, float], batches: int, peak_bytes: int | None
) -> Measurement:
    predicted = forecast.predicted(chosen)
    return Measurement(
        when=measurements.now(),
        **forecast.run(chosen),
        steps=forecast.steps,
        encode_seconds=seconds.get("text", 0.0) / batches,
        step_seconds=seconds["denoise"] / batches / forecast.steps,
        decode_seconds=seconds["decode"] / batches,
        peak_bytes=peak_bytes,
        predicted_encode_seconds=predicted.encode.seconds,
        predicted_step_seconds=predicted.step_seconds,
        predicted_decode_seconds=predicted.decode.seconds,
        predicted_peak_bytes=predicted.peak_bytes,
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """All of a request that a prediction depends on."""

    walks: tuple[Walk, ...]
    batch_size: int
    guided: bool


def _for(shape: Shape, forecast: Forecast) -> Forecast:
    """The forecast for pictures of another shape."""
    target = replace(forecast.target, batch_size=shape.batch_size, guided=shape.guided)
    return forecast.of(target, forecast.rates).along(shape.walks)


# -- what a request takes the denoiser through -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sampling:
    """All that decides how often the model is asked. checkpoint: None where nobody knows its scheduler.

    options: of the sampler. family: as in settling.
    """

    recipe: Recipe
    checkpoint: Checkpoint | None
    options: Mapping[str, float] = field(default_factory=dict)
    family: str | None = None

    @property
    def is_foreseen(self) -> bool:
        """Not of a sampler that finds its steps as it goes."""
        sampler = self.recipe.sampler
        return not isinstance(sampler, samplers.Sampler) or sampler.evaluations(1) is not None

    def evaluations(self, steps: int, part: driven.Walk | None = None) -> int:
        """Of the model, in so many steps. part: of a longer schedule.

        Counted on the schedule itself, as some take more steps than they are asked for (A1111's DDIM).
        """
        if self.checkpoint is None:
            return self.recipe.evaluations(steps)
        if not isinstance(self.recipe.sampler, samplers.Sampler):
            return Recipe(self.recipe.sampler or self.checkpoint.cls).evaluations(steps)
        scheduler = schedulers.build(
            self.recipe, self.checkpoint, options=self.options, family=self.family, walk=part or driven.Walk()
        )
        shift: dict[str, Any] = {"mu": 1.0} if self.checkpoint.config.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(steps, **shift)
        return len(scheduler.timesteps)


def walks(request: Request, multiple: int, sampling: Sampling) -> tuple[Walk, ...]:
    """One, or two of a highres fix. request: with its size and its steps. multiple: of pixels that the model draws.

    Raises UsageError for a second pass of a size that cannot be drawn.
    """
    assert request.width and request.height and request.steps, "the request is settled"
    if request.init:
        assert request.denoise is not None, "the request is settled"
        total, steps = walk_of(request.steps, request.denoise, fixed=False)
        asked = sampling.evaluations(steps, driven.Walk(total, steps))
        return (Walk(request.width, request.height, steps, asked, encodes=ONE),)
    first = Walk(request.width, request.height, request.steps, sampling.evaluations(request.steps))
    return (first,) if request.hires is None else _both(request, multiple, sampling, first)


def _both(request: Request, multiple: int, sampling: Sampling, first: Walk) -> tuple[Walk, Walk]:
    assert request.hires, "asked for"
    plan = hires_plan(first.width, first.height, request.hires, multiple)
    steps, asked = request.hires_steps or first.steps, 0
    if request.hires_denoise:
        total, _ = walk_of(steps, request.hires_denoise, fixed=True)
        asked = sampling.evaluations(steps, driven.Walk(total, steps))
    pictures = upscalers.find(request.hires_upscaler or LATENT).kind != "latent"
    second = Walk(plan.target_width, plan.target_height, steps, asked, encodes=EACH if pictures else "")
    return replace(first, decodes=pictures), second


def kept(device: str, model: str) -> tuple[Measurement, ...]:
    """What was measured of the model on the device; nothing, with a warning, where the file is of no use."""
    try:
        return tuple(measurements.here().rows(device, model))
    except UnknownName:  # others were measured, this one never
        return ()
    except EnvironmentProblem as problem:
        warnings.warn(str(problem), stacklevel=2)
        return ()
