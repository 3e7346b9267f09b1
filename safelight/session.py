"""The one thing that changes: a pipeline with its plan applied, and proved. Closing it undoes all.

with safelight.load("firstlight", optimize="auto") as session:
    picture = session.generate("a red apple, 3d, on a blue background", seed=1).pictures[0]
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from safelight.config import VERSION
from safelight.errors import (
    DidNotEngage,
    DoesNotApply,
    EnvironmentProblem,
    OutOfMemory,
    SafelightError,
    UsageError,
)
from safelight.measure.clock import Clock, synchronizer
from safelight.measure.memory import PeakMemory
from safelight.optimizers.registry import OPTIMIZERS, Proof, Registry
from safelight.optimizers.target import denoiser, target_of
from safelight.planner import Choice, Forecast, Plan, Wish, plan, still_fitting
from safelight.planner.forecast import Chosen
from safelight.probe.device import Device
from safelight.request import Request
from safelight.run import generate as run
from safelight.run import settling
from safelight.run.denoising import Progress
from safelight.run.expected import Expected
from safelight.run.generate import Picture
from safelight.run.load import one_line_errors
from safelight.run.preview import Previews, Show
from safelight.sampling import upscalers
from safelight.sampling.checkpoint import Checkpoint
from safelight.simulate.cost import Cost

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.run.load import Loaded
    from safelight.run.record import Record

NO_PREVIEWER = "nothing here decodes previews: add -o tiny-vae.use=preview"
STILL_TOO_MUCH = 0.9  # of the predicted peak of a plan that ran out of memory
PLACEMENT = "placement"  # the slot of the optimizers that say what lies where


@dataclass(frozen=True, slots=True)
class Status:
    """One optimizer of the plan. evidence: what was seen in the latest run, or else in the smoke run."""

    name: str
    value: str
    requested: bool
    engaged: bool
    evidence: str
    fidelity: str


@dataclass(frozen=True, slots=True)
class Result:
    """seconds: by stage. peak_bytes: highest memory of the run, None where it cannot be measured; on a CPU it counts
    the whole process. held_bytes: what was held before the run began (weights, and on a CPU the libraries)."""

    request: Request
    pictures: tuple[Picture, ...]
    seconds: Mapping[str, float]
    peak_bytes: int | None
    held_bytes: int | None


@dataclass
class Run:
    """A request under way: iterate it for the pictures; `seconds` and `peak_bytes` are right once it has ended."""

    request: Request
    _pictures: Iterator[Picture]
    _clock: Clock
    _memory: PeakMemory

    def __iter__(self) -> Iterator[Picture]:
        return self._pictures

    @property
    def seconds(self) -> dict[str, float]:
        return dict(self._clock.seconds)

    def result(self, pictures: tuple[Picture, ...]) -> Result:
        return Result(self.request, pictures, self.seconds, self._memory.read(), self._memory.before)


@dataclass
class Session:
    """A loaded pipeline with a plan applied. Use as a context manager, or call `close`.

    width, height, batch_size: the pictures that the plan is made for and the smoke run draws; None is the model's own.
    prepared, forecast: the plan made before the weights were loaded, and what it rests on. remember: what runs take is
    kept for later predictions.
    Threads may share a session: batches take turns. Two sessions over the same models may run at once only if neither
    has optimizers, whose state lies in the models; and each needs a pipeline object of its own.
    Raises whatever the plan raises, and DidNotEngage when an optimizer leaves no evidence; the pipeline is then as it
    was before.
    """

    pipe: Any
    device: Device
    wish: Wish = field(default_factory=Wish)
    loaded: "Loaded | None" = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    width: int | None = None
    height: int | None = None
    batch_size: int = 1
    registry: Registry = field(default_factory=lambda: OPTIMIZERS)
    prepared: Plan | None = None
    forecast: Forecast | None = None
    remember: bool = False

    def __post_init__(self) -> None:
        settling.check_supported(self.pipe)
        self.checkpoint = Checkpoint.of(self.pipe)
        self._turn = Lock()
        self._undo: ExitStack | None = None
        self._planned_again = False
        side = settling.own_side_px(self.pipe)
        self.target = target_of(
            self.pipe,
            self.device,
            width=self.width or side,
            height=self.height or side,
            batch_size=self.batch_size,
            disposable=self.loaded is not None,
        )
        name = self.loaded.name if self.loaded else type(self.pipe).__name__
        self.expected = Expected(self.pipe, self.target, name, self.forecast, self.remember)
        self._plan = self._first_plan()
        while self._undo is None:
            try:
                self._open()
            except OutOfMemory as error:
                self._plan_again(error)
            except DidNotEngage as error:
                self._leave(error)

    def _leave(self, error: DidNotEngage) -> None:
        """Goes on without what was planned and does nothing here. Raises `error` where a person asked for it."""
        if not error.names or any(c.requested for c in self._plan.choices if c.optimizer.name in error.names):
            raise error
        kept = tuple(choice for choice in self._plan.choices if choice.optimizer.name not in error.names)
        left = {**self._plan.left, **dict.fromkeys(error.names, f"it was tried: {error}")}
        self._plan = replace(self._plan, choices=kept, left=left)
        warnings.warn(f"left out, as nobody asked for it: {error}", stacklevel=2)

    def _first_plan(self) -> Plan:
        if self.prepared is not None:
            return still_fitting(self.prepared, self.target)
        forecast = self.expected.made() if self.wish.auto else None
        return plan(self.target, self.wish, self.registry, forecast)

    def _open(self) -> None:
        """Places the weights, applies the plan and proves it; all undone if anything of it fails."""
        self._proofs: tuple[Proof, ...] = ()
        self._smoke_evidence: tuple[str, ...] = ()
        if not any(choice.optimizer.slot == PLACEMENT for choice in self._plan.choices):
            # an optimizer that places the weights wants them on the CPU: whole on the card they may not fit at all
            with one_line_errors(self.loaded.asked if self.loaded else type(self.pipe).__name__):
                self.pipe.to(self.device.torch_name)
        with ExitStack() as stack:
            self._proofs = tuple(self._apply(stack, choice) for choice in self._plan.choices)
            if self._proofs:
                self._smoke_evidence = self._prove()
            self._undo = stack.pop_all()

    def _plan_again(self, error: OutOfMemory) -> None:
        """Once, with a smaller peak than that of the plan that was too large. Raises `error` where nothing is left."""
        if self._planned_again or self._plan.cost is None:
            raise error
        self._planned_again = True
        self.close()
        self.pipe.to("cpu")
        too_much = round(self._plan.cost.peak_bytes * STILL_TOO_MUCH)
        try:
            self._plan = plan(self.target, self.wish, self.registry, self.expected.made(), below_bytes=too_much)
        except OutOfMemory as smallest:
            raise OutOfMemory(f"{error}; and nothing smaller is known: {smallest}") from error
        warnings.warn(f"out of memory, so that it is planned again: -o {self._plan.written} ({error})", stacklevel=2)

    def _apply(self, stack: ExitStack, choice: Choice) -> Proof:
        try:
            return choice.optimizer.enter(stack, self.pipe, self.target, choice.options)
        except (DoesNotApply, EnvironmentProblem) as error:  # what only the loaded weights tell
            if choice.requested:
                raise
            raise DidNotEngage(str(error), [choice.optimizer.name]) from error

    def _prove(self) -> tuple[str, ...]:
        """Draws a short run at the real size, and asks each proof what it saw."""
        request = Request(
            "a smoke run",
            width=self.target.width,
            height=self.target.height,
            steps=max(proof.steps for proof in self._proofs),
            seed=0,
            count=self.batch_size,
            batch_size=self.batch_size,
        )
        request = settling.settle(self.pipe, request, self.defaults, self.checkpoint)
        shown = self._previews(lambda step, images: None, 1) if self._previewer else None
        memory = PeakMemory(self.device.kind)
        for _ in range(max(proof.runs for proof in self._proofs)):
            for _picture in run.pictures(
                self.pipe, request, self.device, self.checkpoint, begin=self._begin, preview=shown
            ):
                pass
        self._note_growth(memory)
        found = tuple(proof.evidence() for proof in self._proofs)
        if idle := [c.optimizer.name for c, said in zip(self._plan.choices, found, strict=True) if not said]:
            raise DidNotEngage(
                f"{' and '.join(idle)} was applied but shows no effect: leave it out with --without", idle
            )
        return found

    @property
    def _previewer(self) -> "Callable[[Tensor], Tensor] | None":
        return next((proof.preview for proof in self._proofs if proof.preview), None)

    def _previews(self, show: Show | None, every: int) -> Previews | None:
        if show is None:
            return None
        if self._previewer is None:
            raise UsageError(NO_PREVIEWER)
        return Previews(self._previewer, show, every)

    def _begin(self, pipe: Any) -> None:
        for proof in self._proofs:
            proof.begin(pipe)

    @property
    def plan(self) -> Plan:
        return self._plan

    def status(self) -> tuple[Status, ...]:
        """What was requested, what engaged, and the evidence, in the order of application."""
        return tuple(
            Status(c.optimizer.name, c.value, c.requested, bool(said), said, c.optimizer.fidelity.word)
            for c, said in zip(self._plan.choices, self._evidence(), strict=True)
        )

    def _evidence(self) -> list[str]:
        """Of the latest run where there is some: a request without guidance has no guidance to cut off."""
        return [proof.evidence() or said for proof, said in zip(self._proofs, self._smoke_evidence, strict=True)]

    def settle(self, request: Request) -> Request:
        """The request as it will be run: the model's defaults filled in, the seed drawn. Raises UsageError."""
        return settling.settle(self.pipe, request, self.defaults, self.checkpoint)

    def start(
        self,
        request: Request,
        progress: Progress = lambda stage, done, total: None,
        preview: Show | None = None,
        preview_every: int = 1,
        keep_first: bool = False,
    ) -> Run:
        """Begins a request; the pictures come from iterating the answer, each as soon as it is done.

        preview: is called after the first step and every `preview_every` more, while the batch holds the session.
        keep_first: pictures carry that of the first of two passes, too.
        Raises UsageError when no optimizer of the plan decodes previews.
        """
        if self._undo is None:
            raise SafelightError("this session is closed: load the model again")
        settled = self.settle(request)
        clock, memory = Clock(synchronizer(self.device.kind)), PeakMemory(self.device.kind)
        shown = self._previews(preview, preview_every)

        def draw(first: int) -> Iterator[Picture]:
            return run.pictures(
                self.pipe,
                settled,
                self.device,
                self.checkpoint,
                clock=clock,
                progress=progress,
                begin=self._begin,
                preview=shown,
                turn=self._turn,
                first=first,
                keep_first=keep_first,
            )

        return Run(settled, self._drawn(draw, settled, clock, memory), clock, memory)

    def _drawn(
        self, draw: Callable[[int], Iterator[Picture]], request: Request, clock: Clock, memory: PeakMemory
    ) -> Iterator[Picture]:
        """The pictures; planned again where memory runs out, and what the run took kept."""
        done = 0
        try:
            for picture in draw(0):
                yield picture
                done += 1
        except OutOfMemory as error:
            self._plan_again(error)
            self._open()
            yield from draw(done)
            return
        self._note_growth(memory)
        self.expected.keep(request, self._chosen, clock.seconds, memory.read())

    def _note_growth(self, memory: PeakMemory) -> None:
        if self.expected.grown_bytes is None:
            self.expected.grown_bytes = memory.growth()

    @property
    def _chosen(self) -> tuple[Chosen, ...]:
        return tuple((choice.optimizer, choice.options) for choice in self._plan.choices)

    def predicted(self, request: Request) -> Cost | None:
        """What one batch of a settled request is predicted to take under the plan; None for a model that cannot be
        predicted."""
        return self.expected.cost(request, self._chosen)

    def evaluations(self, request: Request) -> int:
        """Of the model, for each picture of a settled request: samplers differ in how many they take for a step."""
        return self.expected.evaluations(request)

    def generate(
        self,
        prompt: str | Request,
        progress: Progress = lambda stage, done, total: None,
        preview: Show | None = None,
        preview_every: int = 1,
        **fields: Any,
    ) -> Result:
        """Draws everything a request asks for. `fields` are Request's: seed, steps, width, count, ..."""
        request = prompt if isinstance(prompt, Request) else Request(prompt, **fields)
        started = self.start(request, progress, preview, preview_every)
        return started.result(tuple(started))

    def record(self, request: Request, picture: Picture) -> "Record":
        """All that makes one picture of a settled request again; `run.metadata.write` puts it into a file."""
        import diffusers
        import torch

        from safelight.run.load import Loaded
        from safelight.run.record import PICTURES, Record, file_hash, more_of

        loaded = self.loaded or Loaded(type(self.pipe).__name__, type(self.pipe).__name__)
        return Record(
            prompt=request.prompt,
            negative=request.negative,
            width=request.width or 0,
            height=request.height or 0,
            steps=request.steps or 0,
            guidance=request.guidance,
            seed=picture.seed,
            sampler=request.sampler or self.checkpoint.cls,
            schedule=request.schedule,
            more=more_of(request, picture.index),
            **{f"{name}_hash": file_hash(path) for name in PICTURES if (path := getattr(request, name))},
            model=loaded.asked,
            model_name=loaded.name,
            model_hash=loaded.sha256,
            revision=loaded.revision,
            vae=loaded.vae,
            lora=loaded.loras,
            dtype=str(next(denoiser(self.pipe).parameters()).dtype).removeprefix("torch."),
            device=self.device.kind,
            optimizers=tuple((s.name, s.value) for s in self.status()),
            batch_size=picture.batch_size,
            batch_index=picture.batch_index,
            upscale=request.upscale,
            upscaler=upscalers.NAMES.get(request.upscale),
            versions={"safelight": VERSION, "torch": torch.__version__, "diffusers": diffusers.__version__},
        )

    def close(self) -> None:
        """Gives the pipeline back as it was. Closing twice does nothing."""
        if self._undo is not None:
            self._undo.close()
            self._undo = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
