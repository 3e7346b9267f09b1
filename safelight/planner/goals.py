"""What a plan is for: the goals by name, and a person's wish in full."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from safelight.config import bytes_of
from safelight.errors import UnknownName, UsageError
from safelight.optimizers import words
from safelight.optimizers.registry import OPTIMIZERS, Fidelity, Registry

DEFAULT = "balanced"


@dataclass(frozen=True, slots=True)
class Goal:
    """speed, memory: what the picture may lose for seconds, and to fit into memory at all.

    pictures: so many share what is spent once, such as compiling. smallest: bytes count first, seconds only up to twice
    those of the fastest. batches: the batch with the best seconds per picture is looked for.
    """

    summary: str
    speed: Fidelity = Fidelity.ROUNDING
    memory: Fidelity = Fidelity.ROUNDING
    pictures: int = 1
    smallest: bool = False
    batches: bool = False


GOALS: Mapping[str, Goal] = {
    "balanced": Goal("what pays from the first picture on, and keeps the picture but for rounding"),
    "fast": Goal("the least seconds; compiling is paid by 100 pictures", pictures=100),
    "quality": Goal("nothing that changes a bit, unless it would not fit otherwise", speed=Fidelity.EXACT),
    "low-memory": Goal(
        "the least memory that takes at most twice the time", memory=Fidelity.APPROXIMATE, smallest=True
    ),
    "throughput": Goal("the most pictures per second, 1000 of them, in batches", pictures=1000, batches=True),
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for. options: by optimizer name, as text or as values. auto: plan what to take besides.

    without: never these. vram_bytes: what the device may spend in all; None is what is there. max_seconds: of one
    picture. fidelity: what the picture may lose, for speed and for memory; None is the goal's. pictures: to be made;
    None is the goal's.
    """

    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    auto: bool = False
    without: frozenset[str] = frozenset()
    goal: str = DEFAULT
    vram_bytes: int | None = None
    max_seconds: float | None = None
    fidelity: Fidelity | None = None
    pictures: int | None = None

    def __post_init__(self) -> None:
        if self.goal not in GOALS:
            raise UnknownName("goal", self.goal, GOALS)
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise UsageError(f"max-seconds is {self.max_seconds!r:.80}: give seconds of one picture, more than 0")

    @property
    def speed(self) -> Fidelity:
        return GOALS[self.goal].speed if self.fidelity is None else self.fidelity

    @property
    def memory(self) -> Fidelity:
        return GOALS[self.goal].memory if self.fidelity is None else self.fidelity

    @property
    def paid_by(self) -> int:
        return self.pictures or GOALS[self.goal].pictures


def wish(
    optimize: words.Words = "",
    without: Iterable[str] = (),
    registry: Registry = OPTIMIZERS,
    *,
    keep: words.Words = "",
    goal: str | None = None,
    vram: str | int | None = None,
    max_seconds: float | str | None = None,
    fidelity: str | None = None,
    pictures: int | None = None,
) -> Wish:
    """Reads "auto,dtype=bfloat16,vae-tiling=256,vae-tiling.overlap=0.5", a list of such words, or a mapping.

    `name=value` sets an optimizer's first option, `name.option=value` any; words.py tells all ways, and the names that
    others use. Names alone are taken as they are, and nothing else; with "auto", `keep`, a goal or a limit, a plan is
    made around them. "" and "none" are plain.
    Raises UnknownName and UsageError.
    """
    asked = words.read(optimize, keep, registry=registry)
    planned = bool(keep) or any(said is not None for said in (goal, vram, max_seconds, fidelity))
    return Wish(
        asked.options,
        bool(asked.auto) or planned,
        frozenset(words.resolve(name, registry).name for name in without),
        DEFAULT if goal is None else goal,
        bytes_of(vram) if isinstance(vram, str) else vram,
        _seconds(max_seconds),
        None if fidelity is None else fidelity_of(fidelity),
        pictures,
    )


def fidelity_of(written: str) -> Fidelity:
    """ "rounding" -> Fidelity.ROUNDING. Raises UnknownName."""
    known = {fidelity.word: fidelity for fidelity in Fidelity}
    if written.lower() not in known:
        raise UnknownName("fidelity", written, known)
    return known[written.lower()]


def _seconds(written: float | str | None) -> float | None:
    try:
        return None if written is None else float(written)
    except ValueError as error:
        raise UsageError(f"max-seconds is {written!r:.80}: give seconds of one picture, such as 2.5") from error
