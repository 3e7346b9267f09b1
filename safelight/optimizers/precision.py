"""How numbers are stored and laid out: dtype, of all parts or of one, and memory format."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, is_dataclass
from functools import wraps
from typing import Any

from safelight.config import dtype_name
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.target import Target, dtype_of, models
from safelight.optimizers.target import denoiser as denoiser_of
from safelight.probe.device import Device
from safelight.simulate.cost import Cost

# Of the seconds of convolutions. CPU: firstlight at 256 px takes 0.85 of the whole, a bit over half of it convolutions
# (benchmarks/first-light_cpu_2026-11-21.md). Cards: the tutorial below measured 8 to 35 % less in 16 bits.
CHANNELS_LAST = {"cpu": 0.75, "cuda": 0.85}
PARTS = ("denoiser", "vae", "text_encoders")
SLOW_FLOAT16 = "float16 is about 150 times slower than float32 on a CPU; bfloat16 or float32 run well"
OVERFLOWS = "this VAE overflows in float16, as its config says (force_upcast): bfloat16 or float32 run well"
NO_VAE = "this pipeline has no VAE"


def chosen_dtype(device: Device, value: str) -> str:
    """What "auto" stands for: the device's fastest 16 bit format, bfloat16 before float16, or else float32."""
    if value != "auto":
        return dtype_name(value)
    return next((name for name in ("bfloat16", "float16") if name in device.fast_dtypes), "float32")


def chosen_dtypes(device: Device, value: str = "auto", **parts: str) -> dict[str, str]:
    """The dtype of each of PARTS; one that is not given, or "", follows `value`."""
    return {part: chosen_dtype(device, parts.get(part) or value) for part in PARTS}


def kind_of(name: str) -> str:
    """Which of PARTS a component counts to. Whatever is no VAE and no text encoder computes beside the denoiser."""
    if name == "vae":
        return "vae"
    return "text_encoders" if name.startswith("text_encoder") else "denoiser"


def _dtype_fits(target: Target, value: str, **parts: str) -> str | None:
    names = chosen_dtypes(target.device, value, **parts)
    if "float16" in names.values() and target.device.kind == "cpu":
        return SLOW_FLOAT16
    if value == "auto" and set(names.values()) == {"float32"}:
        return f"{target.device.name} has no 16 bit format that is faster than float32"
    if parts.get("vae") and target.vae is None:
        return NO_VAE
    if parts.get("vae") and names["vae"] == "float16" and overflows(target):
        return OVERFLOWS
    if parts.get("text_encoders") and not target.text_is_encoded:
        return "this pipeline has no text encoder"
    return None


def overflows(target: Target) -> bool:
    return target.vae is not None and bool(target.vae.config.get("force_upcast"))


@optimizer(
    stage=Stage.PRECISION,
    slot="dtype",
    fidelity=Fidelity.ROUNDING,
    source="https://huggingface.co/docs/diffusers/optimization/fp16#data-type",
    fits=_dtype_fits,
    traced=PARTS,
)
def dtype(
    pipe: Any, target: Target, value: str = "auto", denoiser: str = "", vae: str = "", text_encoders: str = ""
) -> Iterator[Proof]:
    """Run every part in one number format, or a part in its own: bfloat16, float16, float32, or auto."""
    import torch

    names = chosen_dtypes(target.device, value, denoiser=denoiser, vae=vae, text_encoders=text_encoders)
    with ExitStack() as stack:
        if not target.disposable:
            stack.enter_context(kept_tensors(pipe))
        for name, part in models(pipe).items():
            cast(part, getattr(torch, names[kind_of(name)]))
        if names["vae"] != names["denoiser"]:
            stack.enter_context(vae_door(pipe))
        if names["text_encoders"] != names["denoiser"]:
            stack.enter_context(text_door(pipe))
        seen = stack.enter_context(watched(pipe))
        watched_kinds = [kind for kind in PARTS if kind == "denoiser" or names[kind] != names["denoiser"]]
        yield Proof(lambda: seen.said({kind: names[kind] for kind in watched_kinds}), begin=seen.begin)


@dataclass
class Seen:
    """The dtype of the first result of each part in the latest run, or in one before where it had nothing to do.

    The first: the decoder may be tried again in float32. One before: a prompt may come from a cache.
    """

    kinds: dict[str, str] = field(default_factory=dict)  # component -> its kind
    latest: dict[str, str] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)

    def begin(self, pipe: Any) -> None:
        self.before |= self.latest
        self.latest = {}

    def look(self, name: str) -> Callable[..., None]:
        import torch

        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            if not torch.compiler.is_compiling():  # or each call would be compiled anew for what is noted here
                self.latest.setdefault(name, name_of(output.dtype))

        return hook

    def said(self, wanted: dict[str, str]) -> str:
        """ "the denoiser computed in bfloat16, the vae in float32"; "" unless each component of each kind did."""
        seen = self.before | self.latest
        for name, kind in self.kinds.items():
            if kind in wanted and seen.get(name) != wanted[kind]:
                return ""
        return ", ".join(f"the {kind.replace('_', ' ')} computed in {name}" for kind, name in wanted.items())


