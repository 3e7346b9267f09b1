"""Where in a run the denoiser is, for optimizers that act on some steps only."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


@dataclass
class Steps:
    """Counts the steps of a run from the denoiser's own calls.

    pipe: the object whose scheduler drives the run; `Proof.begin` hands over the one of each request.
    index: of the step under way, from 0; a step with two evaluations counts as the scheduler counts its timesteps.
    """

    pipe: Any
    index: int = -1
    total: int = 0  # steps of the whole run; a second evaluation that repeats a timestep is none
    _last: float = field(default=float("inf"), repr=False)
    _schedule: Any = field(default=None, repr=False)  # the very tensor: every run of a pipeline makes a new one
    _rises: tuple[bool, ...] = field(default=(), repr=False)  # after step i

    def begin(self, pipe: Any) -> None:
        """A new run: forget the last one, wherever it stopped."""
        self.pipe, self.index, self._schedule = pipe, -1, None

    def see(self, timestep: Any) -> bool:
        """Called with the timestep (number, or tensor of any shape) of every call. True if a new run begins with it.

        So it does where the scheduler was set anew. A timestep above the last one begins one as well, unless it is the
        schedule that rises there (Restart goes back, churn adds noise): another pipeline object has begun, which no
        session announced. Reading it waits for the device once per call.
        """
        now = float(timestep.flatten()[0]) if hasattr(timestep, "flatten") else float(timestep)
        begins = self._is_new(now)
        if begins:
            self._schedule = self.pipe.scheduler.timesteps
            timesteps = self._schedule.tolist()
            self._rises = tuple(b > a for a, b in pairwise(timesteps) if a != b)
            self.index, self.total = 0, len(self._rises) + 1
        elif now != self._last:
            self.index += 1
        self._last = now
        return begins

    def _is_new(self, now: float) -> bool:
        if self.pipe.scheduler.timesteps is not self._schedule:
            return True
        return now > self._last and not any(self._rises[self.index : self.index + 1])

    @property
    def time(self) -> float:
        """The timestep of the latest call."""
        return self._last


def timestep_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The timestep among a denoiser's arguments: UNets take it second, and every transformer by name."""
    return kwargs["timestep"] if "timestep" in kwargs else args[1]
