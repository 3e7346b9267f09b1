"""What is known of samplers, schedules and models: the numbers that advice is made of, each with who found them.

Numbers of steps are given in model evaluations, which are what seconds go by: a sampler that evaluates twice a step
takes half as many steps for as many seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

KDIFFUSION = "https://github.com/crowsonkb/k-diffusion/blob/master/k_diffusion/sampling.py"
EDM = "https://arxiv.org/abs/2206.00364"
DPMPP = "https://arxiv.org/abs/2211.01095"
DDIM_PAPER = "https://arxiv.org/abs/2010.02502"


@dataclass(frozen=True, slots=True)
class Steps:
    """In model evaluations. least: fewer leave noise or mush. best: (from, to). most: beyond it hardly anything
    changes, or only into another picture.

    converges: more steps come nearer to one picture; else each number draws its own.
    """

    least: int
    best: tuple[int, int]
    most: int
    source: str
    converges: bool = True


DPM_SOLVER = "https://arxiv.org/abs/2206.00927"
# label, as A1111 writes it without a schedule -> what is known; DPM adaptive finds its steps itself.
# Measured in benchmarks/sampling_cpu_2026-11-21.md: DDIM is Euler step for step; UniPC on its own schedule is far from
# its picture until 15 evaluations; DDIM CFG++ comes near to none
SAMPLERS: Mapping[str, Steps] = {
    "DPM++ 2M": Steps(15, (20, 25), 30, DPMPP),
    "DPM++ SDE": Steps(20, (24, 50), 60, KDIFFUSION, converges=False),
    "DPM++ 2M SDE": Steps(15, (20, 30), 50, KDIFFUSION, converges=False),
    "DPM++ 2M SDE Heun": Steps(15, (20, 30), 50, KDIFFUSION, converges=False),
    "DPM++ 2S a": Steps(20, (30, 50), 60, KDIFFUSION, converges=False),
    "DPM++ 3M SDE": Steps(20, (25, 40), 60, KDIFFUSION, converges=False),
    "Euler a": Steps(10, (15, 30), 40, KDIFFUSION, converges=False),
    "Euler": Steps(15, (20, 30), 50, EDM),
    "LMS": Steps(15, (20, 30), 50, KDIFFUSION),
    "Heun": Steps(20, (30, 40), 60, EDM),
    "DPM2": Steps(20, (30, 50), 60, DPM_SOLVER),
    "DPM2 a": Steps(20, (40, 60), 80, DPM_SOLVER, converges=False),
    "DPM fast": Steps(10, (15, 25), 40, DPM_SOLVER),
    "Restart": Steps(20, (36, 66), 100, "https://arxiv.org/abs/2306.14878", converges=False),
    "DDIM": Steps(15, (20, 30), 50, DDIM_PAPER),
    "DDIM CFG++": Steps(20, (30, 50), 100, "https://arxiv.org/abs/2406.08070", converges=False),
    "PLMS": Steps(20, (30, 50), 100, "https://arxiv.org/abs/2202.09778"),
    "UniPC": Steps(15, (20, 30), 40, "https://arxiv.org/abs/2302.04867"),
    "LCM": Steps(2, (4, 8), 12, "https://arxiv.org/abs/2310.04378", converges=False),
}
ANY = Steps(15, (20, 30), 50, DPMPP)  # where no sampler is named


@dataclass(frozen=True, slots=True)
class Advised:
    """What to say of a schedule. most: steps it is meant for, None for any."""

    text: str
    source: str
    most: int | None = None
    few_steps: bool = False  # the one that models distilled to a few steps were trained on
    flow: bool = True  # gains something on a flow-matching model, which has a shift of its own


SCHEDULES: Mapping[str, Advised] = {
    "Uniform": Advised("equal steps in the trained timesteps: what Euler a and Heun take by themselves", KDIFFUSION),
    "Karras": Advised("more of the steps at little noise; DPM++ 2M, SDE and 2S a were tuned on it", EDM, flow=False),
    "Exponential": Advised(
        "equal steps in the logarithm of noise: for DPM++ 2M SDE and 3M SDE", KDIFFUSION, flow=False
    ),
    "Polyexponential": Advised("as Exponential, with another curve", KDIFFUSION, flow=False),
    "SGM Uniform": Advised(
        "equal steps that end at no noise: what turbo and Lightning models were trained on",
        "https://huggingface.co/ByteDance/SDXL-Lightning",
        few_steps=True,
    ),
    "KL Optimal": Advised("fewer steps in the middle", "https://arxiv.org/abs/2404.14507", flow=False),
    "Align Your Steps": Advised(
        "found for about 10 steps of SD1.5 and SDXL; with many it gains nothing",
        "https://arxiv.org/abs/2404.14507",
        most=20,
        flow=False,
    ),
    "Simple": Advised("equal steps, as SD3 and FLUX are used", "https://arxiv.org/abs/2403.03206", few_steps=True),
    "Normal": Advised("equal steps, as ComfyUI takes them", "https://github.com/comfyanonymous/ComfyUI"),
    "DDIM": Advised("DDIM's own steps", DDIM_PAPER),
    "Beta": Advised(
        "more of the steps at both ends; for FLUX and SDXL in few steps", "https://arxiv.org/abs/2407.12173"
    ),
    "LCM": Advised("the timesteps that LCM was distilled on", "https://arxiv.org/abs/2310.04378", few_steps=True),
    "Trailing": Advised(
        "diffusers' word for what ends at no noise", "https://arxiv.org/abs/2305.08891", few_steps=True
    ),
    "Leading": Advised(
        "diffusers' word for what SD1.5 was used with; it never begins at full noise",
        "https://arxiv.org/abs/2305.08891",
    ),
    "Linspace": Advised("diffusers' word for Normal", "https://arxiv.org/abs/2305.08891"),
    "Turbo": Advised(
        "for models distilled to 1 to 4 steps",
        "https://huggingface.co/stabilityai/sdxl-turbo",
        most=10,
        few_steps=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of model. side: of its own square picture, in pixels.

    guidance: (least, best from, best to, most). steps: (least, best from, best to, most) where the model and not the
    sampler decides; None where the sampler does. area: (least, most) relative to side squared, beyond which subjects
    are doubled or the picture falls apart. longest: side in pixels. multiple: of pixels, as its sizes in training.
    distilled: guidance is an input of the model, not the mix of two predictions. latents: in probe.vae_catalog.
    """

    told: str
    side: int
    guidance: tuple[float, float, float, float]
    source: str
    latents: str | None
    steps: tuple[int, int, int, int] | None = None
    area: tuple[float, float] = (0.6, 1.6)
    longest: int = 1536
    multiple: int = 64
    flow: bool = False
    distilled: bool = False
    sizes: tuple[tuple[int, int], ...] = ()


