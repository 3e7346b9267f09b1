"""What is told of decode and encode: who runs how, what is refused and why, and that nothing is left behind."""

import copy
import re

import pytest
import tiny
import tiny_vaes
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from safelight.cli.vae import FIDELITIES, HOWS
from safelight.errors import OutOfMemory, SafelightError, UsageError
from safelight.vae import engine, running, seams
from safelight.vae.blending import blending
from safelight.vae.engine import Engine, decode, encode
from safelight.vae.graph import CannotWalk
from safelight.vae.running import Exact
from safelight.vae.seams import exact_of, exactly

EXACT = {"rtol": 0, "atol": 5e-5}
LATENTS = torch.randn(1, 4, 20, 14, generator=torch.Generator().manual_seed(0))
PICTURE = torch.rand(1, 3, 40, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return tiny.vae()


# -- the same picture --------------------------------------------------------------------------------------------------


def test_decode_and_encode_are_those_of_the_vae(vae):
    torch.testing.assert_close(decode(vae, LATENTS, how="exact"), tiny_vaes.whole(vae, "decode", LATENTS), **EXACT)
    torch.testing.assert_close(encode(vae, PICTURE, how="exact"), tiny_vaes.whole(vae, "encode", PICTURE), **EXACT)


def test_what_can_be_walked_is_exact_unless_asked_otherwise(vae):
    assert torch.equal(decode(vae, LATENTS), decode(vae, LATENTS, how="exact"))
    assert torch.equal(decode(vae, LATENTS, how="whole"), tiny_vaes.whole(vae, "decode", LATENTS))


def test_slices_are_still_exact(vae):
    batch = torch.cat([LATENTS, LATENTS.flip(2)])
    expected = decode(vae, batch)
    vae.enable_slicing()
    torch.testing.assert_close(decode(vae, batch), expected, atol=1e-5, rtol=1e-5)


def test_a_vae_that_would_tile_is_exact_all_the_same(vae):
    expected = tiny_vaes.whole(vae, "decode", LATENTS)
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = 8, 16
    torch.testing.assert_close(decode(vae, LATENTS, how="exact"), expected, **EXACT)
    assert vae.use_tiling


def test_whoever_calls_the_vae_meets_the_strips(vae):
    with exactly(vae) as exact, torch.no_grad():
        made = vae.decode(LATENTS).sample
        assert len(exact.used) == 1
    torch.testing.assert_close(made, tiny_vaes.whole(vae, "decode", LATENTS), **EXACT)


# -- budgets -----------------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(st.floats(1.0, 4.0), st.integers(8, 30), st.integers(8, 20))
def test_any_budget_above_the_least_is_kept_and_changes_nothing(over, height, width):
    exact = Exact(tiny_vaes.kl((8, 16)).decoder, strip_bytes=8000)
    x = torch.randn(1, 4, height, width)
    least = exact.plans(x)[0].peak_bytes
    exact.budget_bytes = int(least * over)
    with torch.no_grad():
        expected = exact.module(x)
    torch.testing.assert_close(exact(x), expected, **EXACT)
    assert exact.used[0].peak_bytes <= exact.budget_bytes


def test_a_budget_below_the_least_says_what_the_least_is(vae):
    large = torch.randn(1, 4, 128, 128)
    exact = exact_of(vae, "decode")
    least = exact.plans(large)[0].peak_bytes
    with pytest.raises(OutOfMemory) as error:
        decode(vae, large, budget_bytes=2**20, how="exact")
    assert (told := re.fullmatch(r"1 MiB is too little .* the least is (\d+) MiB", str(error.value)))
    assert 0 <= int(told[1]) * 2**20 - least < 2**20


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2**24), min_size=2, max_size=2).map(sorted))
def test_a_smaller_budget_never_gives_a_plan_of_more_bytes_or_less_work(budgets):
    exact = EXACT_OF_64
    least = exact.plans(LARGER)[0].peak_bytes
    smaller, larger = (running.fitting(exact.plans(LARGER), least + budget) for budget in budgets)
    assert smaller.peak_bytes <= larger.peak_bytes
    assert smaller.work >= larger.work


