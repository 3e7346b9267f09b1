"""diffusers' hooks that skip work of a denoiser: put on, counted, kept clean from run to run, taken off.

Three things that diffusers leaves to its caller are done here for every step cache:
- a new run is noticed, and what the last one left is forgotten. An exception half way leaves the hooks of diffusers
  0.42 full, and the next run silently skips on the numbers of another picture;
- a denoiser call gets a cache context where its pipeline enters none (SD3, Chroma, FLUX image to image, ...), and a
  state of its own where a hook has only one (pyramid attention broadcast hands the first of two guidance calls to the
  second);
- the work that a hook asked for is counted where it is computed, not where the hook says so.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from safelight.errors import Conflict
from safelight.optimizers.registry import swapped
from safelight.optimizers.steps import timestep_of
from safelight.optimizers.target import Part, denoiser

# What denoisers are told, in the scheduler's unit: SD and SD3 the timestep itself, FLUX and Chroma a share of 1000,
# Z-Image and Lumina 2 what is done of it.
UNITS: tuple[Callable[[float], float], ...] = (
    lambda told: told,
    lambda told: 1000 * told,
    lambda told: 1000 - 1000 * told,
)


@dataclass
class Runs:
    """Notices where a run of the denoiser begins, also one that no session announced.

    home: the pipeline object that was optimized; a direct call runs on it. pipe: of the run under way.
    timestep: of the scheduler, whatever unit the denoiser is told. schedule: the timesteps of this run alone, falling.
    call: how many calls at this timestep came before (guidance in two calls: 0, then 1).
    """

    home: Any
    pipe: Any = None
    timestep: float = 0.0
    call: int = 0
    schedule: tuple[float, ...] = ()
    _stale: Any = None  # the timesteps that an announced pipeline object had before its run
    _timesteps: Any = None  # the very tensor: every run of a pipeline makes a new one
    _unit: Callable[[float], float] = UNITS[0]

    def begin(self, pipe: Any) -> None:
        """The next run is this pipeline object's."""
        self.pipe, self._stale, self._timesteps = pipe, pipe.scheduler.timesteps, None

    def see(self, told: Any) -> bool:
        """Called with the timestep (tensor or number) of every denoiser call. True if a run begins with it.

        Reading it waits for the device once per call.
        """
        told = float(told.flatten()[0]) if hasattr(told, "flatten") else float(told)
        begins = self._changed()
        now = self._unit(told)
        if begins or now > self.timestep:  # noise only falls: a pipeline that shares the model with ours has begun
            self._enter(told)
            self.call = 0
            return True
        self.call = self.call + 1 if now == self.timestep else 0
        self.timestep = now
        return False

    def _changed(self) -> bool:
        """Whether the scheduler was set anew since the last call, and by which pipeline object."""
        if self._timesteps is not None and self.pipe.scheduler.timesteps is self._timesteps:
            return False
        if self.pipe is None or self._timesteps is not None or self.pipe.scheduler.timesteps is self._stale:
            self.pipe = self.home  # the announced run is over, or never came to its first step
        self._timesteps = self.pipe.scheduler.timesteps
        return True

    def _enter(self, told: float) -> None:
        timesteps = self._timesteps.tolist()

        def miss(unit: Callable[[float], float]) -> float:
            return min(abs(unit(told) - t) for t in timesteps)

        self._unit = min(UNITS, key=miss)
        self.timestep = self._unit(told)
        # image to image begins inside the schedule
        first = min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - self.timestep))
        self.schedule = tuple(timesteps[first:])


class Threshold(float):
    """A limit that notes every number it is compared with: what shows that a cache decided at all."""

    def __new__(cls, value: float) -> "Threshold":
        made = super().__new__(cls, value)
        made.seen = []
        return made

    seen: list[float]

    # Python asks the right operand first when its class is derived from the left one's
    def __lt__(self, other: float) -> bool:
        self.seen.append(float(other))
        return float(self) < other

    def __ge__(self, other: float) -> bool:
        self.seen.append(float(other))
        return float(self) >= other


