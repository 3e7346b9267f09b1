"""What a module computes, operator by operator, as a small graph: recorded once on tensors that have a shape alone.

Comes in: a module and the shapes of its inputs. Goes out: a Graph of aten's operators, whatever Python the module's
forward is made of; so nothing of diffusers' code is copied here, and a new architecture needs a line in rows.py for
each operator that is new, if any.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from safelight.errors import SafelightError

INPUT, WEIGHT = "input", "weight"
IMAGE_DIMS = 4  # (batch, channels, height, width), and so of a convolution's weight
PASSED_ON = ("detach", "alias", "lift_fresh")  # what makes no value of its own


class CannotWalk(SafelightError):
    """The module does something that cannot be recorded, or cannot be done row by row."""


@dataclass(eq=False, slots=True)
class Node:
    """One tensor. op: the operator's name as aten has it, INPUT or WEIGHT. args, kwargs: as it is called, with nodes in
    the place of tensors. which: of its results, None where it has one. name: a weight's. shape, dtype: of the tensor.
    """

    op: str
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: Any
    which: int | None = None
    name: str = ""

    @property
    def inputs(self) -> list["Node"]:
        """In the order of its arguments; the same node may be there twice."""
        return list(nodes((self.args, tuple(self.kwargs.values()))))

    @property
    def data(self) -> list["Node"]:
        """Inputs that are no weights."""
        return [node for node in self.inputs if node.op != WEIGHT]

    def __repr__(self) -> str:
        return f"<{self.op} {'x'.join(map(str, self.shape))}>"


@dataclass(frozen=True, slots=True)
class Made:
    """A weight that is computed of others: stands in Node.function of a WEIGHT node."""

    of: tuple[Node, ...]
    make: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Graph:
    """nodes: in the order of computing, weights left out. inputs, output: of them."""

    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    output: Node

    def users(self) -> dict[Node, list[Node]]:
        """Of every node that is needed for the output."""
        found: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for given in set(node.data):
                found[given].append(node)
        return found


def nodes(value: Any) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from nodes(item)


def replaced(value: Any, of: Callable[[Node], Any]) -> Any:
    """Arguments with something else in the place of their nodes."""
    if isinstance(value, Node):
        return of(value)
    if isinstance(value, list | tuple):
        return type(value)(replaced(item, of) for item in value)
    return value


def rewired(node: Node, instead: Mapping[Node, Node]) -> Node:
    """The same operator with other inputs where there are others; the node itself where there are none."""
    if all(instead.get(given, given) is given for given in node.inputs):
        return node

    def swap(given: Node) -> Node:
        return instead.get(given, given)

    kwargs = {name: replaced(value, swap) for name, value in node.kwargs.items()}
    return replace(node, args=replaced(node.args, swap), kwargs=kwargs)


def record(module: Any, *shapes: Any, call: Callable[..., Any] | None = None) -> Graph:
    """shapes: of the inputs, real tensors or fake ones, whose numbers are never looked at. call: what runs the module
    with them, `module(*inputs)` by default.

    Raises CannotWalk for weights that are no plain tensors, writing into a part of a tensor, and several results.
    """
    import torch
    from torch._guards import detect_fake_mode
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import _disable_current_modes

    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in held.items():
        _check_plain(name, tensor)
    mode = detect_fake_mode(list(held.values())) or FakeTensorMode(allow_non_fake_inputs=True)
    with _disable_current_modes(), torch.no_grad():
        fakes = {name: _fake(mode, tensor) for name, tensor in held.items()}
        given = [_fake(mode, tensor) for tensor in shapes]
        recorder = Recorder()
        inputs = tuple(recorder.leaf(INPUT, tensor, str(number)) for number, tensor in enumerate(given))
        for name, tensor in fakes.items():
            recorder.leaf(WEIGHT, tensor, name)
        weights = {f"module.{name}": tensor for name, tensor in fakes.items()}
        with mode, recorder.mode(), recorder.keeping_together():
            made = torch.func.functional_call(_around(module, call), weights, tuple(given))
    return needed(inputs, recorder.result(made))


def _check_plain(name: str, tensor: Any) -> None:
    import torch
    from torch._subclasses.fake_tensor import FakeTensor

    if type(tensor.data) not in (torch.Tensor, FakeTensor):
        raise CannotWalk(f"{name} is stored as {type(tensor.data).__name__}, which cannot be recorded: decode it whole")


def _fake(mode: Any, tensor: Any) -> Any:
    """A fake of its own for each, as weights of one storage must still be told apart."""
    import torch

    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _around(module: Any, call: Callable[..., Any] | None) -> Any:
    """A module around it, so that its weights can be swapped whatever runs it."""
    import torch

    class Around(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Any) -> Any:
            return self.module(*inputs) if call is None else call(*inputs)

    return Around()


@dataclass(eq=False)
class Recorder:
    """made: the node of each tensor, by its id. kept: the tensors, so that no id is used again. storages: how many
    tensors lie in each, as what writes into one of several changes the others."""

    made: dict[int, Node] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)
    storages: dict[int, int] = field(default_factory=dict)
    order: list[Node] = field(default_factory=list)
    heeding: bool = True

    def leaf(self, op: str, tensor: Any, name: str) -> Node:
        return self._note(tensor, Node(op, None, (), {}, tuple(tensor.shape), tensor.dtype, None, name))

    def _note(self, tensor: Any, node: Node) -> Node:
        self.made[id(tensor)] = node
        self.kept.append(tensor)
        key = tensor.untyped_storage()._cdata
        self.storages[key] = self.storages.get(key, 0) + 1
        return node

    def result(self, made: Any) -> Node:
        if isinstance(made, tuple) and len(made) == 1:
            made = made[0]
        if id(made) not in self.made:
            raise CannotWalk(f"the module returns {type(made).__name__}, not one tensor that it has computed")
        return self.made[id(made)]

    def mode(self) -> Any:
        from torch.utils._python_dispatch import TorchDispatchMode

        recorder = self

        class Recording(TorchDispatchMode):
            def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                return recorder.called(function, args, kwargs or {})

        return Recording()

    def keeping_together(self) -> Any:
        """Functions that are one node, and not the operators that they are made of."""
        import torch
        from torch.overrides import TorchFunctionMode

        recorder = self

        class Keeping(TorchFunctionMode):
            def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                kwargs = kwargs or {}
                if function not in (torch.nn.functional.linear, torch.nn.functional.scaled_dot_product_attention):
                    return function(*args, **kwargs)
                recorder.heeding = False
                try:
                    made = function(*args, **kwargs)
                finally:
                    recorder.heeding = True
                given = recorder._given(args), {key: recorder._given(value) for key, value in kwargs.items()}
                recorder._add(made, Node(function.__name__, function, *given, _shape(made), made.dtype))
                return made

        return Keeping()

    def called(self, function: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        import torch

        if not self.heeding:
            return function(*args, **kwargs)
        made = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        if name in PASSED_ON:
            self._note(made, self._node(args[0]))
            return made
        if function._schema.is_mutable:
            return self._written(function, name, args, kwargs, made)
        given = self._given(args), {key: self._given(value) for key, value in kwargs.items()}
        several = isinstance(made, list | tuple)
        for which, tensor in enumerate(made if several else [made]):
            if not isinstance(tensor, torch.Tensor):  # a device, a number: known by now, and the same every time
                continue
            self._add(tensor, Node(name, function, *given, _shape(tensor), tensor.dtype, which if several else None))
        return made

    def _written(self, function: Any, name: str, args: Any, kwargs: Mapping[str, Any], made: Any) -> Any:
        """In place: the tensor is another value from here on. Nobody else may lie in its memory."""
        import torch

        target = args[0]
        aliases = self.storages[target.untyped_storage()._cdata] - sum(kept is target for kept in self.kept)
        packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
        if made is not target or aliases or packet is None:
            raise CannotWalk(f"{name} writes into a part of a tensor")
        given = self._given(args), {key: self._given(value) for key, value in kwargs.items()}
        plain = getattr(packet, function._overloadname)
        self._add(target, Node(name.removesuffix("_"), plain, *given, _shape(target), target.dtype))
        return made

    def _add(self, tensor: Any, node: Node) -> None:
        self.order.append(self._note(tensor, node))

    def _node(self, tensor: Any) -> Node:
        from torch._subclasses.fake_tensor import FakeTensor

        if id(tensor) not in self.made:
            if isinstance(tensor, FakeTensor):
                raise CannotWalk("the module uses a tensor of an earlier call")
            # a number made into a tensor, or an attribute that is neither parameter nor buffer
            shape = tuple(tensor.shape)
            constant = Node(WEIGHT, Made((), lambda: tensor), (), {}, shape, tensor.dtype, None, "constant")
            self._note(tensor, constant)
        return self.made[id(tensor)]

    def _given(self, value: Any) -> Any:
        import torch

        if isinstance(value, torch.Tensor):
            return self._node(value)
        if isinstance(value, list | tuple):
            return type(value)(self._given(item) for item in value)
        return value


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.shape)


def needed(inputs: Sequence[Node], output: Node) -> Graph:
    """Only what the output comes from, in an order in which it can be computed."""
    order: dict[Node, None] = dict.fromkeys(inputs)
    waiting: list[tuple[Node, bool]] = [(output, False)]
    while waiting:
        node, is_ready = waiting.pop()
        if node in order or node.op == WEIGHT:
            continue
        if is_ready:
            order[node] = None
            continue
        waiting.append((node, True))
        waiting += [(given, False) for given in reversed(node.data)]
    return Graph(tuple(order), tuple(inputs), output)
