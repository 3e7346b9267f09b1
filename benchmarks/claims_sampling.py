"""Guide 1, the VAE and Sampling Optimization Guide: its numbers, and what was found of them."""

from claims_stated import DOES_NOT, HOLDS, IN_PART, NOT_HERE, Claim

WEBUI = "https://github.com/AUTOMATIC1111/stable-diffusion-webui"
OPTIONS = f"{WEBUI}/blob/v1.10.1/modules/shared_options.py"
FLAGS = f"{WEBUI}/wiki/Command-Line-Arguments-and-Settings"
LIMIT = "PSNR to the limit on the bundled model"
NO_LIMIT = (
    "It draws noise anew for each step: every number of steps makes another picture, and there is no limit to be near "
    "to. Which of them is better takes people, or Stable Diffusion's own pictures, and its weights are not here"
)

CLAIMS = (
    Claim(
        "1",
        '"vae-ft-ema ...: VRAM ~800MB additional"',
        IN_PART,
        "Weights take {sd15_vae_16} in 16 bit; a decode at 512 px takes {decode_512} besides, {decode_512_32} in "
        "float32, four times that at 1024 px: there is no one number",
    ),
    Claim(
        "1",
        '"sdxl_vae: VRAM ~1.2GB additional"',
        DOES_NOT,
        "A decode at SDXL's own 1024 px takes {sdxl_decode} in 16 bit and {sdxl_decode_32} in float32, which its VAE "
        "needs unless it is the repaired one; weights are the same small part as SD1.5's",
    ),
    Claim(
        "1",
        '"vae-ft-mse-840000: sharp details, high contrast" beside EMA',
        NOT_HERE,
        "The weights are not here. Its makers measured PSNR 24.5 (EMA 23.8) and rFID 4.70 (EMA 4.42), and call its "
        "pictures somewhat smoother, so it is the other way round",
        sources=("https://huggingface.co/stabilityai/sd-vae-ft-mse-original",),
    ),
    Claim(
        "2, tier 1; 3",
        '"DPM++ 2M Karras: 20-30 steps; minimum 15, optimal 20-25, maximum benefit 30"',
        HOLDS,
        f"{LIMIT}: {{karras_10}} in 10 steps, {{karras_15}} in 15, {{karras_20}} in 20, {{karras_25}} in 25, "
        "{karras_30} in 30, {karras_50} in 50; from 40 dB on hardly anything can be seen to change. The bundled model "
        "is small, and settles sooner than Stable Diffusion may",
    ),
    Claim(
        "2, tier 1",
        '"DPM++ SDE Karras: slower, 20-25 steps"; "30 steps" in Ultra',
        IN_PART,
        "Slower: {sde_cost} the seconds of DPM++ 2M Karras in as many steps. To its own picture on its own noise: "
        "{sde_20} in 20 steps, {sde_25} in 25, {sde_30} in 30: it is not settled there",
        known=("second-order",),
    ),
    Claim(
        "2, tier 1; 3",
        '"UniPC: 15-25 steps; minimum 12, optimal 15-20, maximum benefit 25", fast',
        IN_PART,
        f"{LIMIT}: {{unipc_12}} in 12 steps, {{unipc_15}} in 15, {{unipc_20}} in 20, {{unipc_25}} in 25, "
        "which 10 steps of DPM++ 2M Karras surpass ({karras_10}); a step of it is not faster",
    ),
    Claim(
        "2, tier 2; 3",
        '"Euler a: 15-20 steps; minimum 10, maximum benefit 25"; "very fast"',
        NOT_HERE,
        NO_LIMIT + ". It asks the model as often as DPM++ 2M does, so a step is not faster",
    ),
    Claim(
        "2, tier 2",
        '"DPM++ 2M: 20-25 steps", without Karras',
        HOLDS,
        f"{LIMIT}: {{multistep_20}} in 20 steps, {{multistep_25}} in 25; with Karras {{karras_20}} and {{karras_25}}",
    ),
    Claim(
        "2, tier 2",
        '"DDIM: 20-30 steps"',
        HOLDS,
        f"{LIMIT}: {{ddim_20}} in 20 steps, {{ddim_30}} in 30, {{ddim_50}} in 50, {{ddim_100}} in 100; "
        "DPM++ 2M Karras is nearer in every number of steps",
    ),
    Claim(
        "2, tier 3",
        '"LMS Karras: 15-25 steps"',
        HOLDS,
        f"{LIMIT}: {{lms_15}} in 15 steps, {{lms_25}} in 25",
    ),
    Claim(
        "2, tier 3",
        '"Heun: slow, 15-20 steps, high precision"',
        HOLDS,
        "{heun_cost} the seconds of Euler in as many steps; {heun_15} in 15, {heun_20} in 20, where Euler has "
        "{euler_15} and {euler_20}",
    ),
    Claim("2, tier 3", '"DPM2 a Karras: 20-30 steps, medium speed"', NOT_HERE, NO_LIMIT),
    Claim(
        "3",
        '"CFG 7.0-8.0 optimal; 13.0+ may cause artifacts"',
        IN_PART,
        "The bundled model was made for 3: values cut off at black or white are {cut_3} of a picture there, {cut_7} "
        "at 7.5 and {cut_12} at 12, so more guidance does over-expose. Where it begins, each model has its own. "
        "Off, a step is {unguided_x} as fast (at 256 px), as half of it is left out",
        known=("guidance-12",),
    ),
    Claim(
        "3",
        '"s_churn 0.0-1.0, s_tmin 0.0-1.0, s_tmax 0.0-1.0, s_noise 0.0-1.0"',
        DOES_NOT,
        "They are levels of noise, which reach to {sigma_trained} in Stable Diffusion. The WebUI's own ranges are "
        "0 to 100, 0 to 10, 0 to 999 and 0 to 1.1, and only Euler, Heun and DPM2 read them",
        sources=(OPTIONS,),
    ),
    Claim(
        "3",
        '"s_tmax = 0.0" recommended',
        IN_PART,
        "In the WebUI 0 stands for no limit, and with s_churn 0 nothing reads it",
        sources=(OPTIONS,),
    ),
    Claim(
        "3",
        '"eta: 0.0 for reproducibility, 0.67 for creativity"',
        IN_PART,
        "A seed gives the same picture with any eta here. With 0 it also stays nearly the same in another number of "
        "steps. For 0.67 there is no measurement",
    ),
    Claim(
        "4",
        '"512x512: best quality, fastest"',
        IN_PART,
        "Fastest: a step at 768 px takes {step_768_share} the operations of one at 512 px, at 1024 px "
        "{step_1024_share}. Quality: SD1.5's weights are not here",
    ),
    Claim(
        "4; 7",
        '"Hires steps 15-20 (50-75 % of main steps), 1.5x, 0.5 denoising"',
        NOT_HERE,
        "Its quality: SD1.5's weights are not here. Its cost is counted: 15 steps at 768 px are {second_pass} the "
        "operations of 20 at 512 px, all of the steps being run",
        known=("highres",),
    ),
    Claim("5", '"RTX 3080 (16GB VRAM)"', DOES_NOT, known=("card-16gb",)),
    Claim(
        "5",
        '"512x512, batch 4-6: ~12-14 GB"',
        DOES_NOT,
        "SD1.5 in 16 bit with fused attention, everything resident and a batch decoded together: "
        "{batch_512_4} for 4, {batch_512_6} for 6, counted; one by one, {decode_512_of_six} of the latter "
        "become {decode_512}",
        gpu=(("sd15, 8 at once", ""),),
    ),
    Claim(
        "5",
        '"768x768, batch 2-3: ~14-15 GB"',
        DOES_NOT,
        "{batch_768_2} for 2, {batch_768_3} for 3, counted",
    ),
    Claim(
        "5",
        '"1024x1024, batch 1-2: ~15-16 GB"',
        DOES_NOT,
        "{batch_1024_1} for 1, {batch_1024_2} for 2, counted",
    ),
    Claim(
        "5",
        '"batch times ~15-20 s at 512, ~25-35 s at 768, ~45-60 s at 1024"',
        NOT_HERE,
        "No such card is here, and the guide names no steps. By operations a picture's step at 768 px is "
        "{step_768_share} one at 512 px, at 1024 px {step_1024_share}",
        gpu=(("sd15, 8 at once", ""), ("sd15", "")),
    ),
    Claim(
        "5; 10",
        '"batch size 4" for balance, "batch size 6" for speed',
        IN_PART,
        "On the bundled model a batch of 4 makes {batch_4_x} as many pictures per second as one by one, of 16 "
        "{batch_16_x}; it is too small to fill a processor alone",
        known=("batch-of-dit",),
    ),
    Claim(
        "6",
        '"PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:512,expandable_segments:True"',
        DOES_NOT,
        "Its makers say that mixing both makes no sense: the split size is not heeded",
        sources=("https://github.com/pytorch/pytorch/issues/119452",),
    ),
    Claim(
        "6",
        '"SAFETENSORS_FAST_GPU=1"',
        DOES_NOT,
        "Nothing reads it since 2023",
        sources=("https://github.com/huggingface/accelerate/pull/1603",),
    ),
    Claim(
        "6",
        '"--xformers --opt-split-attention-v1" together',
        DOES_NOT,
        "The WebUI takes one of them, the one with the higher priority: the second does nothing",
        sources=(FLAGS,),
    ),
    Claim(
        "8",
        '"VAE tiling over 1024x1024: reduces VRAM, maintains quality consistency"',
        IN_PART,
        "At 1024 px it takes {tiling_1024_bytes} of the bytes in {tiling_1024_time} the seconds; but pictures change: "
        "{tiling_1024_psnr} with random weights, {tiling_firstlight_psnr} on the bundled model at 256 px in tiles of "
        "64. `--vae-tiling` is no flag of the WebUI",
        known=("tiling-small",),
        sources=(FLAGS,),
        gpu=(("sdxl", "vae-tiling"),),
    ),
    Claim(
        "10",
        '"Speed: Euler a, 15 steps, batch 6" beside "Balanced: 20 steps, batch 4"',
        HOLDS,
        "15 steps ask the model three times where 20 ask it four times, and a decode is {decode_share_20} of a picture "
        "of 20 steps at 512 px by operations, {decode_share_measured} by measured seconds: a quarter is saved, near "
        "enough",
    ),
)
