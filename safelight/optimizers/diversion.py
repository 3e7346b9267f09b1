"""Attention, diverted: what a model hands to torch's scaled_dot_product_attention goes to another function.

Comes in: a model, and a function of one Call. Changed are instances only: the forward of each attention layer opens a
mode of torch that sees the calls of this thread and no other. No processor is touched, so that whatever a layer has
stays: an IP-Adapter's, a fused one, one that diffusers dispatches by itself.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safelight.optimizers.registry import swapped

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of scaled_dot_product_attention, by its own names.

    query: (batch, heads, queries, channels). key, value: (batch, heads, keys, channels); with enable_gqa they have
    fewer heads. attn_mask: of a shape that spreads to (batch, heads, queries, keys); False, or -inf, hides a key.
    is_causal: query i sees the keys 0 to i.
    """

    query: "Tensor"
    key: "Tensor"
    value: "Tensor"
    attn_mask: "Tensor | None" = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    def plain(self) -> "Tensor":
        """As torch computes it, with the kernel of its own choice."""
        from torch.nn.functional import scaled_dot_product_attention

        return scaled_dot_product_attention(
            self.query,
            self.key,
            self.value,
            attn_mask=self.attn_mask,
            dropout_p=self.dropout_p,
            is_causal=self.is_causal,
            scale=self.scale,
            enable_gqa=self.enable_gqa,
        )


Kernel = Callable[[Call], "Tensor"]  # gives (batch, heads, queries, channels)


@contextmanager
def diverted(model: Any, kernel: Kernel) -> Iterator[None]:
    """While the block runs, `kernel` computes the model's attention."""
    with ExitStack() as stack:
        for layer in attention_layers(model):
            stack.enter_context(swapped(layer, forward=_sends(layer.forward, kernel)))
        yield


def _sends(forward: Callable[..., Any], kernel: Kernel) -> Callable[..., Any]:
    import torch
    from torch.overrides import TorchFunctionMode

    attention = torch.nn.functional.scaled_dot_product_attention

    class Divert(TorchFunctionMode):
        # while this runs the mode is off: what the kernel itself calls is not diverted again
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is attention:
                return kernel(Call(*args, **(kwargs or {})))
            return func(*args, **(kwargs or {}))

    def diverted_forward(*args: Any, **kwargs: Any) -> Any:
        with Divert():
            return forward(*args, **kwargs)

    # torch 2.13 cannot trace such a mode (Tensor.unflatten inside it), and would guard on every count
    return torch.compiler.disable(diverted_forward)


def attention_layers(model: Any) -> list[Any]:
    """The outermost layers that have an attention processor; the model itself where there is none."""
    found: list[Any] = []
    rest = [model]
    while rest:
        module = rest.pop()
        if "processor" in vars(module) or "processor" in module._modules:
            found.append(module)
        else:
            rest += reversed(list(module.children()))
    return found or [model]
