"""cache-dit's dual block cache, on one transformer.

Not on the pipeline: there cache-dit replaces `__call__` of the class, and every pipeline of that class follows. On a
transformer alone it goes on with the last picture's state in the next (seen on a small FLUX with 1.5.3: 16 block calls
instead of 19, and another picture), so that its state is made anew here with each run.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from safelight.optimizers.hooked import Runs, Work, blocks_of, check_free, skeleton
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.stepcache import SLOT, check, no_blocks
from safelight.optimizers.steps import timestep_of
from safelight.optimizers.target import Target, denoiser
from safelight.probe.packages import missing
from safelight.simulate.cost import Cost


@dataclass(frozen=True, slots=True)
class Library:
    """What is used of cache-dit.

    supports: a pipeline's class. enable: on a pipeline's transformer. separate: whether it takes every second call of a
    pipeline for the unconditional one. changes: of the first blocks' output, one for each comparison of a run.
    """

    supports: Callable[[type], bool]
    enable: Callable[[Any, dict[str, Any]], Any]
    separate: Callable[[Any], bool]
    refresh: Callable[[Any, dict[str, Any]], Any]
    disable: Callable[[Any], Any]
    changes: Callable[[Any], list[float]]
    owner: Any  # the class on which it notes that something is cached


def library() -> Library:
    import cache_dit
    from cache_dit.caching.block_adapters import BlockAdapterRegister, FakeDiffusionPipeline

    def changes(model: Any) -> list[float]:
        contexts = [model._context_manager.get_context(name) for name in model._context_names]
        tables = [t for c in contexts for t in (c.get_residual_diffs(), c.get_cfg_residual_diffs())]
        return [float(change) for table in tables for change in table.values()]

    def enable(pipe: Any, config: dict[str, Any]) -> None:
        adapter = BlockAdapterRegister.get_adapter(pipe)
        adapter.pipe = FakeDiffusionPipeline()  # what it puts there for a transformer that is used without a pipeline
        cache_dit.enable_cache(adapter, cache_config=cache_dit.DBCacheConfig(**config))

    return Library(
        # by name, of whatever is an instance: one that was never made is enough
        lambda pipeline: BlockAdapterRegister.is_supported(object.__new__(pipeline)),
        enable,
        BlockAdapterRegister.has_separate_cfg,
        lambda model, config: cache_dit.refresh_context(model, cache_config=cache_dit.DBCacheConfig(**config)),
        cache_dit.disable_cache,
        changes,
        FakeDiffusionPipeline,
    )


def _predict(cost: Cost, target: Target, threshold: float, first_blocks: int, warmup: int, max_cached: int) -> Cost:
    """FLUX.1-dev, 28 steps, L20: 24.85 -> 15.6 s at 0.08 (cache-dit's README)."""
    whole = min(1.0, warmup / cost.steps)
    return cost.scaled(denoise=whole + (1 - whole) * max(0.3, 1 - 0.37 * threshold / 0.08))


def _fits(target: Target, threshold: float, first_blocks: int, warmup: int, max_cached: int) -> str | None:
    check("cache-dit", threshold, 0)
    check("cache-dit.first_blocks", first_blocks, 1)
    check("cache-dit.warmup", warmup, 0)
    check("cache-dit.max_cached", max_cached, -1)
    reason = no_blocks(target) or _too_shallow(target, first_blocks)
    # what another machine has installed is not known, nor which pipelines it knows
    return reason if reason or target.device.elsewhere else missing("cache-dit", "1.5") or _unknown(target)


def _too_shallow(target: Target, first_blocks: int) -> str | None:
    blocks, name = len(blocks_of(skeleton(target.denoiser))), target.denoiser.cls.__name__
    if first_blocks < blocks:
        return None
    return f"this {name} has {blocks} blocks, and first_blocks is {first_blocks}: give 1 to {blocks - 1}"


def _unknown(target: Target) -> str | None:
    if target.pipeline is None or library().supports(target.pipeline):
        return None
    return f"cache-dit does not know {target.pipeline.__name__}"


@dataclass
class _Steps:
    """Makes cache-dit's state anew with each run.

    In a run without guidance no call is the unconditional one: that shows when the second call is at another timestep,
    and the state is made anew without.
    """

    library: Library
    model: Any
    config: dict[str, Any]
    runs: Runs
    work: Work
    blocks: int
    _calls: int = 0  # of this run

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        begins = self.runs.see(timestep_of(args, kwargs))
        if begins:
            self.work.forget()
            self._calls = 0
            self.library.refresh(self.model, self.config)
        elif self._calls == 1 and self.runs.call == 0 and self.config["enable_separate_cfg"]:
            self.library.refresh(self.model, {**self.config, "enable_separate_cfg": False})
        self._calls += 1
        self.work.asked += self.blocks

    def said(self) -> str:
        if said := self.work.said():
            return said
        if changes := self.library.changes(self.model):
            return (
                f"compared {len(changes)} times, skipped none of {self.work.asked} block calls in the latest run: the "
                f"threshold is {self.config['residual_diff_threshold']:g} and the smallest change was "
                f"{min(changes):.2g}; raise it"
            )
        return ""


@contextmanager
def attributes_kept(model: Any, owner: Any) -> Iterator[None]:
    """Puts back every attribute of every module, and whether the class `owner` says that something is cached.

    cache-dit leaves its own forward on FLUX and on its single blocks, and the rows of blocks in another order.
    """
    before = {module: dict(vars(module)) for module in model.modules()}
    children = dict(model._modules)
    cached = vars(owner).get("_is_cached")
    try:
        yield
    finally:
        for module, attributes in before.items():
            vars(module).clear()
            vars(module).update(attributes)
        model._modules.clear()
        model._modules.update(children)
        if cached is None and "_is_cached" in vars(owner):
            del owner._is_cached


@optimizer(
    stage=Stage.CACHE,
    slot=SLOT,
    fidelity=Fidelity.APPROXIMATE,
    source="https://github.com/vipshop/cache-dit",
    fits=_fits,
    predict=_predict,
)
def cache_dit(
    pipe: Any, target: Target, threshold: float = 0.08, first_blocks: int = 8, warmup: int = 8, max_cached: int = -1
) -> Iterator[Proof]:
    """Skip all but the first blocks while those change little, by the package cache-dit."""
    model, used = denoiser(pipe), library()
    check_free(model)
    config = {
        "residual_diff_threshold": threshold,
        "Fn_compute_blocks": first_blocks,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": warmup,
        "max_cached_steps": max_cached,
        "enable_separate_cfg": used.separate(pipe),
    }
    blocks, work = blocks_of(model), Work("block")
    with ExitStack() as stack:
        stack.enter_context(attributes_kept(model, used.owner))
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(lambda *_: work.compute()).remove)
        used.enable(pipe, dict(config))
        stack.callback(used.disable, model)
        steps = _Steps(used, model, config, Runs(pipe), work, len(blocks))
        forward = model.forward

        def watched(*args: Any, **kwargs: Any) -> Any:
            steps.before(args, kwargs)
            return forward(*args, **kwargs)

        stack.enter_context(swapped(model, forward=watched))
        yield Proof(steps.said, steps=warmup + 4, begin=steps.runs.begin)
