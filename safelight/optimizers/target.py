"""What is being optimized: one pipeline's parts on one device, for pictures of one size. Read once, then passed on.

Made from configs alone, so that `fits` can be asked before a weight is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safelight.probe.blueprint import Part, dtype_of, models
from safelight.probe.device import Device


@dataclass(frozen=True, slots=True)
class Target:
    """width, height: pixels. parts: the pipeline's models by name ("unet", "vae", "text_encoder", ...).

    pipeline: its class; None when only the parts are known. adapters: names of LoRAs that are loaded and not fused.
    disposable: nobody keeps the pipeline when its session closes, so that what cannot be undone cheaply need not be.
    dtype: the denoiser's, "float32"; as loaded, or as a plan will have made it. frames: of a video, 1 for pictures.
    guided: classifier-free guidance, which asks the denoiser for two predictions a step.
    """

    device: Device
    parts: Mapping[str, Part]
    width: int
    height: int
    batch_size: int = 1
    text_is_encoded: bool = True  # False when there is no text encoder to save work of
    pipeline: type | None = None
    adapters: tuple[str, ...] = ()
    disposable: bool = False
    dtype: str = "float32"
    frames: int = 1
    guided: bool = True

    @property
    def denoiser(self) -> Part:
        return self.parts["transformer" if "transformer" in self.parts else "unet"]

    @property
    def vae(self) -> Part | None:
        return self.parts.get("vae")


def target_of(
    pipe: Any, device: Device, *, width: int, height: int, batch_size: int = 1, disposable: bool = False
) -> Target:
    """The target that a loaded pipeline is."""
    parts = {name: Part(type(part), part.config) for name, part in models(pipe).items()}
    return Target(
        device,
        parts,
        width,
        height,
        batch_size,
        text_is_encoded=any(name.startswith("text_encoder") for name in parts),
        pipeline=type(pipe),
        adapters=tuple(sorted({name for part in models(pipe).values() for name in getattr(part, "peft_config", {})})),
        disposable=disposable,
        dtype=dtype_of(denoiser(pipe)),
    )


def denoiser(pipe: Any) -> Any:
    """The transformer or the UNet: what runs once per step."""
    return getattr(pipe, "transformer", None) or pipe.unet
