"""One part computes in another number format than the rest: the VAE, or the scheduler's arithmetic."""

import inspect
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import wraps
from typing import Any

from safelight.optimizers.precision import (
    NO_VAE,
    OVERFLOWS,
    SLOW_FLOAT16,
    cast,
    chosen_dtype,
    floats_to,
    kept_tensors,
    name_of,
    overflows,
    vae_door,
    watched,
)
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.target import Target
from safelight.optimizers.target import denoiser as denoiser_of


def _upcast_vae_fits(target: Target) -> str | None:
    if target.vae is None:
        return NO_VAE
    return "everything is in float32 already" if target.dtype == "float32" else None


# after `dtype`, which sets the VAE as well
@optimizer(
    stage=Stage.LAYOUT,
    slot="vae-dtype",
    fidelity=Fidelity.ROUNDING,
    source="https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Command-Line-Arguments-and-Settings",
    fits=_upcast_vae_fits,
    traced=("vae",),
)
def upcast_vae(pipe: Any, target: Target) -> Iterator[Proof]:
    """Decode in float32 while the rest computes in 16 bits: nothing overflows to black or NaN.

    Bits that the weights lost when they were loaded in 16 bits do not come back; the range of what is computed does.
    """
    yield from _vae_in(pipe, target, "float32")


def _half_vae_fits(target: Target, value: str) -> str | None:
    name = chosen_dtype(target.device, value)
    if target.vae is None:
        return NO_VAE
    if name == "float32":
        if value == "auto":
            return f"{target.device.name} has no 16 bit format that is faster than float32"
        return "float32 is no half of it: upcast-vae decodes in float32"
    if name == "float16" and target.device.kind == "cpu":
        return SLOW_FLOAT16
    if name == "float16" and overflows(target):
        return OVERFLOWS
    if target.dtype != "float32" and not overflows(target):
        return f"everything is in {target.dtype} already"
    return None


@optimizer(
    stage=Stage.LAYOUT,
    slot="vae-dtype",
    fidelity=Fidelity.ROUNDING,
    source="https://huggingface.co/madebyollin/sdxl-vae-fp16-fix",
    fits=_half_vae_fits,
    traced=("vae",),
)
def half_vae(pipe: Any, target: Target, value: str = "auto") -> Iterator[Proof]:
    """Decode in 16 bits while the rest computes in float32, or where a VAE would be upcast at each decode."""
    yield from _vae_in(pipe, target, chosen_dtype(target.device, value))


def _vae_in(pipe: Any, target: Target, name: str) -> Iterator[Proof]:
    import torch

    with ExitStack() as stack:
        if not target.disposable:
            stack.enter_context(kept_tensors(pipe, "vae"))
        cast(pipe.vae, getattr(torch, name))
        stack.enter_context(vae_door(pipe))
        seen = stack.enter_context(watched(pipe, ("vae",)))
        yield Proof(lambda: seen.said({"vae": name}), begin=seen.begin)


def _upcast_sampling_fits(target: Target) -> str | None:
    if target.dtype == "float32":
        return "the denoiser computes in float32, and the scheduler with it"
    return None


class Float32Latents:
    """A pipeline's prepare_latents that gives float32, whatever dtype it is asked for."""

    def __init__(self, pipe: Any) -> None:
        self.prepare = type(pipe).prepare_latents.__get__(pipe)  # its own: it scales by its own scheduler's first sigma
        self.signature = inspect.signature(self.prepare)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import torch

        bound = self.signature.bind(*args, **kwargs)
        bound.arguments["dtype"] = torch.float32
        return self.prepare(*bound.args, **bound.kwargs)


@optimizer(
    stage=Stage.PRECISION,
    fidelity=Fidelity.ROUNDING,
    source="https://github.com/AUTOMATIC1111/stable-diffusion-webui/pull/6510",
    fits=_upcast_sampling_fits,
    # nothing to predict: the denoiser computes as before, and latents are small
)
def upcast_sampling(pipe: Any, target: Target) -> Iterator[Proof]:
    """Keep latents and the scheduler's arithmetic in float32, while the denoiser computes in 16 bits."""
    model = denoiser_of(pipe)
    forward = model.forward
    signature = inspect.signature(forward)
    seen: Counter[tuple[str, str]] = Counter()  # (dtype of the latents that come, dtype that is computed in)

    @wraps(forward)
    def forward_at_the_door(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        came = next(iter(given.arguments.values())).dtype
        given.arguments.update(floats_to(given.arguments, next(model.parameters()).dtype))
        made = forward(*given.args, **given.kwargs)
        seen[name_of(came), name_of(_first_tensor(made).dtype)] += 1
        return raised(made)

    def begin(run: Any) -> None:
        seen.clear()
        if run is not pipe:  # a request's own object, which goes with it
            vars(run)["prepare_latents"] = Float32Latents(run)

    with ExitStack() as stack:
        stack.enter_context(swapped(model, forward=forward_at_the_door))
        stack.enter_context(swapped(pipe, prepare_latents=Float32Latents(pipe)))
        if target.vae is not None:
            stack.enter_context(vae_door(pipe))  # where the pipeline decodes by itself, the last latents are float32
        yield Proof(lambda: _sampled(seen), begin=begin)


def raised(made: Any) -> Any:
    """What the denoiser predicts, in float32: schedulers then give the next latents in it, too."""
    import torch

    return floats_to(made, torch.float32)


def _first_tensor(made: Any) -> Any:
    return made[0]  # of a tuple, and of diffusers' outputs alike


def _sampled(seen: Counter[tuple[str, str]]) -> str:
    calls, came, computed = sum(seen.values()), {c for c, _ in seen}, {c for _, c in seen}
    if calls < 2 or came != {"float32"} or "float32" in computed:
        return ""
    return f"{calls} times latents came in float32 to a denoiser that computed in {' and '.join(computed)}"
