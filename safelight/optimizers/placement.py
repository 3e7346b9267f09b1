"""What lies where: which weights are on the device when, and where they wait until then.

Weights wait in the CPU's memory or in a file; the device holds copies for as long as they are used. `copies` and the
objects of weights.py are the seams: on a CPU they do all the same, with the CPU as the device.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safelight.errors import EnvironmentProblem, UsageError
from safelight.optimizers import transfer
from safelight.optimizers import weights as memory
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.target import Target, models
from safelight.optimizers.weights import InFile, Weights, on_cpu

SLOT = "placement"


def needs_card(target: Target) -> str | None:
    return "it needs a card: everything lies in this memory already" if target.device.kind == "cpu" else None


def mib(nbytes: float) -> str:
    return f"{nbytes / 2**20:.1f} MiB"


# -- hooks -------------------------------------------------------------------------------------------------------------


@contextmanager
def before(modules: Iterable[Any], act: Callable[..., None]) -> Iterator[None]:
    """Calls `act(module, inputs)` before each forward of the modules."""
    hooks = [module.register_forward_pre_hook(act) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def after(modules: Iterable[Any], act: Callable[..., None]) -> Iterator[None]:
    """Calls `act(module, inputs, output)` after each forward, also one that raised."""
    hooks = [module.register_forward_hook(act, always_call=True) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def entrances(model: Any) -> list[Any]:
    """The model and its children: a VAE's decode, and some text encoders, are entered past the model's own forward."""
    return [model, *model.children()]


@contextmanager
def executes_on(pipe: Any, device: str, entered: Callable[[str], None] = lambda name: None) -> Iterator[None]:
    """The pipeline makes its latents and masks on the device, although no weight may lie there when it asks.

    diffusers asks accelerate's hook (`_hf_hook`) of each model, and calls it when a VAE encodes or decodes.
    """
    import torch
    from accelerate.hooks import ModelHook

    class Here(ModelHook):
        def __init__(self, name: str) -> None:
            self.name, self.execution_device = name, torch.device(device)

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            entered(self.name)
            return args, kwargs

    with ExitStack() as stack:
        for name, model in models(pipe).items():
            stack.enter_context(swapped(model, _hf_hook=Here(name)))
        yield


# -- whole models ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Turns:
    """Whole models on the device one after the other; text encoders, which are called in turn, together.

    members: by name, whatever has `lend`, `give_back` and `lent_bytes` of Weights. peak_bytes, right, wrong: as seen at
    the calls of the latest run: models that lay on the device alone, and others.
    """

    members: dict[str, Any]
    device: str
    moves: int = 0
    peak_bytes: int = 0
    right: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    _present: str = ""
    _looked: str = ""

    def bring(self, name: str) -> None:
        if self._present == name:
            return
        for other, weights in self.members.items():
            if other != name and not _together(other, name):
                weights.give_back()
        if not self.members[name].lent:
            self.members[name].lend(memory.copies(self.device))
            self.moves += 1
        self._present = name

    def look(self, name: str) -> None:
        """Sees what lies where at the first call of a turn: it asks every tensor, which takes milliseconds."""
        if self._looked == name:
            return
        self._looked = name
        held = {other: weights.lent_bytes(self.device) for other, weights in self.members.items()}
        strangers = [other for other, nbytes in held.items() if nbytes and not _together(other, name)]
        (self.right if held[name] and not strangers else self.wrong)[name] += 1
        self.peak_bytes = max(self.peak_bytes, sum(held.values()))

    def begin(self, _pipe: Any) -> None:
        self.moves = self.peak_bytes = 0
        self._looked = ""
        self.right.clear()
        self.wrong.clear()

    def evidence(self) -> str:
        total = sum(weights.bytes for weights in self.members.values())
        if self.wrong or len(self.right) < 2 or self.peak_bytes >= total:
            return ""
        names = ", ".join(self.right)
        moved = f"{self.moves} moves, at most {mib(self.peak_bytes)} of {mib(total)} at once"
        return f"{names} were on {self.device} in their turn alone: {moved}"

    def close(self) -> None:
        for weights in self.members.values():
            weights.give_back()
        self._present = ""


def _together(one: str, other: str) -> bool:
    return one == other or (one.startswith("text_encoder") and other.startswith("text_encoder"))


@contextmanager
def taking_turns(pipe: Any, turns: Turns) -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(turns.close)
        for name, model in models(pipe).items():
            stack.enter_context(before(entrances(model), lambda *_, name=name: turns.bring(name)))
            stack.enter_context(before([_first_called(name, model)], lambda *_, name=name: turns.look(name)))
        stack.enter_context(executes_on(pipe, turns.device, turns.bring))
        yield


def _first_called(name: str, model: Any) -> Any:
    return model.decoder if name == "vae" and hasattr(model, "decoder") else model


@optimizer(
    stage=Stage.PLACEMENT,
    slot=SLOT,
    fidelity=Fidelity.EXACT,
    source="https://huggingface.co/docs/diffusers/optimization/memory#model-offloading",
    fits=needs_card,
    predict=lambda cost, target: transfer.in_turns(cost),
)
def model_offload(pipe: Any, target: Target) -> Iterator[Proof]:
    """Keep the models in the CPU's memory; each comes to the card whole when its turn comes."""
    members = {name: Weights.of([model]) for name, model in models(pipe).items()}
    turns = Turns(members, target.device.torch_name)
    with on_cpu(pipe), taking_turns(pipe, turns):
        yield Proof(turns.evidence, begin=turns.begin)


