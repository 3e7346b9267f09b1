"""Distances of sets agree with their definitions, and say how sure they are."""

import numpy as np
import pictures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from safelight.errors import UsageError
from safelight.measure import features, sets
from safelight.measure.quality import SET_METRICS, over_sets

# of pictures.synthetic(224): the network that training used, written apart from this one
FIRST_FEATURES, SUM_OF_FEATURES = (0.530498, 0.0, 1.367759, 0.0, 0.0, 0.0), 215.478836


def drawn(count, *, seed=0):
    """Parts of a picture, each another one."""
    random = np.random.default_rng(seed)
    whole = pictures.synthetic(256)
    corners = random.integers(0, 160, (count, 2))
    return [whole.crop((x, y, x + 96, y + 96)) for x, y in corners.tolist()]


def test_features_are_those_of_the_network_as_trained_with():
    found = features.of([pictures.synthetic(224)])[0]
    assert found.shape == (features.COUNT,)
    assert found[:6] == pytest.approx(FIRST_FEATURES, abs=1e-4)
    assert found.sum() == pytest.approx(SUM_OF_FEATURES, rel=1e-4)


@given(seed=st.integers(0, 999), n=st.integers(8, 40), m=st.integers(8, 40))
@settings(max_examples=25, deadline=None)
def test_frechet_is_the_formula_with_the_root_of_the_covariances_product(seed, n, m):
    random = np.random.default_rng(seed)
    some, others = random.normal(0, 1, (n, 6)), random.normal(0.5, 2, (m, 6))
    one, two = np.cov(some.T), np.cov(others.T)
    apart = ((some.mean(0) - others.mean(0)) ** 2).sum()
    expected = apart + np.trace(one + two - 2 * sqrtm(one @ two).real)
    assert sets.frechet(some, others) == pytest.approx(expected, rel=1e-6)


def test_frechet_needs_no_more_pictures_than_features():
    random = np.random.default_rng(0)
    few = random.normal(0, 1, (5, 300))
    assert sets.frechet(few, few) == pytest.approx(0, abs=1e-9)
    assert sets.frechet(few, few + 2) == pytest.approx(4 * 300)


def test_kernel_is_the_sum_over_pairs_and_its_error_that_of_leaving_one_out():
    random = np.random.default_rng(1)
    some, others = random.normal(0, 1, (7, 4)), random.normal(0.3, 1, (6, 4))

    def by_definition(some, others):
        def k(x, y):
            return (x @ y / 4 + 1) ** 3

        def own(values):
            pairs = [k(x, y) for i, x in enumerate(values) for j, y in enumerate(values) if i != j]
            return np.mean(pairs)

        return own(some) + own(others) - 2 * np.mean([k(x, y) for x in some for y in others])

    value, error = sets.kernel(some, others)
    assert value == pytest.approx(by_definition(some, others))
    without = [by_definition(np.delete(some, i, 0), others) for i in range(7)]
    other_without = [by_definition(some, np.delete(others, i, 0)) for i in range(6)]
    assert error == pytest.approx(np.sqrt(6 * np.var(without) + 5 * np.var(other_without)))


def test_kernel_is_nought_on_average_for_two_draws_of_the_same_and_its_error_says_how_far_off():
    random = np.random.default_rng(2)
    found = np.array([sets.kernel(*random.normal(0, 1, (2, 12, 5))) for _ in range(400)])
    assert abs(found[:, 0].mean()) < 3 * found[:, 0].std() / 20
    assert 0.5 < found[:, 1].mean() / found[:, 0].std() < 2


@pytest.mark.parametrize("damage", ["blur", "noise", "jpeg"])
def test_more_damage_sets_the_sets_further_apart(damage):
    change, strengths = pictures.DAMAGES[damage]
    plains = drawn(8)
    found = [over_sets(plains, [change(one, strength) for one in plains]) for strength in strengths[1:]]
    for name in ("frechet", "kernel"):
        values = [values[name] for values in found]
        assert values == sorted(values), name


def test_equal_sets_are_no_distance_apart_and_a_floor_says_what_two_draws_are():
    plains = drawn(8)
    found = over_sets(plains, list(plains))
    assert list(found) == list(SET_METRICS)
    assert found["frechet"] == pytest.approx(0, abs=1e-6)
    assert found["frechet-floor"] > 1
    assert found["kernel"] < found["kernel-error"]
    assert found["pictures"] == 8


def test_few_pictures_are_told_to_be_few():
    found = sets.distance(drawn(5), drawn(5, seed=1))
    assert found.note.startswith("of 5 pictures only")
    assert "no more than" in sets.SetDistance(1.0, 2.0, 0.0, 0.1, 20).note
    assert sets.SetDistance(1.0, 0.5, 0.0, 0.1, 5000).note == "of 5000 pictures"


def test_three_pictures_are_no_set():
    with pytest.raises(UsageError, match="sets of 3 and 8 pictures"):
        over_sets(drawn(3), drawn(8))
