"""A module that is run in strips, whoever calls it: recorded, planned and run for each shape of its input."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from safelight.errors import OutOfMemory, UsageError
from safelight.vae import attention, fp16, plan, sampling, search
from safelight.vae.exact import Run, Sink
from safelight.vae.fold import folded
from safelight.vae.graph import CannotWalk, Graph, record
from safelight.vae.passes import Rows, rows_of
from safelight.vae.plan import Schedule, mib
from safelight.vae.stats import Statistics

PIECE = 64  # latents or pixels a side, on which is looked for what overflows


@dataclass
class Exact:
    """A module that is run in strips, a picture at a time. call: what runs it on one tensor, itself by default.

    budget_bytes: of all that is computed beside weights, input and what earlier pictures of the batch have made; None
    takes the fastest plan. together: the pictures of a batch are frames of one video, and depend on each other.
    sampled: an approximation, statistics of norms after the first upsampling are those of crops (sampling.py).
    statistics: for each norm, not those of what is given but these, of `statistics_of`; to be set before any plan.
    """

    module: Any
    call: Callable[[Any], Any] | None = None
    budget_bytes: int | None = None
    together: bool = False
    sampled: bool = False
    statistics: Sequence[Statistics] | None = None
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
                known = dict(zip(chosen.rows.all_normed, self.statistics or (), strict=False))
                return Run(chosen, self._weights(), sink, statistics=known).of(item, *beside.tensors)
            except torch.OutOfMemoryError as error:
                # a step down, and not the same again
                below = [made for made in self.plans(item, beside) if made.peak_bytes < chosen.peak_bytes]
                if not below or sink is not None:
                    message = f"the device has less memory than the {mib(chosen.peak_bytes)} of this decode"
                    raise OutOfMemory(message) from error
                chosen = below[-1]

    def _graphs(self, items: Sequence[Any], beside: "Beside") -> list[Graph]:
        """Of inputs of several shapes; in float16 with values scaled that would overflow in a middle piece of the
        first. On a CPU with attention as it is fast there."""
        graphs, item = [self._recorded(item, beside) for item in items], items[0]
        if item.device.type == "cpu":
            graphs = [attention.in_chunks(graph) for graph in graphs]
        if str(item.dtype) != "torch.float16" or is_fake(item):
            return graphs
        piece = item
        for dim in (-2, -1):
            side = min(item.shape[dim], PIECE)
            piece = piece.narrow(dim, (item.shape[dim] - side) // 2, side)
        small = self._recorded(piece, beside)
        met = fp16.largest(small, self._weights(), piece, *beside.tensors)
        powers = fp16.needed_powers(small, met)
        return [fp16.rescaled(graph, powers) for graph in graphs]

    def _recorded(self, item: Any, beside: "Beside") -> Graph:
        call = self.call or self.module
        return record(self.module, item, *beside.tensors, call=lambda x, *more: beside.call(call, x, more))

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
            self._plans[key] = self._made(item, beside, strip)
        return self._plans[key]

    def _made(self, item: Any, beside: "Beside", strip_bytes: int) -> list[Schedule]:
        if not self.sampled:
            (graph,) = self._graphs([item], beside)
            self.whole_work = plan.whole_work(graph)
            return _plans(lambda shortcuts: [self._rows(folded(graph, shortcuts=shortcuts))], strip_bytes)
        sampling.check_pictures(item)
        cut = sampling.crops(*item.shape[-2:])
        graph, small = self._graphs([item, item[:, :, : cut.shape[0], : cut.shape[1]]], beside)
        self.whole_work = plan.whole_work(graph)
        return _plans(sampling.sampled(graph, small, cut, strip_bytes), strip_bytes)

    def _rows(self, graph: Graph) -> Rows:
        rows = rows_of(graph)
        return rows if self.statistics is None else replace(rows, given=frozenset(rows.all_normed))

    def statistics_of(self, pieces: Any, chosen: Schedule) -> list[Statistics]:
        """Of each norm, in the order of computing. pieces: of a picture, as one: (1, channels, height, width).

        chosen: for their shape, of `within` or `plans`.
        """
        import torch

        with torch.no_grad():
            run = Run(chosen, self._weights())
            run.of(pieces)
        return [run.statistics[node] for node in chosen.rows.all_normed]

    def within(self, item: Any, most_bytes: int) -> Schedule:
        """The fastest plan of so many bytes, else the smallest."""
        plans = self.plans(item)
        return fitting([made for made in plans if made.peak_bytes <= most_bytes] or plans[:1], None)


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


def is_fake(tensor: Any) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def _told(value: Any) -> Any:
    import torch

    return (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else repr(value)


def _plans(rows_with: Callable[[bool], Sequence[Rows]], strip_bytes: int) -> list[Schedule]:
    """rows_with: of the folded graph, with or without shortcuts folded in."""
    found = []
    for shortcuts in (True, False):
        for rows in rows_with(shortcuts):
            check_rows(rows)
            found += search.plans(rows, strip_bytes)
    best = search.frontier(found)
    size = strip_bytes
    while (size := size // 2) >= plan.LEAST_STRIP_BYTES:  # the smallest, with lower strips
        best.append(search.with_strips(best[0], size))
    return search.frontier(best)


def check_rows(rows: Rows) -> None:
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
            f"{mib(budget_bytes or 0)} is too little for this picture: the least is {mib(least.peak_bytes)}"
        )
    return min(fits, key=lambda made: (made.work, made.peak_bytes))
