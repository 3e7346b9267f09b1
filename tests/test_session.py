"""A session holds a pipeline with a plan applied; closing it gives the pipeline back."""

import numpy as np
import pytest
import tiny
import torch

import safelight
from safelight.errors import DidNotEngage, OutOfMemory, SafelightError, UsageError
from safelight.optimizers import OPTIMIZERS, Fidelity, Registry, Stage
from safelight.optimizers.registry import Proof
from safelight.planner import wish
from safelight.request import Request
from safelight.session import Session
from safelight.simulate.measurements import Store


def pixels(picture):
    return np.asarray(picture.image).astype(int)


def test_optimize_takes_a_pipeline_and_gives_it_back_unchanged(unet_pipe):
    def own():
        generator = torch.Generator().manual_seed(0)
        return unet_pipe("a cat", num_inference_steps=3, generator=generator, output_type="np").images

    plain = own()
    with safelight.optimize(unet_pipe, "dtype=bfloat16,channels-last,prompt-cache") as session:
        assert unet_pipe.unet.dtype == torch.bfloat16
        assert {status.name for status in session.status() if status.engaged} == {
            "dtype",
            "channels-last",
            "prompt-cache",
        }
        assert abs(own() - plain).max() > 0
    assert np.array_equal(own(), plain)


def test_status_tells_what_was_requested_what_engaged_and_the_evidence(unet_pipe):
    with safelight.optimize(unet_pipe, "prompt-cache") as session:
        (status,) = session.status()
    assert (status.name, status.requested, status.engaged, status.fidelity) == ("prompt-cache", True, True, "exact")
    assert "from the cache" in status.evidence


def test_generate_gives_pictures_seconds_and_bytes(unet_pipe):
    with safelight.optimize(unet_pipe, "") as session:
        result = session.generate("a cat", seed=3, steps=2, count=2)
    assert [picture.seed for picture in result.pictures] == [3, 4]
    assert set(result.seconds) == {"text", "denoise", "decode"}
    assert result.peak_bytes is None or result.peak_bytes >= result.held_bytes > 0


def test_a_request_object_does_the_same_as_keywords(unet_pipe):
    with safelight.optimize(unet_pipe, "") as session:
        one = session.generate("a cat", seed=3, steps=2).pictures[0]
        other = session.generate(Request("a cat", seed=3, steps=2)).pictures[0]
    assert (pixels(one) == pixels(other)).all()


def test_pictures_come_one_by_one(unet_pipe):
    with safelight.optimize(unet_pipe, "") as session:
        started = session.start(Request("a cat", seed=3, steps=2, count=3))
        assert next(iter(started)).seed == 3


def test_a_closed_session_says_so_and_may_be_closed_again(unet_pipe):
    session = safelight.optimize(unet_pipe, "prompt-cache")
    session.close()
    session.close()
    with pytest.raises(SafelightError, match="closed"):
        session.generate("a cat")


def test_a_pipeline_that_draws_no_pictures_from_prompts_is_refused():
    from diffusers import DDPMPipeline

    pipe = DDPMPipeline(tiny.sd().unet, tiny.sd().scheduler)
    with pytest.raises(UsageError, match="DDPMPipeline is not a text-to-image pipeline"):
        safelight.optimize(pipe, "")


def test_a_record_of_a_picture_holds_what_makes_it_again(unet_pipe):
    with safelight.optimize(unet_pipe, "prompt-cache=3") as session:
        started = session.start(Request("a cat", seed=3, steps=2, count=2, batch_size=2))
        record = session.record(started.request, list(started)[1])
    assert (record.prompt, record.seed, record.batch_index, record.batch_size) == ("a cat", 4, 1, 2)
    assert record.optimizers == (("prompt-cache", "3"),)
    assert record.sampler == "EulerDiscreteScheduler", "the checkpoint's own"


def test_load_opens_a_folder_and_plans(folder):
    with safelight.load(str(folder), optimize="auto", device="cpu") as session:
        assert session.plan.cost.seconds <= session.plan.plain.seconds
        assert set(session.plan.options) | set(session.plan.left) == set(OPTIMIZERS)


def test_weights_are_loaded_in_the_planned_dtype_and_not_kept_twice(folder):
    with safelight.load(str(folder), optimize="dtype=bfloat16", device="cpu") as session:
        loaded = {p.dtype for p in session.pipe.unet.parameters()}
    assert loaded == {torch.bfloat16}
    assert {p.dtype for p in session.pipe.unet.parameters()} == {torch.bfloat16}


def test_all_that_is_public_is_there_and_documented():
    assert sorted(safelight.__all__) == safelight.__all__
    for name in safelight.__all__:
        thing = getattr(safelight, name)
        assert name == "__version__" or thing.__doc__


# -- what was predicted ------------------------------------------------------------------------------------------------


