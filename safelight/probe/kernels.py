"""What really runs on a device, and how fast its number formats are: small real calls, under half a second in all."""

import warnings
from collections.abc import Callable
from typing import Any

from safelight.probe.device import Device

KERNELS = {"MATH": "math", "FLASH_ATTENTION": "flash", "EFFICIENT_ATTENTION": "efficient", "CUDNN_ATTENTION": "cudnn"}


def attention_kernels(torch: Any, device: Device) -> dict[str, list[str]]:
    """kernel -> the dtypes in which one small call came through with the right result.

    Called for real: torch accepts a backend's name also where the kernel is missing, and says so at the first call.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    attention = torch.nn.functional.scaled_dot_product_attention
    ran: dict[str, list[str]] = {name: [] for name in KERNELS.values()}
    query = torch.linspace(-1, 1, 2 * 16 * 64).reshape(1, 2, 16, 64)  # (batch, heads, tokens, channels)
    expected = attention(query, query, query)
    for backend, name in KERNELS.items():
        for dtype in device.fast_dtypes:
            cast = query.to(device.torch_name, getattr(torch, dtype))
            # torch explains every refusal in a warning
            with warnings.catch_warnings(), sdpa_kernel(getattr(SDPBackend, backend)):
                warnings.simplefilter("ignore")
                try:
                    result = attention(cast, cast, cast).float().cpu()
                except RuntimeError:
                    continue
            # 0.02: bfloat16 keeps 8 bits of numbers up to 1
            if (result - expected).abs().max() < 0.02:
                ran[name].append(dtype)
    return ran


def matmul_seconds(torch: Any, device: Device, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of one square matrix product per dtype: the best of ten, or of as many as fit into 0.03 s."""
    on_cpu = device.kind == "cpu"
    wait = (lambda: None) if on_cpu else getattr(torch, device.kind).synchronize
    side = 256 if on_cpu else 2048  # large enough that it is not the start of a kernel that is timed
    best = {}
    for dtype in ("float32", "bfloat16", "float16"):
        matrix = torch.ones(side, side, dtype=getattr(torch, dtype), device=device.torch_name)
        matrix @ matrix  # the first one loads the library
        times: list[float] = []
        while len(times) < 10 and sum(times) < 0.03:
            wait()
            started = clock()
            matrix @ matrix
            wait()
            times.append(clock() - started)
        best[dtype] = min(times)
    return best
