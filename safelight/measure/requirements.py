"""What a result has to be: "speed>=1.5,psnr>=30", and the conditions under which its numbers mean anything.

Comes in: text, and plans that were measured. Goes out: Requirements, each met or not for each plan; and a Verdict.
"""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safelight.config import bytes_of
from safelight.errors import UnknownName, UsageError
from safelight.measure.results import PEAKS, PlanResult, Requirement, Verdict

ENOUGH_RUNS, ENOUGH_ROUNDS = 10, 2
MOST_SPREAD = 0.10
OTHERS_SHARE = 0.3  # of the cores that others may keep busy
COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def _slowest(plan: PlanResult, name: str) -> float | None:
    return max((value for round in plan.rounds if (value := getattr(round, name)) is not None), default=None)


# what can be asked for besides the metrics: (plan, plain) -> the number
MEASURED: Mapping[str, Callable[[PlanResult, PlanResult], float | None]] = {
    "speed": lambda plan, plain: _ratio(plain.summary().seconds, plan.summary().seconds),
    "seconds": lambda plan, plain: plan.summary().seconds,
    "images_per_second": lambda plan, plain: plan.summary().images_per_second,
    "load": lambda plan, plain: _slowest(plan, "load_seconds"),
    "open": lambda plan, plain: _slowest(plan, "open_seconds"),
    "first": lambda plan, plain: _slowest(plan, "first_seconds"),
    "peak": lambda plan, plain: plan.peak(),
    "peak.tensors": lambda plan, plain: plan.peak(PEAKS[0]),
    "peak.reserved": lambda plan, plain: plan.peak(PEAKS[1]),
    "peak.process": lambda plan, plain: plan.peak(PEAKS[2]),
    "peak.device": lambda plan, plain: plan.peak(PEAKS[3]),
}
PEAK = "peak"  # what such names begin with; the others are seconds, ratios and metrics
HOW = ("median", "worst")  # of a metric, over the pictures; the first where nothing is said


def _ratio(plain: float | None, planned: float | None) -> float | None:
    return plain / planned if plain and planned else None


@dataclass(frozen=True, slots=True)
class Wanted:
    """One comparison. name: of MEASURED, or a metric's, perhaps with ".worst". text: the value as it was typed."""

    name: str
    comparison: str
    value: float
    text: str

    @property
    def written(self) -> str:
        return f"{self.name}{self.comparison}{self.text}"

    @property
    def of_picture(self) -> bool:
        return self.name not in MEASURED

    def found(self, plan: PlanResult, plain: PlanResult) -> float | None:
        if not self.of_picture:
            return MEASURED[self.name](plan, plain)
        metric, _, how = self.name.partition(".")
        found = (plan.quality or {}).get(metric)
        return None if found is None else found[how or HOW[0]]

    def check(self, plan: PlanResult, plain: PlanResult) -> Requirement:
        """What was not measured is not met."""
        found = self.found(plan, plain)
        met = found is not None and plan.failure is None and COMPARISONS[self.comparison](found, self.value)
        return Requirement(self.written, plan.name, found, met)


def parse(text: str, metrics: Iterable[str]) -> tuple[Wanted, ...]:
    """ "speed>=1.5, psnr.worst>=30, peak<=4GiB". metrics: the names there are. Raises UsageError, UnknownName."""
    names = [*MEASURED, *(name for metric in metrics for name in (metric, *(f"{metric}.{how}" for how in HOW)))]
    return tuple(_one(word, names) for word in filter(None, map(str.strip, text.split(","))))


def _one(word: str, names: Sequence[str]) -> Wanted:
    match = re.fullmatch(r"([^<>=\s]+)\s*(>=|<=|>|<)\s*(\S.*)", word)
    if match is None:
        raise UsageError(f"--require {word!r:.80}: write such as speed>=1.5, psnr>=30 or peak<=4GiB")
    asked, comparison, value = match.groups()
    name = {known.replace("_", "-"): known for known in names}.get(asked.lower().replace("_", "-"))
    if name is None:
        raise UnknownName("requirement", asked, names)
    number = float(bytes_of(value)) if name.startswith(PEAK) else _number(word, value)
    return Wanted(name, comparison, number, value)


