"""Attention in parts: equal to the whole for any shape, mask and chunk, and small in memory."""

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import safelight
from safelight.errors import DidNotEngage, DoesNotApply, UsageError
from safelight.optimizers import slicing
from safelight.optimizers.diversion import Call, attention_layers
from safelight.optimizers.registry import swapped
from safelight.optimizers.slicing import chunks_of, in_chunks, most_tokens
from safelight.optimizers.target import denoiser, target_of

MODELS = {"unet": tiny.sd, "sdxl": tiny.sdxl, "sd3": tiny.sd3, "flux": tiny.flux}


def draw(pipe):
    generator = torch.Generator().manual_seed(3)
    asked = {"num_inference_steps": 2, "width": 32, "height": 32, "generator": generator}
    return pipe("a cat", output_type="latent", **asked).images


def call_of(batch=1, heads=2, queries=8, keys=8, channels=4, mask=None, **more):
    generator = torch.Generator().manual_seed(queries * 31 + keys)
    shared = heads // 2 if more.get("enable_gqa") and heads > 1 else heads
    query = torch.randn(batch, heads, queries, channels, generator=generator)
    key, value = torch.randn(2, batch, shared, keys, channels, generator=generator)
    if mask is None:
        return Call(query, key, value, **more)
    shape = tuple(size if wide else 1 for size, wide in zip((batch, heads, queries, keys), mask[1:], strict=True))
    numbers = torch.randn(shape, generator=generator)
    # the first key stays visible
    shown = (numbers > 0) | (torch.arange(shape[-1]) == 0)
    return Call(query, key, value, shown if mask[0] == "bool" else numbers.masked_fill(~shown, float("-inf")), **more)


masks = st.none() | st.tuples(st.sampled_from(["bool", "added"]), *[st.booleans()] * 4)


@settings(deadline=None, max_examples=150)
@given(
    batch=st.integers(1, 2),
    heads=st.sampled_from([1, 2, 4]),
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    mask=masks,
    is_causal=st.booleans(),
    enable_gqa=st.booleans(),
    scale=st.sampled_from([None, 0.3]),
    chunk=st.integers(1, 50),
    keys_chunk=st.integers(0, 50),
)
def test_any_chunks_give_what_torch_gives(chunk, keys_chunk, mask, is_causal, **shape):
    call = call_of(mask=mask, is_causal=is_causal and mask is None, **shape)
    with torch.inference_mode():
        found, expected = in_chunks(call, chunk, keys_chunk), call.plain()
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("keys", [0, 3])
def test_a_query_that_sees_no_key_gets_what_torch_gives(keys):
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[2] = False
    mask[:, :4] = False  # the first chunk of keys is hidden from all
    call = call_of()
    call = Call(call.query, call.key, call.value, mask)
    with sdpa_kernel(SDPBackend.MATH):
        expected = call.plain()
    assert torch.allclose(in_chunks(call, 3, keys), expected, atol=2e-6)


@pytest.mark.parametrize("keys", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_chunks_keep_the_dtype(dtype, keys):
    whole = call_of()
    call = Call(*(x.to(dtype) for x in (whole.query, whole.key, whole.value)))
    found = in_chunks(call, 3, keys)
    assert found.dtype == dtype
    assert torch.allclose(found.float(), whole.plain(), atol=0.03)


def test_chunks_are_counted_as_they_are_computed():
    call = call_of(queries=10, keys=7)
    assert [chunks_of(call, *sizes) for sizes in ((10, 0), (4, 0), (4, 7), (4, 3), (1, 1))] == [1, 3, 3, 9, 70]


@pytest.mark.parametrize(("chunk", "keys", "most"), [(16, 0, 16 * 256), (16, 32, 16 * 32), (256, 32, 256 * 32)])
def test_no_more_scores_are_held_than_a_chunk_has(chunk, keys, most):
    call = call_of(heads=1, queries=256, keys=256, channels=1)
    with sdpa_kernel(SDPBackend.MATH):
        whole = largest(call.plain)
        assert largest(lambda: in_chunks(call, chunk, keys)) <= most < whole == 256 * 256


def largest(compute):
    """Numbers in the largest tensor that is made on the way."""
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (made if isinstance(made, tuple | list) else [made]) if torch.is_tensor(x))
            return made

    with Watch():
        compute()
    return max(sizes)


