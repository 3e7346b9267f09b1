"""Which kernel computes attention."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from safelight.optimizers import backends
from safelight.optimizers.backends import BACKENDS
from safelight.optimizers.diversion import Call, Kernel, diverted
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.target import Target, denoiser


def _fits(target: Target, value: str) -> str | None:
    return backends.reason_against(backends.find(value), target)


@optimizer(
    stage=Stage.ATTENTION,
    slot="attention",
    fidelity=Fidelity.ROUNDING,
    source="https://huggingface.co/docs/diffusers/optimization/attention_backends",
    fits=_fits,
    # no gain is predicted: what torch picks by itself is FlashAttention or its like already ("as fast and memory
    # efficient as xFormers": diffusers' page on torch 2.0); of the others no ratio is published for a kernel alone
)
def attention_backend(pipe: Any, target: Target, value: str = "flash") -> Iterator[Proof]:
    """Hold the denoiser's attention to one kernel: flash, efficient, cudnn, math, flash-3, xformers, sage, ...

    flash, efficient, cudnn and math are torch's own; flash-2 is the package flash-attn. The sage kernels multiply in
    8 bits, which is more than rounding. diffusers' names ("_flash_3_hub") are understood too, but for its "flash".
    """
    name = backends.find(value)
    if BACKENDS[name].sdpa:
        yield from _held(denoiser(pipe), name)
    else:
        yield from sent(denoiser(pipe), name, backends.kernel_of(name))


def _held(model: Any, name: str) -> Iterator[Proof]:
    """One of torch's own kernels, by a context around each forward."""
    backend = BACKENDS[name]
    forward = model.forward
    ops: Counter[str] = Counter()  # of the first forward alone: counting slows down

    def forward_on_backend(*args: Any, **kwargs: Any) -> Any:
        with backends.held(name), nullcontext() if ops else counting(ops):
            return forward(*args, **kwargs)

    others = [known.operator for other, known in BACKENDS.items() if known.operator and other not in (name, "math")]

    def evidence() -> str:
        calls = sum(n for op, n in ops.items() if backend.operator in op)
        strangers = sum(n for op, n in ops.items() if any(other in op for other in others))
        return f"{calls} calls of *{backend.operator}*" if calls and (name != "math" or not strangers) else ""

    with swapped(model, forward=forward_on_backend):
        yield Proof(evidence)


def sent(model: Any, name: str, kernel: Kernel) -> Iterator[Proof]:
    """A kernel that torch does not have: calls are diverted to it, and those that it cannot take are torch's."""
    backend = BACKENDS[name]
    calls: Counter[str] = Counter()  # of the latest run, by why they were left to torch; "" for those that were not

    def choose(call: Call) -> Any:
        why = backends.too_much(backend, call)
        calls[why] += 1
        return call.plain() if why else kernel(call)

    with diverted(model, choose):
        yield Proof(lambda: _said(name, calls), begin=lambda pipe: calls.clear())


def _said(name: str, calls: Counter[str]) -> str:
    if not calls[""]:
        return ""
    eight = "" if BACKENDS[name].rounds else " (products in 8 bits: approximate)"
    left = [f"; {n} calls {why} left to torch" for why, n in sorted(calls.items()) if why]
    return f"{calls['']} calls of {name}{eight}" + "".join(left)


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
