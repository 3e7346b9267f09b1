"""The named sets that guides recommend, as goals and limits for the one planner; none of them is a path of its own.

Comes in: a preset's name, and what a person says besides, which wins. Goes out: the arguments of a plan; and for each
thing that the guide names whether the plan takes it, with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from safelight.errors import UnknownName
from safelight.optimizers import words
from safelight.planner.claims import CLAIMS
from safelight.planner.plans import Plan

AUTO = "auto"  # as a batch size: the best there is
# how it is drawn, beside its size, its steps and its guidance
DRAWN = ("schedule", "hires", "hires_steps", "hires_denoise", "hires_upscaler")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One thing that a guide's set names. says: in the guide's words. names: optimizers that do it, any of them will.

    value: of the first option, where the guide means that one alone. claim: a key of CLAIMS.
    """

    says: str
    names: tuple[str, ...] = ()
    claim: str | None = None
    value: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """taken: None for what no optimizer does. name: the optimizer that is meant, if any."""

    says: str
    name: str | None
    taken: bool | None
    why: str


@dataclass(frozen=True, slots=True)
class Preset:
    """summary: what it is for. guide, section: where it comes from. wanted: what the guide's own set names.

    All others are what it asks for, None where it leaves that open; `device` is a card that the guide has in mind, for
    plans alone. keep: optimizers to plan around, as -o takes them. From `count` on they are as in Request; width and
    height are the first pass's.
    """

    summary: str
    guide: str
    section: str
    wanted: tuple[Wanted, ...] = ()
    goal: str = "balanced"
    fidelity: str | None = None
    vram: str | None = None
    keep: str | None = None
    model: str | None = None
    device: str | None = None
    width: int | None = None
    height: int | None = None
    batch_size: int | str | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    count: int | None = None
    schedule: str | None = None
    hires: str | None = None
    hires_steps: int | None = None
    hires_denoise: float | None = None
    hires_upscaler: str | None = None

    @property
    def asks(self) -> dict[str, Any]:
        """Argument of `safelight.plan`, or `count` -> value, without what it leaves open."""
        told = ("summary", "guide", "section", "wanted")
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in told}
        return {name: value for name, value in named.items() if value is not None}

    def verdicts(self, plan: Plan) -> list[Verdict]:
        """What becomes of each thing that the guide names."""
        return [_verdict(wanted, plan) for wanted in self.wanted]


def find(name: str) -> Preset:
    """Underscores count as hyphens, case does not count. Raises UnknownName."""
    key = words.normal(name)
    if key not in PRESETS:
        raise UnknownName("preset", name, PRESETS)
    return PRESETS[key]


