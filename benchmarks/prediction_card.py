"""Both parts of one case on a card, in this process: what is predicted of them, and what they take. See prediction.py.

The pipeline is run by a session with the case's plan, so that offloading and streaming do what they do for everyone.
Events stand around each call of the denoiser and of the decoder.
"""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import prediction_cpu
from gpu_truth_worker import build

from safelight.optimizers.registry import swapped
from safelight.optimizers.target import denoiser
from safelight.planner import Forecast, wish
from safelight.probe import blueprint, speed
from safelight.probe.device import Device, here
from safelight.session import Session
from safelight.simulate.cost import Cost

if TYPE_CHECKING:
    from prediction import Case

STEPS = 4  # of a run
PROMPT, SEED = "a lighthouse on a cliff, 3d", 1


@dataclass
class Meter:
    """Of one part in one run: events around each call, and the most bytes allocated in one."""

    calls: list[tuple[Any, Any]] = field(default_factory=list)
    peak_bytes: int = 0

    def begin(self) -> None:
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.calls.append((start, end))
        torch.cuda.reset_peak_memory_stats()
        start.record()

    def end(self) -> None:
        import torch

        self.calls[-1][1].record()
        self.peak_bytes = max(self.peak_bytes, torch.cuda.max_memory_allocated())

    @property
    def seconds(self) -> float:
        """Of all calls; waits for them."""
        import torch

        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in self.calls) / 1000


def rows(case: "Case", device_name: str) -> dict[str, Any]:
    device = here(device_name)
    pipe = build(case.model, case.dtype, "cpu")
    size = {"width": case.side, "height": case.side, "batch_size": case.batch}
    runs: list[dict[str, Meter]] = []
    with Session(pipe, device, wish(case.plan), **size) as session:
        cost = predicted(session, device)
        for _ in range(1 + case.calls):  # the first warms up
            with metered(session.pipe) as meters:
                session.generate(PROMPT, seed=SEED, steps=STEPS, count=case.batch, **size)
            runs.append(meters)
        told = {"denoise": prediction_cpu.denoiser_alone(cost).times(1 / STEPS), "decode": cost.decode}
        return {part: row(device, told[part], [one[part] for one in runs[1:]], part) for part in told}


def row(device: Device, told: Any, meters: list[Meter], part: str) -> dict[str, Any]:
    samples = [meter.seconds / (STEPS if part == "denoise" else 1) for meter in meters]
    return {
        "machine": device.name,
        "predicted": {"peak": told.peak_bytes, "seconds": told.seconds},
        "measured": {"peak": max(meter.peak_bytes for meter in meters), "seconds": statistics.median(samples)},
        "samples": samples,
        "kinds": {},
    }


def predicted(session: Session, device: Device) -> Cost:
    print_of = blueprint.of(session.pipe)
    target = replace(session.target, guided=print_of.guided)
    chosen = [(choice.optimizer, choice.options) for choice in session.plan.choices]
    return Forecast(print_of, target, speed.measured(device, cache=None), STEPS).predicted(chosen)


@contextmanager
def metered(pipe: Any) -> Iterator[dict[str, Meter]]:
    meters = {"denoise": Meter(), "decode": Meter()}
    decode = pipe.vae.decode

    def metered_decode(*args: Any, **kwargs: Any) -> Any:
        meters["decode"].begin()
        made = decode(*args, **kwargs)
        meters["decode"].end()
        return made

    model = denoiser(pipe)
    hooks = [
        model.register_forward_pre_hook(lambda *_: meters["denoise"].begin()),
        model.register_forward_hook(lambda *_: meters["denoise"].end()),
    ]
    try:
        with swapped(pipe.vae, decode=metered_decode):
            yield meters
    finally:
        for hook in hooks:
            hook.remove()
