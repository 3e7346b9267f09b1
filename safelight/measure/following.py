"""Do the bundled model's pictures show what was asked for: object, style, background, as training/evaluate.py judges.

Comes in: pictures and their prompts, in the words that firstlight knows. Goes out: shares of those that are right.

Object: EfficientNet features of the picture, enlarged to 128 px, against those of all objects drawn in the asked style
on white, mean-centred cosine. Background: the named colour nearest to the median of the border. Style: in which of its
three drawings the asked object's features are nearest. What the drawings look like is kept as their features, made by
training/gallery.py: no drawing is needed.

No model can do better than the drawings themselves, after the VAE: of the first 300 captions of training/evaluate.py
93 % of objects are right, 97 % among the first five, 89 % of styles, all backgrounds. evaluate.py tells 99 % of styles,
as it compares the drawings by LPIPS.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from safelight.errors import UsageError
from safelight.measure import features, pixels
from safelight.measure.lpips import WEIGHTS

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image

FILE = WEIGHTS / "firstlight_gallery.safetensors"
# at 64 px true drawings are told apart in 60 % of cases, at 128 px in 98 %: training/evaluate.py
FEATURE_PX = 128
BATCH = 64
NEAR = 5
BORDER_PX = 2  # of a picture of 64 px; in proportion for a larger one
DRAWN_PX = 64


@dataclass(frozen=True, slots=True, eq=False)
class Gallery:
    """drawings: float32 (styles, things, 1280), every object on white."""

    drawings: "ndarray"
    things: tuple[str, ...]
    styles: tuple[str, ...]
    backgrounds: dict[str, tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a prompt names, as indices into the gallery; None where it leaves that open."""

    thing: int
    style: int | None
    background: int | None


@lru_cache(maxsize=1)
def gallery() -> Gallery:
    import numpy as np
    from safetensors import safe_open

    with safe_open(FILE, "np") as stored:
        words = {name: json.loads(value) for name, value in stored.metadata().items()}
        drawings = stored.get_tensor("gallery").astype(np.float32)
    backgrounds = {name: (red, green, blue) for name, (red, green, blue) in words["backgrounds"].items()}
    return Gallery(drawings, tuple(words["things"]), tuple(words["styles"]), backgrounds)


@dataclass(frozen=True, slots=True)
class Following:
    """Shares 0..1 of the pictures that show what their prompt named; None where no prompt named it.

    judged: pictures whose prompt names exactly one known object, the only ones that are judged. pictures: all of them.
    """

    object: float
    object_top5: float
    style: float | None
    background: float | None
    judged: int
    pictures: int


def prompt_following(pictures: "Sequence[Image]", prompts: Sequence[str]) -> Following:
    """One prompt for each picture. Raises UsageError where no prompt names an object that firstlight knows."""
    import numpy as np

    if len(pictures) != len(prompts):
        raise UsageError(f"{len(pictures)} pictures and {len(prompts)} prompts: one for each is needed")
    asking = [asked(prompt) for prompt in prompts]
    wanted = [(pixels.of(picture), one) for picture, one in zip(pictures, asking, strict=True) if one is not None]
    if not wanted:
        raise UsageError("no prompt names one object that firstlight draws: training/objects.txt has those it knows")
    judged = list(zip(seen([picture for picture, _ in wanted]), (one for _, one in wanted), strict=True))
    nearest = [(nearest_things(shown, one.style).tolist(), one.thing) for shown, one in judged]
    styles = [nearest_style(shown, one.thing) == one.style for shown, one in judged if one.style is not None]
    grounds = [nearest_background(picture) == one.background for picture, one in wanted if one.background is not None]
    return Following(
        object=float(np.mean([things[0] == thing for things, thing in nearest])),
        object_top5=float(np.mean([thing in things for things, thing in nearest])),
        style=float(np.mean(styles)) if styles else None,
        background=float(np.mean(grounds)) if grounds else None,
        judged=len(wanted),
        pictures=len(pictures),
    )


def asked(prompt: str) -> Asked | None:
    """None where not exactly one known object is named. The longer name counts: a hot dog is no dog."""
    known, text = gallery(), prompt.lower()
    ground = re.search(rf"\b({'|'.join(known.backgrounds)}) background\b", text)
    if ground:
        text = text[: ground.start()] + text[ground.end() :]
    found: list[int] = []
    for number in sorted(range(len(known.things)), key=lambda number: -len(known.things[number])):
        text, times = re.subn(rf"\b{re.escape(known.things[number])}\b", "|", text)
        found += [number] * times
    if len(found) != 1:
        return None
    style = re.search(rf"\b({'|'.join(known.styles)})\b", text)
    return Asked(
        found[0],
        known.styles.index(style[1]) if style else None,
        list(known.backgrounds).index(ground[1]) if ground else None,
    )


def seen(pictures: "Sequence[ndarray]") -> "ndarray":
    """uint8 (height, width, 3) each -> float32 (n, 1280)."""
    import torch
    from torch.nn import functional

    def enlarged(picture: "ndarray") -> "torch.Tensor":
        x = torch.tensor(picture).permute(2, 0, 1)[None].float()
        return functional.interpolate(x, size=FEATURE_PX, mode="bilinear", align_corners=False, antialias=True)

    parts = []
    with torch.inference_mode():
        for begin in range(0, len(pictures), BATCH):
            parts.append(features.network()(torch.cat([enlarged(one) for one in pictures[begin : begin + BATCH]])))
    return torch.cat(parts).numpy()


def nearest_things(shown: "ndarray", style: int | None) -> "ndarray":
    """int64 (5,), best first, among the drawings of a style; of each thing's nearest style where none is asked."""
    drawings = gallery().drawings if style is None else gallery().drawings[style : style + 1]
    means = drawings.mean(1, keepdims=True)
    likeness = (_unit(drawings - means) * _unit(shown - means)).sum(-1)
    return (-likeness.max(0)).argsort(kind="stable")[:NEAR]


def nearest_style(shown: "ndarray", thing: int) -> int:
    drawings = gallery().drawings
    mean = drawings.mean((0, 1))
    return int((_unit(drawings[:, thing] - mean) @ _unit(shown - mean)).argmax())


def nearest_background(picture: "ndarray") -> int:
    """The named colour nearest to the median of the outermost rows and columns."""
    import numpy as np

    height, width = picture.shape[:2]
    edge = max(1, round(BORDER_PX * min(height, width) / DRAWN_PX))
    border = np.ones((height, width), bool)
    border[edge:-edge, edge:-edge] = False
    found = np.median(picture[border].astype(np.float32), axis=0)
    return int(((np.array(list(gallery().backgrounds.values())) - found) ** 2).sum(-1).argmin())


def _unit(x: "ndarray") -> "ndarray":
    import numpy as np

    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
