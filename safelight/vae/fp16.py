"""A VAE whose numbers are too large for float16, made to fit: values inside times a power of two, exactly.

Comes in: a recorded graph, and the largest values met on one input. Goes out: a graph of the same function, in which no
value is larger than float16 holds. Weights are scaled where a region (regions.py) begins, norms take the scale out
again with their epsilon scaled too. So float32 gives the same bits, unless a number under- or overflows.

Rescale what is recorded, then fold: one calibration serves every folding. The other order is right as well.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from safelight.errors import SafelightError
from safelight.vae.graph import INPUT, WEIGHT, Graph, Made, Node, needed, replaced, rewired
from safelight.vae.regions import ATTENTION, EPSILON, MOVING, NUMBERS, PRODUCTS, SUMS, Regions, regions

# Between the largest value met while calibrating and what the type holds, as pictures differ. A float keeps its bits.
HEAD_ROOM = 16.0


class CannotRescale(SafelightError):
    """A value is too large for its type, and nothing after it takes a scale out again."""


# -- the graph, rescaled -----------------------------------------------------------------------------------------------


def rescaled(graph: Graph, powers: int | Mapping[str, int]) -> Graph:
    """The same function, with the values of every region times 2^-power; those of degree 2 times 2^-2power.

    powers: one for all regions, or as needed_powers gives them, for this graph or one of another size.
    """
    found = regions(graph)
    by_region = found.powers(powers)
    if not any(by_region.values()):
        return graph
    instead = {node: _scaled(node, found.exponent(node, by_region)) for node in graph.inputs}
    for node in (node for node in graph.nodes if node.op != INPUT):
        args = _changed(node, found, lambda given: found.exponent(given, by_region))
        instead[node] = rewired(node if args == node.args else replace(node, args=args), instead)
    return needed(graph.inputs, instead[graph.output])


Exponent = Callable[[Any], int]


def _changed(node: Node, found: Regions, exponent: Exponent) -> tuple[Any, ...]:
    """Its arguments with scaled weights and numbers."""
    if node in found.constants:
        return node.args
    args = list(node.args)
    if node.op in PRODUCTS:
        for place, power in _weight_powers(node, found, exponent).items():
            args[place] = _scaled(args[place], power)
    if node.op in EPSILON:
        args[EPSILON[node.op]] *= 2.0 ** (-2 * exponent(args[0]))
    if node.op in SUMS:
        args = replaced(args, lambda given: given if found.is_data(given) else _scaled(given, exponent(node)))
    for place in NUMBERS.get(node.op, ()):
        if len(args) > place and isinstance(args[place], int | float):
            args[place] = _number(args[place], exponent(node), node.dtype)
    return tuple(args)


def _weight_powers(node: Node, found: Regions, exponent: Exponent) -> dict[int, int]:
    """What a product's constants are divided by, by their place among its arguments."""
    *factors, summand = PRODUCTS[node.op]
    taken = sum(exponent(node.args[place]) for place in factors)
    powers = {place: exponent(node) - taken for place in factors if not found.is_data(node.args[place])}
    if summand is not None and len(node.args) > summand:
        powers[summand] = exponent(node)
    return {place: power for place, power in powers.items() if isinstance(node.args[place], Node)}


def _number(number: float, power: int, dtype: Any) -> float:
    """Not to nothing, if it was something: it may keep a divisor from being zero."""
    import torch

    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    made = number * 2.0**-power
    return math.copysign(least, number) if abs(made) < least <= abs(number) else made


def _scaled(constant: Node, power: int) -> Node:
    """A weight, what is made of weights, or an input, times 2^-power."""
    import torch

    if not power:
        return constant
    if constant.op == WEIGHT:
        return replace(constant, function=Made((constant,), Times(2.0**-power)))
    if constant.op in MOVING:
        return replace(constant, args=(_scaled(constant.args[0], power), *constant.args[1:]))
    args = (constant, 2.0**-power)
    return replace(constant, op="mul", function=torch.ops.aten.mul.Tensor, args=args, kwargs={}, which=None, name="")


@dataclass(frozen=True, slots=True)
class Times:
    factor: float

    def __call__(self, weight: Any) -> Any:
        wide = weight.float() if weight.dtype.itemsize < 4 else weight
        return (wide * self.factor).to(weight.dtype)


# -- which powers ------------------------------------------------------------------------------------------------------


def values(graph: Graph, weights: Mapping[str, Any], *given: Any, wide: Any = None) -> Iterator[tuple[Node, Any]]:
    """Every node with its tensor, whole, in the order of computing; the output's is the last.

    wide: a dtype in the place of all of 16 bit, so that what overflows is seen. Weights come out too, where first used.
    """
    import torch

    held: dict[Node, Any] = dict(zip(graph.inputs, (_widened(tensor, wide) for tensor in given), strict=True))
    last = {read: node for node in graph.nodes for read in node.inputs}
    with torch.no_grad():
        for node in graph.nodes:
            for weight in [read for read in node.inputs if read.op == WEIGHT and read not in held]:
                held[weight] = _widened(_found(weight, weights), wide)
                yield weight, held[weight]
            if node.op != INPUT:
                held[node] = _called(node, held, wide)
            yield node, held[node]
            for read in {read for read in node.inputs if last[read] is node}:
                del held[read]


