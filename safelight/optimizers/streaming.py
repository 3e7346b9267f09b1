"""As much of the denoiser stays on the device as a budget holds; the other blocks are copied in ahead of their turn.

division.py chooses the blocks, a `Mover` copies them (on a stream of its own, or plainly where there is none), a
`Stream` says when. Text encoders and VAE come whole in their turn, and the denoiser leaves meanwhile.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from safelight.errors import DoesNotApply, UsageError
from safelight.optimizers import transfer
from safelight.optimizers import weights as memory
from safelight.optimizers.division import choices, split
from safelight.optimizers.placement import SLOT, Turns, after, before, mib, needs_card, taking_turns
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer
from safelight.optimizers.target import Target, denoiser, models
from safelight.optimizers.weights import Weights, on_cpu
from safelight.probe.device import gib
from safelight.simulate.cost import Cost
from safelight.simulate.cost import Weights as Sizes

HAVE_STREAMS = ("cuda", "xpu")
LONG = 0.05  # a list with this share of the denoiser's bytes is one of its stacks of blocks; others are odds and ends
# Stable Diffusion 1.5 at 1024 px, 16 bit: 1.5 GiB of activations (simulate/cost.py); never less than half a GiB
RESERVE_BYTES_PER_PIXEL = 1536
LEAST_RESERVE = 2**29


# -- which blocks ------------------------------------------------------------------------------------------------------


def blocks_of(model: Any) -> list[Any]:
    """The denoiser's blocks in the order they run: the members of its long lists, a UNet's middle among them."""
    from torch import nn

    total = Weights.of([model]).bytes
    found = [(name, list(child)) for name, child in model.named_children() if isinstance(child, nn.ModuleList)]
    found = [(name, members) for name, members in found if Weights.of(members).bytes >= LONG * total]
    if getattr(model, "mid_block", None) is not None:
        found.insert(1, ("mid_block", [model.mid_block]))  # registered last, run between down_blocks and up_blocks
    return [block for _, members in found for block in members]


# -- how they are copied -----------------------------------------------------------------------------------------------


class Mover(Protocol):
    def copy_in(self, block: Weights) -> None:
        """Starts to copy the block to the device."""

    def wait(self, block: Weights) -> None:
        """What is computed from now on finds the whole block on the device."""

    def release(self, block: Weights) -> None:
        """Gives the block's memory on the device back, its copy finished or not."""


@dataclass
class PlainMover:
    """Where a device has no streams: a copy is done when it has begun."""

    device: str

    def copy_in(self, block: Weights) -> None:
        block.lend(memory.copies(self.device))

    def wait(self, block: Weights) -> None:
        pass

    def release(self, block: Weights) -> None:
        block.give_back()


@dataclass(eq=False)
class StreamMover:
    """Copies on a stream of its own, beside the one that computes.

    Memory is taken from the computing stream's pool, so that it is given back to the pool that everything else takes
    from, and no tensor needs record_stream (which would keep it until some later allocation looks). Three waits make
    that safe:
    - a copy waits for what was computed before it was asked for: the memory may still be read by kernels of its last
      owner, that are queued but not done;
    - computing waits for the copy before the block's first kernel is queued;
    - a block that is released unused waits, too: its memory is reused in the computing stream's order, and a copy
      still under way would write into the next owner's.
    backend: torch.cuda or torch.xpu.
    """

    device: str
    backend: Any
    _side: Any = None
    _done: dict[Weights, Any] = field(default_factory=dict)

    def copy_in(self, block: Weights) -> None:
        self._side = self._side or self.backend.Stream(device=self.device)
        ready = self.backend.Event()
        ready.record(self._computing())
        self._side.wait_event(ready)
        block.lend(self._copy)
        done = self.backend.Event()
        done.record(self._side)
        self._done[block] = done

    def _computing(self) -> Any:
        return self.backend.current_stream(self.device)

    def _copy(self, tensor: Any) -> Any:
        import torch

        if type(tensor.data) is not torch.Tensor:  # quantized: a wrapper, which only knows how to move as a whole
            return tensor.to(self.device)
        made = torch.empty_like(tensor, device=self.device)
        with self.backend.stream(self._side):
            made.copy_(tensor, non_blocking=True)
        return made

    def wait(self, block: Weights) -> None:
        if (done := self._done.pop(block, None)) is not None:
            self._computing().wait_event(done)

    def release(self, block: Weights) -> None:
        self.wait(block)
        block.give_back()


@contextmanager
def pinned(blocks: Sequence[Weights], *, keep: bool) -> Iterator[None]:
    """Puts the blocks' tensors into pinned memory: only from there a copy runs beside the computing.

    keep: hold on to the memory they had, to put it back; without, host memory holds them once.
    """
    import torch

    tensors = {id(t): t for block in blocks for t in block.now() if type(t.data) is torch.Tensor}.values()
    had = [(tensor, tensor.data) for tensor in tensors] if keep else []
    for tensor in tensors:
        tensor.data = tensor.data.pin_memory()
    try:
        yield
    finally:
        for tensor, data in had:
            tensor.data = data


