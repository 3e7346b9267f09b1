"""Which network a file of weights holds, told from its tensors' names and shapes; what is not known is refused.

Comes in: the path of a .safetensors file, or of a pickle (.pth) where that is allowed. Goes out: weights under one set
of names, and a Network made of them. Files are taken for hostile.

The names differ by age: Real-ESRGAN's (body.0.rdb1.conv1), BSRGAN's (RRDB_trunk.0.RDB1.conv1), and those of the first
ESRGAN (model.1.sub.0.RDB1.conv1.0). Source: https://github.com/chaiNNer-org/spandrel, its folders ESRGAN and Compact.
"""

import re
from collections.abc import Callable, Mapping
from math import isqrt
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from safelight.errors import DamagedModel, EnvironmentProblem, ModelNotFound, UsageError
from safelight.sampling.networks import CHANNELS, DENSE_BLOCKS, DENSE_LAYERS, Compact, Dense, Layer, Network

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Shape = tuple[int, ...]

LARGEST_BYTES = 2**30  # the largest ESRGAN that is about has 67 MB
WRAPPERS = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "netG.", "params_ema.", "params.")
SCALES = (1, 2, 4, 8)
KNOWN = "RRDBNet (ESRGAN, Real-ESRGAN) and SRVGGNetCompact"

# a name that only this network has -> the network; the first that is found, so the finer ones stand before
OTHERS = {
    "model.1.sub.0.RDB1.conv1x1.weight": "ESRGAN+",
    "layers.0.residual_group.blocks.0.conv_block.cab.0.weight": "HAT",
    "layers.0.residual_group.td": "ATD",
    "layers.0.residual_group.hf_blocks.0.attn.temperature": "CRAFT",
    "layers.0.residual_group.blocks.0.attn.logit_scale": "Swin2SR",
    "layers.0.residual_group.blocks.0.norm1.weight": "SwinIR",
    "layers.0.swin1.norm1.weight": "DRCT",
    "layers.0.blocks.0.gamma": "RGT",
    "before_RG.1.weight": "DAT",
    "block_1.c1_r.sk.weight": "SPAN",
    "feats.1.refine.weight": "PLKSR",
    "feats.0.safm.mfr.0.weight": "SAFMN",
    "residual_layer.0.residual_layer.0.layer.0.fn.0.weight": "OmniSR",
    "gblocks.1.fc1.weight": "MoSR",
    "unet1.conv1.conv.0.weight": "Real-CUGAN",
    "m_head.0.weight": "SCUNet or DRUNet",
    "body.0.body.0.body.3.conv_du.0.weight": "RCAN",
    "stylegan_decoder.style_mlp.1.weight": "GFPGAN",
    "model.diffusion_model.input_blocks.0.0.weight": "Stable Diffusion",
}

# what torch.load raises for damaged files, found by feeding it such files
UNREADABLE = (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError)


# -- reading -----------------------------------------------------------------------------------------------------------


