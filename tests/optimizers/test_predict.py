"""What optimizers promise to a planner: traced ones run on a pipeline of fake tensors and leave it as it was; the
predictions of all are numbers, and agree on what is faster and what is smaller."""

from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from math import isfinite

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.optimizers import OPTIMIZERS, transfer
from safelight.optimizers.configs import target_of_blueprint
from safelight.optimizers.division import choices
from safelight.optimizers.target import target_of
from safelight.planner import Forecast
from safelight.probe import blueprint
from safelight.probe.device import Device
from safelight.simulate import inputs
from safelight.simulate.cost import PHASES, Cost, Phase, Weights
from safelight.simulate.fake import fake
from safelight.simulate.trace import record, tensors
from tests import tiny

GIB = 2**30
CARD = Device(
    "cuda", 0, "A card", 80 * GIB, 80 * GIB, (8, 0), ("float32", "bfloat16", "float16"), ("tf32",), elsewhere=True
)
CPU = Device("cpu", 0, "A CPU", 64 * GIB, 64 * GIB, (0, 0), ("bfloat16",), (), elsewhere=True)
MODELS = ("sd15", "sdxl", "flux1-dev")

# -- on fake tensors ---------------------------------------------------------------------------------------------------

# a tiny pipeline that each fits, the dtype it is loaded in, options with which there is something to do, pictures
CASES = {
    "dtype": (tiny.sd, "float32", {"value": "bfloat16"}, 1),
    "channels-last": (tiny.sd, "float32", {}, 1),
    "fused-qkv": (tiny.flux, "float32", {}, 1),
    "vae-slicing": (tiny.sd, "float32", {}, 2),
    "attention-slicing": (tiny.sd, "float32", {"size": 1}, 1),
    "split-attention": (tiny.flux, "float32", {"chunk": 8}, 1),
    "token-merging": (tiny.sd, "float32", {}, 1),
    "upcast-vae": (tiny.sd, "bfloat16", {}, 1),
    "half-vae": (tiny.sd, "float32", {"value": "bfloat16"}, 1),
}
TRACED = sorted(name for name, known in OPTIMIZERS.items() if known.traced)


def look(made, scene):
    """Traces of the denoiser and of the decoder, as they are now."""
    parts, known = made.pipe.components, made.blueprint
    denoiser, vae = parts[known.denoiser_name], parts["vae"]
    with made.active():
        given_ = inputs.denoiser_inputs(known, scene, next(denoiser.parameters()).dtype)
        latents = inputs.latents(known, scene, next(vae.parameters()).dtype)
        return (
            record(lambda: denoiser(**given_, return_dict=False), tensors(given_)),
            record(lambda: vae.decode(latents, return_dict=False), [latents]),
        )


@pytest.mark.parametrize("name", TRACED)
def test_a_traced_optimizer_shows_on_fake_tensors_and_leaves_them_as_they_were(name):
    assert name in CASES, "add a pipeline that it fits"
    make, dtype, options, pictures = CASES[name]
    pipe, known = make(), OPTIMIZERS[name]
    target = replace(target_of(pipe, CPU, width=32, height=32, batch_size=pictures), dtype=dtype)
    options = {**known.defaults(), **options}
    assert known.fits(target, **options) is None
    made = fake(blueprint.of(pipe), dtype)
    scene = inputs.Scene(target.width, target.height, batch_size=pictures)
    before = look(made, scene)
    with ExitStack() as stack, made.active():
        known.enter(stack, made.pipe, target, options)
        during = look(made, scene)
    assert during != before
    assert look(made, scene) == before


# -- numbers -----------------------------------------------------------------------------------------------------------


def choice(name, **options):
    return OPTIMIZERS[name], {**OPTIMIZERS[name].defaults(), **options}


@cache
def forecast(model, device):
    known = blueprint.read(model)
    return Forecast(known, target_of_blueprint(known, device), tiny.rates(queued=device.kind != "cpu"))


@cache
def in_16_bits(model, device):
    """Its cost, and the target as it then is."""
    made = forecast(model, device)
    return made.cost([choice("dtype")]), replace(made.target, dtype="bfloat16")


def after(model, name, device=CARD, **options):
    cost, target = in_16_bits(model, device)
    known, options = choice(name, **options)
    return known.predict(cost, target, **options)


def are_numbers(cost):
    seconds = [cost.once, *(phase.seconds for phase in cost.phases.values())]
    sizes = [cost.host_bytes, *(size for phase in cost.phases.values() for size in (phase.resident, phase.live))]
    return all(isfinite(value) and value >= 0 for value in seconds + sizes)


@pytest.mark.parametrize("device", [CARD, CPU], ids=lambda device: device.kind)
@pytest.mark.parametrize("model", MODELS)
def test_every_prediction_is_of_seconds_and_bytes_that_can_be(model, device):
    cost, target = in_16_bits(model, device)
    for name, known in OPTIMIZERS.items():
        for variant in known.variants(cost, target) if known.variants else [{}]:
            options = {**known.defaults(), **variant}
            if known.fits(target, **options) is None:
                assert are_numbers(known.predict(cost, target, **options)), (name, variant)


