"""Weights and the memory they lie in: lent copies on a device, memory given back for a while, files in its place.

A slot is (table, name): a module's `_parameters` or `_buffers`, and a name in it. To move weights the object in the
slot is exchanged, never its data: what was there stays whole at home, and comes back as the very same object. Nothing
is ever copied back from a device, as inference does not change weights. Ties within one `Weights` are kept.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import ref

from safelight.errors import DoesNotApply, UsageError
from safelight.optimizers.target import models

ALIGNED = 64  # bytes, as torch allocates: kernels may add up in another order from another alignment
Copy = Callable[[Any], Any]  # tensor -> the tensor to use in its place


def copies(device: str) -> Copy:
    """New memory on the device for each tensor, strides kept; also where it is the device that the tensor lies on."""
    return lambda tensor: tensor.to(device, copy=True)


@dataclass(eq=False)
class Weights:
    """slots: of some modules. home: what lay in each when nothing was lent; read anew before each loan."""

    slots: tuple[tuple[dict[str, Any], str], ...]
    home: list[Any] = field(default_factory=list)
    lent: bool = False
    _lent_buffers: list[tuple[int, Any, Any]] = field(default_factory=list)  # (slot, weak reference, what is at home)

    @classmethod
    def of(cls, modules: Iterable[Any], *, own: bool = False) -> "Weights":
        """own: of the modules themselves, without their children."""
        inner = [m for module in modules for m in ([module] if own else module.modules())]
        tables = [table for m in dict.fromkeys(inner) for table in (m._parameters, m._buffers)]
        slots = tuple((table, name) for table in tables for name, tensor in table.items() if tensor is not None)
        return cls(slots, [table[name] for table, name in slots])

    def now(self) -> list[Any]:
        return [table[name] for table, name in self.slots]

    def lend(self, copy: Copy) -> None:
        """Puts copies into the slots. Does nothing while some are lent."""
        import torch

        if self.lent:
            return
        self._settle()
        self.home = self.now()
        made: dict[int, Any] = {}
        with lasting():
            for (table, name), tensor in zip(self.slots, self.home, strict=True):
                if id(tensor) not in made:
                    made[id(tensor)] = _like(tensor, copy(tensor))
                table[name] = made[id(tensor)]
        self._lent_buffers = [
            (i, ref(table[name]), self.home[i])
            for i, (table, name) in enumerate(self.slots)
            if not isinstance(table[name], torch.nn.Parameter)
        ]
        self.lent = True

    def give_back(self) -> None:
        if not self.lent:
            self._settle()
            return
        for (table, name), tensor in zip(self.slots, self.home, strict=True):
            table[name] = tensor
        self.lent = False

    def _settle(self) -> None:
        """Takes out copies of buffers that somebody (`kept_tensors`) put back after they had been given back."""
        for i, copy, home in self._lent_buffers:
            table, name = self.slots[i]
            if table[name] is copy():
                table[name] = home
        self._lent_buffers = []

    @property
    def bytes(self) -> int:
        return size(self.home)

    def lent_bytes(self, device: str) -> int:
        """What really lies in the slots beside what is at home, on the device."""
        if not self.lent:
            return 0
        at_home = {place(tensor) for tensor in self.home}
        return size(t for t in self.now() if place(t) not in at_home and _is_on(t, device))


@contextmanager
def lasting() -> Iterator[None]:
    """A tensor made in inference mode could not be changed, converted or trained outside of it."""
    import torch

    with torch.inference_mode(False), torch.no_grad():
        yield


def _like(tensor: Any, copy: Any) -> Any:
    """The copy as what the original is: subclasses of Parameter (quantized ones) make their own kind in `to`."""
    import torch

    if copy is tensor or type(tensor) is not torch.nn.Parameter:
        return copy
    return torch.nn.Parameter(copy.detach(), requires_grad=tensor.requires_grad)


def _is_on(tensor: Any, device: str) -> bool:
    import torch

    wanted = torch.device(device)
    return tensor.device.type == wanted.type and wanted.index in (None, tensor.device.index)


def place(tensor: Any) -> tuple[int, int]:
    """(storage, byte in it) of a tensor's first plain part: no address, as memory that was given back has none."""
    part = next(plain(tensor))
    return part.untyped_storage()._cdata, part.storage_offset() * part.element_size()


def size(tensors: Iterable[Any]) -> int:
    """Bytes; a tensor met twice counts once."""
    parts = {place(part): part for tensor in tensors for part in plain(tensor)}
    return sum(part.numel() * part.element_size() for part in parts.values())