def _number(word: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise UsageError(f"--require {word!r:.80}: {value!r:.40} is no number")
    return number


def checked(wanted: Iterable[Wanted], plans: Sequence[PlanResult]) -> tuple[Requirement, ...]:
    """Each for each plan but the first, which is plain."""
    return tuple(one.check(plan, plans[0]) for one in wanted for plan in plans[1:])


# -- the verdict -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a verdict rests on. requests: what each plan that began drew, settled. load: average before and after, None
    where the system does not tell. cores: processors. steady: of each process, whether its last two runs before the
    measured ones were alike."""

    plans: Sequence[PlanResult]
    requests: Sequence[Mapping[str, Any]]
    limits: Sequence[Requirement]
    load: tuple[float | None, float | None]
    cores: int
    steady: Sequence[bool]
    interrupted: bool = False


Condition = dict[str, Any]


def verdict(evidence: Evidence) -> Verdict:
    return Verdict.of([check(evidence) for check in CONDITIONS])


def _condition(name: str, ok: bool, found: str, wanted: str) -> Condition:
    return {"name": name, "ok": ok, "found": found, "wanted": wanted}


def _failures(evidence: Evidence) -> Condition:
    failed = [plan.name for plan in evidence.plans if plan.failure]
    found = (
        f"failed: {', '.join(failed)}" if failed else "interrupted" if evidence.interrupted else "all plans ended well"
    )
    return _condition("nothing failed", not failed and not evidence.interrupted, found, "every plan ends well")


def _runs(evidence: Evidence) -> Condition:
    runs = min(sum(len(round.runs) for round in plan.rounds) for plan in evidence.plans)
    rounds = min(len(plan.rounds) for plan in evidence.plans)
    ok = runs >= ENOUGH_RUNS and rounds >= ENOUGH_ROUNDS
    wanted = f"{ENOUGH_RUNS} or more in {ENOUGH_ROUNDS} or more rounds"
    return _condition("enough runs", ok, f"{runs} of each plan, in {rounds} round{'s' * (rounds != 1)}", wanted)


def _warm(evidence: Evidence) -> Condition:
    rest = sum(not steady for steady in evidence.steady)
    found = f"{len(evidence.steady) - rest} of {len(evidence.steady)} processes were"
    return _condition("warm", not rest, found, "two runs within 5 % before the measured ones")


def _spread(evidence: Evidence) -> Condition:
    spreads = {
        plan.name: total.spread for plan in evidence.plans if (total := plan.summary().stages.get("total")) is not None
    }
    if not spreads:
        return _condition("spread", False, "nothing was measured", f"under {MOST_SPREAD:.0%}")
    name = max(spreads, key=lambda name: spreads[name])
    found = f"{spreads[name]:.1%} at most, of {name}"
    return _condition("spread", spreads[name] < MOST_SPREAD, found, f"under {MOST_SPREAD:.0%} of the median run")


EACH_ITS_OWN = ("seed", "prompt")  # of a run: the pictures tell whether they are the same for all plans


def _noise(evidence: Evidence) -> Condition:
    """Of what was drawn, and not only of what was asked for."""
    first, *others = evidence.requests or [{}]
    unlike = sorted({key for one in others for key in one if key not in EACH_ITS_OWN and one[key] != first[key]})
    drawn = [
        tuple((picture["seed"], picture["prompt"]) for picture in plan.pictures)
        for plan in evidence.plans
        if not plan.failure
    ]
    unlike += ["seeds or prompts of the pictures"] if len(set(drawn)) > 1 else []
    found = f"unlike: {', '.join(unlike)}" if unlike else "seeds, sampler and all else of the request are equal"
    return _condition("same noise", not unlike, found, "the same request for every plan")


def _threads(evidence: Evidence) -> Condition:
    threads = {round.threads for plan in evidence.plans for round in plan.rounds}
    found = " and ".join(sorted("not known" if count is None else str(count) for count in threads)) or "none"
    return _condition("same threads", len(threads) == 1, found, "one number for all processes")


def _proof(evidence: Evidence) -> Condition:
    statuses = [(plan.name, status) for plan in evidence.plans for status in plan.statuses]
    idle = [f"{status['name']} in {name}" for name, status in statuses if not status["engaged"]]
    found = f"without: {', '.join(idle)}" if idle else f"{len(statuses)} of {len(statuses)} engaged"
    return _condition("proof", not idle, found, "evidence of an effect of every optimizer")


def _quality(evidence: Evidence) -> Condition:
    """Artifacts that the plain picture has, too, are not the plan's."""
    plain = set(evidence.plans[0].artifacts)
    spoiled = [f"{plan.name}: {one}" for plan in evidence.plans[1:] for one in plan.artifacts if one not in plain]
    beyond = [f"{one.plan}: not {one.written}" for one in evidence.limits if not one.met]
    limits = ", ".join(dict.fromkeys(one.written for one in evidence.limits)) or "no limit was asked for"
    found = "; ".join(spoiled + beyond) or "no artifacts that plain does not have, and inside the limits"
    return _condition("quality", not spoiled + beyond, found, f"no artifacts; {limits}")


def _load(evidence: Evidence) -> Condition:
    """Before, nobody; afterwards, the threads of the last process are still in the average."""
    before, after = evidence.load
    wanted = f"under {OTHERS_SHARE:.0%} of {evidence.cores} cores before, and of them besides our own threads after"
    if before is None or after is None:
        return _condition("no other load", True, "not measured: this system does not tell", wanted)
    threads = [round.threads for plan in evidence.plans for round in plan.rounds if round.threads]
    own, most = max(threads, default=1), OTHERS_SHARE * evidence.cores
    found = f"load average {before:.1f} before, {after:.1f} after"
    return _condition("no other load", before < most and after < own + most, found, wanted)


CONDITIONS = (_failures, _runs, _warm, _spread, _noise, _threads, _proof, _quality, _load)