def test_planners_choose_between_a_few_variants_whose_options_exist():
    cost, target = in_16_bits("flux1-dev", CARD)
    for known in OPTIMIZERS.values():
        found = known.variants(cost, target) if known.variants else [{}]
        assert len(found) <= 4
        assert all(set(variant) <= set(known.defaults()) for variant in found)


# -- where weights lie -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_the_less_lies_on_the_card_the_longer_it_takes(model):
    plain, _ = in_16_bits(model, CARD)
    whole, layers, files = (after(model, f"{word}-offload") for word in ("model", "sequential", "disk"))
    assert layers.peak_bytes < whole.peak_bytes < plain.peak_bytes
    assert plain.seconds < whole.seconds < layers.seconds < files.seconds
    assert files.host_bytes == 0 == plain.host_bytes
    assert whole.host_bytes == layers.host_bytes == plain.weights


@pytest.mark.parametrize("model", MODELS)
def test_groups_are_smaller_than_models_and_faster_than_single_layers(model):
    leaf = after(model, "group-offload")
    assert leaf.peak_bytes < after(model, "model-offload").peak_bytes
    assert leaf.seconds < after(model, "sequential-offload").seconds
    assert leaf.seconds <= after(model, "group-offload", stream=False).seconds


@pytest.mark.parametrize("model", MODELS)
def test_a_larger_budget_streams_less(model):
    cost, target = in_16_bits(model, CARD)
    budgets = [variant["budget_gib"] for variant in OPTIMIZERS["streamed-blocks"].variants(cost, target)]
    costs = [after(model, "streamed-blocks", budget_gib=budget) for budget in budgets]
    assert costs, "no budget that can be met"
    assert [c.denoise.resident for c in costs] == sorted(c.denoise.resident for c in costs)
    assert [c.seconds for c in costs] == sorted((c.seconds for c in costs), reverse=True)
    for budget, one in zip(budgets, costs, strict=True):
        assert one.denoise.resident <= budget * GIB < cost.parts[denoiser(cost)].total


def denoiser(cost):
    return "transformer" if "transformer" in cost.parts else "unet"


@pytest.mark.parametrize("budget", [0.01, 70.0])
def test_a_budget_that_streamed_blocks_refuses_is_no_better_than_whole_models(budget):
    refused, whole = after("flux1-dev", "streamed-blocks", budget_gib=budget), after("flux1-dev", "model-offload")
    assert (refused.peak_bytes, refused.seconds) == (whole.peak_bytes, whole.seconds)


def test_variants_hold_for_float32_and_for_the_16_bits_that_may_follow():
    made = forecast("flux1-dev", CARD)
    plain, (half, target) = made.cost(), in_16_bits("flux1-dev", CARD)
    known = OPTIMIZERS["streamed-blocks"]
    wide = {variant["budget_gib"] for variant in known.variants(plain, made.target)}
    assert {variant["budget_gib"] for variant in known.variants(half, target)} <= wide


@settings(max_examples=50, deadline=None)
@given(count=st.integers(2, 60), block=st.integers(1, 2**30), other=st.integers(0, 2**30), ahead=st.integers(1, 3))
def test_of_equal_blocks_the_fewer_flow_the_more_memory_is_taken(count, block, other, ahead):
    found = choices([block] * count, other, ahead)
    assert found[0] == (other + count * block, ())
    assert all(need <= found[0][0] for need, _ in found)
    needs = [need for need, streamed in found if len(streamed) > ahead]
    assert needs == sorted(needs, reverse=True)


phases = st.builds(
    Phase,
    st.fixed_dictionaries({"copy": st.floats(0, 100)}),
    host=st.floats(0, 100),
    resident=st.just(0),
    live=st.integers(0, 2**34),
    queued=st.booleans(),
)
sizes = st.integers(0, 2**34).flatmap(lambda total: st.builds(Weights, st.just(total), st.integers(0, total)))


@st.composite
def costs(draw):
    names = ("unet", "vae", "text_encoder", "text_encoder_2")
    parts = {name: draw(sizes) for name in names}
    resident = sum(part.total for part in parts.values())
    drawn = {name: replace(draw(phases), resident=resident) for name in PHASES}
    return Cost(**drawn, parts=parts, rates=tiny.rates(), steps=draw(st.integers(1, 50)))


WAYS = {
    "in turns": transfer.in_turns,
    "layer by layer": transfer.layer_by_layer,
    "leaves": lambda cost: transfer.in_groups(cost, blocks=0, streams=False),
    "from disk": transfer.from_disk,
    "without encoders": transfer.without_encoders,
}


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=50, deadline=None)
@given(cost=costs())
def test_moving_weights_takes_time_and_never_more_memory(way, cost):
    moved = WAYS[way](cost)
    assert are_numbers(moved)
    assert moved.seconds >= cost.seconds
    for name in PHASES:
        assert moved.phase(name).resident <= cost.phase(name).resident
        assert moved.phase(name).live == cost.phase(name).live


