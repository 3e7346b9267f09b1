"""VAEs and inputs for vae.py: full size with random weights, or the bundled model's with its own.

Weights and inputs are rounded to bfloat16 and then widened, so that one float32 result is the truth for every dtype.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fullsize import VAE
from vae_cases import Case

SEED = 1
BLOCK_PX = 256  # of a picture that is encoded to be decoded


@dataclass(frozen=True, slots=True)
class Kind:
    """cls: of diffusers. config: its arguments. frames_factor: frames of video per frame of latents."""

    cls: str
    config: Mapping[str, Any] = field(default_factory=dict)
    channels: int = 4
    factor: int = 8
    frames_factor: int = 1
    bundled: str = ""


VAES = {
    "sd15": Kind("AutoencoderKL", VAE),
    "firstlight": Kind("AutoencoderKL", channels=6, factor=4, bundled="firstlight"),
    "wan": Kind("AutoencoderKLWan", channels=16, frames_factor=4),
    "wan-small": Kind("AutoencoderKLWan", {"base_dim": 32}, channels=16, frames_factor=4),
}


def build(case: Case, device: str = "cpu") -> Any:
    import torch

    kind = VAES[case.vae]
    vae = _bundled(kind) if kind.bundled else _random(kind)
    return vae.to(torch.bfloat16).to(device=device, dtype=getattr(torch, case.dtype))


def _bundled(kind: Kind) -> Any:
    import diffusers

    from safelight.firstlight import BUNDLED

    folder = BUNDLED[kind.bundled] / "vae"
    return getattr(diffusers, kind.cls).from_pretrained(folder).eval().requires_grad_(False)


def _random(kind: Kind) -> Any:
    """Weights that keep the variance of what flows through, and norms that are not trivial."""
    import diffusers
    import torch

    vae = getattr(diffusers, kind.cls)(**kind.config).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(SEED)
    for name, parameter in vae.named_parameters():
        drawn = torch.randn(parameter.shape, generator=random)
        if parameter.numel() > parameter.shape[0]:
            gain = 1.2 * (0.35 if name == "decoder.conv_out.weight" else 1.0)  # SiLU halves; the picture is in -1 to 1
            parameter.copy_(drawn * gain * (parameter.shape[0] / parameter.numel()) ** 0.5)
        elif name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
            parameter.copy_(1 + 0.2 * drawn)
        else:
            parameter.copy_(0.1 * drawn)
    return vae


def given(case: Case, picture: Path | None = None) -> Any:
    """(batch, channels, [frames,] height, width), float32. picture: of the bundled VAE; drawn where there is none."""
    import torch

    kind = VAES[case.vae]
    if kind.bundled:
        made = _pictures(case, picture)
        made = made if case.what == "encode" else _latents_of(case, made)
    elif case.what == "decode":
        made = uneven(case, kind.channels, kind.factor, 1 + (case.frames - 1) // kind.frames_factor)
    else:
        made = torch.tanh(uneven(case, 3, 1, case.frames))
    return made.to(torch.bfloat16).float()


def uneven(case: Case, channels: int, factor: int, frames: int) -> Any:
    """Large shapes, and noise that grows to the right and downwards: a hard case for statistics of single tiles."""
    import torch

    height, width, count = case.height // factor, case.width // factor, case.batch * frames
    random = torch.Generator().manual_seed(SEED)
    shapes = 1.5 * torch.randn(count, channels, 4, 4, generator=random)
    shapes = torch.nn.functional.interpolate(shapes, size=(height, width), mode="bicubic", align_corners=True)
    strength = torch.linspace(0.1, 1.2, width) * torch.linspace(0.3, 1.0, height)[:, None]
    made = shapes + strength * torch.randn(count, channels, height, width, generator=random)
    if case.frames == 1:
        return made
    return made.view(case.batch, frames, channels, height, width).transpose(1, 2).contiguous()


def _pictures(case: Case, picture: Path | None) -> Any:
    """(batch, 3, height, width), -1 to 1; those of a batch are mirrored and turned."""
    import torch

    one = _photograph(case, picture) if picture is not None else drawn(case.height, case.width)
    return torch.stack([one.flip([dim for dim in (1, 2) if number & dim]) for number in range(case.batch)])


def _photograph(case: Case, picture: Path) -> Any:
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    with Image.open(picture) as opened:
        fitted = ImageOps.fit(opened.convert("RGB"), (case.width, case.height))
    return torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1).float() / 127.5 - 1


def drawn(height: int, width: int) -> Any:
    """A sky that grows darker, a striped field, discs in three colours, and grain on the right."""
    import torch

    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    sky = torch.stack([0.2 + 0.6 * y + 0 * x, 0.4 + 0.4 * y + 0 * x, 0.9 - 0.3 * y + 0 * x])
    stripes = 0.5 + 0.4 * torch.sin(60 * (x + 0.5 * y) ** 2)
    made = torch.where(y > 0.6, stripes * torch.tensor([0.4, 0.7, 0.2]).view(3, 1, 1), sky)
    for channel, (middle_y, middle_x, radius) in enumerate(((0.3, 0.25, 0.15), (0.5, 0.6, 0.2), (0.75, 0.4, 0.1))):
        disc = (y - middle_y) ** 2 + (x - middle_x) ** 2 < radius**2
        made[channel] = torch.where(disc, 0.95 - made[channel] * 0.3, made[channel])
    grain = torch.randn(height, width, generator=torch.Generator().manual_seed(SEED))
    return (made + 0.1 * x * grain).clamp(0, 1) * 2 - 1


def _latents_of(case: Case, pictures: Any) -> Any:
    """Encoded in blocks, each by itself: little memory, so that what is measured next is not hidden by it."""
    import torch

    vae = build(replace(case, dtype="float32"))
    with torch.no_grad():
        rows = [
            torch.cat([vae.encode(block).latent_dist.mode() for block in row.split(BLOCK_PX, -1)], -1)
            for row in pictures.split(BLOCK_PX, -2)
        ]
    return torch.cat(rows, -2)
