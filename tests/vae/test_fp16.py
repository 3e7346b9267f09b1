"""What is told of rescaled VAEs: float32 keeps its bits, float16 overflows no more, and what cannot be is refused."""

import copy
import logging
import math

import pytest
import tiny
import torch
from diffusers import AutoencoderDC, AutoencoderKLWan, AutoencoderTiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from safelight.vae import engine, passes, search
from safelight.vae.exact import Run
from safelight.vae.fold import folded
from safelight.vae.fp16 import CannotRescale, largest, needed_powers, overflows, rescaled, safe, values
from safelight.vae.graph import record
from safelight.vae.regions import regions
from safelight.vae.seams import exact_of

MOST = 65504.0


def kl(**config):
    return tiny.vae(**config)


def taesd():
    return AutoencoderTiny(
        encoder_block_out_channels=(16, 16),
        decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )


def dc():
    parts = {
        f"{part}_{key}": value
        for part in ("encoder", "decoder")
        for key, value in {
            "block_out_channels": (16, 32),
            "layers_per_block": (1, 1),
            "qkv_multiscales": ((), (5,)),
            "block_types": ("ResBlock", "EfficientViTBlock"),
        }.items()
    }
    return AutoencoderDC(**parts, attention_head_dim=8, latent_channels=4)


def wan():
    return AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, attn_scales=[], temperal_downsample=[True]
    )


# a VAE, and the shapes of latents and pictures
VAES = {
    "kl": (kl, (1, 4, 6, 6), (1, 3, 16, 16)),
    "kl-without-attention": (lambda: kl(mid_block_add_attention=False), (1, 4, 6, 6), (1, 3, 16, 16)),
    "tiny": (taesd, (1, 4, 6, 6), (1, 3, 16, 16)),
    "dc": (dc, (1, 4, 6, 6), (1, 3, 16, 16)),
    "wan": (wan, (1, 4, 2, 6, 6), (1, 3, 5, 16, 16)),
}


def built(name, what):
    torch.manual_seed(0)
    make, latents, pictures = VAES[name]
    vae = make().eval().requires_grad_(False)
    return vae, torch.randn(latents if what == "decode" else pictures)


def recorded(vae, what, x):
    exact = exact_of(vae, what)
    weights = {**dict(exact.module.named_parameters()), **dict(exact.module.named_buffers())}
    return record(exact.module, x, call=exact.call), weights


def result(graph, weights, x):
    *_, (_, last) = values(graph, weights, x)
    return last


def half(vae):
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    return copy.deepcopy(vae).half()


def decibels(made, truth):
    span = (truth.max() - truth.min()).item()
    return 10 * math.log10(span**2 / (made.double() - truth.double()).square().mean().item())


# -- float32 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["decode", "encode"])
@pytest.mark.parametrize("name", VAES)
def test_float32_keeps_its_bits(name, what):
    vae, x = built(name, what)
    graph, weights = recorded(vae, what, x)
    changed = rescaled(graph, 6)
    assert changed is not graph
    assert torch.equal(result(changed, weights, x), result(graph, weights, x))


@pytest.mark.parametrize("name", VAES)
def test_the_evaluator_computes_what_the_module_does(name):
    vae, x = built(name, "decode")
    exact = exact_of(vae, "decode")
    made = result(*recorded(vae, "decode", x), x)
    torch.testing.assert_close(made, (exact.call or exact.module)(x), atol=1e-6, rtol=1e-6)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=20))
@settings(deadline=None, max_examples=20)
def test_every_region_may_have_a_power_of_its_own(powers):
    vae, x = built("kl", "decode")
    graph, weights = recorded(vae, "decode", x)
    names = sorted(set(regions(graph).names))
    own = {name: powers[number % len(powers)] for number, name in enumerate(names)}
    assert torch.equal(result(rescaled(graph, own), weights, x), result(graph, weights, x))


@pytest.mark.parametrize("name", VAES)
def test_folding_after_and_before_is_the_same(name):
    vae, x = built(name, "decode")
    graph, weights = recorded(vae, "decode", x)
    plain = result(folded(graph), weights, x)
    assert torch.equal(result(folded(rescaled(graph, 5)), weights, x), plain)
    assert torch.equal(result(rescaled(folded(graph), 5), weights, x), plain)


@pytest.mark.parametrize("name", VAES)
def test_strips_of_the_rescaled_are_those_of_the_plain(name):
    vae, x = built(name, "decode")
    graph, weights = recorded(vae, "decode", x)
    truth = result(graph, weights, x)
    for schedule in search.plans(passes.rows_of(folded(rescaled(graph, 5))), 4096):
        torch.testing.assert_close(Run(schedule, weights).of(x), truth, atol=2e-5, rtol=2e-5)


# -- float16 -----------------------------------------------------------------------------------------------------------

# weights by parts of their names, and how much larger they become
SWOLLEN = {
    "kl": {"conv2.weight": 6e5, "conv2.bias": 6e5, "conv1.weight": 400},
    "kl-without-attention": {"conv2.weight": 6e5, "conv2.bias": 6e5},
    "wan": {"conv2.weight": 6e5, "conv2.bias": 6e5},
    "dc": {"up_blocks.0.1.conv2.weight": 6e4, "up_blocks.0.1.norm.weight": 6e4},
}


def swollen(name, what="decode"):
    vae, x = built(name, what)
    for weight, parameter in vae.named_parameters():
        for part, times in SWOLLEN[name].items():
            if part in weight:
                parameter.mul_(times)
    return vae, x


