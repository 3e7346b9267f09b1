"""Steps of a transformer that resemble the last one need not be computed whole: diffusers' step caches.

hooked.py makes them safe (a run that was interrupted, guidance in two calls, pipelines that know of no cache) and
counts what they skip. Left out are diffusers' SeaCache and TextKVCache: on FLUX they skip nothing, and say nothing.
On a UNet none of these acts but pyramid-attention-broadcast; deep-cache is made for UNets.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from safelight.errors import UsageError
from safelight.optimizers.hooked import Hooked, Threshold, Work, agreed, blocks_of, hooked, peers, skeleton
from safelight.optimizers.merging import blocks_by_level, grid_at
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.target import Target, denoiser
from safelight.simulate import inputs
from safelight.simulate.cost import Cost

SLOT = "step-cache"


def check(name: str, value: float, least: float, most: float = float("inf")) -> None:
    """Raises UsageError for an option's value outside of its range."""
    if not least <= value <= most:
        limits = f"{least:g} or more" if most == float("inf") else f"{least:g} to {most:g}"
        raise UsageError(f"{name} is {value:g}: give {limits}")


def no_blocks(target: Target) -> str | None:
    """Why a denoiser has no blocks that diffusers could skip."""
    name = target.denoiser.cls.__name__
    if "transformer" not in target.parts:
        return f"it skips transformer blocks, and {name} is a UNet: deep-cache is for UNets"
    if (model := skeleton(target.denoiser)) is None:
        return f"the structure of {name} cannot be read"
    return None if len(blocks_of(model)) > 1 else f"{name} has no two transformer blocks that diffusers knows by name"


