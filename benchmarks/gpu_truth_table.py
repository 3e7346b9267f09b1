"""What scripts/gpu-truth measures, the most valuable rows first: tables, and the rows that follow from them.

An optimizer that stands in no table gets a row of its own with its defaults, so a new one is measured without a word
here. Knows no device: whether a plan fits one is found out when its turn comes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from safelight.errors import UnknownName
from safelight.optimizers import OPTIMIZERS
from safelight.optimizers.registry import Registry, Stage

OWN, FLOAT32, BATCH = "own", "float32", "batch"  # kinds of case; an entry is measured in the cases of its kind
UNETS, TRANSFORMERS = ("sd15", "sdxl"), ("sd35-medium", "flux1-dev", "flux1-schnell")


@dataclass(frozen=True, slots=True)
class Case:
    """One model, one size, one way to load it: what plain is. side_px: the model's own. dtype: as loaded."""

    name: str
    model: str
    side_px: int
    steps: int
    dtype: str
    kinds: tuple[str, ...] = (OWN,)
    batch_size: int = 1


CASES = (
    Case("flux1-dev", "flux1-dev", 1024, 20, "bfloat16"),
    Case("sdxl", "sdxl", 1024, 20, "float16"),
    Case("sd15", "sd15", 512, 20, "float16"),
    Case("flux1-schnell", "flux1-schnell", 1024, 4, "bfloat16"),
    Case("sd35-medium", "sd35-medium", 1024, 20, "bfloat16"),
    Case("sdxl, float32", "sdxl", 1024, 20, "float32", (FLOAT32,)),
    Case("sd15, float32", "sd15", 512, 20, "float32", (FLOAT32,)),
    Case("sdxl, 4 at once", "sdxl", 1024, 20, "float16", (BATCH,), 4),
    Case("sd15, 8 at once", "sd15", 512, 20, "float16", (BATCH,), 8),
    Case("firstlight", "firstlight", 64, 4, "float32", (OWN, FLOAT32)),  # to try the program on a CPU
)


@dataclass(frozen=True, slots=True)
class Entry:
    """plan: as after -o, "" is plain. rank: 0 is measured first. models: () for all. steps: 0 for the case's own."""

    plan: str
    rank: int
    kind: str = OWN
    models: tuple[str, ...] = ()
    steps: int = 0


