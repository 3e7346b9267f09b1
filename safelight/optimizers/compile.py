"""Kernels made for this model and this size: torch.compile, counted, checked against eager, and undone.

Every graph goes through a backend of our own around inductor, which counts graphs, seconds and calls: what it has not
compiled cannot show. Nothing global is left changed: what inductor and dynamo must be told is patched while it holds.
"""

import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

from safelight.errors import SpoiledPicture, UnknownName
from safelight.measure.clock import synchronizer
from safelight.optimizers.compiling import CUDA_GRAPH_MODES, freezes, predict, predict_blocks, predict_vae
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.target import Target, denoiser, models

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
PARTS = ("denoiser", "vae", "text_encoders")
PRICE = "compiles for half a minute to several minutes"
STEPS_OF_A_PICTURE = 20
# a relative difference of the denoiser's output: bfloat16 rounded elsewhere gives 0.02 on firstlight and on SD1.5's
# UNet; code that computes something else gives about 1
MOST_DIFFERENCE = 0.15


def _fits(target: Target, mode: str, fullgraph: bool, dynamic: bool, parts: str, backend: str) -> str | None:
    if mode not in MODES:
        raise UnknownName("compile mode", mode, MODES)
    for part in parts.split("+"):
        if part not in PARTS:
            raise UnknownName("part to compile", part, PARTS)
    if "vae" in parts and target.vae is None:
        return "this pipeline has no VAE"
    if target.device.kind == "cpu" and mode == "reduce-overhead":
        return "reduce-overhead means CUDA graphs, and this is a CPU: use mode default"
    if target.device.elsewhere:
        return None
    return _no_compiler(target.device.kind) if backend == "inductor" else _no_backend(backend)


def _fits_vae(target: Target, **options: Any) -> str | None:
    return _fits(target, parts="vae", **options)


def _no_backend(backend: str) -> str | None:
    from torch._dynamo import list_backends

    if backend not in (known := list_backends(exclude_tags=None)):
        raise UnknownName("compile backend", backend, known)
    return None


def _fits_blocks(target: Target, mode: str, **options: Any) -> str | None:
    if mode in CUDA_GRAPH_MODES:
        return f"{mode} means CUDA graphs, and a block called twice writes over its own output: use compile={mode}"
    return _fits(target, mode, parts="denoiser", **options)


def _no_compiler(kind: str) -> str | None:
    """inductor writes C++ for CPUs and Triton for cards; both want their compiler."""
    import shutil

    from safelight.probe import packages

    if kind == "cpu":
        found = any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl"))
        return None if found else "needs a C++ compiler: apt install g++"
    return packages.missing("triton") if kind == "cuda" else None


SMOKE_RUNS = 3  # eager, compiling, compiled


@dataclass
class Watch:
    """One part's forward during the smoke runs: seconds and numbers, eager against compiled."""

    part: str
    synchronize: Callable[[], None]
    eager: list[float] = field(default_factory=list)
    compiled: list[float] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)  # of the eager run, until they are compared

    def call(self, forward: Callable[..., Any], is_eager: bool, *args: Any, **kwargs: Any) -> Any:
        self.synchronize()
        started = perf_counter()
        made = forward(*args, **kwargs)
        self.synchronize()
        (self.eager if is_eager else self.compiled).append(perf_counter() - started)
        first = (made[0] if isinstance(made, Mapping | tuple) else made).float()
        if is_eager:
            self.outputs.append(first.clone())
        elif self.outputs:
            self.compare(self.outputs.pop(0), first)
        return made

    def compare(self, plain: Any, compiled: Any) -> None:
        difference = float((compiled - plain).norm() / plain.norm().clamp(min=1e-12))
        if not difference <= MOST_DIFFERENCE:
            raise SpoiledPicture(
                f"the compiled {self.part} computes something else than the eager one (relative difference "
                f"{difference:.2g}): leave it out of compile, or try another mode or --dtype"
            )

    def gain(self) -> float:
        """Seconds that a call takes less than before; the first call of a run is a warm-up, if there are more."""
        if not (self.eager and self.compiled):
            return 0.0
        eager, compiled = (statistics.fmean(times[1:] or times) for times in (self.eager, self.compiled))
        return eager - compiled