@pytest.mark.parametrize("name", SWOLLEN)
def test_a_vae_that_overflows_decodes_in_float16(name):
    vae, x = swollen(name)
    truth = result(*recorded(vae, "decode", x), x)
    graph, weights = recorded(half(vae), "decode", x.half())
    assert not result(graph, weights, x.half()).isfinite().all()
    changed = safe(graph, weights, x.half())
    made = result(changed, weights, x.half())
    assert made.isfinite().all()
    assert decibels(made, truth) >= 60
    assert decibels(result(folded(changed), weights, x.half()), truth) >= 60


def test_a_vae_that_overflows_encodes_in_float16():
    vae, x = swollen("kl", "encode")
    truth = result(*recorded(vae, "encode", x), x)
    graph, weights = recorded(half(vae), "encode", x.half())
    assert not result(graph, weights, x.half()).isfinite().all()
    assert decibels(result(safe(graph, weights, x.half()), weights, x.half()), truth) >= 60


def test_the_engine_decodes_and_encodes_it_in_float16():
    for what, code in (("decode", engine.decode), ("encode", engine.encode)):
        vae, x = swollen("kl", what)
        made = code(half(vae), x.half(), how="exact", precision="float16")
        assert made.isfinite().all() and decibels(made, code(vae, x, how="whole")) >= 58


def test_powers_of_a_small_picture_serve_a_large_one():
    vae, x = swollen("kl")
    small, weights = recorded(half(vae), "decode", x.half())
    powers = needed_powers(small, largest(small, weights, x.half()))
    wide = torch.randn(1, 4, 8, 10)
    graph, _ = recorded(half(vae), "decode", wide.half())
    truth = result(*recorded(vae, "decode", wide), wide)
    assert decibels(result(rescaled(graph, powers), weights, wide.half()), truth) >= 60


@pytest.mark.parametrize("name", SWOLLEN)
def test_what_is_rescaled_fits_and_needs_nothing_more(name):
    vae, x = swollen(name)
    graph, weights = recorded(half(vae), "decode", x.half())
    changed = safe(graph, weights, x.half())
    met = largest(changed, weights, x.half())
    assert all(value <= MOST for node, value in met.items() if node.dtype == torch.float16)
    assert not needed_powers(changed, met)


@pytest.mark.parametrize("name", VAES)
def test_a_vae_that_fits_is_left_as_it_is(name):
    vae, x = built(name, "decode")
    graph, weights = recorded(half(vae), "decode", x.half())
    assert safe(graph, weights, x.half()) is graph


def test_infinite_masks_of_attention_are_no_overflow():
    class Masked(nn.Module):
        def forward(self, x):
            hidden = torch.full((6, 6), float("-inf"), dtype=x.dtype).triu(1)
            return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=hidden)

    x = torch.randn(1, 4, 6, 6)
    graph = record(Masked().eval(), x)
    assert overflows(graph, {}, x) < MOST
    assert safe(graph, {}, x) is graph


# -- what cannot be ----------------------------------------------------------------------------------------------------


def layers(*between, gain):
    made = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), *between, nn.Conv2d(8, 3, 3, padding=1))
    made[0].weight.data.mul_(gain)
    return made.eval().requires_grad_(False)


def made_safe(module):
    x = torch.randn(1, 4, 6, 6).half()
    module = module.half()
    graph = record(module, x)
    return lambda: safe(graph, dict(module.named_parameters()), x)


def test_a_value_that_silu_sees_is_refused_with_its_name():
    with pytest.raises(CannotRescale, match=r"convolution of 1x8x6x6 numbers reaches .* use bfloat16 or float32"):
        made_safe(layers(nn.SiLU(), gain=2e5))()


def test_a_picture_that_overflows_itself_is_made_safe():
    module = layers(gain=1e5)
    module[1].weight.data.mul_(100)
    with pytest.raises(CannotRescale, match="1x3x6x6"):
        made_safe(module)()


def test_a_region_may_leave_through_a_weight():
    """Rectified or not, the next convolution takes the scale out."""
    module = layers(nn.ReLU(), gain=2e5)
    module[2].weight.data.mul_(1e-4)
    changed = made_safe(module)()
    x = torch.randn(1, 4, 6, 6)
    assert not module(x.half()).isfinite().all()
    made = result(changed, dict(module.named_parameters()), x.half())
    assert decibels(made, module.float()(x)) >= 55


def test_numbers_are_scaled_with_what_they_are_added_to():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x):
            y = self.first(x)
            y = nn.functional.pad(torch.cat([y + 2, 1 - y]).clamp(-1, 3), (1, 1), value=0.5).sum(0, keepdim=True)
            square = y.pow(2) + 0.25
            return self.last(square / square.sqrt())

    module, x = Odd().eval().requires_grad_(False), torch.randn(1, 4, 6, 6)
    graph, weights = record(module, x), dict(module.named_parameters())
    changed = rescaled(graph, 4)
    assert overflows(changed, weights, x) < overflows(graph, weights, x)
    assert torch.equal(result(changed, weights, x), result(graph, weights, x))


def test_data_of_two_regions_multiplied_stay_as_they_are():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.gate, self.last = (nn.Conv2d(4, 4, 1) for _ in range(3))

        def forward(self, x):
            return self.last(self.first(x) * self.gate(x))

    module, x = Gated().eval().requires_grad_(False), torch.randn(1, 4, 6, 6)
    graph, weights = record(module, x), dict(module.named_parameters())
    assert rescaled(graph, dict.fromkeys(weights, 4)) is graph