def plain(tensor: Any) -> Iterator[Any]:
    """The ordinary tensors that one is made of: itself, or the inner ones of a wrapper (torchao)."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from plain(getattr(tensor, name))


# -- home is the CPU ---------------------------------------------------------------------------------------------------


def check_unplaced(pipe: Any) -> None:
    """Raises UsageError for a pipeline that something else places already: twice, and one of them is ignored."""
    for name, part in models(pipe).items():
        for module in part.modules():
            registry = vars(module).get("_diffusers_hook")
            if "_hf_hook" in vars(module) or (registry and registry.get_hook("group_offloading")):
                raise UsageError(f"the pipeline's {name} is offloaded already: take that back first")


@contextmanager
def on_cpu(
    pipe: Any,
    elsewhere: Callable[[Any], bool] = lambda tensor: tensor.device.type != "cpu",
    copy: Copy = lambda tensor: tensor.to("cpu"),
) -> Iterator[int]:
    """All weights in the CPU's memory for the time of a block; yields how many bytes of a device became free by that.

    Offload that begins with everything on the card prevents no out-of-memory (diffusers issue 1934). The memory itself
    is given back: optimizers that were applied before hold on to the tensors.
    """
    check_unplaced(pipe)
    weights = Weights.of(models(pipe).values())
    if not any(elsewhere(tensor) for tensor in weights.home):
        yield 0
        return
    weights.lend(lambda tensor: copy(tensor) if elsewhere(tensor) else tensor)
    parts = [
        pair
        for old, new in zip(weights.home, weights.now(), strict=True)
        if old is not new
        for pair in zip(plain(old), plain(new), strict=True)
    ]
    freed = [free(storage) for storage in storages(old for old, _ in parts)]
    try:
        yield sum(freed)
    finally:
        for storage, nbytes in zip(storages(old for old, _ in parts), freed, strict=True):
            refill(storage, nbytes)
        for old, new in parts:
            old.data.copy_(new.data)
        weights.give_back()


def storages(tensors: Iterable[Any]) -> list[Any]:
    """Each storage once, in order; also those whose memory was given back, which have no address."""
    return list({tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}.values())


def free(storage: Any) -> int:
    """Gives a storage's memory back, whoever else holds on to it; how many bytes that were.

    What is mapped from a file (weights that safetensors loaded) cannot be, and need not: the system takes such pages.
    """
    nbytes = storage.nbytes() if storage.resizable() else 0
    if nbytes:
        storage.resize_(0)
    return nbytes


def refill(storage: Any, nbytes: int) -> None:
    if nbytes:
        storage.resize_(nbytes)


# -- home is a file, or host memory ------------------------------------------------------------------------------------


@dataclass(eq=False)
class Stored:
    """A storage in a file. storage: None where its memory was not ours to give back, and is mapped instead.

    tensors: (tensor, offset in elements, shape, strides) of each that lies in it.
    """

    first: int  # byte in the file
    nbytes: int
    storage: Any
    tensors: list[tuple[Any, int, Any, Any]]


@dataclass(eq=False)
class InFile:
    """Weights that leave memory for a file of raw storages, and are read from its mapping while they are away.

    Whole storages are written, so that strides and ties are kept. One file for one `Weights`, and never one that is
    there already: diffusers names files by a hash of the module's path, and takes what it finds for its own.
    """

    weights: Weights
    path: Path
    _stored: dict[int, Stored] = field(default_factory=dict)
    _span: tuple[int, int] = (0, 0)  # addresses of the mapping in use

    def leave(self) -> None:
        """Every time a fresh mapping: the pages that were read from the last one count as this process's memory."""
        first_time = not self._stored
        with lasting():
            if first_time:
                self._write()
            mapping = self._map()
            self.weights.give_back()
            self.weights.lend(self._views(mapping))
            self._span = (mapping.data_ptr(), mapping.data_ptr() + mapping.nbytes())
            if first_time:
                self._free()

    def come(self) -> None:
        """Nothing to do: what is mapped comes into memory page by page as it is read."""

    def away_bytes(self) -> int:
        """Of what lies in the slots now: what is mapped from the file. 0 while its own memory is not given back."""
        if any(stored.storage is not None and stored.storage.nbytes() for stored in self._stored.values()):
            return 0
        first, end = self._span
        return size(tensor for tensor in self.weights.now() if first <= tensor.data_ptr() < end)

    def close(self) -> None:
        """Everything back into the tensors that it came from, and the file removed."""
        if not self._stored:
            return
        with lasting():
            read = _bytes(self._map())
            for stored in self._stored.values():
                _restore(stored, read[stored.first : stored.first + stored.nbytes])
        self.weights.give_back()
        self._stored, self._span = {}, (0, 0)
        del read
        self.path.unlink()

    def _write(self) -> None:
        import torch

        with self.path.open("xb") as file:
            for tensor in dict.fromkeys(self.weights.now()):
                if type(tensor.data) is not torch.Tensor:
                    raise DoesNotApply(f"{type(tensor.data).__name__} weights cannot be written to a file as they are")
                storage = tensor.untyped_storage()
                if storage._cdata not in self._stored:
                    file.write(b"\0" * (-file.tell() % ALIGNED))
                    own = storage if storage.resizable() else None
                    self._stored[storage._cdata] = Stored(file.tell(), storage.nbytes(), own, [])
                    # of a copy: a storage that numpy has seen cannot be resized any more
                    file.write(memoryview(_bytes(storage).clone().numpy()))
                place = (tensor, tensor.storage_offset(), tensor.size(), tensor.stride())
                self._stored[storage._cdata].tensors.append(place)

    def _map(self) -> Any:
        import torch

        return torch.UntypedStorage.from_file(str(self.path), False, self.path.stat().st_size)

    def _views(self, mapping: Any) -> Copy:
        views = {
            id(tensor): _view(mapping, stored.first, tensor.dtype, *place)
            for stored in self._stored.values()
            for tensor, *place in stored.tensors
        }
        return lambda tensor: views[id(tensor)]

    def _free(self) -> None:
        mapping = self._map()
        for stored in self._stored.values():
            if stored.storage is not None:
                stored.storage.resize_(0)
                continue
            for tensor, *place in stored.tensors:  # mapped from the model's own file, or somebody else's memory
                tensor.data = _view(mapping, stored.first, tensor.dtype, *place)


