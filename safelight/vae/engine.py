"""Pictures to latents and back in as much memory as there is: whole, exact in strips, or in blended tiles.

Comes in: a VAE of diffusers and a tensor. Goes out: what the VAE itself would have made, or its rows. The exact way is
the usual one, as it is the fastest too; tiles are blended only where it is asked for, or where the module cannot be
walked and an approximation is allowed.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from safelight.errors import OutOfMemory, UsageError
from safelight.vae import plan, tiles
from safelight.vae.blended import blended
from safelight.vae.exact import Run, Sink
from safelight.vae.fold import folded
from safelight.vae.graph import CannotWalk, Graph, record
from safelight.vae.plan import Schedule

HOW = ("auto", "whole", "exact", "blended")
LEAST_SIDE = 4  # latents: below, strips have nothing to win and rows cannot be told from other dimensions


@dataclass
class Exact:
    """A module that is run in strips, a picture at a time. call: what runs it on one tensor, itself by default.

    budget_bytes: of all that is computed beside weights, input and what earlier pictures of the batch have made; None
    takes the fastest plan. together: the pictures of a batch are frames of one video, and depend on each other.
    """

    module: Any
    call: Callable[[Any], Any] | None = None
    budget_bytes: int | None = None
    together: bool = False
    share: float = 1.0  # of the fastest plan's bytes that a plan may take; 0 is the smallest
    strip_bytes: int | None = None
    whole_work: float = 0.0  # multiply-adds of the module itself, known with its plans
    used: list[Schedule] = field(default_factory=list)
    _plans: dict[Any, list[Schedule]] = field(default_factory=dict)

    def __call__(self, given: Any, *args: Any, sink: Sink | None = None, **kwargs: Any) -> Any:
        """given: (batch, channels, ..., height, width); args, kwargs: what else the module takes.

        Raises CannotWalk, and OutOfMemory for too small a budget.
        """
        import torch

        if self.module.training:
            raise UsageError("the VAE is in training mode: the exact way is for inference, call vae.eval()")
        if torch.is_grad_enabled() and given.requires_grad:
            raise UsageError("a gradient is asked for, and the exact way has none: decode within torch.no_grad()")
        if elsewhere := {str(w.device) for w in self._weights().values() if w.device != given.device}:
            raise CannotWalk(f"the VAE's weights are on {', '.join(sorted(elsewhere))} and not on {given.device}")
        beside = Beside(args, kwargs)
        items = [given] if self.together or beside.tensors else given.split(1)
        if sink is not None and len(items) > 1:
            raise UsageError(f"rows of {len(items)} pictures cannot be written at once: decode them one by one")
        with torch.no_grad():
            made = self._item(items[0], beside, sink)
            if len(items) == 1:
                return made
            result = made.new_empty((len(items), *made.shape[1:]))
            for number, item in enumerate(items):
                result[number : number + 1] = made if number == 0 else self._item(item, beside, None)
            return result

    def _item(self, item: Any, beside: "Beside", sink: Sink | None) -> Any:
        import torch

        chosen = self.plan(item, beside)
        while True:
            self.used[:] = [chosen]
            try:
                return Run(chosen, self._weights(), sink).of(item, *beside.tensors)
            except torch.OutOfMemoryError as error:
                # a step down, and not the same again
                below = [made for made in self.plans(item, beside) if made.peak_bytes < chosen.peak_bytes]
                if not below or sink is not None:
                    message = f"the device has less memory than the {_mib(chosen.peak_bytes)} of this decode"
                    raise OutOfMemory(message) from error
                chosen = below[-1]

    def _weights(self) -> dict[str, Any]:
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    def plan(self, item: Any, beside: "Beside | None" = None) -> Schedule:
        """The fastest within the budget. Raises OutOfMemory with the least that would do."""
        plans = self.plans(item, beside)
        if self.budget_bytes is None and self.share < 1:
            most = self.share * fitting(plans, None).peak_bytes
            return ([made for made in plans if made.peak_bytes <= most] or plans[:1])[-1]
        return fitting(plans, self.budget_bytes)

    def plans(self, item: Any, beside: "Beside | None" = None) -> list[Schedule]:
        """By rising bytes. item: of one picture, fake or real."""
        beside = beside or Beside((), {})
        dtypes = frozenset(tensor.dtype for tensor in self._weights().values())
        key = tuple(item.shape), item.dtype, item.device.type, dtypes, beside.key
        if key not in self._plans:
            strip = self.strip_bytes or plan.STRIP_BYTES.get(item.device.type, plan.STRIP_BYTES_ELSEWHERE)
            call = self.call or self.module
            graph = record(self.module, item, *beside.tensors, call=lambda x, *more: beside.call(call, x, more))
            self._plans[key] = _plans(graph, strip)
            self.whole_work = plan.whole_work(graph)
        return self._plans[key]


@dataclass(frozen=True, slots=True)
class Beside:
    """What a module takes beside the picture; tensors among it are inputs of the graph."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def tensors(self) -> list[Any]:
        import torch

        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, torch.Tensor)]

    @property
    def key(self) -> Any:
        return tuple((name, _told(value)) for name, value in (*enumerate(self.args), *self.kwargs.items()))

    def call(self, run: Callable[..., Any], given: Any, tensors: Sequence[Any]) -> Any:
        """With other tensors in the place of its own."""
        import torch

        left = iter(tensors)

        def filled(value: Any) -> Any:
            return next(left) if isinstance(value, torch.Tensor) else value

        args = [filled(value) for value in self.args]
        return run(given, *args, **{name: filled(value) for name, value in self.kwargs.items()})


