"""What a person asks to be drawn: a frozen Request, every field checked as far as it can be without a model."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from safelight.errors import UnknownName, UsageError

MAX_SEED = 2**32 - 1
# far over what any model draws: more is a slip of the finger, and would fill the memory before anything else is said
MOST = {
    "width": 16384,
    "height": 16384,
    "steps": 1000,
    "count": 100_000,
    "batch_size": 100_000,
    "hires_steps": 1000,
    "clip_skip": 12,
    "mask_blur": 256,
    "mask_padding": 4096,
}
LEAST = {"mask_blur": 0, "mask_padding": 0}  # the others 1
# numbers that are never left open
ALWAYS = frozenset({"count", "batch_size", "clip_skip", "mask_blur", "mask_padding"})
TEXTS = ("prompt", "negative")
OPTIONAL_TEXTS = ("sampler", "schedule", "hires", "hires_upscaler", "init", "mask")
# (least, most, what is usual)
RANGES: Mapping[str, tuple[float, float, str]] = {
    "guidance": (0, 1000, "7.5 is usual"),
    "eta": (0, 10, "0 draws no noise, 1 all of it"),
    "s_churn": (0, 1000, "0 is usual"),
    "s_tmin": (0, 1000, "0 is usual"),
    "s_tmax": (0, 1e6, "0 stands for no limit"),
    "s_noise": (0, 10, "1 is usual"),
    "variation_strength": (0, 1, "0 is the seed's own picture, 1 the variation seed's"),
    "denoise": (0, 1, "0.75 is usual"),
    "hires_denoise": (0, 1, "0.5 is usual"),
}
SHARES = frozenset({"variation_strength", "hires_denoise"})
SEEDS = ("seed", "variation_seed", "eta_noise_seed_delta")
CHOICES = {
    "rng": ("cpu", "nv"),
    "mask_content": ("original", "fill", "noise", "nothing"),
    "mask_area": ("whole", "masked"),
}
SAMPLER_OPTIONS = ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise")
HIRES_DENOISE, DENOISE = 0.7, 0.75  # A1111's page for the second pass, its API for images
HIRES = re.compile(r"(\d{1,2}(?:\.\d{1,6})?)|(\d{1,5})x(\d{1,5})", re.ASCII)
MOST_HIRES = 8.0


@dataclass(frozen=True, slots=True)
class Request:
    """What to draw. None means the model's own default.

    width, height: pixels of the picture the model draws, before any upscaling; multiples of the VAE's factor.
    steps: denoising steps, 1 or more. guidance: scale of classifier-free guidance, 0 or more; 1 and less is without.
    seed: 0 to 2**32 - 1; picture i of a run uses seed + i, wrapping around. None: drawn anew for every run.
    count: pictures to make. batch_size: how many of them at a time; changes no picture.
    sampler, schedule: names from `sampling.names`; the sampler's own schedule where there is none.
    eta, s_churn, s_tmin, s_tmax, s_noise: of the sampler, where it takes them; s_tmax 0 is no limit.
    eta_noise_seed_delta: added to the seed for the noise of the steps. rng: "cpu", or "nv" for what NVIDIA cards draw.
    variation_seed: picture i mixes its noise with that of variation_seed + i, in the share `variation_strength`; all of
    them then have the same seed. clip_skip: which of CLIP's layers counts, from its end; 1 is the last.
    upscale: 1 or 4, by the bundled Real-ESRGAN.

    hires: a second pass, "1.5" times larger or to "1024x1536" ("1024x0" keeps the shape). hires_steps: 0 or None is as
    many as the first. hires_upscaler: a latent mode, Lanczos or a model; "Latent" unless said.
    init: a picture to begin from, `denoise` in 0..1 how much of it is drawn anew. mask: what is white in it is drawn.
    mask_blur: pixels. mask_content: what is under the mask at first. mask_area: draw the whole picture, or only the
    masked part with `mask_padding` pixels around it, at the full size.
    """

    prompt: str
    negative: str = ""
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    count: int = 1
    batch_size: int = 1
    sampler: str | None = None
    schedule: str | None = None
    eta: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None
    eta_noise_seed_delta: int = 0
    rng: str = "cpu"
    variation_seed: int | None = None
    variation_strength: float = 0.0
    clip_skip: int = 1
    upscale: int = 1
    hires: str | None = None
    hires_steps: int | None = None
    hires_denoise: float = HIRES_DENOISE
    hires_upscaler: str | None = None
    init: str | None = None
    denoise: float | None = None
    mask: str | None = None
    mask_blur: int = 4
    mask_content: str = "original"
    mask_area: str = "whole"
    mask_padding: int = 32

    def __post_init__(self) -> None:
        for check in (_check_texts, _check_numbers, _check_choices, _check_belonging):
            check(self)

    def seeds(self) -> list[int]:
        """The seed of every picture; `seed` must be known by now. With a variation it is one for all."""
        assert self.seed is not None
        return [(self.seed + (0 if self.variation_strength else i)) % (MAX_SEED + 1) for i in range(self.count)]

    def variation_seeds(self) -> list[int] | None:
        """The variation seed of every picture; None without a variation."""
        if not self.variation_strength:
            return None
        assert self.variation_seed is not None
        return [(self.variation_seed + i) % (MAX_SEED + 1) for i in range(self.count)]

    def first_pass(self) -> "Request":
        """The request for the first of two passes alone."""
        return replace(self, hires=None, hires_steps=None, hires_denoise=HIRES_DENOISE, hires_upscaler=None)

    @property
    def sampler_options(self) -> dict[str, float]:
        """What is asked of the sampler beyond its name; A1111 writes 0 where s_tmax has no limit."""
        said = {name: value for name in SAMPLER_OPTIONS if (value := getattr(self, name)) is not None}
        if said.get("s_tmax") == 0:
            said["s_tmax"] = math.inf
        return said

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def hires_size(asked: str, width: int, height: int) -> tuple[int, int]:
    """(width, height) in pixels that `hires` asks for, by A1111's rules; they need be no multiple of anything.

    Source: modules/processing.py, calculate_target_resolution, 1.10.
    """
    match = HIRES.fullmatch(asked)
    assert match, f"{asked!r} was checked before"
    if match[1]:
        return int(width * float(match[1])), int(height * float(match[1]))
    wide, high = int(match[2]), int(match[3])
    return wide or high * width // height, high or wide * height // width


def _check_texts(request: Request) -> None:
    for name in (*TEXTS, *OPTIONAL_TEXTS):
        value = getattr(request, name)
        if not _is_text(value) and not (value is None and name in OPTIONAL_TEXTS):
            raise UsageError(f"{_flag(name)} is {value!r:.80}: give valid Unicode text")
        if name in OPTIONAL_TEXTS and value is not None and not value.strip():
            raise UsageError(f"{_flag(name)} is empty: leave it out")
    if request.hires is not None and not _is_hires(request.hires):
        raise UsageError(f"hires is {request.hires!r:.80}: give a factor over 1 to {MOST_HIRES:g}, or WIDTHxHEIGHT")


def _is_hires(asked: str) -> bool:
    match = HIRES.fullmatch(asked)
    if match is None:
        return False
    if match[1]:
        return 1 < float(match[1]) <= MOST_HIRES
    sides = int(match[2]), int(match[3])
    return any(sides) and max(sides) <= MOST["width"]


def _check_numbers(request: Request) -> None:
    for name, most in MOST.items():
        least = LEAST.get(name, 1)
        value = getattr(request, name)
        if not _is_whole(value, least, most) and not (value is None and name not in ALWAYS):
            raise UsageError(f"{_flag(name)} is {value!r:.80}: give a whole number from {least} to {most}")
    for name, (low, high, usual) in RANGES.items():
        value = getattr(request, name)
        if not (_is_number(value) and low <= value <= high) and not (value is None and name not in SHARES):
            raise UsageError(f"{_flag(name)} is {value!r:.80}: give a number from {low} to {high:g}, {usual}")
    for name in SEEDS:
        value = getattr(request, name)
        if not _is_whole(value, 0, MAX_SEED) and not (value is None and name != "eta_noise_seed_delta"):
            raise UsageError(f"{_flag(name)} is {value!r:.80}: give a whole number from 0 to {MAX_SEED}")
    if not _is_whole(request.upscale, 1, 4) or request.upscale not in (1, 4):
        raise UsageError(f"upscale is {request.upscale!r:.80}: 1 and 4 are there")


def _check_choices(request: Request) -> None:
    for name, choices in CHOICES.items():
        if (value := getattr(request, name)) not in choices:
            raise UnknownName(_flag(name), str(value)[:80], choices)


# (the field, what it needs, whether it is said)
NEEDS: tuple[tuple[str, str, Callable[[Request], bool]], ...] = (
    ("denoise", "init", lambda r: r.denoise is not None),
    ("mask", "init", lambda r: r.mask is not None),
    ("hires_steps", "hires", lambda r: r.hires_steps is not None),
    ("hires_upscaler", "hires", lambda r: r.hires_upscaler is not None),
    ("schedule", "sampler", lambda r: r.schedule is not None),
    ("mask_area", "mask", lambda r: r.mask_area != "whole"),
    ("mask_content", "mask", lambda r: r.mask_content != "original"),
)


def _check_belonging(request: Request) -> None:
    """What would do nothing is refused."""
    for name, needed, is_said in NEEDS:
        if is_said(request) and getattr(request, needed) is None:
            raise UsageError(f"{_flag(name)} is given without {_flag(needed)}: it would do nothing")
    if request.variation_seed is not None and not request.variation_strength:
        raise UsageError("variation-seed is given without variation-strength: it would do nothing")
    if request.init is not None and request.hires is not None:
        raise UsageError("init and hires are both given: give the picture its size, or draw it in two passes")


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _is_text(value: object) -> bool:
    """Not with half a surrogate pair either, which a command line in another encoding gives: no file can hold it."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
