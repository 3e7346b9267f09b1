"""What is told of graphs: they compute what the module computes, and what cannot be recorded is refused by name."""

import pytest
import tiny_vaes
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from safelight.vae.graph import INPUT, WEIGHT, CannotWalk, Graph, needed, record


def computed(graph: Graph, module: torch.nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    return tiny_vaes.values_of(graph, module, *inputs)[graph.output]


class Doing(torch.nn.Module):
    """A module whose forward is a function; with a weight, and a tensor that is neither weight nor buffer."""

    def __init__(self, run) -> None:
        super().__init__()
        self.run, self.weight = run, torch.nn.Parameter(torch.ones(3, 1, 1))
        self.loose = torch.ones(3, 1, 1)

    def forward(self, x):
        return self.run(self, x)


X = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)


@pytest.mark.parametrize("part", ["decoder", "encoder"])
@pytest.mark.parametrize("name", ["kl", "tiny", "dc"])
def test_what_is_recorded_computes_the_same_bit_for_bit(name, part):
    vae = tiny_vaes.kl() if name == "kl" else tiny_vaes.FAMILIES[name][0]()
    module = getattr(vae, part)
    channels = 3 if part == "encoder" else 32 if name == "dc" else 4
    x = torch.randn(1, channels, 16, 8)
    with torch.no_grad():
        assert torch.equal(computed(record(module, x), module, x), module(x))


def written_in_place(module, x):
    y = x * module.weight
    y += 1
    return F.relu(y, inplace=True).mul_(2) + y


DONE = {
    "in place": written_in_place,
    "several results of which one is used": lambda module, x: torch.var_mean(x, (2, 3), keepdim=True)[1] + x,
    "a list of results": lambda module, x: torch.cat(x.chunk(3, 1)[::-1], 1),
    "a list as an argument": lambda module, x: torch.stack([x, x * module.weight], 2),
    "a tensor made inside": lambda module, x: x + torch.zeros_like(x) + torch.ones(4),
    "named arguments": lambda module, x: torch.add(x, module.weight, alpha=3),
    "a loop over its shape": lambda module, x: sum(x[:, :, row : row + 1] for row in range(x.shape[2])),
    "a tensor that is no weight": lambda module, x: x * module.loose,
    "a number made a tensor": lambda module, x: x * torch.tensor(0.5),
    "detached": lambda module, x: x.detach() * module.weight.data,
}


@pytest.mark.parametrize("run", DONE.values(), ids=DONE)
def test_python_of_any_kind_is_recorded(run):
    module = Doing(run)
    with torch.no_grad():
        assert torch.equal(computed(record(module, X), module, X.clone()), module(X.clone()))


def into_a_part(module, x):
    y = x * module.weight
    y[:, :, 1:] = 0
    return y


def under_a_view(module, x):
    y = x * module.weight
    seen = y[:, :1]
    y.add_(1)
    return seen + y


REFUSED = {
    "writes into a slice": (into_a_part, "writes into a part of a tensor"),
    "writes under a view": (under_a_view, "add_ writes into a part"),
    "two tensors": (lambda module, x: (x + 1, x + 2), "returns tuple"),
    "a number": (lambda module, x: 3, "returns int"),
}


@pytest.mark.parametrize(("run", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_recorded_is_refused_with_the_reason(run, told):
    with pytest.raises(CannotWalk, match=told):
        record(Doing(run), X)


def test_weights_stored_in_another_form_are_refused_by_name():
    class Packed(torch.Tensor):
        pass

    module = Doing(lambda module, x: x * module.weight)
    module.weight = torch.nn.Parameter(torch.ones(3, 1, 1).as_subclass(Packed), requires_grad=False)
    with pytest.raises(CannotWalk, match="weight is stored as Packed"):
        record(module, X)


def test_numbers_are_never_looked_at_and_nothing_is_left_behind():
    module = Doing(lambda module, x: x * module.weight)
    before, x = module.weight, torch.full((1, 3, 4, 4), torch.nan)
    graph = record(module, x)
    assert module.weight is before
    assert x.isnan().all()
    assert [node.op for node in graph.nodes] == [INPUT, "mul"]


def test_a_module_without_numbers_is_recorded_as_one_with_them():
    def shapes(graph):
        return [(node.op, node.shape, node.dtype) for node in graph.nodes]

    with FakeTensorMode() as mode:
        fake = tree_map(mode.from_tensor, X)
        hollow = Doing(written_in_place)
    assert shapes(record(hollow, fake)) == shapes(record(Doing(written_in_place), X))


def test_weights_in_one_storage_are_told_apart():
    module = Doing(lambda module, x: x * module.weight + module.other)
    both = torch.arange(6.0)
    module.weight = torch.nn.Parameter(both[:3].view(3, 1, 1), requires_grad=False)
    module.register_buffer("other", both[3:].view(3, 1, 1))
    graph = record(module, X)
    names = [given.name for node in graph.nodes for given in node.inputs if given.op == WEIGHT]
    assert names == ["weight", "other"]
    assert torch.equal(computed(graph, module, X), module(X))


def test_what_the_output_does_not_need_is_left_out():
    graph = record(Doing(lambda module, x: ((x + 1).exp(), x * module.weight)[1]), X)
    assert [node.op for node in graph.nodes] == [INPUT, "mul"]


def test_every_node_comes_after_what_it_needs_and_knows_its_users():
    graph = record(tiny_vaes.kl().decoder, torch.empty(1, 4, 6, 6))
    seen = set()
    users = graph.users()
    for node in graph.nodes:
        assert set(node.data) <= seen
        assert all(node in users[given] for given in node.data)
        seen.add(node)
    assert needed(graph.inputs, graph.output).nodes == graph.nodes
