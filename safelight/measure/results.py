"""What a benchmark found: every sample, the pictures' quality, a verdict, as frozen data that goes into JSON and back.

Comes in: samples from `bench`, or the text of an earlier file. Goes out: a Result, and what its samples add up to.
Knows no model, no process and no page.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from safelight.errors import UsageError

SCHEMA = 1
ENOUGH_FOR_P99 = 100  # below that it is the slowest sample and nothing else
PEAKS = ("tensor_bytes", "reserved_bytes", "process_bytes", "device_bytes")
EVALUATION = "evaluation"  # in a summary: the stage "denoise", shared out among the evaluations of the model


@dataclass(frozen=True, slots=True)
class Statistic:
    """Seconds of n samples. p99: None under 100 samples. spread: (p90 - p10) / median.

    Percentiles lie on straight lines between the sorted samples, the first of them at 0 and the last at 100.
    """

    median: float
    p90: float
    p99: float | None
    spread: float
    n: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        """samples: one or more, 0 or larger."""
        median, p90 = statistics.median(samples), percentile(samples, 90)
        spread = (p90 - percentile(samples, 10)) / median if median else 0.0
        p99 = percentile(samples, 99) if len(samples) >= ENOUGH_FOR_P99 else None
        return cls(median, p90, p99, spread, len(samples))


def percentile(samples: Sequence[float], percent: float) -> float:
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True, slots=True)
class Summary:
    """stages: of one run, "total" first, then in the order in which they come, and "evaluation": one of the model.

    images_per_second: by the median run. peak: bytes of tensors on a card, of the whole process on a CPU. None where
    nothing was measured.
    """

    stages: Mapping[str, Statistic]
    images_per_second: float | None
    peak: int | None

    @property
    def seconds(self) -> float | None:
        """The median run."""
        return self.stages["total"].median if "total" in self.stages else None


@dataclass(frozen=True, slots=True)
class Round:
    """One fresh process of one plan; None stands for what was not measured.

    load_seconds: reading the model, with the libraries' modules that only it needs. open_seconds: planned, applied,
    compiled, proven. first_seconds: the first image. warmups: of the images after it that count for nothing else.
    runs: seconds of each measured run, {"total": of all, "text": .., "denoise": .., ...}; total is the time on the wall
    until the last picture was there.
    peaks: bytes by PEAKS, while pictures were drawn; tensor_bytes, reserved_bytes: of torch on a card. process_bytes:
    resident in the host's memory. device_bytes: what the card's used memory grew by, as NVML tells.
    energy_joules: of the card, for the measured runs. utilisation: of the card in these, 0 to 1.
    timeline: (seconds since the process began, bytes) of tensors on a card, of the process on a CPU.
    evaluations: of the model in the stage "denoise" of one run. images: that one run makes. threads: of torch.
    """

    load_seconds: float | None = None
    open_seconds: float | None = None
    first_seconds: float | None = None
    warmups: tuple[float, ...] = ()
    runs: tuple[Mapping[str, float], ...] = ()
    peaks: Mapping[str, int | None] = field(default_factory=lambda: dict.fromkeys(PEAKS))
    energy_joules: float | None = None
    utilisation: float | None = None
    timeline: tuple[tuple[float, int], ...] = ()
    evaluations: int | None = None
    images: int = 1
    threads: int | None = None

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> Self:
        tuples = {"warmups": tuple(table["warmups"]), "runs": tuple(table["runs"])}
        return cls(**{**table, **tuples, "timeline": tuple((at, size) for at, size in table["timeline"])})


@dataclass(frozen=True, slots=True)
class PlanResult:
    """name: what it is called here. optimize: as it was asked for. written: as it was planned, as -o takes it.

    statuses: session.Status, as tables. left: why each other optimizer was not taken. predicted: {"seconds": {stage:
    seconds of a run}, "peak_bytes": n}, None for a model that cannot be predicted. pictures: {"path", "seed",
    "prompt"}, path relative to the folder of the result's file. quality: of each metric {"median", "worst", "values"}
    against the plain pictures; None for plain, and where there is none to compare. artifacts: "seed 3: black". failure:
    what ended it, None where nothing did.
    """

    name: str
    optimize: str
    written: str = ""
    statuses: tuple[Mapping[str, Any], ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    predicted: Mapping[str, Any] | None = None
    rounds: tuple[Round, ...] = ()
    pictures: tuple[Mapping[str, Any], ...] = ()
    quality: Mapping[str, Mapping[str, Any]] | None = None
    artifacts: tuple[str, ...] = ()
    failure: str | None = None

    def samples(self, stage: str) -> list[float]:
        """Seconds of a stage in every run that had it; "evaluation" is of those whose evaluations were counted."""
        if stage == EVALUATION:
            counted = [(run, round.evaluations) for round in self.rounds for run in round.runs if round.evaluations]
            return [run["denoise"] / evaluations for run, evaluations in counted if evaluations and "denoise" in run]
        return [run[stage] for round in self.rounds for run in round.runs if stage in run]

    def summary(self) -> Summary:
        named = dict.fromkeys(stage for round in self.rounds for run in round.runs for stage in run)
        order = [*sorted(named, key=lambda stage: stage != "total"), EVALUATION]
        stages = {stage: Statistic.of(samples) for stage in order if (samples := self.samples(stage))}
        speed = None
        if "total" in stages and stages["total"].median:
            speed = self.rounds[0].images / stages["total"].median
        return Summary(stages, speed, self.peak())

    def peak(self, kind: str | None = None) -> int | None:
        """The highest of all rounds. kind: of PEAKS; None is that of tensors, or of the process where there is none."""
        if kind is None:
            tensors = self.peak("tensor_bytes")
            return self.peak("process_bytes") if tensors is None else tensors
        found = [round.peaks.get(kind) for round in self.rounds]
        return max((size for size in found if size is not None), default=None)

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> Self:
        tuples = {name: tuple(table[name]) for name in ("statuses", "pictures", "artifacts")}
        return cls(**{**table, **tuples, "rounds": tuple(map(Round.read, table["rounds"]))})


@dataclass(frozen=True, slots=True)
class Verdict:
    """conditions: {"name", "ok", "found", "wanted"}, found and wanted as a person reads them."""

    valid: bool
    conditions: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, conditions: Sequence[Mapping[str, Any]]) -> Self:
        return cls(all(condition["ok"] for condition in conditions), tuple(conditions))

    @property
    def word(self) -> str:
        return "VALID" if self.valid else "INVALID"


@dataclass(frozen=True, slots=True)
class Requirement:
    """written: as it was asked for, "psnr>=30". plan: the name of the plan that it is checked for. found: None where it
    was not measured, and then it is not met."""

    written: str
    plan: str
    found: float | None
    met: bool


@dataclass(frozen=True, slots=True)
class Result:
    """plans: the first is the plain one. when: UTC, ISO 8601. command: as it was typed. interrupted: not all was
    measured. request: what all plans drew, settled; its seed is that of the first run, "prompts" are those that the
    runs take turns with."""

    when: str
    command: tuple[str, ...]
    environment: Mapping[str, str | int | float]
    model: str
    request: Mapping[str, Any]
    plans: tuple[PlanResult, ...]
    verdict: Verdict
    requirements: tuple[Requirement, ...] = ()
    interrupted: bool = False
    kind: str = "bench"
    schema: int = SCHEMA

    @property
    def plain(self) -> PlanResult:
        return self.plans[0]

    def speed(self, plan: PlanResult) -> float | None:
        """How many times as fast as plain, by the medians of whole runs; None where one of them has none."""
        plain, planned = self.plain.summary().seconds, plan.summary().seconds
        return plain / planned if plain and planned else None

    def to_json(self) -> str:
        """What is infinite, as the PSNR of equal pictures, is the text "inf": JSON has no number for it."""
        return json.dumps(_finite(asdict(self)), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises UsageError for what is no result, or one of another schema."""
        try:
            table = json.loads(text)
        except ValueError as error:
            raise UsageError(f"that is no result of safelight bench: {error}") from error
        found = table.get("schema") if isinstance(table, dict) else None
        if found != SCHEMA:
            raise UsageError(f"a result of schema {found!r:.20} is not known: this is {SCHEMA}, measure anew")
        if wrong := table.keys() ^ {one.name for one in fields(cls)}:
            raise UsageError(f"that is no result of safelight bench: {', '.join(sorted(wrong))} is missing or unknown")
        whole = _infinite(table)
        try:
            return cls(**whole | _parts(whole))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise UsageError(f"that is no result of safelight bench: {error}") from error


def _parts(whole: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "command": tuple(whole["command"]),
        "plans": tuple(map(PlanResult.read, whole["plans"])),
        "verdict": Verdict(whole["verdict"]["valid"], tuple(whole["verdict"]["conditions"])),
        "requirements": tuple(Requirement(**one) for one in whole["requirements"]),
    }


INFINITE = {"inf": math.inf, "-inf": -math.inf}
NUMBERS = ("median", "worst", "values", "found")  # the keys under which a number may be infinite


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def _infinite(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _infinite(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_infinite(one, key) for one in value]
    return INFINITE.get(value, value) if isinstance(value, str) and key in NUMBERS else value
