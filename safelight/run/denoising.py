"""One walk from noise to latents: what a pipeline is called with, and the noise that it and its sampler get.

Comes in: a pipeline, a scheduler, seeds, perhaps latents to begin from. Goes out: latents as the pipeline has them.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safelight.errors import DoesNotApply
from safelight.measure.clock import Clock
from safelight.optimizers.registry import swapped
from safelight.optimizers.target import denoiser
from safelight.optimizers.upcast import Float32Latents
from safelight.run.decoding import to_images, unpacked
from safelight.run.preview import Previews
from safelight.sampling import predicted
from safelight.sampling.driven import DrivenScheduler, Inpaint
from safelight.sampling.noise import Noise

if TYPE_CHECKING:
    from torch import Generator, Tensor

Progress = Callable[[str, int, int], None]  # (stage, done, of how many), called from the run's own thread


@dataclass(frozen=True, slots=True)
class Words:
    """What the model is told. arguments: of the pipeline. at: what the callback of an evaluation changes, or None.

    around: holds for the run, such as a denoiser that sees several prompts.
    """

    arguments: Mapping[str, Any]
    at: Callable[[int], Mapping[str, Any] | None] = lambda index: None
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True, slots=True)
class Pass:
    """height, width: of the picture in pixels. steps: that the pipeline is asked for.

    clean: scaled latents to begin from, (batch, channels, latent_height, latent_width) in float32, or None for noise
    alone. inpaint: in the same layout. guidance: None where the pipeline takes none.
    """

    height: int
    width: int
    steps: int
    guidance: float | None
    seeds: tuple[int, ...]
    clean: "Tensor | None" = None
    inpaint: Inpaint | None = None


@dataclass(frozen=True, slots=True)
class Watch:
    """What looks on. stage: the clock's and the progress's name of the walk."""

    clock: Clock = field(default_factory=Clock)
    progress: Progress = lambda stage, done, total: None
    preview: Previews | None = None
    stage: str = "denoise"


def denoise(pipe: Any, task: Pass, words: Words, scheduler: Any, noise: Noise, watch: Watch) -> "Tensor":
    """Latents as the pipeline has them, packed or not."""
    import torch

    with ExitStack() as stack:
        seen = stack.enter_context(predicted.watched(scheduler)) if watch.preview else []
        hook = denoiser(pipe).register_forward_pre_hook(lambda *_: _first_step(watch, scheduler))
        stack.callback(hook.remove)
        if isinstance(scheduler, DrivenScheduler) and scheduler.sampler.unguided:
            stack.callback(denoiser(pipe).register_forward_hook(_heard_by(scheduler)).remove)
        stack.enter_context(swapped(pipe, scheduler=scheduler))
        # on the CPU: noise depends neither on its place in a batch nor on the device
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in task.seeds]
        stack.enter_context(_prepared(pipe, task, scheduler, noise, generators))
        stack.enter_context(words.around())
        stack.enter_context(torch.inference_mode())
        watch.clock.switch("text")
        watch.progress("text", 0, 1)
        callback = _step_done(task, words, scheduler, watch, seen)
        return pipe(**_arguments(task, words), generator=generators, callback_on_step_end=callback).images


def _first_step(watch: Watch, scheduler: Any) -> None:
    if watch.clock.stage == "text":
        watch.clock.switch(watch.stage)
        watch.progress("text", 1, 1)
        watch.progress(watch.stage, 0, len(scheduler.timesteps))


def _heard_by(scheduler: DrivenScheduler) -> Callable[..., None]:
    def hear(module: Any, args: Any, output: Any) -> None:
        scheduler.hear(output[0])  # of a tuple, and of diffusers' outputs alike

    return hear


def _step_done(task: Pass, words: Words, scheduler: Any, watch: Watch, seen: list[predicted.Step]) -> Any:
    def step_done(own: Any, step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        total = len(scheduler.timesteps)
        watch.progress(watch.stage, min(step + 1, total), total)
        if watch.preview and watch.preview.due(step):
            watch.clock.switch("preview")
            latents = unpacked(own, predicted.clean(scheduler, seen[0]), task.height, task.width)
            watch.preview.show(step + 1, to_images(watch.preview.decode(latents).float()))
            watch.clock.switch(watch.stage)
        return {**values, **(words.at(step) or {})}

    return step_done


def _arguments(task: Pass, words: Words) -> dict[str, Any]:
    """What the pipeline is called with."""
    arguments: dict[str, Any] = {
        **words.arguments,
        "width": task.width,
        "height": task.height,
        "num_inference_steps": task.steps,
        "output_type": "latent",
    }
    if task.guidance is not None:
        arguments["guidance_scale"] = task.guidance
    return arguments


@dataclass(frozen=True, slots=True)
class Layout:
    """How a pipeline's latents lie. shape: (channels, latent_height, latent_width) before they are packed."""

    shape: tuple[int, int, int]
    packed: Callable[["Tensor"], "Tensor"]

    @classmethod
    def of(cls, pipe: Any, bound: Mapping[str, Any]) -> "Layout | None":
        """bound: arguments of prepare_latents. None for a pipeline whose latents lie in a way of their own."""
        if not {"num_channels_latents", "height", "width", "latents"} <= bound.keys():
            return None
        channels, factor = bound["num_channels_latents"], pipe.vae_scale_factor
        high, wide = int(bound["height"]) // factor, int(bound["width"]) // factor
        if not hasattr(pipe, "_pack_latents"):
            return cls((channels, high, wide), lambda latents: latents)
        if list(inspect.signature(pipe._pack_latents).parameters)[1:] != PACKED_BY:
            return None
        high, wide = high // 2 * 2, wide // 2 * 2
        return cls((channels, high, wide), lambda x: pipe._pack_latents(x, len(x), channels, high, wide))


