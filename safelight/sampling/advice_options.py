"""What to say of a second pass, of noise within the steps, of batches, of pictures to begin from, and of a VAE.

Comes in: Asked. Goes out: Advice, as in advice_rules.
"""

from collections.abc import Iterator
from inspect import signature
from math import inf, sqrt

from safelight.errors import UnknownName
from safelight.request import HIRES, hires_size
from safelight.sampling.advice_rules import Advice, Asked
from safelight.sampling.advice_tables import DDIM_PAPER, EDM, KDIFFUSION
from safelight.sampling.samplers import Sampler

LATENT_BLUR = "https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/6357"
LATENT_GRID = "https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/14706"
TWO_PASSES = "https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/812"
SAME_STEPS = "https://github.com/AUTOMATIC1111/stable-diffusion-webui/blob/v1.10.1/modules/sd_samplers_common.py"
BATCHES = "https://github.com/sgl-project/sglang/pull/33182"
SEEDS = "https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features"
SD_SIGMAS = (0.03, 14.6)  # least and largest of SD1.5, SD2 and SDXL: sqrt((1 - a) / a) of their scaled_linear betas
CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")

# -- second pass -------------------------------------------------------------------------------------------------------


def second_pass(asked: Asked) -> Iterator[Advice]:
    if asked.hires is None:
        return
    if (factor := _factor(asked)) is not None:
        yield _scale(factor)
    yield from _redrawn(asked)
    if asked.hires_steps and asked.steps and asked.hires_steps > asked.steps:
        text = (
            f"{asked.hires_steps} steps, all of them run: half to three quarters of the first pass's {asked.steps} do"
        )
        yield Advice("hires", "note", text, SAME_STEPS)


def _factor(asked: Asked) -> float | None:
    """How much longer the sides become; None where nothing says how large the first pass is."""
    assert asked.hires is not None
    if (match := HIRES.fullmatch(asked.hires)) and match[1]:
        return float(match[1])
    if match is None or (first := asked.size) is None:
        return None
    width, height = hires_size(asked.hires, *first)
    return sqrt(width * height / (first[0] * first[1]))


def _scale(factor: float) -> Advice:
    cost = f"each step of the second pass takes some {factor * factor:.1f} times as long"
    if factor > 3:
        return Advice(
            "hires", "warning", f"{factor:g} times is too far for one pass, subjects double again: 1.5 to 2", TWO_PASSES
        )
    if factor > 2 or factor < 1.2:
        return Advice("hires", "note", f"{factor:g} times: 1.5 to 2 is usual; {cost}", TWO_PASSES)
    return Advice("hires", "fine", f"{factor:g} times; {cost}", TWO_PASSES)


def _redrawn(asked: Asked) -> Iterator[Advice]:
    """hires_denoise, which latent upscalers need more of: between latents lies no picture."""
    latent = (asked.hires_upscaler or "Latent").lower().startswith("latent")
    usual = "over 0.5 to 0.7 with a latent upscaler" if latent else "0.3 to 0.6"
    value = asked.hires_denoise
    if value is None:
        yield Advice("hires", "fine", f"hires-denoise {usual} is usual", LATENT_BLUR)
    elif latent and value <= 0.5:
        text = f"hires-denoise {value:g} with a latent upscaler is blurred: give over 0.5, or --hires-upscaler Lanczos"
        yield Advice("hires", "warning", text, LATENT_GRID)
    elif value > 0.75:
        text = f"hires-denoise {value:g} draws another picture, and subjects may double: {usual} is usual"
        yield Advice("hires", "warning", text, TWO_PASSES)
    elif value < 0.3:
        yield Advice("hires", "note", f"hires-denoise {value:g} adds hardly any detail: {usual} is usual", LATENT_BLUR)
    else:
        fits = value <= (0.7 if latent else 0.6)
        yield Advice("hires", "fine" if fits else "note", f"hires-denoise {value:g}: {usual} is usual", LATENT_BLUR)


# -- noise within the steps --------------------------------------------------------------------------------------------


def noise(asked: Asked) -> Iterator[Advice]:
    said = {name: value for name in ("eta", *CHURN) if (value := getattr(asked, name)) is not None}
    sampler = asked.choice.sampler if asked.choice else None
    if sampler:
        yield from _not_taken(sampler, said)
    if asked.eta is not None and (sampler is None or "eta" in sampler.options):
        yield _eta(asked.eta, sampler)
    if sampler is None or "s_churn" in sampler.options:
        yield from _churn(asked)
    if asked.s_noise is not None and asked.s_noise < 0.95:
        text = f"s-noise {asked.s_noise:g}: puts back less noise than the level says, and detail goes; 1 is usual"
        yield Advice("noise", "note", text, EDM)


def _not_taken(sampler: Sampler, said: dict[str, float]) -> Iterator[Advice]:
    for name in said:
        if name not in sampler.options:
            takes = ", ".join(o.replace("_", "-") for o in sampler.options if o in ("eta", *CHURN)) or "none of them"
            text = f"{sampler.label} does not take {name.replace('_', '-')}: it takes {takes}"
            yield Advice("noise", "warning", text, KDIFFUSION)