def _bytes(storage: Any) -> Any:
    import torch

    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _view(storage: Any, first: int, dtype: Any, offset: int, shape: Any, strides: Any) -> Any:
    """first: byte at which the tensor's own storage begins in this one."""
    import torch

    return torch.empty(0, dtype=dtype).set_(storage, first // dtype.itemsize + offset, shape, strides)


def _restore(stored: Stored, read: Any) -> None:
    import torch

    memory = stored.storage if stored.storage is not None else torch.UntypedStorage(stored.nbytes)
    if stored.storage is not None:
        memory.resize_(stored.nbytes)
    _bytes(memory).copy_(read)
    if stored.storage is None:
        for tensor, *place in stored.tensors:
            tensor.data = _view(memory, 0, tensor.dtype, *place)


@dataclass(eq=False)
class OnHost:
    """Weights of a device that leave it for host memory, and come back into the memory that they had.

    A device's memory is given back whoever else holds on to the tensors (other optimizers, to undo).
    """

    weights: Weights
    copy: Copy = lambda tensor: tensor.to("cpu", copy=True)
    _copies: dict[int, Any] = field(default_factory=dict)
    _freed: list[tuple[Any, int]] = field(default_factory=list)

    def leave(self) -> None:
        if self.weights.lent:
            return
        if not self._copies:  # once: inference does not change weights
            with lasting():
                self._copies = {id(tensor): self.copy(tensor.detach()) for tensor in self.weights.now()}
        self.weights.lend(lambda tensor: self._copies[id(tensor)])
        parts = [part for tensor in self.weights.home for part in plain(tensor)]
        self._freed = [(storage, free(storage)) for storage in storages(parts)]

    def come(self) -> None:
        if not self.weights.lent:
            return
        for storage, nbytes in self._freed:
            refill(storage, nbytes)
        with lasting():
            for tensor in self.weights.home:
                for old, new in zip(plain(tensor), plain(self._copies[id(tensor)]), strict=True):
                    old.data.copy_(new)
        self.weights.give_back()

    def away_bytes(self) -> int:
        """Of what lies in the slots now: what is a copy, the memory it had on the device given back."""
        if not self.weights.lent or any(storage.nbytes() for storage, _ in self._freed):
            return 0
        return size(self.weights.now())

    def close(self) -> None:
        self.come()
        self._copies, self._freed = {}, []