def _called(node: Node, held: Mapping[Node, Any], wide: Any) -> Any:
    import torch

    args = replaced(node.args, held.__getitem__)
    kwargs = {key: replaced(value, held.__getitem__) for key, value in node.kwargs.items()}
    if wide is not None and node.op in ATTENTION:  # those of GPUs know 16 bit alone
        names = [argument.name for argument in node.function._schema.arguments]
        asked = {**dict(zip(names, args, strict=False)), **kwargs}
        mask = asked.get("attn_mask", asked.get("attn_bias"))
        also = {"is_causal": asked.get("is_causal", False), "scale": asked.get("scale")}
        return torch.nn.functional.scaled_dot_product_attention(*args[:3], attn_mask=mask, **also)
    if wide is not None and kwargs.get("dtype") in (torch.float16, torch.bfloat16):
        kwargs["dtype"] = wide
    if node.op in ("view", "_unsafe_view"):  # real operators lay out in memory what fake ones do not
        return args[0].reshape(node.shape)
    if node.op in EPSILON:
        args = (args[0].contiguous(), *args[1:])
    made = node.function(*args, **kwargs)
    return made if node.which is None else made[node.which]


def _found(weight: Node, weights: Mapping[str, Any]) -> Any:
    if isinstance(weight.function, Made):
        return weight.function.make(*(_found(part, weights) for part in weight.function.of))
    return weights[weight.name]


def _widened(tensor: Any, wide: Any) -> Any:
    return tensor.to(wide) if wide is not None and tensor.dtype.itemsize == 2 else tensor


def largest(graph: Graph, weights: Mapping[str, Any], *given: Any, wide: Any = None) -> dict[Node, float]:
    """The largest absolute value of every node and weight, computed whole in `wide`, float32 by default.

    Takes the whole graph's memory: record one of a part of the picture.
    """
    import torch

    met = {
        node: tensor.detach().abs().amax() if tensor.is_floating_point() and tensor.numel() else torch.zeros(())
        for node, tensor in values(graph, weights, *given, wide=wide or torch.float32)
    }
    return {node: float(value) for node, value in met.items()}


def overflows(graph: Graph, weights: Mapping[str, Any], *given: Any) -> float:
    """The largest absolute value that is computed; float16 holds up to 65504."""
    data = regions(graph).scales  # no weights, and no masks of attention, that are infinite
    return max(value for node, value in largest(graph, weights, *given).items() if node in data)


def needed_powers(graph: Graph, met: Mapping[Node, float]) -> dict[str, int]:
    """The least with which everything fits into the dtype that it was recorded in, with head room; by the names of
    weights, empty where nothing is to be done. met: of `largest`.

    Raises CannotRescale where a value is too large and its scale would change the result.
    """
    found = regions(graph)
    least: dict[int, int] = {}
    for node, value in met.items():
        region, degree = found.scale(node)
        if degree > 0 and 0 < value < math.inf:
            power = math.ceil(math.log2(value * HEAD_ROOM / _most(node)) / degree)
            least[region] = max(least.get(region, 0), power)
    named = found.named(least)
    _check(found, met, found.powers(named))
    return named


def _check(found: Regions, met: Mapping[Node, float], powers: Mapping[int, int]) -> None:
    exponent: Exponent = lambda given: found.exponent(given, powers)  # noqa: E731
    for node in found.scales:
        _check_fits(node, met[node], exponent(node))
        if node.op in PRODUCTS:
            for place, power in _weight_powers(node, found, exponent).items():
                _check_fits(node.args[place], met[node.args[place]], power)


def _check_fits(node: Node, value: float, power: int) -> None:
    reached, most = value * 2.0**-power, _most(node)
    if not reached <= most:
        what = node.name or f"{node.op} of {'x'.join(map(str, node.shape))} numbers"
        raise CannotRescale(
            f"{what} reaches {reached:.3g} and cannot be scaled, {node.dtype} holds {most:.3g}: use bfloat16 or float32"
        )


def _most(node: Node) -> float:
    import torch

    return float(torch.finfo(node.dtype).max) if node.dtype.is_floating_point else math.inf


def safe(graph: Graph, weights: Mapping[str, Any], *given: Any) -> Graph:
    """Rescaled as these inputs need it; the graph itself where nothing is to be done."""
    return rescaled(graph, needed_powers(graph, largest(graph, weights, *given)))
