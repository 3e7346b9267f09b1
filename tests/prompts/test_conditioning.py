"""Over the steps of a run: words that change, and prompts joined by AND."""

import pytest
import tiny
import torch

from safelight.prompts.compose import Pull, Pulls, composed
from safelight.prompts.conditioning import plan
from safelight.prompts.encode import encode

STEPS = 4
MAKE = {"sd": tiny.sd, "sdxl": tiny.sdxl}


@pytest.fixture(params=list(MAKE))
def pipe(request):
    return MAKE[request.param]()


def drawn(pipe, *, guidance=5.0, count=1, callback=None, **prompts):
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    size = {"height": 32, "width": 32, "num_inference_steps": STEPS, "generator": generators, "output_type": "latent"}
    return pipe(**prompts, **size, guidance_scale=guidance, callback_on_step_end=callback).images


def run(pipe, prompt, negative="", *, guidance=5.0, count=1, **options):
    conditioned = plan(pipe, prompt, negative, STEPS, count, guidance=guidance, **options)
    with conditioned.composed():
        return drawn(
            pipe,
            guidance=guidance,
            count=count,
            callback=lambda _pipe, i, _t, values: conditioned.at(i) or values,
            **conditioned.arguments,
        )


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_a_plain_prompt_draws_the_pipelines_own_picture(pipe, guidance):
    own = drawn(pipe, prompt=["a cat"], negative_prompt=["bad"], guidance=guidance)
    assert torch.equal(run(pipe, "a cat", "bad", guidance=guidance), own)


def test_a_batch_has_a_row_for_each_picture(pipe):
    two = run(pipe, "a (cat) [b|c] AND d", count=2)
    assert torch.allclose(two[:1], run(pipe, "a (cat) [b|c] AND d"), atol=1e-3)


def test_a_word_changes_when_it_was_said_to(pipe):
    seen = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append((kwargs["encoder_hidden_states"], kwargs["added_cond_kwargs"])),
        with_kwargs=True,
    )
    run(pipe, "a [cat:dog:1]", "[x:y:2]")
    hook.remove()
    # as A1111 counts: one step longer than said
    expected = [("a cat", "x"), ("a cat", "x"), ("a dog", "x"), ("a dog", "y")]
    for (embeds, added), (prompt, negative) in zip(seen, expected, strict=True):
        made = encode(pipe, prompt, negative)
        assert torch.equal(embeds, torch.cat([made.negative_prompt_embeds, made.prompt_embeds]))
        if made.pooled_prompt_embeds is not None:
            pooled = torch.cat([made.negative_pooled_prompt_embeds, made.pooled_prompt_embeds])
            assert torch.equal(added["text_embeds"], pooled)


def test_without_guidance_there_are_only_positive_rows(pipe):
    conditioned = plan(pipe, "[a|b]", "x", STEPS, 2, guidance=1.0)
    assert not any(name.startswith("negative") for name in conditioned.arguments)
    assert len(conditioned.arguments["prompt_embeds"]) == len(conditioned.at(1)["prompt_embeds"]) == 2


def test_nothing_is_returned_where_nothing_changes(pipe):
    conditioned = plan(pipe, "a [b:c:1]", "", STEPS, 1, guidance=5.0)
    assert [conditioned.at(i) is not None for i in range(STEPS)] == [False, True, False, False]
    assert all(plan(pipe, "a (b)", "", STEPS, 1, guidance=5.0).at(i) is None for i in range(STEPS))


