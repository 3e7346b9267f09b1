"""The contract that every optimizer keeps. A new one is tested as soon as it is registered."""

from collections import Counter

import pytest
import tiny
import torch
from optimizers.contract import gathered

import safelight
from safelight.errors import DidNotEngage, DoesNotApply
from safelight.optimizers import OPTIMIZERS, Fidelity, Proof, Registry, Stage
from safelight.optimizers.attention import counting
from safelight.planner import Wish, wish
from safelight.request import Request
from safelight.run import generate as run
from safelight.run.decoding import decode
from safelight.run.denoising import Watch
from safelight.run.settling import settle
from safelight.sampling.checkpoint import Checkpoint
from safelight.session import Session

WRITTEN, BATCH, PSNR, OFF, ELSEWHERE = (gathered(table) for table in ("WRITTEN", "BATCH", "PSNR", "OFF", "ELSEWHERE"))
NAMES = sorted(OPTIMIZERS)


def draw(pipe, batch_size=1, steps=3):
    """float (batch, 3, 32, 32): what the pipeline draws as it stands now, before rounding to 8 bits."""
    request = Request("a cat", steps=steps, seed=5, count=batch_size, batch_size=batch_size, width=32, height=32)
    checkpoint = Checkpoint.of(pipe)
    request = settle(pipe, request, {}, checkpoint)
    passes = run._passes(pipe, request, checkpoint, tiny.cpu(), keep_first=False)
    return decode(pipe, passes(request.seeds(), None, Watch()).latents, 32, 32).float()


def psnr(a, b):
    return float(-10 * torch.log10((a - b).pow(2).mean().clamp(min=1e-12)))


def session(pipe, name, **more):
    written = WRITTEN.get(name, name)
    return Session(pipe, tiny.cpu(), wish(written), width=32, height=32, batch_size=BATCH.get(name, 1), **more)


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_applies_with_evidence_or_says_why_not_and_is_undone(name, pipe):
    batch = BATCH.get(name, 1)
    plain, attributes = draw(pipe, batch), global_settings()
    state = snapshot(pipe, addresses=name not in ELSEWHERE)
    try:
        with session(pipe, name) as opened:
            (status,) = opened.status()
            planned = draw(pipe, batch)
    except DoesNotApply as reason:
        pytest.skip(str(reason))
    assert status.engaged
    assert status.evidence
    if OPTIMIZERS[name].fidelity is Fidelity.EXACT:
        assert torch.equal(planned, plain)
    elif OPTIMIZERS[name].fidelity is Fidelity.ROUNDING:
        # float32 rounded elsewhere differs in the last of 24 bits
        assert psnr(planned, plain) > PSNR.get(name, 80)
    assert torch.equal(draw(pipe, batch), plain)
    assert snapshot(pipe, addresses=name not in ELSEWHERE) == state
    assert global_settings() == attributes


@pytest.mark.parametrize("name", NAMES)
def test_an_exception_inside_still_undoes(name, pipe):
    batch = BATCH.get(name, 1)
    plain = draw(pipe, batch)
    try:
        with pytest.raises(KeyboardInterrupt), session(pipe, name):
            raise KeyboardInterrupt
    except DoesNotApply as reason:
        pytest.skip(str(reason))
    assert torch.equal(draw(pipe, batch), plain)


@pytest.mark.parametrize("name", NAMES)
def test_a_failure_of_a_later_optimizer_undoes_an_earlier_one(name, pipe):
    batch = BATCH.get(name, 1)
    plain = draw(pipe, batch)
    registry = Registry({name: OPTIMIZERS[name]})

    @registry.add(stage=max(Stage), fidelity=Fidelity.EXACT, source="https://", fits=lambda target: None)
    def breaks(pipe, target):
        """Fails while it is applied."""
        raise RuntimeError("half way")
        yield

    wished = wish(f"{WRITTEN.get(name, name)},breaks", registry=registry)
    try:
        with pytest.raises(RuntimeError, match="half way"):
            Session(pipe, tiny.cpu(), wished, width=32, height=32, batch_size=batch, registry=registry)
    except DoesNotApply as reason:
        pytest.skip(str(reason))
    assert torch.equal(draw(pipe, batch), plain)


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_whose_inside_is_switched_off_did_not_engage(name, pipe):
    plain = draw(pipe, BATCH.get(name, 1))
    try:
        with OFF[name](), session(pipe, name):
            pytest.fail(f"{name} gave evidence of what it did not do")
    except DoesNotApply as reason:
        pytest.skip(str(reason))
    except DidNotEngage as error:
        assert name in str(error)
    assert torch.equal(draw(pipe, BATCH.get(name, 1)), plain)


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_is_documented(name):
    known = OPTIMIZERS[name]
    assert known.summary.endswith(".")
    assert len(known.summary) <= 110
    assert known.source.startswith("https://")
    assert all(option.default is not None and option.kind in (int, float, str, bool) for option in known.options)


