"""Seconds of each stage of a run, the device's work included."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


def synchronizer(device_kind: str) -> Callable[[], None]:
    """What waits until the device has done all it was given; nothing to wait for on a CPU."""
    if device_kind not in ("cuda", "xpu", "mps"):
        return lambda: None
    import torch

    return getattr(torch, device_kind).synchronize


@dataclass
class Clock:
    """Adds up seconds by stage; one stage runs at a time. `now` and `synchronize` are seams."""

    synchronize: Callable[[], None] = lambda: None
    now: Callable[[], float] = time.perf_counter
    seconds: dict[str, float] = field(default_factory=dict)
    stage: str = ""
    _since: float = 0.0

    def switch(self, stage: str = "") -> None:
        """Ends the running stage and begins another; "" is a pause."""
        self.synchronize()
        now = self.now()
        if self.stage:
            self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self._since
        self.stage, self._since = stage, now
