"""Weights kept smaller than they are computed with: a layer's weight grows for the time of its own forward only.

diffusers' enable_layerwise_casting does the same, but cannot be undone and breaks T5 and CLIP. Ours wraps each layer's
forward, and keeps no original in memory: a pipeline that is given back reads its own from a temporary file.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safelight.errors import UnknownName
from safelight.measure.memory import module_bytes
from safelight.optimizers.hooked import skeleton
from safelight.optimizers.precision import kind_of
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.target import Target, models
from safelight.simulate.cost import Cost, phase_of

BYTES = {"float8_e4m3fn": 1, "float8_e5m2": 1, "bfloat16": 2, "float16": 2, "float32": 4}
STORAGES = tuple(name for name in BYTES if name != "float32")
COVERED = {"denoiser": ("denoiser",), "all": ("denoiser", "text_encoders")}
# Small layers that much depends on, and layers whose weight's dtype is read by other code (T5's "wo", embeddings);
# diffusers keeps the same: hooks/layerwise_casting.py, DEFAULT_SKIP_MODULES_PATTERN
SKIPPED = re.compile(r"norm|embed|lora_|^proj_(in|out)$|(^|\.)(conv_in|conv_out|wo)$")


def _fits(target: Target, storage: str, part: str) -> str | None:
    if storage not in STORAGES:
        raise UnknownName("storage format", storage, STORAGES)
    if part not in COVERED:
        raise UnknownName("part for layerwise-casting", part, COVERED)
    if target.device.kind == "mps" and BYTES[storage] == 1:
        return "Apple's GPUs have no 8 bit floating point format"
    if BYTES[storage] >= BYTES.get(target.dtype, 0):
        return f"the weights are in {target.dtype}: {storage} is no smaller"
    return None


@dataclass(frozen=True, slots=True)
class Covered:
    """Of one model. share: of its weights. layers: how many have them."""

    share: float
    layers: int


# CLIP's embeddings are 0.31 of it, T5's with each "wo" 0.24; both have about a hundred and fifty layers
ENCODER = Covered(0.7, 150)
UNREAD = Covered(0.7, 400)  # a denoiser whose structure cannot be read: FLUX.1 has 0.72 and 418, SDXL 0.997 and 788
# Seconds for each number that a CPU widens from 8 bits: firstlight's 8.6 M take 33.7 instead of 15.3 ms a step
# (benchmarks/optimizers_cpu_2026-11-21.md)
WIDENING = 2e-9
CALLS = 3  # of the host for each layer: the cast, and two exchanges of a tensor


def _predict(cost: Cost, target: Target, storage: str, part: str) -> Cost:
    """Small weights, and in each call every one of them read, cast and written; the largest layer is there twice."""
    for name in cost.parts:
        if _is_covered(name, part):
            covered = ENCODER if kind_of(name) == "text_encoders" else _covered(skeleton(target.denoiser))
            cost = _stored_small(cost, target, name, storage, covered)
    return cost


def _stored_small(cost: Cost, target: Target, name: str, storage: str, covered: Covered) -> Cost:
    weights, phase = cost.parts[name], phase_of(name)
    cast = weights.total * covered.share
    smaller = BYTES[storage] / BYTES[target.dtype]
    calls = cost.steps * cost.calls if phase == "denoise" else 1
    seconds = cost.rates.seconds("copy", target.dtype, cast * (1 + smaller))
    if target.device.kind == "cpu" and BYTES[storage] == 1:
        seconds = WIDENING * cast / BYTES[target.dtype]
    before = cost.phase(phase)
    cost = cost.reweighted(name, 1 - covered.share * (1 - smaller))
    return cost.changed(
        phase,
        device={**before.device, "copy": before.device["copy"] + calls * seconds},
        host=before.host + calls * CALLS * covered.layers * cost.rates.launch,
        live=before.live + weights.layer,
    )


@lru_cache(maxsize=4)
def _covered(model: Any) -> Covered:
    """model: a skeleton, or None."""
    if model is None:
        return UNREAD
    sizes = [layer.weight.numel() for layer in _with_own_weight(model)]
    return Covered(sum(sizes) / sum(p.numel() for p in model.parameters()), len(sizes))


@dataclass
class _Stored:
    """bytes_before: of all covered models. casts: forwards of the latest run in which a weight was cast."""

    models: tuple[Any, ...]
    storage: str
    bytes_before: int
    layers: int = 0
    casts: int = 0

    def begin(self, pipe: Any) -> None:
        self.casts = 0

    def said(self) -> str:
        after = sum(map(module_bytes, self.models))
        if not self.casts or after >= self.bytes_before:
            return ""
        mib = [f"{size / 2**20:.2f}" for size in (self.bytes_before, after)]
        return f"{self.layers} layers in {self.storage}, cast in {self.casts} forwards; {mib[0]} MiB are now {mib[1]}"


@optimizer(
    stage=Stage.STORAGE,
    slot="storage",
    fidelity=Fidelity.APPROXIMATE,
    source="https://huggingface.co/docs/diffusers/optimization/memory#layerwise-casting",
    fits=_fits,
    predict=_predict,
)
def layerwise_casting(
    pipe: Any, target: Target, storage: str = "float8_e4m3fn", part: str = "denoiser"
) -> Iterator[Proof]:
    """Keep weights in 8 bits, cast for each layer's forward: the denoiser's, or text encoders' too (part=all)."""
    import torch

    small = getattr(torch, storage)
    covered = tuple(model for name, model in models(pipe).items() if _is_covered(name, part))
    stored = _Stored(covered, storage, sum(map(module_bytes, covered)))
    with ExitStack() as stack:
        keep = (lambda layer: _widened(layer)) if target.disposable else _files(stack)
        for model in covered:
            for layer in castable(model, small):
                computed = layer.weight.dtype
                stack.callback(keep(layer))
                shrink(layer, small)
                stack.enter_context(swapped(layer, forward=_casting(layer, small, computed, stored)))
                stored.layers += 1
        yield Proof(stored.said, begin=stored.begin)


