"""Pictures on disk for the VAE: read whole in 8 bit; written row by row, so that they need not fit in memory.

Comes in: a path. Goes out: pixels, and files that are whole or not there at all. Files to read are taken for hostile.
Not known here: models, metadata, the command line.

Pixels are uint8 (height, width, 3); tensors are (1, 3, height, width) in -1..1, as a VAE has them. A picture is kept as
pixels and becomes a tensor where it is needed: in float32 it takes four times the bytes.
"""

import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from safelight.errors import EnvironmentProblem, SpoiledPicture, UsageError
from safelight.optimizers.registry import swapped
from safelight.probe import packages
from safelight.run.metadata import opened, reason, shown

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image
    from torch import Tensor, dtype

# what is read; not EPS, for which Pillow starts another program
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
FORMATS |= {".bmp": "BMP", ".ppm": "PPM"}
LARGEST_PIXELS = 2**29  # 1.5 GiB of pixels: twice 16k x 16k
BAND_ROWS = 64  # converted at a time: the float32 rows of a picture 16k wide are then 12 MiB


def bands(rows: int, height: int = BAND_ROWS) -> Iterator[slice]:
    """Slices of `height` rows, the last one of what is left."""
    return (slice(start, min(start + height, rows)) for start in range(0, rows, height))


# -- reading -----------------------------------------------------------------------------------------------------------


def read(path: Path) -> "ndarray":
    """The picture upright, as its EXIF orientation has it, in RGB; what is transparent is laid over white.

    A colour profile is not applied. Raises UsageError for what is no whole picture, or has over LARGEST_PIXELS.
    """
    import numpy as np
    from PIL import Image, ImageOps

    unknown = f"is no picture that can be read: {', '.join(FORMATS)}"
    with swapped(Image, MAX_IMAGE_PIXELS=LARGEST_PIXELS), opened(path, [*FORMATS.values()], unknown) as image:
        return np.asarray(_rgb(ImageOps.exif_transpose(image)))


def _rgb(image: "Image") -> "Image":
    """16 bit greys keep their high byte: Pillow's own conversion cuts them off at 255."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):
        high = np.asarray(image).astype(np.int32).clip(0, 65535) >> 8
        image = Image.fromarray(high.astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def as_tensor(pixels: "ndarray", dtype: "dtype", multiple: int = 1) -> "Tensor":
    """(1, 3, height, width) in -1..1, at the right and below padded to multiples of so many pixels.

    Padded by reflection; by the last row or column repeated, where more is wanted than there is.
    """
    import torch

    height, width = (_reflected(side, multiple) for side in pixels.shape[:2])
    picture = torch.empty((1, 3, len(height), len(width)), dtype=dtype)
    for band in bands(len(height)):
        rows = torch.from_numpy(pixels[height[band]][:, width])
        picture[0, :, band] = rows.permute(2, 0, 1).float().sub_(127.5).div_(127.5)
    return picture


def _reflected(side: int, multiple: int) -> Any:
    """Which row (or column) stands where: 0 to side - 1, then those before the last one backwards."""
    import numpy as np

    more = -side % multiple
    return np.pad(np.arange(side), (0, more), "reflect" if more < side else "edge")


def as_pixels(rows: "Tensor") -> "ndarray":
    """Rows (3, r, width) in about -1..1 -> (r, width, 3). Raises SpoiledPicture for not-a-number."""
    import torch

    values = rows.float()
    if not torch.isfinite(values).all():
        raise SpoiledPicture(f"the VAE gave not-a-number ({rows.dtype}): try --dtype float32")
    return values.mul(127.5).add_(127.5).round_().clamp_(0, 255).byte().permute(1, 2, 0).cpu().numpy()


# -- writing -----------------------------------------------------------------------------------------------------------


@contextmanager
def _disk_problems_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {shown(path)}: {reason(error)}") from error


class _RowFile:
    """A picture in the making, under another name until its last row is there: with PngRows(...) as file: file.write().

    If the block is left before that, nothing is left of it, and what was there before under its name stays.
    """

    def __init__(self, path: Path, width: int, height: int) -> None:
        self.path, self.width, self.height = path, width, height
        self.rows = 0
        self._part = path.with_name(f".safelight-{secrets.token_hex(8)}.part")
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        with ExitStack() as undo, _disk_problems_named(self.path):
            undo.callback(self._discard)
            self._start()
            undo.pop_all()
        return self

    def write(self, rows: "ndarray") -> None:
        """The next rows, uint8 (r, width, 3). Raises EnvironmentProblem."""
        assert rows.shape[1:] == (self.width, 3), f"{rows.shape} are no rows of {self.width} pixels"
        assert self.rows + len(rows) <= self.height, f"row {self.rows + len(rows)} of {self.height}"
        with _disk_problems_named(self.path):
            for band in bands(len(rows)):
                self._append(rows[band])
        self.rows += len(rows)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                assert self.rows == self.height, f"{self.rows} of {self.height} rows were written"
                with _disk_problems_named(self.path):
                    self._finish()
                    self._put_in_place()
        finally:
            self._discard()

    def _put_in_place(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()  # before it is renamed, as Windows wants it
        self._part.replace(self.path)

    def _discard(self) -> None:
        if self._file is not None:
            self._file.close()
        self._part.unlink(missing_ok=True)

    def _start(self) -> None:
        raise NotImplementedError

    def _append(self, rows: "ndarray") -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError


SUB, UP = 1, 2  # PNG's filters: the difference to the pixel before, to the row above
PIXEL_BYTES = 3


class PngRows(_RowFile):
    """8 bit RGB; each row filtered by Sub or Up, whichever leaves the smaller numbers (PNG specification, 12.7)."""

    def _start(self) -> None:
        import numpy as np

        self._file = self._part.open("xb")
        self._deflate = zlib.compressobj(6, strategy=zlib.Z_FILTERED)
        self._above: Any = np.zeros(self.width * PIXEL_BYTES, np.uint8)
        self._file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0))

    def _append(self, rows: "ndarray") -> None:
        self._chunk(b"IDAT", self._deflate.compress(self._filtered(rows.reshape(len(rows), -1)).tobytes()))

    def _filtered(self, lines: "ndarray") -> "ndarray":
        """(rows, 1 + 3 * width), each beginning with its filter's number; uint8 wraps around as in PNG."""
        import numpy as np

        up = lines - np.concatenate([self._above[None], lines[:-1]])
        sub = lines.copy()
        sub[:, PIXEL_BYTES:] -= lines[:, :-PIXEL_BYTES]
        self._above = lines[-1].copy()
        # the distance to 0 either way: 255 is -1
        costs = [np.minimum(x, -x).sum(1, dtype=np.int64) for x in (sub, up)]
        is_sub = (costs[0] <= costs[1])[:, None]
        return np.concatenate([np.where(is_sub, SUB, UP).astype(np.uint8), np.where(is_sub, sub, up)], 1)

    def _finish(self) -> None:
        self._chunk(b"IDAT", self._deflate.flush())
        self._chunk(b"IEND", b"", empty=True)

    def _chunk(self, kind: bytes, data: bytes, *, empty: bool = False) -> None:
        assert self._file is not None
        if data or empty:
            self._file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