def kept_bytes(target: Target, layers: int) -> int:
    """Of what so many attention layers of a transformer give in one call, for the picture's tokens."""
    config, vae = target.denoiser.config, target.parts.get("vae")
    across, along = _patch(config, target.denoiser.cls.__name__)
    side = inputs.factor(vae) * across
    frames = ((target.frames - 1) // inputs.frame_factor(vae) + 1) // along
    tokens = (target.width // side) * (target.height // side) * frames
    width = (config.get("num_attention_heads") or 0) * (config.get("attention_head_dim") or 0)
    return layers * _pictures(target) * tokens * width * _element(target)


def _pictures(target: Target) -> int:
    return target.batch_size * (2 if target.guided else 1)


def _element(target: Target) -> int:
    """Bytes of a number that the denoiser computes with."""
    return 4 if target.dtype == "float32" else 2


PACKED = ("Flux", "QwenImage", "Chroma")  # their pipelines put two by two latents into one token


def _patch(config: Any, name: str) -> tuple[int, int]:
    """Latents of a token: (of a side, of frames)."""
    if name.startswith(PACKED):
        return 2, 1
    patch = config.get("patch_size") or 1
    return (patch[-1], patch[0]) if isinstance(patch, list | tuple) else (patch, config.get("patch_size_t") or 1)


def keeping(cost: Cost, nbytes: int) -> Cost:
    """With tensors that stay from step to step."""
    return cost.changed("denoise", live=cost.denoise.live + nbytes)


def no_residuals(target: Target) -> str | None:
    """Why diffusers cannot tell what a block adds to its input."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    if reason := no_blocks(target):
        return reason
    TransformerBlockRegistry._register()
    classes = {type(block) for block in blocks_of(skeleton(target.denoiser))}
    if strangers := sorted(cls.__name__ for cls in classes - TransformerBlockRegistry._registry.keys()):
        return f"diffusers does not know what {' and '.join(strangers)} return"
    return None


def _first_block_fits(target: Target, threshold: float) -> str | None:
    from diffusers.hooks._helpers import TransformerBlockRegistry

    check("first-block-cache", threshold, 0)
    if reason := no_residuals(target):
        return reason
    blocks = blocks_of(skeleton(target.denoiser))
    ends = [TransformerBlockRegistry.get(type(block)).return_encoder_hidden_states_index for block in blocks]
    if (ends[0] is None) != (ends[-1] is None):
        return f"the first block of {target.denoiser.cls.__name__} returns two tensors and the last one returns one"
    return None


@optimizer(
    stage=Stage.CACHE,
    slot=SLOT,
    fidelity=Fidelity.APPROXIMATE,
    source="https://github.com/chengzeyi/ParaAttention#first-block-cache-our-dynamic-caching",
    fits=_first_block_fits,
    # FLUX.1-dev, 28 steps, L20: 26.36 -> 17.01 s at 0.08 (ParaAttention, doc/fastest_flux.md); less is skipped below
    predict=lambda cost, target, threshold: cost.scaled(denoise=max(0.4, 1 - 0.35 * threshold / 0.08)),
)
def first_block_cache(pipe: Any, target: Target, threshold: float = 0.05) -> Iterator[Proof]:
    """Skip the other blocks while the first one adds nearly what it added in the step before."""
    from diffusers.hooks import first_block_cache as upstream

    model, limit = denoiser(pipe), Threshold(threshold)
    config = upstream.FirstBlockCacheConfig(limit)
    work = Work("block", limit)
    with ExitStack() as stack:
        on = stack.enter_context(hooked(pipe, lambda: upstream.apply_first_block_cache(model, config), work))
        for hook in on.hooks:
            if isinstance(hook, upstream.FBCHeadBlockHook):
                hook._should_compute_remaining_blocks = together(hook._should_compute_remaining_blocks, model)
            elif hook.is_tail:
                stack.enter_context(_both_tensors(hook))
        yield Proof(work.said, steps=8, begin=on.runs.begin)


@contextmanager
def _both_tensors(hook: Any) -> Iterator[None]:
    """SD3's last block returns no text, as nobody needs it any more; diffusers' hooks count on a tensor."""
    original = hook.fn_ref.original_forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        if not isinstance(output, tuple) or all(value is not None for value in output):
            return output
        return tuple(kwargs["encoder_hidden_states"] if value is None else value for value in output)

    with swapped(hook.fn_ref, original_forward=forward):
        yield


def together(decide: Callable[[Any], bool], model: Any) -> Callable[[Any], bool]:
    """The decision of the first rank, where several compute one picture (context parallelism)."""
    import torch

    def decide_together(residual: Any) -> bool:
        return bool(agreed([decide(residual)], peers(model), residual.device)[0])

    return torch.compiler.disable(decide_together)


# diffusers' own patterns, and the numbered attentions (attn1, attn2) that those do not match
_ATTENTION = (r"^(blocks|transformer_blocks|single_transformer_blocks)\..*attn\d?",)


def _taylorseer_fits(target: Target, interval: int, max_order: int, warmup: int, lite: bool) -> str | None:
    check("taylorseer-cache.interval", interval, 2)
    check("taylorseer-cache.max_order", max_order, 0, 4)
    check("taylorseer-cache.warmup", warmup, max_order + 1)
    if reason := no_blocks(target):
        return reason
    names, cls = _names(target), target.denoiser.cls.__name__
    if lite and "proj_out" not in names:
        return f"lite keeps what a layer proj_out gives, and {cls} has none"
    if not lite and not any(re.fullmatch(_ATTENTION[0], name) for name in names):
        return f"the attention layers of {cls} have names that it does not look for"
    return None


def _names(target: Target) -> list[str]:
    return [name for name, _ in skeleton(target.denoiser).named_modules()]


def _taylorseer_predict(cost: Cost, target: Target, interval: int, max_order: int, warmup: int, lite: bool) -> Cost:
    """One step in `interval` is whole after the first; the others extrapolate each block's output, a tenth of its work
    (FLUX.1: 4.99 times fewer FLOP, 3.53 times less time; the paper, table 1)."""
    whole = min(cost.steps, warmup + math.ceil(max(0, cost.steps - warmup) / interval))
    cost = cost.scaled(denoise=(whole + 0.1 * (cost.steps - whole)) / cost.steps)
    # lite keeps a few tensors of the last layer alone
    layers = 0 if lite else sum(1 for name in _names(target) if re.fullmatch(_ATTENTION[0], name))
    return keeping(cost, (max_order + 1) * kept_bytes(target, layers))


@optimizer(
    stage=Stage.CACHE,
    slot=SLOT,
    fidelity=Fidelity.APPROXIMATE,
    source="https://huggingface.co/papers/2503.06923",
    fits=_taylorseer_fits,
    predict=_taylorseer_predict,
)
def taylorseer_cache(
    pipe: Any, target: Target, interval: int = 5, max_order: int = 1, warmup: int = 10, lite: bool = False
) -> Iterator[Proof]:
    """Compute attention every few steps, and follow its Taylor series between them."""
    from diffusers.hooks import taylorseer_cache as upstream

    model = denoiser(pipe)
    config = upstream.TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=warmup,
        max_order=max_order,
        taylor_factors_dtype=next(model.parameters()).dtype,
        cache_identifiers=None if lite else list(_ATTENTION),
        use_lite_mode=lite,
    )
    work = Work("block" if lite else "attention")
    with ExitStack() as stack:
        on = stack.enter_context(hooked(pipe, lambda: upstream.apply_taylorseer_cache(model, config), work))
        for hook in on.hooks if lite else ():
            stack.enter_context(_both_tensors(hook))
        yield Proof(work.said, steps=warmup + 3, begin=on.runs.begin)


def _pyramid_fits(target: Target, spatial_skip: int, cross_skip: int, low: int, high: int) -> str | None:
    name = "pyramid-attention-broadcast"
    for option, value in (("spatial_skip", spatial_skip), ("cross_skip", cross_skip)):
        if value:
            check(f"{name}.{option}", value, 2)
    if not spatial_skip and not cross_skip:
        raise UsageError(f"{name} has both spatial_skip and cross_skip at 0: give one of them 2 or more")
    if not low < high:
        raise UsageError(f"{name} acts from timestep {low} to {high}: give low below high")
    kinds = _attention_kinds(target)
    cls = target.denoiser.cls.__name__
    if spatial_skip and False not in kinds:
        return f"{cls} has no self-attention that diffusers knows by name"
    return f"{cls} has no cross-attention: leave cross_skip at 0" if cross_skip and True not in kinds else None


def _attention_kinds(target: Target) -> set[bool]:
    """Whether the attention layers under transformer blocks are cross-attention: {False}, {False, True} or {}."""
    from diffusers.hooks._common import _ATTENTION_CLASSES, _SPATIAL_TRANSFORMER_BLOCK_IDENTIFIERS

    model = skeleton(target.denoiser)
    named = model.named_modules() if model is not None else ()
    return {
        getattr(module, "is_cross_attention", False)
        for name, module in named
        if isinstance(module, _ATTENTION_CLASSES) and any(row in name for row in _SPATIAL_TRANSFORMER_BLOCK_IDENTIFIERS)
    }


def _pyramid_predict(cost: Cost, target: Target, spatial_skip: int, cross_skip: int, low: int, high: int) -> Cost:
    """In the middle of the run attention is computed in one step of `spatial_skip`."""
    middle = max(0, high - low) / 1000
    cost = cost.kinds(["denoise"], attention=1 - middle * (1 - 1 / max(1, spatial_skip)))
    return keeping(cost, _broadcast_bytes(target))


def _broadcast_bytes(target: Target) -> int:
    """Of what all self-attention layers give in one call."""
    model = skeleton(target.denoiser)
    if "transformer" in target.parts:
        return kept_bytes(target, len(blocks_of(model)))
    side = inputs.factor(target.parts.get("vae"))
    latent = (target.height // side, target.width // side)
    numbers = (
        math.prod(grid_at(latent, factor)) * block.attn1.to_q.out_features for factor, block in blocks_by_level(model)
    )
    return _pictures(target) * _element(target) * sum(numbers)


@optimizer(
    stage=Stage.CACHE,
    slot=SLOT,
    fidelity=Fidelity.APPROXIMATE,
    source="https://huggingface.co/papers/2408.12588",
    fits=_pyramid_fits,
    predict=_pyramid_predict,
)
def pyramid_attention_broadcast(
    pipe: Any, target: Target, spatial_skip: int = 2, cross_skip: int = 0, low: int = 100, high: int = 800
) -> Iterator[Proof]:
    """Compute attention every second step between two timesteps, and use it twice; for UNets too."""
    from diffusers.hooks import pyramid_attention_broadcast as upstream

    model = denoiser(pipe)
    runs: list[Any] = []
    config = upstream.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=spatial_skip or None,
        cross_attention_block_skip_range=cross_skip or None,
        spatial_attention_timestep_skip_range=(low, high),
        cross_attention_timestep_skip_range=(low, high),
        current_timestep_callback=lambda: runs[0].timestep,
    )
    work = Work("attention")
    with hooked(pipe, lambda: upstream.apply_pyramid_attention_broadcast(model, config), work) as on:
        runs.append(on.runs)
        yield Proof(work.said, steps=10, begin=on.runs.begin)


# Magnitudes that diffusers ships, by class of transformer (dev and schnell share theirs). Of others a first run with
# the same timesteps measures them: they belong to a checkpoint and a schedule.
MAGNITUDES = {"FluxTransformer2DModel": "FLUX_MAG_RATIOS"}


def _magnitude_fits(target: Target, threshold: float, max_skip: int, retention: float) -> str | None:
    check("mag-cache", threshold, 0)
    check("mag-cache.max_skip", max_skip, 1)
    check("mag-cache.retention", retention, 0, 1)
    return no_residuals(target)


def _magnitude_predict(cost: Cost, target: Target, threshold: float, max_skip: int, retention: float) -> Cost:
    """The paper has 2.1 to 2.8 times at 0.24 with a fifth of the steps kept; ours keeps the same and skips less."""
    after = cost.scaled(denoise=retention + (1 - retention) * 0.5)
    measuring = 0.0 if target.denoiser.cls.__name__ in MAGNITUDES else cost.seconds - after.seconds
    return replace(after, once=after.once + measuring)


@dataclass
class _Magnitudes:
    """Gives every run the ratios of its own timesteps, or has it measure them and skip nothing.

    config: diffusers' MagCacheConfig, which its hooks read at every call. With another number of steps than that of
    the run they skip at the wrong ones, without a word.
    """

    on: Hooked
    config: Any
    known: Any  # tensor, or None
    measured: dict[tuple[float, ...], list[float]] = field(default_factory=dict)

    def before_call(self, begins: bool, kwargs: dict[str, Any]) -> None:
        if not begins:
            return
        steps = len(set(self.on.runs.schedule))
        ratios = self._interpolated(steps) if self.known is not None else self.measured.get(self.on.runs.schedule)
        self.config.calibrate = ratios is None
        self.config.mag_ratios = ratios
        # one more while measuring: after the last step diffusers prints the ratios, and throws them away
        self.config.num_inference_steps = steps + self.config.calibrate

    def after_call(self) -> None:
        if not self.config.calibrate:
            return
        states = [state for manager in self.on.managers for state in manager._state_cache.values()]
        if states and len(ratios := states[0].calibration_ratios) == self.config.num_inference_steps - 1:
            model = denoiser(self.on.runs.home)
            self.measured[self.on.runs.schedule] = agreed(list(ratios), peers(model), model.device)

    def _interpolated(self, steps: int) -> list[float]:
        from diffusers.hooks.mag_cache import nearest_interp

        return nearest_interp(self.known, steps).tolist()

    def said(self) -> str:
        if self.config.calibrate and (ratios := self.measured.get(self.on.runs.schedule)):
            return f"measured how {len(ratios)} steps change; the next run with these timesteps skips by that"
        return self.on.work.said()


@optimizer(
    stage=Stage.CACHE,
    slot=SLOT,
    fidelity=Fidelity.APPROXIMATE,
    source="https://github.com/Zehong-Ma/MagCache",
    fits=_magnitude_fits,
    predict=_magnitude_predict,
)
def mag_cache(
    pipe: Any, target: Target, threshold: float = 0.06, max_skip: int = 3, retention: float = 0.2
) -> Iterator[Proof]:
    """Skip all blocks while what they add is known to change little; measured in a first run if not known."""
    from diffusers.hooks import mag_cache as upstream

    model, limit = denoiser(pipe), Threshold(threshold)
    name = MAGNITUDES.get(type(model).__name__)
    config = upstream.MagCacheConfig(limit, max_skip, retention, calibrate=True)
    with hooked(pipe, lambda: upstream.apply_mag_cache(model, config), Work("block", limit)) as on:
        magnitudes = _Magnitudes(on, config, getattr(upstream, name) if name else None)
        on.before_call, on.after_call = magnitudes.before_call, magnitudes.after_call
        yield Proof(magnitudes.said, runs=1 if name else 2, steps=10, begin=on.runs.begin)
