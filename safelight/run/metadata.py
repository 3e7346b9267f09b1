"""Pictures that say how they were made: A1111's `parameters` text for people and other tools, and a JSON twin, exact.

Comes in: a picture and its Record. Goes out: a PNG, JPEG or WebP file, whole or not at all; and back again. Files to
read are taken for hostile. Not known here: what stands in the texts; see infotext.py and record.py.
"""

import errno
import io
import os
import secrets
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.errors import EnvironmentProblem, UsageError
from safelight.run.infotext import infotext
from safelight.run.record import Record

if TYPE_CHECKING:
    from PIL import Image

MAX_TEXT_BYTES = 2**20  # of either text: far over any prompt, and what Pillow takes for a bomb
MAX_JPEG_EXIF_BYTES = 65533  # a JPEG segment counts its length, two bytes of it, in 16 bits


def write(
    picture: "Image.Image", path: Path, record: Record, *, quality: int = 95, sync: Callable[[int], None] = os.fsync
) -> None:
    """Writes the picture and its record, the format from the suffix; `path` holds all of it or what it held before.

    quality: 0 to 100, of JPEG (all colours at full resolution) and WebP (lossy); PNG is lossless.
    Raises UsageError for a suffix, picture or prompt that the format cannot take, before anything is written;
    EnvironmentProblem where the folder or the disk cannot.
    """
    stored(path, _encoded(picture, path, record, quality), sync)


def write_preview(picture: "Image.Image", path: Path) -> None:
    """Writes a picture that nothing is said of, in one step as `write` does; quick rather than small, and not synced.

    Raises UsageError for a suffix that pictures are not written with, EnvironmentProblem where the disk cannot.
    """
    from PIL import Image

    check_suffix(path)
    file = io.BytesIO()
    picture.save(file, Image.registered_extensions()[path.suffix.lower()], compress_level=1)
    stored(path, file.getvalue(), lambda descriptor: None)


def check_suffix(path: Path) -> None:
    """Raises UsageError."""
    if path.suffix.lower() not in ENCODERS:
        raise UsageError(f"{shown(path)}: pictures are written as {', '.join(ENCODERS)}; end the name in one of them")


def stored(path: Path, data: bytes, sync: Callable[[int], None] = os.fsync) -> None:
    """Puts `data` at `path`, all of it or nothing. Raises EnvironmentProblem."""
    try:
        _store(path, data, sync)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {shown(path)}: {reason(error)}") from error


def _store(path: Path, data: bytes, sync: Callable[[int], None] = os.fsync) -> None:
    """Puts `data` at `path` in one step, under the user's umask; on failure there is no new file. Raises OSError."""
    # the name does not grow with the picture's, which may be as long as the file system allows
    part = path.with_name(f".safelight-{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            sync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _encoded(picture: "Image.Image", path: Path, record: Record, quality: int) -> bytes:
    """The file's bytes."""
    check_suffix(path)
    encode = ENCODERS[path.suffix.lower()]
    texts = (infotext(record), record.to_json())
    if max(len(text.encode()) for text in texts) > MAX_TEXT_BYTES:
        raise UsageError(f"{shown(path)}: the prompt is too long to be kept in a picture, 1 MiB is the limit")
    file = io.BytesIO()
    try:
        encode(picture, file, *texts, quality)
    except (OSError, ValueError) as error:
        size = f"{picture.width}x{picture.height}"
        raise UsageError(f"a {size} picture of mode {picture.mode} cannot be a {path.suffix} file: {error}") from error
    return file.getvalue()


def _png(picture: "Image.Image", file: io.BytesIO, text: str, twin: str, quality: int) -> None:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("parameters", text)  # tEXt, or iTXt where Latin-1 does not suffice
    chunks.add_text("safelight", twin)
    picture.save(file, "PNG", pnginfo=chunks)


def _jpeg(picture: "Image.Image", file: io.BytesIO, text: str, twin: str, quality: int) -> None:
    exif = exif_block(text, twin)
    if len(exif) > MAX_JPEG_EXIF_BYTES:
        raise UsageError(
            f"the prompt is too long for a JPEG file ({len(exif)} bytes of {MAX_JPEG_EXIF_BYTES}): use .png"
        )
    picture.save(file, "JPEG", quality=quality, subsampling="4:4:4", exif=exif)


def _webp(picture: "Image.Image", file: io.BytesIO, text: str, twin: str, quality: int) -> None:
    picture.save(file, "WEBP", quality=quality, exif=exif_block(text, twin))


ENCODERS = {".png": _png, ".jpg": _jpeg, ".jpeg": _jpeg, ".webp": _webp}

IMAGE_DESCRIPTION, EXIF_POINTER, USER_COMMENT = 0x010E, 0x8769, 0x9286
ASCII, LONG, UNDEFINED = 2, 4, 7
UNICODE = b"UNICODE\0"


def exif_block(text: str, twin: str) -> bytes:
    """EXIF with `text` as UserComment, where A1111 looks for it, and `twin` (ASCII) as ImageDescription.

    By hand: Pillow gives UserComment the type BYTE, at which A1111's reader (piexif) fails. Big-endian TIFF:
    header (8 bytes), IFD0 with two entries (30), Exif IFD with one (18), then the two values.
    """
    description = twin.encode("ascii") + b"\0"
    comment = UNICODE + text.encode("utf-16-be")
    padding = b"\0" * (len(description) % 2)  # TIFF wants values at even places
    exif_at, description_at = 8 + 30, 8 + 30 + 18
    comment_at = description_at + len(description) + len(padding)
    ifd0 = struct.pack(">H", 2) + _entry(IMAGE_DESCRIPTION, ASCII, len(description), description_at)
    ifd0 += _entry(EXIF_POINTER, LONG, 1, exif_at) + bytes(4)
    exif = struct.pack(">H", 1) + _entry(USER_COMMENT, UNDEFINED, len(comment), comment_at) + bytes(4)
    return b"Exif\0\0MM\0\x2a" + struct.pack(">I", 8) + ifd0 + exif + description + padding + comment


def _entry(tag: int, kind: int, count: int, value: int) -> bytes:
    return struct.pack(">HHII", tag, kind, count, value)


# all that Pillow raises on damaged files, found by feeding it such files; its UserWarning is an error under -W error
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    struct.error,
    zlib.error,
    UserWarning,
)


