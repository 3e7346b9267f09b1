"""python -m safelight.measure.worker: one plan, measured in a process of its own.

Comes in: one task as JSON on stdin. Goes out: a line of JSON for each thing that happened, on what was stdout when the
process began; whatever libraries print goes to stderr instead, so that no line of theirs is ever read as one of ours.

    {"event": "warning", "text"}         what would have been a line on stderr
    {"event": "opened", ...}             seconds of loading and opening, the plan, the environment
    {"event": "first" | "warmup", "seconds"}
    {"event": "run", "seconds": {stage: s}, "pictures", ...}
    {"event": "measured", ...}           evidence, the memory's timeline; the last line of a round that went well
    {"event": "failed", "kind", "message", "exit_code"}
"""

import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from safelight.errors import OutOfMemory, SafelightError
from safelight.measure import environment
from safelight.request import MAX_SEED, Request
from safelight.run import shortage

if TYPE_CHECKING:
    from safelight.run.generate import Picture
    from safelight.session import Session

EVERY = 0.02  # seconds between two looks at the memory
CARD_EVERY = 5  # of these looks, one asks NVML, which takes milliseconds
MOST_POINTS = 500  # of a timeline
STEADY = 0.05  # two runs, one after the other, that differ by less
Tell = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Task:
    """load: arguments of safelight.load, but for the request. request: fields of Request; its seed is known. prompts:
    the runs take turns with them. first: number of the first run, of all rounds. runs, warmups: how many are measured,
    and at most not. folder: where the pictures go."""

    load: Mapping[str, Any]
    request: Mapping[str, Any]
    prompts: tuple[str, ...]
    first: int
    runs: int
    warmups: int
    folder: str

    def asked(self, index: int) -> Request:
        """The request of one run. Each has seeds of its own, and the same in every plan."""
        request = Request(**{**self.request, "prompt": self.prompts[index % len(self.prompts)]})
        assert request.seed is not None, "the seed is the same for all plans"
        return replace(request, seed=(request.seed + index * request.count) % (MAX_SEED + 1))


# -- what is looked at while it runs -----------------------------------------------------------------------------------


