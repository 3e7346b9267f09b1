"""Guide 2, Tiered Recommendations: its numbers, and what was found of them."""

from claims_stated import DOES_NOT, HOLDS, IN_PART, NOT_HERE, Claim

ADVISED = (("sd15, float32", "auto"), ("sdxl, float32", "auto"))

CLAIMS = (
    Claim(
        "Tier 1, sampling",
        '"DDIM: 50 steps; DPM-Solver++: 20 steps (faster, similar quality)"',
        HOLDS,
        "On the bundled model DPM++ 2M in 20 steps is {multistep_20} from the limit, DDIM in 50 {ddim_50}, in "
        "{few_steps} the seconds",
    ),
    Claim(
        "Tier 1, sampling",
        '"10-20x speedup"',
        DOES_NOT,
        "50 steps to 20 are {few_steps} the speed; 20 times is what 1000 steps of training to 50 would be, and nobody "
        "draws with 1000",
        known=("sampler",),
    ),
    Claim(
        "Tier 1, sampling",
        '"30% memory reduction" by the sampler',
        DOES_NOT,
        "The bytes of a run, counted while it draws, are those of one evaluation: with 20 steps of DPM++ 2M they are "
        "{run_bytes} more than with 50 of DDIM, as it keeps an earlier result",
    ),
    Claim(
        "Tier 1, representation",
        '"latent diffusion: 50-200x compute reduction"',
        IN_PART,
        "One network on the pixels of 512 px instead of their latents would take {pixels} the operations, attention "
        "growing with the square; models that draw pixels are other networks, with less attention",
    ),
    Claim(
        "Tier 1, representation",
        '"sd-vae-ft-mse" as a tuned VAE',
        NOT_HERE,
        "Quality: its weights are not here. Seconds and bytes stay the same",
        known=("other-vae",),
    ),
    Claim(
        "Tier 1, FP16",
        '"50% memory"',
        IN_PART,
        "Of weights {fp16_weights} go, counted; of a whole run of SD1.5 at 512 px {fp16_run}; of a whole process on a "
        "CPU {bf16_bytes} (bfloat16, 256 px, libraries and all)",
        known=("half-memory",),
        gpu=(("sd15, float32", "dtype=float16"), ("sdxl, float32", "dtype=float16")),
    ),
    Claim(
        "Tier 1, FP16",
        '"1.5-2x speed"',
        IN_PART,
        "bfloat16 on a CPU that has products for it: {bf16_step} for SD1.5's step, {bf16_block} for one block, "
        "{bf16_firstlight} for the bundled model, which is too small; float16, for which it has none: {fp16_block}",
        known=("half-memory",),
        gpu=(("sd15, float32", "dtype=float16"), ("sdxl, float32", "dtype=float16")),
    ),
    Claim(
        "Tier 1, FP16",
        '"negligible quality loss"',
        IN_PART,
        "SD1.5 with random weights in bfloat16 {bf16_psnr}, the bundled model {bf16_firstlight_psnr}, whose pictures "
        "show the same things. One block alone is {bf16_error} of its result off in bfloat16, {fp16_error} in float16. "
        "SDXL's VAE does overflow in float16",
        sources=("https://huggingface.co/madebyollin/sdxl-vae-fp16-fix",),
    ),
    Claim(
        "Tier 2, infrastructure",
        '"run on 4-6GB GPUs"',
        HOLDS,
        "For SD1.5 it needs none of the three: {sd15_run_16} with everything resident at 512 px, counted. For SDXL the "
        "denoiser alone is {sdxl_unet_16}, so 6 GB with model offload is the least",
        gpu=(("sd15", "model-offload"), ("sdxl", "model-offload")),
    ),
    Claim(
        "Tier 2, infrastructure",
        '"tiled decoding: handle larger images"',
        HOLDS,
        "At 2048 px a decode takes {decode_2048} whole and {tiles_25} in tiles of 512 px, for {tiles_25_work} instead "
        "of {whole_2048_work}",
        known=("tiling-small",),
    ),
    Claim(
        "Tier 2, infrastructure",
        "offload, tiling and attention slicing named together",
        DOES_NOT,
        "Slicing beside torch's own attention: {sliced_bytes} instead of {fused_bytes}, and {sliced_x} the speed",
        known=("slicing-on-sdpa", "offload-first"),
    ),
    Claim(
        "Tier 2, attention",
        '"xFormers: 2-4x faster attention, 40-60% memory reduction"',
        IN_PART,
        "Beside attention that writes its scores down, torch's fused one is {fused_x} as fast on a CPU and takes "
        "{fused_bytes} instead of {plain_bytes}: that much is true of any fused attention. But it is what diffusers "
        "uses anyhow; xFormers itself wants a card",
        known=("xformers",),
        gpu=(("sd15", "attention-backend=math"), ("sdxl", "attention-backend=math")),
    ),
    Claim(
        "Tier 2, compilation",
        '"torch.compile: 20-30% additional speedup after warmup"',
        IN_PART,
        "On a CPU {compile_sd15} for SD1.5's step, channels-last with it, and {compile_firstlight} for the bundled "
        "model's; it took {compile_ready} more to be ready, from a warm cache",
        known=("compile-thirty",),
        gpu=(("sd15", "compile-blocks"), ("sdxl", "compile-blocks"), ("flux1-dev", "compile-blocks")),
    ),
    Claim(
        "Tier 3, INT8",
        '"75% memory, 2-3x speed, moderate quality loss"',
        NOT_HERE,
        "There is no model trained for INT8 here. A quarter of float32's weights is arithmetic, and half of FP16's, "
        "which the guide has taken already. Weights kept in 8 bits of floating point, on a CPU: {storage_x} the speed, "
        "{storage_psnr}",
        known=("other-model",),
    ),
    Claim(
        "Tier 3, custom schedulers",
        '"beta_schedule=cosine: better quality at same step count"',
        DOES_NOT,
        'diffusers refuses the word ("cosine is not implemented"). With what it calls squaredcos_cap_v2 the bundled '
        "model, which has Stable Diffusion's levels, is {psnr_cosine} from the limit after 20 DDIM steps, with its own "
        "levels {psnr_trained}; the largest level is {sigma_cosine} instead of {sigma_trained}",
        known=("cosine",),
    ),
    Claim("Tier 3, distilled models", '"2-4x faster, smaller, slight quality loss"', NOT_HERE, known=("other-model",)),
    Claim(
        "Decision matrix, real-time",
        '"10-20 steps, FP16, xFormers, compile: <1 second per image (512x512)"',
        NOT_HERE,
        "It needs a card. A step with guidance is {step_512} at 512 px, a decode {decode_share_20} of 20 steps",
        gpu=(("sd15", "auto"), ("sd15", "auto,compile-blocks")),
    ),
    Claim(
        "Decision matrix, high quality",
        '"100 steps, cosine, guidance 12: best quality"',
        DOES_NOT,
        "100 DDIM steps take {hundred} the seconds of 20 of DPM++ 2M Karras: {ddim_100} from the limit, and "
        "{karras_20}. Guidance 12 cuts off {cut_12} of the bundled model's values, its own 3 {cut_3}",
        known=("hundred-steps", "cosine", "guidance-12"),
    ),
    Claim("Decision matrix, high quality", '"~5 seconds per image"', NOT_HERE, "It needs a card, and names none"),
    Claim(
        "Decision matrix, batch processing",
        '"batch size 16: maximum images/second"',
        IN_PART,
        "The bundled model makes {batch_16_x} as many pictures per second in batches of 16 as one by one, for "
        "{batch_16_bytes} the bytes of a step",
        known=("batch-of-dit",),
        gpu=(("sd15, 8 at once", ""), ("sdxl, 4 at once", "")),
    ),
    Claim(
        "Performance summary",
        '"baseline 8GB"',
        IN_PART,
        "SD1.5 in float32 at 512 px takes {sd15_run_32}, counted, of which {sd15_32} are weights. The guide names no "
        "size: at 1024 px the decode takes {sdxl_decode_32}, and then 8 GB is about right",
    ),
    Claim(
        "Performance summary",
        '"Tier 1: 15x"',
        DOES_NOT,
        "bfloat16 and 20 steps instead of 50 on a CPU: {tier_1}, which is {bf16_x} at equal steps",
        known=("times-15",),
        gpu=ADVISED,
    ),
    Claim(
        "Performance summary",
        '"Tier 1: 2GB"',
        DOES_NOT,
        "SD1.5's weights alone are {sd15_16} in 16 bit, a run at 512 px {sd15_run_16}, counted",
    ),
    Claim(
        "Performance summary",
        '"Tier 1+2: 25x"',
        DOES_NOT,
        "The same, compiled, on a CPU: {tier_2}, which is {stack_sd15} at equal steps. Offload and tiling make it "
        "slower, not faster",
        known=("times-15", "graphs-with-offload"),
        gpu=ADVISED,
    ),
    Claim(
        "Performance summary",
        '"Tier 1+2: 1.5GB"',
        DOES_NOT,
        "SD1.5's denoiser alone is {sd15_unet_16} in 16 bit: model offload, which brings in whole parts, cannot be "
        "under it",
    ),
    Claim(
        "Performance summary",
        '"Tier 1+2+3: 40x, 1GB"',
        DOES_NOT,
        "All that pays, a step cache and less guidance on the bundled model: {stack_lossy} at equal steps, "
        "{stack_lossy_psnr}",
        known=("times-15",),
    ),
    Claim(
        "Performance summary",
        '"quality 98 %, 98 %, 95 %"',
        NOT_HERE,
        "The guide does not say of what. Differences from plain pictures stand in decibel at each optimizer",
    ),
    Claim(
        "Complete optimization stack",
        "model offload with torch.compile, reduce-overhead",
        NOT_HERE,
        known=("graphs-with-offload",),
    ),
)
