"""A request becomes pictures: the same for the same seed, alone or in a batch, and never spoiled unseen."""

import numpy as np
import pytest
import tiny
import torch
from accelerate import cpu_offload
from diffusers import StableDiffusionImg2ImgPipeline, UniPCMultistepScheduler
from optimizers.off_decode import taesd_folder

import safelight
from safelight.errors import DoesNotApply, OutOfMemory, SpoiledPicture, UnknownName, UsageError
from safelight.measure.clock import Clock
from safelight.request import Request
from safelight.run import generate as run
from safelight.run.settling import settle
from safelight.sampling.checkpoint import Checkpoint


def pixels(picture):
    return np.asarray(picture.image).astype(int)


def draw(pipe, **fields):
    request = settle(pipe, Request("a cat", **{"steps": 3, "seed": 11, **fields}), {}, Checkpoint.of(pipe))
    return list(run.pictures(pipe, request, tiny.cpu(), Checkpoint.of(pipe)))


@pytest.mark.parametrize("batch_size", [2, 3, 4, 5])
def test_picture_i_equals_the_picture_that_its_seed_gives_alone(pipe, batch_size):
    together = draw(pipe, count=5, batch_size=batch_size)
    alone = [draw(pipe, seed=11 + i)[0] for i in range(5)]
    assert [picture.seed for picture in together] == [11, 12, 13, 14, 15]
    for one, other in zip(together, alone, strict=True):
        # one level of 255: kernels add up in another order when there is more to add
        assert abs(pixels(one) - pixels(other)).max() <= 1


def test_the_same_batch_gives_the_same_bits(pipe):
    first, second = (draw(pipe, count=3, batch_size=3) for _ in range(2))
    assert all((pixels(a) == pixels(b)).all() for a, b in zip(first, second, strict=True))


def test_seeds_that_differ_give_pictures_that_differ(pipe):
    one, other = draw(pipe, count=2)
    assert abs(pixels(one) - pixels(other)).max() > 8


def test_what_comes_out_is_what_the_pipeline_itself_draws(pipe):
    own = pipe(
        prompt="a cat",
        num_inference_steps=3,
        generator=[torch.Generator().manual_seed(11)],
        width=32,
        height=32,
        output_type="np",
    ).images[0]
    ours = pixels(draw(pipe, width=32, height=32)[0])
    assert abs(ours - (own * 255).round().astype(int)).max() <= 1


def test_noise_is_the_same_in_every_dtype(unet_pipe):
    exact = pixels(draw(unet_pipe)[0])
    rounded = pixels(draw(unet_pipe.to(torch.bfloat16))[0])
    assert abs(exact - rounded).mean() < 8


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DPM++ 2M Karras", "Heun", "UniPC", "DDIM", "PLMS", "LCM"])
def test_every_sampler_draws_and_leaves_the_pipeline_its_own_scheduler(unet_pipe, sampler):
    before = unet_pipe.scheduler
    picture = draw(unet_pipe, sampler=sampler, steps=4)[0]
    assert picture.image.size == (32, 32)
    assert unet_pipe.scheduler is before


def test_a_karras_run_leaves_no_trace_in_the_next(unet_pipe):
    plain = pixels(draw(unet_pipe, sampler="Euler")[0])
    draw(unet_pipe, sampler="DPM++ 2M Karras")
    assert (pixels(draw(unet_pipe, sampler="Euler")[0]) == plain).all()


def test_a_flow_model_refuses_a_sampler_for_noise_predicting_models():
    with pytest.raises(DoesNotApply, match=r"not for a flow-matching model: .*use LMS"):
        draw(tiny.flux(), sampler="PLMS")


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"width": 33}, r"width is 33.*multiples of 8 .*\(32 and 40 are near\)"), ({"height": 1}, "multiples of 8")],
)
def test_a_size_that_the_vae_cannot_make_is_refused(unet_pipe, fields, says):
    with pytest.raises(UsageError, match=says):
        draw(unet_pipe, **fields)


def test_packed_latents_need_twice_the_factor():
    with pytest.raises(UsageError, match="multiples of 4"):
        draw(tiny.flux(), width=34)


def test_an_unknown_sampler_names_the_nearest(unet_pipe):
    with pytest.raises(UnknownName, match=r"did you mean .*DPM\+\+ 2M Karras"):
        draw(unet_pipe, sampler="DPM++ 2M Karas")


