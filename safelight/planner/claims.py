"""What guides say of optimizations and what is known of it: one row each, with who measured it.

A row is cited where a preset names the thing, so that a plan that leaves it out can say why.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """says: as the guide puts it. found: what is known. source: who says so."""

    says: str
    found: str
    source: str

    @property
    def cited(self) -> str:
        return f"{self.found} ({self.source})"


DIFFUSERS_2 = "https://huggingface.co/docs/diffusers/v0.32.2/en/optimization/torch2.0"
CLAIMS: Mapping[str, Claim] = {
    "xformers": Claim(
        "xFormers is almost always strictly better than the default attention",
        "torch's own attention has the same kernels since 2.0, and diffusers uses it by default",
        DIFFUSERS_2,
    ),
    "flash": Claim(
        "flash attention is a switch to turn on",
        "torch's own attention takes its flash kernel by itself where shapes and dtype allow it",
        DIFFUSERS_2,
    ),
    "slicing-on-sdpa": Claim(
        "attention slicing costs little and adds to xFormers",
        "it puts a loop of small products in the place of torch's fused attention, which needs no memory for scores; "
        'diffusers: "can lead to serious slow downs"',
        "https://github.com/huggingface/diffusers/pull/4518",
    ),
    "graphs-with-offload": Claim(
        "model offload and compile with reduce-overhead together",
        "CUDA graphs replay the addresses where weights lay when they were recorded, and offload moves them",
        "https://github.com/sgl-project/sglang/pull/23664",
    ),
    "tome-under-offload": Claim(
        "token merging makes an offloaded model faster",
        "while weights are awaited, fewer tokens save nothing; and its gain in memory does not add to fused attention, "
        "its gain in time shows at 2048 px",
        "https://github.com/dbolya/tomesd/issues/19",
    ),
    "tiling-small": Claim(
        "tiled decoding handles larger images",
        "it pays where the decode is the peak, seldom under 1024 px; tiles are decoded twice where they overlap",
        "https://huggingface.co/docs/diffusers/optimization/memory#vae-tiling",
    ),
    "overlap": Claim(
        "increase the overlap of tiles to reduce the peak",
        "the size of a tile sets the peak; at 2048 px, overlaps of 0.125, 0.25 and 0.5 take 51, 69 and 141 TFLOP",
        "counted in diffusers' tiled_decode; untiled 48.5",
    ),
    "cosine": Claim(
        "a cosine schedule gives better quality at the same steps",
        "the models were trained with scaled_linear betas: with cosine they see noise of another strength than they "
        "were taught (the largest sigma is 20000 instead of 14.6)",
        "https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5/blob/main/scheduler/scheduler_config.json",
    ),
    "hundred-steps": Claim(
        "100 DDIM steps for the best quality",
        "they take 4 to 5 times the seconds of DPM++ 2M, which is as good in 20 to 25 steps",
        "https://arxiv.org/abs/2211.01095",
    ),
    "guidance-12": Claim(
        "guidance of 12 for the best quality",
        "models are used with 5 to 8, and more than that over-exposes the picture",
        "https://arxiv.org/abs/2305.08891",
    ),
    "times-15": Claim(
        "15, 25 and 40 times as fast in 2, 1.5 and 1 GB",
        "nobody measured that: without loss 1.5 to 2.6 times, with caches 3.5 to 5.6 times at a loss; 1 GB only by "
        "streaming every layer, which is 14 times slower",
        "https://github.com/vipshop/cache-dit and https://huggingface.co/docs/diffusers/optimization/speed-memory-optims",
    ),
    "half-memory": Claim(
        "FP16 halves memory, 1.5 to 2 times as fast",
        "it halves the weights: of SDXL's whole peak 23 % went, and 4.9 times as fast was measured against float32",
        "https://huggingface.co/blog/simple_sdxl_optimizations",
    ),
    "compile-thirty": Claim(
        "compiling brings 20 to 30 %",
        "6 % on a T4, 2 times on an A100 for single pictures of SD1.5, less in batches",
        DIFFUSERS_2,
    ),
    "offload-first": Claim(
        "offload first, then tile",
        "where the decode is the peak, offload saves little: of SDXL's 21.7 GB it left 20.2, slicing of the VAE 15.4",
        "https://huggingface.co/blog/simple_sdxl_optimizations",
    ),
    "sequential": Claim(
        "sequential offload is 2 to 4 times slower",
        "23 s became 335 s (FLUX, L20); streaming the blocks ahead of time needs as little memory at 49 s",
        "https://github.com/vipshop/cache-dit",
    ),
    "batch-of-dit": Claim(
        "batches multiply the throughput",
        "a large transformer keeps the card busy alone: a batch of 4 made 1.04 times the pictures per second",
        "https://github.com/sgl-project/sglang/pull/33182",
    ),
    "other-model": Claim(
        "quantization-aware training and distilled models",
        "they are other models, to be given with --model; a plan runs the one that it is asked for",
        "by design",
    ),
    "other-vae": Claim(
        "a tuned VAE",
        "a fine-tuned decoder of the same size: --vae takes one, seconds and bytes stay the same",
        "https://huggingface.co/stabilityai/sd-vae-ft-mse",
    ),
    "sampler": Claim(
        "a sampler that needs fewer steps",
        "seconds fall with the steps; memory does not",
        "https://arxiv.org/abs/2211.01095",
    ),
    "highres": Claim(
        "highres fix",
        "a second pass over the enlarged first one: seconds are of both, and memory is planned for the larger; how "
        "much it draws anew (hires-denoise) changes neither, as all of its steps are run",
        "https://github.com/AUTOMATIC1111/stable-diffusion-webui/blob/v1.10.1/modules/processing.py",
    ),
    "second-order": Claim(
        "DPM++ SDE Karras in as many steps",
        "it asks the model twice a step but in the last, and seconds count that: 30 steps are 59 evaluations; DPM++ 2M "
        "SDE asks once a step",
        "https://github.com/crowsonkb/k-diffusion",
    ),
    "more-devices": Claim(
        "several devices for one picture",
        "that comes later: this plans one of them; each of several may run such a plan on pictures of its own",
        "to come",
    ),
    "card-16gb": Claim(
        "an RTX 3080 with 16 GB holds batches of 4 to 6",
        "the desktop card has 10 or 12 GB, the laptop's 8 or 16: a batch is what fits the card that is there",
        "https://www.nvidia.com/en-us/geforce/graphics-cards/compare/",
    ),
}
