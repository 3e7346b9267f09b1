"""Where in a run the denoiser is, for optimizers that act on some steps only."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Steps:
    """Counts the steps of a run from the denoiser's own calls.

    pipe: the object whose scheduler drives the run; `Proof.begin` hands over the one of each request.
    index: of the step under way, from 0; a step with two evaluations counts as the scheduler counts its timesteps.
    """

    pipe: Any
    index: int = -1
    total: int = 0  # steps of the whole run: different timesteps of the scheduler, as a second evaluation repeats one
    _last: float = field(default=float("inf"), repr=False)

    def begin(self, pipe: Any) -> None:
        """A new run: forget the last one, wherever it stopped."""
        self.pipe, self.index, self._last = pipe, -1, float("inf")

    def see(self, timestep: Any) -> bool:
        """Called with the timestep (number, or tensor of any shape) of every call. True if a new run begins with it.

        Noise falls in a run, so a timestep above the last one begins the next: so it does in a call of the pipeline
        that no session announced. Reading it waits for the device once per call.
        """
        now = float(timestep.flatten()[0]) if hasattr(timestep, "flatten") else float(timestep)
        begins = self.index < 0 or now > self._last
        if begins:
            self.index = 0
            self.total = len({float(t) for t in self.pipe.scheduler.timesteps})
        elif now < self._last:
            self.index += 1
        self._last = now
        return begins

    @property
    def time(self) -> float:
        """The timestep of the latest call."""
        return self._last


def timestep_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The timestep among a denoiser's arguments: UNets take it second, and every transformer by name."""
    return kwargs["timestep"] if "timestep" in kwargs else args[1]
