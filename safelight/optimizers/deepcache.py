"""Deep features of a UNet change slowly from step to step: most steps need only its outermost blocks.

After DeepCache (Ma, Fang and Wang 2023, arXiv 2312.00858), by wrapping the blocks' forward, without copying a UNet's.
On a full step the feature that enters the outermost up blocks is kept. On the steps between, the deeper blocks are not
run; the feature is the kept one, or what the last two of them make of it by a straight line through their timesteps.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from safelight.errors import UsageError
from safelight.optimizers.guidance import half
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.steps import Steps
from safelight.optimizers.target import Target, denoiser
from safelight.simulate.cost import Cost

RANGES = {"interval": (2, 100), "warmup": (1, 1000), "order": (0, 1)}


# Of a whole step, for each level that is run: measured 2.05 times per step at interval 3 with 9 of 20 steps whole
# (benchmarks/optimizers_cpu_2026-11-21.md), published 2.3 times at interval 3 with 18 of 50 (arXiv 2312.00858, table 1)
SHALLOW = 0.1


def _predict(cost: Cost, target: Target, interval: int, warmup: int, depth: int, order: int) -> Cost:
    whole = min(cost.steps, warmup + math.ceil(max(0, cost.steps - warmup) / interval))
    return cost.scaled(denoise=(whole + (cost.steps - whole) * min(1.0, SHALLOW * depth)) / cost.steps)


def _fits(target: Target, depth: int, **options: int) -> str | None:
    levels = len(target.denoiser.config.get("down_block_types", ()))
    for name, value in options.items():
        least, most = RANGES[name]
        if not least <= value <= most:
            raise UsageError(f"deep-cache.{name} is {value}: give {least} to {most}")
    if target.denoiser.cls.__name__ != "UNet2DConditionModel":
        return f"{target.denoiser.cls.__name__} has no levels to skip: first-block-cache is for transformers"
    if not 1 <= depth < levels:
        raise UsageError(f"deep-cache.depth is {depth}: this UNet has {levels} levels, give 1 to {levels - 1}")
    return None


@dataclass
class _Feature:
    """What entered the outermost up blocks on the latest full steps: (timestep, tensor), newest last."""

    order: int
    seen: list[tuple[float, Any]] = field(default_factory=list)

    def keep(self, time: float, feature: Any) -> None:
        self.seen = [*self.seen[-self.order :], (time, feature)] if self.order else [(time, feature)]

    def at(self, time: float) -> Any:
        """The newest, moved on along the line through the last two."""
        (then, old), (now, new) = self.seen[0], self.seen[-1]
        if then == now:
            return new
        return new + (new - old) * ((time - now) / (now - then))


@dataclass
class _Run:
    """One run's state. A feature belongs to one kind of call: batches differ, guidance may take two calls a step.

    What the blocks read of it is set before the denoiser is called, and what they write is one tensor: a compiler that
    sees them guards on `reuse` and `size` alone, and makes a graph of the full call and one of the other.
    """

    steps: Steps
    interval: int
    warmup: int
    order: int
    features: dict[tuple[Any, ...], _Feature] = field(default_factory=dict)
    key: tuple[Any, ...] = ()  # of the call under way: the shape, the half of guidance, and which call of its step
    reuse: bool = False
    size: tuple[int, int] = (0, 0)  # of the latents: (height, width)
    kept: Any = None  # the feature, for a call that does not make it
    made: Any = None  # the feature, by a call that did
    ran: int = 0
    skipped: int = 0

    def begin(self, pipe: Any) -> None:
        self.steps.begin(pipe)
        self.forget()

    def forget(self) -> None:
        self.features, self.key, self.kept, self.ran, self.skipped = {}, (), None, 0, 0

    def enter(self, sample: Any, timestep: Any) -> None:
        """Decides whether this call is a full one."""
        before = self.steps.index
        if self.steps.see(timestep):
            self.forget()
        call = self.key[-1] + 1 if self.key and self.steps.index == before else 0
        self.key = (tuple(sample.shape), half.get(), call)
        since = self.steps.index - (self.warmup - 1)  # the last step of the warm-up begins the first interval
        self.reuse = self.key in self.features and since > 0 and since % self.interval != 0
        self.size = tuple(sample.shape[-2:])
        self.kept = self.features[self.key].at(self.steps.time) if self.reuse else None
        self.made = None

    def leave(self, blocks: int) -> None:
        """blocks: how many deeper ones there are. That they ran shows in the feature that the last one made."""
        if self.made is None:
            self.skipped += blocks
            return
        self.ran += blocks
        self.features.setdefault(self.key, _Feature(self.order)).keep(self.steps.time, self.made)

    def said(self) -> str:
        return f"skipped {self.skipped} of {self.skipped + self.ran} calls of the deeper blocks" if self.skipped else ""


# The run whose denoiser is being called in this thread. Reached through its own module, a tensor of it would count as a
# weight, which a compiler that freezes weights compiles in: a new graph for every kept feature (torch 2.13).
_under_way = threading.local()


def _sometimes(block: Any, level: int | None = None, is_last: bool = False) -> Callable[..., Any]:
    """The forward of a deeper block, run on full calls alone. level: of a down block; is_last: of the up blocks."""
    forward = block.forward

    def forward_or_not(*args: Any, **kwargs: Any) -> Any:
        run = _under_way.run
        if not run.reuse:
            made = forward(*args, **kwargs)
            if is_last:
                run.made = made
            return made
        if is_last:
            return run.kept
        sample = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        return sample if level is None else (sample, _residuals(block, level, run.size, sample))

    return forward_or_not


def _residuals(block: Any, level: int, size: tuple[int, int], sample: Any) -> tuple[Any, ...]:
    """Stand-ins of one number each: the UNet counts the residuals, and asks their sizes, before up blocks drop them.

    Each downsampling halves and rounds up, or down without padding.
    """

    def at(level: int) -> Any:
        height, width = (-(-side // 2**level) if block_pads else side // 2**level for side in size)
        return sample.new_empty(1).expand(sample.shape[0], 1, height, width)

    downsamplers = block.downsamplers or ()
    block_pads = all(layer.padding for layer in downsamplers)
    return (*(at(level) for _ in block.resnets), *(at(level + 1) for _ in downsamplers))


@optimizer(
    stage=Stage.CACHE,
    slot="step-cache",
    fidelity=Fidelity.APPROXIMATE,
    source="https://arxiv.org/abs/2312.00858",
    fits=_fits,
    predict=_predict,
    variants=lambda cost, target: [{}, {"interval": 5}],
)
def deep_cache(
    pipe: Any, target: Target, interval: int = 3, warmup: int = 3, depth: int = 1, order: int = 0
) -> Iterator[Proof]:
    """Run the deeper blocks of a UNet every interval-th step only, and reuse what they gave between.

    interval: 2 and more. warmup: first steps that are run whole: they lay the picture out, and skipping among them
    costs most (docs/experiments.md). depth: outermost levels that always run, 1 to levels - 1. order: 0 repeats the
    kept feature, 1 extrapolates from the last two, which is better at interval 2 only.
    """
    unet = denoiser(pipe)
    forward = unet.forward
    run = _Run(Steps(pipe), interval, warmup, order)
    ups = list(unet.up_blocks[:-depth])
    wrapped = [(block, _sometimes(block, level)) for level, block in enumerate(unet.down_blocks) if level >= depth]
    wrapped += [(unet.mid_block, _sometimes(unet.mid_block))] if unet.mid_block is not None else []
    wrapped += [(block, _sometimes(block, is_last=block is ups[-1])) for block in ups]

    def forward_with_cache(sample: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        run.enter(sample, timestep)
        _under_way.run = run
        predicted = forward(sample, timestep, *args, **kwargs)
        run.leave(len(wrapped))
        return predicted

    with ExitStack() as stack:
        for block, sometimes in wrapped:
            stack.enter_context(swapped(block, forward=sometimes))
        stack.enter_context(swapped(unet, forward=forward_with_cache))
        yield Proof(run.said, steps=warmup + 2, begin=run.begin)