LARGER = torch.zeros(1, 4, 64, 48)
EXACT_OF_64 = Exact(tiny_vaes.kl((8, 16, 16)).decoder, strip_bytes=2**15)


# -- which way ---------------------------------------------------------------------------------------------------------


def unwalkable(vae):
    vae.decoder = Strange(lambda x: nn.functional.interpolate(x, scale_factor=32.0).cumsum(2)).eval()
    vae.config["block_out_channels"] = [1] * 6  # a factor of 32
    return vae


def test_what_cannot_be_walked_is_whole_and_tiled_only_where_that_is_allowed(vae):
    made = decode(unwalkable(vae), LATENTS)
    assert torch.equal(made, decode(vae, LATENTS, how="whole"))
    with pytest.raises(CannotWalk):
        decode(vae, LATENTS, budget_bytes=2**30)


def test_no_exact_plan_within_the_budget_is_tiles_only_where_that_is_allowed(vae):
    large = torch.randn(1, 4, 300, 300)
    budget = int(0.8 * exact_of(vae, "decode").plans(large)[0].peak_bytes)
    with pytest.raises(OutOfMemory, match="the least is"):
        decode(vae, large, budget_bytes=budget)
    made = decode(vae, large, budget_bytes=budget, fidelity="approximate")
    assert made.shape == (1, 3, 600, 600) and not torch.equal(made, decode(vae, large))


def test_tiles_are_halved_until_they_fit_and_too_little_says_so(vae):
    large = torch.randn(1, 4, 300, 300)
    with blending(vae) as tiled, torch.no_grad():
        vae.decode(large)
        tiled.budget_bytes = tiled.peak_bytes(large, tiled.grid(large)) - 1
        vae.decode(large)
    assert 1 < tiled.counts[0] < tiled.counts[1]
    with pytest.raises(OutOfMemory, match=r"1 MiB is too little for tiles of 16 px: \d+ MiB do"):
        decode(vae, large, how="blended", budget_bytes=2**20)


def test_a_tile_that_cannot_be_walked_is_decoded_by_the_vae_itself(vae):
    wide = torch.randn(1, 4, 20, 24)
    with blending(unwalkable(vae), 512) as tiled, torch.no_grad():
        assert vae.decode(wide).sample.shape == (1, 32, 640, 768)
    assert tiled.counts == [4]


def test_the_same_bits_are_asked_for_by_name_and_keep_no_budget(vae):
    assert torch.equal(decode(vae, LATENTS, fidelity="exact"), decode(vae, LATENTS, how="whole"))
    for asked in ({"fidelity": "exact"}, {"how": "whole"}):
        with pytest.raises(UsageError, match="keeps no budget"):
            decode(vae, LATENTS, budget_bytes=2**30, **asked)


def test_plans_are_made_once_for_pictures_of_one_size(vae):
    ours = Engine(vae)
    first = ours.decode(LATENTS)
    plans = ours._exact["decode", False]._plans
    known = dict(plans)
    assert torch.equal(ours.decode(LATENTS), first) and plans == known and len(known) == 1


# -- number formats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exact", "whole", "blended"])
def test_the_vae_computes_in_the_precision_that_is_asked_for_and_keeps_its_own(vae, how):
    before = {name: (weight, weight.data_ptr()) for name, weight in vae.named_parameters()}
    made = decode(vae, LATENTS, how=how, precision="bfloat16")
    assert made.dtype == torch.bfloat16
    assert {name: (weight, weight.data_ptr()) for name, weight in vae.named_parameters()} == before
    expected = decode(copy.deepcopy(vae).bfloat16(), LATENTS.bfloat16(), how=how)
    assert torch.equal(made, expected)


