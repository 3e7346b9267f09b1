"""Attention by another kernel: on every kind of model, never losing an argument, and on this one model only."""

import pytest
import tiny
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch.nn.functional import scaled_dot_product_attention

import safelight
from safelight.errors import DidNotEngage, DoesNotApply, UnknownName
from safelight.optimizers import attention, backends
from safelight.optimizers.backends import BACKENDS
from safelight.optimizers.diversion import Call, attention_layers, diverted
from safelight.optimizers.target import denoiser, target_of
from safelight.probe.device import Device

MODELS = {"unet": tiny.sd, "sdxl": tiny.sdxl, "sd3": tiny.sd3, "flux": tiny.flux}
CARD = Device("cuda", 0, "a card", 2**34, 2**34, capability=(8, 6), fast_dtypes=("float32", "bfloat16", "float16"))


@pytest.fixture(params=MODELS, ids=list(MODELS))
def any_pipe(request):
    return MODELS[request.param]()


def draw(pipe):
    """float (1, channels, height, width): latents after two steps."""
    generator = torch.Generator().manual_seed(3)
    asked = {"num_inference_steps": 2, "width": 32, "height": 32, "generator": generator}
    return pipe("a cat", output_type="latent", **asked).images


def q_k_v(queries=6, keys=6, channels=16, heads=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, n, channels, generator=generator) for n in (queries, keys, keys)]


# -- every model -------------------------------------------------------------------------------------------------------


def test_a_fake_kernel_gets_all_attention_of_every_kind_of_model(any_pipe):
    plain, seen = draw(any_pipe), []
    with diverted(denoiser(any_pipe), lambda call: seen.append(call) or torch.zeros_like(call.query)):
        spoiled = draw(any_pipe)
    assert len(seen) >= 2 * len(attention_layers(denoiser(any_pipe)))
    assert not torch.equal(spoiled, plain)
    assert torch.equal(draw(any_pipe), plain)


def test_text_encoders_and_the_vae_keep_their_attention(any_pipe):
    model, seen = denoiser(any_pipe), []
    with diverted(model, lambda call: seen.append(call) or call.plain()):
        any_pipe.text_encoder(torch.ones(1, 7, dtype=torch.long))
        any_pipe.vae(torch.zeros(1, 3, 32, 32))
    assert not seen


def test_a_kernel_that_computes_the_same_gives_the_same_picture(any_pipe):
    plain = draw(any_pipe)
    with diverted(denoiser(any_pipe), Call.plain), torch.inference_mode():
        assert torch.equal(draw(any_pipe), plain)


def test_undoing_leaves_no_attribute_on_any_layer(any_pipe):
    before = [sorted(vars(module)) for module in denoiser(any_pipe).modules()]
    with pytest.raises(KeyboardInterrupt), diverted(denoiser(any_pipe), Call.plain):
        raise KeyboardInterrupt
    assert [sorted(vars(module)) for module in denoiser(any_pipe).modules()] == before


@pytest.mark.parametrize("value", ["native", "flash", "math", "flex", "_native_flash", "_Native_Math"])
def test_backends_that_run_on_a_cpu_engage_and_only_round(value, any_pipe):
    plain = draw(any_pipe)
    with safelight.optimize(any_pipe, f"attention-backend={value}", width=32, height=32) as opened:
        (status,) = opened.status()
        planned = draw(any_pipe)
    assert "calls of" in status.evidence
    assert (planned - plain).abs().max() < 1e-4 * plain.abs().max()
    assert torch.equal(draw(any_pipe), plain)


def test_a_backend_that_is_compiled_around_computes_the_same(any_pipe):
    model = denoiser(any_pipe)
    plain = draw(any_pipe)
    with diverted(model, Call.plain):
        model.compile(backend="eager")
        compiled = draw(any_pipe)
    model._compiled_call_impl = None
    assert (compiled - plain).abs().max() < 1e-4 * plain.abs().max()


# -- the table ---------------------------------------------------------------------------------------------------------


def test_every_backend_of_diffusers_has_one_row():
    assert sorted(known.diffusers for known in BACKENDS.values()) == sorted(name.value for name in AttentionBackendName)


def test_every_name_of_diffusers_is_understood_in_any_spelling():
    for name in AttentionBackendName:
        if name is not AttentionBackendName.FLASH:
            assert BACKENDS[backends.find(name.value.upper().replace("_", "-"))].diffusers == name.value