@dataclass
class Work:
    """What a step cache skipped in the latest run. noun: what is counted ("block", "attention")."""

    noun: str
    threshold: Threshold | None = None
    asked: int = 0
    computed: int = 0
    _acted: bool = False  # in this run or in an earlier one

    def forget(self) -> None:
        self._acted |= self.computed < self.asked
        self.asked = self.computed = 0
        if self.threshold is not None:
            self.threshold.seen.clear()

    def ask(self) -> None:
        self.asked += 1

    def compute(self) -> None:
        self.computed += 1

    def said(self) -> str:
        """What was seen; "" as long as nothing was ever skipped, nor compared with the threshold."""
        skipped, calls = self.asked - self.computed, f"{self.asked} {self.noun} calls"
        if not skipped and self.threshold is not None and (seen := self.threshold.seen):
            return (
                f"compared {len(seen)} times, skipped none of {calls} in the latest run: the threshold is "
                f"{float(self.threshold):g} and the smallest change was {min(seen):.2g}; raise it"
            )
        return f"skipped {skipped} of {calls} in the latest run" if skipped or self._acted else ""


@dataclass
class Hooked:
    """The hooks that one step cache put on a denoiser.

    before_call: told whether a run begins with a call of the denoiser, and the call's keyword arguments.
    """

    hooks: tuple[Any, ...]
    runs: Runs
    work: Work
    before_call: Callable[[bool, dict[str, Any]], None] = lambda begins, kwargs: None
    after_call: Callable[[], None] = lambda: None
    _states: dict[tuple[int, int], Any] = field(default_factory=dict)

    @property
    def managers(self) -> list[Any]:
        """diffusers' StateManagers: they keep a state for each cache context."""
        from diffusers.hooks.hooks import StateManager

        found = {id(value): value for hook in self.hooks for value in vars(hook).values()}
        return [value for value in found.values() if isinstance(value, StateManager)]

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        from diffusers.hooks.hooks import CacheContext

        begins = self.runs.see(timestep_of(args, kwargs))
        if begins:
            self.work.forget()
            self._states.clear()
        for manager in self.managers:
            given = manager._context  # of the pipeline, where it enters one
            if begins:
                manager.reset()
            manager.set_context(given or CacheContext(f"call {self.runs.call}"))
        for hook in self.hooks:
            if "state" in vars(hook):
                key = (self.runs.call, id(hook))
                hook.state = self._states.setdefault(key, type(hook.state)())
        self.before_call(begins, kwargs)

    @contextmanager
    def context_kept(self) -> Iterator[None]:
        """The pipeline's own context, or none, again after the call: what it ran in was ours."""
        given = [(manager, manager._context) for manager in self.managers]
        try:
            yield
        finally:
            for manager, context in given:
                manager.set_context(context)


@contextmanager
def hooked(pipe: Any, apply: Callable[[], None], work: Work) -> Iterator[Hooked]:
    """Calls `apply`, which puts diffusers' hooks on the denoiser, and watches over them while the block runs."""
    import torch

    model = denoiser(pipe)
    check_free(model)
    with ExitStack() as stack:
        plain = {module: _Plain.of(module) for module in model.modules()}
        stack.callback(_take_off, model, plain)
        apply()
        added = [(module, hook) for module in model.modules() for hook in plain[module].added(module)]
        on = Hooked(tuple(hook for _, hook in added), Runs(pipe), work)
        _forget_children(model)
        for module, hook in added:
            if module is not model:
                stack.enter_context(_counted(hook.fn_ref, work))
        before, forward = torch.compiler.disable(on.before), model.forward

        def watched(*args: Any, **kwargs: Any) -> Any:
            with on.context_kept():
                before(args, kwargs)
                output = forward(*args, **kwargs)
                on.after_call()
                return output

        stack.enter_context(swapped(model, forward=watched))
        yield on


def check_free(model: Any) -> None:
    """Raises Conflict for a denoiser that somebody has switched a cache on for: two would both skip, silently."""
    registries = [module._diffusers_hook for module in model.modules() if "_diffusers_hook" in vars(module)]
    if any(hook._is_stateful for registry in registries for hook in registry.hooks.values()):
        raise Conflict(f"this {type(model).__name__} has a cache switched on already: call its disable_cache() first")
    if "_is_cached" in vars(model):
        raise Conflict(f"this {type(model).__name__} has cache-dit switched on: call cache_dit.disable_cache first")