# -- when --------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Stream:
    """The streamed blocks, in the order they run; at most 1 + ahead of them are on the device."""

    blocks: list[Weights]
    mover: Mover
    ahead: int
    copied: int = 0
    _there: list[int] = field(default_factory=list)

    def enter(self, index: int) -> None:
        """A block begins: it is awaited, and the next ones are started, behind the last one the first again."""
        wanted = [(index + k) % len(self.blocks) for k in range(min(self.ahead + 1, len(self.blocks)))]
        for stray in [i for i in self._there if i not in wanted]:  # blocks that ran in another order, or not at all
            self.leave(stray)
        self._start(index)
        self.mover.wait(self.blocks[index])
        for following in wanted[1:]:
            self._start(following)

    def _start(self, index: int) -> None:
        if index not in self._there:
            self.mover.copy_in(self.blocks[index])
            self._there.append(index)
            self.copied += 1

    def leave(self, index: int) -> None:
        if index in self._there:
            self.mover.release(self.blocks[index])
            self._there.remove(index)

    def close(self) -> None:
        for index in list(self._there):
            self.leave(index)

    def lent_bytes(self, device: str) -> int:
        return sum(self.blocks[index].lent_bytes(device) for index in self._there)


@dataclass(eq=False)
class Divided:
    """The denoiser as one of the models that take turns: what stays comes as a whole, the rest flows through."""

    resident: Weights
    stream: Stream
    resident_bytes: int = 0  # as seen when it came

    @property
    def lent(self) -> bool:
        return self.resident.lent

    @property
    def bytes(self) -> int:
        return self.resident.bytes + sum(block.bytes for block in self.stream.blocks)

    def lend(self, copy: memory.Copy) -> None:
        self.resident.lend(copy)

    def give_back(self) -> None:
        self.stream.close()  # what was loaded ahead for a step that does not come
        self.resident.give_back()

    def lent_bytes(self, device: str) -> int:
        return self.resident.lent_bytes(device) + self.stream.lent_bytes(device)


@dataclass(eq=False)
class Watch:
    """What the streamed blocks found as they were called, in the latest run. calls, found: all, and those in place."""

    divided: Divided
    resident_blocks: int
    budget_bytes: int
    device: str
    calls: int = 0
    found: int = 0
    peak_bytes: int = 0

    def look(self, index: int) -> None:
        if not self.calls:
            self.divided.resident_bytes = self.divided.resident.lent_bytes(self.device)
        self.calls += 1
        self.found += bool(self.divided.stream.blocks[index].lent_bytes(self.device))
        now = self.divided.resident_bytes + self.divided.stream.lent_bytes(self.device)
        self.peak_bytes = max(self.peak_bytes, now)

    def begin(self, _pipe: Any) -> None:
        self.calls = self.found = self.peak_bytes = self.divided.stream.copied = 0

    def evidence(self) -> str:
        if not self.found or self.found < self.calls or self.peak_bytes > self.budget_bytes:
            return ""
        streamed = len(self.divided.stream.blocks)
        return (
            f"{self.resident_blocks} of {self.resident_blocks + streamed} blocks stayed, {streamed} were copied in "
            f"{self.divided.stream.copied} times; at most {mib(self.peak_bytes)} of {mib(self.budget_bytes)}"
        )


def _denoiser(cost: Cost) -> str:
    return "transformer" if "transformer" in cost.parts else "unet"


def _predict(cost: Cost, target: Target, budget_gib: float, ahead: int) -> Cost:
    name = _denoiser(cost)
    return transfer.streamed(cost, name, _divided(cost.parts[name], budget_bytes(target, budget_gib, 0), ahead))


def _divided(denoiser: Sizes, budget: int, ahead: int) -> transfer.Divided | None:
    """As `divide` and `split` would; None where they refuse, as all of it fits or not even the least."""
    if denoiser.total <= budget or len(denoiser.blocks) < 2:
        return None
    found = choices(denoiser.blocks, denoiser.total - sum(denoiser.blocks), ahead)
    fitting = ((need, streamed) for need, streamed in found if need <= budget)
    if (first := next(fitting, None)) is None:
        return None
    return transfer.Divided(first[0], sum(denoiser.blocks[i] for i in first[1]))


SHARES = (0.25, 0.5, 0.75)  # of the denoiser


