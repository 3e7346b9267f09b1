"""What compiling costs, once, and what it leaves of the seconds: the predictions of compile.py."""

from dataclasses import replace
from typing import Any

from safelight.optimizers.target import Target
from safelight.simulate.cost import Cost, phase_of

CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")
# Seconds of compiling for each operator of the denoiser. Cards: FLUX.1 has 3739 and takes 67.4 s whole, 9.6 s block by
# block as its blocks are alike (H100; PyTorch's post on regional compilation). CPU: SD1.5 has 747, 50 s (below).
ONCE = {"cuda": 0.018, "cpu": 0.07}
ALIKE = 7.0
# What is left of the seconds of each kind: pointwise work is fused, the host launches less. CPU with frozen weights:
# firstlight 1.40 times, SD1.5 at 256 px 1.67 times over bfloat16 alone (benchmarks/optimizers-sd15_cpu_2026-11-21.md).
# Cards, in bfloat16: FLUX.1-dev 6.7 -> 4.5 s on H100 (the post above), 5.58 -> 4.32 s on H200 (SGLang PR 19673), with
# these 0.74; SDXL 3.31 -> 2.54 s on A100 with channels-last (PyTorch's diffusion-fast), 0.83; SD1.5 21.7 -> 44.0 steps
# a second with CUDA graphs on A100 (diffusers' page on torch 2.0), 0.60.
LEFT = {
    "cuda": {"pointwise": 0.25, "activation": 0.2, "norm": 0.5, "copy": 0.4, "host": 0.25},
    "cpu": {"pointwise": 0.5, "activation": 0.5, "norm": 0.8, "copy": 0.5, "convolution": 0.8, "host": 0.3},
}
GRAPHS_HOST = 0.02  # one launch for all
AUTOTUNES = 3.0  # times the seconds of compiling, as kernels are tried out: an estimate
# of the weights: SD1.5 in bfloat16 took 5877 instead of 2910 MiB, its UNet 1640 (the benchmark above)
FROZEN = 1.8
PHASE = {"denoiser": "denoise", "vae": "decode", "text_encoders": "encode"}


def predict(cost: Cost, target: Target, mode: str, fullgraph: bool, dynamic: bool, parts: str, backend: str) -> Cost:
    if backend != "inductor":
        return cost  # others are for finding faults: nothing is known of their speed
    kind = "cpu" if target.device.kind == "cpu" else "cuda"
    left = {**LEFT[kind], **({"host": GRAPHS_HOST} if mode in CUDA_GRAPH_MODES else {})}
    compiled = [PHASE[part] for part in parts.split("+")]
    operators = sum(_operators(cost, phase) for phase in compiled)
    once = ONCE[kind] * operators * (AUTOTUNES if mode.startswith("max-autotune") else 1.0)
    if mode in CUDA_GRAPH_MODES and kind == "cuda":
        cost = _with_pools(cost, compiled)
    if freezes(target, backend):
        cost = _with_second_copies(cost, compiled)
    return replace(cost.kinds(compiled, **left), once=cost.once + once)


def _operators(cost: Cost, phase: str) -> float:
    return cost.launches if phase == "denoise" else cost.phase(phase).host / cost.rates.launch


def _with_pools(cost: Cost, compiled: list[str]) -> Cost:
    """A recorded graph keeps its memory for itself (docs.pytorch.org/docs/stable/notes/cuda.html, graph memory)."""
    for phase in cost.phases:
        kept = sum(cost.phase(other).live for other in compiled if other != phase)
        cost = cost.changed(phase, live=cost.phase(phase).live + kept)
    return cost


def _with_second_copies(cost: Cost, compiled: list[str]) -> Cost:
    """Frozen weights are prepacked beside those that the pipeline has."""
    sizes = (part.total for name, part in cost.parts.items() if phase_of(name) in compiled)
    extra = round(FROZEN * sum(sizes))
    for phase in cost.phases:
        cost = cost.changed(phase, resident=cost.phase(phase).resident + extra)
    return cost


def predict_vae(cost: Cost, target: Target, **options: Any) -> Cost:
    return predict(cost, target, parts="vae", **options)


def predict_blocks(cost: Cost, target: Target, **options: Any) -> Cost:
    after = predict(cost, target, parts="denoiser", **options)
    alike = 1.0 if is_unet(target) else ALIKE
    return replace(after, once=cost.once + (after.once - cost.once) / alike)


def is_unet(target: Target) -> bool:
    return target.denoiser.cls.__name__.startswith("UNet")


def freezes(target: Target, backend: str) -> bool:
    # on a CPU freezing is where the gain is: 281 to 304 ms eager and compiled, 238 to 260 frozen (50 M UNet, float32);
    # it compiles every block for itself, too long for the dozens of a transformer
    return backend == "inductor" and target.device.kind == "cpu" and is_unet(target)