@contextmanager
def _counted(reference: Any, work: Work) -> Iterator[None]:
    """Counts what a hook was asked for, and what it then computed. reference: diffusers' HookFunctionReference."""
    import torch

    forward, original = reference.forward, reference.original_forward
    # a compiler would take a count for a constant, and compile again for each
    ask, compute = torch.compiler.disable(work.ask), torch.compiler.disable(work.compute)

    def asked(*args: Any, **kwargs: Any) -> Any:
        ask()
        return forward(*args, **kwargs)

    def computed(*args: Any, **kwargs: Any) -> Any:
        compute()
        return original(*args, **kwargs)

    with swapped(reference, forward=asked, original_forward=computed):
        yield


_ABSENT = object()


@dataclass(frozen=True, slots=True)
class _Plain:
    """A module before hooks. hooks: the names of those it has from others."""

    hooks: tuple[str, ...]
    has_registry: bool
    forward: Any

    @classmethod
    def of(cls, module: Any) -> "_Plain":
        registry = vars(module).get("_diffusers_hook")
        names = tuple(registry._hook_order) if registry else ()
        return cls(names, registry is not None, vars(module).get("forward", _ABSENT))

    def added(self, module: Any) -> list[Any]:
        registry = vars(module).get("_diffusers_hook")
        return [hook for name, hook in registry.hooks.items() if name not in self.hooks] if registry else []

    def restore(self, module: Any) -> None:
        if (registry := vars(module).get("_diffusers_hook")) is None:
            return
        names = [name for name in reversed(registry._hook_order) if name not in self.hooks]
        for name in names:
            registry.remove_hook(name, recurse=False)
        if names and self.forward is _ABSENT:
            del module.forward  # diffusers leaves the bound method behind
        if not self.has_registry:
            del module._diffusers_hook


def _take_off(model: Any, plain: dict[Any, _Plain]) -> None:
    for module, before in plain.items():
        before.restore(module)
    _forget_children(model)


def _forget_children(model: Any) -> None:
    """diffusers remembers which modules have hooks; with that list a cache context misses new ones."""
    for module in model.modules():
        if (registry := vars(module).get("_diffusers_hook")) is not None:
            registry._child_registries_cache = None


def blocks_of(model: Any) -> list[Any]:
    """The transformer blocks in the order in which diffusers' caches take them."""
    from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS
    from torch import nn

    rows = [
        row
        for name, row in model.named_children()
        if name in _ALL_TRANSFORMER_BLOCK_IDENTIFIERS and isinstance(row, nn.ModuleList)
    ]
    return [block for row in rows for block in row]


def skeleton(part: Part) -> Any:
    """The part without weights, to read its structure off; None for a class that cannot be made without them."""
    return _skeleton(part.cls, json.dumps(dict(part.config), default=str))


@lru_cache(maxsize=4)
def _skeleton(cls: type, config: str) -> Any:
    import torch

    with torch.device("meta"):
        try:
            return cls.from_config(json.loads(config))  # type: ignore[attr-defined]
        except (NotImplementedError, RuntimeError):  # torch's answers to a number asked of a tensor without numbers
            return None


def peers(model: Any) -> Any:
    """The process group whose ranks compute one picture together; None where each rank draws its own.

    Not every rank of a process group: those may draw other pictures, and must not wait for this one.
    """
    parallel = model._parallel_config
    if parallel is None or parallel.context_parallel_config is None:
        return None
    return parallel.context_parallel_config._flattened_mesh.get_group()


def agreed(mine: list[float], group: Any, device: Any = "cpu") -> list[float]:
    """The first rank's numbers, on every rank of the group.

    Each rank sees its own part of a picture. Where one skips and one does not, both wait for the other for ever.
    """
    import torch
    import torch.distributed as dist

    if group is None:
        return mine
    numbers = torch.tensor(mine, dtype=torch.float64, device=device)
    dist.broadcast(numbers, src=dist.get_global_rank(group, 0), group=group)
    return numbers.tolist()
