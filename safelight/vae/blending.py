"""A VAE that decodes or encodes in blended tiles, whoever calls it: each tile in strips, where that is known to pay."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from safelight.errors import OutOfMemory, UsageError
from safelight.probe.blueprint import Part
from safelight.simulate import inputs
from safelight.vae import seams, tiles
from safelight.vae.blended import blended, blended_rows
from safelight.vae.exact import Sink
from safelight.vae.graph import CannotWalk
from safelight.vae.plan import Schedule
from safelight.vae.running import Exact
from safelight.vae.tiles import Grid

# whose decoders and encoders take a tile by itself
BLENDED = (
    "AutoencoderKL",
    "AutoencoderKLFlux2",
    "AutoencoderTiny",
    "AutoencoderDC",
    "AsymmetricAutoencoderKL",
    "VQModel",
)
TILE_PX, OVERLAP = 512, 0.25
LEAST_TILE = 8  # latents a side
AT_ONCE_PX = 1024 * 1024  # of the tiles of one call on a card; a CPU is as fast with one tile


@dataclass
class Blending:
    """vae: of a class in BLENDED. what: decode or encode. tile_px: of the picture, a tile's longest side at most.

    overlap: share of a tile, 0 to 0.5. budget_bytes: beside weights and what is given; a tile is halved until it fits,
    where the bytes of one are known beforehand (where it is computed in strips). counts: tiles of each call.
    """

    vae: Any
    what: str = "decode"
    tile_px: int = TILE_PX
    overlap: float = OVERLAP
    budget_bytes: int | None = None
    counts: list[int] = field(default_factory=list)
    _own: Callable[[Any], Any] | None = None
    _exact: Exact | None = None

    def __post_init__(self) -> None:
        if type(self.vae).__name__ not in BLENDED:
            name = type(self.vae).__name__
            raise UsageError(f"{name} cannot be cut into tiles by itself: {', '.join(BLENDED)} can")
        self._own = getattr(self.vae, seams.seam(self.vae, self.what).module).forward
        self._exact = seams.exact_of(self.vae, self.what)

    def __call__(self, given: Any, *_: Any, sink: Sink | None = None, **__: Any) -> Any:
        """given: (batch, channels, height, width). None with a sink, which takes a picture's rows in order."""
        grid, run = self.grid(given), self._runner(given)
        factor = self.factor
        scale = Fraction(factor) if self.what == "decode" else Fraction(1, factor)
        at_once = max(1, AT_ONCE_PX // (grid.tile[0] * grid.tile[1] * factor**2)) if run is self._own else 1
        self.counts.append(len(grid))
        if sink is None:
            return blended(run, given, grid, scale=scale, batch=at_once).to(given.dtype)
        for first_row, rows in blended_rows(run, given, grid, scale=scale, batch=at_once):
            sink(first_row, rows.to(given.dtype))
        return None

    @property
    def factor(self) -> int:
        return inputs.factor(Part(type(self.vae), self.vae.config))

    def _runner(self, given: Any) -> Callable[[Any], Any]:
        """In strips on a CPU. A card gets several tiles at once, whole: strips have not been measured there."""
        assert self._own is not None and self._exact is not None, "made at the beginning"
        if given.device.type != "cpu":
            return self._own
        try:
            self._exact.plans(self.corner(given, (LEAST_TILE, LEAST_TILE)))
        except CannotWalk:
            return self._own
        return self._exact

    def corner(self, given: Any, tile: tuple[int, int]) -> Any:
        """Of one picture, as large as a tile or smaller."""
        height, width = (side * (1 if self.what == "decode" else self.factor) for side in tile)
        return given[:1, :, :height, :width]

    def grid(self, given: Any) -> Grid:
        """The largest tiles that fit."""
        tile = max(1, self.tile_px // self.factor)
        while True:
            grid = self.grid_of(given, tile)
            if self.budget_bytes is None or (taken := self.peak_bytes(given, grid)) <= self.budget_bytes:
                return grid
            if tile // 2 < LEAST_TILE:
                raise OutOfMemory(
                    f"{_mib(self.budget_bytes)} is too little for tiles of {tile * self.factor} px: {_mib(taken)} do"
                )
            tile //= 2

    def grid_of(self, given: Any, tile: int, *, even: bool = True) -> Grid:
        """tile: latents. even: no larger than as few tiles have to be."""
        height, width = (side if self.what == "decode" else side // self.factor for side in given.shape[-2:])
        return tiles.grid(height, width, tile, round(self.overlap * tile), even=even)

    def peak_bytes(self, given: Any, grid: Grid) -> int:
        """A tile's, and those of the result with its rows in float32; 0 where they are not known."""
        if self._runner(given) is self._own:
            return 0
        one, plan = self.corner(given, grid.tile), self.plan(given, grid)
        result = plan.rows.graph.output
        pixels = given.shape[0] * given.shape[-1] * given.shape[-2] * result.shape[-1] * result.shape[-2]
        made = pixels // (one.shape[-1] * one.shape[-2]) * result.shape[1] * (4 + 4 * (given.element_size() < 4))
        return plan.peak_bytes + made

    def plan(self, given: Any, grid: Grid) -> Schedule:
        """Of one tile, in strips."""
        assert self._exact is not None, "made at the beginning"
        return self._exact.plan(self.corner(given, grid.tile))


@contextmanager
def blending(vae: Any, tile_px: int = TILE_PX, overlap: float = OVERLAP, what: str = "decode") -> Iterator[Blending]:
    """While this is open, the VAE decodes (or encodes) in blended tiles, whoever calls it. Raises UsageError."""
    made = Blending(vae, what, tile_px, overlap)
    with seams.running(vae, what, made):
        yield made


def _mib(nbytes: int) -> str:
    return f"{-(-nbytes // 2**20)} MiB"
