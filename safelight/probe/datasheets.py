"""What the makers say of their cards: one row each, with its source. Numbers only; cards.py reads them.

Rates are dense peaks (never "with sparsity") in TFLOPS, float16 and float8 with float32 accumulation, as torch asks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

# Of the memory that is sold, what torch reports, after firmware and error correction: RTX 3080 9.77 of 10 GiB,
# RTX 4090 23.65 of 24, T4 14.74 of 16, L40S 44.4 of 48, A100 79.2 of 80, H200 139.8 of 141.
GDDR, CORRECTED, HBM, RAM = 0.98, 0.922, 0.99, 0.97
PCIE3, PCIE4, PCIE5 = 12.0, 24.0, 50.0  # GB/s from pinned memory, 16 lanes; 8 lanes carry half


@dataclass(frozen=True, slots=True)
class Card:
    """A row.

    name: as torch reports it. memory: GiB as sold. reported: the share of it that torch reports. share: a key of
    cards.SHARES. bandwidth, link: GB/s; a link of None means one memory for both. A format of None has no unit.
    """

    name: str
    memory: float
    reported: float
    capability: tuple[int, int]
    float32: float
    tf32: float | None
    float16: float | None
    bfloat16: float | None
    float8: float | None
    bandwidth: float
    link: float | None
    share: str
    source: str
    kind: str = "cuda"
    features: tuple[str, ...] | None = None  # None: those of its capability


@dataclass(frozen=True, slots=True)
class Generation:
    """GeForce cards of one design: what their tensor cores do per float32 TFLOPS, accumulating in float32."""

    capability: tuple[int, int]
    tf32: float | None
    float16: float
    bfloat16: float | None
    float8: float | None
    share: str


# NVIDIA's architecture whitepapers, float32, float16, float8: Turing RTX 2080 Ti 13.4, 53.8; GA102 RTX 3080 29.8, 59.5;
# Ada RTX 4090 82.6, 165.2, 330.3; RTX Blackwell RTX 5090 104.8, 209.5, 419
GTX = Generation((7, 5), tf32=None, float16=2, bfloat16=None, float8=None, share="plain")
TURING = Generation((7, 5), tf32=None, float16=4, bfloat16=None, float8=None, share="volta")
AMPERE = Generation((8, 6), tf32=1, float16=2, bfloat16=2, float8=None, share="geforce")
ADA = Generation((8, 9), tf32=1, float16=2, bfloat16=2, float8=4, share="geforce")
BLACKWELL = Generation((12, 0), tf32=1, float16=2, bfloat16=2, float8=4, share="geforce")
# half precision runs at 1/64 there, so that cuBLAS and cuDNN compute in float32
PASCAL = Generation((6, 1), tf32=None, float16=1, bfloat16=None, float8=None, share="plain")

DESKTOP = "https://www.nvidia.com/en-us/geforce/graphics-cards/compare/"
LAPTOP = "https://www.nvidia.com/en-us/geforce/laptops/compare/"
TECHPOWERUP = "https://www.techpowerup.com/gpu-specs/"
NVIDIA = "https://www.nvidia.com/en-us/data-center/"


def _geforce(
    name: str, memory: float, design: Generation, float32: float, bandwidth: float, link: float, source: str = DESKTOP
) -> Card:
    def peak(factor: float | None) -> float | None:
        return None if factor is None else round(factor * float32, 2)

    tensor = (peak(design.tf32), peak(design.float16), peak(design.bfloat16), peak(design.float8))
    name = f"NVIDIA GeForce {name}"
    return Card(name, memory, GDDR, design.capability, float32, *tensor, bandwidth, link, design.share, source)


def _laptop(name: str, memory: float, design: Generation, float32: float, bandwidth: float, link: float) -> Card:
    """float32: at the boost clock of a middling power limit; makers allow 60 to 175 W. Mostly 8 lanes are wired."""
    return _geforce(f"{name} Laptop GPU", memory, design, float32, bandwidth, link / 2, LAPTOP)


Peaks = tuple[float, float | None, float, float | None]
A100: Peaks = (19.5, 156, 312, None)
H100: Peaks = (66.9, 494, 989, 1979)


def _nvidia(
    name: str,
    memory: float,
    reported: float,
    capability: tuple[int, int],
    peaks: Peaks,
    bandwidth: float,
    link: float,
    share: str,
    page: str,
) -> Card:
    """peaks: float32, tf32, 16 bits (bfloat16 too since Ampere), float8. page: under NVIDIA's data center."""
    float32, tf32, half, float8 = peaks
    bfloat16 = half if capability >= (8, 0) else None
    rates = (float32, tf32, half, bfloat16, float8)
    return Card(name, memory, reported, capability, *rates, bandwidth, link, share, f"{NVIDIA}{page}")


