"""A forecast is made by the code itself: what optimizers do to fake tensors is what they do to real ones."""

import pytest
import tiny
import torch

from safelight.errors import CannotPredict
from safelight.optimizers import OPTIMIZERS
from safelight.planner import forecast as forecasts
from safelight.planner.forecast import Forecast, weights_of
from safelight.probe import blueprint
from safelight.probe.device import Device
from safelight.simulate.cost import PHASES, usable_bytes

CARD = Device("cuda", 0, "a card", 2**34, 2**34, (8, 9), ("float32", "bfloat16", "float16"), elsewhere=True)


def chosen(name, **options):
    known = OPTIMIZERS[name]
    return known, {**known.defaults(), **options}


def made(pipe, **size):
    return tiny.forecast(pipe, CARD, **{"width": 32, "height": 32, **size})


def test_weights_are_those_of_the_pipeline_to_the_byte(pipe):
    cost = made(pipe).cost()
    real = {name: weights_of(part).total for name, part in blueprint.models(pipe).items()}
    assert {name: part.total for name, part in cost.parts.items()} == real
    assert all(cost.phase(name).resident == sum(real.values()) for name in PHASES)


def test_sixteen_bits_halve_weights_and_activations(pipe):
    forecast = made(pipe)
    plain, half = forecast.cost(), forecast.cost([chosen("dtype", value="bfloat16")])
    # a table of positions in whole numbers stays
    assert half.weights == pytest.approx(plain.weights / 2, rel=0.01)
    assert half.decode.live == pytest.approx(plain.decode.live / 2, rel=0.05)


def test_a_set_traced_together_is_near_to_its_effects_multiplied(unet_pipe):
    forecast = made(unet_pipe, width=128, height=128)
    both = [chosen("dtype", value="bfloat16"), chosen("channels-last"), chosen("fused-qkv")]
    exact, rough = (
        forecast.cost(both),
        Forecast(forecast.blueprint, forecast.target, forecast.rates).cost(both, roughly=True),
    )
    assert rough.seconds == pytest.approx(exact.seconds, rel=0.03)
    assert rough.peak_bytes == pytest.approx(exact.peak_bytes, rel=0.03)


def test_the_order_in_which_sets_are_asked_for_changes_nothing(unet_pipe):
    sets = [[], [chosen("dtype")], [chosen("channels-last")], [chosen("dtype"), chosen("vae-slicing")]]
    one, other = (made(unet_pipe, batch_size=2) for _ in range(2))
    there = [one.cost(chosen) for chosen in sets]
    back = [other.cost(chosen) for chosen in reversed(sets)]
    assert there == back[::-1]


def test_more_pixels_steps_and_pictures_take_longer(pipe):
    base = made(pipe).cost()
    assert made(pipe, width=64, height=64).cost().decode.peak_bytes > base.decode.peak_bytes
    assert made(pipe, batch_size=4).cost().decode.live > base.decode.live
    longer = Forecast(made(pipe).blueprint, made(pipe).target, tiny.rates(), steps=40).cost()
    assert longer.denoise.seconds == pytest.approx(2 * base.denoise.seconds)


def test_guidance_asks_the_denoiser_twice(unet_pipe):
    from dataclasses import replace

    guided = made(unet_pipe)
    alone = Forecast(guided.blueprint, replace(guided.target, guided=False), guided.rates)
    assert alone.cost().denoise.live < guided.cost().denoise.live


def test_a_vae_that_overflows_in_float16_is_predicted_in_float32(unet_pipe):
    live = {}
    for overflows in (True, False):
        unet_pipe.vae.register_to_config(force_upcast=overflows)
        live[overflows] = made(unet_pipe).cost([chosen("dtype", value="float16")]).decode.live
    assert live[True] > 1.9 * live[False]


def test_a_denoiser_that_nobody_knows_how_to_call_is_one_line(unet_pipe):
    class Unknown(type(unet_pipe.unet)):
        pass

    unet_pipe.unet.__class__ = Unknown
    with pytest.raises(CannotPredict, match="does not know what Unknown is called with") as raised:
        made(unet_pipe).cost()
    assert "\n" not in str(raised.value)


def test_forecasting_leaves_torch_as_it_was(pipe):
    state = torch.get_rng_state()
    made(pipe).cost([chosen("dtype", value="bfloat16")])
    assert torch.equal(state, torch.get_rng_state())
    assert torch.nn.init.zeros_(torch.ones(2)).sum() == 0, "weights are initialized again"


def test_a_card_keeps_some_memory_for_itself():
    assert usable_bytes("cuda", 2**33) < 2**33 - 2**29
    assert usable_bytes("cuda", 0) == 0
    assert (
        forecasts.written([chosen("dtype", value="bfloat16"), chosen("channels-last")])
        == "dtype=bfloat16,channels-last"
    )
    assert forecasts.written([]) == ""
