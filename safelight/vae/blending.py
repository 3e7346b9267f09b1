"""A VAE that decodes or encodes in blended tiles, whoever calls it: each tile in strips, where that is known to pay."""

from collections.abc import Callable, Iterator, Sequence
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
from safelight.vae.sampling import LEAST_CROP, crops
from safelight.vae.stats import Statistics
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

    shared: tiles have the statistics of crops from all of the picture in common, where they are computed in strips;
    tones then differ less from tile to tile. Attention still sees one tile at a time.
    """

    vae: Any
    what: str = "decode"
    tile_px: int = TILE_PX
    overlap: float = OVERLAP
    budget_bytes: int | None = None
    shared: bool = True
    counts: list[int] = field(default_factory=list)
    _own: Callable[[Any], Any] | None = None
    _exact: Exact | None = None  # of a tile with its own statistics, of crops, and of a tile with those of crops
    _of_crops: Exact | None = None
    _shared: Exact | None = None

    def __post_init__(self) -> None:
        if type(self.vae).__name__ not in BLENDED:
            name = type(self.vae).__name__
            raise UsageError(f"{name} cannot be cut into tiles by itself: {', '.join(BLENDED)} can")
        self._own = getattr(self.vae, seams.seam(self.vae, self.what).module).forward
        self._exact, self._of_crops, self._shared = (seams.exact_of(self.vae, self.what) for _ in range(3))
        self._shared.statistics = ()

    def __call__(self, given: Any, *_: Any, sink: Sink | None = None, **__: Any) -> Any:
        """given: (batch, channels, height, width). None with a sink, which takes a picture's rows in order."""
        grid, run = self.grid(given), self._runner(given)
        if run is self._exact and self._shares(grid) and self.plan(given, grid).rows.all_normed:
            most = self._tiles_bytes(given, grid)
            run = self._with_statistics([self._statistics(item, most) for item in given.split(1)])
        factor = self.factor
        scale = Fraction(factor) if self.what == "decode" else Fraction(1, factor)
        at_once = max(1, AT_ONCE_PX // (grid.tile[0] * grid.tile[1] * factor**2)) if run is self._own else 1
        self.counts.append(len(grid))
        if sink is None:
            return blended(run, given, grid, scale=scale, batch=at_once).to(given.dtype)
        for first_row, rows in blended_rows(run, given, grid, scale=scale, batch=at_once):
            sink(first_row, rows.to(given.dtype))
        return None

    def _shares(self, grid: Grid) -> bool:
        return self.shared and len(grid) > 1 and min(grid.size) >= 2 * LEAST_CROP

    def _with_statistics(self, found: Sequence[Sequence[Statistics]]) -> Callable[[Any], Any]:
        """Runs the same tile of all pictures of a batch, each with its picture's statistics."""
        import torch

        shared = self._shared
        assert shared is not None, "made at the beginning"

        def one(tile: Any, statistics: Sequence[Statistics]) -> Any:
            shared.statistics = statistics
            return shared(tile)

        if len(found) == 1:
            return lambda tile: one(tile, found[0])
        return lambda tile: torch.cat([one(*each) for each in zip(tile.split(1), found, strict=True)])

    def _statistics(self, item: Any, most_bytes: int) -> list[Statistics]:
        """In no more memory than tiles take."""
        assert self._of_crops is not None, "made at the beginning"
        pieces = self._pieces(item)
        return self._of_crops.statistics_of(pieces, most_bytes - _size(pieces))

    def _pieces(self, item: Any) -> Any:
        """Crops of a picture or of its latents, as a batch."""
        import torch

        scale = 1 if self.what == "decode" else self.factor
        cut = crops(*(side // scale for side in item.shape[-2:]))
        side, places = cut.side * scale, [(top * scale, left * scale) for top, left in cut.places]
        return torch.cat([item[..., top : top + side, left : left + side] for top, left in places])

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
        """Of crops, then of tiles; 0 where they are not known."""
        if self._runner(given) is self._own:
            return 0
        tiled = self._tiles_bytes(given, grid)
        if not self._shares(grid):
            return tiled
        return max(tiled, _size(self._pieces(given[:1])) + self._plan_of_crops(given, grid).peak_bytes)

    def work(self, given: Any, grid: Grid) -> float:
        """Multiply-adds of crops and tiles, in strips."""
        tiled = len(grid) * self.plan(given, grid).work
        if not self._shares(grid):
            return tiled
        return tiled + self._plan_of_crops(given, grid).work

    def _plan_of_crops(self, given: Any, grid: Grid) -> Schedule:
        assert self._of_crops is not None, "made at the beginning"
        pieces = self._pieces(given[:1])
        return self._of_crops.within(pieces, self._tiles_bytes(given, grid) - _size(pieces))

    def _tiles_bytes(self, given: Any, grid: Grid) -> int:
        """One tile's, and those of the result with its rows in float32."""
        one, plan = self.corner(given, grid.tile), self.plan(given, grid)
        result = plan.rows.graph.output
        pixels = given.shape[0] * given.shape[-1] * given.shape[-2] * result.shape[-1] * result.shape[-2]
        made = pixels // (one.shape[-1] * one.shape[-2]) * result.shape[1] * (4 + 4 * (given.element_size() < 4))
        return int(plan.peak_bytes + made)

    def plan(self, given: Any, grid: Grid) -> Schedule:
        """Of one tile, in strips."""
        exact = self._shared if self._shares(grid) else self._exact
        assert exact is not None, "made at the beginning"
        return exact.plan(self.corner(given, grid.tile))


@contextmanager
def blending(vae: Any, tile_px: int = TILE_PX, overlap: float = OVERLAP, what: str = "decode") -> Iterator[Blending]:
    """While this is open, the VAE decodes (or encodes) in blended tiles, whoever calls it. Raises UsageError."""
    made = Blending(vae, what, tile_px, overlap)
    with seams.running(vae, what, made):
        yield made


def _size(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


def _mib(nbytes: int) -> str:
    return f"{-(-nbytes // 2**20)} MiB"
