"""Deep features of a UNet change slowly from step to step: most steps need only its outermost blocks.

After DeepCache (Ma, Fang and Wang 2023, arXiv 2312.00858), by wrapping the blocks' forward, without copying a UNet's.
On a full step the feature that enters the outermost up blocks is kept. On the steps between, the deeper blocks are not
run; the feature is the kept one, or what the last two of them make of it by a straight line through their timesteps.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from safelight.errors import UsageError
from safelight.optimizers.guidance import half
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.steps import Steps
from safelight.optimizers.target import Target, denoiser

RANGES = {"interval": (2, 100), "warmup": (1, 1000), "order": (0, 1)}


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
    """One run's state. A feature belongs to one kind of call: batches differ, guidance may take two calls a step."""

    steps: Steps
    interval: int
    warmup: int
    order: int
    features: dict[tuple[Any, ...], _Feature] = field(default_factory=dict)
    key: tuple[Any, ...] = ()  # of the call under way: the shape, the half of guidance, and which call of its step
    reuse: bool = False
    ran: int = 0
    skipped: int = 0

    def begin(self, pipe: Any) -> None:
        self.steps.begin(pipe)
        self.forget()

    def forget(self) -> None:
        self.features, self.key, self.ran, self.skipped = {}, (), 0, 0

    def enter(self, sample: Any, timestep: Any) -> None:
        """Decides whether this call is a full one."""
        before = self.steps.index
        if self.steps.see(timestep):
            self.forget()
        call = self.key[-1] + 1 if self.key and self.steps.index == before else 0
        self.key = (tuple(sample.shape), half.get(), call)
        since = self.steps.index - (self.warmup - 1)  # the last step of the warm-up begins the first interval
        self.reuse = self.key in self.features and since > 0 and since % self.interval != 0

    def keep(self, feature: Any) -> None:
        self.features.setdefault(self.key, _Feature(self.order)).keep(self.steps.time, feature)

    def kept(self) -> Any:
        return self.features[self.key].at(self.steps.time)

    def said(self) -> str:
        return f"skipped {self.skipped} of {self.skipped + self.ran} calls of the deeper blocks" if self.skipped else ""


def _sometimes(run: _Run, block: Any, kind: str) -> Callable[..., Any]:
    """The forward of a deeper block, run on full calls alone. kind: "down", "mid", "up", or "last" of the ups."""
    import torch

    forward = block.forward
    shapes: dict[tuple[Any, ...], Any] = {}

    def forward_or_not(*args: Any, **kwargs: Any) -> Any:
        if not run.reuse:
            run.ran += 1
            made = forward(*args, **kwargs)
            if kind == "last":
                run.keep(made)
            elif kind == "down":
                shapes[run.key] = tuple(torch.empty(x.shape, device="meta") for x in made[1])
            return made
        run.skipped += 1
        if kind == "last":
            return run.kept()
        sample = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        # the UNet counts the residuals of a down block, and may ask their shapes, before the up blocks drop them
        return (sample, shapes[run.key]) if kind == "down" else sample

    return forward_or_not


@optimizer(
    stage=Stage.CACHE,
    slot="step-cache",
    fidelity=Fidelity.APPROXIMATE,
    source="https://arxiv.org/abs/2312.00858",
    fits=_fits,
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
    deeper = [(block, "down") for block in unet.down_blocks[depth:]] + [(unet.mid_block, "mid")]
    ups = list(unet.up_blocks[:-depth])
    deeper += [(block, "last" if block is ups[-1] else "up") for block in ups]

    def forward_with_cache(sample: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        run.enter(sample, timestep)
        return forward(sample, timestep, *args, **kwargs)

    with ExitStack() as stack:
        for block, kind in deeper:
            if block is not None:
                stack.enter_context(swapped(block, forward=_sometimes(run, block, kind)))
        stack.enter_context(swapped(unet, forward=forward_with_cache))
        yield Proof(run.said, steps=warmup + 2, begin=run.begin)
