"""Pictures on disk, enlarged: read, upscaled, written again with what they said of themselves and what was done.

Comes in: an open upscaler and paths. Goes out: PNG, JPEG or WebP files, whole or not at all, and an Upscaled that says
what was done. Files to read are taken for hostile. Not known here: the command line.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.config import VERSION
from safelight.errors import OutOfMemory, UsageError
from safelight.measure.clock import Clock, synchronizer
from safelight.optimizers.registry import swapped
from safelight.probe.device import Device
from safelight.run import metadata, picture_files, shortage
from safelight.run.infotext import parse_infotext
from safelight.run.metadata import shown
from safelight.run.record import Record
from safelight.sampling import resampling, upscalers
from safelight.sampling.catalog_upscalers import Upscaler
from safelight.sampling.networks import Network

if TYPE_CHECKING:
    from PIL.Image import Image

TEXT_FORMATS = (".png", ".jpg", ".jpeg", ".webp")  # what metadata.read reads, and what is written
SAVED: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": "4:4:4"},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": "4:4:4"},
    ".webp": {"format": "WEBP", "quality": 95},
}


@dataclass(frozen=True, slots=True)
class Enlarger:
    """What enlarges. network: None where the row has none. scale: of the sides. tile_px: None for the network's own."""

    row: Upscaler
    network: Network | None
    scale: float
    device: Device
    tile_px: int | None = None
    report: Callable[[str, int, int], None] = lambda stage, done, total: None


@dataclass(frozen=True, slots=True)
class Upscaled:
    """What was made of one file. width, height: of the picture that was written. seconds: by stage."""

    file: str
    path: str
    from_width: int
    from_height: int
    width: int
    height: int
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Found:
    """A picture as it was read, upright, of mode RGB or RGBA. text, record: what it says of itself. profile: ICC."""

    image: "Image"
    text: str | None
    record: Record | None
    profile: bytes | None


def upscale(enlarger: Enlarger, source: Path, out: Path) -> Upscaled:
    """Raises UsageError for what cannot be read or would be too large, OutOfMemory, EnvironmentProblem."""
    clock = Clock(synchronizer(enlarger.device.kind))
    clock.switch("read")
    found = read(source)
    width, height = (max(1, round(side * enlarger.scale)) for side in found.image.size)
    if width * height > picture_files.LARGEST_PIXELS:
        raise UsageError(f"{shown(source)} would be {width}x{height}, more than {picture_files.LARGEST_PIXELS} pixels")
    clock.switch("upscale")
    try:
        image = enlarged(enlarger, found.image, width, height)
    except (MemoryError, RuntimeError) as error:
        if (wanted := shortage.wanted(error)) is None:
            raise
        raise OutOfMemory(
            f"upscaling {shown(source)} ran out of memory on {enlarger.device.name}: {wanted}; try a smaller --tile"
        ) from error
    clock.switch("write")
    metadata.stored(out, _encoded(enlarger, found, image, out))
    clock.switch()
    seconds = {stage: round(value, 4) for stage, value in clock.seconds.items()}
    return Upscaled(str(source), str(out), *found.image.size, width, height, seconds)


def read(path: Path) -> Found:
    """In 8 bit. Raises UsageError for what is no whole picture, or is too large, or says too much."""
    from PIL import Image, ImageOps

    record, text = metadata.read(path) if path.suffix.lower() in TEXT_FORMATS else (None, None)
    image = Image.fromarray(picture_files.read(path))
    # read once and found whole; here for what picture_files leaves out, transparency and the colour profile
    formats = tuple(picture_files.FORMATS.values())
    limit = picture_files.LARGEST_PIXELS
    with swapped(Image, MAX_IMAGE_PIXELS=limit), metadata.opened(path, formats, "is no picture") as raw:
        profile = raw.info.get("icc_profile")
        if raw.has_transparency_data and not raw.mode.startswith("I"):
            image = ImageOps.exif_transpose(raw).convert("RGBA")
        is_kept = isinstance(profile, bytes) and raw.mode in ("RGB", "RGBA", "P")  # not that of greys, or of CMYK
    return Found(image, text, record, profile if is_kept else None)


def enlarged(enlarger: Enlarger, image: "Image", width: int, height: int) -> "Image":
    """RGB or RGBA -> the same, width x height; transparency by Lanczos, as no network knows of it."""
    from PIL import Image

    def report(done: int, total: int) -> None:
        enlarger.report("upscale", done, total)

    colours = resampling.pixels(image)[None]
    made = upscalers.enlarged(
        enlarger.row, enlarger.network, colours, height, width, tile_px=enlarger.tile_px, report=report
    )
    larger = Image.fromarray(made[0].permute(1, 2, 0).contiguous().numpy())
    if image.mode == "RGBA":
        larger.putalpha(resampling.resized_image(image.getchannel("A"), width, height))
    return larger


# -- what the picture says ---------------------------------------------------------------------------------------------


def infotext(text: str | None, row: Upscaler, scale: float) -> str:
    """A1111's text with "Postprocess upscale by" and "Postprocess upscaler" as its last fields.

    A text without fields, and a picture without a text, get a line of three: of fewer A1111 takes a line for a prompt.
    """
    added = f"Postprocess upscale by: {scale:g}, Postprocess upscaler: {_field(row.name)}"
    if text and parse_infotext(text)[2]:
        return f"{text.rstrip()}, {added}"
    line = f"{added}, Version: safelight {VERSION}"
    return f"{text.rstrip()}\n{line}" if text else line


def _field(name: str) -> str:
    """A1111 quotes what has a comma, a colon or a line break."""
    return json.dumps(name, ensure_ascii=False) if any(mark in name for mark in ",:\n") else name


def twin(record: Record, row: Upscaler, scale: float) -> Record:
    """A record makes the picture again by `generate`, which upscales in one way: any other is not put into it."""
    if record.upscale != 1 or upscalers.NAMES.get(int(scale)) != row.name or scale != int(scale):
        return record
    return replace(record, upscale=int(scale), upscaler=row.name)


def _encoded(enlarger: Enlarger, found: Found, image: "Image", out: Path) -> bytes:
    """The file's bytes. Raises UsageError for a suffix, size or text that the format cannot take."""
    from PIL import Image

    metadata.check_suffix(out)
    suffix = out.suffix.lower()
    if image.mode == "RGBA" and SAVED[suffix]["format"] == "JPEG":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    text = infotext(found.text, enlarger.row, enlarger.scale)
    written = None if found.record is None else twin(found.record, enlarger.row, enlarger.scale).to_json()
    file = io.BytesIO()
    try:
        image.save(file, **SAVED[suffix], **_texts(suffix, text, written), icc_profile=found.profile)
    except (OSError, ValueError) as error:
        raise UsageError(f"a {image.width}x{image.height} picture cannot be a {suffix} file: {error}") from error
    return file.getvalue()


def _texts(suffix: str, text: str, written: str | None) -> dict[str, Any]:
    """What Pillow is to be told, for the texts to stand where metadata.read finds them."""
    from PIL.PngImagePlugin import PngInfo

    if suffix == ".png":
        chunks = PngInfo()
        chunks.add_text("parameters", text)
        if written is not None:
            chunks.add_text("safelight", written)
        return {"pnginfo": chunks}
    exif = metadata.exif_block(text, written or "")
    if SAVED[suffix]["format"] == "JPEG" and len(exif) > metadata.MAX_JPEG_EXIF_BYTES:
        raise UsageError(
            f"the prompt is too long for a JPEG file ({len(exif)} of {metadata.MAX_JPEG_EXIF_BYTES} bytes): use .png"
        )
    return {"exif": exif}