def _eta(eta: float, sampler: Sampler | None) -> Advice:
    usual = "DDIM's own is 0, that of ancestral and SDE samplers 1"
    if sampler is not None:
        usual = f"{sampler.label}'s own is {signature(sampler.run).parameters['eta'].default:g}"
    if eta > 1:
        text = f"eta {eta:g} adds more noise than the steps take away: 0 to 1; {usual}"
        return Advice("noise", "warning", text, KDIFFUSION)
    if eta == 0:
        return Advice(
            "noise", "fine", f"eta 0 draws no noise: more steps come nearer to one picture; {usual}", DDIM_PAPER
        )
    text = (
        f"eta {eta:g}: more noise wants more steps; the seed repeats it all the same, and 0.67 is not special; {usual}"
    )
    return Advice("noise", "fine", text, DDIM_PAPER)


def _churn(asked: Asked) -> Iterator[Advice]:
    """Algorithm 2 of EDM: noise is added where s_tmin <= sigma <= s_tmax, s_churn / steps of it, at most 0.41."""
    said = [name for name in CHURN[1:3] if getattr(asked, name) is not None]
    if not asked.s_churn:
        if any(getattr(asked, name) for name in said):
            yield Advice("noise", "warning", "s-tmin and s-tmax do nothing without s-churn", EDM)
        elif asked.s_churn == 0:
            yield Advice("noise", "fine", "s-churn 0 adds no noise: the picture that the sampler converges to", EDM)
        return
    low, high = asked.s_tmin or 0.0, asked.s_tmax or inf
    largest = 1.0 if asked.model and asked.model.flow else SD_SIGMAS[1]
    if low > high or low > largest:
        yield Advice(
            "noise", "warning", f"no noise level lies from s-tmin {low:g} to s-tmax {high:g}: s-churn does nothing", EDM
        )
    elif high <= 1 < largest:
        text = (
            f"s-tmax {high:g} leaves out all but the last steps: levels go from 0.03 to 14.6, and 0 stands for no limit"
        )
        yield Advice("noise", "warning", text, EDM)
    if asked.steps and asked.s_churn > 0.41 * asked.steps + 0.5:
        most = f"{0.41 * asked.steps:.0f}"
        yield Advice("noise", "note", f"s-churn over {most}, which is 0.41 times the steps, does no more", EDM)
    elif low <= high:
        yield Advice("noise", "fine", f"s-churn {asked.s_churn:g}: some noise is added anew; it wants more steps", EDM)


# -- batches, pictures to begin from, VAEs -----------------------------------------------------------------------------

# purpose -> (pictures at a time, pictures in all, why)
PURPOSES = {
    "exploring": ((2, 8), (8, 12), "to choose from, in few steps and at the model's own size"),
    "final": ((1, 2), (1, 2), "with the seed that was found, more steps and a second pass"),
}


def batches(asked: Asked) -> Iterator[Advice]:
    if asked.purpose is not None:
        yield from _purpose(asked, asked.purpose)
    if asked.batch_size and asked.count and asked.batch_size > asked.count:
        text = f"of a batch of {asked.batch_size} only {asked.count} are drawn: give --count {asked.batch_size}"
        yield Advice("batches", "note", text, SEEDS)
    if asked.batch_size and asked.batch_size > 1:
        if asked.model and asked.model.flow:
            text = f"{asked.model.told} keeps a card busy alone: a batch of 4 made 1.04 times the pictures per second"
            yield Advice("batches", "note", text, BATCHES)
        else:
            text = "batch-size is for speed: each picture has a seed of its own, and is the same alone"
            yield Advice("batches", "fine", text, SEEDS)


def _purpose(asked: Asked, purpose: str) -> Iterator[Advice]:
    if purpose not in PURPOSES:
        raise UnknownName("purpose", purpose, PURPOSES)
    (few, many), (least, most), why = PURPOSES[purpose]
    usual = f"{purpose}: {least} to {most} pictures, {few} to {many} at a time, {why}"
    count, size = asked.count, asked.batch_size
    fits = (count is None or least <= count <= most) and (size is None or few <= size <= many)
    yield Advice("batches", "fine" if fits else "note", usual, "safelight presets exploration, final-run")


def beginning(asked: Asked) -> Iterator[Advice]:
    if (value := asked.denoise) is None:
        return
    kinds = (
        (0.2, "note", "hardly changes the picture"),
        (0.6, "fine", "keeps shapes and draws the surface anew"),
        (0.85, "fine", "keeps the composition"),
        (1.0, "note", "keeps next to nothing of the picture"),
    )
    level, text = next((level, text) for most, level, text in kinds if value <= most)
    yield Advice("init", level, f"denoise {value:g} {text}; 0.3 to 0.75 is usual", "https://arxiv.org/abs/2108.01073")  # type: ignore[arg-type]


def vae(asked: Asked) -> Iterator[Advice]:
    from safelight.probe import vae_catalog

    model = asked.model
    if asked.vae is None:
        if model and model.latents:
            fitting = [row.name for row in vae_catalog.CATALOGUE if row.family == model.latents]
            yield Advice(
                "vae", "fine", f"for {model.told}: {', '.join(fitting)}; its own is loaded without --vae", model.source
            )
        return
    if (row := vae_catalog.named(asked.vae)) is None:
        return  # a file or a repository of somebody's: whether it fits is seen when it is opened
    if model and model.latents != row.family:
        whose = vae_catalog.FAMILIES[row.family][1]
        yield Advice("vae", "warning", f"{row.name} is for {whose} latents, not {model.told}'s", row.source)
    else:
        dtypes = "" if row.dtypes == vae_catalog.ALL else f" ({' and '.join(row.dtypes)})"
        yield Advice("vae", "fine", f"{row.name}{dtypes}: {row.known_for}", row.source)
