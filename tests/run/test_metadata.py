"""A picture says how it was made: A1111 can read it, we can read it exactly, and no file is ever half written."""

import errno
import io
import os
import resource
import stat
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from records import FULL, INPAINTED, PLAIN, TWO_PASSES, texts

from safelight.errors import EnvironmentProblem, UsageError
from safelight.run import metadata
from safelight.run.infotext import infotext
from safelight.run.record import Record

SUFFIXES = [".png", ".jpg", ".jpeg", ".webp", ".PNG"]
LOSSY = [".jpg", ".webp"]


def picture() -> Image.Image:
    return Image.linear_gradient("L").resize((48, 32)).convert("RGB")


def written(folder: Path, suffix: str = ".png", record: Record = FULL) -> Path:
    path = folder / f"picture{suffix}"
    metadata.write(picture(), path, record)
    return path


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("record", [FULL, TWO_PASSES, INPAINTED], ids=["full", "two passes", "inpainted"])
def test_every_format_gives_the_record_back(tmp_path, suffix, record):
    path = written(tmp_path, suffix, record)

    assert metadata.read(path) == (record, infotext(record))
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=texts, suffix=st.sampled_from([".png", ".jpg", ".webp"]))
@example(prompt="a\0b\r\n", suffix=".png")
def test_every_prompt_comes_back_from_every_format(tmp_path, prompt, suffix):
    record = replace(FULL, prompt=prompt)

    assert metadata.read(written(tmp_path, suffix, record)) == (record, infotext(record))


def test_png_keeps_every_pixel(tmp_path):
    assert Image.open(written(tmp_path)).tobytes() == picture().tobytes()


def test_jpeg_keeps_colours_at_full_resolution(tmp_path):
    with Image.open(written(tmp_path, ".jpg")) as image:
        assert [sampling for _, *sampling, _ in image.layer] == [[1, 1]] * 3


@pytest.mark.parametrize("suffix", LOSSY)
def test_the_user_comment_is_of_type_undefined_as_a1111s_reader_wants(tmp_path, suffix):
    data = written(tmp_path, suffix).read_bytes()
    comment = b"UNICODE\0" + infotext(FULL).encode("utf-16-be")
    entry = data.index(struct.pack(">HHI", 0x9286, 7, len(comment)))
    tiff = data.index(b"MM\0\x2a")

    (at,) = struct.unpack(">I", data[entry + 8 : entry + 12])

    assert data[tiff + at : tiff + at + len(comment)] == comment


@pytest.mark.parametrize("suffix", LOSSY)
def test_pillow_reads_the_user_comment(tmp_path, suffix):
    with Image.open(written(tmp_path, suffix)) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]

    assert comment == b"UNICODE\0" + infotext(FULL).encode("utf-16-be")


def test_pillow_reads_the_png_chunk_that_a1111_reads(tmp_path):
    with Image.open(written(tmp_path)) as image:
        assert image.info["parameters"] == infotext(FULL)


@pytest.mark.parametrize("name", ["picture", "picture.gif", "picture.tiff", ".png"])
def test_another_suffix_is_refused_with_those_that_are_there(tmp_path, name):
    with pytest.raises(UsageError, match=r"\.png, \.jpg, \.jpeg, \.webp"):
        metadata.write(picture(), tmp_path / name, PLAIN)


@pytest.mark.parametrize(
    ("suffix", "length"), [(".jpg", 30_000), (".png", 2**20 + 1), (".webp", 2**20 + 1)], ids=["jpg", "png", "webp"]
)
def test_a_prompt_too_long_for_the_format_fails_before_anything_is_written(tmp_path, suffix, length):
    with pytest.raises(UsageError, match="prompt is too long"):
        written(tmp_path, suffix, replace(PLAIN, prompt="x" * length))

    assert list(tmp_path.iterdir()) == []


