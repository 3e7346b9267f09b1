"""Trains firstlight's VAE: 64 px pictures to latents of 16 x 16 x 6 and back.

python training/vae.py --work build/firstlight --minutes 25

Loss: L1 + squared error + LPIPS (AlexNet) + a slight pull of the latents to a normal distribution. Stops by the clock
and resumes from its checkpoint.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import data
import loop
import numpy as np
import torch
from diffusers import AutoencoderKL
from networks import WEIGHTS, Lpips
from torch.nn import functional as F

LATENT_CHANNELS = 6
KL_WEIGHT = 1e-6
LPIPS_WEIGHT = 0.1
PEAK_LEARNING_RATE = 1e-3


def build() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        sample_size=data.SIDE_PX,
    )


@dataclass
class Pictures:
    """Random training pictures, float32 [batch, 3, 64, 64] in -1..1."""

    sprites: dict[int, np.ndarray]
    random: np.random.Generator

    def batch(self, size: int) -> torch.Tensor:
        pictures = np.stack([data.compose(self.sprites, self._scene()) for _ in range(size)])
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1

    def _scene(self) -> data.Scene:
        while True:
            thing, style, back, position = self.random.integers(
                (len(data.things()), len(data.STYLES), len(data.BACKGROUNDS), len(data.POSITIONS))
            )
            if not (scene := data.Scene(int(thing), int(style), int(back), int(position))).held_out:
                return scene


def loss(vae: AutoencoderKL, lpips: Lpips, pictures: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(what to minimise, PSNR in dB of the batch)."""
    with torch.autocast(pictures.device.type, torch.bfloat16):
        posterior = vae.encode(pictures).latent_dist
        decoded = vae.decode(posterior.sample()).sample
    decoded = decoded.float()
    squared = F.mse_loss(decoded, pictures)
    kl = posterior.kl().mean() * KL_WEIGHT
    with torch.autocast(pictures.device.type, torch.bfloat16):
        perceptual = lpips(decoded, pictures).mean()
    total = F.l1_loss(decoded, pictures) + squared + LPIPS_WEIGHT * perceptual.float() + kl
    return total, float(-10 * torch.log10(squared.detach() / 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/firstlight"))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    torch.manual_seed(0)
    vae = build().to(loop.device())
    lpips = Lpips.load(WEIGHTS).to(loop.device())
    pictures = Pictures(data.load_sprites(args.work / "sprites.npz"), np.random.default_rng())

    def step() -> tuple[torch.Tensor, str]:
        total, psnr = loss(vae, lpips, pictures.batch(args.batch_size).to(loop.device()))
        return total, f"{psnr:.2f} dB"

    average = loop.Average(vae)
    loop.Training(
        args.work / "vae.pt",
        vae,
        PEAK_LEARNING_RATE,
        loop.Clock(args.minutes * 60),
        average,
        torch.optim.AdamW(vae.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.01),
        checkpoint_steps=500,
    ).run(step)
    average.copy_to(vae)
    vae.save_pretrained(args.work / "vae")


if __name__ == "__main__":
    main()
