"""What each way of decoding or encoding a picture would take, before a weight is loaded, and which one to use.

Comes in: a VAE's config, a size, a budget. Goes out: Advice. Bytes are those of the plans that would run; seconds are
not known here, so ways are compared by their work, relative to the whole's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from safelight.errors import UsageError
from safelight.probe.blueprint import Blueprint, Part
from safelight.simulate import inputs, trace
from safelight.simulate.fake import fake
from safelight.simulate.strides import real_strides
from safelight.vae import seams
from safelight.vae.blending import OVERLAP, Blending
from safelight.vae.families import BLENDED
from safelight.vae.graph import CannotWalk
from safelight.vae.plan import mib
from safelight.vae.running import Exact

TILES_PX = (1024, 512, 256)
OVERLAPS = (0.0625, 0.125, 0.25, 0.5)
SHOWN_TILE_PX = 512
FIDELITY = {"whole": "exact", "exact": "rounding", "fast": "approximate", "blended": "approximate"}


@dataclass(frozen=True, slots=True)
class Option:
    """how: of engine.HOW. nbytes: beside weights and what is given. work: multiply-adds, relative to whole's.

    tile_px: of its tiles, (height, width), overlapping by `overlap` of a side; count: how many.
    """

    how: str
    nbytes: int
    work: float
    tile_px: tuple[int, int] | None = None
    overlap: float | None = None
    count: int = 1

    @property
    def fidelity(self) -> str:
        return FIDELITY[self.how]

    def fits_px(self, height: int, width: int, budget_bytes: int) -> int:
        """The side of the largest square picture within the budget: bytes go with pixels."""
        return int((budget_bytes / self.nbytes * height * width) ** 0.5)


@dataclass(frozen=True, slots=True)
class Advice:
    """options: from the most faithful on, and the fastest first. overlaps: the same tile with more and more overlap.

    best: the most faithful that fits, of these the one with the least work; None where nothing fits.
    """

    vae: str
    what: str
    height: int
    width: int
    dtype: str
    budget_bytes: int | None
    options: tuple[Option, ...]
    overlaps: tuple[Option, ...]

    @property
    def best(self) -> Option | None:
        fits = [o for o in self.options if self.budget_bytes is None or o.nbytes <= self.budget_bytes]
        # whole has no advantage over strips but its bits
        return min((o for o in fits if o.how != "whole"), key=_rank, default=fits[0] if fits else None)


def _rank(option: Option) -> tuple[bool, bool, float]:
    return option.fidelity == "approximate", option.how == "blended", option.work


def advise(
    part: Part,
    height: int,
    width: int,
    *,
    what: str = "decode",
    dtype: str = "float32",
    budget_bytes: int | None = None,
) -> Advice:
    """part: the VAE's class and config. height, width: pixels. Raises UsageError for a size or a VAE that cannot be."""
    factor = inputs.factor(part)
    if min(height, width) < factor or height % factor or width % factor:
        raise UsageError(f"{width}x{height} is no size for this VAE: give multiples of {factor} (pixels)")
    with faked(part, height, width, what, dtype) as (vae, given):
        exact = seams.exact_of(vae, what)
        found = [*_plans("exact", exact, given), *_fast(vae, what, given)]
        found.insert(0, Option("whole", _whole_bytes(vae, what, given), exact.whole_work))
        tiled = Blending(vae, what) if type(vae).__name__ in BLENDED else None
        found += [] if tiled is None else _tiled(tiled, given)
        overlaps = [] if tiled is None else _overlaps(tiled, given)
    whole = exact.whole_work
    options = tuple(_relative(option, whole) for option in found)
    name, overlapping = part.cls.__name__, tuple(_relative(option, whole) for option in overlaps)
    return Advice(name, what, height, width, dtype, budget_bytes, options, overlapping)


