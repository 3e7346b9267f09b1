"""One setting measured in a process of its own, and its pictures held against plain's on the same noise.

Comes in: a Setting and the numbers of its runs. Goes out: an Outcome. This is what `tune` asks for real.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safelight.errors import Interrupted
from safelight.measure.bench import ALL_WRONG, LIMITS, Collected, Plan
from safelight.measure.compared import judged
from safelight.measure.frontier import PLAIN, Outcome, Setting
from safelight.measure.journal import Journal
from safelight.measure.launching import Launch, launched
from safelight.measure.results import PlanResult
from safelight.measure.worker import Task
from safelight.optimizers import words
from safelight.optimizers.registry import OPTIMIZERS

METRICS = ("lpips", "psnr", "ssim", "flip")  # what a limit may be given of


@dataclass(frozen=True, slots=True)
class Trials:
    """load: arguments of safelight.load, but for the request and the optimizers. request: with a seed. prompts: the
    runs take turns with them. folder: of the pictures; the journal, which knows plain's, lies beside it.

    metrics: those that are defined for the pictures' size. quality, launch: seams.
    """

    load: Mapping[str, Any]
    request: Mapping[str, Any]
    prompts: tuple[str, ...]
    folder: Path
    journal: Journal
    metrics: Sequence[str] = METRICS
    launch: Launch = launched
    quality: Any = None

    def __call__(self, setting: Setting, runs: range) -> Outcome:
        """Raises UsageError and EnvironmentProblem where plain cannot even begin."""
        began = time.perf_counter()
        plan = Plan(setting.written, setting.optimize, self._load(setting))
        collected = Collected(plan)
        broken = self.launch(self._task(plan, setting, runs), collected.hear)
        collected.failure = collected.failure or broken
        if setting == PLAIN and (wrong := ALL_WRONG.get(collected.exit_code)):
            raise wrong(str(collected.failure).partition(": ")[2])
        result = self._against_plain(collected) if setting != PLAIN else collected.result(self.folder.parent)
        return replace(_outcome(result, setting), took_seconds=time.perf_counter() - began)

    def _load(self, setting: Setting) -> dict[str, Any]:
        return {**self.load, **LIMITS, "optimize": setting.options or words.NONE}

    def _task(self, plan: Plan, setting: Setting, runs: range) -> Task:
        folder = self.folder / _file_name(setting)
        folder.mkdir(parents=True, exist_ok=True)
        steps = {} if setting.steps is None else {"steps": setting.steps}
        return Task(plan.load, {**self.request, **steps}, self.prompts, runs.start, len(runs), 0, str(folder))

    def _against_plain(self, collected: Collected) -> PlanResult:
        root, plain = self.folder.parent, self.journal.of(PLAIN)
        assert plain is not None, "plain is measured first"
        result = collected.result(root)
        if result.failure:
            return result
        first = PlanResult("plain", words.NONE, pictures=plain.pictures)
        options = [{}, collected.told.get("options", {})]
        compared = judged([first, result], root, self._quality(), options)
        own = tuple(one for one in compared[1].artifacts if one not in compared[0].artifacts)
        return replace(compared[1], artifacts=own)

    def _quality(self) -> Any:
        """Of `measure.quality` what is asked for: every metric more takes time."""
        from safelight.measure import quality

        used = self.quality or quality
        named = {name: used.METRICS[name] for name in self.metrics}
        compare = partial(used.compare, names=self.metrics)
        return SimpleNamespace(METRICS=named, compare=compare, over_sets=_nothing, artifacts=used.artifacts)


def _nothing(plains: Any, others: Any) -> dict[str, float]:
    """Sets are not compared here: a limit is of every picture."""
    return {}


def _file_name(setting: Setting) -> str:
    """A person finds it by its first words, and no two are alike."""
    plain = "".join(char if char.isalnum() else "-" for char in setting.written)
    return f"{plain[:40].strip('-')}-{hashlib.sha256(setting.written.encode()).hexdigest()[:8]}"


def _outcome(result: PlanResult, setting: Setting) -> Outcome:
    compiles = any(OPTIMIZERS[name].price for name in setting.options)
    opened = [round.open_seconds for round in result.rounds if round.open_seconds is not None]
    return Outcome(
        tuple(result.samples("total")),
        result.peak(),
        {name: found["worst"] for name, found in (result.quality or {}).items()},
        result.artifacts,
        result.failure,
        max(opened, default=0.0) if compiles else 0.0,
        pictures=result.pictures,
    )


def interrupted(count: int, place: Path) -> Interrupted:
    return Interrupted(f"interrupted: {count} measurements are kept in {place}; --resume goes on from there")
