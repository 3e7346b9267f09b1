"""An image's noise is its seed's, whoever is beside it, and the numbers are A1111's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.errors import UnknownName, UsageError
from safelight.sampling.noise import STREAMS, Noise, slerp
from safelight.sampling.philox import Philox

SHAPE = (4, 6, 5)
RNGS = pytest.mark.parametrize("rng", STREAMS)
seeds = st.integers(0, 2**32 - 1)


def torch_noise(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


@RNGS
@settings(deadline=None)
@given(pairs=st.lists(st.tuples(seeds, seeds), min_size=1, max_size=4), share=st.floats(0, 1), delta=st.integers(0, 99))
def test_an_image_in_a_batch_is_the_same_alone(rng, pairs, share, delta):
    def drawn(chosen):
        own, variations = zip(*chosen, strict=True)
        more = {"variation_seeds": variations, "variation_strength": share, "seed_delta": delta}
        noise = Noise(own, rng=rng, **more)
        brownian = noise.brownian(SHAPE, 0.1, 10.0)
        return [noise.first(SHAPE), noise.next(), noise.next(), brownian(10.0, 3.0), brownian(3.0, 0.1)]

    together = drawn(pairs)
    for index, pair in enumerate(pairs):
        for whole, alone in zip(together, drawn([pair]), strict=True):
            assert torch.equal(whole[index], alone[0])


def test_the_first_noise_and_the_next_come_from_one_generator_of_the_seed():
    noise, generator = Noise([7]), torch.Generator("cpu").manual_seed(7)
    for drawn in (noise.first(SHAPE), noise.next(), noise.next()):
        assert torch.equal(drawn[0], torch.randn(SHAPE, generator=generator))
        assert drawn.dtype == torch.float32


def test_nv_draws_a_cards_numbers():
    noise, philox = Noise([7], rng="nv"), Philox(7)
    assert torch.equal(noise.first(SHAPE)[0], philox.normal(SHAPE))
    assert torch.equal(noise.next()[0], philox.normal(SHAPE))
    assert not torch.equal(noise.first(SHAPE), Noise([7]).first(SHAPE))


def test_a_seed_delta_leaves_the_first_noise_and_begins_the_rest_anew():
    noise = Noise([7], seed_delta=31337)
    assert torch.equal(noise.first(SHAPE)[0], torch_noise(7))
    assert torch.equal(noise.next()[0], torch_noise(7 + 31337))


def test_first_begins_anew_at_another_size():
    noise = Noise([7])
    noise.first(SHAPE)
    noise.next()
    assert torch.equal(noise.first((4, 8, 8))[0], torch_noise(7, (4, 8, 8)))


def test_a_variation_lies_on_the_way_from_one_seed_to_the_other():
    def varied(strength):
        return Noise([1], variation_seeds=[2], variation_strength=strength).first((4, 64, 64))[0]

    here, there = torch_noise(1, (4, 64, 64)), torch_noise(2, (4, 64, 64))
    assert torch.equal(varied(0.0), here)
    assert torch.allclose(varied(1.0), there, atol=1e-5)
    assert 0.95 < varied(0.5).std() < 1.05  # a straight way would lose a third of it
    assert torch.nn.functional.cosine_similarity(varied(0.25).flatten(), here.flatten(), dim=0) > 0.85


def test_a_variation_does_not_touch_later_noise():
    plain, varied = Noise([1]), Noise([1], variation_seeds=[2], variation_strength=0.3)
    plain.first(SHAPE)
    varied.first(SHAPE)
    assert torch.equal(plain.next(), varied.next())


def test_slerp_is_a1111s_on_numbers_of_its_own():
    low, high = torch_noise(1), torch_noise(2)
    angle = torch.acos((low / low.norm(dim=1, keepdim=True) * (high / high.norm(dim=1, keepdim=True))).sum(1))
    expected = (torch.sin(0.7 * angle) / torch.sin(angle)).unsqueeze(1) * low
    expected = expected + (torch.sin(0.3 * angle) / torch.sin(angle)).unsqueeze(1) * high
    assert torch.allclose(slerp(0.3, low, high), expected, atol=1e-6)


@settings(deadline=None)
@given(seed=seeds, share=st.floats(0, 1), height=st.integers(1, 4))
def test_slerp_is_finite_and_a_seed_varied_by_itself_stays(seed, share, height):
    low, high = torch_noise(seed, (2, height, 3)), torch_noise(seed + 1, (2, height, 3))
    assert slerp(share, low, high).isfinite().all()
    assert torch.allclose(slerp(share, low, low), low, atol=1e-5)


@RNGS
def test_brownian_noise_has_unit_variance_and_no_step_has_none(rng):
    noise = Noise([3], rng=rng).brownian((4, 32, 32), 0.03, 14.6)
    for step in [(14.6, 9.0), (9.0, 0.5), (0.5, 0.03)]:
        assert noise(*step).std() == pytest.approx(1, abs=0.05)
    assert not noise(2.0, 2.0).any()


def test_brownian_noise_turns_round_with_its_direction():
    noise = Noise([3]).brownian(SHAPE, 0.03, 14.6)
    assert torch.equal(noise(9.0, 2.0), -noise(2.0, 9.0))


def test_fine_steps_get_noise_that_agrees_with_coarse_ones():
    noise = Noise([3]).brownian(SHAPE, 0.03, 14.6)
    fine = noise(9.0, 5.0) * 4**0.5 + noise(5.0, 2.0) * 3**0.5
    assert torch.allclose(fine, noise(9.0, 2.0) * 7**0.5, atol=1e-4)


def test_an_unknown_source_gives_the_nearest():
    with pytest.raises(UnknownName, match="did you mean cpu"):
        Noise([1], rng="cpuu")


@pytest.mark.parametrize(("variations", "strength"), [(None, 0.5), ([1], 0.5), ([1, 2], 1.5), ([1, 2], -0.1)])
def test_a_variation_that_cannot_be_meant_is_an_error(variations, strength):
    with pytest.raises(UsageError, match="variation strength"):
        Noise([1, 2], variation_seeds=variations, variation_strength=strength)
