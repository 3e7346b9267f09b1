"""The kernels that can compute attention: one table, what each needs, and one small real call to see that it runs.

diffusers' functions are called by their entry in its registry. Its set_attention_backend is not used: that changes no
processor of a UNet or of SD3, and leaves a process-wide setting behind (diffusers issue 14249).
"""

import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from safelight.errors import UnknownName
from safelight.optimizers.diversion import Call, Kernel
from safelight.optimizers.target import Target
from safelight.probe import packages
from safelight.probe.device import Device

HALF = ("float16", "bfloat16")
ALL = frozenset({"mask", "dropout", "causal", "corner", "scale", "gqa"})
USUAL = frozenset({"causal", "scale"})
Package = tuple[str, str | None, str | None]  # name, at least, how to get it; as packages.missing takes them

FLASH_2: Package = ("flash-attn", "2.6.3", "pip install flash-attn --no-build-isolation")
FLASH_3: Package = ("flash-attn-3", None, "build hopper/ of https://github.com/Dao-AILab/flash-attention")
# the package index ends at 1.0.6
SAGE: Package = ("sageattention", "2.1.1", "install from https://github.com/thu-ml/SageAttention")
XFORMERS: Package = ("xformers", "0.0.29", None)
HUB: Package = ("kernels", "0.12", None)
HUB_4: Package = ("kernels", "0.12.3", None)
NPU: Package = ("torch-npu", None, None)
XLA: Package = ("torch-xla", "2.2", None)


@dataclass(frozen=True, slots=True)
class Backend:
    """One kernel.

    diffusers: its name there. kinds: of devices. sdpa: torch's own SDPBackend, "" for a function of diffusers' or of a
    package. operator: what the name of torch's operator then contains. package: what it needs. least, most: CUDA
    capability, of NVIDIA's cards. dtypes: the ones it computes in on anything but a CPU, () for any. takes: what it
    respects beside query, key and value (ALL names it all); a call with anything else is left to torch. channels: of
    one head, at most. rounds: False where it computes in 8 bits or fewer, which is more than rounding. other: further
    names that people write.
    """

    diffusers: str
    kinds: tuple[str, ...]
    sdpa: str = ""
    operator: str = ""
    package: Package | None = None
    least: tuple[int, int] = (0, 0)
    most: tuple[int, int] = (99, 0)
    dtypes: tuple[str, ...] = ()
    takes: frozenset[str] = ALL
    channels: int = 2**20
    rounds: bool = True
    other: tuple[str, ...] = ()


def _flash(
    name: str, package: Package, least: tuple[int, int] = (8, 0), channels: int = 256, other: tuple[str, ...] = ()
) -> Backend:
    return Backend(name, ("cuda",), "", "", package, least, dtypes=HALF, takes=USUAL, channels=channels, other=other)


def _sage(
    name: str,
    package: Package,
    least: tuple[int, int] = (8, 0),
    most: tuple[int, int] = (99, 0),
    takes: frozenset[str] = USUAL,
) -> Backend:
    return Backend(name, ("cuda",), "", "", package, least, most, HALF, takes, channels=128, rounds=False)


