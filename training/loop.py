"""What both trainings share: a learning rate that follows the clock, averaged weights, checkpoints that resume.

The schedule is a function of training time, not of steps: the budget is what a person knows ("90 minutes on two
cores"), and the end of the cosine is reached whatever the machine's speed.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

WARM_UP = 0.02


@dataclass
class Clock:
    """Seconds of training over all runs; `progress` goes from 0 to 1."""

    budget_seconds: float
    spent_seconds: float = 0.0
    _last: float = field(default_factory=time.monotonic)

    def tick(self) -> float:
        now = time.monotonic()
        self.spent_seconds += now - self._last
        self._last = now
        return self.progress

    @property
    def progress(self) -> float:
        return min(1.0, self.spent_seconds / self.budget_seconds)


def device() -> torch.device:
    """A CUDA card if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def learning_rate(peak: float, progress: float) -> float:
    """Linear warm-up over 2 % of the budget, then a cosine to 1 % of the peak."""
    warm = min(1.0, progress / WARM_UP + 0.01)
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


class Average:
    """Exponential moving average of parameters, `decay` growing with the steps as in Karras et al. (2022)."""

    def __init__(self, modules: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in modules.named_parameters()}

    @torch.no_grad()
    def update(self, modules: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        live = dict(modules.named_parameters())
        torch._foreach_lerp_(list(self.weights.values()), [live[n].detach() for n in self.weights], 1 - decay)

    @torch.no_grad()
    def copy_to(self, modules: nn.Module) -> None:
        for name, p in modules.named_parameters():
            p.copy_(self.weights[name])


@dataclass
class Training:
    """Everything that a checkpoint holds. `run` goes on from one until the budget is spent."""

    path: Path
    model: nn.Module
    peak_learning_rate: float
    clock: Clock
    average: Average
    optimizer: torch.optim.Optimizer
    checkpoint_steps: int = 250
    report_steps: int = 50
    steps: int = 0

    def run(self, loss: Callable[[], tuple[torch.Tensor, str]]) -> None:
        """loss: draws a batch and gives what to minimise, and a word for the log."""
        self._resume()
        while (progress := self.clock.tick()) < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.peak_learning_rate, progress)
            total, word = loss()
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.steps += 1
            self.average.update(self.model, self.steps)
            if self.steps % self.report_steps == 0:
                seconds = self.clock.spent_seconds
                print(f"{seconds:6.0f} s  step {self.steps}  loss {total.item():.4f}  {word}", flush=True)
            if self.steps % self.checkpoint_steps == 0:
                self._save()
        self._save()

    def _save(self) -> None:
        """Whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.weights,
            "seconds": self.clock.spent_seconds,
            "step": self.steps,
        }
        torch.save(state, partial := self.path.with_suffix(".partial"))
        partial.replace(self.path)

    def _resume(self) -> None:
        if (state := load(self.path)) is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.weights, self.clock.spent_seconds, self.steps = state["average"], state["seconds"], state["step"]


def load(path: Path) -> dict | None:
    """A checkpoint's state; None where there is none yet."""
    return torch.load(path, weights_only=True, map_location=device()) if path.exists() else None
