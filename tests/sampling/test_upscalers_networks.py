"""Networks of the ESRGAN family are told from their weights, and equal the paper's; what is unknown is refused."""

import esrgan
import pytest
import torch
from esrgan import RRDBNet, compact_state, noise, of_bsrgan, of_the_first, state
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from safelight.errors import DamagedModel, ModelNotFound, SpoiledPicture, UsageError
from safelight.sampling import networks, recognition, upscalers
from safelight.sampling.recognition import recognised

LAYOUTS = {
    "Real-ESRGAN": lambda weights: weights,
    "BSRGAN": of_bsrgan,
    "the first ESRGAN": lambda weights: of_the_first(weights, blocks=2, doublings=2),
    "of several cards": lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
}


def module(weights, **sizes):
    made = RRDBNet(**sizes)
    made.load_state_dict(weights)
    return made.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def weights():
    return state()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_names_of_every_age_give_the_same_network(layout, weights, tmp_path):
    save_file(layout(weights), tmp_path / "a.safetensors")

    network = recognised(recognition.read(tmp_path / "a.safetensors"), "a")

    assert network.kind == "RRDBNet of 2 blocks, 8 features, 4 growing, x4"
    with torch.no_grad():
        assert torch.allclose(network(noise(9, 7)), module(weights)(noise(9, 7)), atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(
    blocks=st.integers(1, 3),
    features=st.sampled_from([4, 8]),
    growth=st.integers(1, 5),
    doublings=st.integers(0, 3),
    old=st.booleans(),
)
def test_any_sizes_are_read_from_the_shapes(blocks, features, growth, doublings, old):
    sizes = {"blocks": blocks, "features": features, "growth": growth, "doublings": doublings}
    weights = state(**sizes)

    network = recognised(of_the_first(weights, blocks, doublings) if old else weights, "a")

    assert network.scale == 2**doublings
    with torch.no_grad():
        assert torch.allclose(network(noise(5, 6)), module(weights, **sizes)(noise(5, 6)), atol=1e-5)


@pytest.mark.parametrize(("fold", "scale"), [(2, 2), (4, 1)])
def test_pixels_folded_into_channels_make_networks_of_x2_and_x1(fold, scale):
    network = recognised(state(fold=fold), "a")
    pictures = noise(16, 20)

    assert (network.scale, network.align_px) == (scale, fold)
    with torch.no_grad():
        assert torch.allclose(network(pictures), module(state(fold=fold), fold=fold)(pictures), atol=1e-5)


@pytest.mark.parametrize("fold", [2, 4])
@pytest.mark.parametrize("sides", [(1, 1), (5, 7), (3, 16)], ids=str)
def test_sides_need_not_be_multiples_of_what_is_folded(fold, sides):
    network = recognised(state(fold=fold), "a")

    assert upscalers.upscale(network, noise(*sides)).shape[2:] == tuple(network.scale * side for side in sides)


@settings(max_examples=15, deadline=None)
@given(
    sides=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    tile_px=st.integers(5, 48),
    fold=st.sampled_from([1, 2]),
)
def test_tiles_that_see_as_far_as_the_network_reaches_give_the_whole(sides, tile_px, fold):
    network = recognised(state(blocks=1, fold=fold), "a")
    pictures = noise(*sides)
    assert network.margin_px == network.reach_px

    with torch.no_grad():
        whole = network(pictures).clamp(0, 1)

    assert (upscalers.upscale(network, pictures, tile_px=tile_px) - whole).abs().max() <= 1e-5


def test_a_network_that_reaches_further_than_its_margin_changes_less_than_half_a_level():
    network = recognised(state(blocks=8), "a")
    pictures = noise(24, 160)
    assert network.reach_px > network.margin_px == networks.MARGIN_PX

    whole = upscalers.upscale(network, pictures, tile_px=160)
    tiled = upscalers.upscale(network, pictures, tile_px=40)

    assert (tiled - whole).abs().max() * 255 < 0.5


def test_the_margin_can_be_told_and_matters():
    network = recognised(state(), "a")
    pictures = noise(40, 40)

    near = upscalers.upscale(network, pictures, tile_px=20, margin_px=0)

    assert (near - upscalers.upscale(network, pictures)).abs().max() > 1e-3


def test_the_last_convolutions_run_by_strips_and_change_nothing(monkeypatch, weights):
    network = recognised(weights, "a")
    with torch.no_grad():
        whole = network(noise(23, 11))
        monkeypatch.setattr(networks, "TAIL_PIXELS", 16 * 11 * 3)

        assert torch.allclose(network(noise(23, 11)), whole, atol=1e-5)


def test_a_batch_is_bit_equal_to_its_pictures_alone(weights):
    network = recognised(weights, "a")
    pictures = torch.cat([noise(12, 9, seed) for seed in range(3)])

    together = upscalers.upscale(network, pictures)

    assert torch.equal(together, torch.cat([upscalers.upscale(network, one) for one in pictures.split(1)]))


def test_bytes_come_back_as_bytes_of_the_same_picture(weights):
    network = recognised(weights, "a")
    pictures = noise(10, 9).mul(255).round().byte()

    larger = upscalers.upscale(network, pictures)

    assert larger.dtype == torch.uint8
    floats = upscalers.upscale(network, pictures.float() / 255)
    assert (larger.float() - floats * 255).abs().max() <= 0.51


def test_every_tile_is_reported(weights):
    told = []
    upscalers.upscale(
        recognised(weights, "a"), noise(20, 30), tile_px=10, report=lambda done, total: told.append((done, total))
    )
    assert told == [(i, 6) for i in range(7)]


def test_not_a_number_is_an_error_and_no_picture(weights):
    broken = weights | {"conv_hr.bias": torch.full((8,), torch.nan)}
    with pytest.raises(SpoiledPicture, match="not-a-number"):
        upscalers.upscale(recognised(broken, "a"), noise(4, 4))


@pytest.mark.parametrize(("layers", "features", "scale"), [(2, 5, 1), (4, 6, 2), (7, 3, 3), (3, 8, 4)])
def test_compact_networks_of_any_depth_features_and_scale(layers, features, scale):
    network = recognised(compact_state(layers=layers, features=features, scale=scale), "a")

    assert network.kind == f"SRVGGNetCompact of {layers} layers, {features} features, x{scale}"
    assert upscalers.upscale(network, noise(6, 5)).shape == (1, 3, 6 * scale, 5 * scale)


# -- pickles and what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["params_ema", "params", "state_dict", None])
def test_a_pickle_is_read_only_when_it_is_allowed(wrapper, weights, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({wrapper: weights, "iteration": 5} if wrapper else weights, path)

    with pytest.raises(UsageError, match="--allow-pickle"):
        recognition.read(path)
    assert recognised(recognition.read(path, allow_pickle=True), "a").kind.startswith("RRDBNet")


def test_a_pickle_that_would_run_code_is_refused_even_when_allowed(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"params": Harmful()}, tmp_path / "a.pth")
    with pytest.raises(DamagedModel, match="cannot be read as weights alone"):
        recognition.read(tmp_path / "a.pth", allow_pickle=True)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80", b"PK\x03\x04" + bytes(40), b"nothing at all", bytes(80)])
def test_a_damaged_file_is_one_line(content, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(DamagedModel) as error:
        recognition.read(tmp_path / "a.safetensors", allow_pickle=True)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ModelNotFound, match="no file of weights"):
        recognition.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("telltale", "network"),
    [
        ("layers.0.residual_group.blocks.0.norm1.weight", "SwinIR"),
        ("model.1.sub.0.RDB1.conv1x1.weight", r"ESRGAN\+"),
        ("block_1.c1_r.sk.weight", "SPAN"),
        ("something.else", r"an unknown network \(1 tensors: something.else\)"),
    ],
)
def test_another_network_is_refused_by_its_name(telltale, network):
    with pytest.raises(UsageError, match=f"{network}; known are RRDBNet"):
        recognised({telltale: torch.zeros(3)}, "a")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("conv_body.weight"), "conv_body.weight is missing"),
        (lambda w: w.pop("body.1.rdb2.conv3.bias"), "body.1.rdb2.conv3.bias is missing"),
        (lambda w: w.update({"conv_hr.bias": torch.zeros(5)}), "conv_hr.bias is (5,), expected (8,)"),
        (lambda w: w.update({"attention.weight": torch.zeros(2)}), "attention.weight is (2,), expected nothing"),
        (lambda w: w.pop("conv_first.weight"), "no convolution conv_first.weight"),
        (lambda w: w.update({"conv_first.weight": torch.zeros(8, 1, 3, 3)}), "takes 1 channels"),
    ],
)
def test_a_network_that_is_not_whole_names_what_does_not_fit(change, said, weights):
    weights = dict(weights)
    change(weights)
    with pytest.raises((DamagedModel, UsageError)) as error:
        recognised(weights, "a.safetensors")
    assert said in str(error.value)
    assert "a.safetensors" in str(error.value)


@pytest.mark.parametrize("missing", ["body.1.weight", "body.0.bias", "body.6.weight"])
def test_a_compact_network_that_is_not_whole_is_refused(missing):
    found = compact_state()
    del found[missing]
    with pytest.raises((DamagedModel, UsageError)):
        recognised(found, "a")


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(max_size=40), st.lists(st.integers(0, 3), max_size=4).map(torch.zeros), max_size=6))
def test_anything_else_is_refused_and_nothing_breaks(weights):
    with pytest.raises((UsageError, DamagedModel)):
        recognised(weights, "a")


def test_hostile_numbers_in_names_are_refused():
    huge = "9" * 5000
    names = ["model.1.sub.0.RDB1.conv1.0.weight", f"model.{huge}.weight", f"body.{huge}.rdb1.conv1.weight"]
    with pytest.raises((UsageError, DamagedModel)):
        recognised({name: torch.zeros(2, 3, 3, 3) for name in names}, "a")


def test_the_module_of_the_tests_is_the_one_whose_state_is_used():
    assert sorted(esrgan.state()) == sorted(RRDBNet().state_dict())
