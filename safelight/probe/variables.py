"""Environment variables of other people's making that change speed, memory or results, and what is wrong with them.

Comes in: the environment as a mapping. Knows torch's allocator settings by name; nothing is imported or set.
"""

import re
from collections.abc import Mapping

from safelight.probe.findings import Finding

# torch 2.13: c10/core/AllocatorConfig.h and c10/cuda/CUDAAllocatorConfig.h
ALLOCATOR_SWITCHES = frozenset(
    {
        "expandable_segments",
        "graph_capture_record_stream_reuse",
        "pinned_free_catch_all",
        "pinned_use_background_threads",
        "pinned_use_cuda_host_register",
        "pinned_use_hip_host_register",
        "release_lock_on_cudamalloc",
        "release_lock_on_hipmalloc",
        "throw_on_cudamalloc_oom",
    }
)
ALLOCATOR_KEYS = ALLOCATOR_SWITCHES | {
    "backend",
    "garbage_collection_threshold",
    "large_segment_size_mb",
    "max_non_split_rounding_mb",
    "max_split_size_mb",
    "per_process_memory_fraction",
    "pinned_max_cached_size_mb",
    "pinned_max_round_threshold_mb",
    "pinned_num_register_threads",
    "pinned_reserve_segment_size_mb",
    "roundup_power2_divisions",
}
# "is ignored", says https://docs.pytorch.org/docs/stable/notes/cuda.html of each
NATIVE_ONLY = ("max_split_size_mb", "roundup_power2_divisions", "garbage_collection_threshold")
OLD, NEW = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"


def allocator_findings(environment: Mapping[str, str]) -> list[Finding]:
    found = []
    old, new = environment.get(OLD), environment.get(NEW)
    if old and new and settings_in(old) != settings_in(new):
        # torch 2.13 reads the old name first for CUDA's own options and the new one first for the rest;
        # torch 2.9.1 ignored the new one for CUDA (pytorch issue 183387)
        says = f"differs from {NEW}; which one counts depends on torch's version and on the option"
        found.append(Finding("warning", OLD, says, "set both to the same text"))
    for name in (OLD, NEW):
        if environment.get(name):
            found += _one_allocator(name, environment[name])
    return found


def _one_allocator(name: str, text: str) -> list[Finding]:
    settings = settings_in(text)
    if settings is None:
        says = f"{text!r} is not of the form key:value,key:value"
        return [Finding("error", name, says, f"export {name}=expandable_segments:True")]
    found = []
    for key in sorted(settings.keys() - ALLOCATOR_KEYS):
        found.append(Finding("warning", name, f"torch 2.13 has no option {key!r}", "remove it"))
    for key in sorted(settings.keys() & ALLOCATOR_SWITCHES):
        if settings[key] not in ("True", "False"):
            says = f"{key} is {settings[key]!r}: torch takes nothing but True and False"
            found.append(Finding("error", name, says, f"export {name}={key}:True"))
    if settings.get("expandable_segments") == "True" and "max_split_size_mb" in settings:
        # pytorch issue 119452; pull request 134338 then took expandable segments out of what the option may free, and
        # 193400 saw 220 MB reserved grow to 14 GB in 100 rounds of both, under 500 MB with either one
        says = "max_split_size_mb does not act on expandable segments, and with them memory can pile up"
        found.append(Finding("warning", name, says, f"export {name}=expandable_segments:True, alone"))
    if settings.get("backend") == "cudaMallocAsync":
        for key in NATIVE_ONLY:
            if key in settings:
                found.append(Finding("warning", name, f"{key} is ignored with backend:cudaMallocAsync", "remove one"))
    return found or [Finding("ok", name, text)]


def settings_in(text: str) -> dict[str, str] | None:
    """ "a:True,b:[1:2,>:3]" -> {"a": "True", "b": "[1:2,>:3]"}; None when it is not of this form."""
    settings = {}
    for pair in re.split(r",(?![^\[]*\])", text.replace(" ", "")):
        match = re.fullmatch(r"(\w+):(\[[^\[\]]*\]|[^:,\[\]]+)", pair)
        if match is None:
            return None
        settings[match[1]] = match[2]
    return settings


