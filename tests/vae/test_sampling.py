"""What is told of statistics from crops: those of the whole where crops are the whole, one pass and little memory."""

import copy
import math

import pytest
import tiny
import tiny_vaes
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.simulate.trace import record
from safelight.vae import engine, sampling
from safelight.vae.graph import CannotWalk
from safelight.vae.sampling import Crops, crops
from safelight.vae.seams import exactly

WIDTHS = (8, 16, 16)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return tiny_vaes.kl(WIDTHS)


def latents(height: int, width: int) -> torch.Tensor:
    return torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(1))


@given(st.integers(32, 3000), st.integers(32, 3000))
def test_crops_lie_within_and_cover_about_a_quarter(height, width):
    cut = crops(height, width)
    assert all(0 <= top <= height - cut.side and 0 <= left <= width - cut.side for top, left in cut.places)
    assert cut.shape[0] * cut.shape[1] == len(cut.places) * cut.side**2
    assert len(cut.places) <= 32**2 and all(cut.shape[dim] <= (height, width)[dim] for dim in (0, 1))
    assert 0.1 <= len(cut.places) * cut.side**2 / (height * width) <= 0.7


@given(st.integers(32, 80), st.integers(32, 80), st.integers(1, 3))
def test_crops_lie_side_by_side_in_the_order_of_the_picture(height, width, scale):
    cut = crops(height, width)
    numbered = torch.arange(height * width * scale**2).view(1, 1, height * scale, width * scale)
    made, side = cut.of(numbered, scale), cut.side * scale
    assert made.shape == (1, 1, *(length * scale for length in cut.shape))
    for number, (top, left) in enumerate(cut.places):
        row, column = number // cut.across * side, number % cut.across * side
        there = numbered[..., top * scale : top * scale + side, left * scale : left * scale + side]
        assert torch.equal(made[..., row : row + side, column : column + side], there)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_crops_get_the_mean_and_variance_of_the_whole_in_each_channel(dtype):
    random = torch.Generator().manual_seed(2)
    whole = torch.randn(1, 5, 40, 40, generator=random) * torch.linspace(0.5, 3, 40) + torch.arange(5).view(5, 1, 1)
    whole[:, 0] = 7.0  # a channel of one number
    whole = whole.to(dtype)
    found = sampling.matched(crops(40, 40).of(whole), whole)
    assert found.dtype == dtype
    for got, wanted in zip(*(torch.var_mean(each.float(), (2, 3)) for each in (found, whole)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0.01, atol=0.01)


@settings(max_examples=6, deadline=None)
@given(st.integers(16, 24), st.sampled_from([2000, 2**23]), st.booleans())
def test_crops_that_are_the_whole_give_the_whole(side, strip_bytes, attention):
    vae = tiny_vaes.kl(WIDTHS, attention=attention)
    given = latents(side, side)
    expected = tiny_vaes.whole(vae, "decode", given)
    with pytest.MonkeyPatch.context() as patched, exactly(vae, sampled=True) as exact, torch.no_grad():
        patched.setattr(sampling, "crops", lambda *size: Crops(((0, 0),), side))
        exact.strip_bytes = strip_bytes
        made = vae.decode(given).sample
    torch.testing.assert_close(made, expected, rtol=0, atol=5e-5)


def test_what_crops_of_an_even_picture_say_is_nearly_true(vae):
    given = latents(48, 64)
    expected, made = engine.decode(vae, given), engine.decode(vae, given, how="fast")
    error = float((made - expected).pow(2).mean())
    assert not torch.equal(made, expected)
    assert 10 * math.log10(float((expected.max() - expected.min()) ** 2) / error) > 30


def test_it_stores_nothing_after_the_crops_and_keeps_its_predicted_bytes(vae):
    given = latents(96, 96)
    with exactly(vae) as exact:
        plans = exact.plans(given)
    with exactly(vae, sampled=True) as exact, torch.no_grad():
        exact.strip_bytes = 2**18
        vae.decode(given)
        peak = record(lambda: vae.decode(given), [given]).peak_bytes - given.nbytes
        used = exact.used[0]
    assert peak == pytest.approx(used.peak_bytes, rel=0.1)
    alike = [made for made in plans if made.work <= 1.2 * used.work]
    assert alike and all(used.peak_bytes < made.peak_bytes for made in alike)


def test_rows_reach_a_sink_in_order(vae):
    given, taken = latents(40, 32), []
    assert engine.decode(vae, given, how="fast", sink=lambda row, rows: taken.append(rows.clone())) is None
    assert torch.equal(torch.cat(taken, 2), engine.decode(vae, given, how="fast"))


def test_encoding_is_exact(vae):
    picture = torch.rand(1, 3, 64, 64)
    assert torch.equal(engine.encode(vae, picture, how="fast"), engine.encode(vae, picture, how="exact"))


def test_an_encoder_is_refused(vae):
    with exactly(vae, "encode", sampled=True) as exact, pytest.raises(CannotWalk, match="are for decoders"):
        exact.plans(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("size", "told"), [((31, 64), "64x31 latents are too few"), ((4, 40, 40), "for pictures, not for videos")]
)
def test_what_is_too_small_or_a_video_is_refused(size, told):
    vae = tiny.vae()
    with exactly(vae, sampled=True) as exact, pytest.raises(CannotWalk, match=told):
        exact.plans(torch.randn(1, 4, *size))


def test_a_module_that_computes_something_else_for_crops_is_refused(vae):
    vae = copy.deepcopy(vae)
    forward = vae.decoder.forward
    vae.decoder.forward = lambda given, *rest: forward(given + 1 if given.shape[-1] < 64 else given, *rest)
    with exactly(vae, sampled=True) as exact, pytest.raises(CannotWalk, match="something else for crops"):
        exact.plans(latents(64, 64))


def test_an_approximation_is_taken_where_it_is_allowed_and_no_exact_plan_fits(vae):
    given = latents(192, 192)
    with exactly(vae) as exact:
        budget = exact.plans(given)[0].peak_bytes - 1
    ours = engine.Engine(vae, budget, fidelity="approximate")
    with exactly(vae, sampled=True) as fast:
        fits = fast.plans(given)[0].peak_bytes <= budget
    made = ours.decode(given)
    assert torch.equal(made, engine.decode(vae, given, how="fast" if fits else "blended", budget_bytes=budget))