def applied(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a preset asks for and what is given besides, which wins; of `keep` both count. None in `given` is open."""
    said = {key: value for key, value in given.items() if value is not None}
    if name is None:
        return said
    asked = find(name).asks
    if kept := asked.get("keep"):
        asked["keep"] = words.merged([[kept], [said.pop("keep", "")]]).mapping
    return asked | said


def planned(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """As `applied`, for `opening.foreseen`: `count` as its `pictures`, and a preset's own sampler as its `usual`, as
    that is for the guide's kind of model, and a schedule said besides belongs to it."""
    asked = applied(name, given)
    count = asked.pop("count", None)
    if name is not None and given.get("sampler") is None and given.get("schedule") is None and "sampler" in asked:
        asked["usual"] = asked.pop("sampler")
    return asked if count is None else {"pictures": count} | asked


def _verdict(wanted: Wanted, plan: Plan) -> Verdict:
    cited = CLAIMS[wanted.claim].cited if wanted.claim else ""
    if not wanted.names:
        return Verdict(wanted.says, None, None, cited)
    choices = {choice.optimizer.name: choice for choice in plan.choices}
    name = next((name for name in wanted.names if name in choices), wanted.names[0])
    if (choice := choices.get(name)) is None:
        return Verdict(wanted.says, name, False, _both(plan.left.get(name, "it is not there"), cited))
    if wanted.value is not None and wanted.value not in map(str, choice.options.values()):
        return Verdict(wanted.says, name, False, _both(f"{choice.written} in its place: {choice.why}", cited))
    return Verdict(wanted.says, name, True, choice.why)


def _both(why: str, cited: str) -> str:
    return f"{why}; {cited}" if cited else why


# -- what guides name --------------------------------------------------------------------------------------------------

COMPILERS = ("compile-blocks", "compile")
CACHES = ("first-block-cache", "mag-cache", "cache-dit", "deep-cache", "taylorseer-cache")

FP16 = Wanted("FP16", ("dtype",), "half-memory")
BF16 = Wanted("bfloat16", ("dtype",))
XFORMERS = Wanted("xFormers", ("attention-backend",), "xformers", "xformers")
FLASH = Wanted("flash attention", ("attention-backend",), "flash", "flash")
SLICING = Wanted("attention slicing", ("attention-slicing",), "slicing-on-sdpa")
OFFLOAD = Wanted("model offload", ("model-offload",), "offload-first")
STREAMED = Wanted("sequential offload", ("sequential-offload",), "sequential")
TILING = Wanted("VAE tiling", ("vae-tiling",), "tiling-small")
OVERLAP = Wanted("more overlap of its tiles, to save memory", (), "overlap")
VAE_SLICING = Wanted("VAE slicing", ("vae-slicing",))
COMPILE = Wanted("torch.compile", COMPILERS, "compile-thirty")
GRAPHS = Wanted("torch.compile, reduce-overhead", COMPILERS, "graphs-with-offload", "reduce-overhead")
TOME = Wanted("token merging", ("token-merging",), "tome-under-offload")
CACHE = Wanted("first-block cache", CACHES)
TUNED_VAE = Wanted("a tuned VAE", (), "other-vae")
EMA_VAE = Wanted("vae-ft-ema-560000 (--vae ft-ema)", (), "other-vae")
# the guide's own has to be fetched (safelight get), and a latent one leaves a grid at 0.5:
# https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/14706
UPSCALER = "Lanczos"
TO_768 = Wanted("768x768 by a highres fix of 1.5 times with R-ESRGAN 4x+: here with Lanczos", (), "highres")
TIMES = Wanted("15, 25 and 40 times as fast in 2, 1.5 and 1 GB", (), "times-15")
FEWER_STEPS = Wanted("DPM-Solver++ in 20 steps", (), "sampler")

TIERS = "Tiered recommendations"
DIFFUSERS = "Optimization techniques for diffusers"
DIFFGENTOR = "diffgentor's optimization guide"
VAE = "VAE and sampling optimization guide"
A_3080 = "rtx-3080-10gb"  # 10 GB is the desktop card

PRESETS: Mapping[str, Preset] = {
    "tier-1": Preset(
        "essential: what always applies",
        TIERS,
        "Tier 1",
        (FP16, FEWER_STEPS, TUNED_VAE, TIMES),
        steps=20,
        sampler="DPM++ 2M",
    ),
    "tier-2": Preset(
        "production: many pictures, so that compiling is paid",
        TIERS,
        "Tier 2",
        (FP16, OFFLOAD, TILING, OVERLAP, SLICING, XFORMERS, GRAPHS, TUNED_VAE, TIMES),
        goal="fast",
        steps=20,
        sampler="DPM++ 2M",
    ),
    "tier-3": Preset(
        "specialized: the picture may lose a little",
        TIERS,
        "Tier 3",
        (
            Wanted("INT8 with quantization-aware training", (), "other-model"),
            Wanted("a distilled model", (), "other-model"),
            Wanted("a cosine schedule", (), "cosine"),
            TIMES,
        ),
        goal="fast",
        fidelity="approximate",
        steps=20,
        sampler="DPM++ 2M",
    ),
    "realtime": Preset(
        "latency first",
        TIERS,
        "Real-time generation",
        (FP16, XFORMERS, COMPILE, FEWER_STEPS),
        goal="fast",
        steps=20,
        sampler="DPM++ 2M",
    ),
    "quality": Preset(
        "the picture first: nothing that changes a bit of it",
        TIERS,
        "High quality",
        (
            FP16,
            Wanted("a cosine schedule", (), "cosine"),
            Wanted("DDIM in 100 steps", (), "hundred-steps"),
            Wanted("guidance 12", (), "guidance-12"),
            TUNED_VAE,
        ),
        goal="quality",
        steps=25,
        guidance=7.5,
        sampler="DPM++ 2M Karras",
    ),
    "memory-constrained": Preset(
        "runs on cards of 4 to 6 GB: planned for 4",
        TIERS,
        "Memory constrained",
        (FP16, OFFLOAD, TILING, OVERLAP, SLICING),
        goal="low-memory",
        vram="4GiB",
        steps=50,
    ),
    "batch": Preset(
        "the most pictures per second, in the best batch",
        TIERS,
        "Batch processing",
        (Wanted("a batch of 16", (), "batch-of-dit"), FP16, XFORMERS, COMPILE),
        goal="throughput",
        batch_size=AUTO,
        steps=50,
    ),
    "low-vram": Preset(
        "runs on cards of 8 to 12 GB: planned for 8",
        DIFFGENTOR,
        "Low VRAM",
        (FP16, OFFLOAD, VAE_SLICING, TILING),
        vram="8GiB",
        model="flux1-schnell",
    ),
    "balanced-16-24gb": Preset(
        "runs on cards of 16 to 24 GB: planned for 16",
        DIFFGENTOR,
        "Balanced",
        (BF16, VAE_SLICING, FLASH),
        vram="16GiB",
        model="flux1-dev",
    ),
    "high-performance": Preset(
        "cards of 40 GB and more: compiled, cached, in batches",
        DIFFGENTOR,
        "High performance",
        (BF16, COMPILE, FLASH, CACHE, Wanted("a batch of 4", (), "batch-of-dit")),
        goal="fast",
        fidelity="approximate",
        model="flux1-dev",
        batch_size=4,
    ),
    "multi-gpu": Preset(
        "one device of several: each makes pictures of its own",
        DIFFGENTOR,
        "Maximum throughput",
        (
            Wanted("Ulysses degree 4", (), "more-devices"),
            Wanted("data parallel degree 2", (), "more-devices"),
            Wanted("a batch of 8", (), "batch-of-dit"),
        ),
        goal="throughput",
        model="flux1-dev",
        batch_size=8,
    ),
    "sd15-768-10gb": Preset(
        "SD1.5 at 768 px on a card of 10 GB",
        DIFFUSERS,
        "9.1",
        (XFORMERS, OFFLOAD, TOME, SLICING),
        model="sd15",
        device=A_3080,
        width=768,
        height=768,
    ),
    "sd15-1024-10gb": Preset(
        "SD1.5 at 1024 px on a card of 10 GB",
        DIFFUSERS,
        "9.2",
        (XFORMERS, SLICING, TOME),
        model="sd15",
        device=A_3080,
        width=1024,
        height=1024,
    ),
    "sdxl-10gb": Preset(
        "SDXL on a card of 10 GB",
        DIFFUSERS,
        "9.3",
        (XFORMERS, OFFLOAD, TOME),
        model="sdxl",
        device=A_3080,
    ),
    "low-vram-4-6gb": Preset(
        "SDXL on cards of 4 to 6 GB: planned for 4",
        DIFFUSERS,
        "9.4",
        (XFORMERS, STREAMED, TOME),
        model="sdxl",
        vram="4GiB",
    ),
    "ultra": Preset(
        "SD1.5 at its best: drawn at 512 px, and at 768 px by a second pass",
        VAE,
        "10, Ultra quality",
        (Wanted("DPM++ SDE Karras", (), "second-order"), EMA_VAE, TO_768),
        goal="quality",
        model="sd15",
        width=512,
        height=512,
        steps=30,
        guidance=7.5,
        sampler="DPM++ SDE Karras",
        hires="1.5",
        hires_steps=20,
        hires_denoise=0.5,
        hires_upscaler=UPSCALER,
    ),
    "balanced": Preset(
        "SD1.5, four pictures at a time",
        VAE,
        "10, Balanced",
        (EMA_VAE, Wanted("a batch of 4 on an RTX 3080 with 16 GB", (), "card-16gb")),
        model="sd15",
        width=512,
        height=512,
        batch_size=4,
        steps=20,
        guidance=7.0,
        sampler="DPM++ 2M Karras",
        count=4,
    ),
    "speed": Preset(
        "SD1.5 in few steps, six pictures at a time",
        VAE,
        "10, Speed",
        (EMA_VAE, Wanted("a batch of 6 on an RTX 3080 with 16 GB", (), "card-16gb")),
        goal="fast",
        model="sd15",
        width=512,
        height=512,
        batch_size=6,
        steps=15,
        guidance=6.5,
        sampler="Euler a",
        count=6,
    ),
    "exploration": Preset(
        "eight pictures to choose from, four at a time",
        VAE,
        "5, Batch count strategy",
        (Wanted("a batch of 4 on an RTX 3080 with 16 GB", (), "card-16gb"),),
        batch_size=4,
        count=8,
    ),
    "final-run": Preset(
        "one picture, and nothing that changes a bit of it",
        VAE,
        "5, Batch count strategy",
        goal="quality",
        batch_size=1,
        count=1,
    ),
    "highres-fix": Preset(
        "SD1.5 in two passes: drawn at 512 px, and at 768 px from there",
        VAE,
        "4, Highres fix optimization, and 7, Two-pass generation",
        (TO_768,),
        model="sd15",
        width=512,
        height=512,
        steps=20,
        guidance=7.0,
        sampler="DPM++ 2M Karras",
        hires="1.5",
        hires_steps=15,
        hires_denoise=0.5,
        hires_upscaler=UPSCALER,
    ),
}
