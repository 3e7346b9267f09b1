"""Guide 5, diffgentor's Optimization Guide: its marks and numbers, and what was found of them."""

from claims_stated import DOES_NOT, HOLDS, IN_PART, NOT_HERE, Claim

TABLE = "Quick reference"
RECOMMENDED = "Recommended configurations"

CLAIMS = (
    Claim(
        TABLE,
        '"VAE slicing: memory ++, slight slowdown"',
        HOLDS,
        "For a batch of 6 at 512 px a decode takes {decode_512} instead of {decode_512_of_six}, counted. Batches of 8 "
        "of the bundled model: {slicing_bytes} of the process, {slicing_x} the speed, so not even slower",
        gpu=(("sd15, 8 at once", "vae-slicing"), ("sdxl, 4 at once", "vae-slicing")),
    ),
    Claim(
        TABLE,
        '"VAE tiling: memory +++, moderate slowdown"',
        HOLDS,
        "At 1024 px {tiling_1024_bytes} of the bytes in {tiling_1024_time} the seconds; that the picture changes "
        "({tiling_1024_psnr}) is not in the table",
        known=("tiling-small",),
        gpu=(("sdxl", "vae-tiling"),),
    ),
    Claim(
        TABLE,
        '"CPU offload: memory ++++, significant slowdown"',
        NOT_HERE,
        "There is no transfer without a card",
        known=("offload-first",),
        gpu=(("sdxl", "model-offload"), ("flux1-dev", "model-offload")),
    ),
    Claim(
        TABLE,
        '"sequential offload: memory +++++, very significant slowdown"',
        NOT_HERE,
        "There is no transfer without a card",
        known=("sequential",),
        gpu=(("sdxl", "sequential-offload"), ("flux1-dev", "sequential-offload")),
    ),
    Claim(
        TABLE,
        '"group offloading: memory +++, moderate slowdown"',
        NOT_HERE,
        "There is no transfer without a card",
        gpu=(("sdxl", "group-offload"), ("flux1-dev", "group-offload")),
    ),
    Claim(
        TABLE,
        '"layerwise casting: memory +++, minimal slowdown"',
        DOES_NOT,
        "On a CPU, which has no products of 8 bits of floating point: {storage_x} the speed, {storage_psnr}, "
        "{storage_bytes} of the process's bytes with a model as small as the bundled one",
        gpu=(("sdxl", "layerwise-casting"), ("flux1-dev", "layerwise-casting")),
    ),
    Claim(
        TABLE,
        '"torch.compile: no memory, speedup +++"',
        HOLDS,
        "On a CPU {compile_sd15} for SD1.5's step, channels-last with it, {compile_firstlight} for the bundled "
        "model's; it takes memory: {compile_bytes} the bytes of the process",
        known=("compile-thirty",),
        gpu=(("sd15", "compile-blocks"), ("sdxl", "compile-blocks"), ("flux1-dev", "compile-blocks")),
    ),
    Claim(
        TABLE,
        '"flash attention, xFormers: memory +, speedup ++"',
        IN_PART,
        "True beside attention that writes its scores down: {fused_x} as fast, {fused_bytes} instead of {plain_bytes}. "
        "That is torch's own, without a switch",
        known=("flash", "xformers"),
        gpu=(("sdxl", "attention-backend=flash"), ("sdxl", "attention-backend=math")),
    ),
    Claim(
        TABLE,
        '"Sage attention: memory +, speedup ++"',
        NOT_HERE,
        "Its kernels are for cards",
    ),
    Claim(
        TABLE,
        '"fuse QKV: speedup +"',
        DOES_NOT,
        "On a CPU, one picture at a time: {fused_qkv}, which its spread covers",
        gpu=(("sdxl", "fused-qkv"), ("sd15", "fused-qkv")),
    ),
    Claim(
        TABLE,
        '"TF32: speedup +"',
        NOT_HERE,
        "It is a card's",
        gpu=(("sdxl, float32", "tf32"), ("sd15, float32", "tf32")),
    ),
    Claim(
        TABLE,
        '"cache acceleration: no memory, speedup ++"',
        HOLDS,
        "deep-cache=3: {cache_x} for the bundled model at {cache_psnr}, {cache_sd15} for SD1.5 at 256 px with "
        "{cache_bytes} the bytes of the process. It is not free: pictures differ",
        gpu=(("sdxl", "auto,deep-cache"), ("flux1-dev", "first-block-cache")),
    ),
    Claim(
        TABLE,
        '"batch inference: throughput +++"',
        IN_PART,
        "Batches of 8 of the bundled model: {batch_8} as many pictures per second, in one process of two threads; on "
        "one thread {batch_4_x} for 4. Large transformers gain little",
        known=("batch-of-dit",),
        gpu=(("sd15, 8 at once", ""), ("sdxl, 4 at once", "")),
    ),
    Claim(
        TABLE,
        '"multi-GPU (xDiT): speedup ++++"',
        NOT_HERE,
        "One machine without a card is here",
        known=("more-devices",),
    ),
    Claim(
        RECOMMENDED,
        '"Low VRAM (8-12GB)": FLUX.1-schnell in float16 with CPU offload',
        DOES_NOT,
        "CPU offload brings in whole parts, and the transformer of FLUX.1 alone is {flux_transformer_16} in 16 bit, "
        "counted: it wants blocks that are streamed, or fewer bits",
        gpu=(("flux1-schnell", "model-offload"), ("flux1-dev", "streamed-blocks=8")),
    ),
    Claim(
        RECOMMENDED,
        '"Balanced (16-24GB)": FLUX.1-dev in bfloat16 with VAE slicing, no offload',
        DOES_NOT,
        "Its weights are {flux_16} in 16 bit, counted",
        gpu=(("flux1-dev", ""),),
    ),
    Claim(
        RECOMMENDED,
        '"High performance (40GB+)": FLUX.1-dev, compiled, cached, batch 4',
        IN_PART,
        "The weights fit: {flux_16}. The rest needs a card",
        gpu=(("flux1-dev", "auto,compile-blocks,first-block-cache"),),
    ),
    Claim(
        RECOMMENDED,
        '"Maximum throughput": 8 GPUs, Ulysses degree 4, data parallel 2',
        NOT_HERE,
        "One machine without a card is here",
        known=("more-devices",),
    ),
    Claim(
        "Compatibility notes",
        '"cache acceleration and torch.compile: compatible"',
        HOLDS,
        "Compiled with deep-cache=5 the bundled model is {cache_compiled} as fast as plain, {cache_compiled_over} as "
        "fast as compiled alone",
    ),
)