# variable -> (the values that matter, level, what it does, what to do)
ANY = re.compile(".*", re.DOTALL)
TRUE = re.compile("1|true|yes|on", re.IGNORECASE)
OFF = re.compile("0|false|no|off", re.IGNORECASE)
ONE_DEVICE = "is not acted on: several devices for one picture are not there yet"
VARIABLES = {
    "NVIDIA_TF32_OVERRIDE": [
        (re.compile("0"), "warning", "switches TF32 off in every NVIDIA library, whatever a program asks", "unset it"),
        (re.compile("1"), "note", "switches TF32 on where a program did not ask for it: results differ", "unset it"),
    ],
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": [
        (re.compile("1"), "note", "forces TF32 in matrix products, whatever a program asks: results differ", "unset it")
    ],
    "PYTORCH_NO_CUDA_MEMORY_CACHING": [
        (ANY, "warning", "every tensor is allocated by the driver: for debugging, and slow", "unset it")
    ],
    "CUDA_LAUNCH_BLOCKING": [
        (re.compile("1"), "warning", "the CPU waits for every kernel: for debugging, and slow", "unset it")
    ],
    "CUDA_VISIBLE_DEVICES": [
        (re.compile("|-1"), "note", "hides every NVIDIA card", "unset it"),
    ],
    "HF_HUB_OFFLINE": [
        (TRUE, "note", "nothing is downloaded: only models that are in the cache can be used", "")
    ],
    "DIFFUSERS_DISABLE_REMOTE_CODE": [
        (TRUE, "ok", "code from models' repositories is off everywhere", ""),
        (OFF, "note", "is overruled: Safelight never runs code from a model's repository", "unset it"),
    ],
    "CUDA_MODULE_LOADING": [
        (re.compile("LAZY", re.IGNORECASE), "ok", "loads kernels on their first use, as CUDA does since 12.2", ""),
        (re.compile("EAGER", re.IGNORECASE), "note", "loads every kernel at the start: slow, and large", "unset it"),
    ],
    # diffgentor's; config.py reads those that ask for something that is there
    **{
        f"DG_XDIT_{name}": [(re.compile("[2-9]|[1-9][0-9]+"), "note", ONE_DEVICE, "")]
        for name in ("DATA_PARALLEL_DEGREE", "ULYSSES_DEGREE", "RING_DEGREE", "PIPEFUSION_DEGREE")
    },
    "DG_XDIT_USE_CFG_PARALLEL": [(TRUE, "note", ONE_DEVICE, "")],
    "DG_STEP1X_OFFLOAD": [(TRUE, "ok", "asks for model-offload where a model is named step1x", "")],
    "DG_STEP1X_QUANTIZED": [
        (TRUE, "note", "quantization is not there yet: a model named step1x is refused", "unset it")
    ],
    "DG_FLUX_KONTEXT_OFFLOAD": [(TRUE, "ok", "asks for model-offload where a model is named kontext", "")],
    "DG_HUNYUAN_IMAGE_3_USE_TAYLOR_CACHE": [
        (TRUE, "ok", "asks for taylorseer-cache where a model is named hunyuan", "")
    ],
    "DG_HUNYUAN_IMAGE_3_ATTN_IMPL": [
        (re.compile("flash_attention_2"), "ok", "asks for attention-backend=flash where a model is named hunyuan", ""),
        (re.compile("sdpa"), "ok", "is what runs here anyway", ""),
    ],
    "SAFETENSORS_FAST_GPU": [
        (ANY, "note", "is read by nobody since June 2023 (accelerate pull request 1603)", "unset it")
    ],
}  # fmt: skip


def variable_findings(environment: Mapping[str, str], processors: int) -> list[Finding]:
    """processors: how many this process may use."""
    found = []
    for name, cases in VARIABLES.items():
        for values, level, says, mend in cases:
            if name in environment and values.fullmatch(environment[name].strip()):
                found.append(Finding(level, name, f"{environment[name]!r}: {says}", mend))
    return [*found, *_thread_findings(environment, processors)]


def _thread_findings(environment: Mapping[str, str], processors: int) -> list[Finding]:
    name = "OMP_NUM_THREADS"
    if name not in environment:
        return []
    first = environment[name].split(",")[0].strip()  # a list gives one number per nesting level
    mend = f"export {name}={processors}, or unset it"
    if not first.isascii() or not first.isdigit() or int(first) == 0:
        return [Finding("warning", name, f"{environment[name]!r} is not a number of threads", mend)]
    if int(first) > processors:
        return [Finding("warning", name, f"{first} threads on {processors} processors wait for each other", mend)]
    return []
