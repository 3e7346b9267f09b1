"""The step caches: what they skip, what they keep apart, and that nothing of one run gets into the next."""

import operator
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from diffusers import FluxImg2ImgPipeline
from diffusers.hooks import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    apply_first_block_cache,
)
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS
from PIL import Image

from safelight.errors import Conflict, DoesNotApply, UsageError
from safelight.optimizers import stepcache, target_of
from safelight.optimizers.hooked import Runs, Threshold, Work
from safelight.optimizers.registry import swapped
from safelight.planner import plan, wish
from safelight.session import Session

PLAIN = {
    "first-block-cache=0.5": lambda: FirstBlockCacheConfig(0.5),
    "taylorseer-cache.warmup=3": lambda: TaylorSeerCacheConfig(
        disable_cache_before_step=3, taylor_factors_dtype=torch.float32
    ),
    "mag-cache": lambda: MagCacheConfig(mag_ratios=FLUX_MAG_RATIOS, num_inference_steps=10),
}
ALL = (*PLAIN, "pyramid-attention-broadcast", "faster-cache")


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


@contextmanager
def counted(modules):
    """How often the modules' own computation runs: diffusers' hooks replace `forward`, and come after this."""
    calls = [0]

    def counting(forward):
        def count(*args, **kwargs):
            calls[0] += 1
            return forward(*args, **kwargs)

        return count

    originals = [(module, module.forward) for module in modules]
    for module, forward in originals:
        module.forward = counting(forward)
    yield calls
    for module, _ in originals:
        del module.forward


@pytest.mark.parametrize("config", PLAIN.values(), ids=PLAIN)
def test_diffusers_alone_draws_another_picture_after_an_interrupted_run(config):
    pipe = tiny.flux()
    pipe.transformer.enable_cache(config())
    right = draw(pipe)
    abort(pipe)
    assert not torch.equal(draw(pipe), right)


@pytest.mark.parametrize("written", ALL)
def test_an_interrupted_run_leaves_nothing_to_the_next(written):
    pipe = tiny.flux()
    with cached(pipe, written) as session:
        right, large = draw(pipe), draw(pipe, side=48)
        abort(pipe)
        assert torch.equal(draw(pipe), right)
        abort(pipe)
        assert torch.equal(draw(pipe, side=48), large)
        asked = {"steps": 10, "seed": 3}
        first = session.generate("a cat", **asked).pictures[0].image
        abort(pipe)
        assert session.generate("a cat", **asked).pictures[0].image.tobytes() == first.tobytes()
        assert torch.equal(draw(pipe), right)


@pytest.mark.parametrize("written", ["first-block-cache=0.5", "mag-cache"])
def test_what_is_said_to_be_skipped_was_not_computed(written):
    pipe = tiny.flux()
    blocks = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
    with counted(blocks) as calls, cached(pipe, written) as session:
        calls[0] = 0
        draw(pipe, steps=12)
        assert 0 < calls[0] < 48
        assert session.status()[0].evidence == f"skipped {48 - calls[0]} of 48 block calls in the latest run"


def test_too_low_a_threshold_says_what_it_saw():
    pipe = tiny.flux()
    with cached(pipe, "first-block-cache=0.000001") as session:
        said = session.status()[0].evidence
        assert said.startswith("compared 7 times, skipped none of 32 block calls in the latest run")
        assert said.endswith("raise it")
        assert torch.equal(draw(pipe), draw(tiny.flux()))


@pytest.mark.parametrize("written", [*ALL, "taylorseer-cache.lite=true"])
def test_nothing_is_left_behind(written):
    pipe = tiny.sd3()
    draw(pipe)
    before = {module: set(vars(module)) for module in pipe.transformer.modules()}
    with cached(pipe, written):
        draw(pipe)
    assert {module: set(vars(module)) for module in pipe.transformer.modules()} == before


@pytest.mark.parametrize("written", [*ALL, "taylorseer-cache.lite=true"])
def test_they_act_in_a_pipeline_that_enters_no_cache_context(written):
    pipe = tiny.sd3()
    with cached(pipe, written) as session:
        draw(pipe, steps=14)
        draw(pipe, steps=14)
        assert session.status()[0].evidence.startswith("skipped ")
        assert not session.status()[0].evidence.startswith("skipped 0")


def test_diffusers_alone_fails_in_a_pipeline_that_enters_no_cache_context():
    pipe = tiny.sd3()
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(0.5))
    with pytest.raises(ValueError, match="No cache context"):
        draw(pipe)