def test_the_longest_exif_block_that_is_allowed_can_be_written(tmp_path):
    spare = metadata.MAX_JPEG_EXIF_BYTES - len(metadata.exif_block(infotext(PLAIN), PLAIN.to_json()))
    record = replace(PLAIN, prompt=PLAIN.prompt + "x" * (spare // 3 - 1))

    assert metadata.read(written(tmp_path, ".jpg", record))[0] == record


def test_a_picture_that_the_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"a 48x32 picture of mode RGBA cannot be a \.jpg file"):
        metadata.write(picture().convert("RGBA"), tmp_path / "picture.jpg", PLAIN)

    assert list(tmp_path.iterdir()) == []


def test_the_mode_of_the_file_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = written(tmp_path)
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_name_as_long_as_allowed_can_be_written(tmp_path):
    path = tmp_path / f"{'x' * 251}.png"

    metadata.write(picture(), path, PLAIN)

    assert metadata.read(path)[0] == PLAIN


def full_disk(_: int) -> None:
    """Where a file system notices late: at fsync."""
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path):
    path = written(tmp_path)

    with pytest.raises(EnvironmentProblem, match=r"^cannot write .*picture\.png: the disk is full$"):
        metadata.write(picture(), path, PLAIN, sync=full_disk)

    assert metadata.read(path)[0] == FULL
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_really_stops_half_way_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(EnvironmentProblem, match="larger than is allowed here"):
            written(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(tmp_path):
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        metadata.write(picture(), tmp_path / "picture.png", PLAIN, sync=interrupted)

    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(EnvironmentProblem, match="a file is where a folder should be"):
        metadata.write(picture(), tmp_path / "file" / "picture.png", PLAIN)


def test_a_folder_where_the_picture_should_be_is_named(tmp_path):
    (tmp_path / "picture.png").mkdir()

    with pytest.raises(EnvironmentProblem, match="a folder is where a file should be"):
        written(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_a_missing_folder_and_a_name_too_long_are_problems_in_one_line(tmp_path):
    for path in (tmp_path / "missing" / "a.png", tmp_path / f"{'x' * 300}.png", tmp_path / "mis\nsing" / "a.png"):
        with pytest.raises(EnvironmentProblem) as caught:
            metadata.write(picture(), path, PLAIN)
        assert str(caught.value).isprintable()

    assert list(tmp_path.iterdir()) == []


# --- reading what others wrote ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif"])
def test_a_picture_that_says_nothing_is_no_error(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    picture().save(path)

    if suffix == ".gif":
        with pytest.raises(UsageError, match="not a PNG, JPEG or WebP picture"):
            metadata.read(path)
    else:
        assert metadata.read(path) == (None, None)


def test_a1111s_png_gives_its_text(tmp_path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler a, Seed: 5")
    picture().save(tmp_path / "a.png", pnginfo=chunks)

    assert metadata.read(tmp_path / "a.png") == (None, "a cat\nSteps: 20, Sampler: Euler a, Seed: 5")


def test_a_cameras_description_is_not_taken_for_a_record(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "OLYMPUS DIGITAL CAMERA"
    picture().save(tmp_path / "a.jpg", exif=exif)

    assert metadata.read(tmp_path / "a.jpg") == (None, None)


def test_a_foreign_record_is_checked(tmp_path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("safelight", '{"safelight": 1, "prompt": 5}')
    picture().save(tmp_path / "a.png", pnginfo=chunks)

    with pytest.raises(UsageError, match="the record"):
        metadata.read(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"])
def test_what_is_not_a_picture_is_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)

    with pytest.raises(UsageError, match=r"a\.png is not a PNG, JPEG or WebP picture|a\.png is damaged"):
        metadata.read(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_picture_that_lost_pixels_is_refused(tmp_path, suffix, share):
    path = written(tmp_path, suffix, PLAIN)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    with pytest.raises(UsageError, match=r"damaged or not whole|not a PNG"):
        metadata.read(path)


def test_a_missing_file_and_a_folder_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*missing\.png: no such file or folder"):
        metadata.read(tmp_path / "missing.png")
    with pytest.raises(UsageError, match="a folder is where a file should be"):
        metadata.read(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 20_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, side):
    head = struct.pack(">4sIIBBBBB", b"IHDR", side, side, 8, 2, 0, 0, 0)
    file = io.BytesIO()
    picture().save(file, "PNG")
    data = bytearray(file.getvalue())
    data[12:29] = head
    data[29:33] = struct.pack(">I", PngImagePlugin._crc32(head))
    (tmp_path / "a.png").write_bytes(data)

    with pytest.raises(UsageError, match="more pixels than are safe"):
        metadata.read(tmp_path / "a.png")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_text_bomb_is_refused(tmp_path, compressed):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "x" * 2**21, zip=compressed)
    picture().save(tmp_path / "a.png", pnginfo=chunks)

    with pytest.raises(UsageError, match=r"more than 1 MiB of text|damaged"):
        metadata.read(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from([".png", ".jpg", ".webp"]))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path, data, suffix):
    path = written(tmp_path, suffix)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(len(content), 2500) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)

    try:
        record, text = metadata.read(path)
    except UsageError as error:
        assert str(error).isprintable()
    else:
        assert record is None or isinstance(record, Record)
        assert text is None or isinstance(text, str)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_made_and_left_empty(tmp_path):
    metadata.check_folder(tmp_path / "a" / "b")

    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_is_there_keeps_its_files(tmp_path):
    path = written(tmp_path)

    metadata.check_folder(tmp_path)

    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("below", [".", "deeper"])
def test_a_file_in_the_way_of_a_folder_is_named(tmp_path, below):
    (tmp_path / "file").touch()

    with pytest.raises(EnvironmentProblem, match=r"^cannot write into .*file.*: a file is where a folder should be$"):
        metadata.check_folder(tmp_path / "file" / below)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system where nobody may write")
def test_a_folder_where_nothing_can_be_written_is_named():
    with pytest.raises(EnvironmentProblem, match="cannot write into /proc/self"):
        metadata.check_folder(Path("/proc/self"))