def test_no_evidence_is_an_error_and_leaves_the_pipeline_as_it_was(unet_pipe):
    registry = Registry()

    @registry.add(stage=Stage.PRECISION, fidelity=Fidelity.EXACT, source="https://", fits=lambda target: None)
    def does_nothing(pipe, target):
        """Changes nothing at all."""
        yield Proof(lambda: "")

    plain = draw(unet_pipe)
    with pytest.raises(DidNotEngage, match="does-nothing"):
        Session(unet_pipe, tiny.cpu(), Wish({"does-nothing": {}}), registry=registry)
    assert torch.equal(draw(unet_pipe), plain)


def test_attention_on_math_runs_no_flash_kernel(unet_pipe):
    with safelight.optimize(unet_pipe, "attention-backend=math"):
        ops = Counter()
        with torch.inference_mode(), counting(ops):
            unet_pipe.unet(torch.zeros(1, 4, 16, 16), 1, torch.zeros(1, 7, 32))
    assert not [name for name in ops if "flash" in name]


def test_a_prompt_comes_from_the_cache_only_if_everything_about_it_is_the_same(unet_pipe):
    with safelight.optimize(unet_pipe, "prompt-cache"):
        one = unet_pipe.encode_prompt("a cat", "cpu", 1, True, negative_prompt="a dog")[0]
        same = unet_pipe.encode_prompt("a cat", "cpu", 1, True, negative_prompt="a dog")[0]
        other = unet_pipe.encode_prompt("a cow", "cpu", 1, True, negative_prompt="a dog")[0]
        given = unet_pipe.encode_prompt(None, "cpu", 1, True, prompt_embeds=one, negative_prompt_embeds=one)[0]
    assert same is one
    assert not torch.equal(other, one)
    assert torch.equal(given, one)


def test_tiles_keep_the_size_of_the_picture(unet_pipe):
    with safelight.optimize(unet_pipe, "vae-tiling=16,vae-tiling.overlap=0.5", width=48, height=32) as opened:
        picture = opened.generate("a cat", width=48, height=32, steps=2, seed=1).pictures[0].image
    assert picture.size == (48, 32)


def test_the_whole_stack_together_is_undone(pipe):
    plain = draw(pipe, 2)
    everything = "dtype=bfloat16,channels-last,attention-backend=flash,vae-slicing,vae-tiling=16,prompt-cache"
    with Session(pipe, tiny.cpu(), wish(everything), width=32, height=32, batch_size=2) as opened:
        assert [status.name for status in opened.status() if not status.engaged] == []
        assert len(opened.status()) == len(everything.split(","))
    assert torch.equal(draw(pipe, 2), plain)


def snapshot(pipe, addresses=True):
    """Everything of the pipeline's parts that an optimizer could leave behind, but for the numbers themselves."""
    out = {"pipe": sorted(vars(pipe)), "config": str(dict(pipe.config))}
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in part.modules()]
            layout = [(p.dtype, p.stride(), addresses and p.data_ptr()) for p in part.parameters()]
            out[name] = (str(sorted(vars(part))), hooks, layout, list(part.state_dict()))
    return out


def global_settings():
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    backends = torch.backends
    return (
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.is_grad_enabled(),
        backends.cuda.flash_sdp_enabled(),
        backends.cuda.math_sdp_enabled(),
        backends.cuda.mem_efficient_sdp_enabled(),
        backends.cudnn.benchmark,
        _AttentionBackendRegistry._active_backend,
    )
