"""FasterCache: attention of late steps from the two before, and guidance without its unconditional half.

diffusers' hooks take two things for granted that are not always so: that the batch holds both halves of guidance, and
that no run begins in the range where they skip. Here both are looked at in every call.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from safelight.optimizers.hooked import Hooked, Work, blocks_of, hooked, skeleton
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.stepcache import SLOT, check, keeping, kept_bytes, no_blocks
from safelight.optimizers.target import Target, denoiser
from safelight.probe.rates import KINDS
from safelight.simulate.cost import Cost

NEVER = (float("inf"), float("-inf"))  # a range of timesteps without any
# at most: diffusers' defaults, for a noise schedule from 1000 to 0
ATTENTION_BELOW, GUIDANCE_BELOW = 681, 641


def _predict(cost: Cost, target: Target, spatial_skip: int, unconditional_skip: int, weight: float) -> Cost:
    """In two thirds of the run (timesteps below 681 of 1000) one attention in `spatial_skip` is computed, and of the
    unconditional predictions one in five; up to 1.67 times in the paper (Open-Sora, table 1). Each attention layer
    keeps what it gave twice."""
    late = ATTENTION_BELOW / 1000
    cost = cost.kinds(["denoise"], attention=1 - late * (1 - 1 / spatial_skip))
    if target.guided and target.pipeline is not None and in_one_batch(target.pipeline):
        unmade = GUIDANCE_BELOW / 1000 * (1 - 1 / unconditional_skip)
        cost = cost.kinds(["denoise"], **dict.fromkeys(KINDS, 1 - unmade / 2))
    return keeping(cost, 2 * kept_bytes(target, len(blocks_of(skeleton(target.denoiser)))))


def _fits(target: Target, spatial_skip: int, unconditional_skip: int, weight: float) -> str | None:
    from diffusers.hooks._common import _ATTENTION_CLASSES

    check("faster-cache.spatial_skip", spatial_skip, 2)
    check("faster-cache.unconditional_skip", unconditional_skip, 2)
    check("faster-cache.weight", weight, 0, 1)
    if reason := no_blocks(target):
        return reason
    attention = [
        name
        for name, module in skeleton(target.denoiser).named_modules()
        if isinstance(module, _ATTENTION_CLASSES)
        and name.startswith(("blocks", "transformer_blocks", "single_transformer_blocks"))
        and not getattr(module, "is_cross_attention", False)
    ]
    return None if attention else f"{target.denoiser.cls.__name__} has no attention layers where diffusers looks"


@dataclass
class _Halves:
    """Tells diffusers' hooks, call by call, what they hold. skipped: denoiser calls without the unconditional half."""

    on: Hooked
    batched: bool  # the pipeline puts both halves of guidance into one batch
    ranges: dict[Any, Any] = field(default_factory=dict)
    skipped: int = 0
    calls: int = 0
    _rows: int = 0  # pictures of the batch, both halves counted

    def before_call(self, begins: bool, kwargs: dict[str, Any]) -> None:
        from diffusers.hooks.faster_cache import FasterCacheBlockHook

        if begins:
            self.skipped = self.calls = 0
        together = self._has_both(kwargs)
        for hook in self.on.hooks:
            hook.is_guidance_distilled = not together
            if isinstance(hook, FasterCacheBlockHook):
                # nothing is kept yet where a run begins inside the range: diffusers would look for it all the same
                full = self.ranges.setdefault(hook, hook.timestep_skip_range)
                hook.timestep_skip_range = NEVER if hook.state.cache is None else full
            elif together:
                self._rows = kwargs["hidden_states"].shape[0]
                hook.uncond_cond_input_kwargs_identifiers = _rows_of(kwargs, self._rows)

    def _has_both(self, kwargs: dict[str, Any]) -> bool:
        """Whether this call is on both halves: of latents as pictures, as the method splits frequencies."""
        images = kwargs.get("hidden_states")
        guided = self.batched and self.on.runs.pipe.do_classifier_free_guidance
        return bool(guided and self.on.runs.call == 0 and images is not None and images.ndim == 4)

    def saw(self, kwargs: dict[str, Any]) -> None:
        self.calls += 1
        images = kwargs.get("hidden_states")
        self.skipped += images is not None and images.shape[0] < self._rows

    def said(self) -> str:
        attention = self.on.work.said()
        halves = f"{self.skipped} of {self.calls} unconditional halves" if self.skipped else ""
        return ", and ".join(filter(None, (attention, halves)))


def _rows_of(kwargs: dict[str, Any], rows: int) -> tuple[str, ...]:
    """The arguments that have a row for each picture: the ones to halve. diffusers' own list lacks SD3's."""
    from torch import Tensor

    return tuple(
        name for name, value in kwargs.items() if isinstance(value, Tensor) and value.ndim and value.shape[0] == rows
    )


def in_one_batch(pipeline: type) -> bool:
    """Whether a pipeline computes both halves of guidance in one batch, and says when; read off its source."""
    source = inspect.getsource(pipeline.__call__)
    return "[latents] * 2" in source and hasattr(pipeline, "do_classifier_free_guidance")


@contextmanager
def _watched(halves: _Halves, hook: Any) -> Iterator[None]:
    """Looks at what the denoiser really gets."""
    original = hook.fn_ref.original_forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        halves.saw(kwargs)
        return original(*args, **kwargs)

    with swapped(hook.fn_ref, original_forward=forward):
        yield


@optimizer(
    stage=Stage.CACHE,
    slot=SLOT,
    fidelity=Fidelity.APPROXIMATE,
    source="https://huggingface.co/papers/2410.19355",
    fits=_fits,
    predict=_predict,
)
def faster_cache(
    pipe: Any, target: Target, spatial_skip: int = 2, unconditional_skip: int = 5, weight: float = 0.5
) -> Iterator[Proof]:
    """In late steps, continue attention from the steps before, and guidance without its unconditional half."""
    from diffusers.hooks import faster_cache as upstream

    model = denoiser(pipe)
    runs: list[Any] = []
    config = upstream.FasterCacheConfig(
        spatial_attention_block_skip_range=spatial_skip,
        spatial_attention_timestep_skip_range=(-1, ATTENTION_BELOW),
        unconditional_batch_skip_range=unconditional_skip,
        unconditional_batch_timestep_skip_range=(-1, GUIDANCE_BELOW),
        attention_weight_callback=lambda _: weight,
        tensor_format="BCHW",
        current_timestep_callback=lambda: runs[0].timestep,
    )
    with ExitStack() as stack:
        on = stack.enter_context(hooked(pipe, lambda: upstream.apply_faster_cache(model, config), Work("attention")))
        runs.append(on.runs)
        halves = _Halves(on, in_one_batch(type(pipe)))
        on.before_call = halves.before_call
        for hook in on.hooks:
            if isinstance(hook, upstream.FasterCacheDenoiserHook):
                stack.enter_context(_watched(halves, hook))
        yield Proof(halves.said, steps=14, begin=on.runs.begin)
