"""What is told of passes over strips: the whole's numbers whatever the strips, in the bytes that were predicted."""

import copy

import pytest
import tiny_vaes
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.vae.running import Exact
from safelight.vae.seams import exact_of

EXACT = {"rtol": 0, "atol": 5e-5}  # float32: the order of sums
STRIPS = st.sampled_from([1, 1000, 5000, 30_000, 10**6])
SHARES = st.sampled_from([0.0, 0.3, 0.6, 1.0])
WHAT = st.sampled_from(["decode", "encode"])


def check(make, factor: int, channels: int, what: str, size, strip_bytes: int, share: float) -> None:
    vae, tensor = make(), tiny_vaes.given(make, factor, channels, what, *size)
    made = tiny_vaes.in_strips(vae, what, tensor, strip_bytes, share)
    torch.testing.assert_close(made, tiny_vaes.whole(vae, what, tensor), **EXACT)


# -- the same numbers --------------------------------------------------------------------------------------------------


@settings(max_examples=16, deadline=None)
@given(
    st.sampled_from([(8,), (8, 16), (4, 12, 8), (8, 4, 4, 8)]),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
    st.tuples(st.integers(1, 40), st.integers(1, 9)),
    WHAT,
    STRIPS,
    SHARES,
)
def test_a_kl_vae_of_any_build_and_size(widths, layers, attention, quant, size, what, strip_bytes, share):
    factor = 2 ** (len(widths) - 1)
    size = min(size[0], 40 // factor + 1), size[1]
    if what == "encode":
        size = size[0] + 1, size[1] + 1  # below two latents the encoder itself fails
    check(lambda: tiny_vaes.kl(widths, layers, attention, quant), factor, 4, what, size, strip_bytes, share)


@settings(max_examples=6, deadline=None)
@given(st.tuples(st.integers(4, 70), st.integers(4, 30)), STRIPS, SHARES)
def test_pictures_whose_sides_are_no_multiple_of_the_factor(size, strip_bytes, share):
    check(lambda: tiny_vaes.kl((8, 16, 8)), 1, 3, "encode", size, strip_bytes, share)


@settings(max_examples=6, deadline=None)
@given(st.tuples(st.integers(1, 12), st.integers(1, 8)), WHAT, STRIPS, SHARES)
@pytest.mark.parametrize("name", tiny_vaes.FAMILIES)
def test_other_families(name, size, what, strip_bytes, share):
    make, factor, channels = tiny_vaes.FAMILIES[name]
    check(make, factor, channels, what, size, strip_bytes, share)


@pytest.mark.parametrize("what", ["decode", "encode"])
def test_the_error_is_no_larger_where_strips_meet(what):
    vae = tiny_vaes.kl((8, 16))
    tensor = tiny_vaes.given(tiny_vaes.kl, 2, 4, what, 48, 32)
    exact = exact_of(vae, what)
    exact.strip_bytes = 8000
    module = getattr(vae, f"{what}r")
    with torch.no_grad():
        given_ = tensor if what == "encode" else vae.post_quant_conv(tensor)
        error = (exact(given_) - module(given_)).abs().mean((0, 1, 3))
    (used,) = exact.used
    edges = [a for a, _ in used.tasks[-1].strips[1:]]
    assert len(edges) >= 4
    beside = torch.tensor([row + off for row in edges for off in (-1, 0)])
    others = torch.ones(len(error), dtype=torch.bool)
    others[beside] = False
    assert error[beside].mean() <= 1.5 * (error[others] if others.any() else error).mean() + 1e-8


@pytest.mark.parametrize("what", ["decode", "encode"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_numbers_are_as_near_to_the_truth_as_the_whole_in_bfloat16(dtype, what):
    def rmse(vae, in_strips: bool) -> float:
        total = 0.0
        for side in (24, 25, 26, 27):
            tensor = tiny_vaes.given(tiny_vaes.kl, 2, 4, what, side, side).to(vae.dtype)
            truth = tiny_vaes.whole(copy.deepcopy(vae).float(), what, tensor.float())
            run = tiny_vaes.in_strips(vae, what, tensor, 30_000) if in_strips else tiny_vaes.whole(vae, what, tensor)
            total += float((run.float() - truth).square().mean())
        return total**0.5

    vae = tiny_vaes.kl((16, 32))
    of_whole = rmse(copy.deepcopy(vae).to(torch.bfloat16), in_strips=False)
    assert rmse(copy.deepcopy(vae).to(dtype), in_strips=True) <= 1.05 * of_whole


@pytest.mark.parametrize("name", ["kl", *tiny_vaes.FAMILIES])
def test_items_of_a_batch_do_not_know_of_each_other(name):
    make, factor, channels = tiny_vaes.FAMILIES.get(name, (tiny_vaes.kl, 2, 4))
    for what in ("decode", "encode"):
        tensor = tiny_vaes.given(make, factor, channels, what, 6, 5)
        batch = torch.cat([tensor, tensor.flip(-1), tensor * 0.5])
        together = tiny_vaes.in_strips(make(), what, batch, 4000)
        alone = [tiny_vaes.in_strips(make(), what, item, 4000) for item in batch.split(1)]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


# -- in the bytes that were predicted ----------------------------------------------------------------------------------


# large against the weights that a pass prepares, and in strips that are small against the picture
LARGE = {
    "kl decode": (lambda: tiny_vaes.kl((8, 16)).decoder, (1, 4, 72, 56)),
    "kl encode": (lambda: tiny_vaes.kl((8, 16, 16)).encoder, (1, 3, 256, 192)),
    "kl without attention": (lambda: tiny_vaes.kl((8, 16), attention=False).decoder, (1, 4, 90, 63)),
    "tiny decode": (lambda: tiny_vaes.taesd().decoder, (1, 4, 64, 64)),
    "tiny encode": (lambda: tiny_vaes.taesd().encoder, (1, 3, 256, 192)),
}


@pytest.mark.parametrize(("make", "shape"), LARGE.values(), ids=LARGE)
def test_the_peak_is_what_was_predicted_and_a_smaller_budget_s_is_smaller(make, shape):
    module, x = make(), torch.randn(shape)
    exact, peaks = Exact(module, strip_bytes=2**16), []
    plans = exact.plans(x)
    for chosen in sorted({0, len(plans) // 2, len(plans) - 1}):
        exact.budget_bytes = plans[chosen].peak_bytes
        peaks.append(tiny_vaes.peak_bytes(lambda: exact(x), [x, *module.parameters()]))
        assert peaks[-1] == pytest.approx(exact.plan(x).peak_bytes, rel=0.10)
    assert peaks == sorted(peaks)


@pytest.mark.parametrize("name", ["dc", "wan"])
def test_families_that_copy_more_stay_within_a_half_over_what_was_predicted(name):
    """Their whole-picture attention and convolutions over frames take copies for themselves that no plan counts."""
    vae, x = tiny_vaes.FAMILIES[name][0](), tiny_vaes.given(*tiny_vaes.FAMILIES[name], "decode", 32, 24)
    exact = exact_of(vae, "decode")
    exact.strip_bytes = 2**16
    predicted = exact.plan(x).peak_bytes
    real = tiny_vaes.peak_bytes(lambda: exact(x), [x, *vae.parameters()])
    assert 0.9 * predicted < real < 1.5 * predicted


def test_rows_for_a_sink_take_no_memory_for_the_picture():
    module, x = tiny_vaes.taesd().decoder, torch.randn(1, 4, 64, 64)
    exact = Exact(module, strip_bytes=2**15)
    before = [x, *module.parameters()]
    exact.plans(x)
    kept = tiny_vaes.peak_bytes(lambda: exact(x), before)
    handed = tiny_vaes.peak_bytes(lambda: exact(x, sink=lambda row, rows: None), before)
    assert kept - handed == pytest.approx(3 * 256 * 256 * 4, rel=0.1)
