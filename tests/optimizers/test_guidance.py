from contextlib import contextmanager

import pytest
import tiny
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

import safelight
from safelight.errors import DidNotEngage, DoesNotApply, UsageError
from safelight.optimizers import guidance
from safelight.optimizers.guidance import first_cut, half, halved
from safelight.optimizers.target import denoiser, target_of
from safelight.planner import wish
from safelight.session import Session


def sdxl():
    """A tiny SDXL without text encoders; drawn with `embedded`."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=[32, 64],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        cross_attention_dim=32,
        attention_head_dim=[2, 4],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    ).eval()
    text = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = StableDiffusionXLPipeline(
        vae=tiny.vae(), unet=unet, scheduler=EulerDiscreteScheduler(), **text, add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd3():
    """A tiny SD3 without text encoders; drawn with `embedded`."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=16,
    ).eval()
    vae: AutoencoderKL = tiny.vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1)
    text = [f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")]
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(), **dict.fromkeys(text)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embedded(pipe, steps=5, batch=2, **more):
    """Latents drawn by calling the pipeline itself, from random text, the same for each picture."""
    noise = torch.Generator().manual_seed(3)
    signs = ("", "negative_")
    text = {f"{sign}prompt_embeds": torch.randn(1, 7, 32, generator=noise) for sign in signs}
    if isinstance(pipe, StableDiffusionXLPipeline | StableDiffusion3Pipeline):
        text |= {f"{sign}pooled_prompt_embeds": torch.randn(1, 16, generator=noise) for sign in signs}
    if isinstance(pipe, StableDiffusion3Pipeline):  # which repeats no pooled text that it is given
        more["num_images_per_prompt"] = 1
        text = {name: value.repeat(batch, *[1] * (value.ndim - 1)) for name, value in text.items()}
    given = {"num_inference_steps": steps, "num_images_per_prompt": batch, "generator": noise, "output_type": "latent"}
    return pipe(**text, width=24, height=16, **{**given, **more}).images


@contextmanager
def applied(name, pipe, **options):
    """An optimizer on a pipeline that no session announces runs of."""
    steps = getattr(guidance, name)(pipe, target_of(pipe, tiny.cpu(), width=24, height=16), **options)
    try:
        yield next(steps)
    finally:
        next(steps, None)


@contextmanager
def batches(pipe):
    """The batch sizes and halves that the middle of the denoiser sees."""
    seen = []
    model = denoiser(pipe)
    layer = model.mid_block if hasattr(model, "mid_block") else model.transformer_blocks[0]

    def look(_module, args, kwargs):
        seen.append((len(args[0] if args else kwargs["hidden_states"]), half.get()))

    hook = layer.register_forward_pre_hook(look, with_kwargs=True)
    yield seen
    hook.remove()


PIPELINES = {"sd": tiny.sd, "sdxl": sdxl, "sd3": sd3}


@pytest.fixture(params=PIPELINES.values(), ids=PIPELINES)
def guided(request):
    return request.param()


def test_a_cut_step_runs_the_positive_half_and_gives_its_prediction(guided):
    with batches(guided) as seen, applied("guidance_cutoff", guided, fraction=0.6) as proof:
        cut = embedded(guided)
        assert proof.evidence() == "2 of 5 guided calls ran without their negative half"
    assert seen == [(4, "both")] * 3 + [(2, "positive")] * 2
    plain = embedded(guided)
    assert cut.shape == plain.shape
    assert not torch.equal(cut, plain)


def test_from_the_cut_on_the_picture_is_the_one_of_guidance_1(guided):
    """With a guidance of 1 (a hair above, or the pipeline drops the batch) all steps are the positive prompt's."""
    plainly = embedded(guided, guidance_scale=1 + 1e-7)
    with applied("guidance_cutoff", guided, fraction=0.01):
        cut = embedded(guided, guidance_scale=1 + 1e-7)
    torch.testing.assert_close(cut, plainly, rtol=1e-3, atol=1e-3)


def test_reuse_adds_what_guidance_last_added(guided):
    outputs = []
    hook = denoiser(guided).register_forward_hook(lambda _module, _inputs, output: outputs.append(output[0].chunk(2)))
    with batches(guided) as seen, applied("guidance_cutoff", guided, fraction=0.6, reuse=True):
        embedded(guided)
    hook.remove()
    assert [size for size, _ in seen] == [4, 4, 4, 2, 2]
    last, cut = (outputs[i][1] - outputs[i][0] for i in (2, 4))
    assert last.norm() > 0
    torch.testing.assert_close(cut, last, rtol=1e-4, atol=1e-5)


def test_a_split_batch_gives_the_same_in_halves(guided):
    plain = embedded(guided)
    with batches(guided) as seen, applied("guidance_split", guided) as proof:
        split = embedded(guided)
        assert proof.evidence() == "5 of 5 guided batches ran in two halves"
    assert seen == [(2, "negative"), (2, "positive")] * 5
    assert (split - plain).norm() < 1e-4 * plain.norm()
    assert torch.equal(embedded(guided), plain)


@pytest.mark.parametrize("order", ["guidance-cutoff,guidance-split", "guidance-split,guidance-cutoff"])
def test_a_cut_call_is_not_split_whichever_was_asked_for_first(unet_pipe, order):
    with safelight.optimize(unet_pipe, order, width=32, height=32) as opened, batches(unet_pipe) as seen:
        opened.generate("a cat", steps=5, seed=1)
        assert [status.evidence for status in opened.status() if "cutoff" in status.name] == [
            "2 of 5 guided calls ran without their negative half"
        ]
    assert seen == [(1, "negative"), (1, "positive")] * 3 + [(1, "positive")] * 2
    assert "forward" not in vars(unet_pipe.unet)


def test_all_three_work_together(unet_pipe):
    everything = "guidance-cutoff,guidance-split,token-merging"
    with safelight.optimize(unet_pipe, everything, width=32, height=32, batch_size=2) as opened:
        assert all(status.engaged for status in opened.status())


def test_heun_takes_two_calls_a_step_and_both_are_cut():
    pipe = tiny.sd()
    pipe.scheduler = HeunDiscreteScheduler()
    with batches(pipe) as seen, applied("guidance_cutoff", pipe, fraction=0.5):
        embedded(pipe, steps=4, batch=1)
    # timesteps: t0 | t1 t1 | t2 t2 | t3 t3, as diffusers lists them
    assert [size for size, _ in seen] == [2, 2, 2, 1, 1, 1, 1]


@pytest.mark.parametrize("reuse", [False, True])
def test_a_run_that_nobody_announced_starts_anew_after_one_that_broke_off(reuse):
    pipe = tiny.sd()

    def stop(pipe, step, time, values):
        if step == 3:
            raise KeyboardInterrupt
        return values

    with applied("guidance_cutoff", pipe, reuse=reuse) as proof:
        whole = embedded(pipe, batch=1)
        with pytest.raises(KeyboardInterrupt):
            embedded(pipe, steps=20, callback_on_step_end=stop)
        assert torch.equal(embedded(pipe, batch=1), whole)
        assert proof.evidence() == "2 of 5 guided calls ran without their negative half"
    assert half.get() == "both"


def test_a_direct_call_after_a_request_goes_by_its_own_steps_and_guidance(unet_pipe):
    with safelight.optimize(unet_pipe, "guidance-cutoff", width=32, height=32) as opened:
        opened.generate("a cat", steps=10, seed=1)
        with batches(unet_pipe) as seen:
            embedded(unet_pipe, steps=5)
            embedded(unet_pipe, steps=5, guidance_scale=1.0)
    assert [size for size, _ in seen] == [4, 4, 4, 2, 2] + [2] * 5


def test_without_guidance_there_is_nothing_to_cut(unet_pipe):
    with safelight.optimize(unet_pipe, "guidance-cutoff", width=32, height=32) as opened, batches(unet_pipe) as seen:
        opened.generate("a cat", steps=5, seed=1, guidance=1.0, count=2, batch_size=2)
    assert [size for size, _ in seen] == [2] * 5


def test_a_session_whose_model_uses_no_guidance_says_so(unet_pipe):
    with pytest.raises(DidNotEngage, match="guidance-cutoff"):
        Session(unet_pipe, tiny.cpu(), wish("guidance-cutoff"), defaults={"guidance": 1.0}, width=32, height=32)


def test_guidance_rescale_of_a_cut_step_changes_nothing_but_rounding(unet_pipe):
    with applied("guidance_cutoff", unet_pipe, fraction=0.01):
        plainly = embedded(unet_pipe)
        rescaled = embedded(unet_pipe, guidance_rescale=1e-6)
    torch.testing.assert_close(rescaled, plainly, rtol=1e-4, atol=1e-4)


def test_the_extra_call_of_skip_layer_guidance_is_left_whole():
    pipe = sd3()
    with batches(pipe) as seen, applied("guidance_split", pipe):
        embedded(pipe, steps=4, skip_guidance_layers=[1], skip_layer_guidance_stop=1.0, skip_layer_guidance_start=0.0)
    assert seen == [(2, "negative"), (2, "positive")] + [(2, "negative"), (2, "positive"), (2, "both")] * 3


def test_a_batch_of_unlike_latents_is_never_cut(unet_pipe):
    with applied("guidance_cutoff", unet_pipe):
        embedded(unet_pipe)
        with batches(unet_pipe) as seen, torch.no_grad():
            unet_pipe.unet(torch.randn(2, 4, 6, 8), 0, torch.randn(2, 7, 32))  # the last step's timestep
    assert seen == [(2, "both")]


def test_return_dict_gives_diffusers_own_output(unet_pipe):
    x, text = torch.randn(2, 4, 6, 8), torch.randn(4, 7, 32)
    x = torch.cat([x, x])
    with applied("guidance_split", unet_pipe), torch.no_grad():
        embedded(unet_pipe)  # the pipeline knows of guidance from now on
        split = unet_pipe.unet(x, 1, text)
    with torch.no_grad():
        plain = unet_pipe.unet(x, 1, text)
    assert type(split) is type(plain)
    torch.testing.assert_close(split.sample, plain.sample)


def test_only_what_carries_the_whole_batch_is_halved():
    whole, one = torch.arange(4), torch.ones(1, 3)
    given = {"a": whole, "b": [whole, one], "c": (None, torch.tensor(5)), "d": {"e": whole, "f": "text"}}
    positive = halved(given, 4, "positive")
    assert positive["a"].tolist() == positive["b"][0].tolist() == positive["d"]["e"].tolist() == [2, 3]
    assert positive["b"][1] is one
    assert positive["c"] == (None, 5)
    assert halved(whole, 4, "negative").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("fraction", "steps", "index"), [(0.6, 20, 12), (0.55, 20, 11), (0.6, 2, 2), (0.01, 4, 1), (0.95, 20, 19)]
)
def test_the_first_step_without_guidance(fraction, steps, index):
    assert first_cut(fraction, steps) == index


