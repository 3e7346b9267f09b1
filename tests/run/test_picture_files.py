"""Pictures come in upright and in RGB, go out row by row, and are under their name whole or not at all."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from safelight.errors import EnvironmentProblem, SpoiledPicture, UsageError
from safelight.probe import packages
from safelight.run import picture_files
from safelight.run.picture_files import PngRows, TiffRows

sides = st.integers(1, 70)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def gradient(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, (x + y) % 256], 2).astype(np.uint8)


def write(kind, path, pixels, cuts=()):
    """In strips that end at `cuts`."""
    with kind(path, pixels.shape[1], pixels.shape[0]) as file:
        for strip in np.split(pixels, sorted(cuts)):
            file.write(strip)
    return path


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.lists(st.integers(0, 70), max_size=5), st.sampled_from([noise, gradient]))
def test_a_png_written_in_any_strips_reads_back_equal(tmp_path_factory, height, width, cuts, pattern):
    pixels = pattern(height, width)
    cuts = [min(cut, height) for cut in cuts]
    path = write(PngRows, tmp_path_factory.mktemp("png") / "a.png", pixels, cuts)
    with Image.open(path) as image:
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), pixels)


def test_filtering_rows_makes_the_file_smaller(tmp_path):
    pixels = gradient(200, 300)
    written = write(PngRows, tmp_path / "a.png", pixels)
    assert written.stat().st_size < pixels.nbytes / 20


@pytest.mark.parametrize("rows", [0, 5], ids=["before the first row", "half way"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_interrupted_writing_leaves_no_file(tmp_path, error, rows):
    with pytest.raises(error), PngRows(tmp_path / "a.png", 8, 10) as file:
        file.write(noise(rows, 8))
        raise error
    assert list(tmp_path.iterdir()) == []


def test_interrupted_writing_keeps_what_was_there_before(tmp_path):
    path = write(PngRows, tmp_path / "a.png", gradient(4, 4))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), PngRows(path, 8, 10):
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_that_lacks_rows_is_no_file(tmp_path):
    with pytest.raises(AssertionError, match="5 of 10 rows"), PngRows(tmp_path / "a.png", 8, 10) as file:
        file.write(noise(5, 8))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(EnvironmentProblem, match="cannot write"), PngRows(tmp_path / "new" / "a.png", 8, 8):
        pass


# -- TIFF --------------------------------------------------------------------------------------------------------------


def test_a_tiff_wants_tifffile_and_says_so():
    if packages.has("tifffile"):
        assert picture_files.writer_of(Path("a.tif")) is TiffRows
        return
    with pytest.raises(EnvironmentProblem, match=r"\.tif needs tifffile.*pip install 'safelight\[tiff\]'"):
        picture_files.writer_of(Path("a.tif"))


@pytest.mark.parametrize("size", [(3, 5), (256, 40), (600, 300), (257, 1)], ids=str)
@pytest.mark.parametrize("strip", [1000, 100, 7])
@pytest.mark.parametrize("tiled", [False, True], ids=["strips", "tiles"])
def test_a_tiff_written_in_any_strips_reads_back_equal(tmp_path, size, strip, tiled):
    tifffile = pytest.importorskip("tifffile")
    pixels = noise(*size)
    kind = Tiled if tiled else TiffRows
    path = write(kind, tmp_path / "a.tif", pixels, range(strip, size[0], strip))
    assert np.array_equal(picture_files.read(path), pixels)
    assert np.array_equal(tifffile.imread(path), pixels)
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].is_tiled == tiled


class Tiled(TiffRows):
    """In tiles from the first pixel on: a picture that is large enough to have them takes a second."""

    tiled_from = 0


def test_a_suffix_that_is_not_written_is_refused():
    with pytest.raises(UsageError, match=r"\.png, \.tif"):
        picture_files.writer_of(Path("a.jpg"))


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tif"])
def test_pictures_read_as_they_are(tmp_path, suffix):
    pixels = noise(7, 9)
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
    assert np.array_equal(picture_files.read(tmp_path / f"a{suffix}"), pixels)


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    Image.fromarray(gradient(20, 30)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(picture_files.read(tmp_path / "a.png"), np.rot90(gradient(20, 30), -1))


def test_what_is_transparent_is_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert picture_files.read(tmp_path / "a.png").min() == 255


def test_grey_of_16_bits_keeps_its_high_byte(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8123, np.uint16)).save(tmp_path / "a.png")
    assert np.unique(picture_files.read(tmp_path / "a.png")).tolist() == [0x81]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"nothing of the kind", "no picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture that can be read"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "damaged|no picture"),
        (None, "cannot read"),
    ],
    ids=["text", "a program", "half a header", "not there"],
)
def test_what_is_no_picture_is_one_line(tmp_path, data, says):
    if data is not None:
        (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UsageError, match=says):
        picture_files.read(tmp_path / "a.png")


def test_a_picture_of_more_pixels_than_is_safe_is_refused_before_it_is_read(tmp_path):
    path = write(PngRows, tmp_path / "a.png", noise(1, 1))
    data = bytearray(path.read_bytes())
    data[16:24] = (40000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(UsageError, match="more pixels than are safe"):
        picture_files.read(path)
    assert Image.MAX_IMAGE_PIXELS < picture_files.LARGEST_PIXELS, "Pillow's own limit is put back"


# -- tensors -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.sampled_from([1, 2, 8, 16, 32]))
def test_a_tensor_is_padded_to_the_multiple_and_is_the_picture_where_it_was(height, width, multiple):
    pixels = noise(height, width)
    tensor = picture_files.as_tensor(pixels, torch.float32, multiple)
    assert tensor.shape == (1, 3, height + -height % multiple, width + -width % multiple)
    assert -1 <= tensor.min() <= tensor.max() <= 1
    assert np.array_equal(picture_files.as_pixels(tensor[0, :, :height, :width]), pixels)


def test_the_edge_is_reflected_and_a_thin_picture_repeated():
    pixels = np.array([[[0] * 3, [100] * 3, [200] * 3]], np.uint8)
    tensor = picture_files.as_tensor(pixels, torch.float32, 4)
    assert picture_files.as_pixels(tensor[0])[:, :, 0].tolist() == [[0, 100, 200, 100]] * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_tensor_is_rounded_once(dtype):
    levels = torch.arange(256, dtype=torch.float64)
    pixels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, 2)
    exact = (levels / 127.5 - 1).float().to(dtype)
    assert torch.equal(picture_files.as_tensor(pixels, dtype)[0, 0, :, 0], exact)


def test_what_is_outside_is_cut_off_and_not_a_number_is_refused():
    assert picture_files.as_pixels(torch.tensor([-3.0, 3.0]).expand(3, 1, 2)).tolist() == [[[0] * 3, [255] * 3]]
    with pytest.raises(SpoiledPicture, match="not-a-number"):
        picture_files.as_pixels(torch.full((3, 1, 1), torch.nan))
