"""Settings of the whole process that decide which kernels compute: TF32, and cuDNN's search for algorithms."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from safelight.config import environment
from safelight.optimizers.precision import has_2d_convolutions
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer
from safelight.optimizers.target import Target, denoiser, models
from safelight.simulate.cost import Cost


def _tf32_fits(target: Target) -> str | None:
    device = target.device
    if device.kind != "cuda":
        return f"needs CUDA, this is {device.kind}"
    if "rocm" in device.features:
        return f"is a format of NVIDIA's tensor cores, and {device.name} is AMD's"
    if device.capability < (8, 0):
        return f"{device.name} has no TF32: it came with compute capability 8.0, this is {_dotted(device.capability)}"
    if target.dtype != "float32":
        return f"the denoiser computes in {target.dtype}, and TF32 acts on float32 alone"
    if device.elsewhere:
        return None
    if environment().get("NVIDIA_TF32_OVERRIDE") == "0":
        return "NVIDIA_TF32_OVERRIDE=0 switches it off in every library: unset it"
    return "it is switched on already" if tf32_is_on() else None


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _tf32_predict(cost: Cost, target: Target) -> Cost:
    """Convolutions in float32 use it already: that is cuDNN's default."""
    if "tf32" not in cost.rates.curves["matmul"]:
        return cost
    plain, fast = (cost.rates.seconds("matmul", dtype, 1e11) for dtype in ("float32", "tf32"))
    return cost.kinds(matmul=min(1.0, fast / plain))


def tf32_is_on() -> bool:
    """Through the new interface, which tells both: the old getter raises once somebody has used the new one."""
    import torch

    return torch.backends.cuda.matmul.fp32_precision == "tf32"


@optimizer(
    stage=Stage.PROCESS,
    slot="tf32",
    fidelity=Fidelity.ROUNDING,
    source="https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices",
    fits=_tf32_fits,
    predict=_tf32_predict,
)
def tf32(pipe: Any, target: Target) -> Iterator[Proof]:
    """Multiply float32 matrices on tensor cores: factors rounded to 10 bits, sums in float32."""
    yield from with_tf32(pipe)


def with_tf32(pipe: Any, multiply: Callable[[Any, Any], Any] | None = None) -> Iterator[Proof]:
    """multiply: of two float32 matrices; a seam, as a CPU has no TF32."""
    import torch

    matmul = torch.backends.cuda.matmul
    rounded: list[bool] = []  # of the latest run: whether matrices were rounded while the denoiser ran

    def look(model: Any, _inputs: Any) -> None:
        if not rounded and not torch.compiler.is_compiling():
            first = next(model.parameters())
            rounded.append(first.dtype == torch.float32 and rounds_as_tf32(first.device, multiply or torch.matmul))

    hook = denoiser(pipe).register_forward_pre_hook(look)
    # The old setter, which sets the new setting with it (torch 2.13). After the new setter alone, the getters
    # get_float32_matmul_precision and allow_tf32 raise, and inductor calls both (select_algorithm.py:3603,
    # kernel/conv.py:1070; pytorch issue 166387). Undone in both: the old setter leaves "ieee" where "none" was.
    was = matmul.fp32_precision
    switch(True)
    yield Proof(lambda: _seen_tf32(rounded), begin=lambda run: rounded.clear())
    switch(False)
    matmul.fp32_precision = was
    hook.remove()


def switch(on: bool) -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = on


def rounds_as_tf32(device: Any, multiply: Callable[[Any, Any], Any]) -> bool:
    """Whether factors lose what lies beyond 10 bits of mantissa, and nothing within: float32 has 23, bfloat16 has 7.

    Sums of 256 equal products: exact in float32, of 1 + 2**-12 and of 1 + 2**-10 alike.
    """
    import torch

    ones = torch.ones(256, 256, device=device)
    beyond, within = (float(multiply(ones * (1 + 2**-bits), ones)[0, 0]) for bits in (12, 10))
    return beyond == 256 and within == 256 * (1 + 2**-10)


def _seen_tf32(rounded: list[bool]) -> str:
    return "while the denoiser ran, float32 matrices were rounded to TF32's 10 bits" if any(rounded) else ""


def _cudnn_fits(target: Target) -> str | None:
    if target.device.kind != "cuda":
        return f"needs CUDA, this is {target.device.kind}"
    parts = [part.cls for part in (target.denoiser, target.vae) if part]
    if not any(map(has_2d_convolutions, parts)):
        return f"{target.denoiser.cls.__name__} and its VAE have no 2-D convolutions to speak of"
    if target.device.elsewhere:
        return None
    import torch

    return "it is switched on already" if torch.backends.cudnn.benchmark else None


@optimizer(
    stage=Stage.PROCESS,
    slot="cudnn-benchmark",
    fidelity=Fidelity.ROUNDING,
    source="https://docs.pytorch.org/docs/stable/backends.html#torch.backends.cudnn.torch.backends.cudnn.benchmark",
    fits=_cudnn_fits,
    # no gain is predicted: whether another algorithm is faster than the one cuDNN guesses nobody knows before it tries
    price="searches anew at each picture size",
)
def cudnn_benchmark(pipe: Any, target: Target) -> Iterator[Proof]:
    """Let cuDNN try its algorithms for each convolution once, and keep the fastest."""
    yield from with_benchmark(pipe)


def with_benchmark(pipe: Any, backend: Callable[[Any, Any], str] | None = None) -> Iterator[Proof]:
    """backend: of a convolution and its input; a seam, as a CPU has no cuDNN."""
    import torch

    cudnn, kernel_of = torch.backends.cudnn, backend or convolution_backend
    ran: Counter[str] = Counter()  # of the latest run: calls by backend, while the flag was on
    asked: dict[int, str] = {}  # asking costs, so once for each layer

    def look(layer: Any, inputs: tuple[Any, ...], _output: Any) -> None:
        if cudnn.benchmark and not torch.compiler.is_compiling():
            if id(layer) not in asked:
                asked[id(layer)] = kernel_of(layer, inputs[0])
            ran[asked[id(layer)]] += 1

    def begin(run: Any) -> None:
        ran.clear()
        asked.clear()

    parts = [part for part in models(pipe).values() if has_2d_convolutions(type(part))]
    layers = [layer for part in parts for layer in part.modules() if isinstance(layer, torch.nn.Conv2d)]
    hooks = [layer.register_forward_hook(look) for layer in layers]
    was = cudnn.benchmark
    benchmark(True)
    yield Proof(lambda: _searched(ran), begin=begin)
    benchmark(was)
    for hook in hooks:
        hook.remove()


def benchmark(on: bool) -> None:
    import torch

    torch.backends.cudnn.benchmark = on


def convolution_backend(layer: Any, value: Any) -> str:
    """ "Cudnn", "Miopen", "Mkldnn", ...: what torch picks for this layer and input, by the function it asks itself.

    Counting operators cannot tell: below aten.convolution nothing passes Python any more.
    """
    import torch

    padding = layer.padding if isinstance(layer.padding, tuple) else (0, 0)
    picked = torch._C._select_conv_backend(
        value, layer.weight, layer.bias, layer.stride, padding, layer.dilation, False, (0, 0), layer.groups
    )
    return str(picked).rpartition(".")[2]


def _searched(ran: Counter[str]) -> str:
    calls = sum(n for name, n in ran.items() if name.startswith(("Cudnn", "Miopen")))
    return f"{calls} of {sum(ran.values())} convolutions ran in cuDNN while it searched" if calls else ""
