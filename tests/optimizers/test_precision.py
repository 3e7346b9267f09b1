"""Each part in its own number format: what comes in at its door is cast, what it gives is seen."""

import pytest
import tiny
import torch
from test_optimizers import draw, psnr

import safelight
from safelight.errors import DoesNotApply, UnknownName
from safelight.optimizers import OPTIMIZERS, target_of
from safelight.optimizers.precision import chosen_dtypes, floats_to
from safelight.planner import loading_dtype, plan, wish
from safelight.probe.device import Device

PIPES = {"sd": tiny.sd, "sdxl": tiny.sdxl, "flux": tiny.flux, "sd3": tiny.sd3}
A_CARD = Device("cuda", 0, "a card", 2**34, 2**34, (8, 9), ("float32", "bfloat16", "float16"))
BF16_CPU = Device("cpu", 0, "a CPU with bfloat16", 2**34, 2**34, fast_dtypes=("float32", "bfloat16"))
OLD_CPU = Device("cpu", 0, "an old CPU", 2**34, 2**34)
MIXED = {
    "dtype=bfloat16,dtype.vae=float32": (torch.bfloat16, torch.float32, torch.bfloat16),
    "dtype=bfloat16,dtype.text_encoders=float32": (torch.bfloat16, torch.bfloat16, torch.float32),
    "dtype=float32,dtype.text_encoders=bfloat16": (torch.float32, torch.float32, torch.bfloat16),
    "dtype=float32,dtype.denoiser=bfloat16": (torch.bfloat16, torch.float32, torch.float32),
    "dtype=bfloat16,dtype.denoiser=float32": (torch.float32, torch.bfloat16, torch.bfloat16),
}


def dtypes_of(pipe):
    denoiser = getattr(pipe, "transformer", None) or pipe.unet
    return (denoiser.dtype, pipe.vae.dtype, pipe.text_encoder.dtype)


@pytest.mark.parametrize("kind", PIPES)
@pytest.mark.parametrize("written", MIXED)
def test_parts_in_different_formats_run_and_are_put_back(kind, written):
    pipe = PIPES[kind]()
    plain = draw(pipe)
    with safelight.optimize(pipe, written) as session:
        (status,) = session.status()
        mixed = draw(pipe)
        assert dtypes_of(pipe) == MIXED[written]
    assert status.engaged
    assert status.evidence.count("computed in") == sum(d != MIXED[written][0] for d in MIXED[written][1:]) + 1
    assert psnr(mixed, plain) > 25
    assert torch.equal(draw(pipe), plain)
    assert "encode_prompt" not in vars(pipe)
    assert "decode" not in vars(pipe.vae)


@pytest.mark.parametrize("kind", PIPES)
def test_a_pipeline_called_by_its_user_decodes_in_the_dtype_of_the_vae(kind):
    pipe = PIPES[kind]()
    with safelight.optimize(pipe, "dtype=bfloat16,dtype.vae=float32"):
        image = pipe("a cat", num_inference_steps=2, width=32, height=32, output_type="pt").images
    assert image.dtype == torch.float32


def test_without_its_door_a_part_of_another_dtype_crashes():
    pipe = tiny.sd().to(torch.bfloat16)
    pipe.vae.to(torch.float32)
    with pytest.raises(RuntimeError, match="should be the same"):
        pipe("a cat", num_inference_steps=1, width=32, height=32)


def test_noise_is_not_rounded_by_text_encoders_in_fewer_bits(unet_pipe):
    seen = []
    hook = unet_pipe.unet.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with safelight.optimize(unet_pipe, "dtype=float32,dtype.text_encoders=bfloat16"):
        seen.clear()
        draw(unet_pipe)
    hook.remove()
    assert seen[0].dtype == torch.float32
    assert not torch.equal(seen[0], seen[0].bfloat16().float())


def test_a_prompt_cache_works_beside_parts_of_different_formats(unet_pipe):
    with safelight.optimize(unet_pipe, "prompt-cache,dtype=float32,dtype.text_encoders=bfloat16") as session:
        session.generate("a cat", steps=2, seed=1)
        session.generate("a cat", steps=2, seed=1)
        assert all(status.evidence for status in session.status())


def test_one_part_that_is_not_cast_is_no_evidence(unet_pipe):
    """The denoiser alone would have been evidence before parts had formats of their own."""
    target = target_of(unet_pipe, tiny.cpu(), width=32, height=32)
    fixture = OPTIMIZERS["dtype"].apply(unet_pipe, target, "bfloat16", vae="float32")
    proof = next(fixture)
    unet_pipe.vae.to(torch.bfloat16)
    draw(unet_pipe)
    assert proof.evidence() == ""
    next(fixture, None)


def test_positions_keep_their_dtype():
    """Times and places are counted: bfloat16 takes 999 for 1000."""
    given = {"sample": torch.ones(1), "timestep": torch.tensor(999.0), "deep": ({"time_ids": torch.ones(1)}, [None])}
    cast = floats_to(given, torch.bfloat16)
    assert cast["sample"].dtype == torch.bfloat16
    assert cast["timestep"] == 999
    assert cast["deep"][0]["time_ids"].dtype == torch.float32
    assert torch.tensor(999.0).bfloat16() == 1000


@pytest.mark.parametrize(
    ("written", "device", "dtype"),
    [
        ("dtype=bf16,dtype.vae=fp32", A_CARD, "float32"),
        ("dtype=fp16,dtype.vae=bf16", A_CARD, "float32"),
        ("dtype=bf16,dtype.vae=bf16", A_CARD, "bfloat16"),
        ("dtype.vae=fp32", A_CARD, "float32"),
        ("dtype.vae=bf16", BF16_CPU, "bfloat16"),
        ("dtype=fp16,dtype.vae=fp16", BF16_CPU, "float32"),
    ],
)
def test_weights_are_loaded_in_the_widest_format_that_a_part_wants(written, device, dtype):
    assert loading_dtype(wish(written), device) == dtype


def test_a_part_keeps_the_bits_of_a_wider_format_than_the_rest(folder):
    plain = tiny.sd().vae.decoder.conv_in.weight
    with safelight.load(str(folder), optimize="dtype=bfloat16,dtype.vae=float32", device="cpu") as session:
        assert torch.equal(session.pipe.vae.decoder.conv_in.weight, plain)
        assert session.pipe.unet.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("written", "device", "error", "says"),
    [
        ("dtype=bfloat16,dtype.vae=float16", BF16_CPU, DoesNotApply, "150 times slower"),
        ("dtype=bfloat16,dtype.vae=float12", BF16_CPU, UnknownName, "did you mean float32"),
        ("dtype=float32,dtype.vae=float16", A_CARD, DoesNotApply, "force_upcast"),
        ("dtype", OLD_CPU, DoesNotApply, "no 16 bit format"),
    ],
)
def test_what_cannot_be_says_why(unet_pipe, written, device, error, says):
    with pytest.raises(error, match=says):
        plan(target_of(unet_pipe, device, width=32, height=32), wish(written))


def test_a_value_reads_as_it_was_written(unet_pipe):
    made = plan(target_of(unet_pipe, BF16_CPU, width=32, height=32), wish("dtype=bfloat16,dtype.vae=float32"))
    assert made.choices[0].value == "bfloat16,vae=float32"
    assert chosen_dtypes(BF16_CPU, vae="float32") == {
        "denoiser": "bfloat16",
        "vae": "float32",
        "text_encoders": "bfloat16",
    }
