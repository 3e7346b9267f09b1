"""What computes here: its memory, its number formats and what they are worth, as a frozen Device.

Comes in: what a person asked for ("cuda:1", "cpu", nothing), what torch and the system say. Nothing is remembered and
no environment is read: a Device is looked up by the command and passed down. Not known here: how fast it is.
"""

import math
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.errors import EnvironmentProblem, UnknownName

KINDS = ("cuda", "xpu", "mps", "cpu")  # best first
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "bf16")  # bf16: ARM's name
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
ROOT = Path("/")
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """One CPU or one card.

    kind: "cpu", "cuda", "mps" or "xpu". index: among those of its kind. memory_bytes: all its memory, on a CPU the RAM
    that this process may use. free_bytes: how much of it nobody holds. capability: CUDA's (major, minor), (0, 0)
    elsewhere. fast_dtypes: of float32, bfloat16, float16 those that are worth running. features: what speeds it up.
    findings: sentences that a person should read. elsewhere: not on this machine, whose packages then say nothing.
    """

    kind: str
    index: int
    name: str
    memory_bytes: int
    free_bytes: int
    capability: tuple[int, int] = (0, 0)
    fast_dtypes: tuple[str, ...] = ("float32",)
    features: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    elsewhere: bool = False

    @property
    def torch_name(self) -> str:
        """What torch.device() takes: "cuda:0", "xpu:1", "mps", "cpu"."""
        return f"{self.kind}:{self.index}" if self.kind in ("cuda", "xpu") else self.kind


def here(asked: str | None = None) -> Device:
    """The device asked for; None and "auto" take the best there is: cuda, then xpu, mps, cpu.

    Raises UnknownName for what is no device's name, EnvironmentProblem for a device that is not there.
    """
    import torch

    return choose(asked, torch)


def choose(asked: str | None, torch: Any, root: Path = ROOT) -> Device:
    """`here` with its seams: the torch module, and where /proc and /sys are looked for."""
    counts = count(torch)
    present = [f"{kind}:{i}" if kind in ("cuda", "xpu") else kind for kind in KINDS for i in range(counts[kind])]
    kind, index = parse(asked, present)
    if kind is None:
        kind = next(kind for kind in KINDS if counts[kind])
    if index >= counts[kind]:
        why = " (this torch is built without CUDA)" if kind == "cuda" and not _built_for_cuda(torch) else ""
        raise EnvironmentProblem(f"there is no {asked} here{why}: there is {' and '.join(present)}")
    return DESCRIBE[kind](torch, index, root)


def parse(asked: str | None, present: list[str]) -> tuple[str | None, int]:
    """ "cuda:1" -> ("cuda", 1), "cpu" -> ("cpu", 0), None and "auto" -> (None, 0)."""
    text = "auto" if asked is None else asked.strip().lower()
    if text == "auto":
        return None, 0
    match = re.fullmatch(rf"({'|'.join(KINDS)})(?::(\d{{1,4}}))?", text, re.ASCII)
    if match is None:
        raise UnknownName("device", str(asked), {"auto", *KINDS, *present})
    return match[1], int(match[2] or 0)


def count(torch: Any) -> dict[str, int]:
    """How many devices of each kind torch can use."""
    return {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "xpu": torch.xpu.device_count() if torch.xpu.is_available() else 0,
        "mps": 1 if torch.backends.mps.is_available() else 0,
        "cpu": 1,
    }


def _built_for_cuda(torch: Any) -> bool:
    return bool(torch.version.cuda or torch.version.hip)


# -- one function per kind ---------------------------------------------------------------------------------------------


