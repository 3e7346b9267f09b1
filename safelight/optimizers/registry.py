"""An optimizer is a fixture: change the pipeline, yield a Proof, change it back.

    @optimizer(stage=Stage.DECODE, fidelity=Fidelity.ROUNDING, source="https://...", fits=..., predict=...)
    def vae_slicing(pipe, target): ...

The name ("vae-slicing"), the summary (first line of the docstring), the options and their defaults (the signature
after `pipe` and `target`) all come from the function. `fits` is asked before anything is touched; `apply` then makes
no checks. What it is worth a planner asks a trace where one shows it (`traced`: it is applied to a pipeline of fake
tensors), and `predict` where none does. To add one, write it in the file of its kind: the command line, the docs and
the contract test follow.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from safelight.errors import UnknownName, UsageError
from safelight.optimizers.target import Target
from safelight.simulate.cost import Cost

if TYPE_CHECKING:
    from torch import Tensor


class Stage(IntEnum):
    """Order of application; what comes later sees, and may freeze, what came before."""

    PROCESS = 1  # settings of the whole process: allocator, TF32
    PRECISION = 2  # the number format of each part; before any hook
    PROJECTIONS = 3  # fused weights
    LAYOUT = 4  # memory format
    STORAGE = 5  # weights stored smaller than they are computed with
    ATTENTION = 6  # kernels, slices, merged tokens
    COMPILE = 7  # freezes what came before; what comes after decides in Python whether to call it
    CACHE = 8
    GUIDANCE = 9
    DECODE = 10
    PLACEMENT = 11  # what lies where; moves the weights as they now are


class Fidelity(IntEnum):
    """What the picture may lose."""

    EXACT = 0  # bit-equal
    ROUNDING = 1  # the same mathematics, rounded elsewhere
    APPROXIMATE = 2  # another picture is possible; how far is measured

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Proof:
    """What shows, after a smoke run, that an optimizer did something.

    evidence: says what was seen, or "" if nothing was. It must not be able to speak up when the optimizer did not act.
    runs: smoke runs it takes to show (a prompt cache shows in the second).
    steps: denoising steps of a smoke run that it takes to show (a step cache skips none of the first).
    begin: is called with the pipeline object of a request right before each run of it: forget the last run, which an
    exception may have ended half way, and count anew.
    preview: what the optimizer offers to a session that shows pictures under way: (batch, channels, latent_height,
    latent_width) as the denoiser has them -> (batch, 3, height, width) in 0..1. It must leave the run as it is.
    """

    evidence: Callable[[], str]
    runs: int = 1
    steps: int = 2
    begin: Callable[[Any], None] = lambda pipe: None
    preview: "Callable[[Tensor], Tensor] | None" = None


@dataclass(frozen=True, slots=True)
class Option:
    name: str
    kind: type
    default: Any

    def parse(self, text: str) -> Any:
        """Raises UsageError when the text is not of the option's type."""
        if self.kind is bool:
            if text.lower() in ("true", "false", "1", "0", "yes", "no", "on", "off"):
                return text.lower() in ("true", "1", "yes", "on")
            raise UsageError(f"option {self.name!r} is {text!r}: give true or false")
        try:
            return self.kind(text)
        except ValueError as error:
            raise UsageError(f"option {self.name!r} is {text!r}: give {_article(self.kind)}") from error


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number"}.get(kind, "a word")


Apply = Callable[..., Iterator[Proof]]
Variants = Callable[[Cost, Target], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Optimizer:
    name: str
    summary: str
    source: str
    stage: Stage
    fidelity: Fidelity
    apply: Apply
    fits: Callable[..., str | None]  # (target, **options) -> None, or why not
    predict: Callable[..., Cost]  # (cost, target, **options) -> cost
    traced: tuple[str, ...] = ()  # of "denoiser", "vae", "text_encoders": where a trace shows by itself what it does
    variants: "Variants | None" = None  # which options a planner may choose between; the defaults alone where None
    pointless: Callable[[Target], str | None] = lambda target: None  # why no planner takes it here though it would work
    slot: str | None = None
    price: str | None = None  # what it costs once ("compiles for about a minute"): then only a name takes it
    options: tuple[Option, ...] = field(default=())

    def enter(self, stack: ExitStack, pipe: Any, target: Target, options: Mapping[str, Any]) -> Proof:
        """Applies now; undoes when the stack closes, even if the body raised."""
        steps = self.apply(pipe, target, **options)
        proof = next(steps)
        stack.callback(next, steps, None)
        return proof

    def defaults(self) -> dict[str, Any]:
        return {option.name: option.default for option in self.options}

    def option(self, name: str) -> Option:
        found = {option.name: option for option in self.options}
        if name not in found:
            raise UnknownName(f"option of {self.name}", name, found)
        return found[name]


class Registry(dict[str, Optimizer]):
    """Optimizers by name. A plan takes one as an argument, so a test can make its own."""

    def add(
        self,
        *,
        stage: Stage,
        fidelity: Fidelity,
        source: str,
        fits: Callable[..., str | None],
        predict: Callable[..., Cost] = lambda cost, target, **options: cost,
        traced: tuple[str, ...] = (),
        variants: Variants | None = None,
        pointless: Callable[[Target], str | None] = lambda target: None,
        slot: str | None = None,
        price: str | None = None,
    ) -> Callable[[Apply], Apply]:
        def register(apply: Apply) -> Apply:
            name = apply.__name__.replace("_", "-")
            if name in self:
                raise ValueError(f"optimizer {name!r} is registered twice")
            self[name] = Optimizer(
                name=name,
                summary=(inspect.getdoc(apply) or "").partition("\n")[0],
                source=source,
                stage=stage,
                fidelity=fidelity,
                apply=apply,
                fits=fits,
                predict=predict,
                traced=traced,
                variants=variants,
                pointless=pointless,
                slot=slot,
                price=price,
                options=_options(apply),
            )
            return apply

        return register

    def find(self, name: str) -> Optimizer:
        """Underscores count as hyphens. Raises UnknownName."""
        if (known := self.get(name.replace("_", "-").lower())) is None:
            raise UnknownName("optimizer", name, self)
        return known


def _options(apply: Apply) -> tuple[Option, ...]:
    parameters = list(inspect.signature(apply).parameters.values())[2:]
    return tuple(Option(p.name, p.annotation, p.default) for p in parameters)


OPTIMIZERS = Registry()
optimizer = OPTIMIZERS.add


@contextmanager
def swapped(thing: Any, **values: Any) -> Iterator[None]:
    """Sets attributes for the time of a block, and puts back exactly what was there, also "nothing"."""
    had = {name: vars(thing).get(name, _ABSENT) for name in values}
    try:
        for name, value in values.items():
            setattr(thing, name, value)
        yield
    finally:
        for name, value in had.items():
            if value is _ABSENT:
                delattr(thing, name)
            else:
                setattr(thing, name, value)


_ABSENT = object()
