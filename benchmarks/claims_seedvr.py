"""Guide 3, the VAE Performance Optimization Guide for SeedVR2.5: its numbers, and what was found of them."""

from claims_stated import DOES_NOT, HOLDS, IN_PART, NOT_HERE, Claim

CARD = "https://www.nvidia.com/en-us/geforce/graphics-cards/50-series/rtx-5070-family/"
CAPABILITY = "https://github.com/pytorch/pytorch/issues/152223"
THEIRS = "Its own code and weights are not here. "

CLAIMS = (
    Claim(
        "1, cuDNN",
        '"cudnn.benchmark: 10-30% faster convolutions"',
        NOT_HERE,
        "cuDNN is of CUDA",
        gpu=(("sd15", "cudnn-benchmark"), ("sdxl", "cudnn-benchmark")),
    ),
    Claim(
        "1, TF32",
        '"up to 8x faster than FP32 with minimal accuracy loss"',
        NOT_HERE,
        "It needs a card. 8 times is the peak of an A100's products (156 to 19.5 TFLOPS), of nothing whole, and models "
        "in 16 bit do not use it",
        sources=(
            "https://images.nvidia.com/aem-dam/en-zz/Solutions/data-center/nvidia-ampere-architecture-whitepaper.pdf",
        ),
        gpu=(("sd15, float32", "tf32"), ("sdxl, float32", "tf32")),
    ),
    Claim(
        "2, contiguous tensors",
        '"5-15% faster memory operations"',
        IN_PART,
        "A convolution of a window that lies apart in memory takes {contiguous} the time of one that lies together, "
        "and laying it together is a copy; most tensors of a decode lie together anyhow",
    ),
    Claim(
        "2, in-place operations",
        '"10-20% faster for large tensors"',
        IN_PART,
        "Multiplying a tile of 1024 px takes {in_place} the time of doing it in place, on a CPU, where new memory "
        "comes from the system; of a decode it is a small part",
    ),
    Claim(
        "3, non-blocking transfers",
        '"effectively free transfers"',
        NOT_HERE,
        "There is no transfer without a card",
        gpu=(("flux1-dev", "streamed-blocks=8"),),
    ),
    Claim(
        "4, cached ramps",
        '"5-10% faster for multi-tile processing"',
        DOES_NOT,
        "To compute a ramp takes {ramp_share} of the decode of a tile of 512 px: nothing is left to gain",
    ),
    Claim(
        "4, optimized blending",
        '"separable (1D instead of 2D) reduces memory footprint and computation time"',
        DOES_NOT,
        "A tile times one plane takes {two_ramps} the time of the tile times two ramps, one after the other, which "
        "makes a second large tensor besides",
    ),
    Claim(
        "5, torch.compile",
        '"15-40% speedup after first warmup run"',
        DOES_NOT,
        "The decode of the bundled model in batches of 8 is {compile_decode} as fast when it is compiled, on a CPU. A "
        "larger one, or a card, is another matter",
        gpu=(("sdxl", "compile-vae"),),
    ),
    Claim(
        "Expected speedup",
        '"tiled encode, tiled decode: 1.3-1.5x"',
        IN_PART,
        THEIRS + "By other means: at 1024 px Safelight's blended tiles are {blended} as fast as diffusers', and their "
        "statistics are the whole picture's",
    ),
    Claim(
        "Expected speedup",
        '"non-tiled: 1.2-1.3x"',
        IN_PART,
        THEIRS + "By other means, on a CPU in bfloat16: channels-last is {last_decode} as fast at 512 px; exact strips "
        "{exact} for a decode at 1024 px and {exact_encode} for an encode, the same picture but for rounding",
    ),
    Claim(
        "Expected speedup",
        '"with torch.compile: 1.5-2.0x"',
        NOT_HERE,
        THEIRS + "The nearest here: {compile_decode} for the bundled model's decode, {compile_firstlight} for its "
        "denoiser",
    ),
    Claim(
        "Usage",
        '"1024x1024 tiles with 128 overlap for RTX 5070 Ti; disable under 1024, enable over 2048"',
        IN_PART,
        "Whole, a decode takes {decode_1024} at 1024 px and {decode_2048} at 2048 px in 16 bit (SD1.5's VAE): with 16 "
        "GB neither needs tiles, with 4 GB the second does. Bytes decide, not a side",
        known=("tiling-small",),
    ),
    Claim(
        "Usage",
        '"larger tiles = fewer tiles = less blending overhead, but more VRAM"',
        IN_PART,
        "At 2048 px tiles of 512 px take {tiles_25}, of 256 px {tiles_small}; but {tiles_25_work} and "
        "{tiles_small_work} of operations: with overlap as a share of the tile, larger ones do not save work",
    ),
    Claim(
        "Memory management",
        '"peak memory reduced by 10-15%" by in-place, reuse, contiguous',
        NOT_HERE,
        THEIRS + "What sets a decode's peak is the size of its tensors: exact strips take {exact_bytes} of whole's "
        "bytes at 1024 px",
    ),
    Claim(
        "Tensor core utilization",
        '"RTX 5070 Ti: Ada, 4th generation Tensor Cores, 660 / 330 / 1321 TOPS"',
        DOES_NOT,
        "The card is a Blackwell (compute capability 12.0) with Tensor Cores of the fifth generation",
        sources=(CARD, CAPABILITY),
    ),
    Claim(
        "Memory bandwidth",
        '"RTX 5070 Ti has 504 GB/s"',
        DOES_NOT,
        "896 GB/s: 16 GB of GDDR7 on 256 bits",
        sources=(CARD,),
    ),
    Claim(
        "Troubleshooting",
        '"GPU utilization: should be 90-100% during VAE operations"',
        NOT_HERE,
        "There is no GPU",
    ),
    Claim(
        "Troubleshooting",
        '"Increase tile overlap to reduce VRAM peaks"',
        DOES_NOT,
        "At 2048 px in tiles of 512 px, overlaps of 0.125, 0.25 and 0.5 take {tiles_125}, {tiles_25} and {tiles_5}, "
        "for {tiles_125_work}, {tiles_25_work} and {tiles_5_work} (whole: {whole_2048_work}): more overlap costs both",
        known=("overlap",),
    ),
    Claim(
        "Troubleshooting",
        '"Reduce tile size (e.g. 512x512 instead of 1024x1024)" against out of memory',
        HOLDS,
        "At 2048 px: {decode_2048} whole, {tiles_25} in tiles of 512 px, {tiles_small} of 256 px",
    ),
    Claim(
        "Conclusion",
        '"30-50% faster without any quality loss, 50-100% with torch.compile"',
        IN_PART,
        THEIRS + "With no loss but rounding there is {exact} by exact strips; diffusers' tiles are not without loss: "
        "{tiling_1024_psnr} to whole",
    ),
)