# -- on models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("words", ["split-attention=32", "split-attention=32,split-attention.keys=20"])
def test_split_attention_engages_on_every_kind_of_model(name, words):
    pipe = MODELS[name]()
    plain = draw(pipe)
    with safelight.optimize(pipe, words, width=32, height=32) as opened:
        (status,) = opened.status()
        planned = draw(pipe)
    assert "chunks in" in status.evidence
    assert (planned - plain).abs().max() < 1e-4 * plain.abs().max()
    assert torch.equal(draw(pipe), plain)


@pytest.mark.parametrize(("name", "tokens"), [("unet", 256), ("sdxl", 64), ("sd3", 64), ("flux", 64)])
def test_tokens_of_the_picture_are_known_before(name, tokens):
    pipe, lengths = MODELS[name](), set()

    def look(_layer, args, kwargs):
        lengths.add((args[0] if args else kwargs["hidden_states"]).shape[1])

    for layer in attention_layers(denoiser(pipe)):
        layer.register_forward_pre_hook(look, with_kwargs=True)
    draw(pipe)
    assert most_tokens(target_of(pipe, tiny.cpu(), width=32, height=32)) == tokens
    # the single blocks of Flux see the text's tokens beside them
    assert tokens in lengths if name == "flux" else tokens == max(lengths)


@pytest.mark.parametrize(
    ("words", "error", "reason"),
    [
        ("split-attention", DoesNotApply, "sees 256 tokens of the picture at most, no more than one chunk"),
        ("split-attention=0", UsageError, "give tokens at a time, 1 or more"),
        ("split-attention=8,split-attention.keys=-1", UsageError, "give tokens at a time"),
        ("attention-slicing=-2", UsageError, "0 for half of them, or -1 for one by one"),
        ("attention-slicing=4", DoesNotApply, "its layers have 4 heads at most: nothing to slice"),
    ],
)
def test_what_is_not_worth_it_or_not_right_says_so(words, error, reason, unet_pipe):
    with pytest.raises(error, match=reason):
        safelight.optimize(unet_pipe, words, width=32, height=32)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_slicing_does_not_fit_where_diffusers_ignores_it(name):
    pipe = MODELS[name]()
    before = draw(pipe)
    pipe.enable_attention_slicing()  # says nothing, does nothing
    assert torch.equal(draw(pipe), before)
    with pytest.raises(DoesNotApply, match="diffusers slices the attention of UNets only, and ignores it in"):
        safelight.optimize(pipe, "attention-slicing", width=32, height=32)


@pytest.mark.parametrize(("size", "per_call"), [(0, 4), (-1, 8), (1, 8), (2, 4), (3, 3)])
@pytest.mark.parametrize("name", ["unet", "sdxl"])
def test_slices_are_counted_in_self_and_cross_attention(name, size, per_call):
    pipe = MODELS[name]()
    plain, before = draw(pipe), [layer.processor for layer in attention_layers(pipe.unet)]
    with safelight.optimize(pipe, f"attention-slicing={size}", width=32, height=32) as opened:
        (status,) = opened.status()
        planned = draw(pipe)
    calls = 2 * len(before)  # steps
    # 4 heads, with guidance twice
    assert status.evidence == f"{per_call * calls} slices in {calls} attention calls"
    assert (planned - plain).abs().max() < 1e-4 * plain.abs().max()
    after = [layer.processor for layer in attention_layers(pipe.unet)]
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_slicing_replaces_no_processor_that_does_more(unet_pipe):
    class IPAdapterAttnProcessor2_0:  # noqa: N801  # as diffusers names it
        pass

    layer = attention_layers(unet_pipe.unet)[0]
    with (
        swapped(layer, processor=IPAdapterAttnProcessor2_0()),
        pytest.raises(DoesNotApply, match="would replace IPAdapterAttnProcessor2_0, which does more"),
    ):
        safelight.optimize(unet_pipe, "attention-slicing", width=32, height=32)


def test_chunks_that_are_not_computed_are_no_evidence(unet_pipe):
    # the kernel is there and sees every call, but its chunk is as large as the picture
    target = target_of(unet_pipe, tiny.cpu(), width=32, height=32)
    splitting = slicing.split_attention(unet_pipe, target, chunk=4096, keys=0)
    proof = next(splitting)
    draw(unet_pipe)
    assert proof.evidence() == ""
    next(splitting, None)


def test_a_session_without_a_slice_does_not_open(unet_pipe):
    from diffusers.models.attention_processor import Attention

    with swapped(Attention, set_attention_slice=lambda *_: None), pytest.raises(DidNotEngage):
        safelight.optimize(unet_pipe, "attention-slicing", width=32, height=32)
