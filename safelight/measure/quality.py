"""What two pictures, or two sets of them, are apart by: one table of metrics, each with unit, direction, range, source.

Comes in: pictures, PIL RGB of 8 bits; those of a pair of one size, drawn on the same noise. Goes out: numbers by name.
Knows nothing of runs and plans. A metric more is a row more in METRICS.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from safelight.errors import UnknownName, UsageError
from safelight.measure import colour, flip, lpips, pixels, sets, structure
from safelight.measure.artifacts import artifacts as artifacts
from safelight.measure.following import Following as Following
from safelight.measure.following import prompt_following as prompt_following

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Metric:
    """measure: (plain, other) -> the number. weights: whether a network of the package judges, or a formula.

    unit: "" for a bare number. better: "higher" or "lower". least, most: what can come out; `equal` comes out for two
    equal pictures. side_px: the shorter side of the smallest picture that it is defined for.
    """

    name: str
    unit: str
    better: str
    summary: str
    source: str
    measure: "Callable[[Image, Image], float]"
    weights: bool = False
    least: float = 0.0
    most: float = math.inf
    equal: float = 0.0
    side_px: int = 1


ROWS = (
    Metric(
        "psnr",
        "dB",
        "higher",
        "squared error of pixels against 255; over 40 is not seen, inf is equal",
        "its definition: 10 log10(255^2 / MSE), MSE over the three channels of sRGB",
        structure.psnr,
        equal=math.inf,
    ),
    Metric(
        "ssim",
        "",
        "higher",
        "likeness of local structure, mean of the three channels",
        "Wang, Bovik, Sheikh, Simoncelli, 2004, https://doi.org/10.1109/TIP.2003.819861",
        structure.ssim,
        least=-1.0,
        most=1.0,
        equal=1.0,
        side_px=structure.WINDOW_PX,
    ),
    Metric(
        "ms-ssim",
        "",
        "higher",
        "likeness of structure at five scales, mean of the three channels",
        "Wang, Simoncelli, Bovik, 2003, https://doi.org/10.1109/ACSSC.2003.1292216",
        structure.ms_ssim,
        most=1.0,
        equal=1.0,
        side_px=structure.MS_SSIM_PX,
    ),
    Metric(
        "lpips",
        "",
        "lower",
        "distance of AlexNet's features, weighted as people judged (v0.1)",
        "Zhang et al., 2018, https://arxiv.org/abs/1801.03924",
        lpips.lpips,
        weights=True,
        side_px=lpips.LEAST_PX,
    ),
    Metric(
        "flip",
        "",
        "lower",
        "what is seen when one is flipped for the other, at 67 pixels per degree",
        "Andersson et al., 2020, https://doi.org/10.1145/3406183",
        flip.flip,
        most=1.0,
    ),
    Metric(
        "ciede2000",
        "dE00",
        "lower",
        "difference of colours, mean; about 1 is the least that is seen",
        "Sharma, Wu, Dalal, 2005, https://doi.org/10.1002/col.20070",
        colour.mean_difference,
    ),
    Metric(
        "ciede2000-p95",
        "dE00",
        "lower",
        "difference of colours that 95 % of the pixels keep within",
        "Sharma, Wu, Dalal, 2005, https://doi.org/10.1002/col.20070",
        colour.difference_p95,
    ),
)
METRICS: dict[str, Metric] = {row.name: row for row in ROWS}


def left_out(width: int, height: int) -> dict[str, str]:
    """{metric: why it is not defined for pictures of this size}."""
    side = min(width, height)
    return {
        name: f"{name} needs {metric.side_px} px at least on the shorter side, these pictures have {side}"
        for name, metric in METRICS.items()
        if side < metric.side_px
    }


def chosen(names: Iterable[str] | None, width: int, height: int) -> list[Metric]:
    """Those named; all that are defined for the size where None. Raises UnknownName, UsageError with the reason."""
    reasons = left_out(width, height)
    if names is None:
        return [metric for name, metric in METRICS.items() if name not in reasons]
    names = list(names)
    for name in names:
        if name not in METRICS:
            raise UnknownName("metric", name, METRICS)
        if name in reasons:
            raise UsageError(f"{reasons[name]}: compare larger ones, or leave it out")
    return [METRICS[name] for name in names]


def compare(plain: "Image", other: "Image", names: Iterable[str] | None = None) -> dict[str, float]:
    """{metric: number}; of all metrics that are defined for the size (see left_out) where none are named."""
    pixels.pair(plain, other)
    return {metric.name: metric.measure(plain, other) for metric in chosen(names, *plain.size)}


@dataclass(frozen=True, slots=True)
class SetMetric:
    """A number of two sets, as in over_sets."""

    name: str
    unit: str
    better: str
    summary: str
    source: str


_EFFICIENT = "features of EfficientNet-lite0: Tan, Le, 2019, https://arxiv.org/abs/1905.11946"
SET_METRICS: dict[str, SetMetric] = {
    row.name: row
    for row in (
        SetMetric(
            "frechet",
            "",
            "lower",
            "distance of two sets' features; not FID, whose features are Inception's. Too large for few pictures",
            f"Heusel et al., 2017, https://arxiv.org/abs/1706.08500, on {_EFFICIENT}",
        ),
        SetMetric(
            "frechet-floor",
            "",
            "lower",
            "the same between two halves of the plain set: what frechet is for no difference at all, or more",
            "ours",
        ),
        SetMetric(
            "kernel",
            "",
            "lower",
            "squared mean discrepancy of two sets' features; unbiased, so that 0 and a little below is no difference",
            f"Binkowski et al., 2018, https://arxiv.org/abs/1801.01401, on {_EFFICIENT}",
        ),
        SetMetric("kernel-error", "", "lower", "standard error of kernel, by leaving out each picture", "jackknife"),
        SetMetric("pictures", "", "higher", "pictures in the smaller set", "counted"),
    )
}


def over_sets(plains: "Sequence[Image]", others: "Sequence[Image]") -> dict[str, float]:
    """{set metric: number}. Raises UsageError for fewer than four pictures. See sets.SetDistance.note."""
    found = asdict(sets.distance(plains, others))
    names = ("frechet", "frechet-floor", "kernel", "kernel-error", "pictures")
    return dict(zip(names, map(float, found.values()), strict=True))
