"""A picture to begin from and a mask become what A1111 makes of them; what is not masked comes back bit for bit."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from safelight.errors import UsageError
from safelight.request import Request
from safelight.run import masking
from safelight.run.canvas import canvas, own_size
from safelight.run.masking import Box

ORIENTATION = 0x0112
sides = st.integers(1, 90)
drawn_sides = st.sampled_from([16, 24, 64, 128])


def photo(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def gradient(width, height):
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([255 * x // width, 255 * y // height, 0 * x + 90], 2).astype(np.uint8))


def masked(width, height, *box, value=255):
    mask = Image.new("L", (width, height))
    mask.paste(value, box)
    return mask


@pytest.fixture
def asked(tmp_path):
    """A request for these pictures, written to files."""

    def ask(picture, mask=None, **fields):
        picture.save(tmp_path / "init.png")
        if mask is not None:
            mask.save(tmp_path / "mask.png")
            fields["mask"] = str(tmp_path / "mask.png")
        return Request("a cat", init=str(tmp_path / "init.png"), **fields)

    return ask


def same(one, other):
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


# -- without a mask ----------------------------------------------------------------------------------------------------


def test_a_picture_of_the_size_that_is_drawn_is_encoded_as_it_is(asked):
    picture = photo(64, 48)
    made = canvas(asked(picture), 64, 48)
    assert same(made.image, picture)
    assert not made.has_mask
    assert made.latent_mask(6, 8) is None


def test_a_picture_of_another_size_is_stretched_by_lanczos(asked):
    picture = gradient(100, 40)
    made = canvas(asked(picture), 64, 64)
    assert same(made.image, picture.resize((64, 64), Image.Resampling.LANCZOS))


def test_what_was_drawn_without_a_mask_is_the_answer_also_where_it_was_upscaled(asked):
    drawn = photo(256, 256)
    assert canvas(asked(photo(64, 64)), 64, 64).finished(drawn) is drawn


def test_transparent_parts_are_laid_over_white_and_make_no_mask(asked):
    made = canvas(asked(Image.new("RGBA", (16, 16), (0, 0, 0, 0))), 16, 16)
    assert made.image.getcolors() == [(256, (255, 255, 255))]
    assert not made.has_mask


def test_a_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    gradient(64, 32).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert own_size(tmp_path / "a.jpg", 8) == (32, 64)
    made = canvas(Request("a cat", init=str(tmp_path / "a.jpg")), 32, 64)
    assert made.image.getpixel((30, 2))[0] < 20, "what was at the left is above"


@pytest.mark.parametrize("field", ["init", "mask"])
def test_what_is_no_whole_picture_is_refused(tmp_path, field):
    photo(16, 16).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:300])
    files = {"init": str(tmp_path / "good.png"), "mask": str(tmp_path / "good.png"), field: str(tmp_path / "bad.png")}
    with pytest.raises(UsageError, match=r"bad\.png is damaged or not whole"):
        canvas(Request("a cat", **files), 16, 16)


def test_a_home_that_nobody_has_is_refused():
    with pytest.raises(UsageError, match="there is no such user"):
        canvas(Request("a cat", init="~nobody-of-this-name/a.png"), 16, 16)


@pytest.mark.parametrize(
    ("size", "multiple", "own"),
    [((100, 75), 8, (96, 72)), ((100, 75), 16, (96, 64)), ((8, 8), 8, (8, 8)), ((32768, 16), 8, (16384, 8))],
)
def test_the_pictures_own_size_is_rounded_down(tmp_path, size, multiple, own):
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert own_size(tmp_path / "a.png", multiple) == own


@pytest.mark.parametrize("size", [(7, 100), (100, 7), (40000, 16)])
def test_a_picture_too_small_to_draw_is_refused(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="8 pixels a side are the least"):
        own_size(tmp_path / "a.png", 8)


# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "1"])
def test_black_or_transparent_masks_are_refused(asked, mode):
    with pytest.raises(UsageError, match="is all black: nothing would be drawn"):
        canvas(asked(photo(16, 16), Image.new(mode, (16, 16), 0)), 16, 16)


@pytest.mark.parametrize("area", ["whole", "masked"])
@pytest.mark.parametrize(
    ("mask", "blur"), [(masked(64, 64, 30, 30, 32, 32), 8), (masked(64, 64, 0, 0, 64, 64, value=90), 0)]
)
def test_a_mask_that_is_too_faint_or_blurred_away_is_refused(asked, mask, blur, area):
    with pytest.raises(UsageError, match=f"with mask-blur {blur}: under half white nothing is drawn"):
        canvas(asked(photo(64, 64), mask, mask_blur=blur, mask_area=area), 64, 64)


def test_a_mask_smaller_than_any_latent_cell_is_refused(asked):
    made = canvas(asked(photo(64, 64), masked(64, 64, 1, 1, 3, 3), mask_blur=0), 64, 64)
    with pytest.raises(UsageError, match="covers half of no latent cell"):
        made.latent_mask(8, 8)


def test_a_mask_with_transparent_parts_is_drawn_where_it_is_opaque(asked):
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    mask.paste((0, 0, 0, 255), (0, 0, 32, 64))
    mask.paste((0, 0, 0, 128), (32, 0, 64, 64))
    made = canvas(asked(photo(64, 64), mask, mask_blur=0), 64, 64)
    assert same(made.mask, masked(64, 64, 0, 0, 32, 64))


def test_latent_cells_are_drawn_where_the_mask_is_half_white(asked):
    made = canvas(asked(photo(64, 48), masked(64, 48, 16, 8, 40, 32), mask_blur=4), 64, 48)
    cells = made.latent_mask(6, 8)
    assert cells.shape == (1, 1, 6, 8) and cells.dtype == torch.float32
    expected = torch.zeros(6, 8)
    expected[1:4, 2:5] = 1
    assert torch.equal(cells[0, 0], expected)


def test_the_soft_edge_lies_inside_what_is_drawn_with_the_whole_picture(asked):
    made = canvas(asked(photo(64, 64), masked(64, 64, 0, 0, 32, 64), mask_blur=4), 64, 64)
    mask, shares = (np.asarray(one)[0].astype(int) for one in (made.mask, made.shares))
    assert np.array_equal(shares, np.minimum(2 * mask, 255))
    assert shares[31] == 255 and 0 < shares[36] < 255 and shares[45] == 0


# the step from 0 to 255 between columns 24 and 25, as cv2.GaussianBlur of OpenCV 4.9 and 5.0 gives it
STEPS = {
    1: (21, [1, 15, 77, 178, 240, 254]),
    4: (14, [1, 3, 7, 12, 21, 32, 48, 67, 90, 115, 140, 165, 188, 207, 223, 234, 243, 248, 252, 254]),
}
# the first of the SHA-256 of a pattern blurred by the same
PATTERN = {1: "fde443b999567a18", 4: "c56b3e8e69484ec1", 20: "25c42a70b6af1307", 64: "6f70389db70ac17d"}
PATTERN[256] = "44100465da462a49"


@pytest.mark.parametrize("sigma", STEPS)
def test_an_edge_is_blurred_as_opencv_blurs_it(sigma):
    row = np.asarray(masking.blurred(masked(48, 1, 24, 0, 48, 1), sigma))[0].tolist()
    first, rise = STEPS[sigma]
    assert row == [0] * first + rise + [255] * (48 - first - len(rise))


@pytest.mark.parametrize("sigma", PATTERN)
def test_a_pattern_is_blurred_bit_for_bit_as_opencv_blurs_it(sigma):
    y, x = np.mgrid[:60, :90]
    pattern = Image.fromarray(((x * x * 7 + y * y * 13 + x * y) % 256).astype(np.uint8))
    assert hashlib.sha256(masking.blurred(pattern, sigma).tobytes()).hexdigest()[:16] == PATTERN[sigma]


@settings(deadline=None, max_examples=50)
@given(sides, sides, st.integers(0, 40), st.integers(0, 255))
def test_blurring_leaves_an_even_mask_as_it_is(width, height, sigma, value):
    mask = Image.new("L", (width, height), value)
    assert same(masking.blurred(mask, sigma), mask)


# -- what is under the mask --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["fill", "noise", "nothing"])
def test_the_colours_around_fill_what_is_masked(asked, content):
    picture = Image.new("RGB", (64, 64), (200, 40, 90))
    picture.paste((0, 255, 0), (24, 24, 40, 40))
    made = canvas(asked(picture, masked(64, 64, 20, 20, 44, 44), mask_blur=0, mask_content=content), 64, 64)
    away = np.abs(np.asarray(made.image).astype(int) - (200, 40, 90))
    assert away.max() <= 8, "no green and no black is left"
    assert same(made.original, picture), "the result is laid over the picture as it was"


def test_the_original_content_is_left_under_the_mask(asked):
    picture = photo(64, 64)
    made = canvas(asked(picture, masked(64, 64, 20, 20, 44, 44), mask_content="original"), 64, 64)
    assert same(made.image, picture)


# -- laying the result over --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(data=st.data(), area=st.sampled_from(["whole", "masked"]), blur=st.integers(0, 6), padding=st.integers(0, 40))
def test_the_picture_comes_back_bit_for_bit_where_the_mask_is_black(tmp_path_factory, data, area, blur, padding):
    folder = tmp_path_factory.mktemp("canvas")
    size = data.draw(sides, "width"), data.draw(sides, "height")
    drawn_size = data.draw(drawn_sides, "drawn width"), data.draw(drawn_sides, "drawn height")
    left, top = (data.draw(st.integers(0, side - 1)) for side in size)
    picture, mask = photo(*size), masked(*size, left, top, *size)
    picture.save(folder / "init.png")
    mask.save(folder / "mask.png")
    options = {"mask_area": area, "mask_blur": blur, "mask_padding": padding}
    request = Request("a cat", init=str(folder / "init.png"), mask=str(folder / "mask.png"), **options)
    try:
        made = canvas(request, *drawn_size)
    except UsageError as error:
        assert "half white" in str(error)
        assume(False)
    result = made.finished(photo(*drawn_size, seed=1))
    assert made.image.size == made.mask.size == drawn_size
    assert result.size == made.shares.size == (drawn_size if area == "whole" else size)
    before = picture.resize(result.size, Image.Resampling.LANCZOS)
    changed = np.asarray(ImageChops.difference(result, before)).max(axis=2)
    assert not changed[np.asarray(made.shares) == 0].any()


def test_where_the_mask_is_white_all_is_drawn_anew(asked):
    made = canvas(asked(photo(64, 64), masked(64, 64, 0, 0, 32, 64), mask_blur=4), 64, 64)
    drawn = photo(64, 64, seed=1)
    assert same(made.finished(drawn).crop((0, 0, 32, 64)), drawn.crop((0, 0, 32, 64)))


def test_soft_edges_differ_from_premultiplied_overlays_by_rounding_alone(asked):
    """A1111 lays a premultiplied picture of 8 bit over the result; a plain mean is what that approximates."""
    picture, drawn = photo(64, 64), photo(64, 64, seed=1)
    made = canvas(asked(picture, masked(64, 64, 20, 20, 50, 50), mask_blur=6), 64, 64)
    above = Image.new("RGBa", picture.size)
    above.paste(picture.convert("RGBA").convert("RGBa"), mask=ImageChops.invert(made.shares))
    theirs = Image.alpha_composite(drawn.convert("RGBA"), above.convert("RGBA")).convert("RGB")
    assert np.asarray(ImageChops.difference(made.finished(drawn), theirs)).max() <= 2


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (500, 60)], ids=["wide", "high", "very wide"])
def test_the_masked_part_goes_back_where_it_came_from(asked, size):
    picture = gradient(*size)
    request = asked(picture, masked(*size, 50, 20, 170, 45), mask_area="masked", mask_padding=10)
    made = canvas(request, 256, 256)
    result = made.finished(made.image)
    assert result.size == size
    assert np.asarray(ImageChops.difference(result, picture)).max() <= 3, "no more than resizing twice changes"


def test_a_part_without_the_shape_that_is_drawn_goes_on_at_the_edge_without_gaps(asked):
    made = canvas(
        asked(Image.new("RGB", (200, 21), "white"), Image.new("L", (200, 21), 255), mask_area="masked"), 64, 64
    )
    assert made.part == Box(0, 0, 200, 21)
    assert made.image.getcolors() == [(64 * 64, (255, 255, 255))]
    assert made.latent_mask(8, 8).all()


@pytest.mark.parametrize("area", ["whole", "masked"])
def test_a_mask_of_another_size_is_stretched_over_the_picture(asked, area):
    picture = photo(128, 96)
    made = canvas(asked(picture, masked(64, 48, 32, 24, 64, 48), mask_blur=0, mask_area=area, mask_padding=0), 128, 96)
    shares = np.asarray(made.shares)
    assert shares.shape == (96, 128)
    assert shares[50:, 66:].min() == 255 and shares[:44, :60].max() == 0
    if area == "masked":
        assert made.part.left in range(58, 65) and (made.part.right, made.part.bottom) == (128, 96)


# -- the masked part ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "padding", "size", "box"),
    [
        (masked(512, 512, 100, 200, 228, 232), 0, (512, 512), Box(100, 152, 228, 280)),
        (masked(512, 512, 100, 200, 228, 232), 32, (512, 512), Box(68, 120, 260, 312)),
        (masked(512, 512, 0, 0, 128, 32), 0, (512, 512), Box(0, 0, 128, 128)),
        (masked(512, 512, 384, 480, 512, 512), 0, (512, 512), Box(384, 384, 512, 512)),
        (masked(512, 512, 200, 200, 300, 300), 0, (512, 768), Box(200, 175, 300, 325)),
        (masked(512, 100, 0, 0, 300, 10), 0, (512, 512), Box(0, 0, 300, 100)),
        (masked(512, 512, 7, 9, 40, 12), 3, (512, 512), Box(4, 0, 43, 39)),
    ],
)
def test_the_masked_part_is_the_one_that_a1111_crops(mask, padding, size, box):
    assert masking.crop_region(mask, padding, *size) == box


@given(st.data(), sides, sides, st.integers(0, 30), st.integers(1, 64), st.integers(1, 64))
def test_the_part_holds_the_mask_lies_inside_and_has_the_shape_as_near_as_there_is_room(
    data, width, height, padding, drawn_width, drawn_height
):
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    part = masking.crop_region(masked(width, height, left, top, right, bottom), padding, drawn_width, drawn_height)
    assert 0 <= part.left <= max(left - padding, 0) and min(right + padding, width) <= part.right <= width
    assert 0 <= part.top <= max(top - padding, 0) and min(bottom + padding, height) <= part.bottom <= height
    shape = drawn_width / drawn_height
    too_wide = part.width > (part.height + 1) * shape
    too_high = part.height > (part.width + 1) / shape
    assert not too_wide or part.height == height, "it would grow if there were room"
    assert not too_high or part.width == width


@given(sides, sides, drawn_sides, drawn_sides)
def test_an_enlarged_part_touches_two_edges_and_is_centred(width, height, drawn_width, drawn_height):
    inner = masking.placed(Box(0, 0, width, height), drawn_width, drawn_height)
    assert min(inner.left, inner.top) >= 0 and inner.right <= drawn_width and inner.bottom <= drawn_height
    assert inner.width == drawn_width or inner.height == drawn_height
    assert abs(inner.left - (drawn_width - inner.right)) <= 1 and abs(inner.top - (drawn_height - inner.bottom)) <= 1
