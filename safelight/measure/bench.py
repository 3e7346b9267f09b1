"""Plain against plans: each in fresh processes, in rounds that alternate their order, on the same noise.

Comes in: a Job. Goes out: a Result with every sample, or as much of it as was measured before Ctrl-C. One process runs
at a time; a plan that fails is a result with a failure, and the others go on.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from safelight.errors import EnvironmentProblem, SafelightError, UsageError
from safelight.firstlight import BUNDLED
from safelight.measure import requirements, results
from safelight.measure.compared import judged
from safelight.measure.environment import Facts, load_average
from safelight.measure.launching import Launch, launched
from safelight.measure.requirements import Evidence, Wanted
from safelight.measure.results import PlanResult, Result, Round
from safelight.measure.worker import Task, steady
from safelight.optimizers.words import NONE
from safelight.probe.device import cores

PLAIN = "plain"
LIMITS: Mapping[str, Any] = {
    "keep": (),
    "without": (),
    "goal": None,
    "vram": None,
    "max_seconds": None,
    "fidelity": None,
}
# what is wrong with plain in its first process is wrong with all of them, and nothing is measured
ALL_WRONG: Mapping[int, type[SafelightError]] = {2: UsageError, 4: EnvironmentProblem}


@dataclass(frozen=True, slots=True)
class Plan:
    """load: arguments of safelight.load, but for the request. optimize: in them, as a person wrote it."""

    name: str
    optimize: str
    load: Mapping[str, Any]

    def plain(self) -> "Plan":
        """The same model with nothing done to it."""
        return Plan(PLAIN, NONE, {**self.load, **LIMITS, "optimize": NONE})


@dataclass(frozen=True, slots=True)
class Job:
    """plans: without plain, which comes first of itself. request: with a seed. prompts: the runs take turns with them.

    runs: measured of each plan, shared out among the rounds. warmups: at most, in each process. folder: the pictures'.
    root: what their paths are relative to.
    """

    plans: tuple[Plan, ...]
    request: Mapping[str, Any]
    prompts: tuple[str, ...]
    folder: Path
    root: Path
    runs: int = 10
    rounds: int = 2
    warmups: int = 5
    wanted: tuple[Wanted, ...] = ()
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= self.runs:
            raise UsageError(f"{self.runs} runs in {self.rounds} rounds: each round needs a run of its own")
        names = [PLAIN, *(plan.name for plan in self.plans)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"the plan {twice[0]!r} is given twice")
        if not self.plans:
            raise UsageError("there is no plan to measure against plain: give --plans")

    def share(self, round: int) -> range:
        """The numbers of the runs of one round: of 10 in 3 rounds 0 to 3, 4 to 6, 7 to 9."""
        least, more = divmod(self.runs, self.rounds)
        first = round * least + min(round, more)
        return range(first, first + least + (round < more))

    def task(self, plan: Plan, load: Mapping[str, Any], round: int, folder: Path) -> Task:
        share = self.share(round)
        return Task(load, self.request, self.prompts, share.start, len(share), self.warmups, str(folder))


@dataclass(frozen=True, slots=True)
class News:
    """text: of a line for a person. left_seconds: about, until all is measured; None while nobody can know. passing:
    said of every run, so that some may be passed over."""

    text: str
    left_seconds: float | None = None
    passing: bool = False


Tell = Callable[[News], None]


# -- what is collected -------------------------------------------------------------------------------------------------


@dataclass
class Collected:
    """Of one plan, from all its processes so far."""

    plan: Plan
    told: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Mapping[str, Any]] = field(default_factory=list)
    requests: list[Mapping[str, Any]] = field(default_factory=list)
    failure: str | None = None
    exit_code: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def load(self) -> Mapping[str, Any]:
        """What the next process loads: the plan that the first one made, as measurements change what is planned."""
        if "options" not in self.told:
            return self.plan.load
        return {**self.plan.load, **LIMITS, "optimize": self.told["options"] or NONE}

    def hear(self, event: Mapping[str, Any]) -> None:
        HEARD[event["event"]](self, event)

    def _opened(self, event: Mapping[str, Any]) -> None:
        timed = {name: event[name] for name in ("load_seconds", "open_seconds", "threads")}
        self.rounds.append({**timed, "warmups": [], "runs": []})
        self.requests.append(event["request"])
        self._keep(event, "written", "options", "left", "statuses", "environment")

    def _keep(self, event: Mapping[str, Any], *names: str) -> None:
        """Of the first process alone: later ones were told what to do by name."""
        if len(self.rounds) == 1:
            self.told |= {name: event[name] for name in names}

    def _first(self, event: Mapping[str, Any]) -> None:
        self.rounds[-1]["first_seconds"] = event["seconds"]

    def _warmup(self, event: Mapping[str, Any]) -> None:
        self.rounds[-1]["warmups"].append(event["seconds"])

    def _run(self, event: Mapping[str, Any]) -> None:
        latest = self.rounds[-1]
        latest["runs"].append(event["seconds"])
        latest["peaks"] = {**dict.fromkeys(results.PEAKS), **event["peaks"]}
        latest |= {"images": event["images"], "evaluations": event["evaluations"]}
        if event["energy_joules"] is not None:
            latest["energy_joules"] = latest.get("energy_joules", 0.0) + event["energy_joules"]
        self.pictures += event["pictures"]

    def _measured(self, event: Mapping[str, Any]) -> None:
        self.rounds[-1] |= {"timeline": event["timeline"], "utilisation": event["utilisation"]}
        self._keep(event, "written", "options", "left", "statuses", "predicted")

    def _failed(self, event: Mapping[str, Any]) -> None:
        self.failure, self.exit_code = f"{event['kind']}: {event['message']}", event["exit_code"]

    def _warning(self, event: Mapping[str, Any]) -> None:
        """For a person alone."""

    @property
    def steady(self) -> list[bool]:
        begun = [one for one in self.rounds if "first_seconds" in one]
        return [steady([one["first_seconds"], *one["warmups"]]) for one in begun]

    def result(self, root: Path) -> PlanResult:
        kept = {name: self.told[name] for name in ("written", "left", "predicted") if name in self.told}
        empty = {"timeline": (), "warmups": (), "runs": ()}
        return PlanResult(
            self.plan.name,
            self.plan.optimize,
            statuses=tuple(self.told.get("statuses", ())),
            rounds=tuple(Round.read({**empty, **one}) for one in self.rounds),
            pictures=tuple(_relative(picture, root) for picture in self.pictures),
            failure=self.failure,
            **kept,
        )


HEARD: Mapping[str, Callable[[Collected, Mapping[str, Any]], None]] = {
    "opened": Collected._opened,
    "first": Collected._first,
    "warmup": Collected._warmup,
    "run": Collected._run,
    "measured": Collected._measured,
    "failed": Collected._failed,
    "warning": Collected._warning,
}


def _relative(picture: Mapping[str, Any], root: Path) -> dict[str, Any]:
    path = Path(picture["path"])
    return {**picture, "path": path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)}


# -- all of it ---------------------------------------------------------------------------------------------------------


def measure(
    job: Job,
    tell: Tell = lambda news: None,
    keep: Callable[[Result], None] = lambda result: None,
    *,
    launch: Launch = launched,
    quality: Any = None,
) -> Result:
    """Measures everything, compares the pictures, and judges.

    keep: is given what there is after each process, and before the pictures are compared, so that little is lost
    whatever happens. launch, quality: seams; of `measure.quality` used are METRICS, compare, over_sets, artifacts and
    prompt_following.
    Ctrl-C ends it with what there is. Raises UsageError and EnvironmentProblem where plain cannot even begin.
    """
    bench = _Bench(job, [Collected(plan) for plan in (job.plans[0].plain(), *job.plans)], load_average())
    try:
        _rounds(job, bench.collected, tell, launch, lambda: keep(bench.result(bench.plans(), interrupted=True)))
        plans = bench.plans()
        keep(bench.result(plans))
        tell(News("comparing the pictures"))
        options = [one.told.get("options", {}) for one in bench.collected]
        bundled = job.plans[0].load["model"] in BUNDLED
        return bench.result(judged(plans, job.root, quality or _quality(), options, bundled=bundled))
    except KeyboardInterrupt:
        return bench.result(bench.plans(), interrupted=True)


def _quality() -> ModuleType:
    from safelight.measure import quality

    return quality


def _rounds(job: Job, collected: Sequence[Collected], tell: Tell, launch: Launch, done: Callable[[], None]) -> None:
    for round in range(job.rounds):
        # there and back: what drifts, as warmth does, then counts for none of them
        order = list(enumerate(collected))[:: -1 if round % 2 else 1]
        for place, (number, one) in enumerate(order):
            if one.failure:
                continue
            folder = job.folder / f"{number}-{_file_name(one.plan.name)}"
            folder.mkdir(parents=True, exist_ok=True)
            later = [other for _ in range(round + 1, job.rounds) for other in collected]
            ahead = [*(other for _, other in order[place:]), *later]
            task = job.task(one.plan, one.load, round, folder)
            _process(task, one, f"round {round + 1} of {job.rounds}", tell, launch, ahead)
            if one.plan.name == PLAIN and not round and (wrong := ALL_WRONG.get(one.exit_code)):
                raise wrong(str(one.failure).partition(": ")[2])
            done()


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=-]+", "-", name)[:60].strip("-.") or "plan"


def _process(task: Task, one: Collected, round: str, tell: Tell, launch: Launch, ahead: Sequence[Collected]) -> None:
    """One process of one plan. ahead: the plans whose processes are still to come, this one first."""
    began = time.perf_counter()

    def say(text: str, *, passing: bool = False) -> None:
        tell(News(f"{one.plan.name}, {round}: {text}", left(ahead, time.perf_counter() - began), passing))

    def hear(event: Mapping[str, Any]) -> None:
        one.hear(event)
        if text := _line(event, one, task):
            say(text, passing=event["event"] != "warning")

    say("starts")
    broken = launch(task, hear)
    one.failure = one.failure or broken
    one.seconds.append(time.perf_counter() - began)
    if one.failure:
        say(f"failed: {one.failure}")


def _line(event: Mapping[str, Any], one: Collected, task: Task) -> str:
    """What a person is told of an event."""
    kind = event["event"]
    if kind == "warning":
        return str(event["text"])
    if kind == "opened":
        return f"open after {event['load_seconds'] + event['open_seconds']:.1f} s"
    if kind == "run":
        return f"run {len(one.rounds[-1]['runs'])} of {task.runs}, {event['seconds']['total']:.2f} s"
    return ""


def left(ahead: Sequence[Collected], gone: float) -> float | None:
    """Seconds until the last process ends, as long as those before took. gone: of the one that runs."""
    known = [seconds for one in {id(one): one for one in ahead}.values() for seconds in one.seconds]
    if not known:
        return None
    usual = sum(known) / len(known)
    first, *rest = [one.seconds[-1] if one.seconds else usual for one in ahead if not one.failure] or [gone]
    return max(0.0, first - gone) + sum(rest)


@dataclass(frozen=True, slots=True)
class _Bench:
    """load: average before the first process."""

    job: Job
    collected: Sequence[Collected]
    load: float | None

    def plans(self) -> tuple[PlanResult, ...]:
        return tuple(one.result(self.job.root) for one in self.collected)

    def result(self, plans: tuple[PlanResult, ...], *, interrupted: bool = False) -> Result:
        job, checked, after = self.job, requirements.checked(self.job.wanted, plans), load_average()
        pictures = {one.written for one in job.wanted if one.of_picture}
        evidence = Evidence(
            plans,
            [request for one in self.collected for request in one.requests],
            [one for one in checked if one.written in pictures],
            (self.load, after),
            cores(),
            [steady for one in self.collected for steady in one.steady],
            interrupted,
        )
        drawn = next((one.requests[0] for one in self.collected if one.requests), job.request)
        return Result(
            datetime.now(UTC).isoformat(timespec="seconds"),
            job.command,
            self._environment(after),
            str(job.plans[0].load["model"]),
            {**drawn, "seed": job.request["seed"], "prompts": list(job.prompts)},
            plans,
            requirements.verdict(evidence),
            checked,
            interrupted,
        )

    def _environment(self, after: float | None) -> Facts:
        found: Facts = next((one.told["environment"] for one in self.collected if "environment" in one.told), {})
        loads = {"load_average_before": self.load, "load_average_after": after}
        return {**found, **{name: value for name, value in loads.items() if value is not None}}