def _mirrored(wide: str) -> tuple[tuple[int, int], ...]:
    """ "1024x1024 1152x896" -> (1024, 1024), (1152, 896), (896, 1152)."""
    pairs = [(int(width), int(height)) for width, height in (size.split("x") for size in wide.split())]
    return tuple(dict.fromkeys([*pairs, *((height, width) for width, height in pairs)]))


# width x height, https://arxiv.org/abs/2307.01952, appendix I
SDXL_SIZES = _mirrored(
    "1024x1024 1024x960 1088x960 1088x896 1152x896 1152x832 1216x832 1280x768 1344x768 1344x704 1408x704 1472x704 "
    "1536x640 1600x640 1664x576 1728x576 1792x576 1856x512 1920x512 1984x512 2048x512"
)
SD15_CARD = "https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5"
SD21_CARD = "https://huggingface.co/stabilityai/stable-diffusion-2-1"
SDXL_PAPER = "https://arxiv.org/abs/2307.01952"
SD35 = "https://huggingface.co/stabilityai/stable-diffusion-3.5-large"
LCM_DOCS = "https://huggingface.co/docs/diffusers/using-diffusers/inference_with_lcm"
FLUX = "https://huggingface.co/black-forest-labs/FLUX.1-dev"
USUAL = (3.0, 5.0, 9.0, 12.0)