# Versions and what a kernel takes: diffusers 0.42.1, models/attention_dispatch.py. Cards and channels: the kernels' own
# READMEs. Masks are left to torch for all that are not torch's own: flash and sage refuse them, the "varlen" ones keep
# of a mask only which keys some query sees, flex reads a mask of heads wrongly and drops is_causal (run and seen).
# "math" has no operator of its own: it falls apart into matrix products and a softmax.
BACKENDS: dict[str, Backend] = {
    "native": Backend("native", ("cpu", "cuda", "xpu", "mps"), other=("sdpa", "default")),
    "flash": Backend("_native_flash", ("cpu", "cuda", "xpu"), "FLASH_ATTENTION", "_flash_attention", dtypes=HALF),
    "efficient": Backend("_native_efficient", ("cuda",), "EFFICIENT_ATTENTION", "_efficient_attention"),
    "cudnn": Backend("_native_cudnn", ("cuda",), "CUDNN_ATTENTION", "_cudnn_attention", dtypes=HALF),
    "math": Backend("_native_math", ("cpu", "cuda", "xpu", "mps"), "MATH", "softmax"),
    "flex": Backend("flex", ("cpu", "cuda", "xpu"), takes=frozenset({"scale", "gqa"})),
    "flash-2": _flash("flash", FLASH_2, other=("flash-attn", "flash-attention-2", "fa2")),
    "flash-2-varlen": _flash("flash_varlen", FLASH_2),
    "flash-2-hub": _flash("flash_hub", HUB),
    "flash-2-varlen-hub": _flash("flash_varlen_hub", HUB),
    "flash-3": _flash("_flash_3", FLASH_3, (9, 0), other=("flash-attention-3", "fa3")),
    "flash-3-varlen": _flash("_flash_varlen_3", FLASH_3, (9, 0)),
    "flash-3-hub": _flash("_flash_3_hub", HUB, (9, 0)),
    "flash-3-varlen-hub": _flash("_flash_3_varlen_hub", HUB, (9, 0)),
    "flash-4-hub": _flash("flash_4_hub", HUB_4, (9, 0), 128, ("flash-4", "flash-attention-4", "fa4")),
    "sage": _sage("sage", SAGE, (8, 0)),
    "sage-varlen": _sage("sage_varlen", SAGE),
    "sage-fp16": _sage("_sage_qk_int8_pv_fp16_cuda", SAGE),
    "sage-fp16-triton": _sage("_sage_qk_int8_pv_fp16_triton", SAGE),
    "sage-fp8": _sage("_sage_qk_int8_pv_fp8_cuda", SAGE, (8, 9)),
    "sage-fp8-sm90": _sage("_sage_qk_int8_pv_fp8_cuda_sm90", SAGE, (9, 0), (9, 0)),
    "sage-hub": _sage("sage_hub", HUB),
    "sage-blackwell-hub": _sage("sage_blackwell_hub", HUB, (12, 0), takes=frozenset({"causal"})),
    "xformers": Backend("xformers", ("cuda",), package=XFORMERS, takes=USUAL),
    "aiter": Backend("aiter_fa2_hub", ("cuda",), package=HUB, dtypes=("bfloat16",), takes=USUAL, channels=256),
    "npu": Backend("_native_npu", ("npu",), package=NPU, dtypes=HALF, takes=frozenset({"scale"})),
    "xla": Backend("_native_xla", ("xla",), package=XLA, takes=frozenset({"causal"})),
}


def normal(name: str) -> str:
    """ "_Native_Flash" -> "native-flash"."""
    return name.strip().lower().replace("_", "-").strip("-")


def find(written: str) -> str:
    """Our name for a backend, from ours, diffusers' or another; "flash" is torch's flash kernel. Raises UnknownName."""
    wanted = normal(written)
    if wanted in BACKENDS:
        return wanted
    others = {other: name for name, known in BACKENDS.items() for other in (normal(known.diffusers), *known.other)}
    if wanted not in others:
        raise UnknownName("attention backend", written, BACKENDS, also=others)
    return others[wanted]


def reason_against(name: str, target: Target) -> str | None:
    """Why the backend cannot compute here, or None."""
    backend, device = BACKENDS[name], target.device
    on_nvidia = device.kind == "cuda" and "rocm" not in device.features
    if device.kind not in backend.kinds:
        return f"the {name} kernel runs on {' and '.join(backend.kinds)}, not on {device.kind}"
    if name == "aiter" and on_nvidia:
        return "the aiter kernel runs on AMD's cards"
    if on_nvidia and not backend.least <= device.capability <= backend.most:
        return f"the {name} kernel needs {_cards(backend)}; {device.name} has {_dotted(device.capability)}"
    if not device.elsewhere and backend.package and (missing := packages.missing(*backend.package)):
        return f"the {name} kernel {missing}"
    if backend.dtypes and device.kind != "cpu" and target.dtype not in backend.dtypes:
        return f"the {name} kernel computes in {' or '.join(backend.dtypes)}, not in {target.dtype}: add dtype=bfloat16"
    if not device.elsewhere and not runs(name, device, target.dtype):
        return f"the {name} kernel is listed but fails on {device.name} in {target.dtype}"
    return None


