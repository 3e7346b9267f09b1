"""What is told of folds: the same function with less work, and nothing folded that somebody else still needs."""

import pytest
import tiny_vaes
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from safelight.vae.fold import ENLARGING, compose, compose_bias, fold, folded
from safelight.vae.graph import WEIGHT, nodes, record

SIZES = st.integers(1, 9)


def ops(graph) -> list[str]:
    return [node.op for node in graph.nodes]


def recorded(module, *shape: int):
    return record(module, torch.empty(shape))


class Enlarging(torch.nn.Module):
    def __init__(self, after, scale: float = 2.0, mode: str = "nearest", *, twice: bool = False) -> None:
        super().__init__()
        self.after, self.scale, self.mode, self.twice = after, scale, mode, twice

    def forward(self, x):
        large = F.interpolate(x, scale_factor=self.scale, mode=self.mode)
        return self.after(large) + large if self.twice else self.after(large)


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_a_folded_convolution_is_the_convolution_of_the_enlarged_picture(height, width, incoming, outgoing, biased):
    torch.manual_seed(0)
    weight, x = torch.randn(outgoing, incoming, 3, 3), torch.randn(1, incoming, height, width)
    bias = torch.randn(outgoing) if biased else None
    large = F.conv2d(F.interpolate(x, scale_factor=2.0), weight, bias, padding=1)
    torch.testing.assert_close(F.conv_transpose2d(x, fold(weight), bias, 2, 1), large, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(SIZES, SIZES, st.integers(1, 70), st.booleans(), st.booleans())
def test_a_convolution_composed_with_the_one_before_is_both(height, width, channels, biased_before, biased):
    torch.manual_seed(0)
    x, before, weight = torch.randn(1, channels, height, width), torch.randn(channels, 5, 4, 4), torch.randn(3, 5, 1, 1)
    before_bias, bias = (torch.randn(size) if has else None for size, has in ((5, biased_before), (3, biased)))
    both = F.conv2d(F.conv_transpose2d(x, before, before_bias, 2, 1), weight, bias)
    total = compose_bias(weight, before_bias, bias) if biased_before else bias
    torch.testing.assert_close(F.conv_transpose2d(x, compose(weight, before), total, 2, 1), both, rtol=1e-4, atol=2e-4)


def test_sums_of_16_bit_taps_are_rounded_once():
    weight = torch.randn(4, 4, 3, 3, dtype=torch.bfloat16)
    assert torch.equal(fold(weight), fold(weight.float()).bfloat16())


def test_a_folded_decoder_enlarges_nothing_and_divides_by_nothing():
    vae = tiny_vaes.kl((8, 16, 16))
    plain = recorded(vae.decoder, 1, 4, 6, 6)
    assert {"upsample_nearest2d", "div"} <= set(ops(plain))
    assert not {*ENLARGING, "div"} & set(ops(folded(plain)))


def test_shortcuts_are_folded_only_where_asked_for():
    plain = recorded(tiny_vaes.kl((8, 16)).decoder, 1, 4, 6, 6)
    with_them, without = folded(plain), folded(plain, shortcuts=False)

    def transposed(graph) -> int:
        return sum(node.op == "convolution" and node.args[6] for node in graph.nodes)

    assert (transposed(without), transposed(with_them)) == (1, 2)


def test_what_is_folded_has_the_same_inputs_and_shape_and_leaves_the_first_graph_alone():
    plain = recorded(tiny_vaes.kl().decoder, 1, 4, 5, 7)
    before = ops(plain)
    after = folded(plain)
    assert (after.inputs, after.output.shape) == (plain.inputs, plain.output.shape)
    assert ops(plain) == before


CONV = torch.nn.Conv2d
UNTOUCHED = {
    "enlarged three times": Enlarging(CONV(3, 3, 3, padding=1), 3.0),
    "bilinear": Enlarging(CONV(3, 3, 3, padding=1), mode="bilinear"),
    "5x5": Enlarging(CONV(3, 3, 5, padding=2)),
    "strided": Enlarging(CONV(3, 3, 3, padding=1, stride=2)),
    "dilated": Enlarging(CONV(3, 3, 3, padding=1, dilation=2)),
    "without padding": Enlarging(CONV(3, 3, 3)),
    "in groups": Enlarging(CONV(3, 3, 3, padding=1, groups=3)),
    "needed by others": Enlarging(CONV(3, 3, 3, padding=1), twice=True),
}


@pytest.mark.parametrize("module", UNTOUCHED.values(), ids=UNTOUCHED)
def test_what_does_not_fit_is_left_as_it_is(module):
    plain = recorded(module, 1, 3, 6, 6)
    assert ops(folded(plain)) == ops(plain)


def test_a_part_of_an_enlarging_that_fits_folds_and_its_weights_are_computed_of_the_module_s():
    plain = recorded(Enlarging(CONV(3, 4, 3, padding=1)), 1, 3, 6, 6)
    node = folded(plain).output
    (made,) = [given for given in nodes(node.args[1]) if given.op == WEIGHT]
    assert [given.name for given in made.function.of] == ["after.weight"]
    assert made.shape == (3, 4, 4, 4)
