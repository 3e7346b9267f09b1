"""cache-dit on one transformer: begun anew with each run, counted, and undone. Without the package through a seam."""

from contextlib import contextmanager

import pytest
import tiny
import torch

from safelight.errors import DoesNotApply, UsageError
from safelight.optimizers import OPTIMIZERS, cachedit, target_of
from safelight.optimizers.registry import swapped
from safelight.planner import plan, wish
from safelight.probe import packages
from safelight.session import Session


def draw(pipe, steps=10, side=32, **more):
    generator = torch.Generator().manual_seed(1)
    given = {"width": side, "height": side, "num_inference_steps": steps, "generator": generator}
    return pipe("a cat", output_type="latent", **given, **more).images


def cached(pipe, written):
    return Session(pipe, tiny.cpu(), wish(written), width=32, height=32)


def abort(pipe, steps=10):
    """A run that an exception ends after its sixth step."""

    def stop(_pipe, step, _time, values):
        if step == 5:
            raise KeyboardInterrupt
        return values

    with pytest.raises(KeyboardInterrupt):
        draw(pipe, steps, callback_on_step_end=stop)


def planned(pipe, written):
    return plan(target_of(pipe, tiny.cpu(), width=32, height=32), wish(written))


def fake_library(skips, separate=False):
    """A cache-dit that skips the last block on every step after the first, if it does at all."""
    log = []

    def enable(pipe, config):
        log.append("enable")
        model, plain = pipe.transformer, pipe.transformer.forward

        def forward(*args, **kwargs):
            if not skips or log[-1].startswith("refresh"):
                log.append("full")
                return plain(*args, **kwargs)
            log.append("cached")
            with last_left_out(model.single_transformer_blocks):
                return plain(*args, **kwargs)

        model.forward = forward
        model._is_cached = True

    return log, cachedit.Library(
        supports=lambda pipeline: True,
        enable=enable,
        separate=lambda pipe: separate,
        refresh=lambda model, config: log.append(f"refresh {config['enable_separate_cfg']}"),
        disable=lambda model: log.append("disable"),
        changes=lambda model: [],
        owner=type("Owner", (), {}),
    )


class Passing(torch.nn.Module):
    def forward(self, hidden_states, encoder_hidden_states, **_):
        return encoder_hidden_states, hidden_states


@contextmanager
def last_left_out(blocks):
    last, blocks[-1] = blocks[-1], Passing()
    yield
    blocks[-1] = last


@pytest.mark.parametrize("skips", [True, False])
def test_cache_dit_is_begun_anew_with_each_run_and_counted(skips):
    pipe = tiny.flux()
    model = pipe.transformer
    before = {module: dict(vars(module)) for module in model.modules()}
    log, library = fake_library(skips)
    with swapped(cachedit, library=lambda: library):
        target = target_of(pipe, tiny.cpu(), width=32, height=32)
        steps = OPTIMIZERS["cache-dit"].apply(pipe, target, first_blocks=1, warmup=0)
        proof = next(steps)
        draw(pipe, steps=5)
        draw(pipe, steps=5)
        assert proof.evidence() == ("skipped 4 of 20 block calls in the latest run" if skips else "")
        next(steps, None)
    assert [word for word in log if word not in ("full", "cached")] == ["enable", *["refresh False"] * 2, "disable"]
    assert {module: dict(vars(module)) for module in model.modules()} == before


def test_cache_dit_takes_no_call_for_the_unconditional_one_where_there_is_none():
    pipe = tiny.flux()
    log, library = fake_library(skips=False, separate=True)
    with swapped(cachedit, library=lambda: library):
        target = target_of(pipe, tiny.cpu(), width=32, height=32)
        steps = OPTIMIZERS["cache-dit"].apply(pipe, target, first_blocks=1)
        next(steps)
        draw(pipe, steps=3)
        draw(pipe, steps=3, negative_prompt="a dog", true_cfg_scale=3.0)
        next(steps, None)
    assert [word for word in log if word.startswith("refresh")] == ["refresh True", "refresh False", "refresh True"]


def test_cache_dit_wants_more_blocks_than_it_always_computes():
    with pytest.raises(DoesNotApply, match="has 4 blocks, and first_blocks is 8: give 1 to 3"):
        planned(tiny.flux(), "cache-dit")


@pytest.mark.skipif(packages.has("cache-dit", "1.5"), reason="it is installed")
def test_cache_dit_says_how_to_get_it():
    with pytest.raises(DoesNotApply, match=r"needs cache-dit >= 1.5: pip install cache-dit"):
        planned(tiny.flux(), "cache-dit.first_blocks=1")


@pytest.mark.parametrize("make", [tiny.flux, tiny.sd3])
def test_the_real_cache_dit_draws_the_same_picture_every_time(make):
    pytest.importorskip("cache_dit")
    pipe = make()
    plain = draw(pipe)
    with cached(pipe, "cache-dit=0.5,cache-dit.first_blocks=1,cache-dit.warmup=2") as session:
        right = draw(pipe)
        abort(pipe)
        assert torch.equal(draw(pipe), right)
        assert not torch.equal(right, plain)
        assert session.status()[0].evidence.startswith("skipped ")
    assert torch.equal(draw(pipe), plain)


def test_cache_dit_computes_one_block_at_least():
    with pytest.raises(UsageError, match="first_blocks is 0: give 1 or more"):
        planned(tiny.flux(), "cache-dit.first_blocks=0")
