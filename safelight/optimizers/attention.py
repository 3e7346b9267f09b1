"""Which kernel computes attention."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from safelight.errors import UnknownName
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.target import Target, denoiser
from safelight.probe.device import Device

# name -> (torch.nn.attention.SDPBackend, device kinds it can run on, what the operator's name then contains).
# "math" has no operator of its own: it falls apart into matrix products and a softmax.
BACKENDS = {
    "flash": ("FLASH_ATTENTION", ("cpu", "cuda", "xpu"), "_flash_attention"),
    "efficient": ("EFFICIENT_ATTENTION", ("cuda",), "_efficient_attention"),
    "cudnn": ("CUDNN_ATTENTION", ("cuda",), "_cudnn_attention"),
    "math": ("MATH", ("cpu", "cuda", "xpu", "mps"), "softmax"),
}


def _fits(target: Target, value: str) -> str | None:
    if value not in BACKENDS:
        raise UnknownName("attention backend", value, BACKENDS)
    kinds = BACKENDS[value][1]
    if target.device.kind not in kinds:
        return f"the {value} kernel runs on {' and '.join(kinds)}, not on {target.device.kind}"
    return (
        None
        if runs(value, target.device)
        else f"the {value} kernel is listed by torch but fails on {target.device.name}"
    )


def runs(value: str, device: Device) -> bool:
    """Whether one small call goes through: torch lists backends whose kernel is then missing."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    dtype = torch.float16 if device.kind == "cuda" else torch.float32
    query = torch.ones(1, 1, 8, 64, dtype=dtype, device=device.torch_name)
    try:
        with sdpa_kernel(getattr(SDPBackend, BACKENDS[value][0])):
            torch.nn.functional.scaled_dot_product_attention(query, query, query)
    except RuntimeError:
        return False
    return True


@optimizer(
    stage=Stage.ATTENTION,
    slot="attention",
    fidelity=Fidelity.ROUNDING,
    source="https://docs.pytorch.org/docs/stable/generated/torch.nn.attention.sdpa_kernel.html",
    fits=_fits,
)
def attention_backend(pipe: Any, target: Target, value: str = "flash") -> Iterator[Proof]:
    """Hold the denoiser's attention to one kernel: flash, efficient, cudnn or math."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend, _, operator = BACKENDS[value]
    model = denoiser(pipe)
    forward = model.forward
    ops: Counter[str] = Counter()  # of the first forward alone: counting slows down

    # A context around each forward, not diffusers' set_attention_backend: that changes no processor of a UNet or of
    # SD3, and leaves a process-wide setting behind (diffusers issue 14249).
    def forward_on_backend(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(getattr(SDPBackend, backend)), nullcontext() if ops else counting(ops):
            return forward(*args, **kwargs)

    others = [contains for name, (_, _, contains) in BACKENDS.items() if name not in (value, "math")]

    def evidence() -> str:
        calls = sum(n for name, n in ops.items() if operator in name)
        strangers = sum(n for name, n in ops.items() if any(other in name for other in others))
        return f"{calls} calls of *{operator}*" if calls and (value != "math" or not strangers) else ""

    with swapped(model, forward=forward_on_backend):
        yield Proof(evidence)


@contextmanager
def counting(ops: Counter[str]) -> Iterator[None]:
    """Counts every operator that runs inside, by name: {"aten.convolution.default": 12}."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    composite = torch._C.DispatchKey.CompositeImplicitAutograd

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            ops[str(func)] += 1
            if func.has_kernel_for_dispatch_key(composite):
                # in inference mode attention arrives whole: which kernel it picks shows only in what it calls
                with self:
                    return func.decompose(*args, **(kwargs or {}))
            return func(*args, **(kwargs or {}))

    with Count():
        yield
