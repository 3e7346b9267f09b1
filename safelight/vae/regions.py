"""Which values of a graph can be scaled together, with the function that it computes unchanged.

Comes in: a recorded graph. Goes out: its regions. Every value is homogeneous of some degree in the scale of its region:
an input and the product with a weight begin one, sums join them, a square doubles the degree, a quotient may end it, as
does a norm, whose epsilon can be scaled too. What is not homogeneous (silu, softmax, the network's output) keeps its
region as it is. No architecture is known here, only operators.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from safelight.vae.graph import INPUT, WEIGHT, Graph, Made, Node


class Scale(NamedTuple):
    """Values are 2^-(power * degree) of themselves, with the power of their region. Region 0 has power 0."""

    region: int
    degree: int


UNSCALED = Scale(0, 0)


@dataclass(eq=False, slots=True)
class Regions:
    """above: what each region was joined to. constants: made of weights alone. names: of what began each region, the
    weight of a product or "input 0"."""

    above: list[int] = field(default_factory=lambda: [0])
    scales: dict[Node, Scale] = field(default_factory=dict)
    constants: set[Node] = field(default_factory=set)
    names: list[str] = field(default_factory=lambda: [""])

    def is_data(self, value: Any) -> bool:
        return isinstance(value, Node) and value.op != WEIGHT and value not in self.constants

    def root(self, region: int) -> int:
        while region != self.above[region]:
            region = self.above[region]
        return region

    def scale(self, value: Any) -> Scale:
        """As it is by now; numbers and constants are unscaled."""
        region, degree = self.scales.get(value, UNSCALED) if isinstance(value, Node) else UNSCALED
        region = self.root(region)
        return Scale(region, degree) if region and degree else UNSCALED

    def begun(self, name: str = "") -> Scale:
        self.above.append(len(self.above))
        self.names.append(name)
        return Scale(len(self.above) - 1, 1)

    def fix(self, *values: Any) -> Scale:
        """They must stay as they are."""
        for value in values:
            self.above[self.scale(value).region] = 0
        return UNSCALED

    def joined(self, values: list[Node]) -> Scale:
        """They must be scaled alike, as they are added up."""
        for other in values[1:]:
            one, two = self.scale(values[0]), self.scale(other)
            if one.degree != two.degree:
                self.fix(values[0], other)
            elif one.region != two.region:
                self.above[max(one.region, two.region)] = min(one.region, two.region)
        return self.scale(values[0])

    def multiplied(self, one: Any, two: Any, sign: int = 1) -> Scale:
        """sign: -1 for a quotient."""
        first, second = self.scale(one), self.scale(two)
        if first.region and second.region and first.region != second.region:
            return self.fix(one, two)
        return Scale(first.region or second.region, first.degree + sign * second.degree)

    def powers(self, given: int | Mapping[str, int]) -> dict[int, int]:
        """Of each region that may be scaled. given: one for all, or by names."""
        found: dict[int, int] = {}
        for number, name in enumerate(self.names):
            if region := self.root(number):
                power = given if isinstance(given, int) else given.get(name, 0)
                found[region] = max(found.get(region, 0), power)
        return found

    def named(self, powers: Mapping[int, int]) -> dict[str, int]:
        """The largest power of the regions that each name began, where it is not 0."""
        found: dict[str, int] = {}
        for number, name in enumerate(self.names):
            if power := powers.get(self.root(number), 0):
                found[name] = max(found.get(name, 0), power)
        return found

    def exponent(self, value: Any, powers: Mapping[int, int]) -> int:
        region, degree = self.scale(value)
        return powers.get(region, 0) * degree


def regions(graph: Graph) -> Regions:
    found = Regions()
    for node in graph.nodes:
        if node.op == INPUT:
            found.scales[node] = found.begun(f"input {node.name}")
        elif not any(found.is_data(given) for given in node.inputs):
            found.constants.add(node)
        else:
            rule = RULES.get(node.op, _unknown) if node.dtype.is_floating_point else _unknown
            found.scales[node] = rule(node, found)
    found.fix(graph.output)
    return found


# -- what each operator does to the scale ------------------------------------------------------------------------------

Rule = Callable[[Node, Regions], Scale]


def _unknown(node: Node, found: Regions) -> Scale:
    return found.fix(*node.data)


def _passed(node: Node, found: Regions) -> Scale:
    return found.scale(node.args[0]) if len(set(node.data)) == 1 else _unknown(node, found)


def _free(node: Node, found: Regions) -> Scale:
    """Zeros are zeros in any scale."""
    return found.begun()


def _sum(node: Node, found: Regions) -> Scale:
    return found.joined([given for given in node.data if found.is_data(given)])


def _product(node: Node, found: Regions) -> Scale:
    one, two, summand = factors(node)
    if found.is_data(summand):
        return _unknown(node, found)
    for other in (two, one):
        if isinstance(other, Node) and not found.is_data(other):
            return found.begun(name(other))
    return found.multiplied(one, two)


def _quotient(node: Node, found: Regions) -> Scale:
    return _unknown(node, found) if node.kwargs else found.multiplied(node.args[0], node.args[1], -1)


def _normalized(node: Node, found: Regions) -> Scale:
    """Unscaled, as epsilon is scaled with the values."""
    place = EPSILON[node.op]
    plain = node.which in (None, 0) and len(node.args) > place and isinstance(node.args[place], float)
    return UNSCALED if plain and node.data == [node.args[0]] else _unknown(node, found)


def _power(node: Node, found: Regions) -> Scale:
    by = DEGREES.get(node.op) or node.args[1]
    region, degree = found.scale(node.args[0])
    if not isinstance(by, int | float) or degree * by % 1:
        return _unknown(node, found)
    return Scale(region, int(degree * by))


def _attention(node: Node, found: Regions) -> Scale:
    """Linear in its values alone."""
    found.fix(*(given for given in node.data if given is not node.args[2]), *node.args[:2])
    return found.scale(node.args[2])


def factors(node: Node) -> tuple[Any, Any, Any]:
    """Both factors, and the summand or None."""
    one, two, summand = PRODUCTS[node.op]
    args = node.args
    return args[one], args[two], args[summand] if summand is not None and len(args) > summand else None


def name(constant: Node) -> str:
    """Of the weight that it is made of."""
    while not constant.name or isinstance(constant.function, Made):
        made = constant.function.of if isinstance(constant.function, Made) else constant.inputs
        if not made:
            break
        constant = made[0]
    return constant.name


MOVING = (
    *("view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "t", "select", "slice", "split", "unbind"),
    *("split_with_sizes", "unsqueeze", "squeeze", "clone", "_to_copy", "repeat", "flip"),
)
# relu and norms of vectors are as good as linear, as a scale is positive
PASSING = (
    *MOVING,
    *("relu", "leaky_relu", "neg", "abs", "mean", "sum", "amax", "linalg_vector_norm", "avg_pool2d", "avg_pool3d"),
    *("pixel_shuffle", "pixel_unshuffle", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    *("_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_bilinear2d", "constant_pad_nd"),
    *("replication_pad2d", "replication_pad3d", "reflection_pad2d", "reflection_pad3d"),
)
SUMS = ("add", "sub", "rsub", "cat", "stack", "maximum", "minimum", "clamp", "clamp_min", "clamp_max")
# where numbers stand that are added to values or compared with them
NUMBERS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("add", "sub", "rsub", "clamp_min", "clamp_max"), (1,)),
    "clamp": (1, 2),
    "constant_pad_nd": (2,),
}
# where the factors stand, and the summand
PRODUCTS: Mapping[str, tuple[int, int, int | None]] = {
    **dict.fromkeys(("convolution", "linear"), (0, 1, 2)),
    **dict.fromkeys(("mul", "mm", "bmm"), (0, 1, None)),
    **dict.fromkeys(("addmm", "baddbmm"), (1, 2, 0)),
}
EPSILON: Mapping[str, int] = {"native_group_norm": 7, "native_layer_norm": 4, "_fused_rms_norm": 3}
DEGREES: Mapping[str, float] = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1, "square": 2}
ATTENTION = tuple(
    f"_scaled_dot_product_{kind}"
    for kind in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
)
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(PASSING, _passed),
    **dict.fromkeys(SUMS, _sum),
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(EPSILON, _normalized),
    **dict.fromkeys((*DEGREES, "pow"), _power),
    **dict.fromkeys(ATTENTION, _attention),
    **dict.fromkeys(("zeros_like", "new_zeros"), _free),
    "div": _quotient,
}
