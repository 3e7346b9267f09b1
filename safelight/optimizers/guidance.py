"""Classifier-free guidance: less of it, or half a batch at a time.

A guided pipeline hands the denoiser a batch of 2B: B times the negative prompt, then B times the positive one, over
the same latents. Both optimizers stand in the denoiser's `forward`; a cut call is never split, whichever of the two
was applied first.

`half` tells anything that runs inside the denoiser, such as a cache, what it sees: "both", "negative" or "positive".
Two calls of one step with different halves are different calls: a cache must not answer one with the other.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from operator import sub
from typing import Any

from safelight.errors import UsageError
from safelight.optimizers.precision import first_layer
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.steps import Steps, timestep_of
from safelight.optimizers.target import Target, denoiser
from safelight.probe.rates import KINDS
from safelight.simulate.cost import Cost

half: ContextVar[str] = ContextVar("half", default="both")

# Pipelines known to put the negative half first in one batch, and whose arguments all carry it (run, not only read)
IN_ONE_BATCH = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline")
IN_TWO_CALLS = (
    "ChromaPipeline",
    "CogView4Pipeline",
    "Flux2KleinPipeline",
    "Kandinsky5T2IPipeline",
    "Krea2Pipeline",
    "Lumina2Pipeline",
    "NucleusMoEImagePipeline",
    "OvisImagePipeline",
    "QwenImage21Pipeline",
    "QwenImagePipeline",
    "WanPipeline",
)
BY_AN_INPUT = ("FluxPipeline", "Flux2Pipeline", "LatentConsistencyModelPipeline", "SanaSprintPipeline")


def why_not_one_batch(target: Target) -> str | None:
    """None where guidance comes as one batch, or else how it comes."""
    # a subclass that brings its own __call__ may order its batch otherwise
    owner = next(cls for cls in (target.pipeline or object).__mro__ if "__call__" in vars(cls) or cls is object)
    name = owner.__name__
    if name in IN_ONE_BATCH:
        distilled = target.denoiser.config.get("time_cond_proj_dim") is not None
        return "this model takes the guidance scale as an input: it has no negative half" if distilled else None
    if name in IN_TWO_CALLS:
        return f"{name} guides in two calls of the denoiser, one for each prompt: there is no batch to halve"
    if name in BY_AN_INPUT:
        return f"{name} takes the guidance scale as an input of the model: there is no batch to halve"
    return f"how {name if owner is not object else 'this pipeline'} orders its guidance batch is not known here"


Forward = Callable[..., Any]
Around = Callable[..., Any]  # (forward, *args, **kwargs) -> output


@dataclass
class _Guide:
    """Stands for the denoiser's forward: cuts first, and splits what was not cut."""

    inner: Forward
    cut: Around | None = None
    split: Around | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = self.inner
        for around in (self.split, self.cut):
            if around is not None:
                forward = partial(around, forward)
        return forward(*args, **kwargs)


@contextmanager
def _guided(model: Any, **place: Around) -> Iterator[None]:
    """Takes a place (cut or split) in the model's forward."""
    there = model.forward
    if isinstance(there, _Guide):
        with swapped(there, **place):
            yield
    else:
        with swapped(model, forward=_Guide(there, **place)):
            yield


@contextmanager
def _sizes(model: Any) -> Iterator[list[int]]:
    """The batch sizes that the denoiser's first layer sees; whoever reads them clears them."""
    sizes: list[int] = []

    def look(_module: Any, inputs: tuple[Any, ...]) -> None:
        sizes.append(len(inputs[0]))

    hook = first_layer(model).register_forward_pre_hook(look)
    try:
        yield sizes
    finally:
        hook.remove()


