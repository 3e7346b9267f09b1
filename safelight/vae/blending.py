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
from safelight.vae.families import BLENDED
from safelight.vae.graph import CannotWalk
from safelight.vae.passes import nbytes
from safelight.vae.plan import Schedule, mib
from safelight.vae.running import Exact
from safelight.vae.sampling import LEAST_PICTURE, crops
from safelight.vae.tiles import Grid

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
    _own: Callable[[Any], Any] = field(init=False)
    _exact: Exact = field(init=False)  # of a tile with its own statistics, of crops, and of a tile with those of crops
    _of_crops: Exact = field(init=False)
    _shared: Exact = field(init=False)

    def __post_init__(self) -> None:
        if type(self.vae).__name__ not in BLENDED:
            name = type(self.vae).__name__
            raise UsageError(f"{name} cannot be cut into tiles by itself: {', '.join(BLENDED)} can")
        self._own = getattr(self.vae, seams.seam(self.vae, self.what).module).forward
        self._exact, self._of_crops, self._shared = (seams.exact_of(self.vae, self.what) for _ in range(3))
        self._shared.statistics = ()

    def __call__(self, given: Any, *_: Any, sink: Sink | None = None, **__: Any) -> Any:
        """given: (batch, channels, height, width). None with a sink, which takes a picture's rows in order."""
        grid, factor = self.grid(given), self.factor
        run = self._runner(given, grid)
        scale = Fraction(factor) if self.what == "decode" else Fraction(1, factor)
        at_once = max(1, AT_ONCE_PX // (grid.tile[0] * grid.tile[1] * factor**2)) if run is self._own else 1
        self.counts.append(len(grid))
        if sink is None:
            return blended(run, given, grid, scale=scale, batch=at_once).to(given.dtype)
        for first_row, rows in blended_rows(run, given, grid, scale=scale, batch=at_once):
            sink(first_row, rows.to(given.dtype))
        return None

    def _runner(self, given: Any, grid: Grid) -> Callable[[Any], Any]:
        if self._norms(given) is None:
            return self._own
        plan = self._plan_of_crops(given, grid)
        return self._exact if plan is None else self._with_statistics(given, plan)

    def _with_statistics(self, given: Any, plan: Schedule) -> Callable[[Any], Any]:
        """Runs the same tile of all pictures of a batch, each with its picture's statistics."""
        import torch

        shared = self._shared
        found = [self._of_crops.statistics_of(self._pieces(item), plan) for item in given.split(1)]

        def run(tile: Any) -> Any:
            made = []
            for one, statistics in zip(tile.split(1), found, strict=True):
                shared.statistics = statistics
                made.append(shared(one))
            return made[0] if len(made) == 1 else torch.cat(made)

        return run

    def _norms(self, given: Any) -> int | None:
        """How many the VAE has, where tiles are computed in strips. None where the VAE itself does: one that cannot be
        walked, and on a card, which gets several tiles at once, as strips have not been measured there."""
        if given.device.type != "cpu":
            return None
        try:
            plan = self._exact.plan(self.corner(given, (LEAST_TILE, LEAST_TILE)))
        except CannotWalk:
            return None
        return len(plan.rows.all_normed)

    def _shares(self, given: Any, grid: Grid) -> bool:
        """Whether tiles have the statistics of crops: where there are norms, and the picture is larger than crops."""
        larger = len(grid) > 1 and min(grid.size) >= LEAST_PICTURE
        return self.shared and larger and bool(self._norms(given))

    def _pieces(self, item: Any) -> Any:
        """Crops of a picture or of its latents, side by side."""
        scale = 1 if self.what == "decode" else self.factor
        return crops(*(side // scale for side in item.shape[-2:])).of(item, scale)

    @property
    def factor(self) -> int:
        return inputs.factor(Part(type(self.vae), self.vae.config))

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
                    f"{mib(self.budget_bytes)} is too little for tiles of {tile * self.factor} px: {mib(taken)} do"
                )
            tile //= 2

    def grid_of(self, given: Any, tile: int, *, even: bool = True) -> Grid:
        """tile: latents. even: no larger than as few tiles have to be."""
        height, width = (side if self.what == "decode" else side // self.factor for side in given.shape[-2:])
        return tiles.grid(height, width, tile, round(self.overlap * tile), even=even)

    def peak_bytes(self, given: Any, grid: Grid) -> int:
        """Of crops, then of tiles; 0 where they are not known."""
        if self._norms(given) is None:
            return 0
        tiled, plan = self._tiles_bytes(given, grid), self._plan_of_crops(given, grid)
        return tiled if plan is None else max(tiled, nbytes(plan.rows.graph.inputs[0]) + plan.peak_bytes)

    def work(self, given: Any, grid: Grid) -> float:
        """Multiply-adds of crops and tiles, in strips."""
        plan = self._plan_of_crops(given, grid)
        return len(grid) * self.plan(given, grid).work + (0 if plan is None else plan.work)

    def _plan_of_crops(self, given: Any, grid: Grid) -> Schedule | None:
        """In no more memory than tiles take. None where each tile has its own statistics."""
        if not self._shares(given, grid):
            return None
        pieces = self._pieces(given[:1])  # with their numbers: in float16 a plan depends on what overflows
        return self._of_crops.within(pieces, self._tiles_bytes(given, grid) - pieces.nbytes)

    def _tiles_bytes(self, given: Any, grid: Grid) -> int:
        """One tile's, and those of the result with its rows in float32."""
        one, plan = self.corner(given, grid.tile), self.plan(given, grid)
        result = plan.rows.graph.output
        pixels = given.shape[0] * given.shape[-1] * given.shape[-2] * result.shape[-1] * result.shape[-2]
        made = pixels // (one.shape[-1] * one.shape[-2]) * result.shape[1] * (4 + 4 * (given.element_size() < 4))
        return int(plan.peak_bytes + made)

    def plan(self, given: Any, grid: Grid) -> Schedule:
        """Of one tile, in strips."""
        exact = self._shared if self._shares(given, grid) else self._exact
        return exact.plan(self.corner(given, grid.tile))


@contextmanager
def blending(vae: Any, tile_px: int = TILE_PX, overlap: float = OVERLAP, what: str = "decode") -> Iterator[Blending]:
    """While this is open, the VAE decodes (or encodes) in blended tiles, whoever calls it. Raises UsageError."""
    made = Blending(vae, what, tile_px, overlap)
    with seams.running(vae, what, made):
        yield made