def is_pickle(path: Path) -> bool:
    """By content: a pickle may wear any suffix. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(2)
    return start == b"PK" or start[:1] == b"\x80"


def read(path: Path, *, allow_pickle: bool = False) -> "dict[str, Tensor]":
    """The file's tensors on the CPU, as they are, without what they are wrapped in.

    Raises ModelNotFound, UsageError for a pickle that was not allowed, DamagedModel, EnvironmentProblem.
    """
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise UsageError(f"{path} is larger than 1 GiB, which no upscaler is: give another file")
        if not is_pickle(path):
            return _unwrapped(_safetensors(path))
    except FileNotFoundError as error:
        raise ModelNotFound(f"no file of weights at {path}") from error
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {path}: {error.strerror}") from error
    if not allow_pickle:
        raise UsageError(f"{path} is a pickle, which can run code: convert it to safetensors, or --allow-pickle")
    return _unwrapped(_pickle(path))


def _safetensors(path: Path) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise DamagedModel(f"{path} cannot be read ({error}): download it again") from error


def _pickle(path: Path) -> Any:
    import torch

    try:
        with path.open("rb") as file:  # by its content: of a path, torch looks at the suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise DamagedModel(f"{path} cannot be read as weights alone: {first[:200]}") from error


def _unwrapped(found: Any) -> "dict[str, Tensor]":
    """{"params_ema": {...}} -> {...}, without a prefix that all names share; what is no tensor is left out."""
    import torch

    for wrapper in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
            break
    if not isinstance(found, Mapping):
        return {}
    weights = {str(name): tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}
    for prefix in PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


# -- one set of names --------------------------------------------------------------------------------------------------

RENAMED = (
    (re.compile(r"(?:model\.1\.sub|RRDB_trunk)\.(\d+)\.RDB(\d)\.conv(\d)(?:\.0)?"), r"body.\1.rdb\2.conv\3"),
    (re.compile(r"model\.1\.sub\.\d+"), "conv_body"),
    (re.compile("trunk_conv"), "conv_body"),
    (re.compile(r"upconv(\d)"), r"conv_up\1"),
    (re.compile("HRconv"), "conv_hr"),
)
OLD = re.compile(r"model\.(\d{1,4})\.(?:weight|bias)", re.ASCII)


def renamed(weights: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """RRDBNet's names of any age as Real-ESRGAN writes them; other names stay."""
    old = _old_layers(weights)
    found = {}
    for name, tensor in weights.items():
        layer, _, kind = name.rpartition(".")
        for pattern, new in RENAMED:
            if pattern.fullmatch(layer):
                layer = pattern.sub(new, layer)
                break
        found[f"{old.get(layer, layer)}.{kind}" if layer else name] = tensor
    return found


def _old_layers(weights: "Mapping[str, Tensor]") -> dict[str, str]:
    """{"model.0": "conv_first", "model.3": "conv_up1", ...}: every doubling takes three places, the end takes three."""
    if "model.1.sub.0.RDB1.conv1.0.weight" not in weights:
        return {}
    places = sorted({int(match[1]) for name in weights if (match := OLD.fullmatch(name))})
    if len(places) < len(("first", "hr", "last")):
        return {}
    first, *doublings, hr, last = (f"model.{place}" for place in places)
    ups = {layer: f"conv_up{i + 1}" for i, layer in enumerate(doublings)}
    return {first: "conv_first", **ups, hr: "conv_hr", last: "conv_last"}


# -- which network -----------------------------------------------------------------------------------------------------


def recognised(
    weights: "Mapping[str, Tensor]",
    named: str,
    *,
    device: "str | torch.device" = "cpu",
    dtype: "torch.dtype | None" = None,
) -> Network:
    """The network that these are the weights of, in float32 unless `dtype` says otherwise.

    named: what they are called in messages. Raises UsageError for an unknown network, DamagedModel for one that is
    known and not whole.
    """
    import torch

    found = renamed(weights)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    make = _maker(shapes, weights, named)
    layout = torch.channels_last if torch.device(device).type in ("cpu", "cuda") else torch.contiguous_format
    placed = {name: tensor.to(device, dtype or torch.float32) for name, tensor in found.items()}
    # channels_last: x4plus takes 0.8 of the time with it, 64 px, 1 thread of an EPYC with AVX-512, torch 2.13
    return make({name: t.contiguous(memory_format=layout) if t.ndim == 4 else t for name, t in placed.items()})


def _maker(
    shapes: Mapping[str, Shape], weights: "Mapping[str, Tensor]", named: str
) -> "Callable[[dict[str, Tensor]], Network]":
    other = next((network for telltale, network in OTHERS.items() if telltale in weights), None)
    if other is None and "body.0.rdb1.conv1.weight" in shapes:
        return _dense(shapes, named)
    if other is None and "body.0.weight" in shapes:
        return _compact(shapes, named)
    begins = ", ".join(sorted(weights)[:2])
    what = f"is {other}" if other else f"holds an unknown network ({len(weights)} tensors: {begins:.80})"
    raise UsageError(f"{named} {what}; known are {KNOWN}")