@dataclass
class _Run:
    """One run: where it is, whose it is, and what was seen of it.

    own: the pipeline that the optimizer was applied to; it is the one that runs when nobody announced another.
    """

    own: Any
    steps: Steps
    announced: bool = False
    calls: int = 0  # with guidance
    saved: int = 0  # those of them that were seen to run on half a batch (at a time)
    difference: Any = None  # positive - negative prediction of the latest whole call

    def begin(self, pipe: Any) -> None:
        self.steps.begin(pipe)
        self.announced = True
        self._forget()

    def enter(self, timestep: Any) -> None:
        if self.steps.see(timestep):
            if not self.announced:
                self.steps.begin(self.own)
                self.steps.see(timestep)
                self._forget()
            self.announced = False

    def _forget(self) -> None:
        self.calls, self.saved, self.difference = 0, 0, None

    def is_guided(self, sample: Any, kwargs: dict[str, Any]) -> bool:
        """Whether this call carries both halves. SD3 calls once more with layers skipped, for the positive alone."""
        # the property reads what only a run sets: before the first one there is no guidance
        guided = getattr(self.steps.pipe, "do_classifier_free_guidance", False)
        return bool(guided) and half.get() == "both" and len(sample) % 2 == 0 and not kwargs.get("skip_layers")


def sample_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The latents among a denoiser's arguments: [batch, ...]."""
    return args[0] if args else kwargs["sample" if "sample" in kwargs else "hidden_states"]


