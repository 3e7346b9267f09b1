"""Tiny random VAEs of real classes, in the shapes that they come in; what runs them, and what they take."""

import functools
import math

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLWan, AutoencoderTiny

from safelight.simulate.trace import Ledger, tensors
from safelight.vae import seams
from safelight.vae.graph import WEIGHT, Graph, Made, Node, replaced


@functools.cache
def kl(widths: tuple[int, ...] = (8, 16), layers: int = 1, attention: bool = True, quant: bool = True) -> AutoencoderKL:
    """widths: of each level; the factor is 2 for each but the first."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        block_out_channels=widths,
        layers_per_block=layers,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=attention,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
    ).eval()


@functools.cache
def taesd() -> AutoencoderTiny:
    torch.manual_seed(0)
    widths = (8, 8, 8)
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).eval()


@functools.cache
def dc() -> AutoencoderDC:
    """With a linear attention, at the lowest level."""
    torch.manual_seed(0)
    levels = {"block_out_channels": (16, 32, 32), "layers_per_block": (1, 1, 1), "qkv_multiscales": ((), (), (5,))}
    levels["block_types"] = ("ResBlock", "ResBlock", "EfficientViTBlock")
    both = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in levels.items()}
    return AutoencoderDC(**both, attention_head_dim=8).eval()


@functools.cache
def wan() -> AutoencoderKLWan:
    """Of videos: the first frame, then two frames for each latent one."""
    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=4, dim_mult=[1, 1, 2], z_dim=4, num_res_blocks=1, temperal_downsample=[False, True]
    ).eval()


# by name: the VAE, its factor, channels of its latents
FAMILIES = {"tiny": (taesd, 4, 4), "dc": (dc, 4, 32), "wan": (wan, 4, 4)}


def given(make, factor: int, channels: int, what: str, height: int, width: int, frames: int = 2) -> torch.Tensor:
    """Latents or a picture of so many latents; for a video VAE of so many frames of latents."""
    torch.manual_seed(height * 100 + width)
    video = [] if make is not wan else [frames if what == "decode" else 2 * frames - 1]
    if what == "decode":
        return torch.randn(1, channels, *video, height, width)
    return torch.rand(1, 3, *video, height * factor, width * factor) * 2 - 1


def whole(vae, what: str, tensor: torch.Tensor) -> torch.Tensor:
    """What the VAE's own code makes."""
    with torch.no_grad():
        if what == "decode":
            return vae.decode(tensor, return_dict=False)[0]
        made = vae.encode(tensor, return_dict=False)[0]
        return made if isinstance(made, torch.Tensor) else made.mode()


def in_strips(vae, what: str, tensor: torch.Tensor, strip_bytes: int, share: float = 1.0) -> torch.Tensor:
    """share: 0 takes the plan of the fewest bytes, 1 the fastest, between them one that lies there."""
    with seams.exactly(vae, what) as exact:
        exact.strip_bytes = strip_bytes
        if share < 1:
            whole(vae, what, tensor[:1])
            (plans,) = exact._plans.values()
            exact.budget_bytes = plans[math.floor(share * len(plans))].peak_bytes
        return whole(vae, what, tensor)


def peak_bytes(run, before) -> int:
    """Of tensors that `run` makes, each storage once. before: what was there, and does not count."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = Ledger()
    for tensor in tensors(list(before)):
        seen.see(tensor, was_there=True)

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return seen.call(function, args, kwargs or {})

    with torch.no_grad(), Counting():
        run()
    return seen.closed().peak_bytes


def values_of(graph: Graph, module: torch.nn.Module, *inputs: torch.Tensor) -> dict[Node, torch.Tensor]:
    """Of every node and weight, computed one after the other with nothing but what the nodes say."""
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    values = dict(zip(graph.inputs, inputs, strict=True))

    def value(node: Node) -> torch.Tensor:
        if node.op == WEIGHT:
            values[node] = node.function.make() if isinstance(node.function, Made) else held[node.name]
        return values[node]

    with torch.no_grad():
        for node in graph.nodes[len(inputs) :]:
            named = {key: replaced(given, value) for key, given in node.kwargs.items()}
            given = replaced(node.args, value)
            if node.op == "native_group_norm":  # which as an operator takes only this order in memory
                given = (given[0].contiguous(), *given[1:])
            made = node.function(*given, **named)
            values[node] = made if node.which is None else made[node.which]
    return values
