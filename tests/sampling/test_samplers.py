"""Samplers end where the published ones end, and take as many evaluations as their row says."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sampling.reference import mixture

from safelight.errors import SpoiledPicture
from safelight.sampling.samplers import SAMPLERS

BY_LABEL = {sampler.label: sampler for sampler in SAMPLERS}
CASES = {key: rest for key, *rest in mixture.cases(BY_LABEL)}
TAKES = {name: [s for s in SAMPLERS if name in s.options] for name in ("eta", "s_noise", "s_churn")}


def no_noise(sigma, target):
    raise AssertionError("noise was drawn")


def model_of(sampler):
    """CFG++ is sent a pair, at A1111's guidance."""
    if sampler.unguided:
        return lambda x, sigma: mixture.guided(x, sigma, mixture.GUIDANCE / 12.5)
    return mixture.denoised


def run(sampler, sigmas, *, dtype=torch.float64, noise=None, model=None, **options):
    """(the last x, the levels that were evaluated)."""
    if sampler.draws_noise:
        options["noise"] = noise or mixture.noises(dtype)
    steps = sampler.run(mixture.start(sigmas[0], dtype), sigmas, **options)
    return mixture.drive(steps, model or model_of(sampler))


def far(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(scope="module")
def recorded():
    return load_file(mixture.RECORDED)


@pytest.mark.parametrize("key", CASES)
def test_every_sampler_ends_where_the_published_one_ends(key, recorded):
    label, options, sigmas = CASES[key]
    found, _ = run(BY_LABEL[label], sigmas, **options)
    assert far(found, recorded[key]) < 1e-6


@pytest.mark.parametrize("key", CASES)
def test_every_sampler_ends_there_in_float32_too(key, recorded):
    label, options, sigmas = CASES[key]
    found, _ = run(BY_LABEL[label], sigmas, dtype=torch.float32, **options)
    assert found.dtype == torch.float32
    assert far(found, recorded[key]) < 1e-4


def test_every_sampler_and_schedule_is_recorded(recorded):
    assert set(recorded) == set(CASES)
    assert {label for label, *_ in CASES.values()} == set(BY_LABEL)


# even steps in log sigma, smaller towards both ends, so that a first and a last step of low order do not count
def gentle(n, high=8.0, low=0.1):
    return [high * (low / high) ** ((i / n) ** 2 * (3 - 2 * i / n)) for i in range(n + 1)]


ORDERS = {
    # as published; twice its second difference would make it 3
    "DPM++ 3M SDE": (2, (80, 160)),
    "Euler": (1, (80, 160)),
    "Euler a": (1, (80, 160)),
    "DDIM": (1, (80, 160)),
    "DDIM CFG++": (1, (80, 160)),
    "DPM++ 2M": (2, (80, 160)),
    "DPM++ SDE": (2, (80, 160)),
    "DPM++ 2M SDE": (2, (80, 160)),
    "DPM++ 2M SDE Heun": (2, (80, 160)),
    "DPM++ 2S a": (2, (80, 160)),
    "Heun": (2, (80, 160)),
    "DPM2": (2, (80, 160)),
    "DPM2 a": (2, (80, 160)),
    "Restart": (2, (10, 19)),  # as many as it takes without going back
    "PLMS": (2, (80, 160)),
    "DPM fast": (3, (71, 143)),  # no number with a last step of order 1
    "LMS": (4, (80, 160)),
    "UniPC": (4, (80, 160)),  # order 3, and the corrector adds one
}


@pytest.mark.parametrize(("label", "order", "steps"), [(label, *rest) for label, rest in ORDERS.items()], ids=str)
def test_the_error_falls_by_the_order_of_the_method(label, order, steps):
    def error(n):
        sigmas = gentle(n)
        still = {"eta": 0.0} if "eta" in sampler.options else {}
        plain = (lambda x, sigma: (mixture.denoised(x, sigma),) * 2) if sampler.unguided else mixture.denoised
        found, _ = run(sampler, sigmas, noise=no_noise, model=plain, **still)
        return far(found, mixture.followed(mixture.start(sigmas[0]), sigmas[0], sigmas[-1]))

    sampler, (few, many) = BY_LABEL[label], steps
    measured = math.log(error(few) / error(many)) / math.log(many / few)
    assert order - 0.25 < measured < order + 0.35


def test_orders_are_measured_of_all_that_have_one():
    assert set(BY_LABEL) - set(ORDERS) == {"DPM adaptive", "LCM"}


def test_dpm_adaptive_comes_nearer_the_less_error_it_is_allowed():
    def error(allowed):
        found, levels = run(BY_LABEL["DPM adaptive"], [8.0, 0.1, 0.0], noise=no_noise, eta=0.0, rtol=allowed, atol=0.0)
        return far(found, mixture.followed(mixture.start(8.0), 8.0, 0.1)), len(levels)

    errors, evaluations = zip(*map(error, (0.1, 0.01, 0.001)), strict=True)
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert list(evaluations) == sorted(evaluations)


def test_dpm_adaptive_says_so_when_the_model_gives_no_number():
    with pytest.raises(SpoiledPicture, match="not-a-number near noise level 8"):
        run(BY_LABEL["DPM adaptive"], [8.0, 0.1, 0.0], model=lambda x, sigma: x * math.nan)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 60))