def _cards(backend: Backend) -> str:
    least = _dotted(backend.least)
    return f"CUDA capability {least}" if backend.least == backend.most else f"CUDA capability {least} or later"


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


# what a kernel that is missing or broken answers: torch, diffusers' checks, a package's import, the hub
REFUSALS = (RuntimeError, ValueError, ImportError, OSError)


def runs(name: str, device: Device, dtype: str) -> bool:
    """Whether one small call comes through with the right result: what is listed may be missing all the same."""
    import torch

    drawn = torch.randn(3, 1, 2, 16, 64, generator=torch.Generator().manual_seed(0))
    expected = Call(*drawn).plain()
    call = Call(*drawn.to(device.torch_name, getattr(torch, dtype)))
    with warnings.catch_warnings():  # torch explains every refusal in a warning
        warnings.simplefilter("ignore")
        try:
            found = _on(name, call)
        except REFUSALS:
            return False
    # 0.1: of numbers around 0.5, so that also 8 bits pass, and heads taken for tokens do not
    return bool((found.float().cpu() - expected).abs().max() < 0.1)


def _on(name: str, call: Call) -> Any:
    with held(name):
        return kernel_of(name)(call)


def held(name: str) -> Any:
    """torch's own context that holds it to one of its kernels; nothing for any other backend."""
    from torch.nn import attention

    sdpa = BACKENDS[name].sdpa
    return attention.sdpa_kernel(getattr(attention.SDPBackend, sdpa)) if sdpa else nullcontext()


def kernel_of(name: str) -> Kernel:
    """The function that computes a Call. Raises one of REFUSALS where the package is broken."""
    backend = BACKENDS[name]
    if backend.sdpa or name == "native":
        return Call.plain
    from diffusers.models import attention_dispatch as dispatch

    entry = dispatch.AttentionBackendName(backend.diffusers)
    dispatch._check_attention_backend_requirements(entry)
    dispatch._maybe_download_kernel_for_backend(entry)
    function = dispatch._AttentionBackendRegistry._backends[entry]
    accepted = dispatch._AttentionBackendRegistry._supported_arg_names[entry]

    def kernel(call: Call) -> Any:
        # diffusers lays attention out as (batch, tokens, heads, channels)
        inputs = {side: getattr(call, side).transpose(1, 2) for side in ("query", "key", "value")}
        extra = {"is_causal": call.is_causal, "scale": call.scale, "enable_gqa": call.enable_gqa}
        return function(**inputs, **{key: value for key, value in extra.items() if key in accepted}).transpose(1, 2)

    return kernel


def too_much(backend: Backend, call: Call) -> str:
    """Why this call is not for the backend, in words that follow "calls"; "" where it is."""
    queries, keys, channels = call.query.shape[-2], call.key.shape[-2], call.query.shape[-1]
    asked: Iterable[tuple[str, bool, str]] = (
        ("mask", call.attn_mask is not None, "with a mask"),
        ("dropout", call.dropout_p > 0, "with dropout"),
        ("causal", call.is_causal, "in causal order"),
        # torch counts from the first key, flash-attn from the last
        ("corner", call.is_causal and queries != keys, "in causal order"),
        ("scale", call.scale not in (None, channels**-0.5), "with a scale"),
        ("gqa", call.enable_gqa, "with shared heads"),
    )
    for name, is_asked, words in asked:
        if is_asked and name not in backend.takes:
            return words
    if backend.takes == ALL:
        return ""
    if call.query.ndim != 4 or call.value.shape[-1] != channels:
        return "of another shape"
    if channels > backend.channels:
        return f"with {channels} channels a head"
    dtype = str(call.query.dtype).removeprefix("torch.")
    return f"in {dtype}" if backend.dtypes and dtype not in backend.dtypes else ""