@pytest.mark.parametrize("fraction", [0, 1, -0.1])
def test_a_share_out_of_range_is_refused(unet_pipe, fraction):
    with pytest.raises(UsageError, match=r"above 0, to 0\.95"):
        safelight.optimize(unet_pipe, f"guidance-cutoff={fraction}")


@pytest.mark.parametrize("name", ["guidance-cutoff", "guidance-split"])
def test_flux_has_no_guidance_batch(name):
    with pytest.raises(DoesNotApply, match="FluxPipeline takes the guidance scale as an input"):
        safelight.optimize(tiny.flux(), name)


def test_a_pipeline_that_guides_in_two_calls_is_refused_and_so_is_one_that_is_not_known(unet_pipe):
    from dataclasses import replace

    from diffusers import QwenImagePipeline

    target = target_of(unet_pipe, tiny.cpu(), width=32, height=32)
    assert "in two calls" in guidance.why_not_one_batch(replace(target, pipeline=QwenImagePipeline))

    class Own(type(unet_pipe)):
        def __call__(self):
            """Orders its batch in its own way."""

    class Same(type(unet_pipe)):
        """Adds nothing to the call."""

    assert "how Own orders" in guidance.why_not_one_batch(replace(target, pipeline=Own))
    assert guidance.why_not_one_batch(replace(target, pipeline=Same)) is None


@pytest.mark.parametrize("name", guidance.IN_TWO_CALLS)
def test_the_pipelines_of_two_calls_call_twice(name):
    import inspect

    import diffusers

    source = inspect.getsource(getattr(diffusers, name).__call__)
    assert source.count("self.transformer(") + source.count("self.unet(") + source.count("current_model(") > 1


def test_auto_leaves_what_costs_seconds_or_the_picture(unet_pipe):
    with safelight.optimize(unet_pipe, "auto", width=32, height=32) as opened:
        assert not {"guidance-split", "guidance-cutoff"} & opened.plan.options.keys()