@dataclass
class Meter:
    """What the backend has seen. seconds: spent compiling. late: graphs for shapes that came after the smoke runs."""

    synchronize: Callable[[], None]
    watches: list[Watch] = field(default_factory=list)
    graphs: int = 0
    late: int = 0
    calls: int = 0
    seconds: float = 0.0
    run: int = 0
    proved: bool = False  # the smoke runs are over

    def begin(self, pipe: Any) -> None:
        self.run += 1

    @property
    def is_eager(self) -> bool:
        """The first smoke run stays eager: to compare with, in seconds and in numbers."""
        return self.run == 1 and not self.proved

    def backend(self, compiler: Callable[[Any, Any], Callable[..., Any]]) -> Callable[..., Any]:
        """The compiler, watched. Blocks that share it share their graphs, as long as nothing is frozen into them."""

        def compile_counted(graph: Any, inputs: Any) -> Callable[..., Any]:
            started = perf_counter()
            compiled = compiler(graph, inputs)
            self.seconds += perf_counter() - started
            self.graphs += 1
            self.late += self.proved

            def call(*arguments: Any) -> Any:
                self.calls += 1
                return compiled(*arguments)

            return call

        return compile_counted

    def watched(self, part: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        watch = Watch(part, self.synchronize)
        self.watches.append(watch)

        def watched_forward(*args: Any, **kwargs: Any) -> Any:
            if self.proved or self.run not in (1, SMOKE_RUNS):
                return forward(*args, **kwargs)
            return watch.call(forward, self.run == 1, *args, **kwargs)

        return watched_forward

    def said(self) -> str:
        self.proved = True
        if not (self.graphs and self.calls):
            return ""
        late = f", {self.late} of them for sizes that came later" if self.late else ""
        return f"{self.graphs} graphs compiled in {self.seconds:.0f} s{late}, called {self.calls} times; {self.pays()}"

    def pays(self) -> str:
        """After how many pictures the time of compiling has come back."""
        gain = sum(watch.gain() * (STEPS_OF_A_PICTURE if watch.part == "denoiser" else 1) for watch in self.watches)
        if gain <= 0:
            return "a picture is not faster for it here"
        return (
            f"{gain * 1000:.0f} ms less per picture of {STEPS_OF_A_PICTURE} steps: "
            f"paid after {self.seconds / gain:.0f} pictures"
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to compile. freeze: weights become constants, prepacked for the CPU's kernels; a second copy of them."""

    mode: str
    fullgraph: bool
    dynamic: bool
    backend: str
    freeze: bool

    def compiler(self) -> Callable[[Any, Any], Callable[..., Any]]:
        from torch._dynamo import lookup_backend
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        if self.backend != "inductor":
            return lookup_backend(self.backend)
        options = {} if self.mode == "default" else dict(list_mode_options(self.mode))
        return partial(compile_fx, config_patches=options | ({"freezing": True} if self.freeze else {}))


class Bucket:
    """A forward compiled for the sizes of the smoke runs, each exactly, and once more for all other sizes together.

    Left to itself, torch.compile would compile every new size for a minute without a word (diffusers issue 11360).
    """

    def __init__(self, forward: Callable[..., Any], meter: Meter, recipe: Recipe, hot: Any, rest: Any) -> None:
        import torch

        self.forward, self.meter = forward, meter
        self.hot = torch.compile(forward, backend=hot, fullgraph=recipe.fullgraph, dynamic=recipe.dynamic)
        self.rest = torch.compile(forward, backend=rest, fullgraph=recipe.fullgraph, dynamic=True)
        self.shapes: set[tuple[Any, ...]] = set()
        self.warned = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.meter.is_eager:
            return self.forward(*args, **kwargs)
        shapes = _shapes((*args, *kwargs.values()))
        if not self.meter.proved:
            self.shapes.add(shapes)
        if shapes in self.shapes:
            return self.hot(*args, **kwargs)
        if not self.warned:
            self.warned = True
            warnings.warn(f"compiling once more for other sizes than the plan's: {shapes[0]}", stacklevel=2)
        return self.rest(*args, **kwargs)


def _shapes(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of every tensor, also of those in tuples (a UNet's residuals)."""
    found: list[Any] = []
    for argument in arguments:
        if isinstance(argument, tuple | list):
            found += _shapes(tuple(argument))
        elif hasattr(argument, "shape"):
            found.append(tuple(argument.shape))
    return tuple(found)


def regions(model: Any) -> list[Any]:
    """The blocks of a denoiser: a UNet's levels, or what stands in a transformer's lists of blocks."""
    from torch import nn

    levels = [name for name in ("down_blocks", "mid_block", "up_blocks") if getattr(model, name, None) is not None]
    if not levels:
        lists = [child for child in model.children() if isinstance(child, nn.ModuleList)]
        return [block for blocks in lists for block in blocks]
    found = [getattr(model, name) for name in levels]
    return [block for part in found for block in (part if isinstance(part, nn.ModuleList) else [part])]


@contextmanager
def settings(recipe: Recipe) -> Iterator[None]:
    """What dynamo and inductor read outside of the backend's call; put back."""
    import torch._dynamo
    import torch._inductor.config as inductor

    # frozen blocks of one class are compiled each for itself, and dynamo gives up at the eighth
    with (
        torch._dynamo.config.patch(recompile_limit=1024, accumulated_recompile_limit=1 << 16),
        inductor.patch(freezing=recipe.freeze),
    ):
        yield
    # frozen weights would stay in its caches, and code that it gave up on once stays uncompiled for the next pipeline
    torch._dynamo.reset()


@optimizer(
    stage=Stage.COMPILE,
    slot="compile",
    fidelity=Fidelity.ROUNDING,
    source="https://docs.pytorch.org/tutorials/recipes/regional_compilation.html",
    fits=_fits_blocks,
    predict=predict_blocks,
    price=PRICE,
)
def compile_blocks(
    pipe: Any,
    target: Target,
    mode: str = "default",
    fullgraph: bool = False,
    dynamic: bool = False,
    backend: str = "inductor",
) -> Iterator[Proof]:
    """Compile the denoiser's blocks one by one: far less compiling than the whole, and caches can skip them."""
    model = denoiser(pipe)
    recipe = Recipe(mode, fullgraph, dynamic, backend, freezes(target, backend))
    yield from _compiled(target, recipe, [Subject("denoiser", model, regions(model))])


@optimizer(
    stage=Stage.COMPILE,
    slot="compile",
    fidelity=Fidelity.ROUNDING,
    source="https://docs.pytorch.org/docs/stable/generated/torch.compile.html",
    fits=_fits,
    predict=predict,
    price=PRICE,
)
def compile(  # the name that everybody knows it by
    pipe: Any,
    target: Target,
    mode: str = "default",
    fullgraph: bool = False,
    dynamic: bool = False,
    parts: str = "denoiser",
    backend: str = "inductor",
) -> Iterator[Proof]:
    """Compile whole parts (denoiser+vae+text_encoders); modes with CUDA graphs spare small models their launches."""
    recipe = Recipe(mode, fullgraph, dynamic, backend, freezes(target, backend))
    yield from _compiled(target, recipe, _whole(pipe, parts))


@optimizer(
    stage=Stage.COMPILE,
    slot="compile-vae",
    fidelity=Fidelity.ROUNDING,
    source="https://docs.pytorch.org/docs/stable/generated/torch.compile.html",
    fits=_fits_vae,
    predict=predict_vae,
    price=PRICE,
)
def compile_vae(
    pipe: Any,
    target: Target,
    mode: str = "default",
    fullgraph: bool = False,
    dynamic: bool = False,
    backend: str = "inductor",
) -> Iterator[Proof]:
    """Compile the VAE's decoder, beside whatever compiles the denoiser: for pictures of one size, one after another."""
    recipe = Recipe(mode, fullgraph, dynamic, backend, freezes(target, backend))
    yield from _compiled(target, recipe, _whole(pipe, "vae"))


@dataclass(frozen=True, slots=True)
class Subject:
    """A part whose calls are timed and compared. inside: what is compiled of it, with one compiler for all."""

    part: str
    module: Any
    inside: Sequence[Any]


def _whole(pipe: Any, parts: str) -> list[Subject]:
    named = {"denoiser": lambda: [denoiser(pipe)], "vae": lambda: [pipe.vae.decoder]}
    named["text_encoders"] = lambda: [part for name, part in models(pipe).items() if name.startswith("text_encoder")]
    return [Subject(part, module, [module]) for part in parts.split("+") for module in named[part]()]


def _compiled(target: Target, recipe: Recipe, subjects: Sequence[Subject]) -> Iterator[Proof]:
    meter = Meter(synchronizer(target.device.kind))
    with ExitStack() as stack:
        stack.enter_context(settings(recipe))
        for subject in subjects:
            hot, rest = meter.backend(recipe.compiler()), meter.backend(recipe.compiler())
            for module in subject.inside:
                bucket = Bucket(module.forward, meter, recipe, hot, rest)
                forward = _own_output(bucket) if recipe.mode in CUDA_GRAPH_MODES else bucket
                stack.enter_context(swapped(module, forward=forward))
            watched = meter.watched(subject.part, subject.module.forward)
            stack.enter_context(swapped(subject.module, forward=watched))
        yield Proof(meter.said, runs=SMOKE_RUNS, begin=meter.begin)


def _own_output(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A CUDA graph writes its next output over the last one, which caches and samplers may still hold."""
    import torch

    def forward_and_copy(*args: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        made = forward(*args, **kwargs)
        return tuple(x.clone() for x in made) if isinstance(made, tuple) else made.clone()

    return forward_and_copy