def _dense(shapes: Mapping[str, Shape], named: str) -> "Callable[[dict[str, Tensor]], Network]":
    blocks = sum(re.fullmatch(r"body\.\d+\.rdb1\.conv1\.weight", name) is not None for name in shapes)
    doublings = sum(re.fullmatch(r"conv_up\d\.weight", name) is not None for name in shapes)
    features, channels = _sides(shapes, "conv_first.weight", named)
    growth, _ = _sides(shapes, "body.0.rdb1.conv1.weight", named)
    fold = isqrt(channels // CHANNELS)
    scale, rest = divmod(2**doublings, max(fold, 1))
    if fold**2 * CHANNELS != channels or rest or scale not in SCALES:
        raise UsageError(f"{named} takes {channels} channels and doubles {doublings} times: pictures have {CHANNELS}")
    _check(shapes, _dense_shapes(blocks, doublings, features, growth, channels), named)
    return lambda weights: Dense(scale, blocks, doublings, weights)


def _dense_shapes(blocks: int, doublings: int, features: int, growth: int, channels: int) -> dict[str, Shape]:
    """Of all tensors that such a network has."""
    sides = {"conv_first": (features, channels), "conv_last": (CHANNELS, features)}
    plain = ["conv_body", "conv_hr", *(f"conv_up{i + 1}" for i in range(doublings))]
    sides |= dict.fromkeys(plain, (features, features))
    for block in range(blocks):
        for dense in range(1, DENSE_BLOCKS + 1):
            for i in range(DENSE_LAYERS):
                out = features if i + 1 == DENSE_LAYERS else growth
                sides[f"body.{block}.rdb{dense}.conv{i + 1}"] = (out, features + i * growth)
    kernels: dict[str, Shape] = {f"{name}.weight": (*pair, 3, 3) for name, pair in sides.items()}
    return kernels | {f"{name}.bias": pair[:1] for name, pair in sides.items()}


def _compact(shapes: Mapping[str, Shape], named: str) -> "Callable[[dict[str, Tensor]], Network]":
    """body.0 is a convolution, body.1 its PReLU, and so on by twos; the last convolution has none."""
    kernels = [name for name, shape in shapes.items() if len(shape) == 4]
    last = 2 * (len(kernels) - 1)
    features, channels = _sides(shapes, "body.0.weight", named)
    out, _ = _sides(shapes, f"body.{last}.weight", named)
    scale = isqrt(out // CHANNELS)
    if channels != CHANNELS or scale**2 * CHANNELS != out or not scale:
        raise UsageError(f"{named} makes {out} channels of {channels}: pictures have {CHANNELS}")
    sides = [(out if i == last else features, channels if i == 0 else features) for i in range(0, last + 1, 2)]
    wanted: dict[str, Shape] = {f"body.{2 * i}.weight": (*pair, 3, 3) for i, pair in enumerate(sides)}
    wanted |= {f"body.{2 * i}.bias": pair[:1] for i, pair in enumerate(sides)}
    wanted |= {f"body.{i}.weight": (features,) for i in range(1, last, 2)}
    _check(shapes, wanted, named)

    def make(weights: "dict[str, Tensor]") -> Network:
        names = [(f"body.{i}.weight", f"body.{i}.bias", f"body.{i + 1}.weight") for i in range(0, last + 1, 2)]
        return Compact(scale, tuple(Layer(weights[a], weights[b], weights.get(c)) for a, b, c in names))

    return make


def _sides(shapes: Mapping[str, Shape], name: str, named: str) -> tuple[int, int]:
    """(out, in) of a convolution. Raises DamagedModel."""
    shape = shapes.get(name, ())
    if len(shape) != 4 or 0 in shape:
        raise DamagedModel(f"{named} has no convolution {name}, or none of whole size: download it again")
    return shape[0], shape[1]


def _check(shapes: Mapping[str, Shape], wanted: Mapping[str, Shape], named: str) -> None:
    """Raises DamagedModel for what is missing, is of another shape, or belongs to no part of the network."""
    wrong = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    if wrong:
        name = wrong[0]
        raise DamagedModel(
            f"{named} does not fit its network: {name} is {shapes.get(name, 'missing')}, "
            f"expected {wanted.get(name, 'nothing')} (and {len(wrong) - 1} more)"
        )