PACKED_BY = ["batch_size", "num_channels_latents", "height", "width"]  # as FLUX does


@contextmanager
def _prepared(pipe: Any, task: Pass, scheduler: Any, noise: Noise, generators: "list[Generator]") -> Iterator[None]:
    """The first latents in float32, then rounded, as drawn in bfloat16 the same seed gives other noise.

    For a sampler of ours they are ours; one of diffusers goes on with the generators, and they are the pipeline's.
    """
    import torch

    prepare = pipe.prepare_latents
    kept_float32 = isinstance(prepare, Float32Latents)  # an optimizer keeps them in float32: nothing is to be rounded
    signature = prepare.signature if kept_float32 else inspect.signature(prepare)

    def prepare_ours(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        wanted, bound.arguments["dtype"] = bound.arguments["dtype"], torch.float32
        if isinstance(scheduler, DrivenScheduler):
            _begin(pipe, task, scheduler, noise, bound.arguments)
        made = prepare(*bound.args, **bound.kwargs)
        latents = made[0] if isinstance(made, tuple) else made
        if isinstance(scheduler, DrivenScheduler) and scheduler.noise is None:
            scheduler.noise = _drawn_like(latents, generators)
        latents = latents if kept_float32 else latents.to(wanted)
        return (latents, *made[1:]) if isinstance(made, tuple) else latents

    with swapped(pipe, prepare_latents=prepare_ours):
        yield


def _begin(pipe: Any, task: Pass, scheduler: DrivenScheduler, noise: Noise, arguments: dict[str, Any]) -> None:
    """Puts the first latents among the arguments of prepare_latents, and gives the sampler its noise."""
    layout, device = Layout.of(pipe, arguments), arguments["device"]
    if layout is None:
        if noise.is_special or task.clean is not None:
            raise DoesNotApply(f"{type(pipe).__name__} lays its latents out in a way of its own: only plain noise fits")
        return
    first = noise.first(layout.shape)
    scheduler.noise = _steps_noise(noise, layout, device)
    scheduler.inpaint = task.inpaint and _packed(task.inpaint, layout, device)
    if task.clean is not None:
        _know_sigmas(scheduler, task, layout)
        first = scheduler.noised(task.clean.to(first.device), first)
    arguments["latents"] = layout.packed(first).to(device)


def _drawn_like(latents: "Tensor", generators: "list[Generator]") -> Any:
    """For a pipeline with a layout of its own: noise of that layout, from the generators of its first."""
    import torch

    def draw(sigma: float, later: float) -> "Tensor":
        drawn = [torch.randn(latents.shape[1:], generator=generator) for generator in generators]
        return torch.stack(drawn).to(latents.device)

    return lambda sigmas: draw


def _packed(inpaint: Inpaint, layout: Layout, device: Any) -> Inpaint:
    mask = inpaint.mask.expand_as(inpaint.clean)
    return Inpaint(layout.packed(inpaint.clean).to(device), layout.packed(mask).to(device))


def _steps_noise(noise: Noise, layout: Layout, device: Any) -> Any:
    """What a sampler is given: for a Brownian tree it says between which sigmas it walks."""

    def between(sigmas: list[float] | None) -> Callable[[float, float], "Tensor"]:
        if sigmas is None:
            return lambda sigma, later: layout.packed(noise.next()).to(device)
        least, most = min(sigma for sigma in sigmas if sigma > 0), max(sigmas)
        tree = noise.brownian(layout.shape, least, most)
        return lambda sigma, later: layout.packed(tree(sigma, later)).to(device)

    return between


def _know_sigmas(scheduler: DrivenScheduler, task: Pass, layout: Layout) -> None:
    """FLUX asks for its first latents before it sets the schedule, whose shift depends on the size."""
    import numpy

    if scheduler.sigmas is not None:
        return
    mu = None
    if scheduler.config.get("use_dynamic_shifting"):
        mu = _shift(scheduler.config, layout.shape[1] // 2 * (layout.shape[2] // 2))
    scheduler.set_timesteps(sigmas=numpy.linspace(1.0, 1 / task.steps, task.steps), mu=mu)


def _shift(config: Mapping[str, Any], tokens: int) -> float:
    """diffusers' calculate_shift, which every pipeline of a model with dynamic shifting has a copy of."""
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return low + (high - low) / (most - least) * (tokens - least)