def test_evaluations_are_as_many_as_the_row_says(n):
    for sampler in SAMPLERS:
        expected = sampler.evaluations(n)
        sigmas = mixture.karras(n) if n > 1 else [mixture.HIGH, 0.0]
        if expected is not None:
            assert len(run(sampler, sigmas)[1]) == expected, sampler.label


@settings(deadline=None, max_examples=60)
@given(sigmas=st.lists(st.floats(0.01, 100), min_size=1, max_size=30, unique_by=lambda s: round(math.log(s), 2)))
def test_any_descending_levels_give_a_finite_end(sigmas):
    sigmas = [*sorted(sigmas, reverse=True), 0.0]
    for sampler in SAMPLERS:
        found, levels = run(sampler, sigmas)
        assert found.isfinite().all(), sampler.label
        assert min(levels) > 0


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.label)
def test_one_step_to_0_is_what_the_model_sees(sampler):
    found, levels = run(sampler, [5.0, 0.0])
    guided = model_of(sampler)(mixture.start(5.0), 5.0)
    assert levels == [5.0]
    assert far(found, guided[0] if sampler.unguided else guided) < 1e-12


@pytest.mark.parametrize("sampler", TAKES["eta"], ids=lambda sampler: sampler.label)
def test_eta_0_draws_no_noise(sampler):
    run(sampler, mixture.karras(12), noise=no_noise, eta=0.0)


@pytest.mark.parametrize("sampler", TAKES["s_churn"], ids=lambda sampler: sampler.label)
def test_without_churn_no_noise_is_drawn(sampler):
    run(sampler, mixture.karras(12), noise=no_noise)


@pytest.mark.parametrize("sampler", TAKES["s_noise"], ids=lambda sampler: sampler.label)
def test_s_noise_multiplies_the_noise(sampler):
    churn = {"s_churn": 5.0} if "s_churn" in sampler.options else {}
    drawn = mixture.noises()
    by_option, _ = run(sampler, mixture.karras(22), s_noise=1.5, **churn)
    by_hand, _ = run(sampler, mixture.karras(22), noise=lambda *levels: drawn(*levels) * 1.5, **churn)
    without, _ = run(sampler, mixture.karras(22), **churn)
    assert far(by_option, by_hand) < 1e-9
    assert far(by_option, without) > 1e-3


