"""One case computed in one way, in this process: seconds, bytes, predicted bytes, and how far it is from the whole.

The results of the ways `whole` and of the truth are left in a folder, where the processes of other ways find them.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import vae_compare
import vae_models
from vae_cases import Case, Way, way_of

from safelight.measure.memory import PeakMemory
from safelight.simulate.strides import real_strides
from safelight.simulate.trace import record
from safelight.vae import tiles
from safelight.vae.blending import blending
from safelight.vae.seams import exactly

LONG_SECONDS = 30.0  # a call that takes longer is not made again to be timed
CALLS = ((3.0, 5), (10.0, 3), (LONG_SECONDS, 2))  # a first call of up to so many seconds: so many more are timed
SMALL = 32  # latents a side of what is computed first of all: the least that crops are cut from
OVERLAP = 0.25  # of a tile, in diffusers
Run = Callable[[Any], Any]


@dataclass(slots=True)
class Prepared:
    """run: one call. predicted_bytes: the most that is alive in it, input and weights left out; None where nobody says.

    edges: by dimension (-2 rows, -1 columns) where strips or tiles meet in the result. notes: for the page.

    limit: sets what holds for the measured size alone, once the small one has been computed. eager: no compiler between
    the call and its operators.
    """

    run: Run
    predicted_bytes: int | None = None
    edges: dict[int, list[int]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    limit: Callable[[], None] = lambda: None
    eager: bool = True


def measured(case: Case, way: Way, folder: Path, device: str = "cpu", picture: Path | None = None) -> dict[str, Any]:
    import torch

    if case.threads:
        torch.set_num_threads(case.threads)
    vae, given = vae_models.build(case, device), vae_models.given(case, picture)
    given = given.to(device=device, dtype=getattr(torch, case.dtype))
    kind = device.split(":")[0]
    with torch.no_grad(), PREPARED[way.kind](vae, case, way, given) as prepared:
        if prepared.eager:
            prepared.run(small(case, given))  # libraries are loaded, thread pools are there
        else:
            prepared.notes["compile_seconds"] = clocked(prepared.run, given, kind)[1]
        prepared.limit()
        made, found = timed(prepared.run, given, kind)
        if prepared.eager:
            found["peak_bytes"] = peak_bytes(prepared.run, given)
    found |= {"predicted_bytes": prepared.predicted_bytes, "result_bytes": size(made), **prepared.notes}
    return found | vae_compare.kept_or_compared(case, way, folder, made.cpu(), prepared.edges)


def truth(case: Case, folder: Path, device: str = "cpu", picture: Path | None = None) -> dict[str, Any]:
    """Computes the float32 result that 16 bit is held against, and leaves it in the folder."""
    import torch

    case = replace(case, dtype="float32")
    vae, given = vae_models.build(case, device), vae_models.given(case, picture).to(device)
    with torch.no_grad(), PREPARED[case.truth](vae, case, way_of(case.truth), given) as prepared:
        vae_compare.keep(vae_compare.truth_file(case, folder), prepared.run(given).cpu())
    return {}


def small(case: Case, given: Any) -> Any:
    """A corner of it, and of a batch one."""
    side = SMALL * (1 if case.what == "decode" else vae_models.VAES[case.vae].factor)
    return given[:1, ..., :side, :side].contiguous()


# -- measured ----------------------------------------------------------------------------------------------------------


def clocked(run: Run, given: Any, kind: str) -> tuple[Any, float, float]:
    """(result, seconds, seconds of all processor cores)."""
    import torch

    started, spent = time.perf_counter(), time.process_time()
    made = run(given)
    if kind == "cuda":
        torch.cuda.synchronize()
    return made, time.perf_counter() - started, time.process_time() - spent


def calls_after(seconds: float) -> int:
    """How many calls are timed, after a first one of so many seconds that is not."""
    return next((calls for limit, calls in CALLS if seconds <= limit), 0)


def timed(run: Run, given: Any, kind: str) -> tuple[Any, dict[str, Any]]:
    """(result, seconds, ...). Memory is that of the first call, which is not among the timed ones unless it is long."""
    memory = PeakMemory(kind)
    made, seconds, spent = clocked(run, given, kind)
    grown = memory.growth()
    samples = [clocked(run, given, kind)[1:] for _ in range(calls_after(seconds))] or [(seconds, spent)]
    seconds, spent = (statistics.median(column) for column in zip(*samples, strict=True))
    return made, {
        "seconds": seconds,
        "cpu_seconds": spent,
        "samples": [sample[0] for sample in samples],
        "grown_bytes": grown,
    }


def size(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


def peak_bytes(run: Run, given: Any, *, taken: bool = False) -> int:
    """Of tensors alive at the worst moment, each storage once; inputs and weights left out."""
    trace = record(lambda: run(given), [given])
    beside = trace.workspace_bytes["cpu" if given.device.type == "cpu" else "cuda"] if taken else 0
    return trace.peak_bytes + beside - size(given)


# -- predicted ---------------------------------------------------------------------------------------------------------


def traced_bytes(run: Callable[[Any, Any], Any], vae: Any, given: Any, *, taken: bool = False) -> int:
    """`peak_bytes` of run(vae, given), on tensors that have a shape and no numbers. taken: with what kernels take for
    themselves, by which a process grows."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()

    def like(tensor: Any) -> Any:
        with mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)

    class Around(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, given: Any) -> Any:
            return run(self.vae, given)

    held = {**dict(vae.named_parameters()), **dict(vae.named_buffers())}
    weights, shape = {f"vae.{name}": like(tensor) for name, tensor in held.items()}, like(given)
    around = Around()
    with mode, real_strides(given.device.type), torch.no_grad():
        return peak_bytes(lambda given: torch.func.functional_call(around, weights, (given,)), shape, taken=taken)


