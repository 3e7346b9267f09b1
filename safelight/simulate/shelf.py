"""Traces kept from one process to the next, in small JSON files: they know no device, only configs and shapes.

Comes in: what a trace depends on. Goes out: the traces that were noted for it. A file that cannot be read is none, and
one that cannot be written is made anew next time: all that is lost is a second or two.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safelight.config import put_whole
from safelight.simulate.cost import Weights
from safelight.simulate.trace import Trace, Work

KEEP = 100  # files, of about 100 KiB
FORMAT = 1

Traced = tuple[Trace, Weights]


@dataclass
class Shelf:
    """The traces of one model in one situation. folder: made if need be; None keeps nothing. situation: all that they
    depend on but for the optimizers."""

    folder: Path | None
    situation: Mapping[str, Any]
    _fresh: dict[str, Traced] = field(default_factory=dict)

    @cached_property
    def path(self) -> Path | None:
        if self.folder is None:
            return None
        text = json.dumps({"format": FORMAT, "code": _stamp(), **self.situation}, sort_keys=True, default=_told)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    @cached_property
    def _kept(self) -> dict[str, Traced]:
        if self.path is None:
            return {}
        try:
            return {key: _read(*entry) for key, entry in json.loads(self.path.read_bytes()).items()}
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            return {}

    def find(self, key: str) -> Traced | None:
        return self._kept.get(key) or self._fresh.get(key)

    def put(self, key: str, traced: Traced) -> None:
        self._fresh[key] = traced

    def keep(self) -> None:
        """Adds what is new to the file, in one step; the oldest files go."""
        if self.path is None or not self._fresh:
            return
        self._kept.update(self._fresh)
        self._fresh.clear()
        table = {key: _written(*traced) for key, traced in self._kept.items()}
        with suppress(OSError):
            put_whole(self.path, json.dumps(table, separators=(",", ":")))
            for path in sorted(self.path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-KEEP]:
                path.unlink(missing_ok=True)


def _written(trace: Trace, weights: Weights) -> list[Any]:
    works = [[*astuple(work), count] for work, count in trace.works.items()]
    return [works, trace.calls, trace.peak_bytes, dict(trace.workspace_bytes), astuple(weights)]


def _read(works: list[Any], calls: int, peak: int, workspace: dict[str, int], weights: list[Any]) -> Traced:
    total, layer, blocks = weights
    trace = Trace({Work(*work): count for *work, count in works}, calls, peak, workspace)
    return trace, Weights(total, layer, tuple(blocks))


def _stamp() -> list[Any]:
    """Of this program's own files: what they do may change without a new version."""
    package = Path(__file__).parents[1]
    stats = [(path, path.stat()) for path in sorted(package.rglob("*.py"))]
    return [[str(path.relative_to(package)), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def _told(value: Any) -> Any:
    """Configs of transformers, classes, dtypes. What has no text of its own is told by its address, and never found."""
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return value.to_dict() if hasattr(value, "to_dict") else repr(value)