def test_float16_on_a_cpu_is_computed_in_float32_and_given_back_as_it_was(vae):
    halved = copy.deepcopy(vae).half()
    made = decode(halved, LATENTS.half())
    expected = decode(halved.float(), LATENTS.half().float())
    assert made.dtype == torch.float16 and torch.equal(made, expected.half())
    assert encode(copy.deepcopy(vae).half(), PICTURE.half()).dtype == torch.float16


def test_what_is_not_a_number_is_computed_again_in_float32(vae):
    large = 1e38 * LATENTS  # 4e38 is inf in bfloat16, too
    vae.decoder = Strange(lambda x: nn.functional.pixel_shuffle(x, 2) if x.dtype == torch.float32 else x / 0).eval()
    made = decode(vae.bfloat16(), LATENTS.bfloat16(), how="whole")
    assert made.dtype == torch.bfloat16 and made.isfinite().all()
    with pytest.raises(SafelightError, match="decodes is not a number, in float32"):
        decode(vae.float(), large * 10, how="whole")


def test_rows_that_are_not_numbers_do_not_reach_a_sink(vae):
    taken = []
    vae.decoder = Strange(lambda x: x / 0).eval()
    with pytest.raises(SafelightError, match="row 0 of the picture is not a number in float32"):
        decode(vae, LATENTS, how="whole", sink=lambda *rows: taken.append(rows))
    assert not taken


def test_rows_that_are_gone_are_not_sent_again_in_another_way(vae, monkeypatch):
    taken = []

    class FailsLater(Exact):
        def __call__(self, given, *args, sink=None, **kwargs):
            sink(0, torch.zeros(1, 3, 4, 28))
            raise OutOfMemory("half way")

    monkeypatch.setattr(seams, "Exact", FailsLater)
    with pytest.raises(OutOfMemory, match="half way"):
        decode(vae, LATENTS, fidelity="approximate", sink=lambda row, rows: taken.append(row))
    assert taken == [0]


@pytest.mark.parametrize("asked", [{"precision": "int8"}, {"fidelity": "lossy"}])
def test_an_unknown_precision_or_fidelity_is_refused_with_the_known_ones(vae, asked):
    with pytest.raises(UsageError, match=r"is no (precision|fidelity) of a VAE: .* are there"):
        decode(vae, LATENTS, **asked)


# -- what is left behind -----------------------------------------------------------------------------------------------


def attributes(vae) -> dict:
    return {name: set(vars(module)) for name, module in vae.named_modules()}


@pytest.mark.parametrize("what", ["decode", "encode"])
@pytest.mark.parametrize("name", ["kl", *tiny_vaes.FAMILIES])
def test_after_closing_the_vae_is_as_it_was(name, what):
    make, factor, channels = tiny_vaes.FAMILIES.get(name, (tiny_vaes.kl, 2, 4))
    subject, tensor = copy.deepcopy(make()), tiny_vaes.given(make, factor, channels, what, 6, 5)
    made = tiny_vaes.whole(subject, what, tensor)  # first, as video VAEs note something at every run
    before, weights = attributes(subject), copy.deepcopy(subject.state_dict())
    with exactly(subject, what):
        tiny_vaes.whole(subject, what, tensor)
    assert attributes(subject) == before
    assert all(torch.equal(weights[key], value) for key, value in subject.state_dict().items())
    assert torch.equal(tiny_vaes.whole(subject, what, tensor), made)


def test_a_failure_inside_leaves_nothing_either(vae):
    before = attributes(vae)
    with pytest.raises(OutOfMemory):
        decode(vae, torch.randn(1, 4, 64, 64), budget_bytes=1)
    assert attributes(vae) == before


def test_a_forward_that_somebody_else_put_there_is_put_back(vae):
    own = vae.decoder.forward
    vae.decoder.forward = doubled = lambda given, *args: 2 * own(given, *args)
    with exactly(vae):
        made = tiny_vaes.whole(vae, "decode", LATENTS)
    assert vae.decoder.forward is doubled
    torch.testing.assert_close(made, tiny_vaes.whole(vae, "decode", LATENTS), **EXACT)