def test_a_negative_prompt_is_refused_where_the_pipeline_takes_none(unet_pipe):
    pipe = tiny.flux()
    pipe.__class__ = type("Plain", (type(pipe),), {"__call__": lambda self, prompt, guidance_scale=1.0: None})
    with pytest.raises(DoesNotApply, match="takes no negative prompt"):
        settle(pipe, Request("a cat", negative="a dog"), {}, Checkpoint.of(pipe))


def test_what_is_left_open_is_settled_from_the_model(unet_pipe):
    settled = settle(unet_pipe, Request("a cat"), {}, Checkpoint.of(unet_pipe))
    assert (settled.width, settled.height, settled.steps, settled.guidance) == (32, 32, 20, 7.5)
    assert settled.seed is not None
    assert settle(unet_pipe, Request("a cat"), {"guidance": 3.0, "steps": 4}, Checkpoint.of(unet_pipe)).guidance == 3.0


class BrokenVae:
    """Breaks decode for the first `times` calls in which the VAE is not float32, or for all."""

    def __init__(self, pipe, value, *, also_in_float32):
        self.decode, self.vae, self.value, self.also = pipe.vae.decode, pipe.vae, value, also_in_float32
        pipe.vae.decode = self

    def __call__(self, latents, return_dict=True):
        decoded = self.decode(latents, return_dict=False)[0]
        if self.also or self.vae.dtype != torch.float32:
            decoded = torch.full_like(decoded, self.value)
        return (decoded,)


@pytest.mark.parametrize("value", [float("nan"), -1.0], ids=["nan", "black"])
def test_a_spoiled_decode_is_tried_again_in_float32(unet_pipe, value):
    unet_pipe.to(torch.bfloat16)
    BrokenVae(unet_pipe, value, also_in_float32=False)
    picture = draw(unet_pipe)[0]
    assert picture.vae_retried
    assert pixels(picture).max() > 20
    assert unet_pipe.vae.dtype == torch.bfloat16


@pytest.mark.parametrize("value", [float("nan"), -1.0], ids=["nan", "black"])
def test_a_picture_spoiled_also_in_float32_is_an_error(unet_pipe, value):
    BrokenVae(unet_pipe, value, also_in_float32=True)
    with pytest.raises(SpoiledPicture, match="also with the VAE in float32"):
        draw(unet_pipe)


def overflowing(vae):
    """A decoder that gives not-a-number in 16 bits, as those of SDXL do."""

    def spoil(_module, _inputs, output):
        return output if output.dtype == torch.float32 else output * float("nan")

    return vae.decoder.register_forward_hook(spoil)


@pytest.mark.parametrize("more", ["", ",vae-tiling=16", ",tiny-vae={}", ",vae-tiling=16,vae-slicing"])
def test_float32_mends_a_picture_while_optimizers_act_on_the_vae(unet_pipe, more):
    written = "dtype=bfloat16" + more.format(taesd_folder())
    with safelight.optimize(unet_pipe, written, width=32, height=32, batch_size=2) as session:
        held = [parameter.data_ptr() for parameter in unet_pipe.vae.parameters()]
        hook = overflowing(unet_pipe.vae)
        pictures = session.generate("a cat", steps=2, seed=1, count=2, batch_size=2).pictures
        hook.remove()
        assert all(picture.vae_retried and pixels(picture).std() > 0 for picture in pictures)
        assert [parameter.data_ptr() for parameter in unet_pipe.vae.parameters()] == held
        assert {parameter.dtype for parameter in unet_pipe.vae.parameters()} == {torch.bfloat16}


def test_a_vae_that_is_upcast_overflows_no_more(unet_pipe):
    with safelight.optimize(unet_pipe, "dtype=bfloat16,upcast-vae") as session:
        hook = overflowing(unet_pipe.vae)
        (picture,) = session.generate("a cat", steps=2, seed=1).pictures
        hook.remove()
    assert not picture.vae_retried


def test_a_vae_whose_weights_lie_elsewhere_is_not_upcast(unet_pipe):
    unet_pipe.to(torch.bfloat16)
    good = pixels(draw(unet_pipe)[0])
    cpu_offload(unet_pipe.vae, torch.device("cpu"))
    assert next(unet_pipe.vae.parameters()).is_meta
    assert (pixels(draw(unet_pipe)[0]) == good).all()
    overflowing(unet_pipe.vae)
    with pytest.raises(SpoiledPicture, match="an offloaded VAE is not upcast"):
        draw(unet_pipe)
    assert {parameter.dtype for parameter in unet_pipe.vae.parameters()} == {torch.bfloat16}


