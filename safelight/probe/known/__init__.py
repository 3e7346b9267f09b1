"""Models that people call by a name: their published classes, configs and defaults, a small JSON table each.

Comes in: a name, an alias or a hub id. Goes out: the table of safelight/probe/known/<name>.json. In a table:
guidance: the usual scale of classifier-free guidance, 0 or 1 without. steps: the usual number. frames: 1 for pictures.
dtype: what the hub's weights are stored in, left out where that is not known. source: where the configs are from.
denoiser_parameters: counted from the configs; a test holds them.
parts: {"class": ..., "config": what differs from the class's defaults}, or {"same_as": "sd15.vae"} and what differs.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

# name -> what else people call it
KNOWN: dict[str, tuple[str, ...]] = {
    "sd15": ("sd1.5", "sd-1.5", "sd-v1.5", "stable-diffusion-v1-5", "stable-diffusion-1.5"),
    "sd21": ("sd2.1", "sd-2.1", "sd2", "stable-diffusion-2-1", "stable-diffusion-2.1"),
    "sdxl": ("sdxl-base", "sdxl-1.0", "sdxl-base-1.0", "sd-xl", "stable-diffusion-xl-base-1.0"),
    "sdxl-turbo": ("sdxlturbo",),
    "sd3-medium": ("sd3", "sd-3", "stable-diffusion-3-medium"),
    "sd35-medium": ("sd3.5-medium", "stable-diffusion-3.5-medium"),
    "sd35-large": ("sd3.5", "sd35", "sd3.5-large", "stable-diffusion-3.5-large"),
    "flux1-dev": ("flux", "flux-dev", "flux.1-dev"),
    "flux1-schnell": ("flux-schnell", "flux.1-schnell"),
    "wan21-1.3b": ("wan", "wan-1.3b", "wan2.1-1.3b", "wan2.1-t2v-1.3b"),
    "wan21-14b": ("wan-14b", "wan2.1-14b", "wan2.1-t2v-14b"),
    "pixart-sigma": ("pixart",),
    "sana": ("sana-1.6b", "sana-1600m"),
    "qwen-image": ("qwenimage",),
    "hunyuan-video": ("hunyuanvideo",),
    "ltx-video": ("ltx", "ltxv"),
    "cogvideox-2b": ("cogvideox", "cogvideo"),
}


def names() -> Iterator[str]:
    """Every name and alias that `name_of` understands."""
    for name, aliases in KNOWN.items():
        yield from (name, *aliases)


def name_of(asked: str) -> str | None:
    """ "FLUX" -> "flux1-dev"; None for what is no name here. Case does not count."""
    asked = asked.lower()
    return next((name for name, aliases in KNOWN.items() if asked in (name, *aliases)), None)


def name_of_hub(repository: str) -> str | None:
    """ "stabilityai/stable-diffusion-xl-base-1.0" -> "sdxl"; case does not count, as on the hub."""
    return next((name for name in KNOWN if hub_of(name).lower() == repository.lower()), None)


def hub_of(name: str) -> str:
    return str(_read(name)["hub"])


def table(name: str) -> dict[str, Any]:
    """The table of a name in KNOWN, each part with its "class" and its whole "config"."""
    found = _read(name)
    return {**found, "parts": {part: _whole(entry) for part, entry in found["parts"].items()}}


def _whole(entry: dict[str, Any]) -> dict[str, Any]:
    if "same_as" not in entry:
        return entry
    model, _, part = entry["same_as"].rpartition(".")
    like = _whole(_read(model)["parts"][part])
    return {"class": entry.get("class", like["class"]), "config": {**like["config"], **entry.get("config", {})}}


@cache
def _read(name: str) -> dict[str, Any]:
    return dict(json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8")))