# the names are those of probe.known where it has the model
FAMILIES: Mapping[str, Family] = {
    "sd15": Family("SD1.5", 512, USUAL, SD15_CARD, "sd", longest=768),
    "sd21-base": Family("SD2.1-base", 512, USUAL, SD21_CARD, "sd", longest=768),
    "sd21": Family("SD2.1", 768, USUAL, SD21_CARD, "sd", longest=1152),
    "sd-lcm": Family("an SD1.5 distilled by LCM", 512, (1, 3, 10, 13), LCM_DOCS, "sd", (2, 4, 8, 12), longest=768),
    "sdxl": Family("SDXL", 1024, (3, 4, 8, 12), SDXL_PAPER, "sdxl", longest=2048, sizes=SDXL_SIZES),
    "sdxl-turbo": Family(
        "SDXL-turbo", 512, (0, 0, 1, 2), "https://huggingface.co/stabilityai/sdxl-turbo", "sdxl", (1, 1, 4, 8)
    ),
    "sdxl-lightning": Family(
        "an SDXL distilled to few steps",
        1024,
        (0, 0, 2, 2),
        "https://huggingface.co/ByteDance/SDXL-Lightning",
        "sdxl",
        (1, 4, 8, 12),
        longest=2048,
        sizes=SDXL_SIZES,
    ),
    "sd3": Family(
        "SD3",
        1024,
        (2, 4, 7, 10),
        "https://huggingface.co/stabilityai/stable-diffusion-3-medium-diffusers",
        "sd3",
        (15, 28, 40, 60),
        area=(0.5, 1.5),
        flow=True,
    ),
    "sd35": Family("SD3.5", 1024, (2, 3.5, 5, 8), SD35, "sd3", (15, 28, 40, 60), area=(0.25, 2.0), flow=True),
    "flux1-dev": Family(
        "FLUX.1-dev",
        1024,
        (1, 2, 4.5, 10),
        FLUX,
        "flux",
        (12, 20, 30, 50),
        area=(0.1, 2.0),
        longest=2048,
        multiple=16,
        flow=True,
        distilled=True,
    ),
    "flux1-schnell": Family(
        "FLUX.1-schnell",
        1024,
        (0, 0, 1, 1),
        "https://huggingface.co/black-forest-labs/FLUX.1-schnell",
        "flux",
        (1, 2, 4, 8),
        area=(0.1, 2.0),
        longest=2048,
        multiple=16,
        flow=True,
    ),
    "firstlight": Family(
        "the bundled model",
        64,
        (1, 2, 4, 7),
        "safelight/firstlight/model/README.md",
        None,
        area=(0.5, 2.0),
        longest=128,
        multiple=4,
    ),
}
# probe.known's other names
ALIASES = {"sd3-medium": "sd3", "sd35-medium": "sd35", "sd35-large": "sd35"}
FEW_STEP_WORDS = ("lightning", "hyper", "lcm", "dmd", "turbo")


def family_of(pipeline: str, denoiser: Mapping[str, object], name: str = "", side: int | None = None) -> str | None:
    """The key of FAMILIES of a model; None for any other kind.

    pipeline: its diffusers class. denoiser: its config. name: of the model, as distilled models tell themselves by
    nothing else. side: in pixels, of the picture it draws by itself.
    """
    few = any(word in name.lower() for word in FEW_STEP_WORDS)
    if name == "firstlight":
        return name
    if pipeline.startswith("StableDiffusionXL"):
        return "sdxl-turbo" if side == 512 else "sdxl-lightning" if few else "sdxl"
    if pipeline.startswith("StableDiffusion3"):
        return "sd35" if denoiser.get("qk_norm") else "sd3"
    if pipeline.startswith("Flux") and pipeline[4:5] in ("P", "I", "C", "F"):  # not Flux2
        return "flux1-dev" if denoiser.get("guidance_embeds") else "flux1-schnell"
    if pipeline.startswith("LatentConsistency") or denoiser.get("time_cond_proj_dim"):
        return "sd-lcm"
    if pipeline.startswith("StableDiffusion"):
        return {768: "sd15", 1024: "sd21-base" if side == 512 else "sd21"}.get(denoiser.get("cross_attention_dim"))  # type: ignore[call-overload]
    return None