# -- what is computed --------------------------------------------------------------------------------------------------


def test_half_the_bits_are_half_the_weights():
    plain, half = forecast("sdxl", CARD).cost(), in_16_bits("sdxl", CARD)[0]
    assert half.weights == pytest.approx(plain.weights / 2, rel=0.01)
    assert half.seconds < plain.seconds


def test_tiles_lower_what_the_decoder_of_sdxl_needs():
    made = forecast("sdxl", CARD)
    tiled = made.cost([choice("dtype"), choice("vae-tiling", tile_px=512)])
    assert tiled.decode.live < made.cost([choice("dtype")]).decode.live / 2


@pytest.mark.parametrize("model", MODELS)
def test_compiling_takes_time_once_and_saves_it_in_every_picture(model):
    plain, _ = in_16_bits(model, CARD)
    for name in ("compile", "compile-blocks"):
        assert after(model, name).once > 0
        assert after(model, name).seconds < plain.seconds
    assert after(model, "compile", parts="denoiser+vae").once > after(model, "compile").once


def test_like_blocks_are_compiled_once():
    assert after("flux1-dev", "compile-blocks").once < after("flux1-dev", "compile").once / 5


def test_a_graph_keeps_its_memory_and_frozen_weights_take_more():
    plain, _ = in_16_bits("sdxl", CARD)
    assert after("sdxl", "compile", mode="reduce-overhead").peak_bytes > plain.peak_bytes
    on_cpu, _ = in_16_bits("sd15", CPU)
    assert after("sd15", "compile", CPU).peak_bytes > on_cpu.peak_bytes + on_cpu.parts["unet"].total


@pytest.mark.parametrize("name", ["guidance-cutoff", "guidance-split"])
def test_guidance_is_saved_only_where_there_is_some(name):
    cost, target = in_16_bits("sdxl", CARD)
    known, options = choice(name)
    assert known.predict(cost, replace(target, guided=False), **options) == cost
    assert known.predict(cost, target, **options) != cost


@given(low=st.floats(0.05, 0.95), high=st.floats(0.05, 0.95))
@settings(max_examples=30, deadline=None)
def test_more_guidance_takes_longer(low, high):
    few, many = (after("sdxl", "guidance-cutoff", fraction=fraction).seconds for fraction in sorted((low, high)))
    assert few <= many <= in_16_bits("sdxl", CARD)[0].seconds


def test_weights_in_8_bits_are_smaller_by_what_their_layers_hold():
    plain, _ = in_16_bits("sdxl", CARD)
    small = after("sdxl", "layerwise-casting")
    assert small.parts["unet"].total == pytest.approx(plain.parts["unet"].total / 2, rel=0.01)
    assert small.seconds >= plain.seconds
    flux = after("flux1-dev", "layerwise-casting").parts["transformer"].total
    # its modulations are called norms, and stay
    assert flux == pytest.approx(0.64 * in_16_bits("flux1-dev", CARD)[0].parts["transformer"].total, rel=0.02)


def test_a_tiny_vae_on_a_cpu_leaves_the_large_one_in_memory():
    for device in (CARD, CPU):
        plain, _ = in_16_bits("sd15", device)
        tiny_one = after("sd15", "tiny-vae", device)
        assert tiny_one.decode.seconds < plain.decode.seconds
        assert (tiny_one.decode.resident < plain.decode.resident) == (device is CARD)


def test_caches_of_attention_take_memory_for_the_time_they_save():
    plain, _ = in_16_bits("flux1-dev", CARD)
    for name in ("taylorseer-cache", "pyramid-attention-broadcast", "faster-cache"):
        cached = after("flux1-dev", name)
        assert cached.denoise.seconds < plain.denoise.seconds
        assert cached.denoise.live > plain.denoise.live + GIB  # 57 layers of 4096 tokens of 3072 numbers


def test_a_cache_that_has_to_measure_first_is_paid_for_once():
    cost, target = in_16_bits("flux1-dev", CARD)
    known, options = choice("mag-cache")
    other = replace(target, parts={**target.parts, "transformer": forecast("sd15", CARD).target.parts["unet"]})
    assert known.predict(cost, target, **options).once == 0 < known.predict(cost, other, **options).once


def test_what_is_installed_here_says_nothing_about_another_machine():
    """triton and cache-dit are not installed where this is tested, or need not be."""
    _, target = in_16_bits("flux1-dev", CARD)
    for name in ("compile", "cache-dit", "expandable-segments", "cudnn-benchmark"):
        known, options = choice(name)
        assert known.fits(target, **options) is None
