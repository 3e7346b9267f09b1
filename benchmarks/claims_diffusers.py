"""Guide 4, common optimization techniques for diffusers: its numbers, and what was found of them."""

from claims_stated import DOES_NOT, HOLDS, IN_PART, NOT_HERE, Claim

LOADED = "Counted, in 16 bit: "
MERGED = "docs/experiments.md has its pictures on the bundled model"

CLAIMS = (
    Claim(
        "1; 4; 10",
        '"xFormers is almost always strictly better than the default"',
        DOES_NOT,
        "The default is fused itself: {fused_x} as fast as attention that writes its scores down, with {fused_bytes} "
        "instead of {plain_bytes}, on a CPU. Beside that nothing is left that is free",
        known=("xformers",),
        gpu=(("sd15", "attention-backend=math"), ("sdxl", "attention-backend=math")),
    ),
    Claim(
        "2; 3",
        '"attention slicing: VRAM lower (moderate), slower"',
        IN_PART,
        "Lower than attention that writes its scores down ({sliced_bytes} instead of {plain_bytes}) at "
        "{sliced_plain_x} its speed; but higher than torch's own ({fused_bytes}), at {sliced_x} its speed. A whole "
        "picture of the bundled model: {sliced_picture_x}",
        known=("slicing-on-sdpa",),
        gpu=(("sd15", "attention-slicing"), ("sdxl", "attention-slicing")),
    ),
    Claim(
        "3.2",
        '"no change in math -> exact same image quality"',
        HOLDS,
        "The same mathematics, rounded elsewhere: {sliced_error} from torch's own in float32",
    ),
    Claim(
        "3.3; 8",
        '"slicing on top of xFormers: little or no benefit, may hurt speed"',
        HOLDS,
        "It takes the place of fused attention: {sliced_x} the speed and more bytes",
        known=("slicing-on-sdpa",),
    ),
    Claim(
        "5.2",
        '"sequential offload: SDXL on 4-6GB VRAM in many cases"',
        NOT_HERE,
        LOADED + "SDXL's weights are {sdxl_16}, its denoiser {sdxl_unet_16}, so whole parts do not fit 4 GB and single "
        "layers do; what is measured on a card is another matter",
        gpu=(("sdxl", "sequential-offload"),),
    ),
    Claim(
        "5.3",
        '"sequential offload: often 2-4x slower or worse"',
        NOT_HERE,
        "There is no transfer without a card",
        known=("sequential",),
        gpu=(("sdxl", "sequential-offload"), ("sd15", "sequential-offload"), ("flux1-dev", "sequential-offload")),
    ),
    Claim(
        "6.2",
        '"model offload: often enough for SDXL on 8-10GB"; faster than sequential',
        IN_PART,
        LOADED + "the largest part, the denoiser, is {sdxl_unet_16} and a decode at 1024 px takes {sdxl_decode}: that "
        "is under 8 GB. Its speed needs a card",
        known=("offload-first",),
        gpu=(("sdxl", "model-offload"), ("sd15", "model-offload")),
    ),
    Claim(
        "7.2",
        '"ToMe: potentially large speedups", best at many tokens',
        IN_PART,
        "One attention over 4096 tokens, matching included, on a CPU: {merged_25} as fast with a quarter merged, "
        "{merged_50} with half. Attention is a part of a step, so a picture gains less",
        known=("tome-under-offload",),
        gpu=(("sd15", "token-merging"), ("sdxl", "token-merging")),
    ),
    Claim(
        "7.3",
        '"0.2-0.3 is usually gentle, 0.5 is aggressive"',
        IN_PART,
        f"0.5 is aggressive: {MERGED}, 15 to 24 dB from plain. 0.2 to 0.3 was not drawn",
    ),
    Claim(
        "8",
        '"offload and ToMe: savings are less useful"',
        NOT_HERE,
        "There is no transfer without a card",
        known=("tome-under-offload",),
    ),
    Claim(
        "9.1",
        '"10GB: SD 1.5 at 768x768, no offload, no slicing: VRAM usage is acceptable"',
        HOLDS,
        LOADED + "{batch_768_2} for two pictures at once",
    ),
    Claim(
        "9.2",
        '"SD 1.5 at 1024x1024 without OOM on 10GB: slicing only if you still hit limits"',
        HOLDS,
        LOADED + "{batch_1024_1} with everything resident: no limit is hit, and slicing would take more",
    ),
    Claim(
        "9.3",
        '"SDXL on 10GB: model offload"',
        IN_PART,
        LOADED + "{sdxl_run_16} at 1024 px with everything resident, so a card of 10 GB needs no offload where "
        "the VAE works in 16 bit; in float32 its decode takes {sdxl_decode_32}, and it is close",
        known=("offload-first",),
        gpu=(("sdxl", ""),),
    ),
    Claim(
        "9.4",
        '"SDXL or SD 1.5 on 4-6GB: sequential offload"',
        IN_PART,
        LOADED
        + "SD1.5 takes {sd15_run_16} at 512 px with everything resident, so it needs no offload; SDXL's denoiser "
        "is {sdxl_unet_16}",
        known=("sequential",),
    ),
)
