"""What a benchmark's result says of each plan beside plain, as figures and as words; for every kind of report.

Comes in: a Result. Goes out: a Row for each plan, plain first, and short texts. What was not measured is None in a
figure and UNMEASURED in words, never 0.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safelight.measure.quality import METRICS, SET_METRICS, Metric, SetMetric
from safelight.measure.results import EVALUATION, PlanResult, Requirement, Result, Round

UNMEASURED = "not measured"
NOTHING = "-"  # where there is nothing to measure: plain has no picture to be held against but its own
SHOWN = ("psnr", "lpips")  # what a row of a narrow table says of the picture
PLOTTED = ("lpips", "flip", "ms-ssim", "ssim", "psnr")  # of these the first that is there stands on the frontier
MAIN = ("processor", "device_name", "safelight", "torch", "diffusers")  # of the environment, for a line


@dataclass(frozen=True, slots=True)
class Row:
    """One plan. seconds, decode: of a picture; evaluation: one of the model; first: the first image of a process,
    loaded and opened: reading the model, applying the plan; medians all. peak: bytes. faster: times as fast as plain.
    of_plain: peak as a share of plain's. predicted_seconds: of a picture."""

    plan: PlanResult
    index: int
    seconds: float | None
    faster: float | None
    evaluation: float | None
    decode: float | None
    first: float | None
    loaded: float | None
    opened: float | None
    peak: int | None
    of_plain: float | None
    predicted_seconds: float | None
    predicted_peak: int | None

    @property
    def is_plain(self) -> bool:
        return self.index == 0

    @property
    def seconds_error(self) -> float | None:
        return error(self.predicted_seconds, self.seconds)

    @property
    def tensors_measured(self) -> bool:
        """Predicted are bytes of tensors: where only the whole process was measured, the two are not comparable."""
        return self.plan.peak("tensor_bytes") is not None

    @property
    def peak_error(self) -> float | None:
        return error(self.predicted_peak, self.peak) if self.tensors_measured else None


def rows(result: Result) -> tuple[Row, ...]:
    return tuple(_row(result, index, plan) for index, plan in enumerate(result.plans))


def _row(result: Result, index: int, plan: PlanResult) -> Row:
    summary = plan.summary()
    stages = {name: statistic.median for name, statistic in summary.stages.items()}
    predicted = plan.predicted or {}
    foreseen = predicted.get("seconds")
    return Row(
        plan,
        index,
        seconds=a_picture(plan, stages.get("total")),
        faster=result.speed(plan),
        evaluation=stages.get(EVALUATION),
        decode=a_picture(plan, stages.get("decode")),
        first=median_of(plan, lambda round: round.first_seconds),
        loaded=median_of(plan, lambda round: round.load_seconds),
        opened=median_of(plan, lambda round: round.open_seconds),
        peak=summary.peak,
        of_plain=_of_plain(plan, result.plain),
        predicted_seconds=a_picture(plan, sum(foreseen.values())) if foreseen else None,
        predicted_peak=predicted.get("peak_bytes"),
    )


def _of_plain(plan: PlanResult, plain: PlanResult) -> float | None:
    """None where one has bytes of tensors, and the other only those of its process."""
    kinds = [one.peak("tensor_bytes") is None for one in (plan, plain)]
    planned, before = plan.peak(), plain.peak()
    return planned / before if planned and before and kinds[0] == kinds[1] else None


def a_picture(plan: PlanResult, of_a_run: float | None) -> float | None:
    return None if of_a_run is None else of_a_run / (plan.rounds[0].images if plan.rounds else 1)


def median_of(plan: PlanResult, figure: Callable[[Round], float | None]) -> float | None:
    """Of a figure that each process has one of."""
    found = [value for round in plan.rounds if (value := figure(round)) is not None]
    return statistics.median(found) if found else None


def stages_of(plan: PlanResult) -> dict[str, float]:
    """Median seconds of a picture by stage, in their order; "other" is what the total has beyond them."""
    medians = {name: a_picture(plan, found.median) or 0.0 for name, found in plan.summary().stages.items()}
    stages = {name: value for name, value in medians.items() if name not in ("total", EVALUATION)}
    rest = medians.get("total", 0.0) - sum(stages.values())
    return stages | ({"other": rest} if stages and rest > 0.01 * medians["total"] else {})


PERCENTILES = ("plan", "stage", "median", "p90", "p99", "spread", "samples")


def percentiles(row: Row) -> Iterator[list[str]]:
    """Cells of a table for each stage of a picture, and for what each process did once."""
    for name, found in row.plan.summary().stages.items():
        values: list[float | None] = [found.median, found.p90, found.p99]
        if name != EVALUATION:
            values = [a_picture(row.plan, one) for one in values]
        last = NOTHING if found.p99 is None else duration(values[2])
        yield [row.plan.name, name, duration(values[0]), duration(values[1]), last, f"{found.spread:.1%}", str(found.n)]
    for name, once in (("loading", row.loaded), ("opening", row.opened), ("first image", row.first)):
        if once is not None:
            yield [row.plan.name, name, duration(once), NOTHING, NOTHING, NOTHING, str(len(row.plan.rounds))]


def error(predicted: float | None, measured: float | None) -> float | None:
    """(predicted - measured) / measured."""
    return (predicted - measured) / measured if predicted is not None and measured else None


# -- words -------------------------------------------------------------------------------------------------------------


