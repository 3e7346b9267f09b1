"""Latents on disk: a .safetensors file with one tensor, "latents", scaled as the pipelines use them.

Scaled means (latents - shift_factor) * scaling_factor, or by mean and deviation of each channel where the VAE's config
has these: what a denoiser is trained on, of about unit variance, and what callbacks and `output_type="latent"` give.
A VAE itself takes and gives them unscaled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.errors import UsageError
from safelight.probe.model import safetensors_header
from safelight.run.metadata import shown, stored

if TYPE_CHECKING:
    from torch import Tensor

NAME = "latents"
SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Latents:
    """values: (pictures, channels, latent_height, latent_width), scaled.

    model: what a person calls it. vae_class: of diffusers. scaling_factor, shift_factor: of the VAE that made them.
    width, height: of the picture, which may be less than the latents cover. None where the file does not tell.
    """

    values: "Tensor"
    model: str | None = None
    vae_class: str | None = None
    scaling_factor: float | None = None
    shift_factor: float | None = None
    width: int | None = None
    height: int | None = None


def scaled(latents: "Tensor", config: Mapping[str, Any]) -> "Tensor":
    """What the VAE with this config gave -> what its pipelines use."""
    mean, spread = _mean_and_spread(latents, config)
    return (latents - mean) * factor(config) / spread


def unscaled(latents: "Tensor", config: Mapping[str, Any]) -> "Tensor":
    """The inverse of `scaled`, as diffusers' pipelines have it before they decode."""
    mean, spread = _mean_and_spread(latents, config)
    return latents * spread / factor(config) + mean


def factor(config: Mapping[str, Any]) -> float:
    """1 for a VAE whose config has no scaling_factor."""
    return float(config.get("scaling_factor") or 1)


def _mean_and_spread(latents: "Tensor", config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Of each channel, or the shift of all of them."""
    if config.get("latents_mean") is None or config.get("latents_std") is None:
        return float(config.get("shift_factor") or 0), 1.0
    mean, spread = (latents.new_tensor(config[name]).view(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
    return mean, spread


def write(path: Path, latents: Latents) -> None:
    """Whole or not at all. Raises EnvironmentProblem."""
    from safetensors.torch import save

    names = ("model", "vae_class", "scaling_factor", "shift_factor", "width", "height")
    told = {name: str(value) for name in names if (value := getattr(latents, name)) is not None}
    stored(path, save({NAME: latents.values.contiguous().cpu()}, {"format": "pt", **told}))


def read(path: Path) -> Latents:
    """Also of another program, whose file says nothing of where the latents come from.

    Raises DamagedModel for a file that is not whole, UsageError for what holds no latents of pictures.
    """
    import torch
    from safetensors import safe_open

    header = safetensors_header(path)
    if NAME not in header:
        there = ", ".join(sorted(header)[:5]) or "nothing"
        raise UsageError(f"{shown(path)} has no tensor {NAME!r}, but {there:.200}: is it a file of latents?")
    if len(shape := header[NAME]["shape"]) != 4 or 0 in shape:
        raise UsageError(f"{shown(path)}: its latents are {shape}; (pictures, channels, height, width) are wanted")
    with safe_open(path, "pt") as file:
        values, told = file.get_tensor(NAME), file.metadata() or {}
    if not values.is_floating_point() or not torch.isfinite(values.float()).all():
        raise UsageError(f"{shown(path)}: its latents are {values.dtype}, or not finite")
    factors = (_number(told.get("scaling_factor")), _number(told.get("shift_factor")))
    sides = (_side(told.get("width")), _side(told.get("height")))
    return Latents(values, told.get("model"), told.get("vae_class"), *factors, *sides)


def _number(text: str | None) -> float | None:
    """What another program wrote may be anything."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _side(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 8 else None
