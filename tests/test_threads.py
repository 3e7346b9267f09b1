"""Threads may share a session: each picture is the one that its request gives alone."""

from threading import Event, Thread

import numpy as np
import pytest
import tiny
import torch

import safelight
from safelight.request import Request
from safelight.run.generate import own_object
from safelight.session import Session

# with optimizers that keep something from step to step, or from picture to picture
STATEFUL = ["", "prompt-cache", "deep-cache=2", "prompt-cache,deep-cache=2"]


def pixels(result):
    return np.asarray(result.pictures[0].image)


def request(seed):
    return Request(f"cat {seed}", seed=seed, steps=4)


def in_thread(work):
    """A started thread, and the list that its answer or its exception ends up in."""
    answers = []

    def run():
        try:
            answers.append(work())
        except Exception as error:  # noqa: BLE001
            answers.append(error)

    thread = Thread(target=run)
    thread.start()
    return thread, answers


def test_plain_diffusers_two_threads_on_one_pipeline_end_in_an_error(unet_pipe):
    """What a session guards against: both runs step one scheduler (diffusers issues 3672 and 7851)."""

    def draw(seed, **more):
        generator = torch.Generator().manual_seed(seed)
        return unet_pipe("a cat", num_inference_steps=4, generator=generator, output_type="np", **more).images

    def other_run_in_between(pipe, step, time, values):
        if step == 0:
            thread, answers = in_thread(lambda: draw(2))
            thread.join()
            assert not isinstance(answers[0], Exception)
        return values

    with pytest.raises(IndexError):
        draw(1, callback_on_step_end=other_run_in_between)


@pytest.mark.parametrize("optimize", STATEFUL, ids=lambda written: written or "plain")
def test_two_threads_on_one_session_draw_what_each_draws_alone(unet_pipe, optimize):
    with safelight.optimize(unet_pipe, optimize) as session:
        alone = [pixels(session.generate(request(seed))) for seed in (1, 2)]
        under_way, news = Event(), []

        def first_progress(stage, done, total):
            news.append(("first", stage))
            if (stage, done) == ("denoise", 1):
                under_way.set()

        def second():
            under_way.wait()
            return session.generate(request(2), progress=lambda stage, *_: news.append(("second", stage)))

        thread, answers = in_thread(second)
        together = [pixels(session.generate(request(1), progress=first_progress))]
        thread.join()
        together.append(pixels(answers[0]))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    whose = [who for who, stage in news if stage != "pictures"]
    assert whose == sorted(whose), "the second begins when the batch of the first is done"


def test_two_sessions_over_the_same_models_may_run_at_once_without_optimizers(pipe):
    with Session(own_object(pipe), tiny.cpu()) as one, Session(own_object(pipe), tiny.cpu()) as other:
        assert one.pipe.vae is other.pipe.vae
        alone = [pixels(session.generate(request(seed))) for seed, session in ((1, one), (2, other))]
        between = []

        def other_run_in_between(stage, done, total):
            if (stage, done) == ("denoise", 2):
                thread, answers = in_thread(lambda: other.generate(request(2)))
                thread.join()
                between.extend(answers)

        together = [pixels(one.generate(request(1), progress=other_run_in_between)), pixels(between[0])]
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
