"""Query, key and value of one input out of one matrix product.

diffusers' own fuse_qkv_projections is not used. Its processors drop q/k/v adapters of LoRAs (diffusers issue 14047),
and in SD 3.5 the normalization of queries and keys; where a block attends twice they raise an error. Here the processor
stays: the layer that is asked for the query computes all three, and the next two find theirs ready.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safelight.errors import Conflict
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.target import Target, denoiser

if TYPE_CHECKING:
    from torch import Tensor

# the layers that a product stands for -> the name under which its weights are registered. A module of its own, so
# that whatever moves, casts or quantizes layers finds it.
QKV = ("to_q", "to_k", "to_v")
KV = ("to_k", "to_v")
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
FUSED = {QKV: "fused_qkv", KV: "fused_kv", ADDED: "fused_added_qkv"}


def _fits(target: Target) -> str | None:
    cls = target.denoiser.cls
    if not hasattr(cls, "fuse_qkv_projections"):
        return f"{cls.__name__} is none of the models whose query, key and value are known to have one input"
    return None


@dataclass
class Product:
    """One matrix product in the place of several layers' own.

    joined: the layer that has all their weights. sizes: channels of each. kept: the input and what the layers after
    the first will want of its product. taken: which layers found theirs ready, in a call that was not compiled:
    torch.compile would guard on it.
    """

    joined: Any
    sizes: tuple[int, ...]
    kept: "tuple[Tensor, int, tuple[Tensor, ...]] | None" = None
    taken: dict[int, bool] = field(default_factory=dict)

    def give(self, index: int, x: "Tensor") -> "Tensor":
        """What layer `index` makes of x; right in any order of calls, and cheap in the usual one."""
        import torch

        kept = self.kept
        if kept is not None and is_same(kept[0], x) and kept[1] == index:
            mine, *rest = kept[2]
            if not torch.compiler.is_compiling():
                self.taken[index] = True
        else:
            mine, *rest = self.joined(x).split(self.sizes, dim=-1)[index:]
        self.kept = (x, index + 1, tuple(rest)) if rest else None
        return mine

    def begin(self, _pipe: Any = None) -> None:
        self.kept = None


def is_same(x: Any, y: Any) -> bool:
    return x is y


@optimizer(
    stage=Stage.PROJECTIONS,
    slot="projections",
    fidelity=Fidelity.ROUNDING,
    source="https://huggingface.co/docs/diffusers/optimization/fp16#fused-projections",
    fits=_fits,
    traced=("denoiser",),
)
def fused_qkv(pipe: Any, target: Target) -> Iterator[Proof]:
    """Compute query, key and value of attention in one matrix product; LoRAs stay as they are and keep their effect.

    A pipeline that somebody keeps has these weights twice meanwhile (25 % of SDXL's UNet, 18 % of FLUX.1), and so has
    one whose weights are moved to and fro.
    """
    model = denoiser(pipe)
    with ExitStack() as stack:
        found = [(layer, names) for layer in model.modules() for names in groups(layer)]
        products = [stack.enter_context(fused(*one, shares=target.disposable)) for one in found]
        stack.enter_context(_no_merging(pipe))
        stack.enter_context(_no_merging(model))

        def begin(_pipe: Any) -> None:
            for product in products:
                product.begin()

        yield Proof(lambda: _said(products), begin=begin)


def groups(layer: Any) -> list[tuple[str, ...]]:
    """The names of a module's layers that have one input; [] for what is no attention."""
    own = KV if getattr(layer, "is_cross_attention", False) else QKV
    return [names for names in (own, ADDED) if _can_join([_linear(layer, name) for name in names])]


def _linear(layer: Any, name: str) -> Any:
    """The layer of that name; inside of a LoRA, what it adapts, so that adapters stay outside of the product."""
    found = layer._modules.get(name)
    while found is not None and "base_layer" in found._modules:
        found = found.base_layer
    return found


def _can_join(linears: list[Any]) -> bool:
    from torch import nn
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass as is_quantized

    plain = all(type(linear) is nn.Linear and not is_quantized(linear.weight.data) for linear in linears)
    kinds = {(x.in_features, x.bias is None, x.weight.dtype, x.weight.device) for x in linears} if plain else ()
    return len(kinds) == 1


@contextmanager
def fused(layer: Any, names: tuple[str, ...], shares: bool = False) -> Iterator[Product]:
    """Fuses the layers of these names while the block runs.

    shares: their own weights become parts of the fused ones for good, of the same numbers and at another address.
    """
    linears = [_linear(layer, name) for name in names]
    product = Product(_joined(linears), tuple(linear.out_features for linear in linears))
    if shares:
        for linear, weight in zip(linears, product.joined.weight.data.split(product.sizes), strict=True):
            linear.weight.data = weight
    layer.register_module(FUSED[names], product.joined)
    try:
        with ExitStack() as stack:
            for index, linear in enumerate(linears):
                stack.enter_context(swapped(linear, forward=_asks(product, index)))
            yield product
    finally:
        del layer._modules[FUSED[names]]


def _asks(product: Product, index: int) -> Callable[..., Any]:
    return lambda x: product.give(index, x)


def _joined(linears: list[Any]) -> Any:
    import torch

    first, channels = linears[0], sum(linear.out_features for linear in linears)
    joined = torch.nn.Linear(first.in_features, channels, bias=first.bias is not None, device="meta").eval()
    with torch.no_grad():
        for name in ("weight", "bias"):
            if getattr(first, name) is not None:
                tensors = torch.cat([getattr(linear, name) for linear in linears])
                setattr(joined, name, torch.nn.Parameter(tensors, requires_grad=False))
    return joined


@contextmanager
def _no_merging(owner: Any) -> Iterator[None]:
    """Merging a LoRA changes weights of which the product has a copy; loading one or changing its scale does not."""

    def refuse(*_: Any, **__: Any) -> None:
        raise Conflict("fused-qkv has a copy of the weights: call fuse_lora or unfuse_lora before, or leave it out")

    # the pipeline unmerges layer by layer, past the model's own method; some pipelines take no LoRA at all
    with swapped(owner, **{name: refuse for name in ("fuse_lora", "unfuse_lora") if hasattr(owner, name)}):
        yield


def _said(products: list[Product]) -> str:
    spared = sum(len(product.taken) for product in products)
    return (
        f"{spared} of {sum(len(p.sizes) for p in products)} projections came out of another's product" if spared else ""
    )