# -- layer by layer ----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Layers:
    """Each layer's own weights on the device for as long as its forward runs."""

    units: dict[Any, Weights]
    device: str
    calls: int = 0
    moved: int = 0
    now_bytes: int = 0
    peak_bytes: int = 0

    @classmethod
    def of(cls, models: Iterable[Any], device: str) -> "Layers":
        import torch

        # reads the weights of its children without calling them
        whole = (torch.nn.MultiheadAttention,)
        units: dict[Any, Weights] = {}
        for model in models:
            inside = {child for m in model.modules() if isinstance(m, whole) for child in m.modules() if child is not m}
            for module in model.modules():
                weights = Weights.of([module], own=not isinstance(module, whole))
                if weights.slots and module not in inside:
                    units[module] = weights
        return cls(units, device)

    def bring(self, module: Any, _inputs: Any) -> None:
        self.units[module].lend(memory.copies(self.device))

    def look(self, module: Any, _inputs: Any) -> None:
        held = self.units[module].lent_bytes(self.device)
        self.calls += 1
        self.moved += bool(held)
        self.now_bytes += held
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)

    def send_away(self, module: Any, _inputs: Any, _output: Any) -> None:
        held = self.units[module].lent_bytes(self.device)
        self.units[module].give_back()
        self.now_bytes -= held - self.units[module].lent_bytes(self.device)

    def begin(self, _pipe: Any) -> None:
        self.calls = self.moved = self.now_bytes = self.peak_bytes = 0

    def evidence(self) -> str:
        total = sum(weights.bytes for weights in self.units.values())
        if not self.moved or self.moved < self.calls or self.now_bytes or self.peak_bytes >= total:
            return ""
        return (
            f"{self.moved} layers came to {self.device} for their own call alone, "
            f"at most {mib(self.peak_bytes)} of {mib(total)} at once"
        )

    def close(self) -> None:
        for weights in self.units.values():
            weights.give_back()


@contextmanager
def layer_by_layer(pipe: Any, layers: Layers) -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(layers.close)
        for act in (layers.bring, layers.look):
            stack.enter_context(before(layers.units, act))
        stack.enter_context(after(layers.units, layers.send_away))
        stack.enter_context(executes_on(pipe, layers.device))
        yield


@optimizer(
    stage=Stage.PLACEMENT,
    slot=SLOT,
    fidelity=Fidelity.EXACT,
    source="https://huggingface.co/blog/simple_sdxl_optimizations#sequential-cpu-offloading",
    fits=needs_card,
    predict=lambda cost, target: transfer.layer_by_layer(cost),
)
def sequential_offload(pipe: Any, target: Target) -> Iterator[Proof]:
    """Bring each layer to the card for its own call: the least memory there is, and by far the slowest."""
    layers = Layers.of(models(pipe).values(), target.device.torch_name)
    with on_cpu(pipe), layer_by_layer(pipe, layers):
        yield Proof(layers.evidence, begin=layers.begin)


# -- files -------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class FromFiles:
    """files: by model. right, wrong: calls that found all of the model's weights in its file alone, and others."""

    files: dict[str, InFile]
    right: int = 0
    wrong: int = 0

    def look(self, name: str) -> None:
        stored = self.files[name]
        if stored.away_bytes() == stored.weights.bytes > 0:
            self.right += 1
        else:
            self.wrong += 1

    def begin(self, _pipe: Any) -> None:
        self.right = self.wrong = 0

    def evidence(self) -> str:
        if not self.right or self.wrong:
            return ""
        total = sum(stored.weights.bytes for stored in self.files.values())
        return f"{mib(total)} of weights lay in {len(self.files)} files at all {self.right} calls of a model"


def _disk_fits(target: Target, folder: str) -> str | None:
    if folder and not Path(folder).expanduser().is_dir():
        raise UsageError(f"disk-offload={folder}: there is no such folder")
    return None


# Not diffusers' group offload to disk: it takes files of the same name for its own (another model's weights, without a
# word), mixes two text encoders of one class, writes tied weights after they are gone, and reads onto card 0 always.
@optimizer(
    stage=Stage.PLACEMENT,
    slot=SLOT,
    fidelity=Fidelity.EXACT,
    source="https://huggingface.co/docs/diffusers/optimization/memory#offloading-to-disk",
    fits=_disk_fits,
    predict=lambda cost, target, folder: transfer.from_disk(cost),
)
def disk_offload(pipe: Any, target: Target, folder: str = "") -> Iterator[Proof]:
    """Keep the weights in files of their own and out of memory; each layer is read when it is called."""
    with ExitStack() as stack:
        stack.enter_context(on_cpu(pipe))
        files = {name: stack.enter_context(_filed(model, folder)) for name, model in models(pipe).items()}
        watch = FromFiles(files)
        for name, model in models(pipe).items():
            stack.enter_context(before([_first_called(name, model)], lambda *_, name=name: watch.look(name)))
        if target.device.kind != "cpu":  # a CPU computes with what is mapped
            layers = Layers.of(models(pipe).values(), target.device.torch_name)
            stack.enter_context(layer_by_layer(pipe, layers))
        yield Proof(watch.evidence, begin=watch.begin)


@contextmanager
def _filed(model: Any, folder: str) -> Iterator[InFile]:
    """The model's weights in a file of a new directory, for the time of a block."""
    inside = str(Path(folder).expanduser()) if folder else None
    with tempfile.TemporaryDirectory(prefix="safelight-", dir=inside) as own:
        stored = InFile(Weights.of([model]), Path(own) / "weights")
        try:
            try:
                stored.leave()
            except OSError as error:
                raise EnvironmentProblem(f"the weights cannot be written to {own}: {error}") from error
            yield stored
        finally:
            stored.close()
