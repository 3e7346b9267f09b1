"""How numbers are stored and laid out: dtype, memory format."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safelight.config import dtype_name
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer
from safelight.optimizers.target import Target, denoiser, models
from safelight.probe.device import Device
from safelight.simulate.cost import Cost

# firstlight at 256 px, 20 steps, 2 cores with avx512_bf16: benchmarks/first-light_cpu_2026-11-21.md
BF16_ON_CPU = 0.6
CHANNELS_LAST_ON_CPU = 0.85  # the same; 0.88 in batches at 64 px, 0.97 one by one


def chosen_dtype(device: Device, value: str) -> str:
    """What "auto" stands for: the device's fastest 16 bit format, bfloat16 before float16, or else float32."""
    if value != "auto":
        return dtype_name(value)
    return next((name for name in ("bfloat16", "float16") if name in device.fast_dtypes), "float32")


def _dtype_fits(target: Target, value: str) -> str | None:
    name = chosen_dtype(target.device, value)
    if name == "float16" and target.device.kind == "cpu":
        return "float16 is about 150 times slower than float32 on a CPU; bfloat16 or float32 run well"
    if value == "auto" and name == "float32":
        return f"{target.device.name} has no 16 bit format that is faster than float32"
    return None


def _dtype_predict(cost: Cost, target: Target, value: str) -> Cost:
    if chosen_dtype(target.device, value) == "float32":
        return cost
    factor = BF16_ON_CPU if target.device.kind == "cpu" else 0.5
    return cost.scaled(encode=factor, denoise=factor, decode=factor, weights=0.5, activations=0.5)


@optimizer(
    stage=Stage.PRECISION,
    slot="dtype",
    fidelity=Fidelity.ROUNDING,
    source="https://huggingface.co/docs/diffusers/optimization/fp16#data-type",
    fits=_dtype_fits,
    predict=_dtype_predict,
)
def dtype(pipe: Any, target: Target, value: str = "auto") -> Iterator[Proof]:
    """Run every part in one number format: bfloat16, float16, float32, or auto."""
    import torch

    name = chosen_dtype(target.device, value)
    wanted = getattr(torch, name)
    seen: set[torch.dtype] = set()

    def look(_module: Any, _inputs: Any, output: Any) -> None:
        seen.add(output.dtype)

    with kept_tensors(pipe):
        for part in models(pipe).values():
            cast(part, wanted)
        hook = first_layer(denoiser(pipe)).register_forward_hook(look)
        yield Proof(lambda: f"the denoiser computed in {name}" if seen == {wanted} else "")
        hook.remove()


def _channels_last_fits(target: Target) -> str | None:
    convolutional = [
        part.cls.__name__ for part in (target.denoiser, target.vae) if part and _has_2d_convolutions(part.cls)
    ]
    return None if convolutional else f"{target.denoiser.cls.__name__} and its VAE have no 2-D convolutions to speak of"


def _has_2d_convolutions(cls: type) -> bool:
    # video VAEs (Wan, HunyuanVideo, ...) convolve in three dimensions, transformers only to cut patches
    return cls.__name__ in ("UNet2DConditionModel", "AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL")


def _channels_last_predict(cost: Cost, target: Target) -> Cost:
    # tensor cores compute convolutions in this format; not measured on a card yet
    factor = {"cpu": CHANNELS_LAST_ON_CPU, "cuda": 0.95}.get(target.device.kind, 1.0)
    return cost.scaled(denoise=factor, decode=factor)


@optimizer(
    stage=Stage.LAYOUT,
    fidelity=Fidelity.ROUNDING,
    source="https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html",
    fits=_channels_last_fits,
    predict=_channels_last_predict,
)
def channels_last(pipe: Any, target: Target) -> Iterator[Proof]:
    """Store images with the channels innermost, as convolution kernels like them."""
    import torch

    parts = [part for part in models(pipe).values() if _has_2d_convolutions(type(part))]
    seen: Counter[bool] = Counter()

    def look(_module: Any, _inputs: Any, output: Any) -> None:
        seen[output.is_contiguous(memory_format=torch.channels_last) and not output.is_contiguous()] += 1

    with kept_tensors(pipe):
        hooks = []
        for part in parts:
            part.to(memory_format=torch.channels_last)
            convolutions = [m for m in part.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1)]
            hooks += [m.register_forward_hook(look) for m in convolutions]
        yield Proof(
            lambda: f"{seen[True]} of {sum(seen.values())} convolutions put channels last" if seen[True] else ""
        )
        for hook in hooks:
            hook.remove()


def cast(part: Any, dtype: Any) -> None:
    """Converts every floating point tensor in place, but for what a class keeps in float32 beside float16 (T5's "wo").

    diffusers' own `to` converts those too, and warns each time.
    """
    import torch

    kept = (getattr(part, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else ()
    for name, module in part.named_modules():
        if any(word in name.split(".") for word in kept):
            continue
        for parameter in module._parameters.values():
            if parameter is not None and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[key] = buffer.to(dtype)


def first_layer(module: Any) -> Any:
    """The layer that latents enter by: a UNet's conv_in, a transformer's x_embedder or pos_embed, or the first leaf."""
    leaves = (m for m in module.modules() if not list(m.children()) and list(m.parameters()))
    named = (getattr(module, name, None) for name in ("conv_in", "x_embedder", "patch_embedding"))
    return next((layer for layer in named if layer is not None), None) or next(leaves)


@contextmanager
def kept_tensors(pipe: Any) -> Iterator[None]:
    """Keeps every parameter and buffer of the pipeline, and puts the very same tensors back."""
    parts = list(models(pipe).values())
    parameters = [(p, p.data) for part in parts for p in part.parameters()]
    buffers = [(m, name, b) for part in parts for m in part.modules() for name, b in m._buffers.items()]
    try:
        yield
    finally:
        for parameter, tensor in parameters:
            parameter.data = tensor
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