# -- a sink ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exact", "whole", "blended"])
def test_a_sink_gets_every_row_once_in_order_and_they_are_the_picture(vae, how):
    taken = []
    assert decode(vae, LATENTS, how=how, sink=lambda row, rows: taken.append((row, rows.clone()))) is None
    ends = [row + rows.shape[2] for row, rows in taken]
    assert [row for row, _ in taken] == [0, *ends[:-1]]
    assert ends[-1] == 40
    assert torch.equal(torch.cat([rows for _, rows in taken], 2), decode(vae, LATENTS, how=how))


def test_a_sink_of_many_strips():
    exact, taken = Exact(tiny_vaes.kl((8, 16)).decoder, strip_bytes=2000), []
    exact(LATENTS, sink=lambda row, rows: taken.append((row, rows.clone())))
    assert len(taken) > 5
    assert [row for row, _ in taken] == sorted({row for row, _ in taken})
    assert torch.equal(torch.cat([rows for _, rows in taken], 2), exact(LATENTS))


def test_a_sink_takes_one_picture(vae):
    with pytest.raises(UsageError, match="one by one"):
        decode(vae, torch.cat([LATENTS, LATENTS]), how="exact", sink=lambda row, rows: None)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_vae_in_training_is_refused(vae):
    vae.train()
    with pytest.raises(UsageError, match=r"training mode.*vae\.eval\(\)"):
        decode(vae, LATENTS, how="exact")


def test_latents_that_want_a_gradient_are_refused(vae):
    with exactly(vae), pytest.raises(UsageError, match=r"within torch\.no_grad\(\)"):
        vae.decode(LATENTS.clone().requires_grad_())


def test_no_gradient_is_kept_even_where_gradients_are_on(vae):
    assert all(weight.requires_grad for weight in vae.parameters())
    with torch.enable_grad():
        assert not decode(vae, LATENTS).requires_grad
        assert not encode(vae, PICTURE).requires_grad


def test_an_unknown_way_is_refused_with_the_known_ones(vae):
    with pytest.raises(UsageError, match="'quick' is no way of a VAE: auto, whole, exact, fast, blended"):
        decode(vae, LATENTS, how="quick")


def test_the_command_line_offers_what_the_engine_does():
    assert (HOWS, FIDELITIES) == (engine.HOW, engine.FIDELITIES)


class Strange(nn.Module):
    """A decoder that does something of its own after its convolution."""

    def __init__(self, after) -> None:
        super().__init__()
        self.conv, self.after = nn.Conv2d(4, 32, 3, padding=1), after

    def forward(self, latents, *args):
        return self.after(self.conv(latents))


def in_a_slice(x):
    x = x * 2
    x[:, :, ::2] = 0
    return x


STRANGE = {
    "two tensors": (lambda x: (x, x + 1), "returns tuple"),
    "into a slice": (in_a_slice, "writes into a part of a tensor"),
    "no rule at full size": (
        lambda x: nn.functional.interpolate(x, scale_factor=32.0).cumsum(2),
        "cumsum of 1x32x640x448 numbers needs all rows at once",
    ),
}


@pytest.mark.parametrize(("after", "told"), STRANGE.values(), ids=STRANGE)
def test_what_cannot_be_walked_is_refused_by_name(vae, after, told):
    vae.decoder = Strange(after).eval()
    with pytest.raises(CannotWalk, match=told):
        decode(vae, LATENTS, how="exact")


def test_an_operator_without_rows_at_latent_size_is_done_at_once(vae):
    vae.decoder = Strange(lambda x: nn.functional.interpolate(x.cumsum(2) / 9, scale_factor=2.0)).eval()
    torch.testing.assert_close(decode(vae, LATENTS, how="exact"), tiny_vaes.whole(vae, "decode", LATENTS), **EXACT)


def test_a_vae_without_such_a_part_is_refused():
    with pytest.raises(CannotWalk, match="Linear has no decoder"):
        exact_of(nn.Linear(1, 1), "decode")
