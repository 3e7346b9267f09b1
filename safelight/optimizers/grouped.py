"""diffusers' group offload: leaves or blocks come to the card one after the other, the next one ahead of its turn."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import chain
from typing import Any

from safelight.errors import UnknownName, UsageError
from safelight.optimizers import transfer
from safelight.optimizers.placement import SLOT, needs_card
from safelight.optimizers.precision import kept_tensors
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.target import Target, models
from safelight.optimizers.weights import on_cpu

LEVELS = {"leaf": "leaf_level", "block": "block_level"}
HAVE_STREAMS = ("cuda", "xpu")
HOOKS = ("lazy_prefetch_group_offloading", "layer_execution_tracker", "group_offloading")


def _fits(target: Target, level: str, blocks: int, stream: bool, record_stream: bool, low_cpu_mem: bool) -> str | None:
    if level not in LEVELS:
        raise UnknownName("group-offload level", level, LEVELS)
    if blocks < 1:
        raise UsageError(f"group-offload.blocks is {blocks}: give 1 or more")
    if blocks > 1 and (level == "leaf" or stream):
        raise UsageError(f"group-offload.blocks={blocks} is for level=block with stream=false: elsewhere it is 1")
    if not stream and (record_stream or low_cpu_mem):
        raise UsageError("group-offload: record_stream and low_cpu_mem are for stream=true")
    refused = [p.cls.__name__ for p in target.parts.values() if not getattr(p.cls, "_supports_group_offloading", True)]
    if refused:
        return f"diffusers says that {' and '.join(refused)} cannot be offloaded in groups"
    return needs_card(target)


@optimizer(
    stage=Stage.PLACEMENT,
    slot=SLOT,
    fidelity=Fidelity.EXACT,
    source="https://huggingface.co/docs/diffusers/optimization/memory#group-offloading",
    fits=_fits,
    predict=lambda cost, target, level, blocks, stream, record_stream, low_cpu_mem: transfer.in_groups(
        cost, blocks=blocks if level == "block" else 0, streams=stream and target.device.kind in HAVE_STREAMS
    ),
)
def group_offload(
    pipe: Any,
    target: Target,
    level: str = "leaf",
    blocks: int = 1,
    stream: bool = True,
    record_stream: bool = False,
    low_cpu_mem: bool = False,
) -> Iterator[Proof]:
    """Bring groups of layers (level=leaf or block) to the card as they are called; stream loads the next ahead."""
    has_streams = target.device.kind in HAVE_STREAMS
    settings = {
        "use_stream": stream and has_streams,
        "record_stream": record_stream and has_streams,
        "low_cpu_mem_usage": low_cpu_mem and has_streams,
    }
    moves: Counter[str] = Counter()
    with ExitStack() as stack:
        stack.enter_context(on_cpu(pipe))
        # the tensors themselves are kept for someone who keeps the pipeline; else they would take host memory twice
        stack.enter_context(nullcontext() if target.disposable else kept_tensors(pipe))
        for name, model in models(pipe).items():
            # with a stream the weights come from copies made now: a VAE that is run in float32 for a picture (SDXL's in
            # float16) would get its old ones
            own = {} if name == "vae" else settings
            stack.enter_context(in_groups(model, target.device.torch_name, level_of(model, level), blocks, own))
            stack.enter_context(counted(model, moves, target.device.kind))
        yield Proof(lambda: _moved(moves, target), begin=lambda pipe: moves.clear())


def _moved(moves: Counter[str], target: Target) -> str:
    if not moves["in"] or not moves["out"] or moves["astray"]:
        return ""
    return f"{moves['in']} groups came to {target.device.torch_name}, {moves['out']} left again"


def level_of(model: Any, level: str) -> str:
    """Level "block" groups what a model's own forward calls: a VAE's decode only if its class names its blocks."""
    enters_elsewhere = hasattr(model, "decode") and not getattr(model, "_group_offload_block_modules", None)
    return LEVELS["leaf" if enters_elsewhere else level]


@contextmanager
def in_groups(model: Any, device: str, level: str, blocks: int, settings: dict[str, Any]) -> Iterator[None]:
    """Applied for the time of a block, and nothing left behind.

    pipe.remove_all_hooks() knows nothing of these; the hooks' own removal leaves `forward` and a registry on each
    module, and whatever was loaded ahead on the device.
    """
    import torch
    from diffusers.hooks import HookRegistry, apply_group_offloading

    before = {module: (vars(module).get("forward"), "_diffusers_hook" in vars(module)) for module in model.modules()}
    try:
        apply_group_offloading(
            model,
            onload_device=torch.device(device),
            offload_type=level,
            num_blocks_per_group=blocks,
            **settings,
        )
        yield
    finally:
        registry = HookRegistry.check_if_exists_or_initialize(model)
        for name in HOOKS:
            registry.remove_hook(name, recurse=True)
        registry.invalidate_child_registries_cache()
        for module, (forward, registered) in before.items():
            _clean(module, forward, registered)
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = tensor.data.to("cpu")


def _clean(module: Any, forward: Any, registered: bool) -> None:
    if forward is None:
        vars(module).pop("forward", None)
    if not registered:
        vars(module).pop("_diffusers_hook", None)


@contextmanager
def counted(model: Any, moves: Counter[str], kind: str) -> Iterator[None]:
    """Counts groups as they come ("in") and leave ("out"), and those that then lie elsewhere ("astray")."""
    hooks = [vars(module).get("_diffusers_hook") for module in model.modules()]
    groups = {hook.group for registry in hooks if registry and (hook := registry.get_hook(HOOKS[-1]))}

    def counting(group: Any, act: Any, word: str, wanted: str) -> Any:
        def move() -> None:
            act()
            tensor = _first_tensor(group)
            if tensor is not None:
                moves[word if tensor.device.type == wanted else "astray"] += 1

        return move

    with ExitStack() as stack:
        for group in groups:
            came = counting(group, group.onload_, "in", kind)
            left = counting(group, group.offload_, "out", "cpu")
            stack.enter_context(swapped(group, onload_=came, offload_=left))
        yield


def _first_tensor(group: Any) -> Any:
    inside = (tensor for module in group.modules for tensor in (*module.parameters(), *module.buffers()))
    return next(chain(group.parameters, group.buffers, inside), None)