def test_two_evaluations_of_a_step_have_one_text(pipe):
    conditioned = plan(pipe, "[a:b:1]", "", STEPS, 1, guidance=5.0, step_of=lambda index: index // 2)
    assert [conditioned.at(i) is not None for i in range(6)] == [False, False, False, True, False, False]


def test_all_texts_have_as_many_chunks_as_the_longest(pipe):
    conditioned = plan(pipe, "a [b:c BREAK d:1]", "", STEPS, 1, guidance=5.0)
    shapes = {name: value.shape for name, value in conditioned.arguments.items()}
    assert shapes["prompt_embeds"] == shapes["negative_prompt_embeds"] and shapes["prompt_embeds"][1] == 2 * 77
    assert conditioned.at(1)["prompt_embeds"].shape[:2] == (2, 2 * 77)


def test_each_distinct_text_is_encoded_once(pipe):
    calls = []
    pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    conditioned = plan(pipe, "[a|b] AND a", "", 20, 1, guidance=5.0)
    for i in range(20):
        conditioned.at(i)
    assert len(calls) == 3


def noises(pipe, prompts, negative, sample, added):
    """What the denoiser says to each prompt alone."""
    embeds = [encode(pipe, prompt) for prompt in prompts]
    made = encode(pipe, prompts[0], negative)
    pairs = [(made.negative_prompt_embeds, made.negative_pooled_prompt_embeds)]
    pairs += [(each.prompt_embeds, each.pooled_prompt_embeds) for each in embeds]
    with torch.no_grad():
        return [
            pipe.unet(
                sample,
                3,
                encoder_hidden_states=tokens,
                added_cond_kwargs={**added, "text_embeds": pooled} if added else None,
                return_dict=False,
            )[0]
            for tokens, pooled in pairs
        ]


@pytest.mark.parametrize("guided", [True, False])
def test_and_is_the_formula(pipe, guided):
    sample = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    added = {"time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]])} if tiny_is_xl(pipe) else {}
    uncond, a, b = noises(pipe, ["a", "b"], "x", sample, added)
    expected = uncond + 1.2 * (a - uncond) - 0.5 * (b - uncond)

    conditioned = plan(pipe, "a :1.2 AND b :-0.5", "x", STEPS, 1, guidance=5.0 if guided else 1.0)
    given = conditioned.arguments
    names = ["negative_prompt_embeds", "prompt_embeds"][0 if guided else 1 :]
    rows = len(names)
    kwargs = {"encoder_hidden_states": torch.cat([given[name] for name in names])}
    if added:
        pooled = torch.cat([given[name.replace("prompt", "pooled_prompt")] for name in names])
        kwargs["added_cond_kwargs"] = {"time_ids": added["time_ids"].repeat(rows, 1), "text_embeds": pooled}
    with conditioned.composed(), torch.no_grad():
        output = pipe.unet(sample.repeat(rows, 1, 1, 1), 3, **kwargs)
    assert torch.allclose(output.sample[-1:], expected, atol=1e-5)
    if guided:
        assert torch.allclose(output.sample[:1], uncond, atol=1e-5)


def tiny_is_xl(pipe):
    return hasattr(pipe, "text_encoder_2")


def test_and_draws_another_picture_and_one_part_of_weight_one_the_same(pipe):
    plain = run(pipe, "a cat")
    assert torch.allclose(run(pipe, "a cat AND fog :0"), plain, atol=1e-5)
    assert torch.allclose(run(pipe, "a cat :0.5 AND a cat :0.5"), plain, atol=1e-4)
    assert not torch.allclose(run(pipe, "a cat AND fog"), plain, atol=1e-3)


def test_words_change_in_every_part_of_and(pipe):
    # until the change both are the same; the last step alone differs
    steady = run(pipe, "a cat AND fog")
    assert not torch.allclose(run(pipe, "a cat AND [fog:sun:1]"), steady, atol=1e-5)
    assert torch.equal(run(pipe, "a cat AND [fog:sun:3]"), steady)  # the last step is that of 3, which holds it


def test_the_denoiser_is_given_back_also_after_an_error(unet_pipe):
    unet = unet_pipe.unet
    marked = unet.forward
    with pytest.raises(ZeroDivisionError), composed(unet, lambda: Pulls(1.0, (), True)):
        assert "forward" in vars(unet)
        raise ZeroDivisionError
    assert "forward" not in vars(unet)
    unet.forward = marked
    with composed(unet, lambda: Pulls(1.0, (), True)):
        assert unet.forward is not marked
    assert unet.forward is marked


def test_a_forward_that_an_optimizer_put_there_serves_every_part(unet_pipe):
    calls = []
    inner = unet_pipe.unet.forward

    def counting(*args, **kwargs):
        calls.append(len(args[0]))
        return inner(*args, **kwargs)

    unet_pipe.unet.forward = counting
    run(unet_pipe, "a AND b AND c", count=2)
    assert calls == [4, 2, 2] * STEPS


def test_what_carries_the_batch_is_halved_for_a_further_prompt(unet_pipe):
    unet = unet_pipe.unet
    seen = []

    def forward(sample, timestep, **kwargs):
        seen.append(kwargs)
        return (sample,)

    unet.forward = forward
    pull = Pull(1.0, torch.zeros(2, 77, 32))
    residuals = (torch.arange(4.0), torch.zeros(1))
    with composed(unet, lambda: Pulls(1.0, (pull,), True)):
        unet(torch.zeros(4, 4, 8, 8), 3, encoder_hidden_states=torch.ones(4, 77, 32), residuals=residuals, scale=0.5)
    further = seen[1]
    assert torch.equal(further["residuals"][0], torch.tensor([2.0, 3.0]))
    assert torch.equal(further["residuals"][1], torch.zeros(1)) and further["scale"] == 0.5
    assert torch.equal(further["encoder_hidden_states"], pull.tokens)
