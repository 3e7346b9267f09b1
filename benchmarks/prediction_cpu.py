"""One part of one case on a CPU, in this process: what is predicted of it, and what it takes. See prediction.py."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import fullsize

from safelight import planner
from safelight.measure.memory import PeakMemory
from safelight.optimizers.target import Target, target_of
from safelight.planner import Forecast, forecast
from safelight.probe import blueprint, speed
from safelight.probe.blueprint import Blueprint
from safelight.probe.device import Device, here
from safelight.run.load import pipeline
from safelight.simulate import inputs
from safelight.simulate.cost import Cost, Phase
from safelight.simulate.fake import fake
from safelight.simulate.trace import ATTENTION, KIND, Trace, record, tensors

if TYPE_CHECKING:
    from prediction import Case

LEAST_SIDE = 32  # pixels that every model here draws
SMALLER = 4  # the warm-up's picture is so many times less wide and high


@dataclass(frozen=True, slots=True)
class Setting:
    """What is run. chosen: the optimizers of the case's plan, with their options."""

    pipe: Any
    blueprint: Blueprint
    target: Target
    chosen: Sequence[forecast.Chosen]

    @property
    def scene(self) -> inputs.Scene:
        target = self.target
        return inputs.Scene(target.width, target.height, 1, target.batch_size, target.guided)

    @property
    def small(self) -> inputs.Scene:
        side = max(LEAST_SIDE, self.target.width // SMALLER)
        return replace(self.scene, width=side, height=side)


def row(case: "Case", part: str, quantities: Sequence[str]) -> dict[str, Any]:
    """{"predicted": {quantity: ...}, "measured": ..., "kinds": {kind: ...}}: bytes and seconds."""
    device = here("cpu")
    found: dict[str, Any] = {"machine": device.name, "predicted": {}, "measured": {}}
    made = setting(case, device)
    with applied(made.pipe, made):
        # first of all, while nothing of this size has been there
        found["measured"] |= {name: grown(made, part) for name in ("growth", "taken") if name in quantities}
        trace = predicted_trace(made, part)
        if {"growth", "seconds"} & set(quantities):
            phase = predicted_phase(made, part, device)
            found["predicted"] |= {"growth": phase.live, "seconds": phase.seconds}
        if "seconds" in quantities:
            found |= timed(case, made, part, phase)
            found["measured"]["seconds"] = statistics.median(found["samples"])
        if "live" in quantities:
            found["measured"]["live"] = traced(made.pipe, made, part).peak_bytes
    found["predicted"] |= {"live": trace.peak_bytes, "taken": trace.peak_bytes + trace.workspace_bytes["cpu"]}
    found["predicted"] = {name: value for name, value in found["predicted"].items() if name in quantities}
    return found


def setting(case: "Case", device: Device) -> Setting:
    full = case.model in fullsize.MODELS
    pipe = fullsize.build(case.model, case.dtype) if full else pipeline(case.model, dtype=case.dtype)[0]
    print_of = blueprint.of(pipe)
    target = target_of(pipe, device, width=case.side, height=case.side, batch_size=case.batch)
    target = replace(target, guided=print_of.guided)
    choices = planner.plan(target, planner.wish(case.plan)).choices
    return Setting(pipe, print_of, target, [(choice.optimizer, choice.options) for choice in choices])


@contextmanager
def applied(pipe: Any, made: Setting) -> Iterator[None]:
    with ExitStack() as stack:
        for optimizer, options in made.chosen:
            optimizer.enter(stack, pipe, made.target, options)
        yield


# -- predicted ---------------------------------------------------------------------------------------------------------


def predicted_trace(made: Setting, part: str) -> Trace:
    like = fake(made.blueprint, made.target.dtype)
    with like.active(), applied(like.pipe, made):
        return traced(like.pipe, made, part)


def predicted_phase(made: Setting, part: str, device: Device) -> Phase:
    """Of one call; the device is probed for it now."""
    rates = speed.measured(device, cache=None)
    cost = Forecast(made.blueprint, made.target, rates, steps=1).predicted(made.chosen)
    return cost.phase(part) if part != "denoise" else denoiser_alone(cost)


def denoiser_alone(cost: Cost) -> Phase:
    """Of all steps, without what the scheduler and guidance add to them."""
    beside = forecast.STEP_OPERATORS * cost.steps * cost.rates.launch
    return replace(cost.denoise, host=max(0.0, cost.denoise.host - beside))


# -- measured ----------------------------------------------------------------------------------------------------------


def call(pipe: Any, made: Setting, part: str, scene: inputs.Scene) -> tuple[list[Any], Callable[[], Any]]:
    """The inputs of a part, and what calls it. Real inputs are noise: zeros may be quicker, and garbage overflows."""
    import torch

    dtype = getattr(torch, made.target.dtype)
    if part == "decode":
        latents = inputs.latents(made.blueprint, scene, dtype).normal_()
        return [latents], lambda: pipe.components["vae"].decode(latents, return_dict=False)
    given = inputs.denoiser_inputs(made.blueprint, scene, dtype)
    for tensor in tensors(given):
        if tensor.is_floating_point():
            tensor.normal_()
    denoiser = pipe.components[made.blueprint.denoiser_name]
    return tensors(given), lambda: denoiser(**given, return_dict=False)


def traced(pipe: Any, made: Setting, part: str) -> Trace:
    """Not in inference mode: there the dispatcher shows operators that are made of others as one."""
    import torch

    with torch.no_grad():
        given, run = call(pipe, made, part, made.scene)
        return record(run, given)


def grown(made: Setting, part: str) -> int | None:
    """Bytes of resident memory that the first call takes at its worst moment, after a smaller picture's."""
    import torch

    with torch.inference_mode():
        call(made.pipe, made, part, made.small)[1]()
        gc.collect()
        memory = PeakMemory("cpu")
        call(made.pipe, made, part, made.scene)[1]()
        return memory.growth()


def timed(case: "Case", made: Setting, part: str, phase: Phase) -> dict[str, Any]:
    """Seconds of some calls, and of each kind of work in one more."""
    import torch

    samples = []
    with torch.inference_mode():
        _, run = call(made.pipe, made, part, made.scene)
        run()
        for _ in range(case.calls):
            started = time.perf_counter()
            run()
            samples.append(time.perf_counter() - started)
    measured = seconds_by_kind(made, part)
    kinds = {kind: [told, measured.get(kind, 0.0)] for kind, told in phase.device.items()}
    return {
        "samples": samples,
        "kinds": {**kinds, "host": [phase.host, statistics.median(samples) - sum(measured.values())]},
    }


def seconds_by_kind(made: Setting, part: str) -> dict[str, float]:
    """By the clock around each operator, views left out; what a kind here gains in calling it, "host" has less."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    found: dict[str, float] = {}

    class Timing(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            started = time.perf_counter()
            result = function(*args, **(kwargs or {}))
            took = time.perf_counter() - started
            name = function.overloadpacket.__name__
            if not function.is_view and name != "_unsafe_view":
                kind = "attention" if name.startswith(ATTENTION) else KIND.get(name, "pointwise")
                found[kind] = found.get(kind, 0.0) + took
            return result

    with torch.no_grad():
        _, run = call(made.pipe, made, part, made.scene)
        with Timing():
            run()
    return found
