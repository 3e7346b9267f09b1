"""A run shows pictures while it is under way, and draws the same ones as without."""

import numpy as np
import pytest
import tiny
import torch
from optimizers.off_decode import nothing_is_previewed, taesd_folder

import safelight
from safelight.errors import DidNotEngage, UnknownName, UsageError
from safelight.optimizers import taesd
from safelight.request import Request
from safelight.run import generate as run
from safelight.run.denoising import Watch
from safelight.run.preview import Previews
from safelight.run.settling import settle
from safelight.sampling.checkpoint import Checkpoint

FOLDER = taesd_folder()
PREVIEW = f"tiny-vae={FOLDER},tiny-vae.use=preview"


def test_previews_come_from_the_tiny_vae_and_the_picture_from_its_own(pipe):
    large, shown = pipe.vae, []
    with safelight.optimize(pipe, "") as session:
        plain = session.generate("a cat", steps=4, seed=1, count=2, batch_size=2).pictures
    with safelight.optimize(pipe, PREVIEW, batch_size=2) as session:
        assert session.status()[0].evidence == "2 previews decoded"
        assert pipe.vae is large
        wanted = Request("a cat", steps=4, seed=1, count=2, batch_size=2)
        made = session.generate(wanted, preview=lambda step, pictures: shown.append((step, pictures)))
        assert session.status()[0].evidence == "4 previews decoded"
        assert session.generate(wanted).pictures[0].image.tobytes() == plain[0].image.tobytes()
        assert session.status()[0].evidence == "2 previews decoded", "none in the latest run: the smoke run's"
    assert [picture.image.tobytes() for picture in made.pictures] == [picture.image.tobytes() for picture in plain]
    assert [step for step, _ in shown] == [1, 2, 3, 4]
    assert all([image.size for image in pictures] == [(32, 32)] * 2 for _, pictures in shown)
    assert set(made.seconds) == {"text", "denoise", "preview", "decode"}


def test_previews_leave_every_bit_as_it_is(pipe):
    checkpoint, before = Checkpoint.of(pipe), sorted(vars(pipe.scheduler))
    request = settle(pipe, Request("a cat", steps=3, seed=1), {}, checkpoint)
    passes = run._passes(pipe, request, checkpoint, tiny.cpu(), keep_first=False)

    def latents(preview):
        return passes([1], None, Watch(preview=preview)).latents

    tiny_vae = taesd.load(taesd_folder(), torch.float32)
    previews = Previews(lambda latents: taesd.picture(tiny_vae, latents), lambda step, pictures: None)
    assert torch.equal(latents(previews), latents(None))
    assert sorted(vars(pipe.scheduler)) == before


def test_a_preview_of_the_last_step_is_what_the_tiny_vae_makes_of_the_end(pipe):
    """Both kinds of latents, packed and not: the last step of Euler ends in the denoiser's prediction."""
    shown = []
    with safelight.optimize(pipe, PREVIEW) as session:
        session.generate("a cat", steps=3, seed=1, preview=lambda step, pictures: shown.extend(pictures))
    with safelight.optimize(pipe, f"tiny-vae={FOLDER}") as session:
        final = session.generate("a cat", steps=3, seed=1).pictures[0].image
    difference = np.asarray(shown[-1]).astype(int) - np.asarray(final)
    assert abs(difference).max() <= 1, "one level of 255: the prediction is computed in another order"


def test_previews_that_decode_nothing_did_not_engage(unet_pipe):
    with nothing_is_previewed(), pytest.raises(DidNotEngage, match="tiny-vae"):
        safelight.optimize(unet_pipe, PREVIEW)


def test_previews_come_as_often_as_asked_and_only_where_there_is_one_to_decode_them(unet_pipe):
    steps = []
    with safelight.optimize(unet_pipe, PREVIEW) as session:
        session.generate("a cat", steps=5, preview=lambda step, pictures: steps.append(step), preview_every=2)
        with pytest.raises(UsageError, match="every 0 steps"):
            session.generate("a cat", steps=2, preview=print, preview_every=0)
    assert steps == [1, 3, 5]
    for optimize in ("", f"tiny-vae={FOLDER}"):
        with safelight.optimize(unet_pipe, optimize) as session, pytest.raises(UsageError, match="use=preview"):
            session.generate("a cat", steps=2, preview=lambda step, pictures: None)


def test_an_exception_of_who_looks_at_a_preview_is_not_hidden_and_the_session_goes_on(unet_pipe):
    def breaks(step, pictures):
        raise ZeroDivisionError

    with safelight.optimize(unet_pipe, PREVIEW) as session:
        with pytest.raises(ZeroDivisionError):
            session.generate("a cat", steps=2, preview=breaks)
        assert session.generate("a cat", steps=2).pictures


def test_a_tiny_vae_of_no_known_use_is_refused(unet_pipe):
    with pytest.raises(UnknownName, match="unknown use of tiny-vae 'previews': did you mean preview"):
        safelight.optimize(unet_pipe, "tiny-vae.use=previews")