def test_a_vae_whose_weights_come_layer_by_layer_is_mended(unet_pipe):
    unet_pipe.to(torch.bfloat16)
    unet_pipe.vae.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    overflowing(unet_pipe.vae)
    assert draw(unet_pipe)[0].vae_retried
    assert {parameter.dtype for parameter in unet_pipe.vae.parameters()} == {torch.bfloat16}


def test_plain_diffusers_from_pipe_upcasts_the_models_it_shares(unet_pipe):
    """diffusers issue 12754: without a dtype it converts the original's models, too; our own object does not."""
    unet_pipe.to(torch.bfloat16)
    own = run.own_object(unet_pipe)
    assert own.unet is unet_pipe.unet
    assert own.scheduler is not unet_pipe.scheduler
    assert unet_pipe.unet.dtype == torch.bfloat16
    StableDiffusionImg2ImgPipeline.from_pipe(unet_pipe)
    assert unet_pipe.unet.dtype == torch.float32


def test_a_model_whose_own_scheduler_gives_not_a_number_draws(unet_pipe):
    unet_pipe.scheduler = UniPCMultistepScheduler.from_config(unet_pipe.scheduler.config, solver_type="bh1")
    plain = unet_pipe("a cat", num_inference_steps=3, output_type="latent").images
    assert not torch.isfinite(plain).all()
    assert pixels(draw(unet_pipe)[0]).std() > 0


def test_a_denoiser_that_gives_nan_is_named(unet_pipe):
    unet_pipe.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(SpoiledPicture, match=r"the denoiser gave not-a-number \(torch.float32\)"):
        draw(unet_pipe)


ON_A_CPU = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 2147483648 bytes."
ON_A_CARD = "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError(ON_A_CPU), "it asked for 2.00 GiB more"),
        (torch.OutOfMemoryError(ON_A_CARD), "it asked for 1.50 GiB more"),
        (MemoryError(), "no size given"),
    ],
    ids=["cpu", "cuda", "python"],
)
def test_out_of_memory_says_where_how_much_and_what_helps(unet_pipe, error, says):
    def decode(*_, **__):
        raise error

    unet_pipe.vae.decode = decode
    with pytest.raises(OutOfMemory, match=r"decode of 1 picture.* of 32x32 ran out of memory") as raised:
        draw(unet_pipe)
    assert says in str(raised.value)
    assert "vae-tiling" in str(raised.value)


def test_another_error_is_not_taken_for_out_of_memory(unet_pipe):
    def decode(*_, **__):
        raise RuntimeError("shapes differ")

    unet_pipe.vae.decode = decode
    with pytest.raises(RuntimeError, match="shapes differ"):
        draw(unet_pipe)


def test_stages_are_timed_and_reported_in_order(unet_pipe):
    request = settle(unet_pipe, Request("a cat", steps=3, seed=1, upscale=4, count=2), {}, Checkpoint.of(unet_pipe))
    clock, heard = Clock(), []
    list(
        run.pictures(
            unet_pipe,
            request,
            tiny.cpu(),
            Checkpoint.of(unet_pipe),
            clock=clock,
            progress=lambda *news: heard.append(news),
        )
    )
    assert list(clock.seconds) == ["text", "denoise", "decode", "upscale"]
    assert all(seconds > 0 for seconds in clock.seconds.values())
    steps = [("denoise", i, 3) for i in (0, 1, 2, 3)]
    decode, upscale = ([(stage, 0, 1), (stage, 1, 1)] for stage in ("decode", "upscale"))
    one = [("text", 0, 1), ("text", 1, 1), *steps, *decode, *upscale]
    assert heard == [*one, ("pictures", 1, 2), *one, ("pictures", 2, 2)]


def test_an_interruption_in_a_step_leaves_the_pipeline_as_it_was(unet_pipe):
    before = unet_pipe.scheduler
    request = settle(unet_pipe, Request("a cat", steps=3, seed=1), {}, Checkpoint.of(unet_pipe))

    def interrupt(stage, done, total):
        if stage == "denoise" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run.pictures(unet_pipe, request, tiny.cpu(), Checkpoint.of(unet_pipe), progress=interrupt))
    assert unet_pipe.scheduler is before
    assert "prepare_latents" not in vars(unet_pipe)
    assert not unet_pipe.unet._forward_pre_hooks
