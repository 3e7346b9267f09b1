"""The pictures of each plan against the plain ones of the same seed and prompt.

Comes in: plans as they were measured, their pictures as files. Goes out: the same plans with quality and artifacts.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.errors import UsageError
from safelight.measure.results import PlanResult

if TYPE_CHECKING:
    from PIL.Image import Image

ENOUGH_FOR_SETS = 16  # pictures, from which on a distance between two sets says something
RETRIED = "the VAE gave a black picture or not-a-number, and was run again in float32"
FOLLOWING = "prompt-following"  # share of the pictures that show the object that was asked for; and the same of plain
Options = Mapping[str, Mapping[str, Any]]
Compared = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Pair:
    """Pictures of one seed and prompt. The plain one is None where there is no such."""

    plain: "Image | None"
    other: "Image"
    told: Mapping[str, Any]


def judged(
    plans: Sequence[PlanResult], root: Path, quality: Any, options: Sequence[Options], *, bundled: bool = False
) -> tuple[PlanResult, ...]:
    """The first is plain. quality: `measure.quality`, of which METRICS, compare, over_sets, artifacts and
    prompt_following are used. options: of each plan's optimizers, as tiles leave traces at their borders. bundled:
    drawn by the bundled model, whose pictures can be judged by their prompts."""
    plain = plans[0]
    return tuple(
        replace(
            plan,
            quality=None if plan is plain else _quality(list(_pairs(plain, plan, root)), quality, bundled=bundled),
            artifacts=_artifacts(_pairs(plain, plan, root), quality, tile_px(given), alone=plan is plain),
        )
        for plan, given in zip(plans, options, strict=True)
    )


def tile_px(options: Options) -> int | None:
    """How far the borders of the VAE's tiles are from each other; None where there are none that are known."""
    tiling = options.get("vae-tiling")
    return round(tiling["tile_px"] * (1 - tiling["overlap"])) if tiling and tiling["tile_px"] else None


def _key(picture: Mapping[str, Any]) -> tuple[Any, ...]:
    return picture["seed"], picture["prompt"], Path(picture["path"]).name


def _pairs(plain: PlanResult, plan: PlanResult, root: Path) -> Iterator[Pair]:
    plains = {_key(picture): picture for picture in plain.pictures}
    for picture in plan.pictures:
        one = plains.get(_key(picture))
        yield Pair(None if one is None else _image(root, one), _image(root, picture), picture)


def _quality(pairs: list[Pair], quality: Any, *, bundled: bool) -> Compared | None:
    """None where nothing was drawn that both have."""
    plains, others, prompts = [], [], []
    for pair in pairs:
        if pair.plain is not None:
            plains.append(pair.plain)
            others.append(pair.other)
            prompts.append(pair.told["prompt"])
    if not plains:
        return None
    found = [quality.compare(*both) for both in zip(plains, others, strict=True)]
    compared = {name: _over(name, [one[name] for one in found], quality) for name in found[0]}
    sets = quality.over_sets(plains, others) if len(plains) >= ENOUGH_FOR_SETS else {}
    if bundled:
        sets |= _following(plains, others, prompts, quality)
    return compared | {name: {"median": value, "worst": value, "values": [value]} for name, value in sets.items()}


def _over(name: str, values: list[float], quality: Any) -> dict[str, Any]:
    worst = min if quality.METRICS[name].better == "higher" else max
    return {"median": statistics.median(values), "worst": worst(values), "values": values}


def _following(plains: Any, others: Any, prompts: list[str], quality: Any) -> dict[str, float]:
    """{} where no prompt names an object that the bundled model knows."""
    try:
        both = [quality.prompt_following(pictures, prompts).object for pictures in (plains, others)]
    except UsageError:
        return {}
    return {FOLLOWING: both[1], f"{FOLLOWING}-plain": both[0]}


def _artifacts(pairs: Iterable[Pair], quality: Any, tile_px: int | None, *, alone: bool) -> tuple[str, ...]:
    """alone: of plain pictures, in which nothing but themselves can tell what is wrong."""
    found = []
    for pair in pairs:
        said = list(quality.artifacts(pair.other, tile_px, None if alone else pair.plain))
        said += [RETRIED] if pair.told.get("vae_retried") else []
        found += [f"seed {pair.told['seed']}: {one}" for one in said]
    return tuple(dict.fromkeys(found))


def _image(root: Path, picture: Mapping[str, Any]) -> "Image":
    from PIL import Image

    with Image.open(root / picture["path"]) as image:
        return image.convert("RGB")
