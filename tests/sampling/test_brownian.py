"""Brownian motion is torchsde's, bit for bit, and one motion however it is asked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.sampling.brownian import BrownianTree
from safelight.sampling.noise import Noise, TorchStream

LOW, HIGH = 0.0291675, 14.614641
QUESTIONS = [(HIGH, 7.9029), (7.9029, 1.25), (1.25, LOW), (0.5, 9.0)]
# k-diffusion's sampler over torchsde 0.2.6's BrownianTree, torch 2.13, shape (1, 2, 3)
RECORDED = {
    1: [
        [-0.265711308, 1.40587759, 1.005546808, -0.176188305, 0.276145786, 0.754601598],
        [-0.625028551, 0.316279799, 0.150664344, 2.028621197, -1.429156542, 0.141804591],
        [1.05259347, -1.517199516, 0.261250407, 1.080883861, 0.887393057, -0.195946157],
        [-0.140570909, 0.144302741, -0.361992687, -1.857647538, 0.691612542, 0.00828554],
    ],
    2**32 + 7: [
        [0.955181658, 1.486404419, -0.313047439, -1.094042778, 0.353177369, 0.225246742],
        [-1.17589283, 0.030866357, 0.110866554, 0.32293418, -0.72148329, -0.68810159],
        [-1.449705839, -0.975917041, -1.593570948, -0.640413821, 0.568762004, 0.517944276],
        [0.974160552, 0.213211149, 0.318363309, 0.359953135, -0.062098436, 0.145177081],
    ],
}
times = st.integers(29_200, 14_614_600).map(lambda micro: micro / 1e6)


def tree(seed=3, shape=(2, 3)):
    return BrownianTree(LOW, HIGH, seed, shape, TorchStream)


@pytest.mark.parametrize("seed", RECORDED)
def test_numbers_are_torchsdes(seed):
    noise = Noise([seed]).brownian((1, 2, 3), LOW, HIGH)
    for question, recorded in zip(QUESTIONS, RECORDED[seed], strict=True):
        # float32 numbers, written with nine digits: equal to the bit
        assert torch.equal(noise(*question).flatten(), torch.tensor(recorded))


@settings(deadline=None)
@given(st.lists(times, min_size=3, max_size=3, unique=True).map(sorted))
def test_two_stretches_add_up_to_the_one_over_both(points):
    first, middle, last = points
    motion = tree()
    whole = motion(first, last)
    assert torch.allclose(motion(first, middle) + motion(middle, last), whole, atol=1e-5)


@settings(deadline=None)
@given(st.lists(st.lists(times, min_size=2, max_size=2, unique=True).map(sorted), min_size=2, max_size=6))
def test_the_order_of_questions_does_not_count(stretches):
    forward, backward = tree(), tree()
    there = [forward(*stretch) for stretch in stretches]
    back = [backward(*stretch) for stretch in reversed(stretches)]
    assert all(torch.equal(a, b) for a, b in zip(there, reversed(back), strict=True))


@settings(deadline=None)
@given(st.lists(times, min_size=2, max_size=2, unique=True).map(sorted), st.integers(0, 2**64 - 1))
def test_the_same_seed_moves_the_same(stretch, seed):
    assert torch.equal(tree(seed)(*stretch), tree(seed)(*stretch))


def test_outside_of_its_time_nothing_moves():
    motion = tree()
    assert torch.equal(motion(LOW / 2, 1.0), motion(LOW, 1.0))
    assert not motion(HIGH, HIGH + 3).any()


def test_the_variance_is_the_time_that_passes():
    motion = tree(shape=(4, 64, 64))
    for begin, end in [(0.03, 0.05), (0.7, 3.1), (2.0, 14.6)]:
        assert motion(begin, end).var() == pytest.approx(end - begin, rel=0.05)
