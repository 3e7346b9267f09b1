"""A session holds a pipeline with a plan applied; closing it gives the pipeline back."""

import numpy as np
import pytest
import tiny
import torch

import safelight
from safelight.config import Request
from safelight.errors import SafelightError, UsageError


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
    assert record.sampler == "Euler"


def test_load_opens_a_folder_and_plans(folder):
    with safelight.load(str(folder), optimize="auto", device="cpu") as session:
        expected = [*(["dtype"] if "bfloat16" in tiny.cpu().fast_dtypes else []), "channels-last"]
        assert [status.name for status in session.status()] == expected
        assert session.plan.left["prompt-cache"] == "no gain expected here"


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
