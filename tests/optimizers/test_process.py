"""TF32 and cuDNN's search: their logic without a card, through the seams."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from test_optimizers import draw, snapshot

from optimizers.off_process import no_search, tf32_stays_off
from safelight.errors import DoesNotApply
from safelight.optimizers import process, target_of
from safelight.planner import plan, wish
from safelight.probe.device import Device

AMPERE = Device("cuda", 0, "an Ampere card", 2**34, 2**34, (8, 0), ("float32", "bfloat16"), ("tf32",))
TURING = Device("cuda", 0, "a Turing card", 2**34, 2**34, (7, 5), ("float32", "float16"))
AMD = Device("cuda", 0, "an AMD card", 2**34, 2**34, (9, 4), ("float32", "bfloat16"), ("rocm",))
PRECISION = torch.backends.cuda.matmul


def settings():
    """Everything that the old and the new interface tell; the old getters raise after the new setter alone."""
    return (
        torch.get_float32_matmul_precision(),
        PRECISION.allow_tf32,
        PRECISION.fp32_precision,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.conv.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.backends.cudnn.benchmark,
    )


def to_bits(x, bits):
    """float32 rounded to so many bits of mantissa."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent)


def tensor_cores(a, b):
    """A matrix product as a card computes it: rounded to TF32 if, and only if, that is switched on."""
    return to_bits(a, 10) @ to_bits(b, 10) if PRECISION.allow_tf32 else a @ b


@pytest.mark.parametrize(("bits", "is_tf32"), [(23, False), (10, True), (7, False)], ids=["float32", "tf32", "bf16"])
def test_tf32_is_told_from_what_is_finer_and_what_is_coarser(bits, is_tf32):
    found = process.rounds_as_tf32(torch.device("cpu"), lambda a, b: to_bits(a, bits) @ to_bits(b, bits))
    assert found is is_tf32


def test_this_cpu_does_not_round():
    assert not process.rounds_as_tf32(torch.device("cpu"), torch.matmul)


def test_tf32_shows_where_products_round_and_everything_is_put_back(pipe):
    draw(pipe)  # its first call leaves attributes of the pipeline's own
    before, state = settings(), snapshot(pipe)
    fixture = process.with_tf32(pipe, tensor_cores)
    proof = next(fixture)
    assert torch.get_float32_matmul_precision() == "high"
    assert proof.evidence() == ""
    draw(pipe)
    assert "10 bits" in proof.evidence()
    proof.begin(pipe)
    assert proof.evidence() == ""
    next(fixture, None)
    assert settings() == before
    assert snapshot(pipe) == state


def test_tf32_on_a_device_that_does_not_round_is_no_evidence(unet_pipe):
    fixture = process.with_tf32(unet_pipe)
    proof = next(fixture)
    draw(unet_pipe)
    assert proof.evidence() == ""
    next(fixture, None)


def test_tf32_switched_off_inside_is_no_evidence(unet_pipe):
    with tf32_stays_off():
        fixture = process.with_tf32(unet_pipe, tensor_cores)
        proof = next(fixture)
        draw(unet_pipe)
        assert proof.evidence() == ""
        next(fixture, None)


def test_tf32_does_not_show_in_a_denoiser_of_16_bits(unet_pipe):
    unet_pipe.to(torch.bfloat16)
    fixture = process.with_tf32(unet_pipe, tensor_cores)
    proof = next(fixture)
    draw(unet_pipe)
    assert proof.evidence() == ""
    next(fixture, None)


def test_the_new_setter_alone_makes_the_old_getters_raise():
    """Why tf32 uses the old one: inductor calls these getters. It fails once torch has mended that."""
    was = PRECISION.fp32_precision
    PRECISION.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        with pytest.raises(RuntimeError):
            _ = PRECISION.allow_tf32
    finally:
        PRECISION.fp32_precision = was


@pytest.mark.parametrize(
    ("written", "device", "says"),
    [
        ("tf32", tiny.cpu(), "needs CUDA, this is cpu"),
        ("tf32", TURING, r"compute capability 8.0, this is 7.5"),
        ("tf32", AMD, "is AMD's"),
        ("tf32,dtype=bfloat16", AMPERE, "acts on float32 alone"),
        ("cudnn-benchmark", tiny.cpu(), "needs CUDA, this is cpu"),
    ],
)
def test_what_does_not_fit_says_why(unet_pipe, written, device, says):
    with pytest.raises(DoesNotApply, match=says):
        plan(target_of(unet_pipe, device, width=32, height=32), wish(written))


def test_both_fit_a_float32_unet_on_an_ampere_card(unet_pipe):
    made = plan(target_of(unet_pipe, AMPERE, width=32, height=32), wish("tf32,cudnn-benchmark"))
    assert [choice.optimizer.name for choice in made.choices] == ["tf32", "cudnn-benchmark"]


def test_what_is_on_already_is_not_switched_on_again(unet_pipe):
    was = PRECISION.fp32_precision
    fixture = process.with_tf32(unet_pipe)
    next(fixture)
    with pytest.raises(DoesNotApply, match="switched on already"):
        plan(target_of(unet_pipe, AMPERE, width=32, height=32), wish("tf32"))
    next(fixture, None)
    assert PRECISION.fp32_precision == was


def test_the_search_shows_in_convolutions_of_cudnn_and_is_put_back(unet_pipe):
    draw(unet_pipe)  # its first call leaves attributes of the pipeline's own
    before, state = settings(), snapshot(unet_pipe)
    fixture = process.with_benchmark(unet_pipe, lambda layer, value: "Cudnn")
    proof = next(fixture)
    draw(unet_pipe)
    assert torch.backends.cudnn.benchmark
    assert "ran in cuDNN while it searched" in proof.evidence()
    proof.begin(unet_pipe)
    assert proof.evidence() == ""
    next(fixture, None)
    assert settings() == before
    assert snapshot(unet_pipe) == state


def test_convolutions_of_another_library_are_no_evidence(unet_pipe):
    fixture = process.with_benchmark(unet_pipe)
    proof = next(fixture)
    draw(unet_pipe)
    assert proof.evidence() == ""
    next(fixture, None)


def test_the_search_switched_off_inside_is_no_evidence(unet_pipe):
    with no_search():
        fixture = process.with_benchmark(unet_pipe, lambda layer, value: "Cudnn")
        proof = next(fixture)
        draw(unet_pipe)
        assert proof.evidence() == ""
        next(fixture, None)


@pytest.mark.parametrize("layer", [torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.Conv2d(4, 8, 3, padding="same")])
def test_torch_tells_which_library_convolves(layer):
    assert process.convolution_backend(layer, torch.zeros(1, 4, 8, 8)) in ("Slow2d", "Mkldnn", "NnpackSpatial")


@pytest.mark.gpu
def test_a_card_of_this_machine_rounds_to_tf32_only_when_told():
    device = torch.device("cuda")
    assert not process.rounds_as_tf32(device, torch.matmul)
    fixture = process.with_tf32(SimpleNamespace(transformer=torch.nn.Linear(8, 8, device=device)))
    next(fixture)
    assert process.rounds_as_tf32(device, torch.matmul)
    next(fixture, None)
    assert not process.rounds_as_tf32(device, torch.matmul)