@pytest.mark.parametrize("written", ALL)
def test_another_pipeline_over_the_same_transformer_begins_its_own_run(written):
    pipe = tiny.flux()
    other = FluxImg2ImgPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    picture = Image.new("RGB", (32, 32), "red")
    with cached(pipe, written):
        right = draw(pipe)
        changed = draw(other, image=picture, strength=0.5)  # begins where faster-cache would already skip
        abort(pipe)
        assert torch.equal(draw(other, image=picture, strength=0.5), changed)
        assert torch.equal(draw(pipe), right)


def guided(pipe):
    """One step with guidance in two calls: nothing can be skipped in it."""
    return draw(pipe, steps=1, negative_prompt="a dog", true_cfg_scale=3.0)


def test_the_two_calls_of_guidance_have_a_broadcast_of_their_own():
    pipe = tiny.flux()
    right = guided(pipe)
    pipe.transformer.enable_cache(
        PyramidAttentionBroadcastConfig(2, None, None, (-1, 1001), current_timestep_callback=lambda: 500)
    )
    assert not torch.equal(guided(pipe), right)  # the second call gets the attention of the first
    pipe.transformer.disable_cache()
    with cached(pipe, "pyramid-attention-broadcast.low=-1,pyramid-attention-broadcast.high=1001"):
        assert torch.equal(guided(pipe), right)


def test_mag_cache_knows_the_steps_of_every_run():
    pipe = tiny.flux()
    pipe.transformer.enable_cache(MagCacheConfig(mag_ratios=FLUX_MAG_RATIOS, num_inference_steps=12))
    right = draw(pipe, steps=12)
    pipe.transformer.disable_cache()
    pipe.transformer.enable_cache(MagCacheConfig(mag_ratios=FLUX_MAG_RATIOS))  # 28 steps, and silently others
    assert not torch.equal(draw(pipe, steps=12), right)
    pipe.transformer.disable_cache()
    with cached(pipe, "mag-cache"):
        draw(pipe, steps=7)
        assert torch.equal(draw(pipe, steps=12), right)


def test_mag_cache_measures_first_what_nobody_knows():
    pipe = tiny.sd3()
    plain = draw(pipe, steps=9)
    with cached(pipe, "mag-cache=10") as session:
        assert torch.equal(draw(pipe, steps=9), plain)
        assert session.status()[0].evidence.startswith("measured how 9 steps change")
        assert not torch.equal(draw(pipe, steps=9), plain)
        assert session.status()[0].evidence == "skipped 12 of 18 block calls in the latest run"


def test_mag_cache_does_not_learn_from_an_interrupted_run():
    pipe = tiny.sd3()
    plain = draw(pipe, steps=9)
    with cached(pipe, "mag-cache"):
        abort(pipe, steps=9)
        assert torch.equal(draw(pipe, steps=9), plain)


def test_faster_cache_leaves_no_half_out_where_there_is_none():
    pipe = tiny.sd3()
    with cached(pipe, "faster-cache") as session:
        draw(pipe, steps=14)
        assert "4 of 14 unconditional halves" in session.status()[0].evidence
        draw(pipe, steps=14, guidance_scale=1.0, num_images_per_prompt=2)
        assert "halves" not in session.status()[0].evidence
        assert session.status()[0].evidence.startswith("skipped ")


@pytest.mark.parametrize("written", ["first-block-cache", "taylorseer-cache", "mag-cache", "faster-cache", "cache-dit"])
def test_a_unet_is_sent_to_deep_cache(written):
    with pytest.raises(DoesNotApply, match="UNet2DConditionModel is a UNet: deep-cache is for UNets"):
        planned(tiny.sd(), written)


def planned(pipe, written):
    return plan(target_of(pipe, tiny.cpu(), width=32, height=32), wish(written))


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("first-block-cache=-1", "first-block-cache is -1: give 0 or more"),
        ("taylorseer-cache=1", "interval is 1: give 2 or more"),
        ("taylorseer-cache.max_order=9", "max_order is 9: give 0 to 4"),
        ("taylorseer-cache.warmup=1", "warmup is 1: give 2 or more"),
        ("mag-cache.retention=2", "retention is 2: give 0 to 1"),
        ("mag-cache.max_skip=0", "max_skip is 0: give 1 or more"),
        ("faster-cache=1", "spatial_skip is 1: give 2 or more"),
        ("pyramid-attention-broadcast=0", "give one of them 2 or more"),
        ("pyramid-attention-broadcast.low=900", "give low below high"),
    ],
)
def test_a_value_that_cannot_be_says_which_can(written, says):
    with pytest.raises(UsageError, match=says):
        planned(tiny.flux(), written)


