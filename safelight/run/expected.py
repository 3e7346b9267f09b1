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
from safelight.probe import blueprint as blueprints
from safelight.probe import speed
from safelight.request import Request
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
        """Of one batch of a settled request; None for a model that cannot be predicted.

        Takes a second or two for a large model, the first time that a shape is asked for.
        """
        shape = _shape(request)
        try:
            if shape not in self._shapes:
                self._shapes[shape] = _for(shape, self.made())
            return self._shapes[shape].cost(chosen)
        except CannotPredict:
            return None

    def keep(
        self, request: Request, chosen: Sequence[Chosen], seconds: Mapping[str, float], peak_bytes: int | None
    ) -> None:
        """seconds: of all batches of the run, by stage (measure/clock.py). peak_bytes: of a card's tensors.

        Kept is what a prediction was asked of, and is of: whole batches, one call of the denoiser for each step.
        """
        forecast = self._shapes.get(_shape(request))
        whole = request.count % min(request.batch_size, request.count) == 0
        if not self.remember or forecast is None or not whole or getattr(self.pipe.scheduler, "order", 1) != 1:
            return
        batches = request.count // min(request.batch_size, request.count)
        if self.target.device.kind == "cpu":
            peak_bytes = self._peak_on_cpu(forecast, chosen)
        measurements.here().add(measured(forecast, chosen, seconds, batches, peak_bytes))

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

    width: int
    height: int
    batch_size: int
    guided: bool
    steps: int


def _shape(request: Request) -> Shape:
    guided = request.guidance is None or request.guidance > 1
    assert request.width and request.height and request.steps, "the request is settled"
    return Shape(request.width, request.height, min(request.batch_size, request.count), guided, request.steps)


def _for(shape: Shape, forecast: Forecast) -> Forecast:
    """The forecast for pictures of another shape; the same one where it is of this shape."""
    target = replace(
        forecast.target,
        width=shape.width,
        height=shape.height,
        batch_size=shape.batch_size,
        guided=shape.guided,
    )
    if (target, shape.steps) == (forecast.target, forecast.steps):
        return forecast
    return Forecast(forecast.blueprint, target, forecast.rates, shape.steps, forecast.measurements)


def kept(device: str, model: str) -> tuple[Measurement, ...]:
    """What was measured of the model on the device; nothing, with a warning, where the file is of no use."""
    try:
        return tuple(measurements.here().rows(device, model))
    except UnknownName:  # others were measured, this one never
        return ()
    except EnvironmentProblem as problem:
        warnings.warn(str(problem), stacklevel=2)
        return ()