# -- ways --------------------------------------------------------------------------------------------------------------


def native(what: str) -> Callable[[Any, Any], Any]:
    """The VAE's own method: the picture, or the mode of the latents."""
    if what == "decode":
        return lambda vae, given: vae.decode(given, return_dict=False)[0]
    return lambda vae, given: vae.encode(given, return_dict=False)[0].mode()


@contextmanager
def whole(vae: Any, case: Case, way: Way, given: Any) -> Iterator[Prepared]:
    run = native(case.what)
    yield Prepared(lambda given: run(vae, given), traced_bytes(run, vae, given))


@contextmanager
def compiled(vae: Any, case: Case, way: Way, given: Any) -> Iterator[Prepared]:
    (vae.decoder if case.what == "decode" else vae.encoder).compile()
    run = native(case.what)
    yield Prepared(lambda given: run(vae, given), eager=False)


@contextmanager
def exact(vae: Any, case: Case, way: Way, given: Any) -> Iterator[Prepared]:
    run = native(case.what)
    whole_bytes = traced_bytes(run, vae, given, taken=True) if way.share is not None else 0
    with exactly(vae, case.what, sampled=way.kind == "fast") as made:
        item = given if made.together else given[:1]
        started = time.perf_counter()
        plans = made.plans(item)
        beside = beside_bytes(case, given)
        prepared = Prepared(lambda given: run(vae, given), notes={"planning_seconds": time.perf_counter() - started})
        budget = way.budget_bytes if way.share is None else int(way.share * whole_bytes) - beside
        made.budget_bytes = budget
        chosen = made.plan(item)
        made.budget_bytes = None
        prepared.limit = lambda: setattr(made, "budget_bytes", budget)
        prepared.predicted_bytes = chosen.peak_bytes + beside
        strips = next(task.strips for task in chosen.tasks if task.node is chosen.rows.graph.output)
        prepared.edges = {-2: [start for start, _ in strips[1:]]}
        prepared.notes |= {"plans": len(plans), "stored": len(chosen.stored), "strip_rows": strips[0][1] - strips[0][0]}
        yield prepared


