"""Peak bytes of a stretch of work, allocated on a GPU, resident in RAM on a CPU; and the bytes of a model.

On Linux the kernel keeps the highest resident size of a process and lets the process itself reset it (clear_refs), so
the CPU figure is exact, not sampled. Where that is not to be had the figure is None: unmeasured is said, never 0.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def collected_later() -> Iterator[None]:
    """For work that makes many small objects and keeps them, as imports and fake models do: Python's search for those
    that hold each other would take a fifth of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass
class PeakMemory:
    """Starts to watch when made. `read` gives (peak bytes, bytes held when it started), None where unknown."""

    device_kind: str

    def __post_init__(self) -> None:
        self.before = self._start()

    def _start(self) -> int | None:
        if self.device_kind == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        try:
            CLEAR.write_text("5")
        except OSError:
            return None
        return _status("VmRSS")

    def read(self) -> int | None:
        if self.before is None:
            return None
        if self.device_kind == "cuda":
            import torch

            return torch.cuda.max_memory_allocated()
        return _status("VmHWM")

    def growth(self) -> int | None:
        """How much higher than when it started."""
        peak = self.read()
        return None if peak is None or self.before is None else max(0, peak - self.before)


def _status(key: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), None)


def module_bytes(module: Any) -> int:
    """Bytes that a module's parameters and buffers really hold, each storage once.

    Not get_memory_footprint (diffusers, transformers): that multiplies shapes by the dtype a tensor claims to have, and
    a quantized one claims the dtype it computes in.
    """
    tensors = [*module.parameters(), *module.buffers()]
    storages = {inner.untyped_storage()._cdata: inner.untyped_storage() for t in tensors for inner in _inner(t)}
    return sum(storage.nbytes() for storage in storages.values())


def _inner(tensor: Any) -> Iterator[Any]:
    """The plain tensors that a tensor subclass (torchao's) wraps; itself if it is none."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _inner(getattr(tensor, name))