@pytest.mark.parametrize("sampler", TAKES["s_churn"], ids=lambda sampler: sampler.label)
def test_churn_raises_the_levels_in_its_range_and_no_others(sampler):
    sigmas = mixture.karras(20)
    _, levels = run(sampler, sigmas, s_churn=4.0, s_tmin=0.5, s_tmax=5.0)
    raised = [sigma * 1.2 for sigma in sigmas if 0.5 <= sigma <= 5.0]
    kept = [sigma for sigma in sigmas[:-1] if not 0.5 <= sigma <= 5.0]
    assert raised
    for level in (*raised, *kept):
        assert any(math.isclose(level, each) for each in levels)
    assert max(levels) == sigmas[0]


@pytest.mark.parametrize("sampler", TAKES["s_churn"], ids=lambda sampler: sampler.label)
def test_churn_at_most_doubles_the_variance(sampler):
    _, levels = run(sampler, mixture.karras(5), s_churn=100.0)
    assert max(levels) == pytest.approx(mixture.HIGH * 2**0.5)


@pytest.mark.parametrize("label", ["Euler a", "DPM2 a", "DPM++ 2S a", "DPM++ 2M SDE", "DPM++ 3M SDE", "DDIM", "LCM"])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_each_step_ends_at_the_level_it_is_for(label, eta):
    """For a model that sees 0 everywhere x is all noise, and its variance is that of the level."""
    sampler, sigmas = BY_LABEL[label], [9.0, 4.0, 1.5, 0.6]
    with_eta = {"eta": eta} if "eta" in sampler.options else {}
    generator = torch.Generator().manual_seed(5)
    steps = sampler.run(
        torch.randn(4, 3, 100, 100, generator=generator) * sigmas[0],
        sigmas,
        noise=lambda *levels: torch.randn(4, 3, 100, 100, generator=generator),
        **with_eta,
    )
    found, _ = mixture.drive(steps, lambda x, sigma: x * 0)
    assert float(found.std()) == pytest.approx(sigmas[-1], rel=0.02)


def test_restart_goes_back_to_2_from_20_steps_on():
    def rises(n):
        _, levels = run(BY_LABEL["Restart"], mixture.karras(n))
        return sum(later > sooner * 1.5 for sooner, later in pairwise(levels))

    assert [rises(n) for n in (10, 19, 20, 35, 36, 60)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s.brownian], ids=lambda sampler: sampler.label)
def test_a_brownian_path_is_asked_for_falling_levels_of_the_schedule_above_0(sampler):
    asked, drawn, sigmas = [], mixture.noises(), mixture.karras(6)
    run(sampler, sigmas, noise=lambda *levels: asked.append(levels) or drawn())
    assert all(sigma > target >= sigmas[-2] for sigma, target in asked)
    assert {sigma for sigma, _ in asked} == set(sigmas[:-2])


def ddim_of_compvis(alphas, timesteps, x, eta, draw):
    """ldm/models/diffusion/ddim.py, p_sample_ddim, in its scaling: x has variance 1."""
    before = [0, *timesteps[:-1]]
    for at, previous in zip(reversed(timesteps), reversed(before), strict=True):
        a, a_prev = alphas[at], alphas[previous]
        sigma = ((1 - a) / a) ** 0.5
        noise = (x / a**0.5 - mixture.denoised(x / a**0.5, sigma)) / sigma
        added = eta * ((1 - a_prev) / (1 - a) * (1 - a / a_prev)) ** 0.5
        clean = (x - (1 - a) ** 0.5 * noise) / a**0.5
        x = a_prev**0.5 * clean + (1 - a_prev - added**2) ** 0.5 * noise + added * draw()
    return x


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim_on_its_own_levels_is_compvis(eta):
    alphas = 1 / (1 + mixture.trained() ** 2)
    sigmas, timesteps = mixture.ddim(20), list(range(1, 1000, 50))
    x = mixture.start(sigmas[0])
    expected = ddim_of_compvis(alphas, timesteps, x * alphas[timesteps[-1]] ** 0.5, eta, mixture.noises())
    found, _ = run(BY_LABEL["DDIM"], sigmas, eta=eta)
    assert far(found * alphas[0] ** 0.5, expected) < 1e-9