def _cuda(torch: Any, index: int, root: Path) -> Device:
    name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    free, total = torch.cuda.mem_get_info(index)
    # AMD's cards come through the same interface; their "capability" is a gfx number and says nothing of NVIDIA's
    is_nvidia = not torch.version.hip
    return Device(
        "cuda",
        index,
        name,
        total,
        free,
        capability=tuple(capability),
        fast_dtypes=("float32", "bfloat16", "float16") if capability >= (8, 0) else ("float32", "float16"),
        features=cuda_features(capability) if is_nvidia else ("rocm",),
        findings=cuda_findings(name, capability, torch.cuda.get_arch_list()) if is_nvidia else (),
    )


def cuda_features(capability: tuple[int, int]) -> tuple[str, ...]:
    """Formats of the tensor cores: TF32 came with Ampere (8.0), FP8 with Ada (8.9)."""
    return tuple(name for name, least in (("tf32", (8, 0)), ("fp8", (8, 9))) if capability >= least)


def cuda_findings(name: str, capability: tuple[int, int], architectures: list[str]) -> tuple[str, ...]:
    """architectures: what torch was compiled for, ["sm_80", "sm_90", "compute_90"]."""
    found = []
    if architectures and not has_kernels(capability, architectures):
        found.append(f"this torch has no kernels for {name} (sm_{capability[0]}{capability[1]}), only {architectures}")
    if capability < (7, 0):
        found.append(f"{name} has no tensor cores: float16 saves memory, hardly time")
    if re.search(r"GTX 16\d\d", name):
        found.append(f"{name} is known for black pictures in float16: run the VAE, or everything, in float32")
    return tuple(found)