def _is_covered(name: str, part: str) -> bool:
    # neither a safety checker nor an image encoder, which count to the denoiser where dtypes are told
    is_model = name in ("unet", "transformer") or name.startswith("text_encoder")
    return is_model and kind_of(name) in COVERED[part]


def castable(model: Any, storage: Any) -> list[Any]:
    """The layers whose weight only their own forward reads, and which the format has the range for.

    Not the one with the model's first parameter: libraries take the dtype of that for the model's.
    """
    return [layer for layer in _with_own_weight(model) if _holds(layer.weight, storage)]


def _with_own_weight(model: Any) -> list[Any]:
    from torch import nn

    # exactly these classes: others (MultiheadAttention's, quantized ones) have their weights read from outside
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    own = (getattr(model, name, None) for name in ("_skip_layerwise_casting_patterns", "_keep_in_fp32_modules"))
    words = [word for words in own for word in words or ()]
    users = Counter(id(p) for layer in model.modules() for p in layer._parameters.values())
    first = next(model.parameters())
    return [
        layer
        for name, layer in model.named_modules()
        if type(layer) in kinds
        and not SKIPPED.search(name)
        and not any(word in name for word in words)
        and users[id(layer.weight)] == 1
        and layer.weight is not first
    ]


def _holds(weight: Any, storage: Any) -> bool:
    """What is larger than a format's largest number would be clipped (float8_e4m3fn at 448, torch 2.13) or infinite."""
    import torch
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if is_traceable_wrapper_subclass(weight) or not weight.is_floating_point():
        return False
    return weight.element_size() > storage.itemsize and float(weight.detach().abs().max()) <= torch.finfo(storage).max


def shrink(layer: Any, storage: Any) -> None:
    layer.weight.data = layer.weight.data.to(storage)


def _casting(layer: Any, storage: Any, computed: Any, stored: _Stored) -> Callable[..., Any]:
    """The layer's forward, inside whatever an offloading hook wraps around it, so that it casts where it computes."""
    forward = layer.forward

    def forward_cast(*args: Any, **kwargs: Any) -> Any:
        weight = layer.weight  # not kept: offloading puts another parameter in its place
        if (kept := weight.data).dtype != storage:
            return forward(*args, **kwargs)
        stored.casts += 1
        weight.data = kept.to(computed)
        try:
            return forward(*args, **kwargs)
        finally:
            weight.data = kept

    return forward_cast


def _widened(layer: Any) -> Callable[[], None]:
    """Undoes for a pipeline that nobody keeps: right in dtype, without the lost bits."""
    computed = layer.weight.dtype

    def restore() -> None:
        layer.weight.data = layer.weight.data.to(computed)

    return restore


def _files(stack: ExitStack) -> Callable[[Any], Callable[[], None]]:
    """Writes originals to a temporary folder, one file a layer, so that no two copies of a model are ever held."""
    from safetensors.torch import load_file, save_file

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="safelight-")))
    written: list[Path] = []

    def keep(layer: Any) -> Callable[[], None]:
        weight = layer.weight.data
        path, stride = folder / f"{len(written)}.safetensors", weight.stride()
        written.append(path)
        save_file({"weight": weight.contiguous()}, path)

        def restore() -> None:
            data = load_file(path)["weight"]
            # strides of their own: a layout (channels last) is no part of the file
            again = data.new_empty_strided(data.shape, stride, device=layer.weight.device)
            layer.weight.data = again.copy_(data)

        return restore

    return keep
