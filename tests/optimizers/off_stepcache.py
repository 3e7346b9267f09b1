"""diffusers' step caches, switched off inside: their hooks are there, and let everything through."""

from contextlib import contextmanager

from diffusers.hooks.faster_cache import FasterCacheBlockHook, FasterCacheDenoiserHook
from diffusers.hooks.first_block_cache import FBCHeadBlockHook
from diffusers.hooks.mag_cache import MagCacheHeadHook
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastHook
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheHook

from safelight.optimizers.registry import swapped
from safelight.probe import packages


@contextmanager
def never_compared():
    with swapped(FBCHeadBlockHook, _should_compute_remaining_blocks=lambda self, residual: True):
        yield


def through(self, module, *args, **kwargs):
    return self.fn_ref.original_forward(*args, **kwargs)


def let_through(*hooks):
    @contextmanager
    def off():
        if not hooks:
            yield
            return
        with swapped(hooks[0], new_forward=through), let_through(*hooks[1:])():
            yield

    return off


@contextmanager
def never_cached():
    """cache-dit never finds that a step may be skipped. Without the package the optimizer does not apply anyway."""
    if packages.missing("cache-dit"):
        yield
        return
    from cache_dit.caching.cache_contexts import CachedContextManager

    with swapped(CachedContextManager, can_cache=lambda *args, **kwargs: False):
        yield


WRITTEN = {"cache-dit": "cache-dit=0.5,cache-dit.first_blocks=1,cache-dit.warmup=2"}
OFF = {
    "cache-dit": never_cached,
    "first-block-cache": never_compared,
    "mag-cache": let_through(MagCacheHeadHook),
    "taylorseer-cache": let_through(TaylorSeerCacheHook),
    "pyramid-attention-broadcast": let_through(PyramidAttentionBroadcastHook),
    "faster-cache": let_through(FasterCacheDenoiserHook, FasterCacheBlockHook),
}