def halved(value: Any, batch: int, which: str) -> Any:
    """An argument for one half: the rows of each tensor that carries the whole batch; everything else as it is."""
    if isinstance(value, dict):
        return {key: halved(item, batch, which) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(halved(item, batch, which) for item in value)
    if getattr(value, "ndim", 0) == 0 or len(value) != batch:
        return value
    return value[: batch // 2] if which == "negative" else value[batch // 2 :]


def mapped(change: Callable[..., Any], *outputs: Any) -> Any:
    """`change` on the tensors of denoiser outputs of one kind: tuples, diffusers outputs, or tensors."""
    first = outputs[0]
    if isinstance(first, dict):
        return type(first)(**{key: mapped(change, *(out[key] for out in outputs)) for key in first})
    if isinstance(first, tuple):
        return tuple(mapped(change, *items) for items in zip(*outputs, strict=True))
    return change(*outputs)


def joined(negative: Any, positive: Any) -> Any:
    """The outputs of the two halves as that of one whole batch."""
    import torch

    return mapped(lambda *halves: torch.cat(halves), negative, positive)


def call_half(forward: Forward, which: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    batch = len(sample_of(args, kwargs))
    token = half.set(which)
    try:
        return forward(*halved(args, batch, which), **halved(kwargs, batch, which))
    finally:
        half.reset(token)


def first_cut(fraction: float, total: int) -> int:
    """The index of the first step without guidance. The first step of a run always has it."""
    return max(1, math.ceil(fraction * total - 1e-9))  # 0.55 * 20 is a little above 11


def _cutoff_fits(target: Target, fraction: float, reuse: bool) -> str | None:
    if not 0 < fraction <= 0.95:
        raise UsageError(f"guidance-cutoff={fraction}: give a share of the steps above 0, to 0.95")
    return why_not_one_batch(target)


def _cutoff_predict(cost: Cost, target: Target, fraction: float, reuse: bool) -> Cost:
    """Half of the arithmetic in the rest of the steps, and as many calls of operators. Processor seconds, firstlight at
    256 px, 20 steps, shared cores: 0.72 to 0.75 at 0.4, 0.79 to 0.95 at 0.6; at 64 px next to nothing is saved."""
    if not target.guided:
        return cost
    whole = min(cost.steps, first_cut(fraction, cost.steps))
    return cost.kinds(["denoise"], **dict.fromkeys(KINDS, (1 + whole / cost.steps) / 2))


@optimizer(
    stage=Stage.GUIDANCE,
    slot="guidance-cutoff",
    fidelity=Fidelity.APPROXIMATE,
    source="https://arxiv.org/abs/2404.07724",
    fits=_cutoff_fits,
    predict=_cutoff_predict,
)
def guidance_cutoff(pipe: Any, target: Target, fraction: float = 0.6, reuse: bool = False) -> Iterator[Proof]:
    """Guide only in this share of the steps, the first ones; the rest run on the positive prompt alone.

    reuse: what the last guided step added (positive - negative prediction) is added in the rest, too, after the idea
    of FasterCache (arXiv 2410.19355): on firstlight 1.6 to 3.2 dB nearer to the plain picture at 0.6.
    With guidance_rescale a cut step is rescaled by one, to rounding.
    """
    model, run = denoiser(pipe), _Run(pipe, Steps(pipe))
    steps = next(n for n in range(2, 100) if first_cut(fraction, n) < n)
    with _sizes(model) as sizes, _guided(model, cut=partial(_cut, run, sizes, fraction, reuse)):
        yield Proof(lambda: _cut_off(run), steps=steps, begin=run.begin)


def _cut(run: _Run, sizes: list[int], fraction: float, reuse: bool, forward: Forward, *args: Any, **kwargs: Any) -> Any:
    run.enter(timestep_of(args, kwargs))
    sizes.clear()
    sample = sample_of(args, kwargs)
    if not run.is_guided(sample, kwargs):
        return forward(*args, **kwargs)
    run.calls += 1
    if not is_past(run, fraction, sample) or (reuse and run.difference is None):
        out = forward(*args, **kwargs)
        run.difference = mapped(_difference, out) if reuse else None
        return out
    positive = call_half(forward, "positive", args, kwargs)
    run.saved += 0 < sum(sizes) <= len(sample) // 2
    return joined(mapped(sub, positive, run.difference) if reuse else positive, positive)


def is_past(run: _Run, fraction: float, sample: Any) -> bool:
    """Whether the step under way needs no guidance. Only over two equal halves: else the batch is not a guided one."""
    import torch

    return run.steps.index >= first_cut(fraction, run.steps.total) and torch.equal(*sample.chunk(2))


def _difference(out: Any) -> Any:
    negative, positive = out.chunk(2)
    return positive - negative


def _cut_off(run: _Run) -> str:
    return f"{run.saved} of {run.calls} guided calls ran without their negative half" if run.saved else ""


def _split_predict(cost: Cost, target: Target) -> Cost:
    """Every activation of a step carries the batch. Of two calls each has half of the arithmetic and all operators."""
    if not target.guided:
        return cost
    return cost.changed("denoise", live=cost.denoise.live // 2, host=cost.denoise.host * 2)


@optimizer(
    stage=Stage.GUIDANCE,
    slot="guidance-batch",
    fidelity=Fidelity.ROUNDING,
    source="https://arxiv.org/abs/2207.12598",
    fits=why_not_one_batch,
    predict=_split_predict,
)
def guidance_split(pipe: Any, target: Target) -> Iterator[Proof]:
    """Run the two halves of guidance one after the other: a step needs the memory of one."""
    model, run = denoiser(pipe), _Run(pipe, Steps(pipe))
    with _sizes(model) as sizes, _guided(model, split=partial(_split, run, sizes)):
        yield Proof(lambda: _halves(run), begin=run.begin)


def _split(run: _Run, sizes: list[int], forward: Forward, *args: Any, **kwargs: Any) -> Any:
    run.enter(timestep_of(args, kwargs))
    sizes.clear()
    sample = sample_of(args, kwargs)
    if not run.is_guided(sample, kwargs):
        return forward(*args, **kwargs)
    run.calls += 1
    out = in_two_calls(forward, args, kwargs)
    run.saved += 0 < max(sizes, default=0) <= len(sample) // 2
    return out


def in_two_calls(forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return joined(*(call_half(forward, which, args, kwargs) for which in ("negative", "positive")))


def _halves(run: _Run) -> str:
    return f"{run.saved} of {run.calls} guided batches ran in two halves" if run.saved else ""