ENTRIES = (
    Entry("", 0),
    Entry("auto", 0),
    Entry("auto,compile-blocks", 0),
    Entry("streamed-blocks=8", 0, models=("flux1-dev",)),
    Entry("auto,first-block-cache", 1, models=TRANSFORMERS),
    Entry("auto,deep-cache", 1, models=UNETS),
    Entry("exact-vae", 1),
    Entry("exact-vae=smallest", 1),
    Entry("streamed-blocks=4", 1, models=("flux1-dev", "sdxl")),
    Entry("streamed-blocks=16", 1, models=("flux1-dev",)),
    Entry("", 1, FLOAT32),
    Entry("auto", 1, FLOAT32),
    Entry("attention-backend=cudnn", 2),
    Entry("attention-backend=flash", 2),
    Entry("auto,compile", 2),
    # it goes by how much the first block's output changes, which random weights may do more than trained ones: a
    # threshold that most steps pass shows what skipping is worth
    Entry("first-block-cache", 2, models=TRANSFORMERS),
    Entry("first-block-cache=0.2", 2, models=TRANSFORMERS),
    Entry("first-block-cache=1", 2, models=TRANSFORMERS),
    Entry("tf32", 2, FLOAT32),
    Entry("dtype=float16", 2, FLOAT32),
    Entry("dtype=bfloat16", 2, FLOAT32),
    Entry("model-offload", 2),
    Entry("group-offload", 2),
    Entry("auto,compile-blocks,first-block-cache", 3, models=TRANSFORMERS),
    Entry("auto,compile-blocks,deep-cache", 3, models=UNETS),
    Entry("compile.mode=reduce-overhead", 3),
    Entry("attention-backend=efficient", 3),
    # group-offload's other level, and what moves a model's weights in every step: a few steps tell
    Entry("group-offload.level=block,group-offload.blocks=2", 4, steps=4),
    Entry("sequential-offload", 4, steps=4),
    Entry("attention-backend=math", 4, steps=4),
    Entry("attention-backend=flex", 5, steps=4),
    Entry("disk-offload", 5, steps=2),
    Entry("", 4, BATCH),
    Entry("auto", 4, BATCH),
    Entry("vae-slicing", 4, BATCH),  # one picture alone leaves nothing to slice
)
# an optimizer that stands in no entry: where many share a process, they are cheap and come sooner
OTHERS_SHARED, OTHERS_FRESH = 2, 3
LEFT_OUT = {"lazy-modules": "is CUDA's default, and refuses everywhere: there is nothing to measure"}
# What acts on the whole process or leaves the allocator, the compiler's caches or the weights' places otherwise than
# it found them is measured in a process of its own; and so is "auto", which may take any of it
FRESH = frozenset({Stage.PROCESS, Stage.STORAGE, Stage.ATTENTION, Stage.COMPILE, Stage.PLACEMENT})


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. fresh: in a process of its own; the others of a case and rank share one."""

    case: Case
    plan: str
    rank: int
    fresh: bool
    steps: int

    @property
    def key(self) -> str:
        return f"{self.case.name}: {self.plan or 'plain'}"


def names_in(plan: str) -> set[str]:
    """ "auto,group-offload.level=leaf" -> {"auto", "group-offload"}."""
    return {word.partition("=")[0].partition(".")[0] for word in plan.split(",") if word}


def entries(registry: Registry = OPTIMIZERS) -> tuple[Entry, ...]:
    """Those of the table, then one for each optimizer that no entry measures alone."""
    alone = {name for entry in ENTRIES if len(names := names_in(entry.plan)) == 1 for name in names}
    others = [name for name in registry if name not in alone and name not in LEFT_OUT]
    ranks = [OTHERS_FRESH if registry[name].stage in FRESH else OTHERS_SHARED for name in others]
    return (*ENTRIES, *(Entry(name, rank) for name, rank in zip(others, ranks, strict=True)))


def rows(models: Iterable[str], only: Iterable[str] = (), registry: Registry = OPTIMIZERS) -> list[Row]:
    """In the order in which they are measured. only: plans, or names of optimizers in them; plain always stays.

    Raises UnknownName for a model or a plan that no row has.
    """
    models, only = tuple(models), tuple(only)
    known = {case.model for case in CASES}
    for model in models:
        if model not in known:
            raise UnknownName("model", model, known)
    made = [
        _row(case, entry, registry)
        for case in CASES
        for entry in entries(registry)
        if case.model in models and entry.kind in case.kinds and (not entry.models or case.model in entry.models)
    ]
    unique: dict[str, Row] = {}
    for row in made:
        unique.setdefault(row.key, row)  # firstlight is of two kinds, and both have an "auto"
    chosen = {row.key for word in only for row in _matching(word, list(unique.values()))}
    wanted = [row for row in unique.values() if not only or not row.plan or row.key in chosen]
    return sorted(wanted, key=lambda row: (row.rank, row.fresh, models.index(row.case.model)))


def _row(case: Case, entry: Entry, registry: Registry) -> Row:
    names = names_in(entry.plan)
    fresh = "auto" in names or any(registry[name].stage in FRESH for name in names)
    return Row(case, entry.plan, entry.rank, fresh, min(case.steps, entry.steps) or case.steps)


def _matching(word: str, known: list[Row]) -> list[Row]:
    """Rows with this plan; where there is none, those in whose plan the name stands."""
    exact = [row for row in known if row.plan == word]
    if found := exact or [row for row in known if word in names_in(row.plan)]:
        return found
    raise UnknownName("plan", word, {row.plan for row in known if row.plan})


def processes(wanted: list[Row]) -> list[list[Row]]:
    """Rows that share a process together, at the place of the first of them."""
    groups: dict[object, list[Row]] = {}
    for row in wanted:
        groups.setdefault(row.key if row.fresh else (row.case, row.rank), []).append(row)
    return list(groups.values())
