"""Trains firstlight's denoiser and its text encoder together, on cached latents.

python training/unet.py --work build/firstlight --minutes 95

Epsilon prediction on SD's scaled-linear betas, min-SNR weights (Hang et al., 2023), empty captions one time in ten
so that guidance works, averaged weights. Stops by the clock, writes a checkpoint every few minutes, and resumes.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import data
import loop
import numpy as np
import text
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn

PEAK_LEARNING_RATE = 1e-3
MIN_SNR = 5.0
EMPTY_CAPTION = 0.1
CANONICAL_CAPTION = 0.7
CENTRED = 0.4


def build() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=6,
        out_channels=6,
        layers_per_block=1,
        block_out_channels=(64, 128, 160),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,  # heads, by diffusers' old name
        norm_num_groups=16,
    )


def noise_schedule() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)


@dataclass
class Examples:
    """Random (latents, caption) pairs."""

    latents: torch.Tensor  # float16 [positions, scenes, 6, 16, 16]
    scenes: np.ndarray  # [scenes, 3]
    captions: torch.Tensor  # int64 [things, styles, backgrounds, variants, tokens]
    empty: torch.Tensor  # int64 [tokens]
    random: np.random.Generator

    @classmethod
    def load(cls, path: Path, tokenizer) -> "Examples":
        stored = np.load(path)
        positions = len(data.POSITIONS)
        latents = torch.from_numpy(stored["latents"]).unflatten(0, (-1, positions))
        shape = (len(data.things()), len(data.STYLES), len(data.BACKGROUNDS))
        texts = [
            variant
            for thing in data.things()
            for style in data.STYLES
            for back in data.BACKGROUNDS
            for variant in data.caption_variants(thing, style, back)
        ]
        captions = text.token_ids(tokenizer, texts).view(*shape, -1, text.MAX_TOKENS)
        return cls(
            latents,
            stored["scenes"][::positions],
            captions,
            text.token_ids(tokenizer, [""])[0],
            np.random.default_rng(),
        )

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [size, 6, 16, 16] and int64 [size, tokens]."""
        index = self.random.integers(len(self.scenes), size=size)
        position = self.random.integers(1, self.latents.shape[1], size=size)
        position[self.random.random(size) < CENTRED] = 0
        variant = self.random.integers(1, self.captions.shape[3], size=size)
        variant[self.random.random(size) < CANONICAL_CAPTION] = 0
        tokens = self.captions[(*self.scenes[index].T, variant)].clone()
        tokens[self.random.random(size) < EMPTY_CAPTION] = self.empty
        return self.latents[index, position].float(), tokens


def loss(models: nn.ModuleDict, noise: DDPMScheduler, latents: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    # one time step from each of `batch` equal slices: the loss is less noisy than with independent draws
    place = latents.device
    slices = torch.arange(len(latents), device=place) + torch.rand(len(latents), device=place)
    steps = (slices * (1000 / len(latents))).long()
    epsilon = torch.randn_like(latents)
    noisy = noise.add_noise(latents, epsilon, steps)
    with torch.autocast(place.type, torch.bfloat16):
        context = models["text_encoder"](tokens).last_hidden_state
        predicted = models["unet"](noisy, steps, context).sample
    alphas = noise.alphas_cumprod.to(place)[steps]
    snr = alphas / (1 - alphas)
    per_picture = (predicted.float() - epsilon).pow(2).mean((1, 2, 3))
    return (per_picture * snr.clamp(max=MIN_SNR) / snr).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/firstlight"))
    parser.add_argument("--minutes", type=float, default=95)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = text.tokenizer_in(args.work / "tokenizer")
    models = nn.ModuleDict({"text_encoder": text.build_encoder(tokenizer), "unet": build()}).to(loop.device())
    examples = Examples.load(args.work / "latents.npz", tokenizer)
    noise = noise_schedule()
    running = [1.0]

    def step() -> tuple[torch.Tensor, str]:
        latents, tokens = examples.batch(args.batch_size)
        total = loss(models, noise, latents.to(loop.device()), tokens.to(loop.device()))
        running[0] += 0.02 * (total.item() - running[0])
        return total, f"average {running[0]:.4f}"

    loop.Training(
        args.work / "unet.pt",
        models,
        PEAK_LEARNING_RATE,
        loop.Clock(args.minutes * 60),
        loop.Average(models, 0.998),
        torch.optim.AdamW(models.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.99)),
    ).run(step)


if __name__ == "__main__":
    main()
