"""Writes the trained parts as a standard StableDiffusionPipeline folder, fp16 safetensors.

python training/export.py --work build/firstlight --out safelight/firstlight/model
"""

import argparse
from pathlib import Path

import loop
import numpy as np
import text
import torch
import unet
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import nn
from transformers import CLIPTokenizer


def assemble(work: Path) -> StableDiffusionPipeline:
    """The averaged weights of the latest checkpoint, in float32."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    models = nn.ModuleDict({"text_encoder": text.build_encoder(tokenizer), "unet": unet.build()})
    state = loop.load(work / "unet.pt")
    assert state, f"{work} holds no unet.pt: train first"
    models.load_state_dict({**models.state_dict(), **{name: w.cpu() for name, w in state["average"].items()}})
    vae = AutoencoderKL.from_pretrained(work / "vae")
    vae.register_to_config(scaling_factor=float(np.load(work / "latents.npz")["scaling_factor"]))
    noise = unet.noise_schedule().config
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=models["text_encoder"],
        tokenizer=tokenizer,
        unet=models["unet"],
        scheduler=DPMSolverMultistepScheduler(
            **{k: noise[k] for k in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")}, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/firstlight"))
    parser.add_argument("--out", type=Path, default=Path("safelight/firstlight/model"))
    args = parser.parse_args()
    pipe = assemble(args.work).to(torch.float16)
    pipe.save_pretrained(args.out)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