def beside_bytes(case: Case, given: Any) -> int:
    """Of the pictures of a batch that are finished while one is computed: all of them have their place then."""
    if case.batch == 1:
        return 0
    if case.what == "decode":
        return case.batch * 3 * case.height * case.width * int(given.element_size())
    kind = vae_models.VAES[case.vae]
    return case.batch * 2 * kind.channels * (case.height * case.width // kind.factor**2) * int(given.element_size())


@contextmanager
def tiling(vae: Any, case: Case, way: Way, given: Any) -> Iterator[Prepared]:
    """diffusers' enable_tiling."""
    run = native(case.what)
    notes: dict[str, Any] = {}
    with swapped_tile(vae, case, *as_exact(vae, case, way, given, notes)) as stride:
        factor = 1 if case.what == "decode" else vae_models.VAES[case.vae].factor
        sides = (case.height // factor, case.width // factor)
        stride = stride // factor
        edges = {dim: list(range(stride, side, stride)) for dim, side in zip((-2, -1), sides, strict=True)}
        yield Prepared(lambda given: run(vae, given), traced_bytes(run, vae, given), edges, notes)


def as_exact(vae: Any, case: Case, way: Way, given: Any, notes: dict[str, Any]) -> tuple[int, ...]:
    """(side of a tile in latents,) whose memory is that of the exact plan; () for the default."""
    if way.share is None:
        return ()
    whole_bytes = traced_bytes(native(case.what), vae, given)
    with exact(vae, case, Way("exact", way.share), given) as compared:
        limit = compared.predicted_bytes or 0
    notes["limit_bytes"] = limit
    factor = vae_models.VAES[case.vae].factor
    side = (case.height // factor, case.width // factor)
    finished = case.batch * 3 * case.height * case.width * given.element_size() if case.what == "decode" else 0
    return (best_tile(side, whole_bytes, finished, limit),)


def best_tile(sides: tuple[int, int], whole_bytes: int, result_bytes: int, limit: int) -> int:
    """Of diffusers' square tiles within the limit the one with which the fewest latents are computed.

    What a tile takes goes with its area; all finished tiles are kept beside it. Sides are multiples of 4, as diffusers'
    tiles of other sides do not meet.
    """
    area = sides[0] * sides[1]
    fitting = [
        (computed, -tile)
        for tile in range(8, max(sides) + 1, 4)
        if tile * tile / area * whole_bytes + (computed := computed_latents(sides, tile)) / area * result_bytes <= limit
    ]
    return -min(fitting)[1] if fitting else 8


def computed_latents(sides: tuple[int, int], tile: int) -> int:
    """By all tiles of diffusers' tiling together; those at the end of a line are smaller."""
    step = int(tile * (1 - OVERLAP))
    return math.prod(sum(min(tile, side - start) for start in range(0, side, step)) for side in sides)


@contextmanager
def swapped_tile(vae: Any, case: Case, tile: int | None = None) -> Iterator[int]:
    """Gives the pixels from one tile's beginning to the next one's."""
    vae.enable_tiling()
    if case.frames > 1:
        yield vae.tile_sample_stride_height
    else:
        if tile is not None:
            vae.tile_latent_min_size = tile
            vae.tile_sample_min_size = tile * vae_models.VAES[case.vae].factor
        yield vae.tile_sample_min_size - int(vae.tile_sample_min_size * vae.tile_overlap_factor)
    vae.disable_tiling()


@contextmanager
def in_tiles(vae: Any, case: Case, way: Way, given: Any) -> Iterator[Prepared]:
    """`blending`, with as many tiles as diffusers has by default, and as much overlap."""
    run, factor = native(case.what), vae_models.VAES[case.vae].factor
    with blending(vae, vae.config.sample_size, OVERLAP, case.what) as tiled:
        grid = tiled.grid(given)
        starts = {-2: tiles.shares(grid.rows)[1:], -1: tiles.shares(grid.columns)[1:]}
        times = factor if case.what == "decode" else 1
        edges = {dim: [share.reach.start * times for share in line] for dim, line in starts.items()}
        notes = {"tile": list(grid.tile), "tiles": len(grid)}
        yield Prepared(lambda given: run(vae, given), tiled.peak_bytes(given, grid), edges, notes)


PREPARED = {"whole": whole, "tiling": tiling, "exact": exact, "fast": exact, "blended": in_tiles, "compiled": compiled}
