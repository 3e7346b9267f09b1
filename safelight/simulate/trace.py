"""What a part does when it runs once: operators, FLOP, bytes moved, and the bytes that are alive, moment by moment.

Comes in: a function that computes with fake tensors (shapes without numbers), or with real ones. Goes out: a frozen
Trace. Knows no device: cost.py turns a Trace into seconds.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, ValuesView
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from safelight.simulate.repeats import counted_again
from safelight.simulate.workspace import compiled, workspace

# overloads of aten by kind (rates.KINDS); what is not named here and makes a tensor counts as pointwise
MATMUL = ("mm", "addmm", "bmm", "baddbmm", "addmv", "mv", "dot", "linear", "_int_mm", "_scaled_mm")
CONVOLUTION = ("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution", "cudnn_convolution")
NORM = (
    "native_group_norm",
    "native_layer_norm",
    "_fused_rms_norm",
    "native_batch_norm",
    "linalg_vector_norm",
    "mean",
    "var_mean",
    "var",
    "sum",
)
ACTIVATION = (
    "silu",
    "silu_",
    "gelu",
    "sigmoid",
    "tanh",
    "exp",
    "relu",
    "relu_",
    "_softmax",
    "_safe_softmax",
    "cos",
    "sin",
    "pow",
    "rsqrt",
    "softplus",
    "log",
)
COPY = (
    "cat",
    "stack",
    "clone",
    "copy_",
    "_to_copy",
    "contiguous",
    "repeat",
    "index",
    "index_select",
    "embedding",
    "constant_pad_nd",
    "reflection_pad2d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
    "masked_fill",
    "roll",
    "fill_",
    "zeros",
    "ones",
)
KIND = {
    name: kind
    for kind, names in {
        "matmul": MATMUL,
        "convolution": CONVOLUTION,
        "norm": NORM,
        "activation": ACTIVATION,
        "copy": COPY,
    }.items()
    for name in names
}
ATTENTION = "_scaled_dot_product"  # the beginning of the names of all its kernels


@dataclass(frozen=True, slots=True)
class Work:
    """One operator's. kind: of rates.KINDS. flops: 2 x multiply-adds, 0 for what only moves. moved: bytes read and
    written, each tensor once. weights: bytes of a convolution's weights, which a CPU's kernels reorder at each call."""

    kind: str
    dtype: str
    flops: int
    moved: int
    weights: int = 0


@dataclass(frozen=True, slots=True)
class Trace:
    """works: what was done, and how often. calls: operators called, also those that only make views.

    peak_bytes: of tensors made and alive at the worst moment, and of the inputs; each storage once, no weights.
    workspace_bytes: how much higher the worst moment is with what kernels take for themselves, and on a CPU by those
    that are compiled and stay; by kind of device.
    """

    works: Mapping[Work, int]
    calls: int
    peak_bytes: int
    workspace_bytes: Mapping[str, int]

    @property
    def flops(self) -> int:
        return sum(work.flops * count for work, count in self.works.items())

    @property
    def moved(self) -> int:
        return sum(work.moved * count for work, count in self.works.items())

    @property
    def launches(self) -> int:
        return sum(self.works.values())

    def times(self, times: int) -> "Trace":
        """So many runs of it, one after the other."""
        return replace(
            self, works={work: count * times for work, count in self.works.items()}, calls=self.calls * times
        )


NOTHING = Trace({}, 0, 0, {})


def record(run: Callable[[], Any], inputs: Iterable[Any] = (), part: Any = None) -> Trace:
    """Calls `run` once. inputs: tensors that are there before, and alive throughout. part: a module on fake tensors
    whose blocks need not run where one like them has."""
    seen = Ledger()
    for tensor in inputs:
        seen.see(tensor)
    with _noting(seen), nullcontext() if part is None else counted_again(part, seen):
        run()
    return seen.closed()


@dataclass(slots=True)
class Span:
    """A stretch of a run. peak, above, left: bytes over those that were alive when it began, at its worst moment and
    at its end."""

    works: Mapping[Work, int] = field(default_factory=dict)
    calls: int = 0
    peak: int = 0
    above: Mapping[str, int] = field(default_factory=dict)
    left: int = 0


@dataclass(eq=False)
class Ledger:
    """Storages are counted once each, from the operator that makes them to the moment nobody holds them."""

    works: Counter[Work] = field(default_factory=Counter)
    calls: int = 0
    now: int = 0
    peak: int = 0
    above: dict[str, int] = field(default_factory=lambda: {"cpu": 0, "cuda": 0})  # peaks, workspaces included
    kernels: dict[Any, int] = field(default_factory=dict)  # bytes of each that a CPU compiles
    known: dict[int, int] = field(default_factory=dict)
    watches: list[Any] = field(default_factory=list)
    heeding: bool = True

    def see(self, tensor: Any, *, was_there: bool = False) -> None:
        """was_there: before the run, its bytes are not the run's. Watched all the same: once it is gone, another
        storage may lie at its address."""
        storage = tensor.untyped_storage()
        if (key := storage._cdata) in self.known:
            return
        self.known[key] = nbytes = 0 if was_there else storage.nbytes()
        self.now += nbytes
        self.peak = max(self.peak, self.now)
        self.watches.append(weakref.finalize(storage, self.gone, key))

    def gone(self, key: int) -> None:
        self.now -= self.known.pop(key, 0)

    @contextmanager
    def span(self) -> Iterator[Span]:
        """What is done while this is open; filled in at its end."""
        before, start = replace(self), self.now
        self.works, self.calls, self.peak, self.above = Counter(), 0, start, dict.fromkeys(self.above, start)
        span = Span()
        yield span
        span.works, span.calls, span.left = dict(self.works), self.calls, self.now - start
        span.peak = self.peak - start
        span.above = {kind: most - start for kind, most in self.above.items()}
        self.works, self.calls, self.peak, self.above = before.works, before.calls, before.peak, before.above
        self.add(span, start)

    def add(self, span: Span, start: int) -> None:
        """Counts it. start: bytes that were alive when it began."""
        self.works.update(span.works)
        self.calls += span.calls
        self.peak = max(self.peak, start + span.peak)
        self.above = {kind: max(most, start + span.above[kind]) for kind, most in self.above.items()}

    @contextmanager
    def unheeded(self) -> Iterator[None]:
        """What is called while this is open is not noted."""
        self.heeding = False
        try:
            yield
        finally:
            self.heeding = True

    def call(self, function: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        if not self.heeding:
            return function(*args, **kwargs)
        given = tensors((args, kwargs))
        for tensor in given:  # weights, and whatever else was there before
            self.see(tensor, was_there=True)
        before = self.now
        made = function(*args, **kwargs)
        self.calls += 1
        fresh = tensors(made)
        works = bool(fresh) and is_work(function, fresh, self.known)
        for tensor in fresh:
            self.see(tensor)
        if works:
            self.works[_work(function, args, kwargs, made, given, fresh)] += 1
            self.beside(function.overloadpacket.__name__, given, fresh, before)
        return made

    def beside(self, name: str, given: list[Any], fresh: list[Any], before: int) -> None:
        """before: bytes that were alive when the operator began."""
        for kind, most in self.above.items():
            extra = workspace(kind, name, given, fresh)
            self.above[kind] = max(most, before + extra.most(self.now - before))
        if (kernel := compiled(name, given)) is not None:
            self.kernels.setdefault(*kernel)

    def closed(self) -> Trace:
        for watch in self.watches:
            watch.detach()
        workspaces = {kind: max(0, most - self.peak) for kind, most in self.above.items()}
        workspaces["cpu"] += sum(self.kernels.values())
        return Trace(dict(self.works), self.calls, self.peak, workspaces)


def _noting(seen: Ledger) -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return seen.call(function, args, kwargs or {})

    return Noting()


def is_work(function: Any, made: list[Any], known: Container[int]) -> bool:
    """Not a view: it makes new storage, or writes into one of its arguments."""
    if any(tensor.untyped_storage()._cdata not in known for tensor in made):
        return True
    return bool(function._schema.is_mutable)


def _work(function: Any, args: Any, kwargs: Any, made: Any, given: list[Any], fresh: list[Any]) -> Work:
    name = function.overloadpacket.__name__
    kind = "attention" if name.startswith(ATTENTION) else KIND.get(name, "pointwise")
    floats = [tensor for tensor in (*fresh, *given) if tensor.is_floating_point()]
    dtype = str((floats or fresh)[0].dtype).removeprefix("torch.")
    weights = _bytes(args[1]) if kind == "convolution" else 0
    return Work(kind, dtype, _flops(function, args, kwargs, made), sum(map(_bytes, (*given, *fresh))), weights)


def _flops(function: Any, args: Any, kwargs: Any, made: Any) -> int:
    """torch's own formulas: matrix products, convolutions, attention; 2 x multiply-adds."""
    from torch.utils.flop_counter import flop_registry

    if (formula := flop_registry.get(function.overloadpacket)) is not None:
        return int(formula(*args, **kwargs, out_val=made))
    if function.overloadpacket.__name__.startswith(ATTENTION):  # the CPU's kernel has no formula there
        query, key, value = args[:3]  # (batch, heads, tokens, channels)
        return int(2 * query.shape[:-1].numel() * key.shape[-2] * (key.shape[-1] + value.shape[-1]))
    return 0


def _bytes(tensor: Any) -> int:
    """What is read or written of it: an expanded one is small, and so is a slice of a large one."""
    return min(int(tensor.numel() * tensor.element_size()), int(tensor.untyped_storage().nbytes()))


def tensors(value: Any) -> list[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    if isinstance(value, list | tuple | ValuesView):
        return [tensor for item in value for tensor in tensors(item)]
    return []
