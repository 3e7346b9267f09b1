"""tomesd.safetensors holds tomesd 0.1.3's own numbers; its metadata says how they were made."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import tiny
import torch
from diffusers.models.attention import BasicTransformerBlock
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import safelight
from safelight.errors import DoesNotApply, UsageError
from safelight.optimizers import merging
from safelight.optimizers.merging import matching

CASES = ("whole", "odd", "strides", "most", "coarse")


@pytest.fixture(scope="module")
def tomesd():
    with safe_open(Path(__file__).with_name("tomesd.safetensors"), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return tensors, json.loads(file.metadata()["cases"])


def ordered(tokens):
    """The same tokens in an order of their own: attention does not depend on it, and tomesd's is its sort's."""
    return torch.stack([picture[picture[:, 0].argsort()] for picture in tokens])


@pytest.mark.parametrize("case", CASES)
def test_merged_and_unmerged_tokens_are_those_of_tomesd(tomesd, case):
    tensors, cases = tomesd
    _, height, width, sy, sx, ratio = cases[case]
    x = tensors[f"{case}.x"]
    merge, unmerge = matching(x, (height, width), (sy, sx), ratio)
    assert torch.equal(ordered(merge(x)), ordered(tensors[f"{case}.merged"]))
    assert torch.equal(unmerge(merge(x)), tensors[f"{case}.unmerged"])


@pytest.mark.parametrize(("kind", "layers"), [("attn", ("attn1",)), ("all", ("attn1", "attn2", "ff"))])
def test_a_transformer_block_gives_what_it_gives_under_tomesd(tomesd, kind, layers):
    tensors, _ = tomesd
    block = BasicTransformerBlock(8, 2, 4, cross_attention_dim=8).eval()
    weights = "block.weights."
    block.load_state_dict({k.removeprefix(weights): v for k, v in tensors.items() if k.startswith(weights)})
    x, text = tensors["block.x"], tensors["block.text"]
    wanted = merging._Wish(0.5, (2, 2), False, layers, None)
    with ExitStack() as stack, torch.no_grad():
        merging._wrap(stack, block, merging._Level(1, (7, 9)), wanted)
        torch.testing.assert_close(block(x, encoder_hidden_states=text), tensors[f"block.{kind}"])
    with torch.no_grad():
        torch.testing.assert_close(block(x, encoder_hidden_states=text), tensors["block.plain"])
    assert "forward" not in vars(block)
    assert "forward" not in vars(block.attn1)


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    sy=st.integers(1, 4),
    sx=st.integers(1, 4),
    ratio=st.floats(0, 1),
    seed=st.none() | st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_grid_loses_the_share_it_should_and_gets_every_token_back(height, width, sy, sx, ratio, seed):
    x = torch.rand(2, height * width, 3, generator=torch.Generator().manual_seed(0))
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    merge, unmerge = matching(x, (height, width), (sy, sx), ratio, generator)
    cells = (height // sy) * (width // sx)
    gone = min(int(height * width * ratio), height * width - cells) if cells else 0
    assert merge(x).shape == (2, height * width - gone, 3)
    assert unmerge(merge(x)).shape == x.shape
    # means stay among the tokens; what was left alone comes back as it was
    assert (unmerge(merge(x)) == x).all(-1).sum() >= 2 * (height * width - gone - cells)
    # averages of averages: tokens that are all alike are not changed
    torch.testing.assert_close(unmerge(merge(torch.ones_like(x))), torch.ones_like(x))


def test_pictures_of_a_batch_are_matched_one_by_one():
    x = torch.rand(3, 64, 8)
    merge, unmerge = matching(x, (8, 8), (2, 2), 0.5)
    together = unmerge(merge(x))
    for i in range(3):
        merge, unmerge = matching(x[i : i + 1], (8, 8), (2, 2), 0.5)
        torch.testing.assert_close(unmerge(merge(x[i : i + 1]))[0], together[i])


def test_low_precision_merges_in_low_precision():
    x = torch.rand(2, 64, 8).bfloat16()
    merge, unmerge = matching(x, (8, 8), (2, 2), 0.5)
    assert unmerge(merge(x)).dtype is torch.bfloat16


@pytest.mark.parametrize("size", [(16, 16), (13, 22), (7, 5), (2, 2)])
def test_latents_of_any_size_go_through_all_levels(size):
    unet = tiny.sd().unet
    x, text = torch.zeros(2, 4, *size), torch.zeros(2, 7, 32)
    steps = merging.token_merging(*pipe_and_target(unet), max_downsample=2)
    proof = next(steps)
    with torch.no_grad():
        assert unet(x, 5, text).sample.shape == x.shape
    height, width = size
    assert f"{height * width} -> {height * width - int(height * width * 0.5)}" in proof.evidence()
    next(steps, None)
    assert "forward" not in vars(unet.mid_block.attentions[0].transformer_blocks[0])


def pipe_and_target(unet):
    pipe = tiny.sd()
    pipe.unet = unet
    return pipe, None


def test_only_the_chosen_levels_are_merged(unet_pipe):
    with safelight.optimize(unet_pipe, "token-merging", width=32, height=32) as opened:
        assert opened.status()[0].evidence == "256 -> 128 tokens in 3 of 3 layers"
    with safelight.optimize(unet_pipe, "token-merging,token-merging.max_downsample=2", width=32, height=32) as opened:
        assert opened.status()[0].evidence == "256 -> 128, 64 -> 32 tokens in 4 of 4 layers"


def test_cross_attention_and_mlp_merge_if_they_are_asked_to(unet_pipe):
    written = "token-merging=0.25,token-merging.merge_crossattn=true,token-merging.merge_mlp=true"
    with safelight.optimize(unet_pipe, written, width=32, height=32) as opened:
        assert opened.status()[0].evidence == "256 -> 192 tokens in 9 of 9 layers"


@pytest.mark.parametrize("option", ["random", "reuse"])
def test_two_runs_of_one_seed_are_one_picture(unet_pipe, option):
    with safelight.optimize(unet_pipe, f"token-merging,token-merging.{option}=true", width=32, height=32) as opened:
        one, two = (opened.generate("a cat", seed=1, steps=3).pictures[0].image for _ in range(2))
        plainly = opened.generate("a cat", seed=2, steps=3).pictures[0].image
    assert one.tobytes() == two.tobytes() != plainly.tobytes()


def test_reuse_matches_once_for_a_level_and_step(unet_pipe):
    counted = []

    def counting(*arguments):
        counted.append(1)
        return matching(*arguments)

    from safelight.optimizers.registry import swapped

    with (
        swapped(merging, matching=counting),
        safelight.optimize(unet_pipe, "token-merging,token-merging.reuse=true", width=32, height=32) as opened,
    ):
        counted.clear()
        opened.generate("a cat", seed=1, steps=3)
    assert len(counted) == 3


def test_the_level_of_each_block_is_where_it_stands():
    unet = tiny.sd().unet
    assert [factor for factor, _ in merging.blocks_by_level(unet)] == [1, 2, 1, 1]
    assert merging.levels_with_attention(unet.config) == [1, 2]


SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
}


def test_by_default_the_highest_level_with_attention_is_meant():
    assert merging.chosen_levels(SDXL, 0) == [2]
    assert merging.chosen_levels(SDXL, 1) == []
    assert merging.chosen_levels(SDXL, 4) == [2, 4]


def test_a_level_without_attention_is_refused_with_the_one_that_has_it():
    with pytest.raises(DoesNotApply, match="max_downsample=2"):
        safelight.load("firstlight", optimize="token-merging,token-merging.max_downsample=1")


def test_a_transformer_is_refused():
    with pytest.raises(DoesNotApply, match="FluxTransformer2DModel is no UNet"):
        safelight.optimize(tiny.flux(), "token-merging")


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("token-merging=0.8", "above 0, to 0.75"),
        ("token-merging=0", "above 0, to 0.75"),
        ("token-merging=0.7,token-merging.sx=1", "above 0, to 0.5"),
        ("token-merging,token-merging.sx=0", "give 1 to 8"),
        ("token-merging,token-merging.max_downsample=3", "1, 2, 4, 8"),
    ],
)
def test_values_out_of_range_are_refused(unet_pipe, written, says):
    with pytest.raises(UsageError, match=says):
        safelight.optimize(unet_pipe, written)


def test_a_compiled_block_merges_without_compiling_anew_for_each_step(unet_pipe):
    with safelight.optimize(unet_pipe, "token-merging", width=32, height=32):
        unet = unet_pipe.unet
        block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
        x, text = torch.rand(2, 4, 16, 16), torch.rand(2, 7, 32)
        with torch.no_grad():
            eager = unet(x, 5, text).sample
            torch._dynamo.reset()
            block.compile(backend="eager", fullgraph=True)
            with torch._dynamo.config.patch(error_on_recompile=True):
                for time in (5, 4, 3, 5):
                    compiled = unet(x, time, text).sample
        block._compiled_call_impl = None
        torch.testing.assert_close(compiled, eager)