@contextmanager
def watched(pipe: Any, kinds: tuple[str, ...] = PARTS) -> Iterator[Seen]:
    """Looks at what the first layers of the denoiser, of the decoder and of each text encoder give."""
    parts = {name: part for name, part in models(pipe).items() if _is_main(name) and kind_of(name) in kinds}
    seen = Seen({name: kind_of(name) for name in parts})
    layers = [(name, layer) for name, part in parts.items() for layer in _entrances(name, part)]
    hooks = [layer.register_forward_hook(seen.look(name)) for name, layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _is_main(name: str) -> bool:
    """Neither a safety checker nor an image encoder, which not every run calls."""
    return name in ("unet", "transformer", "vae") or name.startswith("text_encoder")


def _entrances(name: str, part: Any) -> list[Any]:
    """A text encoder may hold an embedding that it does not call itself (T5's "shared")."""
    from torch import nn

    if name.startswith("text_encoder"):
        return [m for m in part.modules() if isinstance(m, nn.Embedding)] or [first_layer(part)]
    return [first_layer(part.decoder if name == "vae" else part)]


@contextmanager
def vae_door(pipe: Any) -> Iterator[None]:
    """Latents enter the VAE in its own dtype, whatever it is just then; pipelines leave them in the denoiser's."""
    vae = pipe.vae
    decode = vae.decode

    @wraps(decode)
    def decode_in_its_dtype(z: Any, *args: Any, **kwargs: Any) -> Any:
        return decode(z.to(next(vae.parameters()).dtype), *args, **kwargs)

    with swapped(vae, decode=decode_in_its_dtype):
        yield


@contextmanager
def text_door(pipe: Any) -> Iterator[None]:
    """Prompts leave the text encoders in the denoiser's dtype: pipelines take that of the noise from them."""
    import torch

    encode = pipe.encode_prompt

    @wraps(encode)
    def encode_for_the_denoiser(*args: Any, **kwargs: Any) -> Any:
        return floats_to(encode(*args, **kwargs), getattr(torch, dtype_of(denoiser_of(pipe))))

    with swapped(pipe, encode_prompt=encode_for_the_denoiser):
        yield


# what counts and does not measure: 16 bits hold no whole numbers beyond 256 (bfloat16) or 2048 (float16) exactly
POSITIONS = ("timestep", "guidance", "img_ids", "txt_ids", "time_ids")


def floats_to(value: Any, dtype: Any) -> Any:
    """Every floating point tensor in nested tuples, lists, mappings and outputs, cast, but for POSITIONS."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        cast_items = {key: item if key in POSITIONS else floats_to(item, dtype) for key, item in value.items()}
        return type(value)(**cast_items) if is_dataclass(value) else cast_items
    if isinstance(value, tuple | list):
        return type(value)(floats_to(item, dtype) for item in value)
    return value


def name_of(dtype: Any) -> str:
    """ "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


IMAGE_DIMS = 4  # (batch, channels, height, width), and so of a convolution's weight


def _channels_last_fits(target: Target) -> str | None:
    convolutional = [
        part.cls.__name__ for part in (target.denoiser, target.vae) if part and has_2d_convolutions(part.cls)
    ]
    return None if convolutional else f"{target.denoiser.cls.__name__} and its VAE have no 2-D convolutions to speak of"


def has_2d_convolutions(cls: type) -> bool:
    # video VAEs (Wan, HunyuanVideo, ...) convolve in three dimensions, transformers only to cut patches
    return cls.__name__ in ("UNet2DConditionModel", "AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL")


def _channels_last_predict(cost: Cost, target: Target) -> Cost:
    # tensor cores compute convolutions in this format; float32 on a card gains nothing
    if target.device.kind == "cuda" and target.dtype == "float32":
        return cost
    return cost.kinds(("denoise", "decode"), convolution=CHANNELS_LAST.get(target.device.kind, 1.0))


@optimizer(
    stage=Stage.LAYOUT,
    fidelity=Fidelity.ROUNDING,
    source="https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html",
    fits=_channels_last_fits,
    traced=("denoiser", "vae"),
    predict=_channels_last_predict,
)
def channels_last(pipe: Any, target: Target) -> Iterator[Proof]:
    """Store images with the channels innermost, as convolution kernels like them."""
    import torch

    parts = [part for part in models(pipe).values() if has_2d_convolutions(type(part))]
    seen: Counter[bool] = Counter()

    def look(_module: Any, _inputs: Any, output: Any) -> None:
        if torch.compiler.is_compiling():  # or each call would be compiled anew for what is counted here
            return
        seen[output.is_contiguous(memory_format=torch.channels_last) and not output.is_contiguous()] += 1

    with kept_tensors(pipe):
        hooks = []
        for part in parts:
            lay_out(part)
            convolutions = [m for m in part.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1)]
            hooks += [m.register_forward_hook(look) for m in convolutions]
        yield Proof(
            lambda: f"{seen[True]} of {sum(seen.values())} convolutions put channels last" if seen[True] else ""
        )
        for hook in hooks:
            hook.remove()


def lay_out(part: Any) -> None:
    """Puts the channels innermost in every weight of a 2-D convolution, in place."""
    import torch

    for parameter in part.parameters():
        if parameter.dim() == IMAGE_DIMS:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


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
def kept_tensors(pipe: Any, *names: str) -> Iterator[None]:
    """Keeps every parameter and buffer of the pipeline (names: of these parts alone), and puts the very same tensors
    back."""
    parts = [part for name, part in models(pipe).items() if not names or name in names]
    parameters = [(p, p.data) for part in parts for p in part.parameters()]
    buffers = [(m, name, b) for part in parts for m in part.modules() for name, b in m._buffers.items()]
    try:
        yield
    finally:
        for parameter, tensor in parameters:
            parameter.data = tensor
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
