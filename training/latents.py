"""Encodes every training picture once, so that the VAE is out of the denoiser's training loop.

Writes latents.npz: latents float16 [n, 6, 16, 16], scaled to unit variance, scenes int64 [n, 3], the scaling factor.
"""

import argparse
from pathlib import Path

import data
import loop
import numpy as np
import torch
from diffusers import AutoencoderKL


@torch.inference_mode()
def encode(vae: AutoencoderKL, pictures: np.ndarray) -> np.ndarray:
    """uint8 [n, 64, 64, 3] -> float32 [n, 6, 16, 16], not scaled."""
    x = torch.from_numpy(pictures).to(vae.device).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.autocast(vae.device.type, torch.bfloat16):
        return vae.encode(x).latent_dist.mode().float().cpu().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/firstlight"))
    work = parser.parse_args().work
    vae = AutoencoderKL.from_pretrained(work / "vae").eval().to(loop.device())
    sprites = data.load_sprites(work / "sprites.npz")
    scenes = [
        data.Scene(s.thing, s.style, s.background, position)
        for s in data.scenes(held_out=False)
        for position in range(len(data.POSITIONS))
    ]
    latents = np.concatenate(
        [
            encode(vae, np.stack([data.compose(sprites, s) for s in scenes[i : i + 64]])).astype(np.float16)
            for i in range(0, len(scenes), 64)
        ]
    )
    factor = float(1 / latents.astype(np.float32).std())
    np.savez(
        work / "latents.npz",
        latents=(latents.astype(np.float32) * factor).astype(np.float16),
        scenes=np.array([(s.thing, s.style, s.background) for s in scenes]),
        positions=np.array([s.position for s in scenes]),
        scaling_factor=factor,
    )
    print(f"{len(scenes)} latents, scaling factor {factor:.4f}")


if __name__ == "__main__":
    main()