def test_two_step_caches_exclude_each_other():
    with pytest.raises(Conflict, match="exclude each other"):
        planned(tiny.flux(), "first-block-cache,pyramid-attention-broadcast")


def test_a_cache_that_someone_switched_on_is_not_joined():
    pipe = tiny.flux()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(0.5))
    with pytest.raises(Conflict, match="call its disable_cache"):
        cached(pipe, "taylorseer-cache")
    pipe.transformer.disable_cache()
    with swapped(pipe.transformer, _is_cached=True), pytest.raises(Conflict, match="cache-dit switched on"):
        cached(pipe, "taylorseer-cache")
    cached(pipe, "taylorseer-cache").close()


def scheduler(*timesteps):
    return SimpleNamespace(scheduler=SimpleNamespace(timesteps=torch.tensor(timesteps, dtype=torch.float32)))


@pytest.mark.parametrize(
    "told", [lambda t: t, lambda t: t / 1000, lambda t: (1000 - t) / 1000], ids=["SD3", "FLUX", "Z-Image"]
)
def test_a_run_is_followed_in_whatever_unit_a_denoiser_counts(told):
    runs = Runs(scheduler(999, 600, 300))
    assert [runs.see(told(t)) for t in (999, 999, 600, 600, 300)] == [True, False, False, False, False]
    assert runs.call == 0
    assert runs.timestep == pytest.approx(300)
    runs.home.scheduler.timesteps = runs.home.scheduler.timesteps.clone()  # as every run makes its own
    assert runs.see(told(999))


def test_a_run_that_ended_after_its_first_call_is_told_from_the_next():
    runs = Runs(scheduler(999, 600, 300))
    runs.see(999)
    runs.home.scheduler.timesteps = runs.home.scheduler.timesteps.clone()
    assert runs.see(999)


def test_a_run_has_the_steps_from_where_it_begins():
    runs = Runs(scheduler(900, 600, 300))
    runs.see(torch.tensor([600.0, 600.0]))
    assert runs.schedule == (600, 300)


def test_an_announced_run_is_followed_by_one_of_the_pipeline_itself():
    runs, request = Runs(scheduler(800, 400)), scheduler(999, 600, 300)
    runs.begin(request)
    request.scheduler.timesteps = request.scheduler.timesteps.clone()
    assert runs.see(999)
    assert runs.pipe is request
    request.scheduler = scheduler(1, 2).scheduler  # a session puts back what the object had
    assert runs.see(800)
    assert runs.pipe is runs.home
    runs.begin(request)  # and the run ends before its first step
    assert runs.see(800)
    assert runs.pipe is runs.home


def test_a_threshold_notes_what_it_is_compared_with():
    limit = Threshold(0.5)
    assert operator.gt(0.7, limit)
    assert not operator.gt(0.2, limit)
    assert operator.le(0.5, limit)
    assert limit.seen == [0.7, 0.2, 0.5]


def test_work_says_nothing_until_something_was_skipped_and_then_also_when_nothing_was():
    work = Work("block", asked=4, computed=4)
    assert work.said() == ""
    work.computed = 1
    assert work.said() == "skipped 3 of 4 block calls in the latest run"
    work.forget()
    work.asked = work.computed = 4
    assert work.said() == "skipped 0 of 4 block calls in the latest run"


RANK = """
import sys, torch, torch.distributed as dist
from types import SimpleNamespace
from safelight.optimizers.hooked import agreed
from safelight.optimizers.stepcache import together
rank, port = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
mesh = SimpleNamespace(get_group=lambda: dist.group.WORLD)
shared = SimpleNamespace(context_parallel_config=SimpleNamespace(_flattened_mesh=mesh))
decide = lambda residual: bool(residual.mean() > 0.5)
residual = torch.full((4,), 0.4 if rank else 0.6)
alone = together(decide, SimpleNamespace(_parallel_config=None))(residual)
both = together(decide, SimpleNamespace(_parallel_config=shared))(residual)
print(alone, both, agreed([1.5 + rank], dist.group.WORLD), flush=True)
dist.destroy_process_group()
"""


def free_port():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


@pytest.mark.slow
def test_ranks_that_share_a_picture_decide_alike():
    port, environment = free_port(), {**os.environ, "PYTHONPATH": str(Path(stepcache.__file__).parents[2])}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), port], env=environment, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=60)[0].split("\n")[0] for rank in ranks]
    assert said == ["True True [1.5]", "False True [1.5]"]