CARDS: Mapping[str, Card] = {
    # GeForce: memory GiB, design, float32 TFLOPS = 2 x cores x boost clock, GB/s, link
    "gtx-1080-ti-11gb": _geforce(
        "GTX 1080 Ti", 11, PASCAL, 11.34, 484, PCIE3, f"{TECHPOWERUP}geforce-gtx-1080-ti.c2877"
    ),
    "gtx-1660-6gb": _geforce("GTX 1660", 6, GTX, 5.03, 192, PCIE3),
    "gtx-1660-super-6gb": _geforce("GTX 1660 SUPER", 6, GTX, 5.03, 336, PCIE3),
    "gtx-1660-ti-6gb": _geforce("GTX 1660 Ti", 6, GTX, 5.44, 288, PCIE3),
    "rtx-2060-6gb": _geforce("RTX 2060", 6, TURING, 6.45, 336, PCIE3),
    "rtx-2070-8gb": _geforce("RTX 2070", 8, TURING, 7.46, 448, PCIE3),
    "rtx-2080-ti-11gb": _geforce("RTX 2080 Ti", 11, TURING, 13.45, 616, PCIE3),
    "rtx-3050-8gb": _geforce("RTX 3050", 8, AMPERE, 9.1, 224, PCIE4 / 2),
    "rtx-3060-12gb": _geforce("RTX 3060", 12, AMPERE, 12.74, 360, PCIE4),
    "rtx-3060-ti-8gb": _geforce("RTX 3060 Ti", 8, AMPERE, 16.2, 448, PCIE4),
    "rtx-3070-8gb": _geforce("RTX 3070", 8, AMPERE, 20.31, 448, PCIE4),
    "rtx-3070-ti-8gb": _geforce("RTX 3070 Ti", 8, AMPERE, 21.75, 608, PCIE4),
    "rtx-3080-10gb": _geforce("RTX 3080", 10, AMPERE, 29.77, 760, PCIE4),
    "rtx-3080-12gb": _geforce("RTX 3080", 12, AMPERE, 30.64, 912, PCIE4),
    "rtx-3080-ti-12gb": _geforce("RTX 3080 Ti", 12, AMPERE, 34.1, 912, PCIE4),
    "rtx-3090-24gb": _geforce("RTX 3090", 24, AMPERE, 35.58, 936, PCIE4),
    "rtx-3060-laptop-6gb": _laptop("RTX 3060", 6, AMPERE, 10.94, 336, PCIE4),
    "rtx-3070-laptop-8gb": _laptop("RTX 3070", 8, AMPERE, 15.97, 448, PCIE4),
    "rtx-3080-laptop-8gb": _laptop("RTX 3080", 8, AMPERE, 18.98, 448, PCIE4),
    "rtx-3080-laptop-16gb": _laptop("RTX 3080", 16, AMPERE, 18.98, 448, PCIE4),
    "rtx-4060-8gb": _geforce("RTX 4060", 8, ADA, 15.11, 272, PCIE4 / 2),
    "rtx-4060-ti-8gb": _geforce("RTX 4060 Ti", 8, ADA, 22.06, 288, PCIE4 / 2),
    "rtx-4060-ti-16gb": _geforce("RTX 4060 Ti", 16, ADA, 22.06, 288, PCIE4 / 2),
    "rtx-4070-12gb": _geforce("RTX 4070", 12, ADA, 29.15, 504, PCIE4),
    "rtx-4070-super-12gb": _geforce("RTX 4070 SUPER", 12, ADA, 35.48, 504, PCIE4),
    "rtx-4070-ti-12gb": _geforce("RTX 4070 Ti", 12, ADA, 40.09, 504, PCIE4),
    "rtx-4070-ti-super-16gb": _geforce("RTX 4070 Ti SUPER", 16, ADA, 44.1, 672, PCIE4),
    "rtx-4080-16gb": _geforce("RTX 4080", 16, ADA, 48.74, 717, PCIE4),
    "rtx-4080-super-16gb": _geforce("RTX 4080 SUPER", 16, ADA, 52.22, 736, PCIE4),
    "rtx-4090-24gb": _geforce("RTX 4090", 24, ADA, 82.58, 1008, PCIE4),
    "rtx-4060-laptop-8gb": _laptop("RTX 4060", 8, ADA, 11.61, 256, PCIE4),
    "rtx-4070-laptop-8gb": _laptop("RTX 4070", 8, ADA, 15.62, 256, PCIE4),
    "rtx-4080-laptop-12gb": _laptop("RTX 4080", 12, ADA, 24.72, 432, PCIE4),
    "rtx-4090-laptop-16gb": _laptop("RTX 4090", 16, ADA, 32.98, 576, PCIE4),
    "rtx-5060-8gb": _geforce("RTX 5060", 8, BLACKWELL, 19.18, 448, PCIE5 / 2),
    "rtx-5060-ti-8gb": _geforce("RTX 5060 Ti", 8, BLACKWELL, 23.7, 448, PCIE5 / 2),
    "rtx-5060-ti-16gb": _geforce("RTX 5060 Ti", 16, BLACKWELL, 23.7, 448, PCIE5 / 2),
    "rtx-5070-12gb": _geforce("RTX 5070", 12, BLACKWELL, 30.87, 672, PCIE5),
    "rtx-5070-ti-16gb": _geforce("RTX 5070 Ti", 16, BLACKWELL, 43.94, 896, PCIE5),
    "rtx-5080-16gb": _geforce("RTX 5080", 16, BLACKWELL, 56.28, 960, PCIE5),
    "rtx-5090-32gb": _geforce("RTX 5090", 32, BLACKWELL, 104.75, 1792, PCIE5),
    "rtx-5090-laptop-24gb": _laptop("RTX 5090", 24, BLACKWELL, 31.8, 896, PCIE5),
    # the others: memory, how much of it is reported, capability, (float32, tf32, 16 bits, float8), GB/s, link, share
    "t4-16gb": _nvidia("Tesla T4", 16, CORRECTED, (7, 5), (8.1, None, 65, None), 320, PCIE3, "capped", "tesla-t4/"),
    "v100-16gb": _nvidia(
        "Tesla V100-SXM2-16GB", 16, HBM, (7, 0), (15.7, None, 125, None), 900, PCIE3, "volta", "v100/"
    ),
    "v100-32gb": _nvidia(
        "Tesla V100-SXM2-32GB", 32, HBM, (7, 0), (15.7, None, 125, None), 900, PCIE3, "volta", "v100/"
    ),
    "a10-24gb": _nvidia(
        "NVIDIA A10", 24, CORRECTED, (8, 6), (31.2, 62.5, 125, None), 600, PCIE4, "ampere", "products/a10-gpu/"
    ),
    # 72 W: like T4, it cannot hold its peak
    "l4-24gb": _nvidia("NVIDIA L4", 24, CORRECTED, (8, 9), (30.3, 60.5, 121, 242), 300, PCIE4, "capped", "l4/"),
    "l40s-48gb": _nvidia("NVIDIA L40S", 48, CORRECTED, (8, 9), (91.6, 183, 362, 733), 864, PCIE4, "ampere", "l40s/"),
    "a100-40gb": _nvidia("NVIDIA A100-SXM4-40GB", 40, HBM, (8, 0), A100, 1555, PCIE4, "ampere", "a100/"),
    "a100-80gb": _nvidia("NVIDIA A100-SXM4-80GB", 80, HBM, (8, 0), A100, 2039, PCIE4, "ampere", "a100/"),
    "a100-pcie-80gb": _nvidia("NVIDIA A100 80GB PCIe", 80, HBM, (8, 0), A100, 1935, PCIE4, "ampere", "a100/"),
    "h100-80gb": _nvidia("NVIDIA H100 80GB HBM3", 80, HBM, (9, 0), H100, 3352, PCIE5, "hopper", "h100/"),
    "h100-pcie-80gb": _nvidia(
        "NVIDIA H100 PCIe", 80, HBM, (9, 0), (51.2, 378, 756, 1513), 2039, PCIE5, "hopper", "h100/"
    ),
    "h200-141gb": _nvidia("NVIDIA H200", 141, HBM, (9, 0), H100, 4800, PCIE5, "hopper", "h200/"),
    # like every card of 2025, not calibrated
    "b200-180gb": _nvidia("NVIDIA B200", 180, HBM, (10, 0), (75, 1100, 2250, 4500), 7700, PCIE5, "hopper", "hgx/"),
    # its TF32 (654) is not what torch uses as it is installed; the "capability" is gfx942
    "mi300x-192gb": Card(
        *("AMD Instinct MI300X", 192, HBM, (9, 4), 163.4, None, 1307, 1307, 2615, 5300, PCIE5, "rocm"),
        source="https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html",
        features=("rocm",),
    ),
    # 8 cores x 3.5 GHz x 32 FLOP, two channels of DDR4-3200
    "cpu-8-cores-avx2": Card(
        *("8 cores with AVX2", 32, RAM, (0, 0), 0.9, None, None, None, None, 51, None, "cpu"),
        source="https://www.intel.com/content/www/us/en/developer/articles/technical/intel-sdm.html",
        kind="cpu",
        features=("avx2",),
    ),
    # 8 cores x 3.0 GHz x 64 FLOP in AVX-512, x 2.6 GHz x 2048 in AMX; what 8 cores draw of eight channels of DDR5-4800
    "cpu-8-cores-amx": Card(
        *("8 cores with AMX", 64, RAM, (0, 0), 1.54, None, None, 42.6, None, 100, None, "cpu"),
        source="https://www.intel.com/content/www/us/en/products/docs/accelerator-engines/advanced-matrix-extensions.html",
        kind="cpu",
        features=("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"),
    ),
}