@pytest.mark.parametrize(
    ("written", "ours"),
    [("flash", "flash"), ("flash-attn", "flash-2"), ("FA3", "flash-3"), (" Flash_4 ", "flash-4-hub")],
)
def test_flash_is_the_kernel_of_torch_and_the_packages_have_numbers(written, ours):
    assert backends.find(written) == ours


def test_an_unknown_backend_names_the_nearest():
    with pytest.raises(UnknownName, match=r"'xformer': did you mean xformers"):
        backends.find("xformer")


def test_a_backend_takes_no_argument_that_diffusers_would_drop():
    words = {"mask": "attn_mask", "dropout": "dropout_p", "causal": "is_causal", "scale": "scale", "gqa": "enable_gqa"}
    for known in BACKENDS.values():
        accepted = _AttentionBackendRegistry._supported_arg_names[AttentionBackendName(known.diffusers)]
        if known.takes != backends.ALL:
            assert {words[name] for name in known.takes} <= accepted, known.diffusers


@pytest.mark.parametrize(
    ("name", "device", "dtype", "reason"),
    [
        ("efficient", None, "float32", "the efficient kernel runs on cuda, not on cpu"),
        ("npu", None, "float32", "the npu kernel runs on npu, not on cpu"),
        ("flash-3", CARD, "bfloat16", "the flash-3 kernel needs CUDA capability 9.0 or later; a card has 8.6"),
        ("sage-fp8-sm90", CARD, "bfloat16", "the sage-fp8-sm90 kernel needs CUDA capability 9.0; a card has 8.6"),
        ("sage", CARD, "bfloat16", "needs sageattention >= 2.1.1: install from https://github.com/thu-ml/"),
        ("flash-2", CARD, "bfloat16", "needs flash-attn >= 2.6.3: pip install flash-attn"),
        ("xformers", CARD, "float32", "needs xformers >= 0.0.29: pip install xformers"),
        ("aiter", CARD, "bfloat16", "the aiter kernel runs on AMD's cards"),
        ("cudnn", CARD, "float32", "computes in float16 or bfloat16, not in float32: add dtype=bfloat16"),
        ("flash", None, "float32", None),
    ],
)
def test_why_a_backend_does_not_fit(name, device, dtype, reason, unet_pipe):
    from dataclasses import replace

    target = replace(target_of(unet_pipe, device or tiny.cpu(), width=32, height=32), dtype=dtype)
    found = backends.reason_against(name, target)
    assert found is None if reason is None else reason in found


def test_a_backend_that_is_listed_but_fails_does_not_fit():
    # diffusers' set_attention_backend accepts both on a CPU; the first call then raises
    assert not backends.runs("efficient", tiny.cpu(), "float32")
    assert not backends.runs("flash-2", tiny.cpu(), "float32")
    assert backends.runs("flex", tiny.cpu(), "float32")


def test_what_does_not_fit_is_not_applied(unet_pipe):
    with pytest.raises(DoesNotApply, match="attention-backend was asked for, but the sage kernel runs on cuda"):
        safelight.optimize(unet_pipe, "attention-backend=sage")


# -- no argument is lost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more", "why"),
    [
        ("sage", {}, ""),
        ("sage", {"is_causal": True}, ""),
        ("sage", {"attn_mask": torch.ones(6, 6, dtype=torch.bool)}, "with a mask"),
        ("sage", {"dropout_p": 0.1}, "with dropout"),
        ("sage", {"enable_gqa": True}, "with shared heads"),
        ("sage-blackwell-hub", {"scale": 0.5}, "with a scale"),
        ("sage-blackwell-hub", {"scale": 16**-0.5}, ""),
        ("npu", {"is_causal": True}, "in causal order"),
        ("flex", {"is_causal": True}, "in causal order"),
        ("native", {"attn_mask": torch.ones(6, 6, dtype=torch.bool), "scale": 0.5, "dropout_p": 0.5}, ""),
    ],
)
def test_a_call_with_more_than_a_kernel_respects_is_left_to_torch(name, more, why):
    call = Call(*(x.bfloat16() for x in q_k_v()), **more)
    assert backends.too_much(BACKENDS[name], call) == why