@contextmanager
def opened(path: Path, formats: list[str] | tuple[str, ...], unknown: str) -> "Iterator[Image.Image]":
    """A picture that may be hostile, to be decoded inside. formats: as Pillow names them; unknown: told of all others.

    Raises UsageError for what is not a whole picture or is larger than Pillow's MAX_IMAGE_PIXELS, also from inside.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=formats) as image:
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageError(f"{shown(path)} has more pixels than are safe to read ({Image.MAX_IMAGE_PIXELS})") from error
    except UnidentifiedImageError as error:
        raise UsageError(f"{shown(path)} {unknown}") from error
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno:
            raise UsageError(f"cannot read {shown(path)}: {reason(error)}") from error
        raise UsageError(f"{shown(path)} is damaged or not whole") from error


def read(path: Path) -> tuple[Record | None, str | None]:
    """What a PNG, JPEG or WebP file says of itself: (JSON twin, infotext), each None where it is not there.

    Raises UsageError for what is not a whole picture, is larger than Pillow's MAX_IMAGE_PIXELS, or says too much.
    """
    with opened(path, ("PNG", "JPEG", "WEBP"), "is not a PNG, JPEG or WebP picture") as image:
        image.load()
        twin, text = _texts(image)
    if max(len(twin or ""), len(text or "")) > MAX_TEXT_BYTES:
        raise UsageError(f"{shown(path)} carries more than 1 MiB of text: not read")
    return (None if twin is None else Record.from_json(twin)), text


def _texts(image: "Image.Image") -> tuple[str | None, str | None]:
    """(JSON twin, infotext) as they stand in the picture."""
    from PIL.PngImagePlugin import PngImageFile

    if isinstance(image, PngImageFile):
        return image.text.get("safelight"), image.text.get("parameters")
    exif = image.getexif()
    twin, comment = exif.get(IMAGE_DESCRIPTION), exif.get_ifd(EXIF_POINTER).get(USER_COMMENT)
    # cameras and editors write descriptions and comments too
    ours = isinstance(twin, str) and twin.startswith('{"safelight":')
    return twin if ours else None, _comment_text(comment)


def _comment_text(comment: object) -> str | None:
    """A UserComment as A1111 writes it; None for any other."""
    if not isinstance(comment, bytes) or not comment.startswith(UNICODE):
        return None
    return comment.removeprefix(UNICODE).decode("utf-16-be", "replace")


def check_folder(folder: Path) -> None:
    """Makes the folder if need be, and proves that files can be written there. Raises EnvironmentProblem."""
    probe = folder / f".safelight-{secrets.token_hex(8)}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _store(probe, bytes(4096))
        probe.unlink()
    except OSError as error:
        raise EnvironmentProblem(f"cannot write into {shown(folder)}: {reason(error)}") from error


REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than is allowed here",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "a file is where a folder should be",
    errno.EEXIST: "a file is where a folder should be",
    errno.EISDIR: "a folder is where a file should be",
    errno.ENAMETOOLONG: "the name is too long",
}


def reason(error: OSError) -> str:
    """Why the system would not, in words."""
    return REASONS.get(error.errno or 0) or error.strerror or type(error).__name__


def shown(path: Path) -> str:
    """The path as it is, or escaped where it would break the line or the terminal."""
    return str(path) if str(path).isprintable() else ascii(str(path))