OLDEST_TIFFFILE, HINT = "2026.3", "pip install 'safelight[tiff]', or write a .png"
TILE_PX = 256
TILED_FROM = 2**24  # pixels: a viewer reads the tiles that it shows, and not the whole of a large picture


class TiffRows(_RowFile):
    """8 bit RGB, not compressed; in tiles from TILED_FROM on, in strips below. BigTIFF where 4 GiB do not suffice.

    tifffile, which `writer_of` looks for, makes the file with all its tables and no pixels in it (a sparse file), and
    says where these go: so rows are taken as they come, where its own writer would ask for them.
    """

    tiled_from = TILED_FROM

    def _start(self) -> None:
        import numpy as np
        import tifffile

        self.tiled = self.width * self.height >= self.tiled_from
        parts = {"tile": (TILE_PX, TILE_PX)} if self.tiled else {"rowsperstrip": TILE_PX}
        shape = (self.height, self.width, 3)
        tifffile.imwrite(self._part, shape=shape, dtype=np.uint8, photometric="rgb", metadata=None, **parts)
        with tifffile.TiffFile(self._part) as made:
            self._places = iter(made.pages[0].dataoffsets)
        self._file = self._part.open("r+b")
        self._waiting: list[Any] = []

    def _append(self, rows: "ndarray") -> None:
        """Gathers TILE_PX rows: copies, as the caller may use its memory again."""
        import numpy as np

        self._waiting.append(rows.copy())
        if (count := sum(map(len, self._waiting))) >= TILE_PX:
            lines = np.concatenate(self._waiting)
            self._waiting = [lines[TILE_PX:].copy()] if count > TILE_PX else []
            self._store(lines[:TILE_PX])

    def _store(self, lines: "ndarray") -> None:
        """TILE_PX rows or the last ones: one strip, or a row of tiles, filled up with zeros at the edges."""
        import numpy as np

        assert self._file is not None
        if not self.tiled:
            self._file.seek(next(self._places))
            self._file.write(lines.tobytes())
            return
        lines = np.pad(lines, ((0, TILE_PX - len(lines)), (0, -self.width % TILE_PX), (0, 0)))
        for left in range(0, self.width, TILE_PX):
            self._file.seek(next(self._places))
            self._file.write(lines[:, left : left + TILE_PX].tobytes())

    def _finish(self) -> None:
        import numpy as np

        if self._waiting:
            self._store(np.concatenate(self._waiting))


WRITERS: dict[str, type[PngRows] | type[TiffRows]] = {".png": PngRows, ".tif": TiffRows, ".tiff": TiffRows}


def writer_of(path: Path) -> type[PngRows] | type[TiffRows]:
    """Raises UsageError for a suffix that nothing here writes, EnvironmentProblem where tifffile is missing."""
    if (writer := WRITERS.get(path.suffix.lower())) is None:
        raise UsageError(f"{shown(path)}: row by row are written {', '.join(WRITERS)}; end the name in one of them")
    if writer is TiffRows and (missing := packages.missing("tifffile", OLDEST_TIFFFILE, HINT)):
        raise EnvironmentProblem(f"{path.suffix} {missing}")
    return writer