@contextmanager
def faked(
    part: Part, height: int, width: int, what: str = "decode", dtype: str = "float32"
) -> Iterator[tuple[Any, Any]]:
    """(VAE, what it is given for one picture), without numbers: neither is good outside. Sides in pixels."""
    import torch

    fakes = fake(Blueprint(part.cls.__name__, part.cls, {"vae": part}, None, width, height), dtype)
    factor = inputs.factor(part)
    latents = (part.config["latent_channels"], height // factor, width // factor)
    with fakes.active():
        shape = latents if what == "decode" else (3, height, width)
        yield fakes.pipe.components["vae"], torch.empty(1, *shape, dtype=getattr(torch, dtype))


def _relative(option: Option, whole: float) -> Option:
    return replace(option, work=option.work / whole)


def _whole_bytes(vae: Any, what: str, given: Any) -> int:
    import torch

    with torch.no_grad(), real_strides():
        peak = trace.record(lambda: getattr(vae, what)(given), [given]).peak_bytes
    return int(peak - given.numel() * given.element_size())


def _fast(vae: Any, what: str, given: Any) -> Iterator[Option]:
    try:
        yield from _plans("fast", seams.exact_of(vae, what, sampled=True), given)
    except CannotWalk:
        return  # no norms, too small, or encoding


def _plans(how: str, exact: Exact, given: Any) -> Iterator[Option]:
    for made in reversed(exact.plans(given)):
        yield Option(how, made.peak_bytes, made.work)


def _tiled(blending: Blending, given: Any) -> list[Option]:
    made = [_tiles(blending, given, tile_px, OVERLAP) for tile_px in TILES_PX]
    return [option for option in made if option.count > 1]


def _overlaps(blending: Blending, given: Any) -> list[Option]:
    """Tiles of one size, whatever the overlap: with evened tiles a larger overlap would be a larger tile."""
    return [_tiles(blending, given, SHOWN_TILE_PX, overlap, even=False) for overlap in OVERLAPS]


def _tiles(blending: Blending, given: Any, tile_px: int, overlap: float, *, even: bool = True) -> Option:
    pixels, blending.overlap = blending.factor, overlap
    grid = blending.grid_of(given, max(1, tile_px // pixels), even=even)
    work = blending.work(given, grid)
    sides = (grid.tile[0] * pixels, grid.tile[1] * pixels)
    return Option("blended", blending.peak_bytes(given, grid), work, sides, overlap, len(grid))


def lines(advice: Advice) -> list[str]:
    """A table, and what follows from it."""
    size = f"{advice.width}x{advice.height}"
    budget = advice.budget_bytes
    head = f"{advice.what} {size} px, {advice.vae}, {advice.dtype}"
    found = [head + (f", within {mib(budget)}" if budget else ""), ""]
    found.append(f"  {'way':30s} {'MiB':>8} {'work':>6}  fidelity" + ("      up to, px square" if budget else ""))
    for option in advice.options:
        mark = "*" if option == advice.best else " "
        row = f"{mark} {_named(option):30s} {option.nbytes / 2**20:8.0f} {option.work:6.2f}  {option.fidelity}"
        if budget:
            fits = option.fits_px(advice.height, advice.width, budget)
            row = f"{row:62s} {fits if option.tile_px is None else '':>8}"
        found.append(row.rstrip())
    return [*found, "", *_advised(advice), *_overlap_said(advice.overlaps)]


def _named(option: Option) -> str:
    if option.tile_px is None:
        return option.how
    height, width = option.tile_px
    return f"blended, {option.count} of {width}x{height} px"


def _advised(advice: Advice) -> Iterator[str]:
    best, budget = advice.best, advice.budget_bytes
    if best is None:
        least = min(option.nbytes for option in advice.options)
        yield f"Nothing fits: the least is {mib(least)}."
        return
    flags = f"--how {best.how}" + (f" --budget {mib(budget).replace(' ', '')}" if budget else "")
    yield f"Take {_named(best)} ({flags}): {mib(best.nbytes)}, {best.work:.2f} times the whole's work."
    tiled = [option for option in advice.options if option.how == "blended" and option.nbytes < best.nbytes]
    if best.fidelity != "approximate" and tiled:
        yield "Tiles would take less memory, and change the picture: norms and attention see one tile at a time."


def _overlap_said(overlaps: Sequence[Option]) -> Iterator[str]:
    if len({option.count for option in overlaps}) > 1:
        rows = (f"{o.overlap:.0%}: {mib(o.nbytes)}, {o.count} tiles, {o.work:.2f}" for o in overlaps)
        yield f"More overlap takes no less memory, and more work. Tiles of {SHOWN_TILE_PX} px: {'; '.join(rows)}."
