"""How torch asks a card for memory, and how CUDA loads its kernels."""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from safelight.config import environment
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer
from safelight.optimizers.target import Target
from safelight.probe.variables import NEW, OLD, settings_in

EXPANDABLE = "expandable_segments"


def _expandable_fits(target: Target) -> str | None:
    if target.device.kind != "cuda":
        return f"needs CUDA, this is {target.device.kind}"
    # of another machine neither its variables nor its system are known
    return None if target.device.elsewhere else why_not_expandable(environment(), sys.platform)


def why_not_expandable(variables: Mapping[str, str], platform: str) -> str | None:
    """platform: as sys.platform has it."""
    if not platform.startswith("linux"):
        return f"CUDA's virtual memory is used on Linux alone, this is {platform}"
    for name, settings in allocator_variables(variables).items():
        if settings is None:
            return f"{name} is not of the form key:value,key:value: mend or unset it"
        if "max_split_size_mb" in settings:
            return f"{name} sets max_split_size_mb, beside which expandable segments pile up: take it out"
        if settings.get("backend") == "cudaMallocAsync":
            return f"{name} sets backend:cudaMallocAsync, which has no segments"
        if settings.get(EXPANDABLE) == "True":
            return f"{name} switches it on already"
    return None


def allocator_variables(variables: Mapping[str, str]) -> dict[str, dict[str, str] | None]:
    """What the environment tells torch's allocator, by the name of the variable."""
    return {name: settings_in(variables[name]) for name in (OLD, NEW) if variables.get(name)}


@optimizer(
    stage=Stage.PROCESS,
    slot="allocator",
    fidelity=Fidelity.EXACT,
    source="https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf",
    fits=_expandable_fits,
    # no gain is predicted: it changes what lies idle between tensors, which cost.py counts as one share of any card
)
def expandable_segments(pipe: Any, target: Target) -> Iterator[Proof]:
    """Let the allocator's segments grow, so that less memory lies idle between tensors of many sizes."""
    import torch

    yield from with_expandable(allocator_setter(torch), torch.cuda.memory_snapshot, environment())


def with_expandable(
    set_text: Callable[[str], None], snapshot: Callable[[], list[dict[str, Any]]], variables: Mapping[str, str]
) -> Iterator[Proof]:
    """set_text: takes "key:value,key:value". snapshot: the allocator's segments. Both are seams.

    What was allocated before stays where it is; segments made from now on can grow.
    """
    given = {
        key: value for settings in allocator_variables(variables).values() for key, value in (settings or {}).items()
    }
    # all of it each time: some versions of torch reset what a text does not name
    set_text(written({**given, EXPANDABLE: "True"}))
    yield Proof(lambda: _grown(snapshot()))
    set_text(written({**given, EXPANDABLE: given.get(EXPANDABLE, "False")}))


def written(settings: Mapping[str, str]) -> str:
    return ",".join(f"{key}:{value}" for key, value in settings.items())


def _grown(segments: list[dict[str, Any]]) -> str:
    sizes = [segment["total_size"] for segment in segments if segment["is_expandable"]]
    return f"{len(sizes)} expandable segments hold {sum(sizes) / 2**20:.0f} MiB" if sizes else ""


def allocator_setter(torch: Any) -> Callable[[str], None]:
    """Of a running process: since torch 2.9 for every kind of card, before that for CUDA."""
    return getattr(torch._C, "_accelerator_setAllocatorSettings", None) or torch.cuda.memory._set_allocator_settings


def _lazy_fits(target: Target) -> str | None:
    if target.device.kind != "cuda":
        return f"needs CUDA, this is {target.device.kind}"
    return why_not_lazy(environment(), sys.platform)


def why_not_lazy(variables: Mapping[str, str], platform: str) -> str:
    """There is always a reason: it is the default, and what overrules that is read before a program can act."""
    if variables.get("CUDA_MODULE_LOADING", "").upper() == "EAGER":
        return "CUDA_MODULE_LOADING=EAGER is set, and CUDA has read it by now: unset it before you start"
    since = "12.2" if platform == "win32" else "11.8"
    return f"it is CUDA's default since {since}: there is nothing to set"


@optimizer(
    stage=Stage.PROCESS,
    slot="module-loading",
    fidelity=Fidelity.EXACT,
    source="https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#lazy-loading",
    fits=_lazy_fits,
    # nothing to predict: nobody can take it
)
def lazy_modules(pipe: Any, target: Target) -> Iterator[Proof]:
    """Load each CUDA kernel when it is first used; CUDA does so by itself unless it is told otherwise."""
    yield Proof(lambda: "")  # not reached: `fits` has a reason everywhere
