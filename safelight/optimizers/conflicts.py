"""The few pairs that cannot be combined although each alone fits, and they share no slot: why, and who says so.

Comes in: the options of optimizers that are to be used together. Goes out: the pairs that clash, and the nearest set
that works. A slot (registry.py) says the rest: two in one slot exclude each other.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from safelight.optimizers.registry import OPTIMIZERS, Registry

Options = Mapping[str, Mapping[str, Any]]  # by optimizer; each with all its options
DIFFUSERS_MEMORY = "https://huggingface.co/docs/diffusers/optimization/memory"
GRAPH_MODES = ("reduce-overhead", "max-autotune")  # torch.compile's modes that record CUDA graphs
MOVING = ("model-offload", "sequential-offload", "group-offload", "disk-offload", "streamed-blocks")
COMPILERS = ("compile", "compile-blocks")
TORCH_COMPILE = "https://docs.pytorch.org/docs/stable/torch.compiler.html"
STRIPS_OR_COMPILED = (
    ("exact-vae", "strips are computed operator by operator, and not by the compiled decoder"),
    ("blended-vae", "tiles are cut where the compiled decoder would begin"),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """names: the two. reason: follows "exclude each other:". instead: options with which the two do combine.

    when: for which options, told in `only`; always by default.
    """

    names: frozenset[str]
    reason: str
    source: str
    when: Callable[[Options], bool] = lambda options: True
    only: str = ""
    instead: Options = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Clash:
    """first, second: as they were asked for. reason: with its source."""

    first: str
    second: str
    reason: str
    instead: Options = field(default_factory=dict)


def _graphs(compiler: str, mover: str) -> Pair:
    return Pair(
        frozenset({compiler, mover}),
        "CUDA graphs replay the addresses at which the weights lay when they were recorded",
        "https://github.com/sgl-project/sglang/pull/23664",
        lambda options: options[compiler].get("mode") in GRAPH_MODES,
        f"{compiler}.mode is {' or '.join(GRAPH_MODES)}",
        {compiler: {"mode": "default"}},
    )


def _fullgraph(compiler: str, other: str, reason: str, source: str) -> Pair:
    return Pair(
        frozenset({compiler, other}),
        reason,
        source,
        lambda options: bool(options[compiler].get("fullgraph")),
        f"{compiler}.fullgraph is true",
        {compiler: {"fullgraph": False}},
    )


_TABLE = (
    *(
        Pair(
            frozenset({"layerwise-casting", compiler}),
            "every cast layer breaks the graph (226 graphs for the 5 blocks of a small UNet, torch 2.13)",
            f"{DIFFUSERS_MEMORY}#layerwise-casting",
        )
        for compiler in COMPILERS
    ),
    *(
        Pair(
            frozenset({"attention-slicing", compiler}),
            "the compiler unrolls the loop over the slices, again for every part of a model (14 graphs for 5 blocks)",
            "https://docs.pytorch.org/docs/stable/torch.compiler_troubleshooting.html",
        )
        for compiler in COMPILERS
    ),
    *(
        Pair(
            frozenset({cache, compiler}),
            "it counts inside the blocks, and every count compiles them anew (29 graphs in 8 steps, torch 2.13)",
            "https://huggingface.co/docs/diffusers/optimization/cache",
        )
        for cache in ("taylorseer-cache", "pyramid-attention-broadcast", "faster-cache")
        for compiler in COMPILERS
    ),
    *(_graphs(compiler, mover) for compiler in (*COMPILERS, "compile-vae") for mover in MOVING),
    *(
        _fullgraph(
            "compile",
            cache,
            "the cache decides between blocks, where one whole graph has no place for a decision",
            "https://huggingface.co/docs/diffusers/optimization/cache",
        )
        for cache in ("first-block-cache", "mag-cache")
    ),
    *(
        Pair(
            frozenset({"drop-text-encoders", mover}),
            "it moves the text encoders itself",
            DIFFUSERS_MEMORY,
        )
        for mover in MOVING
    ),
    *(
        Pair(
            frozenset({name, mover}),
            "strips are computed with the VAE's weights as they lie, and it brings them in layer by layer",
            DIFFUSERS_MEMORY,
        )
        for name in ("exact-vae",)
        for mover in ("sequential-offload", "disk-offload", "group-offload")
    ),
    *(
        Pair(
            frozenset({other, "compile"}),
            reason,
            TORCH_COMPILE,
            lambda options: "vae" in str(options["compile"].get("parts", "")),
            "compile.parts has the vae",
            {"compile": {"parts": "denoiser"}},
        )
        for other, reason in (*STRIPS_OR_COMPILED, ("compile-vae", "both compile the VAE's decoder"))
    ),
    *(Pair(frozenset({other, "compile-vae"}), reason, TORCH_COMPILE) for other, reason in STRIPS_OR_COMPILED),
)
PAIRS: Mapping[frozenset[str], Pair] = {pair.names: pair for pair in _TABLE}


def clash(first: str, second: str, options: Options, registry: Registry = OPTIMIZERS) -> Clash | None:
    """Why the two cannot be used together, or None. options: of these two at least."""
    if (slot := registry[first].slot) and slot == registry[second].slot:
        return Clash(first, second, f"there is one slot {slot}")
    pair = PAIRS.get(frozenset({first, second}))
    if pair is None or not pair.when(options):
        return None
    where = f" while {pair.only}" if pair.only else ""
    return Clash(first, second, f"{pair.reason}{where} ({pair.source})", pair.instead)


def clashes(options: Options, registry: Registry = OPTIMIZERS) -> Iterator[Clash]:
    """All of them, in the order in which the optimizers were asked for."""
    for first, second in combinations(options, 2):
        if found := clash(first, second, options, registry):
            yield found


def nearest_set(options: Options, registry: Registry = OPTIMIZERS) -> Options:
    """The largest part of what was asked for that works, preferring what was asked for earlier.

    Another value of an option (compile.mode=default) is preferred to leaving an optimizer out. Tries one left out, then
    two, and so on: what people ask for clashes in a pair or two.
    """
    variants = [options, _changed(options, registry)]
    for size in range(len(options), 0, -1):
        for kept in combinations(options, size):
            for variant in variants:
                chosen = {name: variant[name] for name in kept}
                if next(clashes(chosen, registry), None) is None:
                    return chosen
    return {}


def _changed(options: Options, registry: Registry) -> Options:
    changed = {name: dict(given) for name, given in options.items()}
    for found in clashes(options, registry):
        for name, values in found.instead.items():
            changed[name].update(values)
    return changed