def short_of_memory(pipe, *, pictures, times=1):
    """The denoiser runs out of memory `times` times when it is given more than so many latents at once."""
    layer, left = pipe.unet.conv_in.forward, [times]

    def forward(sample):
        if sample.shape[0] > pictures and left[0]:
            left[0] -= 1
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 123456 bytes.")
        return layer(sample)

    pipe.unet.conv_in.forward = forward
    return pipe


def planned(pipe, **wished):
    """A session of four pictures at a time, by given rates, as this machine may be busy."""
    forecast = tiny.forecast(pipe, tiny.cpu(), width=64, height=64, batch_size=4)
    only = Registry({"guidance-split": OPTIMIZERS["guidance-split"]})
    wished = wish("auto", registry=only, **wished)
    return Session(pipe, tiny.cpu(), wished, width=64, height=64, batch_size=4, registry=only, forecast=forecast)


def test_a_plan_that_runs_out_of_memory_is_made_again_once_and_no_picture_is_lost(unet_pipe):
    with planned(unet_pipe) as session:
        assert session.plan.options == {}
        short_of_memory(unet_pipe, pictures=4)
        with pytest.warns(UserWarning, match="out of memory, so that it is planned again: -o guidance-split"):
            result = session.generate("a cat", steps=2, seed=3, count=8, batch_size=4)
        assert session.plan.options == {"guidance-split": {}}
    assert [picture.index for picture in result.pictures] == list(range(8))


def test_running_out_of_memory_twice_is_an_error(unet_pipe):
    with planned(unet_pipe) as session:
        short_of_memory(unet_pipe, pictures=0, times=99)
        with pytest.raises(OutOfMemory), pytest.warns(UserWarning, match="planned again"):
            session.generate("a cat", steps=2, seed=3, count=4, batch_size=4)


def test_what_was_asked_for_alone_is_never_planned_again(unet_pipe):
    with safelight.optimize(short_of_memory(unet_pipe, pictures=0), "") as session, pytest.raises(OutOfMemory):
        session.generate("a cat", steps=2, seed=3, width=32, height=32)


def test_a_run_is_kept_beside_its_prediction_and_corrects_the_next(folder, cache):
    Store(cache / "measurements.sqlite").clear()
    request = Request("a cat", width=32, height=32, steps=2, seed=1)
    with safelight.load(str(folder), optimize="none", device="cpu") as session:
        settled = session.settle(request)
        before = session.predicted(settled)
        session.generate(settled)
    (kept,) = Store(cache / "measurements.sqlite").rows()
    assert (kept.plan, kept.width, kept.steps, kept.batch_size) == ("", 32, 2, 1)
    assert kept.predicted_step_seconds == pytest.approx(before.step_seconds)
    with safelight.load(str(folder), optimize="none", device="cpu") as session:
        after = session.predicted(settled)
    assert after.step_seconds == pytest.approx(kept.step_seconds)


def test_what_no_prediction_was_asked_of_is_not_kept(folder, cache):
    Store(cache / "measurements.sqlite").clear()
    with safelight.load(str(folder), optimize="none", device="cpu") as session:
        session.generate("a cat", width=32, height=32, steps=2, seed=1)
    assert Store(cache / "measurements.sqlite").rows() == []


def test_a_model_that_nobody_can_call_ahead_is_run_as_it_is(unet_pipe):
    class Unknown(type(unet_pipe.unet)):
        pass

    unet_pipe.unet.__class__ = Unknown
    with safelight.optimize(unet_pipe, "none") as session:
        assert session.predicted(session.settle(Request("a cat", width=32, height=32))) is None


def idle(pipe, *, requested):
    """A session with one optimizer that a plan takes for the seconds it promises, and that does nothing."""
    made = Registry()

    def promising(pipe, target):
        """Promises much."""
        yield Proof(lambda: "")

    made.add(
        stage=Stage.CACHE,
        fidelity=Fidelity.EXACT,
        source="",
        fits=lambda target: None,
        predict=lambda cost, target: cost.scaled(denoise=0.5),
    )(promising)
    forecast = tiny.forecast(pipe, tiny.cpu(), width=32, height=32)
    wished = wish("promising" if requested else "auto", registry=made)
    return Session(pipe, tiny.cpu(), wished, width=32, height=32, registry=made, forecast=forecast)


def test_what_was_planned_and_does_nothing_is_left_with_a_warning(unet_pipe):
    with (
        pytest.warns(UserWarning, match="left out, as nobody asked for it"),
        idle(unet_pipe, requested=False) as session,
    ):
        assert session.plan.options == {}
        assert session.plan.left["promising"].startswith("it was tried: promising was applied but shows no effect")


def test_what_was_asked_for_and_does_nothing_is_an_error(unet_pipe):
    with pytest.raises(DidNotEngage):
        idle(unet_pipe, requested=True)