def test_causal_order_of_fewer_queries_than_keys_and_wide_heads_are_left_to_torch():
    few = [x.half() for x in q_k_v(queries=3)]
    wide = [x.half() for x in q_k_v(channels=160)]
    assert backends.too_much(BACKENDS["flash-2"], Call(*few, is_causal=True)) == "in causal order"
    assert backends.too_much(BACKENDS["sage"], Call(*wide)) == "with 160 channels a head"
    assert backends.too_much(BACKENDS["flash-2"], Call(*wide)) == ""
    assert backends.too_much(BACKENDS["sage"], Call(*q_k_v())) == "in float32"


def test_flex_of_diffusers_drops_causal_order_and_ours_does_not():
    query, key, value = q_k_v()
    flex = _AttentionBackendRegistry._backends[AttentionBackendName.FLEX]
    theirs = flex(*(x.transpose(1, 2) for x in (query, key, value)), is_causal=True).transpose(1, 2)
    right = scaled_dot_product_attention(query, key, value, is_causal=True)
    assert (theirs - right).abs().max() > 0.01
    layer = torch.nn.Module()
    layer.forward = lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    proof = next(sending := attention.sent(layer, "flex", backends.kernel_of("flex")))
    assert torch.equal(layer(), right)
    assert proof.evidence() == ""
    del sending


@pytest.mark.parametrize("more", [{}, {"scale": 0.3}, {"enable_gqa": True}])
def test_diffusers_kernels_get_their_layout_and_arguments(more):
    query, key, value = q_k_v(queries=5, keys=7, heads=4)
    if more.get("enable_gqa"):
        key, value = key[:, :2], value[:, :2]
    call = Call(query, key, value, **more)
    assert torch.allclose(backends.kernel_of("flex")(call), call.plain(), atol=1e-5)


def test_the_evidence_counts_what_went_to_the_kernel_and_what_did_not(any_pipe):
    model, seen = denoiser(any_pipe), []
    sending = attention.sent(model, "sage", lambda call: seen.append(call) or call.plain())
    proof = next(sending)
    proof.begin(any_pipe)
    any_pipe.to(torch.bfloat16)
    draw(any_pipe)
    assert proof.evidence() == f"{len(seen)} calls of sage (products in 8 bits: approximate)"
    proof.begin(any_pipe)
    assert proof.evidence() == ""
    next(sending, None)


def test_masked_calls_show_in_the_evidence_and_keep_their_mask(unet_pipe):
    model = unet_pipe.unet
    inputs = (torch.randn(1, 4, 16, 16), 1, torch.randn(1, 7, 32))
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0]])
    with torch.inference_mode():
        plain = model(*inputs, encoder_attention_mask=mask)[0]
        sending = attention.sent(model, "flex", backends.kernel_of("flex"))
        proof = next(sending)
        masked = model(*inputs, encoder_attention_mask=mask)[0]
        next(sending, None)
    assert torch.allclose(masked, plain, atol=1e-5)
    assert not torch.allclose(model(*inputs)[0], plain, atol=1e-3)
    assert proof.evidence() == "4 calls of flex; 4 calls with a mask left to torch"


# -- nothing for the whole process -------------------------------------------------------------------------------------


@pytest.fixture
def active():
    yield lambda: _AttentionBackendRegistry.get_active_backend()[0]
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


def test_diffusers_own_switch_leaks_to_other_models(active):
    one = tiny.flux()
    one.transformer.set_attention_backend("_native_math")
    one.transformer.reset_attention_backend()
    assert active() == AttentionBackendName._NATIVE_MATH  # if not, the wrapper may go


@pytest.mark.parametrize("value", ["math", "flex"])
def test_ours_does_not(value, active, any_pipe):
    with pytest.raises(ZeroDivisionError), safelight.optimize(any_pipe, f"attention-backend={value}"):
        assert active() == AttentionBackendName.NATIVE
        raise ZeroDivisionError
    assert active() == AttentionBackendName.NATIVE


def test_a_process_wide_backend_of_somebody_else_is_no_evidence_of_ours(active):
    pipe = tiny.flux()
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName._NATIVE_MATH)
    with safelight.optimize(pipe, "attention-backend=flex") as opened:
        assert "calls of flex" in opened.status()[0].evidence  # it calls torch's function, so that it is seen
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.FLEX)
    with pytest.raises(DidNotEngage):
        safelight.optimize(pipe, "attention-backend=native")