@dataclass
class Gauge:
    """Looks at the memory every 20 ms, in a thread. kind: of the device. began: when the process did."""

    kind: str
    card: environment.Card | None
    began: float
    before: int | None = None
    points: list[tuple[float, int]] = field(default_factory=list)
    peaks: dict[str, int | None] = field(default_factory=dict)
    busy: list[float] = field(default_factory=list)
    drawing: bool = False
    running: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Gauge":
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def note(self, **sizes: int | None) -> None:
        """Peaks of a run as they were seen elsewhere."""
        for name, size in sizes.items():
            if size is not None:
                self.peaks[name] = max(size, self.peaks.get(name) or 0)

    def _look_on(self) -> None:
        import psutil  # type: ignore[import-untyped]  # comes with accelerate

        process, look = psutil.Process(), 0
        while not self._ended.wait(EVERY):
            resident = process.memory_info().rss
            self.points.append((time.perf_counter() - self.began, self._size(resident)))
            if self.drawing:
                self.note(process_bytes=resident)
            if self.card and look % CARD_EVERY == 0:
                self._ask_card(self.card)
            look += 1

    def _size(self, resident: int) -> int:
        if self.kind != "cuda":
            return resident
        import torch

        return torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0

    def _ask_card(self, card: environment.Card) -> None:
        used = card.used_bytes()
        if self.drawing and used is not None and self.before is not None:
            self.note(device_bytes=max(0, used - self.before))
        if self.running and (busy := card.utilisation()) is not None:
            self.busy.append(busy)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        self.running = True
        try:
            yield
        finally:
            self.running = False

    def timeline(self) -> list[list[float]]:
        """At most MOST_POINTS, each the highest of those that it stands for."""
        step = -(-len(self.points) // MOST_POINTS) or 1
        parts = [self.points[i : i + step] for i in range(0, len(self.points), step)]
        return [[round(at, 3), size] for at, size in (max(part, key=lambda point: point[1]) for part in parts)]


# -- one round ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    session: "Session"
    load_seconds: float
    open_seconds: float


def opened(load: Mapping[str, Any], request: Request) -> Opened:
    """As safelight.load, with the seconds of reading the model apart from those of planning, applying and proving."""
    from safelight import opening, planner
    from safelight.measure.clock import synchronizer
    from safelight.optimizers.registry import swapped

    reading: list[float] = []
    pipeline = opening.pipeline

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        made = pipeline(*args, **kwargs)
        reading.append(time.perf_counter() - began)
        return made

    limits = {name: load[name] for name in ("keep", "goal", "vram", "max_seconds", "fidelity", "pictures")}
    wish = planner.wish(load["optimize"], load["without"], **{**limits, "keep": limits["keep"] or ""})
    files = opening.Files(load["model"], load["vae"], tuple(load["loras"]), load["config_folder"], load["allow_pickle"])
    began = time.perf_counter()
    with swapped(opening, pipeline=timed):
        session = opening.opened(files, wish, load["device"], request)
    synchronizer(session.device.kind)()
    return Opened(session, reading[0], time.perf_counter() - began - reading[0])


Open = Callable[[Mapping[str, Any], Request], Opened]


def work(task: Task, tell: Tell, gauge: Gauge, open_session: Open = opened) -> None:
    """Measures one round. Raises what loading and drawing raise."""
    first = task.asked(task.first)
    ready = open_session(task.load, first)
    with ready.session as session:
        tell({"event": "opened", **_opening(ready, first, gauge)})
        gauge.drawing = True
        times = [_drawn(session, first).seconds["total"]]
        tell({"event": "first", "seconds": times[0]})
        while len(times) <= task.warmups and not steady(times):
            times.append(_drawn(session, first).seconds["total"])
            tell({"event": "warmup", "seconds": times[-1]})
        predicted = _predicted(session, session.settle(first))
        for index in range(task.first, task.first + task.runs):
            tell({"event": "run", **_run(session, task, index, gauge)})
        gauge.drawing = False
        told = {"statuses": [asdict(status) for status in session.status()], "predicted": predicted}
        plan = {"written": session.plan.written, "options": session.plan.options, "left": dict(session.plan.left)}
        seen = {"timeline": gauge.timeline(), "utilisation": _mean(gauge.busy)}
        tell({"event": "measured", **told, **plan, **seen})


def steady(times: list[float]) -> bool:
    """Whether the last two differ by less than 5 % of the shorter."""
    return len(times) > 1 and abs(times[-1] - times[-2]) <= STEADY * min(times[-2:])


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _opening(ready: Opened, request: Request, gauge: Gauge) -> dict[str, Any]:
    import torch

    session = ready.session
    return {
        "load_seconds": ready.load_seconds,
        "open_seconds": ready.open_seconds,
        "written": session.plan.written,
        "options": session.plan.options,
        "left": dict(session.plan.left),
        "statuses": [asdict(status) for status in session.status()],
        "request": session.settle(request).as_dict(),
        "environment": environment.facts(session.device, torch, gauge.card),
        "threads": torch.get_num_threads(),
    }


@dataclass(frozen=True, slots=True)
class Drawn:
    """seconds: "total" on the wall until the last picture was there, and those of the stages."""

    request: Request
    pictures: "tuple[Picture, ...]"
    seconds: dict[str, float]
    evaluations: int
    peak_bytes: int | None


def _drawn(session: "Session", request: Request) -> Drawn:
    evaluations = 0

    def count(stage: str, done: int, total: int) -> None:
        nonlocal evaluations
        evaluations += stage == "denoise" and done > 0

    pictures, last = [], 0.0
    began = time.perf_counter()
    run = session.start(request, count)
    for picture in run:
        pictures.append(picture)
        last = time.perf_counter()  # what comes after the last one is our bookkeeping
    result = run.result(tuple(pictures))
    return Drawn(
        run.request,
        result.pictures,
        {"total": last - began, **result.seconds},
        evaluations,
        result.peak_bytes,
    )


def _run(session: "Session", task: Task, index: int, gauge: Gauge) -> dict[str, Any]:
    spent = gauge.card.energy_joules() if gauge.card else None
    with gauge.measuring():
        drawn = _drawn(session, task.asked(index))
    joules = None if spent is None or gauge.card is None else (gauge.card.energy_joules() or spent) - spent
    if gauge.kind == "cuda":
        import torch

        gauge.note(tensor_bytes=drawn.peak_bytes, reserved_bytes=torch.cuda.max_memory_reserved())
    elif gauge.kind == "cpu":
        gauge.note(process_bytes=drawn.peak_bytes)  # by the kernel, which misses nothing between two looks
    return {
        "seconds": drawn.seconds,
        "pictures": [_written(session, drawn.request, picture, task, index) for picture in drawn.pictures],
        "images": len(drawn.pictures),
        "evaluations": drawn.evaluations or None,
        "peaks": dict(gauge.peaks),
        "energy_joules": joules,
    }


def _written(session: "Session", request: Request, picture: "Picture", task: Task, index: int) -> dict[str, Any]:
    from safelight.run import metadata

    path = Path(task.folder) / f"{index * request.count + picture.index:06d}.png"
    metadata.write(picture.image, path, session.record(request, picture))
    told = {"path": str(path), "seed": picture.seed, "prompt": request.prompt}
    return told | ({"vae_retried": True} if picture.vae_retried else {})


def _predicted(session: "Session", request: Request) -> dict[str, Any] | None:
    """Of one run. Asked before the measured runs: what a prediction was asked of is kept to correct later ones."""
    cost = session.predicted(request)
    if cost is None:
        return None
    batches = -(-request.count // request.batch_size)
    stages = {"text": cost.encode, "denoise": cost.denoise, "decode": cost.decode}
    seconds = {stage: phase.seconds * batches for stage, phase in stages.items()}
    return {"seconds": seconds, "peak_bytes": cost.peak_bytes}


# -- the process -------------------------------------------------------------------------------------------------------


def answered(task: Task, tell: Tell, do: Callable[[Task, Tell], None]) -> None:
    """Does it, and tells of a failure that has a name; any other ends the process."""
    try:
        do(task, tell)
    except SafelightError as error:
        tell(_failed(error))
    except (MemoryError, RuntimeError) as error:
        if (wanted := shortage.wanted(error)) is None:
            raise
        tell(_failed(OutOfMemory(f"out of memory before anything was drawn: {wanted}")))


def _failed(error: SafelightError) -> dict[str, Any]:
    message = " ".join(str(error).split())
    return {"event": "failed", "kind": type(error).__name__, "message": message, "exit_code": error.exit_code}


def _measured(task: Task, tell: Tell) -> None:
    began = time.perf_counter()
    import torch

    from safelight.probe import device as devices

    asked = task.load["device"]
    card = environment.card(torch, asked)
    before = card.used_bytes() if card else None
    _hush(tell)
    with Gauge(devices.here(asked).kind, card, began, before) as gauge:
        work(task, tell, gauge)


def _hush(tell: Tell) -> None:
    """The libraries' bars and advice stay off, as they are for a person who draws; our warnings become lines."""
    import diffusers
    import transformers

    warnings.filterwarnings("ignore", module=r"(diffusers|transformers|torch|accelerate|huggingface_hub)\b")
    warnings.showwarning = lambda message, *_, **__: tell({"event": "warning", "text": str(message)})
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def private_output() -> IO[str]:
    """What was stdout, for us alone: from now on file descriptor 1 is stderr."""
    ours = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(ours, "w", encoding="utf-8")


def main() -> None:
    with private_output() as out:

        def tell(told: Mapping[str, Any]) -> None:
            print(json.dumps(told), file=out, flush=True)

        table = json.load(sys.stdin)
        answered(Task(**{**table, "prompts": tuple(table["prompts"])}), tell, _measured)


if __name__ == "__main__":
    main()
