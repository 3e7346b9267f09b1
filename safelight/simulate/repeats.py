"""Blocks that do once more what their like has done: noted the first time, and counted from the note from then on.

SDXL's UNet runs 70 transformer blocks of two kinds, FLUX.1's transformer 57 of two: noting each operator of each takes
most of the time of a trace. What counts as alike is strict (every tensor's shape, every setting, no hooks, no patched
forward), and what a block leaves behind must be its results alone; all else is run.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safelight.simulate.trace import Ledger, Span

SCALARS = (bool, int, float, str, bytes, type(None))
LONE = (type, FunctionType, BuiltinFunctionType, MethodType, partial)  # two are alike if they are one


@dataclass(frozen=True, slots=True)
class Note:
    """What a block did with inputs of certain shapes. storages: numbers and dtype of each that its results lie in.
    views: of each result which storage, shape, strides, offset. single: it returned a tensor and not a tuple."""

    span: "Span"
    storages: tuple[tuple[int, Any], ...]
    views: tuple[tuple[Any, ...], ...]
    single: bool


@contextmanager
def counted_again(part: Any, ledger: "Ledger") -> Iterator[None]:
    """While this is open, blocks of `part` that are alike run once for each shape of their inputs."""
    notes: dict[Hashable, Note | None] = {}
    repeated = _repeated(part)
    for block, likeness in repeated.items():
        block.forward = _noting(block.forward, likeness, notes, ledger)
    try:
        yield
    finally:
        for block in repeated:
            del block.forward


def _noting(forward: Callable[..., Any], likeness: int, notes: dict[Hashable, Note | None], ledger: "Ledger") -> Any:
    def noted(*args: Any, **kwargs: Any) -> Any:
        key = likeness, _shapes((args, tuple(kwargs.items())), {})
        if (note := notes.get(key)) is not None:
            return _again(note, ledger)
        with ledger.span() as span:
            made = forward(*args, **kwargs)
        notes[key] = _note(span, made)
        return made

    return noted


def _note(span: "Span", made: Any) -> Note | None:
    """None where more than the results is left (the block keeps something), or less (it hands on what it was given)."""
    import torch

    results = made if isinstance(made, tuple) else (made,)
    if not all(isinstance(tensor, torch.Tensor) for tensor in results):
        return None
    storages = {tensor.untyped_storage()._cdata: tensor for tensor in results}
    sizes = [tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in storages.values()]
    if span.left != sum(tensor.untyped_storage().nbytes() for tensor in storages.values()):
        return None
    which = {key: number for number, key in enumerate(storages)}
    views = tuple(
        (which[tensor.untyped_storage()._cdata], tensor.shape, tensor.stride(), tensor.storage_offset())
        for tensor in results
    )
    dtypes = [tensor.dtype for tensor in storages.values()]
    return Note(span, tuple(zip(sizes, dtypes, strict=True)), views, single=not isinstance(made, tuple))


def _again(note: Note, ledger: "Ledger") -> Any:
    import torch

    ledger.add(note.span, ledger.now)
    with ledger.unheeded():
        storages = [torch.empty(size, dtype=dtype) for size, dtype in note.storages]
        made = tuple(storages[which].as_strided(*view) for which, *view in note.views)
    for tensor in made:
        ledger.see(tensor)
    return made[0] if note.single else made


def _shapes(value: Any, storages: dict[int, int]) -> Hashable:
    """What operators see of their inputs but for the numbers. storages: which of them share memory."""
    import torch

    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        which = storages.setdefault(storage._cdata, len(storages))
        shape = value.shape, value.stride(), value.storage_offset(), value.dtype, type(value)
        return *shape, which, storage.nbytes()
    if isinstance(value, tuple):
        return (type(value), *(_shapes(item, storages) for item in value))
    if isinstance(value, dict) and all(isinstance(item, SCALARS) for item in value.values()):
        return type(value), *value.items()
    return (type(value), value) if isinstance(value, SCALARS) else object()  # such as a list that the block fills


def _repeated(part: Any) -> dict[Any, int]:
    """Modules that have parts of their own and a like elsewhere in `part`, and what tells those of one kind. What lies
    in a module whose forward is somebody else's is left alone: who knows what that does with it."""
    kinds = Kinds()
    patched = {inner for module in part.modules() if "forward" in vars(module) for inner in module.modules()}
    numbers = {module: kinds.of(module) for module in part.modules() if module not in patched}
    counts = Counter(numbers.values())
    return {
        module: number
        for module, number in numbers.items()
        if counts[number] > 1 and any(True for _ in module.children())
    }


@dataclass
class Kinds:
    """Numbers for modules: the same for two that compute the same, but for the numbers in their weights."""

    numbers: dict[Hashable, int] = field(default_factory=dict)
    known: dict[int, int] = field(default_factory=dict)

    def of(self, thing: Any) -> int:
        """A module, or an object that one holds, such as an attention processor."""
        if id(thing) not in self.known:
            self.known[id(thing)] = -id(thing)  # for one that holds itself
            said = type(thing), *((name, self._said(value)) for name, value in vars(thing).items())
            self.known[id(thing)] = self.numbers.setdefault(said, len(self.numbers))
        return self.known[id(thing)]

    def _said(self, value: Any) -> Hashable:
        import torch

        if isinstance(value, SCALARS):
            return type(value), value
        if isinstance(value, torch.Tensor):
            return type(value), value.shape, value.stride(), value.dtype, value.untyped_storage().nbytes()
        if isinstance(value, Mapping):
            return (type(value), *((key, self._said(item)) for key, item in value.items()))
        if isinstance(value, list | tuple):
            return (type(value), *(self._said(item) for item in value))
        if isinstance(value, set | frozenset):
            return type(value), frozenset(value)
        if isinstance(value, LONE) or not hasattr(value, "__dict__"):
            return _alone(value)
        return self.of(value)


def _alone(value: Any) -> Hashable:
    """What is like nothing but itself: functions, patched forwards, hooks, whatever nobody can look into."""
    return id(value)