def _variants(cost: Cost, target: Target) -> list[dict[str, float]]:
    """Budgets of SHARES of the denoiser, or the least that does: as it is, and in 16 bits where those may follow."""
    denoiser = cost.parts[_denoiser(cost)]
    halves = target.dtype == "float32" and {"bfloat16", "float16"} & set(target.device.fast_dtypes)
    sizes = [(denoiser.scaled(0.5), SHARES), (denoiser, SHARES[:2])] if halves else [(denoiser, SHARES)]
    found = {budget for size, shares in sizes for budget in _budgets(size, shares)}
    return [{"budget_gib": budget} for budget in sorted(found)]


def _budgets(denoiser: Sizes, shares: Sequence[float]) -> Iterator[float]:
    """GiB, rounded up."""
    least = min(choices(denoiser.blocks, denoiser.total - sum(denoiser.blocks), ahead=1))[0]
    for share in shares:
        budget = math.ceil(max(least, share * denoiser.total) / 2**30 * 100) / 100
        if budget * 2**30 < denoiser.total:
            yield budget


def _fits(target: Target, budget_gib: float, ahead: int) -> str | None:
    if budget_gib < 0:
        raise UsageError(f"streamed-blocks={budget_gib}: give GiB for the denoiser's weights, or 0 for what is free")
    if ahead < 1:
        raise UsageError(f"streamed-blocks.ahead is {ahead}: give how many blocks to load ahead, 1 or more")
    return needs_card(target)


@optimizer(
    stage=Stage.PLACEMENT,
    slot=SLOT,
    fidelity=Fidelity.EXACT,
    source="https://docs.pytorch.org/tutorials/intermediate/pinmem_nonblock.html",
    fits=_fits,
    predict=_predict,
    variants=_variants,
)
def streamed_blocks(pipe: Any, target: Target, budget_gib: float = 0.0, ahead: int = 1) -> Iterator[Proof]:
    """Keep as many of the denoiser's blocks on the card as budget_gib holds, and load the others ahead of time."""
    with ExitStack() as stack:
        freed = stack.enter_context(on_cpu(pipe))
        budget = budget_bytes(target, budget_gib, freed)
        divided, streamed, kept = divide(pipe, target, budget, ahead)
        if target.device.kind in HAVE_STREAMS:
            stack.enter_context(pinned(divided.stream.blocks, keep=not target.disposable))
        members = {name: Weights.of([model]) for name, model in models(pipe).items() if model is not denoiser(pipe)}
        name = next(name for name, model in models(pipe).items() if model is denoiser(pipe))
        turns = Turns({**members, name: divided}, target.device.torch_name)
        watch = Watch(divided, kept, budget, target.device.torch_name)
        stack.enter_context(taking_turns(pipe, turns))
        for i, block in enumerate(streamed):
            stack.enter_context(before([block], lambda *_, i=i: divided.stream.enter(i)))
            stack.enter_context(before([block], lambda *_, i=i: watch.look(i)))
            stack.enter_context(after([block], lambda *_, i=i: divided.stream.leave(i)))
        yield Proof(watch.evidence, begin=watch.begin)


def budget_bytes(target: Target, budget_gib: float, freed: int) -> int:
    """For the denoiser's weights. freed: bytes that became free on the device since it was looked at."""
    if budget_gib:
        return int(budget_gib * 2**30)
    pixels = target.width * target.height * target.batch_size
    return target.device.free_bytes + freed - max(LEAST_RESERVE, RESERVE_BYTES_PER_PIXEL * pixels)


def divide(pipe: Any, target: Target, budget: int, ahead: int) -> tuple[Divided, list[Any], int]:
    """(the denoiser divided, its streamed blocks, how many stay). Raises DoesNotApply, OutOfMemory."""
    model = denoiser(pipe)
    blocks = blocks_of(model)
    sizes = [Weights.of([block]) for block in blocks]
    total = Weights.of([model]).bytes
    if len(blocks) < 2:
        raise DoesNotApply(f"streamed-blocks was asked for, but {type(model).__name__} has no blocks to speak of")
    if total <= budget:
        raise DoesNotApply(
            f"streamed-blocks was asked for, but the whole denoiser ({gib(total)}) fits into {gib(budget)}: "
            "model-offload does as well"
        )
    nbytes = [weights.bytes for weights in sizes]
    resident = split(nbytes, total - sum(nbytes), budget, ahead)
    streamed = [i for i in range(len(blocks)) if i not in resident]
    flowing = {id(table) for i in streamed for table, _ in sizes[i].slots}
    whole = Weights.of([model])
    staying = Weights(tuple(slot for slot in whole.slots if id(slot[0]) not in flowing))
    staying.home = staying.now()
    return (
        Divided(staying, Stream([sizes[i] for i in streamed], mover(target), ahead)),
        [blocks[i] for i in streamed],
        len(resident),
    )


def mover(target: Target) -> Mover:
    import torch

    kind, device = target.device.kind, target.device.torch_name
    return StreamMover(device, getattr(torch, kind)) if kind in HAVE_STREAMS else PlainMover(device)