def _told(value: Any) -> Any:
    import torch

    return (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else repr(value)


def _plans(graph: Graph, strip_bytes: int) -> list[Schedule]:
    found = []
    for shortcuts in (True, False):
        rows = plan.rows_of(folded(graph, shortcuts=shortcuts))
        check_rows(rows)
        found += plan.plans(rows, strip_bytes)
    best = plan.frontier(found)
    size = strip_bytes
    while (size := size // 2) >= plan.LEAST_STRIP_BYTES:  # the smallest, with lower strips
        best.append(plan.with_strips(best[0], size))
    return plan.frontier(best)


def check_rows(rows: plan.Rows) -> None:
    """Raises CannotWalk where an operator that needs all rows at once works on more than a few numbers a latent.

    Attention at latent size is as it is in the module itself; at the picture's size it would take what is to be saved.
    """
    graph = rows.graph
    small = min(math.prod(node.shape[-2:]) for node in (*graph.inputs, graph.output))
    for node in graph.nodes:
        if (
            rows.row[node] is None
            and node not in graph.inputs
            and node.shape
            and math.prod(node.shape[1:]) > MOST_AT_ONCE * small
        ):
            raise CannotWalk(f"{node.op} of {'x'.join(map(str, node.shape))} numbers needs all rows at once")


MOST_AT_ONCE = 8000  # numbers for each latent pixel: a few times the widest layers of any VAE


def fitting(plans: Sequence[Schedule], budget_bytes: int | None) -> Schedule:
    fits = [made for made in plans if budget_bytes is None or made.peak_bytes <= budget_bytes]
    if not fits:
        least = plans[0]
        raise OutOfMemory(
            f"{_mib(budget_bytes or 0)} is too little for this picture: the least is {_mib(least.peak_bytes)}"
        )
    return min(fits, key=lambda made: (made.work, made.peak_bytes))


def _mib(nbytes: int) -> str:
    return f"{math.ceil(nbytes / 2**20)} MiB"


# -- a VAE of diffusers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seam:
    """Where a VAE class is cut. owner, method: what is replaced, as attributes of the VAE; takes one tensor first.

    call: gives, for a VAE, what runs `module` on one tensor, where that is not the module's own forward.
    together: a batch is the frames of one video.
    """

    module: str
    method: str
    call: Callable[[Any], Callable[[Any], Any]] | None = None
    together: bool = False


def _own(name: str) -> Callable[[Any], Callable[[Any], Any]]:
    """The VAE's own method on the whole video, as its class has it."""
    return lambda vae: lambda given: _plain(getattr(type(vae), name)(vae, given))


def _plain(made: Any) -> Any:
    return (
        made.sample
        if hasattr(made, "sample") and not callable(made.sample)
        else made[0]
        if isinstance(made, tuple)
        else made
    )


DECODER, ENCODER = Seam("decoder", "forward"), Seam("encoder", "forward")
# video VAEs that call their decoder frame by frame, with what it remembers
STREAMED = (
    "AutoencoderKLWan",
    "AutoencoderKLQwenImage",
    "AutoencoderKLCogVideoX",
    "AutoencoderKLMochi",
    "AutoencoderKLMagvit",
)
SEAMS: Mapping[str, Mapping[str, Seam]] = {
    "AutoencoderKLTemporalDecoder": {"decode": Seam("decoder", "forward", together=True)},
    **{
        name: {"decode": Seam("", "_decode", _own("_decode")), "encode": Seam("", "_encode", _own("_encode"))}
        for name in STREAMED
    },
}


def seam(vae: Any, what: str) -> Seam:
    """what: "decode" or "encode"."""
    return SEAMS.get(type(vae).__name__, {}).get(what) or {"decode": DECODER, "encode": ENCODER}[what]


def exact_of(vae: Any, what: str, budget_bytes: int | None = None) -> Exact:
    """Raises CannotWalk for a VAE without such a part."""
    cut = seam(vae, what)
    module = getattr(vae, cut.module, None) if cut.module else vae
    if module is None:
        raise CannotWalk(f"{type(vae).__name__} has no {cut.module}")
    # the forward that is there now, as it may be replaced by what is made here
    return Exact(module, module.forward if cut.call is None else cut.call(vae), budget_bytes, cut.together)


@contextmanager
def exactly(
    vae: Any, what: str = "decode", budget_bytes: int | None = None, sink: Sink | None = None
) -> Iterator[Exact]:
    """While this is open, the VAE decodes (or encodes) in strips, whoever calls it."""
    cut = seam(vae, what)
    exact = exact_of(vae, what, budget_bytes)
    owner = getattr(vae, cut.module) if cut.module else vae

    def instead(given: Any, *args: Any, **kwargs: Any) -> Any:
        from diffusers.models.autoencoders.vae import DecoderOutput

        made = exact(given, *args, sink=sink, **kwargs)
        return DecoderOutput(sample=made) if cut.method == "_decode" else made

    with _replaced(owner, cut.method, instead), _untiled(vae):
        yield exact


@contextmanager
def _replaced(owner: Any, method: str, instead: Any) -> Iterator[None]:
    """A method of one object, not of its class."""
    before = vars(owner).get(method)
    setattr(owner, method, instead)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, method)
        else:
            setattr(owner, method, before)


@contextmanager
def _untiled(vae: Any) -> Iterator[None]:
    """diffusers' own tiles would each be decoded exactly, and blended."""
    tiled = getattr(vae, "use_tiling", False)
    if tiled:
        vae.use_tiling = False
    try:
        yield
    finally:
        if tiled:
            vae.use_tiling = True


def decode(
    vae: Any,
    latents: Any,
    *,
    budget_bytes: int | None = None,
    how: str = "auto",
    sink: Sink | None = None,
) -> Any:
    """latents: (batch, channels, [frames,] height, width), unscaled, as `vae.decode` takes them.

    how: of HOW; "auto" is exact, and blended where the VAE cannot be walked. sink: takes (first row, rows) in the
    picture's order instead of the result, for pictures that do not fit in memory. budget_bytes: beside weights and
    latents. Returns (batch, 3, [frames,] height, width), about -1 to 1, in the VAE's dtype; None with a sink.
    Raises OutOfMemory for too small a budget, saying what the least is, CannotWalk for how="exact".
    """
    return _coded(vae, "decode", latents, budget_bytes, how, sink)


def encode(vae: Any, pictures: Any, *, budget_bytes: int | None = None, how: str = "auto") -> Any:
    """pictures: (batch, 3, [frames,] height, width), -1 to 1. Returns latents, the mode of the distribution, unscaled."""
    return _coded(vae, "encode", pictures, budget_bytes, how, None)


def _coded(vae: Any, what: str, given: Any, budget_bytes: int | None, how: str, sink: Sink | None) -> Any:
    if how not in HOW:
        raise UsageError(f"{how!r} is no way to {what}: {', '.join(HOW)} are there")
    import torch

    with torch.no_grad():
        if how == "whole":
            return _handed(_native(vae, what, given), sink)
        if how == "blended":
            return _blended(vae, what, given, sink)
        try:
            with exactly(vae, what, budget_bytes, sink):
                made = _native(vae, what, given)
        except CannotWalk:
            if how == "exact" or type(vae).__name__ not in BLENDED:
                raise
            return _blended(vae, what, given, sink)
        return None if sink is not None else made


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


@contextmanager
def blending(vae: Any, tile_px: int = TILE_PX, overlap: float = OVERLAP, what: str = "decode") -> Iterator[list[int]]:
    """While this is open, the VAE decodes (or encodes) in blended tiles, whoever calls it; gives how many each time.

    Raises UsageError.
    """
    cut = seam(vae, what)
    if type(vae).__name__ not in BLENDED:
        raise UsageError(f"{type(vae).__name__} cannot be cut into tiles by itself: {', '.join(BLENDED)} can")
    owner = getattr(vae, cut.module)
    run = getattr(owner, cut.method)

    counts: list[int] = []

    def instead(given: Any, *_: Any, **__: Any) -> Any:
        made, count = _in_tiles(vae, run, given, what, tile_px, overlap)
        counts.append(count)
        return made

    with _replaced(owner, cut.method, instead), _untiled(vae):
        yield counts


def _in_tiles(
    vae: Any, run: Callable[[Any], Any], given: Any, what: str, tile_px: int, overlap: float
) -> tuple[Any, int]:
    """The result, and of how many tiles."""
    factor = scale_of(vae)
    tile = max(1, tile_px // factor)
    small = [side if what == "decode" else side // factor for side in given.shape[-2:]]
    if max(small) <= tile:
        return run(given), 1
    grid = tiles.grid(small[0], small[1], tile, round(overlap * tile), even=True)
    scale = Fraction(factor) if what == "decode" else Fraction(1, factor)
    return blended(run, given, grid, scale=scale).to(given.dtype), len(grid)


def scale_of(vae: Any) -> int:
    """Picture pixels per latent pixel of a VAE in BLENDED."""
    config = vae.config
    widths = config.get("block_out_channels") or config.get("down_block_out_channels")
    return int(2 ** (len(widths or config["decoder_block_out_channels"]) - 1))


def _blended(vae: Any, what: str, given: Any, sink: Sink | None) -> Any:
    with blending(vae, what=what):
        return _handed(_native(vae, what, given), sink)


def _native(vae: Any, what: str, given: Any) -> Any:
    import torch

    if what == "decode":
        return vae.decode(given, return_dict=False)[0]
    made = vae.encode(given, return_dict=False)[0]
    return made if isinstance(made, torch.Tensor) else made.mode()


def _handed(made: Any, sink: Sink | None) -> Any:
    if sink is None:
        return made
    sink(0, made)
    return None
