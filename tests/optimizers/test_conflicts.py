"""Pairs that exclude each other are refused with the reason, its source, and the nearest set that works."""

import pytest
import tiny

from safelight.errors import Conflict
from safelight.optimizers import OPTIMIZERS, conflicts
from safelight.optimizers.registry import Fidelity, Registry, Stage
from safelight.planner import plan, wish
from safelight.simulate.cost import Cost

CASES = [tuple(sorted(names)) for names in conflicts.PAIRS]


@pytest.fixture(scope="module")
def registry():
    """Optimizers of the table's names, that fit everywhere."""
    made = Registry()

    def register(name, slot=None, apply=None):
        def plain(pipe, target):
            yield

        apply = apply or plain
        apply.__name__ = name.replace("-", "_")
        made.add(
            stage=Stage.CACHE,
            slot=slot,
            fidelity=Fidelity.EXACT,
            source="",
            fits=lambda target, **options: None,
            predict=halved,
        )(apply)

    def halved(cost: Cost, target, **options):
        return cost.scaled(denoise=0.5)

    def compiling(pipe, target, mode: str = "default", fullgraph: bool = False, parts: str = "denoiser"):
        yield

    def compiling_blocks(pipe, target, mode: str = "default"):
        yield

    register("compile", "compile", compiling)
    register("compile-blocks", "compile", compiling_blocks)
    register("compile-vae", "compile-vae", compiling_blocks)
    for name in sorted(
        {name for names in conflicts.PAIRS for name in names} - {"compile", "compile-blocks", "compile-vae"}
    ):
        register(name, "placement" if name in conflicts.MOVING else None)
    register("dtype")
    return made


@pytest.mark.parametrize("pair", CASES, ids="+".join)
def test_every_pair_is_of_optimizers_that_are_there_with_the_options_it_looks_at(pair):
    found = conflicts.PAIRS[frozenset(pair)]
    options = {name: OPTIMIZERS[name].defaults() for name in pair}
    assert found.when(options) in (True, False)
    assert all(OPTIMIZERS[name].option(option) for name, changed in found.instead.items() for option in changed)
    assert found.source.startswith("https://")
    slots = {OPTIMIZERS[name].slot for name in pair}
    assert len(slots) == 2 or slots == {None}, "two in one slot need no pair"


@pytest.fixture(scope="module")
def forecast():
    return tiny.forecast(tiny.sd(), tiny.cpu(), width=32, height=32)


def asked(written, registry, forecast):
    return plan(forecast.target, wish(written, registry=registry), registry, forecast)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (
            "layerwise-casting,dtype,compile",
            "layerwise-casting and compile exclude each other: every cast layer breaks",
        ),
        ("layerwise-casting,dtype,compile", "; keep: layerwise-casting,dtype"),
        ("compile,dtype,layerwise-casting", "; keep: compile,dtype"),
        ("auto,layerwise-casting,compile", "; keep: auto,layerwise-casting"),
        ("compile=reduce-overhead,model-offload", "compile and model-offload exclude each other: CUDA graphs replay"),
        ("compile=reduce-overhead,model-offload", "while compile.mode is reduce-overhead or max-autotune (https://"),
        ("compile=reduce-overhead,model-offload", "; keep: compile=default,model-offload"),
        ("dtype,compile-blocks=max-autotune,disk-offload", "; keep: dtype,compile-blocks=default,disk-offload"),
        ("compile.fullgraph=true,first-block-cache", "; keep: compile.fullgraph=False,first-block-cache"),
        ("compile,compile-blocks,dtype", "there is one slot compile; keep: compile,dtype"),
        ("compile,layerwise-casting,compile-blocks,mag-cache", "; keep: compile,mag-cache"),
        ("model-offload,drop-text-encoders,sequential-offload", "; keep: model-offload"),
    ],
)
def test_a_conflict_names_both_the_reason_and_the_nearest_set_that_works(written, says, registry, forecast):
    with pytest.raises(Conflict) as raised:
        asked(written, registry, forecast)
    assert says in str(raised.value)
    kept = str(raised.value).partition("; keep: ")[2]
    assert asked(kept, registry, forecast).choices


@pytest.mark.parametrize(
    "written",
    ["compile,model-offload", "compile=max-autotune-no-cudagraphs,group-offload", "compile,first-block-cache"],
)
def test_other_options_of_the_same_two_combine(written, registry, forecast):
    assert len(asked(written, registry, forecast).choices) == 2


@pytest.mark.parametrize("pair", CASES, ids="+".join)
def test_auto_never_takes_what_clashes_with_what_was_asked_for(pair, registry, forecast):
    options = {name: dict(registry[name].defaults()) for name in pair}
    only = conflicts.PAIRS[frozenset(pair)]
    for name in pair:  # the options for which the pair clashes
        options[name] |= {"mode": "reduce-overhead"} if "mode" in options[name] and only.instead else {}
        options[name] |= {"fullgraph": True} if "fullgraph" in options[name] and only.instead else {}
        options[name] |= {"parts": "denoiser+vae"} if "parts" in only.instead.get(name, {}) else {}
    first = next((name for name in pair if name.startswith("compile")), pair[0])
    (other,) = set(pair) - {first}
    made = asked({first: options[first], "auto": True}, registry, forecast)
    assert other not in [choice.optimizer.name for choice in made.choices]
    others = [choice.optimizer.name for choice in made.choices]
    assert made.left[other].startswith(tuple(f"not with {name}: " for name in others))


def test_two_that_share_nothing_do_not_clash(registry):
    options = {"dtype": {}, "channels-last": {}}
    assert list(conflicts.clashes(options, registry)) == []
    assert conflicts.nearest_set(options, registry) == options
