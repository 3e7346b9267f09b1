"""What is here, what is wrong with it, and how to mend it.

Comes in: the environment variables, and seams for everything else that is asked. Goes out: a list of Findings. Versions
are read from metadata; of the packages only torch is imported, and a torch that breaks is a finding like any other.
"""

import importlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from safelight.probe import packages
from safelight.probe.device import GIB, ROOT, Device, Memory, choose, cores, gib, ram
from safelight.probe.findings import Finding, lines, worst
from safelight.probe.kernels import attention_kernels, matmul_seconds
from safelight.probe.variables import allocator_findings, variable_findings

__all__ = ["Finding", "examine", "lines", "worst"]

# wheels of PyTorch's family without a label like "+cpu" are for CUDA on Linux x86-64, and for the CPU elsewhere
UNLABELLED_IS_CUDA = (platform.system(), platform.machine()) == ("Linux", "x86_64")


def examine(
    environment: Mapping[str, str],
    *,
    version: Callable[[str], str | None] = packages.version,
    requires: Callable[[str], list[str]] = packages.requires,
    load: Callable[[str], Any] = importlib.import_module,
    clock: Callable[[], float] = time.perf_counter,
    root: Path = ROOT,
    home: Path | None = None,
) -> list[Finding]:
    """Everything, in the order in which a person should mend it. A few seconds, most of them torch's import."""
    found = [Finding("ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    found += package_findings(version)
    found += pair_findings(version, requires, unlabelled_is_cuda=UNLABELLED_IS_CUDA)
    torch, torch_findings = loaded_torch(load, version, environment, root)
    found += torch_findings
    if version("psutil") is not None:  # without it nothing is known of the memory, and its absence is reported
        found += [] if torch is None else device_findings(torch, clock, root)
        found += memory_findings(ram(root))
    found += disk_findings(environment, home or Path.home())
    found += allocator_findings(environment)
    found += variable_findings(environment, cores(root))
    return found


# -- packages ----------------------------------------------------------------------------------------------------------

# name -> (the least version, why that one)
NEEDED = {
    "torch": ("2.6", "CVE-2025-32434: loading a checkpoint can run its code, even with weights_only=True"),
    "diffusers": ("0.38", "CVE-2026-44513 and CVE-2026-45804: a model's repository can run its code"),
    "transformers": ("5.3", "CVE-2026-4372: a config.json can run code, even with trust_remote_code=False"),
    "accelerate": ("0.31", "diffusers asks for it"),
    "safetensors": ("0.8", "diffusers asks for it"),
    "huggingface_hub": ("1.32", "diffusers asks for it"),
    "psutil": ("5", "accelerate asks for it"),
}
OPTIONAL = {
    "xformers": "attention kernels",
    "flash-attn": "attention kernels",
    "sageattention": "attention in 8 bit",
    "torchao": "quantization",
    "bitsandbytes": "quantization",
    "peft": "LoRA",
}


def package_findings(version: Callable[[str], str | None]) -> list[Finding]:
    found = []
    for name, (floor, why) in NEEDED.items():
        installed = version(name)
        if installed is None:
            found.append(Finding("error", name, "is not installed", f"pip install {name}"))
        elif not packages.is_at_least(installed, floor):
            mend = f'pip install --upgrade "{name}>={floor}"'
            found.append(Finding("error", name, f"{installed} is older than {floor}: {why}", mend))
        else:
            found.append(Finding("ok", name, installed))
    here = {name: installed for name in OPTIONAL if (installed := version(name))}
    found += [Finding("ok", name, f"{installed} ({OPTIONAL[name]})") for name, installed in here.items()]
    if absent := [name for name in OPTIONAL if name not in here]:
        found.append(Finding("ok", "optional", f"not installed, and not needed: {', '.join(absent)}"))
    return found


# Each is compiled against one torch. How bad a wrong one is: transformers imports torchvision and diffusers imports
# xformers as soon as they are installed, so that nothing loads any more; torchaudio is left alone.
COMPILED = {"torchvision": "error", "xformers": "error", "torchaudio": "warning"}


def pair_findings(
    version: Callable[[str], str | None], requires: Callable[[str], list[str]], *, unlabelled_is_cuda: bool
) -> list[Finding]:
    """Packages compiled for another torch, from metadata: importing them is what breaks."""
    torch = version("torch")
    found = []
    for name, level in COMPILED.items():
        installed = version(name)
        if torch is None or installed is None:
            continue
        reason = _wanted_torch(requires(name), torch)
        if not reason and unlabelled_is_cuda and name != "xformers":  # there is no CPU build of that
            reason = _other_build(installed, torch)
        if reason:
            says = f"{installed} {reason}, torch {torch} is installed"
            found.append(Finding(level, name, says, f"pip uninstall {name} (Safelight does not use it)"))
    return found


def _wanted_torch(requirements: list[str], torch: str) -> str:
    """ "is built for torch==2.12.0" when that excludes the installed torch, else ""."""
    for text in requirements:
        try:
            requirement, installed = Requirement(text), Version(torch)
        except (InvalidRequirement, InvalidVersion):
            continue
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if requirement.name == "torch" and applies and not requirement.specifier.contains(installed, prereleases=True):
            return f"is built for torch{requirement.specifier}"
    return ""


def _other_build(installed: str, torch: str) -> str:
    """One of the two for the CPU ("+cpu"), the other for CUDA: they do not find each other's operators."""
    is_cpu = [text.endswith("+cpu") for text in (installed, torch)]
    return "" if is_cpu[0] == is_cpu[1] else f"is a {'CPU' if is_cpu[0] else 'CUDA'} build"


# -- torch and the device ----------------------------------------------------------------------------------------------


def loaded_torch(
    load: Callable[[str], Any], version: Callable[[str], str | None], environment: Mapping[str, str], root: Path
) -> tuple[Any, list[Finding]]:
    """The module, None when it is not there or breaks; and what to say of it."""
    if version("torch") is None:
        return None, []
    try:
        torch = load("torch")
    except (ImportError, OSError, RuntimeError) as error:
        says = f"is installed but does not load: {' '.join(str(error).split())[:300]}"
        return None, [Finding("error", "torch", says, "pip install --force-reinstall torch")]
    return torch, [*build_findings(torch, has_nvidia_driver(environment, root)), thread_finding(torch, cores(root))]


def has_nvidia_driver(environment: Mapping[str, str], root: Path) -> bool:
    path = environment.get("PATH", "")
    return (root / "proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi", path=path) is not None


def build_findings(torch: Any, has_driver: bool) -> list[Finding]:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "ROCm" if torch.version.hip else "no CUDA"
    if has_driver and build == "no CUDA":
        mend = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu128"
        return [Finding("warning", "torch build", "no CUDA in it, but an NVIDIA driver is here: the card idles", mend)]
    if torch.version.cuda and not torch.cuda.is_available():
        mend = "check nvidia-smi, and CUDA_VISIBLE_DEVICES" if has_driver else ""
        level = "warning" if has_driver else "note"
        return [Finding(level, "torch build", f"{build}, but it finds no card", mend)]
    return [Finding("ok", "torch build", build)]


def thread_finding(torch: Any, available: int) -> Finding:
    threads = torch.get_num_threads()
    says = f"{threads} for {available} available processors"
    if threads > available:
        return Finding("warning", "threads", f"{says}: they wait for each other", f"export OMP_NUM_THREADS={available}")
    # torch starts a thread per core, and a core often shows as two processors
    if threads < available // 2:
        return Finding("note", "threads", f"{says}: some idle", f"export OMP_NUM_THREADS={available}")
    return Finding("ok", "threads", says)


def device_findings(torch: Any, clock: Callable[[], float], root: Path) -> list[Finding]:
    try:
        device = choose(None, torch, root)
        kernels = attention_kernels(torch, device)
        seconds = matmul_seconds(torch, device, clock)
    except RuntimeError as error:  # a driver that is too old, a card that fell off the bus
        says = f"torch finds it but cannot use it: {' '.join(str(error).split())[:300]}"
        return [Finding("error", "device", says, "update the driver, restart, or use --device cpu")]
    traits = ", ".join((*device.fast_dtypes, *device.features))
    memory = f"{gib(device.free_bytes)} of {gib(device.memory_bytes)} free"
    found = [Finding("ok", "device", f"{device.torch_name}: {device.name}, {memory}; {traits}")]
    found += [Finding("note", "device", text) for text in device.findings]
    if device.kind != "cpu" and device.free_bytes < device.memory_bytes / 2:
        found.append(Finding("note", "device", "more than half of its memory is taken", "end what else uses the card"))
    return [*found, *kernel_findings(kernels), *speed_findings(seconds, device)]


def kernel_findings(kernels: Mapping[str, list[str]]) -> list[Finding]:
    runs = [f"{name} ({', '.join(dtypes)})" for name, dtypes in kernels.items() if dtypes]
    rest = [name for name, dtypes in kernels.items() if not dtypes]
    if not runs:
        return [Finding("error", "attention", "no kernel runs here", "pip install --force-reinstall torch")]
    return [Finding("ok", "attention", f"runs: {'; '.join(runs)}" + (f". Does not: {', '.join(rest)}" if rest else ""))]


def speed_findings(seconds: Mapping[str, float], device: Device) -> list[Finding]:
    """How much faster or slower 16 bits are than float32 on this very device."""
    found = []
    for dtype in ("bfloat16", "float16"):
        gain = seconds["float32"] / max(seconds[dtype], 1e-9)
        if gain >= 1:
            # a product of matrices is not all; the device knows better which format serves a whole model
            usable = "" if dtype in device.fast_dtypes else ", in matrix products only"
            found.append(Finding("ok", "speed", f"{dtype} is {gain:.1f} times as fast as float32{usable}"))
        else:
            instead = " or ".join(name for name in reversed(device.fast_dtypes) if name != dtype)
            found.append(
                Finding("note", "speed", f"{dtype} is {1 / gain:.1f} times slower than float32", f"use {instead}")
            )
    return found


# -- memory and disk ---------------------------------------------------------------------------------------------------


def memory_findings(memory: Memory) -> list[Finding]:
    swap = gib(memory.swap_bytes) if memory.swap_bytes else "none"
    says = f"{gib(memory.free_bytes)} of {gib(memory.total_bytes)} free, swap {swap}"
    # Stable Diffusion 1.5 holds 2 GiB of weights in 16 bits and twice that in float32
    level, mend = ("warning", "close other programs") if memory.free_bytes < 4 * GIB else ("ok", "")
    found = [Finding(level, "memory", says, mend)]
    if memory.total_bytes < memory.machine_bytes:
        says = f"a limit on this process allows {gib(memory.total_bytes)}, the machine has {gib(memory.machine_bytes)}"
        found.append(Finding("note", "memory", says, "raise it if you may: docker run --memory, systemd's MemoryMax"))
    if memory.swapped_bytes > GIB:
        says = f"{gib(memory.swapped_bytes)} are swapped out: runs stall while they come back"
        found.append(Finding("note", "memory", says, "close other programs"))
    return found


def hub_cache(environment: Mapping[str, str], home: Path) -> Path:
    """Where models from the hub are kept, found as huggingface_hub finds it."""
    if folder := environment.get("HF_HUB_CACHE"):
        return Path(folder).expanduser()
    cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    return Path(environment.get("HF_HOME") or cache / "huggingface").expanduser() / "hub"


def disk_findings(environment: Mapping[str, str], home: Path) -> list[Finding]:
    folder = hub_cache(environment, home)
    there = next((path for path in (folder, *folder.parents) if path.is_dir()), None)
    if there is None:
        return [Finding("error", "disk", f"{folder} cannot be made: no folder above it is there", "export HF_HOME=...")]
    if not os.access(there, os.W_OK):
        return [
            Finding("warning", "disk", f"{there} may not be written: no model can be downloaded", "export HF_HOME=...")
        ]
    free = shutil.disk_usage(there).free
    says = f"{gib(free)} free for models in {folder}"
    # Stable Diffusion XL in 16 bits is 7 GB, FLUX.1 is 34 GB
    if free < 10 * GIB:
        return [Finding("warning", "disk", says, "make room (hf cache prune), or export HF_HOME to a larger disk")]
    return [Finding("ok", "disk", says)]