def duration(value: float | None) -> str:
    """ "4.22 ms", "335 ms", "9.52 s", "75.1 s", "12.4 min"."""
    if value is None:
        return UNMEASURED
    unit, per = ("ms", 1000.0) if value < 0.9995 else ("s", 1.0) if value < 120 else ("min", 1 / 60)
    number = value * per
    return (
        f"{number:.2f} {unit}"
        if number < 9.995
        else f"{number:.1f} {unit}"
        if number < 99.95
        else f"{number:.0f} {unit}"
    )


def size(nbytes: float | None) -> str:
    """ "6.14 GiB", "312 MiB"."""
    if nbytes is None:
        return UNMEASURED
    return f"{nbytes / 2**30:.2f} GiB" if abs(nbytes) >= 0.95 * 2**30 else f"{nbytes / 2**20:.0f} MiB"


def ratio(value: float | None) -> str:
    return UNMEASURED if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    """Of an error: "+12 %"."""
    return NOTHING if value is None else f"{value:+.0%}".replace("%", " %")


def with_error(predicted: float | None, off: float | None, how: Callable[[float | None], str]) -> str:
    """A prediction and how far it is from what was measured: "0.28 s (-13 %)"."""
    if predicted is None:
        return "not predicted"
    return how(predicted) if off is None else f"{how(predicted)} ({percent(off)})"


def amount(metric: str, value: float | None) -> str:
    """A value of a metric, with its unit: "34.2 dB", "0.021", "equal" for an infinite PSNR."""
    if value is None:
        return UNMEASURED
    if math.isinf(value):
        return "equal"
    found = known(metric)
    unit = found.unit if found else ""
    number = (
        f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}" if abs(value) >= 1e-4 or not value else f"{value:.0e}"
    )
    return f"{number} {unit}".strip()


def picture(row: Row, metric: str) -> str:
    """Median and worst: "34.2 dB (worst 30.1 dB)"."""
    if row.is_plain:
        return NOTHING
    found = (row.plan.quality or {}).get(metric)
    if found is None or found["median"] is None:
        return UNMEASURED
    median, worst = amount(metric, found["median"]), amount(metric, found["worst"])
    return median if median == worst else f"{median} (worst {worst})"


def known(metric: str) -> Metric | SetMetric | None:
    """None for one of a result that was made elsewhere."""
    return METRICS.get(metric) or SET_METRICS.get(metric)


def metrics(result: Result) -> list[str]:
    """All that any plan has, in the order of the tables."""
    found = {name for plan in result.plans for name in plan.quality or {}}
    tables = [*METRICS, *SET_METRICS]
    return [*(name for name in tables if name in found), *sorted(found - {*tables})]


def better(metric: str) -> str:
    found = known(metric)
    return found.better if found else "higher"


def perfect(metric: str) -> float | None:
    """What a picture has that equals plain's."""
    found = METRICS.get(metric)
    return found.equal if found else None


def plotted(result: Result) -> str | None:
    """The metric of the frontier; None where no picture was measured."""
    found = metrics(result)
    return next((name for name in (*PLOTTED, *found) if name in found), None)


def subject(result: Result) -> str:
    """ "firstlight, 64x64, 20 steps"."""
    asked = result.request
    side = f"{asked['width']}x{asked['height']}" if asked.get("width") and asked.get("height") else ""
    steps = f"{asked['steps']} steps" if asked.get("steps") else ""
    several = f"{asked['batch_size']} at a time" if asked.get("batch_size", 1) != 1 else ""
    return ", ".join(part for part in (result.model, side, steps, several) if part)


def when(result: Result) -> str:
    """ "2026-11-21 20:14 UTC"."""
    return f"{result.when[:16].replace('T', ' ')} UTC"


def counted(result: Result) -> str:
    """ "2 rounds of 10 runs, 3 plans interleaved"."""
    rounds = max(len(plan.rounds) for plan in result.plans)
    runs = sum(len(round.runs) for round in result.plain.rounds)
    plans = f"plain and {plural(len(result.plans) - 1, 'plan')}"
    cut_short = "; cut short, not all was measured" if result.interrupted else ""
    return f"{plans}, {plural(runs, 'measured run')} of plain in {plural(rounds, 'process', 'es')}{cut_short}"


def plural(number: int, noun: str, ending: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else ending}"


def value(found: Any) -> str:
    """Of a condition or the environment, as a person reads it."""
    if found is None:
        return UNMEASURED
    return f"{found:.4g}" if isinstance(found, float) else str(found)


def environment(result: Result) -> dict[str, str]:
    """As a person reads it."""
    return {name: _fact(name, found) for name, found in result.environment.items()}


def _fact(name: str, found: str | int | float) -> str:
    return size(found) if name.endswith("_bytes") and not isinstance(found, str) else value(found)


def machine(result: Result) -> str:
    """In a line: "AMD EPYC, cpu, safelight 0.1.0, torch 2.13.0"."""
    found = {name: said for name, said in environment(result).items() if name in MAIN}
    shown = (said if name in MAIN[:2] else f"{name} {said}" for name, said in found.items())
    return ", ".join(dict.fromkeys(shown))


def required(one: Requirement) -> str:
    """What was found for it."""
    return size(one.found) if one.written.startswith("peak") else value(one.found)


def failed(conditions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [condition for condition in conditions if not condition["ok"]]


def took_effect(status: Mapping[str, Any]) -> str:
    return "took effect" if status["engaged"] else "TOOK NO EFFECT"
