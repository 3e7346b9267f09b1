"""Pictures become latents and latents pictures, file by file, through a VAE alone: timed, watched and compared.

Comes in: a Coder, paths of files. Goes out: files, and a Coded that says what they are and what it took. Not known
here: how a VAE is run within a budget, which is the engine's, and the command line.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safelight.errors import OutOfMemory, UsageError
from safelight.measure.clock import Clock, synchronizer
from safelight.measure.memory import PeakMemory
from safelight.probe.blueprint import Part
from safelight.probe.device import Device
from safelight.run import latents as latent_files
from safelight.run import picture_files, shortage
from safelight.run.latents import Latents
from safelight.run.load import Loaded
from safelight.run.metadata import shown
from safelight.simulate import inputs

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

Sink = Callable[[int, "Tensor"], None]  # (first row, rows (1, 3, r, width) in about -1..1), each row once, in order
PERCENT = 100


class Engine(Protocol):
    """What of safelight.vae.engine is used: latents as the VAE has them, pictures (1, 3, height, width) in -1..1."""

    def encode(self, pictures: "Tensor") -> "Tensor": ...

    def decode(self, latents: "Tensor", sink: Sink | None) -> "Tensor | None": ...


@dataclass(frozen=True, slots=True)
class Coder:
    """A VAE on its device, and what runs it. report: (stage, done, of how many), as in run/generate.py."""

    vae: Any
    loaded: Loaded
    device: Device
    engine: Engine
    report: Callable[[str, int, int], None] = lambda stage, done, total: None

    @property
    def factor(self) -> int:
        """Picture pixels per latent pixel along one side."""
        return inputs.factor(Part(type(self.vae), self.vae.config))

    @property
    def dtype(self) -> Any:
        return next(self.vae.parameters()).dtype


@dataclass(frozen=True, slots=True)
class Coded:
    """What was made of one file.

    width, height: pixels of the picture. padded_width, padded_height: as the VAE had it. seconds: by stage.
    peak_bytes: on a CPU all that the process held; held_bytes: of these, before it began; None where not measured.
    psnr_db: of a round trip, against the picture read, 8 bit; None for no difference at all. mse: in levels of 255.
    """

    file: str
    paths: tuple[str, ...]
    width: int
    height: int
    padded_width: int
    padded_height: int
    seconds: dict[str, float]
    peak_bytes: int | None
    held_bytes: int | None
    psnr_db: float | None = None
    mse: float | None = None


@dataclass
class _Work:
    """One file under way."""

    coder: Coder
    source: Path
    clock: Clock = field(init=False)
    memory: PeakMemory = field(init=False)

    def __post_init__(self) -> None:
        self.clock = Clock(synchronizer(self.coder.device.kind))
        self.memory = PeakMemory(self.coder.device.kind)

    @contextmanager
    def running(self) -> Iterator[None]:
        """No gradients; memory that runs out becomes one line."""
        import torch

        try:
            with torch.no_grad():  # not inference_mode: whoever traces the VAE cannot use its tensors
                yield
        except (MemoryError, RuntimeError) as error:
            if (wanted := shortage.wanted(error)) is None:
                raise
            raise OutOfMemory(
                f"{self.clock.stage} of {shown(self.source)} ran out of memory on {self.coder.device.name}: {wanted}; "
                "try a smaller --budget or --dtype bfloat16"
            ) from error
        finally:
            self.clock.switch()

    def done(self, paths: Sequence[Path], width: int, height: int, mse: float | None = None) -> Coded:
        seconds = {stage: round(value, 4) for stage, value in self.clock.seconds.items()}
        factor, names = self.coder.factor, tuple(map(str, paths))
        psnr = 10 * math.log10(255**2 / mse) if mse else None
        sides = (width, height, width + -width % factor, height + -height % factor)
        return Coded(str(self.source), names, *sides, seconds, self.memory.read(), self.memory.before, psnr, mse)


def encode(coder: Coder, source: Path, out: Path) -> Coded:
    """The latents of the picture at `source`: the most likely ones, not drawn at random."""
    work = _Work(coder, source)
    with work.running():
        work.clock.switch("read")
        pixels = picture_files.read(source)
        values = latent_files.scaled(_encoded(work, pixels).float(), coder.vae.config)
        work.clock.switch("write")
        height, width = pixels.shape[:2]
        latent_files.write(out, _described(coder, values, width, height))
    return work.done([out], width, height)


def _described(coder: Coder, values: "Tensor", width: int, height: int) -> Latents:
    config = coder.vae.config
    shift = config.get("shift_factor")
    name = type(coder.vae).__name__
    return Latents(values, coder.loaded.name, name, latent_files.factor(config), shift, width, height)


def _encoded(work: _Work, pixels: "ndarray") -> "Tensor":
    coder = work.coder
    pictures = picture_files.as_tensor(pixels, coder.dtype, coder.factor).to(coder.device.torch_name)
    work.clock.switch("encode")
    return coder.engine.encode(pictures)


def decode(coder: Coder, source: Path, name: Callable[[int], Sequence[Path]]) -> Coded:
    """name: so many pictures -> the paths that they get."""
    work = _Work(coder, source)
    with work.running():
        work.clock.switch("read")
        found = latent_files.read(source)
        _check(coder, found, source)
        width, height = _size(coder, found)
        values = latent_files.unscaled(found.values.float(), coder.vae.config).to(coder.device.torch_name, coder.dtype)
        paths = name(len(values))
        for i, path in enumerate(paths):
            _decoded(work, values[i : i + 1], path, width, height)
    return work.done(paths, width, height)


def _check(coder: Coder, found: Latents, source: Path) -> None:
    """Raises UsageError for latents of another kind of VAE."""
    channels, wanted = found.values.shape[1], coder.vae.config.get("latent_channels")
    if wanted is not None and channels != wanted:
        made = f" and were made with {found.model!r:.80}" if found.model else ""
        raise UsageError(
            f"{shown(source)}: its latents have {channels} channels{made}, {coder.loaded.name}'s VAE takes {wanted}: "
            "give their model with --model"
        )


def _size(coder: Coder, found: Latents) -> tuple[int, int]:
    """(width, height): as the file says, if the latents are just as large as that needs; else all they cover."""
    covered = [side * coder.factor for side in found.values.shape[:-3:-1]]
    told = (found.width, found.height)
    if all(said is not None and side - coder.factor < said <= side for said, side in zip(told, covered, strict=True)):
        return told  # type: ignore[return-value]
    return covered[0], covered[1]


def roundtrip(coder: Coder, source: Path, out: Path) -> Coded:
    """Encodes and decodes the picture, and compares."""
    work = _Work(coder, source)
    with work.running():
        work.clock.switch("read")
        pixels = picture_files.read(source)
        height, width = pixels.shape[:2]
        values = _encoded(work, pixels)
        canvas = _decoded(work, values, out, width, height, pixels)
    return work.done([out], width, height, canvas.squared / pixels.size)


@dataclass
class _Canvas:
    """The sink: takes the decoded rows, crops them, writes them, and adds up their squared errors (of 255 levels)."""

    work: _Work
    file: Any
    original: "ndarray | None"
    squared: int = 0

    def __call__(self, first_row: int, rows: "Tensor") -> None:
        self.work.clock.switch("write")
        width, height = self.file.width, self.file.height
        for band in picture_files.bands(min(rows.shape[2], height - first_row)):
            pixels = picture_files.as_pixels(rows[0, :, band, :width])
            self.file.write(pixels)
            if self.original is not None:
                self.squared += _squared(self.original[first_row + band.start : first_row + band.stop], pixels)
        self.work.coder.report("decode", PERCENT * min(first_row + rows.shape[2], height) // height, PERCENT)
        self.work.clock.switch("decode")


def _squared(one: "ndarray", other: "ndarray") -> int:
    import numpy as np

    return int(np.square(np.subtract(one, other, dtype=np.int32)).sum(dtype=np.int64))


def _decoded(
    work: _Work, values: "Tensor", path: Path, width: int, height: int, original: "ndarray | None" = None
) -> _Canvas:
    coder = work.coder
    with picture_files.writer_of(path)(path, width, height) as file:
        canvas = _Canvas(work, file, original)
        work.clock.switch("decode")
        coder.engine.decode(values, canvas)
        work.clock.switch("write")
    return canvas
