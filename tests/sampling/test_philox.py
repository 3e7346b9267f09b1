"""Numbers of an NVIDIA card, on any machine."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.sampling.philox import Philox

# of the docstring of A1111's modules/rng_philox.py
CARD = [
    [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
    [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
    [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
]
# A1111's generator of a seed of more than 32 bits, called twice
RECORDED = [
    [-1.382501721, 0.518201649, 1.169604778, 0.793449998, -0.451213926, -2.683635712],
    [-1.672217965, -1.773429513, 1.88334167, 0.639941752, -0.77703321, 1.646245599],
]


def test_numbers_are_those_of_torch_on_a_card():
    assert torch.allclose(Philox(0).normal((3, 4)), torch.tensor(CARD), atol=1e-6)


def test_each_call_goes_on_and_the_whole_seed_counts():
    philox = Philox(2**40 + 3)
    assert [philox.normal((1, 2, 3)).flatten().tolist() for _ in range(2)] == [pytest.approx(row) for row in RECORDED]


@settings(deadline=None)
@given(seed=st.integers(-(2**63), 2**64 - 1), height=st.integers(1, 5), width=st.integers(1, 5))
def test_a_number_depends_on_its_place_alone(seed, height, width):
    small, large = Philox(seed).normal((height, width)), Philox(seed).normal((20, width))
    assert small.dtype == torch.float32
    assert torch.equal(small, large[:height])


def test_numbers_are_normal():
    numbers = Philox(5).normal((4, 64, 64))
    assert numbers.mean().abs() < 0.02
    assert (numbers.std() - 1).abs() < 0.02
    assert (numbers.abs() > 1.96).float().mean() == pytest.approx(0.05, abs=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", [0, 2**40 + 3])
def test_a_card_draws_the_same(seed):
    generator = torch.Generator("cuda").manual_seed(seed)
    philox = Philox(seed)
    for _ in range(3):
        drawn = torch.randn((4, 64, 64), device="cuda", generator=generator).cpu()
        assert torch.allclose(philox.normal((4, 64, 64)), drawn, atol=1e-5)
