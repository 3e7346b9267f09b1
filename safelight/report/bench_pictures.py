"""Pairs of pictures for a report: plain, planned and their difference, as data addresses that need no file.

Comes in: a Result and the folder of its pictures. Goes out: Pairs, and in words why a pair is not there.
"""

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.measure.quality import SET_METRICS
from safelight.measure.results import PlanResult, Result
from safelight.report.bench_figures import better, plotted

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PAIRS, MOST_PX = 12, 768
LOSSLESS_PX = 256 * 256  # up to here a picture is embedded bit by bit: larger ones would make the page too heavy
QUALITY = 92  # of WebP
FACTORS = (1, 2, 4, 8, 16, 32)
DARK, MIDDLE, BRIGHT = "#0a0605", "#d2451a", "#fff3dc"  # no, half and full difference


@dataclass(frozen=True, slots=True)
class Embedded:
    uri: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Pair:
    """figures: of each metric for this pair. largest: difference of any channel anywhere, 0 to 255."""

    plan: PlanResult
    index: int
    seed: int
    prompt: str
    figures: Mapping[str, float]
    plain: Embedded
    planned: Embedded
    difference: Embedded
    largest: int


@dataclass(frozen=True, slots=True)
class Album:
    """factor: that all differences are shown times. missing: in words. chosen: how the pairs were chosen."""

    pairs: tuple[Pair, ...] = ()
    factor: int = 1
    missing: tuple[str, ...] = ()
    chosen: str = ""


@dataclass(frozen=True, slots=True)
class _Wanted:
    plan: PlanResult
    index: int
    plain: Mapping[str, Any]
    planned: Mapping[str, Any]
    figures: Mapping[str, float]


@dataclass
class _Reading:
    folder: Path
    missing: list[str] = field(default_factory=list)

    def open(self, path: str) -> "Image | None":
        """An RGB picture; None, and why in `missing`, if it is not there or lies outside of the folder."""
        from PIL import Image

        place = (self.folder / path).resolve()
        if not place.is_relative_to(self.folder.resolve()):
            self.missing.append(f"{path} lies outside of the results' folder")
            return None
        try:
            with Image.open(place) as picture:
                return picture.convert("RGB")
        except (OSError, Image.DecompressionBombError) as error:
            said = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
            self.missing.append(f"{path} {said}")
            return None


def album(result: Result, folder: Path | None) -> Album:
    """folder: what the pictures' paths are relative to; None shows none."""
    if folder is None:
        return Album(missing=("The pictures' folder was not given.",))
    wanted = _chosen(result)
    reading = _Reading(folder)
    opened = [(one, reading.open(one.plain["path"]), reading.open(one.planned["path"])) for one in wanted]
    both = [(one, plain, planned) for one, plain, planned in opened if plain and planned]
    alike = [found for found in both if found[1].size == found[2].size]
    reading.missing += [
        f"{one.planned['path']} has another size than plain's" for one, a, b in both if a.size != b.size
    ]
    differences = [_difference(plain, planned) for _, plain, planned in alike]
    factor = _factor(differences)
    pairs = tuple(_pair(*found, gone, factor) for found, gone in zip(alike, differences, strict=True))
    return Album(pairs, factor, tuple(dict.fromkeys(reading.missing)), _how(result, wanted))


# -- which -------------------------------------------------------------------------------------------------------------


def _chosen(result: Result) -> list[_Wanted]:
    """As many of each plan, its worst first."""
    of_plans = [list(_of(result, index, plan)) for index, plan in enumerate(result.plans) if index]
    share = MOST_PAIRS // max(1, sum(bool(found) for found in of_plans)) or 1
    metric = plotted(result)
    if metric:
        sign = -1 if better(metric) == "lower" else 1
        for found in of_plans:
            found.sort(key=lambda one: sign * one.figures.get(metric, 0.0))
    return [one for found in of_plans for one in found[:share]][:MOST_PAIRS]


def _of(result: Result, index: int, plan: PlanResult) -> Iterator[_Wanted]:
    plain = {(one["seed"], one["prompt"]): one for one in result.plain.pictures}
    for i, planned in enumerate(plan.pictures):
        if beside := plain.get((planned["seed"], planned["prompt"])):
            measured = (plan.quality or {}).items()
            # a metric of the whole set has one value, and none of a picture
            of_each = {name: found["values"] for name, found in measured if len(found["values"]) == len(plan.pictures)}
            figures = {name: values[i] for name, values in of_each.items() if name not in SET_METRICS}
            yield _Wanted(plan, index, beside, planned, {name: v for name, v in figures.items() if v is not None})


def _how(result: Result, wanted: list[_Wanted]) -> str:
    there = sum(len(plan.pictures) for plan in result.plans[1:])
    if len(wanted) == there:
        return "All pairs."
    metric = plotted(result)
    worst = f"by {metric} the worst of each plan" if metric else "the first of each plan"
    return f"{len(wanted)} of {there} pairs: {worst}."


# -- how ---------------------------------------------------------------------------------------------------------------


def _difference(plain: "Image", planned: "Image") -> "Image":
    """The largest of the three channels' absolute differences, in grey."""
    from PIL import ImageChops

    red, green, blue = ImageChops.difference(plain, planned).split()
    return ImageChops.lighter(ImageChops.lighter(red, green), blue)


def _factor(differences: list["Image"]) -> int:
    """One for all, so that plans can be compared: the largest that keeps all but a thousandth from being cut off."""
    counts = [0] * 256
    for picture in differences:
        for level, count in enumerate(picture.histogram()):
            counts[level] += count
    bright, allowed = 255, sum(counts) / 1000
    while bright > 1 and sum(counts[bright:]) <= allowed:
        bright -= 1
    return max(factor for factor in FACTORS if factor == 1 or factor * bright <= 255)


def _pair(one: _Wanted, plain: "Image", planned: "Image", difference: "Image", factor: int) -> Pair:
    from PIL import ImageOps

    largest = max(level for level, count in enumerate(difference.histogram()) if count)
    shown = ImageOps.colorize(difference.point(lambda level: min(255, level * factor)), DARK, BRIGHT, MIDDLE)
    seed, prompt = one.planned["seed"], one.planned["prompt"]
    before, after, apart = (embedded(picture) for picture in (plain, planned, shown))
    return Pair(one.plan, one.index, seed, prompt, one.figures, before, after, apart, largest)


def embedded(picture: "Image") -> Embedded:
    """At most MOST_PX wide and high."""
    picture = picture.copy()
    picture.thumbnail((MOST_PX, MOST_PX))
    stream = io.BytesIO()
    lossless = picture.width * picture.height <= LOSSLESS_PX
    picture.save(stream, "WEBP", lossless=lossless, quality=100 if lossless else QUALITY)
    text = base64.b64encode(stream.getvalue()).decode("ascii")
    return Embedded(f"data:image/webp;base64,{text}", picture.width, picture.height)