def has_kernels(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Machine code (sm) runs on its own major version from its minor on, PTX (compute) on everything later."""
    for architecture in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", architecture)
        if match is None:
            continue
        built = (int(match[2]), int(match[3]))
        if built <= capability and (match[1] == "compute" or built[0] == capability[0]):
            return True
    return False


def _xpu(torch: Any, index: int, root: Path) -> Device:
    free, total = torch.xpu.mem_get_info(index)
    return Device(
        "xpu", index, torch.xpu.get_device_name(index), total, free, fast_dtypes=("float32", "bfloat16", "float16")
    )


def _mps(torch: Any, index: int, root: Path) -> Device:
    """Memory is shared with the CPU: what Metal recommends to use at most, less what this process holds."""
    total = torch.mps.recommended_max_memory()
    free = max(0, total - torch.mps.driver_allocated_memory())
    return Device("mps", index, "Apple GPU", total, free, fast_dtypes=("float32", "float16"))


def _cpu(torch: Any, index: int, root: Path) -> Device:
    cpuinfo = _text(root / "proc/cpuinfo") or ""
    features = cpu_features(cpuinfo)
    memory = ram(root)
    findings = [] if BF16_FLAGS & set(features) else ["no bfloat16 instructions: float32 is fastest here"]
    if memory.machine_bytes > memory.total_bytes:
        findings.append(f"a limit allows {gib(memory.total_bytes)} of the machine's {gib(memory.machine_bytes)} of RAM")
    return Device(
        "cpu",
        index,
        cpu_name(cpuinfo) or platform.processor() or platform.machine() or "CPU",
        memory.total_bytes,
        memory.free_bytes,
        # never float16: 20 to 340 times slower than float32 (matmul, convolution; torch 2.13, AMD EPYC with AVX-512)
        fast_dtypes=("float32", "bfloat16") if BF16_FLAGS & set(features) else ("float32",),
        features=features,
        findings=tuple(findings),
    )


DESCRIBE: dict[str, Callable[[Any, int, Path], Device]] = {"cuda": _cuda, "xpu": _xpu, "mps": _mps, "cpu": _cpu}


# -- the CPU and its memory --------------------------------------------------------------------------------------------


def cpu_features(cpuinfo: str) -> tuple[str, ...]:
    """CPU_FLAGS found in the text of /proc/cpuinfo; empty where there is no such file (macOS, Windows)."""
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    flags = set(match[1].split()) if match else set()
    return tuple(flag for flag in CPU_FLAGS if flag in flags)


def cpu_name(cpuinfo: str) -> str | None:
    match = re.search(r"^model name\s*:\s*(\S.*)$", cpuinfo, re.MULTILINE)
    return match[1].strip() if match else None


@dataclass(frozen=True, slots=True)
class Memory:
    """RAM that this process may use, and the machine's swap.

    machine_bytes: what is built in, whatever a container's limit says. swapped_bytes: how much of the swap is in use.
    """

    total_bytes: int
    free_bytes: int
    machine_bytes: int
    swap_bytes: int = 0
    swapped_bytes: int = 0


def ram(root: Path = ROOT) -> Memory:
    import psutil  # type: ignore[import-untyped]  # comes with accelerate

    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    total, free = memory.total, memory.available
    for limit, used in cgroup_limits(root):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return Memory(total, free, memory.total, swap.total, swap.used)


def cgroup_limits(root: Path = ROOT) -> list[tuple[int, int]]:
    """(limit, used) bytes of every memory cgroup around this process that has a limit; Linux only."""
    found = []
    for folder in cgroup_folders(_text(root / "proc/self/cgroup") or "", "memory"):
        path = root / folder
        limit = _text(path / "memory.max") or _text(path / "memory.limit_in_bytes")
        used = _text(path / "memory.current") or _text(path / "memory.usage_in_bytes")
        limit_bytes = limit_of(limit)
        if limit_bytes is not None:
            cached = inactive_file(_text(path / "memory.stat") or "")
            found.append((limit_bytes, max(0, int(used or 0) - cached)))
    return found


def cgroup_folders(text: str, controller: str) -> list[Path]:
    """Where the limits of a controller stand, relative to /, own cgroup first, then all around it.

    text: /proc/self/cgroup, lines "0::/a/b" (version 2) or "4:memory:/a/b" (version 1). A container often sees its own
    cgroup as the top one while the file names the host's path, so folders may be missing.
    """
    folders = []
    for line in text.splitlines():
        _, controllers, inside = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = Path("sys/fs/cgroup") / controllers
        own = top / inside.strip("/")
        folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(top)]
    return folders


def limit_of(text: str | None) -> int | None:
    """Bytes; None for no limit, which version 2 writes "max" and version 1 as a number near 2**63."""
    if text is None or text.strip() == "max":
        return None
    value = int(text)
    return value if value < 2**60 else None


def inactive_file(stat: str) -> int:
    """Bytes of file cache in memory.stat: counted as used, but given back at once when somebody asks for them.

    Version 1 gives a cgroup's own, and as total_inactive_file that of all below it too, like the usage.
    """
    return max(map(int, re.findall(r"^(?:total_)?inactive_file (\d+)$", stat, re.MULTILINE)), default=0)


def cores(root: Path = ROOT) -> int:
    """Processors that this process may use: by its affinity, and by a container's quota of processor time."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows cannot bind a process to processors, or do not tell
        allowed = os.cpu_count() or 1
    folders = cgroup_folders(_text(root / "proc/self/cgroup") or "", "cpu")
    quotas = [quota for folder in folders if (quota := _quota(root / folder)) is not None]
    return max(1, min([allowed, *(math.ceil(quota) for quota in quotas)]))


def _quota(folder: Path) -> float | None:
    """Processors' worth of time per period; None without a quota ("max 100000", or -1 in version 1)."""
    text = _text(folder / "cpu.max")
    if text is None:
        text = f"{_text(folder / 'cpu.cfs_quota_us') or -1} {_text(folder / 'cpu.cfs_period_us') or 100000}"
    quota, period = text.split()
    return None if quota in ("max", "-1") else int(quota) / int(period)


def gib(size: float) -> str:
    """ "7.8 GiB"."""
    return f"{size / GIB:.1f} GiB"


def _text(path: Path) -> str | None:
    """The file's text; None where the system has no such file or keeps it to itself."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
