"""What a measurement was made with: versions, processor, device, threads, driver; and NVML, where pynvml is installed.

Comes in: a Device, the torch module. Goes out: a flat table for a result's file, with no name of a person, a machine or
a folder in it.
"""

import importlib
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.config import VERSION, environment
from safelight.probe import packages
from safelight.probe.device import ROOT, Device, cores, parse, ram

Facts = dict[str, str | int | float]
PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "peft",
    "torchao",
    "bitsandbytes",
    "xformers",
    "flash-attn",
    "sageattention",
    "cache-dit",
    "triton",
)
# what changes speed or memory; none of them holds a path
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
)
PYNVML = "nvidia-ml-py"


def facts(device: Device, torch: Any, card: "Card | None", root: Path = ROOT) -> Facts:
    """What is not known is left out."""
    memory = ram(root)
    found: dict[str, str | int | float | None] = {
        "safelight": VERSION,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        **{name: packages.version(name) for name in PACKAGES},
        "processor": processor(root),
        "cores": cores(root),
        "memory_bytes": memory.total_bytes,
        "threads": torch.get_num_threads(),
        "device": device.torch_name,
        "device_name": device.name,
        "device_memory_bytes": device.memory_bytes,
        **(_cuda(torch, device) if device.kind == "cuda" else {}),
        **(card.facts() if card else {}),
    }
    variables = environment()
    found |= {name: variables.get(name) for name in VARIABLES}
    return {name: value for name, value in found.items() if value is not None}


def processor(root: Path = ROOT) -> str:
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cuda(torch: Any, device: Device) -> dict[str, str | int | None]:
    return {
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
        "capability": ".".join(map(str, device.capability)),
    }


def load_average() -> float | None:
    """Processes that ran or waited to, on average of the last minute; None on Windows, which does not count them."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


# -- NVML --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Card:
    """A card as its driver sees it. nvml: the pynvml module. What a card does not tell is None."""

    nvml: Any
    handle: Any

    def _asked(self, question: Callable[[Any], Any]) -> Any:
        try:
            return question(self.handle)
        except self.nvml.NVMLError:  # not supported by this card, or not permitted
            return None

    def used_bytes(self) -> int | None:
        """Of the whole card, whoever took it."""
        memory = self._asked(self.nvml.nvmlDeviceGetMemoryInfo)
        return None if memory is None else int(memory.used)

    def energy_joules(self) -> float | None:
        """Since the driver was loaded; it counts in thousandths."""
        spent = self._asked(self.nvml.nvmlDeviceGetTotalEnergyConsumption)
        return None if spent is None else spent / 1000

    def utilisation(self) -> float | None:
        """Share of the last moments (1/6 s to 1 s) in which a kernel ran."""
        rates = self._asked(self.nvml.nvmlDeviceGetUtilizationRates)
        return None if rates is None else rates.gpu / 100

    def facts(self) -> Mapping[str, str | float | None]:
        limit = self._asked(self.nvml.nvmlDeviceGetPowerManagementLimit)
        usual = self._asked(self.nvml.nvmlDeviceGetPowerManagementDefaultLimit)
        driver = self.nvml.nvmlSystemGetDriverVersion()
        return {
            "driver": driver.decode() if isinstance(driver, bytes) else driver,
            "power_limit_watts": None if limit is None else limit / 1000,
            "power_limit_default_watts": None if usual is None else usual / 1000,
        }


def card(torch: Any, asked: str | None, nvml: Any = None) -> Card | None:
    """The card that a device's name means, found without touching it, so that its memory is still as it was before.

    None where it is no card of NVIDIA's, where there is no pynvml, or the driver has no NVML. By its UUID, as
    CUDA_VISIBLE_DEVICES numbers cards anew and NVML does not. nvml: the module, a seam.
    """
    kind, index = parse(asked, [])
    if kind not in (None, "cuda") or not torch.cuda.is_available() or torch.version.hip:
        return None
    if index >= torch.cuda.device_count() or (nvml is None and not packages.has(PYNVML)):
        return None
    if nvml is None:
        nvml = importlib.import_module("pynvml")
    uuid = str(torch.cuda.get_device_properties(index).uuid)
    try:
        nvml.nvmlInit()
        return Card(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"))
    except nvml.NVMLError:
        return None
