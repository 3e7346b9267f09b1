"""What is told of attention in chunks: what torch's own gives, as near to the truth, in as much memory as is said."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.simulate.trace import record
from safelight.vae import attention
from safelight.vae.graph import Node

sdpa = torch.nn.functional.scaled_dot_product_attention


def given_tensors(batch: int, heads: int, queries: int, keys: int, width: int, spread: float = 2.0):
    made = torch.Generator().manual_seed(queries)
    shapes = [(batch, heads, count, width) for count in (queries, keys, keys)]
    return [(spread * torch.randn(shape, generator=made)).bfloat16() for shape in shapes]


def error(made: torch.Tensor, truth: torch.Tensor) -> float:
    return float((made.float() - truth).pow(2).mean().sqrt())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 700), st.integers(1, 700), st.sampled_from([16, 256]))
def test_any_number_of_queries_and_keys_gives_what_torch_gives(batch, heads, queries, keys, width):
    tensors = given_tensors(batch, heads, queries, keys, width)
    torch.testing.assert_close(attention.attention(*tensors), sdpa(*tensors), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("spread", [0.5, 2.0, 6.0])
def test_it_is_nearly_as_near_to_the_truth_as_torch_s_own(spread):
    tensors = given_tensors(1, 1, 256, 4096, 512, spread)
    truth = sdpa(*(tensor.float() for tensor in tensors))
    assert error(attention.attention(*tensors), truth) <= 1.4 * error(sdpa(*tensors), truth)


def test_a_scale_of_scores_is_heeded_and_nothing_that_is_given_is_written_to():
    tensors = given_tensors(1, 2, 70, 90, 256)
    before = [tensor.clone() for tensor in tensors]
    made = attention.attention(*tensors, scale=0.01)
    torch.testing.assert_close(made, sdpa(*tensors, scale=0.01), rtol=0.02, atol=0.02)
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True))


def node(tensors, **kwargs) -> Node:
    leaves = tuple(Node("input", None, (), {}, tuple(t.shape), t.dtype) for t in tensors)
    return Node(attention.ATTENTION, sdpa, leaves, kwargs, tuple(tensors[0].shape), tensors[0].dtype)


@pytest.mark.parametrize("queries", [40, 300, 5000])
def test_the_bytes_it_takes_are_those_that_are_said(queries):
    tensors = given_tensors(1, 1, queries, queries, 256)
    chunked = attention._chunked(node(tensors))
    trace = record(lambda: attention.attention(*tensors), tensors)
    given_bytes, small = sum(t.nbytes for t in tensors), queries * 300 + 2**17  # sums of rows
    assert trace.peak_bytes - given_bytes - tensors[0].nbytes == pytest.approx(
        attention.beside_bytes(chunked), abs=small
    )


def test_a_mask_narrow_heads_and_other_dtypes_are_left_to_torch():
    wide, narrow = given_tensors(1, 1, 8, 8, 512), given_tensors(1, 1, 8, 8, 64)
    assert attention._pays(node(wide)) and attention._pays(node(wide, dropout_p=0.0, is_causal=False, scale=0.1))
    assert not attention._pays(node(narrow)) and not attention._pays(node([t.float() for t in wide]))
    assert not attention._pays(node(wide, is_causal=True))
    assert not attention._pays(node(wide, attn_mask=node(wide)))
