"""Small measurements that claims.py wants and no other benchmark has: all take about five minutes.

python benchmarks/claims_measure.py --out benchmarks/claims_cpu_2026-11-21
python benchmarks/claims_measure.py --parts overlap counts --out /tmp/some

One thread; seconds are those of the processor (process_time), medians of a few calls. Bytes and operations are counted,
operator by operator, on tensors that have a shape and no numbers unless it says otherwise: they are exact, on any
machine. A GiB is 2**30 bytes. Writes OUT.json anew after each part, and keeps the other parts.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import claims_pictures
import fullsize
import sampling_worker

Row = dict[str, Any]
CALLS = 5
LONG_SECONDS = 5.0  # what takes longer is called once
STATE = "a machine shared with other work, one thread, seconds of the processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS), help="default: all")
    parser.add_argument("--out", type=Path, required=True, help="OUT.json is written")
    args = parser.parse_args()
    with sampling_worker.one_thread():
        for part in args.parts:
            add(args.out, part, list(PARTS[part]()))


def add(out: Path, part: str, rows: list[Row]) -> None:
    from safelight.probe.device import here

    file = Path(f"{out}.json")
    before = json.loads(file.read_text()) if file.exists() else {}
    told = {
        "schema": 1,
        "command": f"python benchmarks/claims_measure.py --out benchmarks/{out.name}",
        "machine": here("cpu").name,
        "state": STATE,
        "versions": {name: version(name) for name in ("torch", "diffusers")} | {"python": platform.python_version()},
    }
    file.write_text(json.dumps({**before, **told, part: rows}, indent=1) + "\n")


# -- how it is measured ------------------------------------------------------------------------------------------------


def seconds(run: Callable[[], Any], calls: int = CALLS) -> float:
    """Median of processor seconds, after a call that is not counted."""
    import torch

    samples = []
    with torch.inference_mode():
        run()
        for _ in range(calls):
            started = time.process_time()
            run()
            samples.append(time.process_time() - started)
    return statistics.median(samples)


def counted(make: Callable[[], Any], call: Callable[[Any], Callable[[], Any]]) -> Row:
    """A model made by `make`, and what `call` of it does: counted on tensors without numbers, weights beside."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from safelight.measure.memory import module_bytes
    from safelight.simulate.fake import uninitialized
    from safelight.simulate.strides import real_strides
    from safelight.simulate.trace import record

    with FakeTensorMode(), real_strides("cpu"), torch.no_grad():
        with uninitialized():
            model = make().eval().requires_grad_(False)
        trace = record(call(model))
    return {"peak_bytes": trace.peak_bytes, "tflop": trace.flops / 1e12, "weight_bytes": module_bytes(model)}


def part_of(model: str, part: str, dtype: str) -> Callable[[], Any]:
    import importlib

    import torch

    library, name, config = fullsize.MODELS[model][part]
    cls = getattr(importlib.import_module(library), name)

    def make() -> Any:
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            return cls(cls.config_class(**config)) if library == "transformers" else cls(**config)
        finally:
            torch.set_default_dtype(before)

    return make


def decoding(side_px: int, batch: int = 1) -> Callable[[Any], Callable[[], Any]]:
    import torch

    def call(vae: Any) -> Callable[[], Any]:
        given = torch.empty(batch, 4, side_px // 8, side_px // 8, dtype=vae.dtype)
        return lambda: vae.decode(given, return_dict=False)

    return call


def denoising(side: int, batch: int) -> Callable[[Any], Callable[[], Any]]:
    """One call of SD1.5's denoiser. side: of what it denoises. batch: of both halves of guidance together."""
    import torch

    def call(unet: Any) -> Callable[[], Any]:
        given = torch.empty(batch, 4, side, side, dtype=unet.dtype)
        text = torch.empty(batch, 77, 768, dtype=unet.dtype)
        return lambda: unet(given, torch.zeros(1), text, return_dict=False)

    return call


# -- counted -----------------------------------------------------------------------------------------------------------

TILED = (  # side of the picture, side of a tile, overlap of tiles; None: whole
    (2048, None, None),
    (2048, 512, 0.125),
    (2048, 512, 0.25),
    (2048, 512, 0.5),
    (2048, 256, 0.25),
    (1024, None, None),
    (1024, 512, 0.25),
)
# side of a picture that is decoded besides; 0: none
WEIGHED = (
    ("sd15", 512, ("float32", "float16")),
    ("sdxl", 1024, ("float32", "float16")),
    ("flux1-dev", 0, ("bfloat16",)),
)
BATCHES = ((512, 1), (512, 4), (512, 6), (768, 2), (768, 3), (1024, 1), (1024, 2))  # the first guide's table


def overlap() -> Iterator[Row]:
    """diffusers' tiled decode of SD1.5's VAE in float16."""
    for side, tile, share in TILED:

        def call(vae: Any, side: int = side, tile: int | None = tile, share: float | None = share) -> Any:
            if tile is not None:
                vae.enable_tiling()
                vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // 8
                vae.tile_overlap_factor = share
            return decoding(side)(vae)

        yield {"side_px": side, "tile_px": tile, "overlap": share} | counted(part_of("sd15", "vae", "float16"), call)


def counts() -> Iterator[Row]:
    """SD1.5 with guidance: denoiser and decode of whole batches, and one picture after the other (VAE slicing)."""
    for side, batch in BATCHES:
        denoise = counted(part_of("sd15", "unet", "float16"), denoising(side // 8, 2 * batch))
        decode = counted(part_of("sd15", "vae", "float16"), decoding(side, batch))
        text = counted(part_of("sd15", "text_encoder", "float16"), lambda model: lambda: None)
        yield {
            "side_px": side,
            "batch": batch,
            "weight_bytes": sum(part["weight_bytes"] for part in (denoise, decode, text)),
            "denoise_bytes": denoise["peak_bytes"],
            "decode_bytes": decode["peak_bytes"],
            "denoise_tflop": denoise["tflop"],
            "decode_tflop": decode["tflop"],
        }


def weights() -> Iterator[Row]:
    """What the weights of each part take, and a VAE's decode at the size of its model."""
    for model, side, dtypes in WEIGHED:
        for dtype in dtypes:
            for part in [name for name in fullsize.MODELS[model] if name != "scheduler"]:
                call = decoding(side) if part == "vae" and side else (lambda made: lambda: None)
                found = counted(part_of(model, part, dtype), call)
                yield {"model": model, "part": part, "dtype": dtype, "side_px": side} | found


def pixels() -> Iterator[Row]:
    """SD1.5's denoiser on the latents of a picture of 512 px, and the same network on its pixels."""
    for what, side in (("latents", 64), ("pixels", 512)):
        yield {"on": what} | counted(part_of("sd15", "unet", "float16"), denoising(side, 1))


# -- blocks of SD1.5's size --------------------------------------------------------------------------------------------


def attention() -> Iterator[Row]:
    """Self-attention of SD1.5's highest level, a picture of 512 px, float32: torch's, diffusers' plain one, sliced."""
    import torch
    from diffusers.models import attention_processor as processors

    from safelight.simulate.trace import record

    torch.manual_seed(0)
    layer = processors.Attention(query_dim=320, heads=8, dim_head=40).eval().requires_grad_(False)
    given, first = torch.randn(1, 4096, 320), None
    ways = (
        ("fused", processors.AttnProcessor2_0()),
        ("plain", processors.AttnProcessor()),
        ("sliced, half the heads", processors.SlicedAttnProcessor(4)),
        ("sliced, one head", processors.SlicedAttnProcessor(1)),
    )
    for way, processor in ways:
        layer.set_processor(processor)
        with torch.no_grad():
            made = layer(given)
            peak = record(lambda: layer(given), [given]).peak_bytes
        first = made if first is None else first
        difference = float((made - first).abs().max())
        yield {"way": way, "seconds": seconds(lambda: layer(given), 3), "peak_bytes": peak, "difference": difference}


def merging() -> Iterator[Row]:
    """The same layer's attention with half of its tokens merged, the matching beside."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from safelight.optimizers.merging import matching

    torch.manual_seed(0)
    tokens = torch.randn(1, 4096, 320)
    for ratio in (0.0, 0.25, 0.5):
        merge, _ = matching(tokens, (64, 64), (2, 2), ratio)
        left = merge(tokens)
        heads = left.unflatten(-1, (8, 40)).transpose(1, 2)

        def whole(tokens: Any = tokens, ratio: float = ratio, heads: Any = heads) -> Any:
            move, back = matching(tokens, (64, 64), (2, 2), ratio)
            move(tokens)
            return back(scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2))

        yield {"ratio": ratio, "tokens": left.shape[1], "seconds": seconds(whole, 3)}


def dtypes() -> Iterator[Row]:
    """A block of SD1.5's denoiser with one layer: 640 channels at 16 x 16, of a picture of 256 px."""
    import torch
    from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D

    from safelight.measure.memory import module_bytes
    from safelight.simulate.trace import record

    torch.manual_seed(0)
    trained = CrossAttnDownBlock2D(
        320, 640, 1280, num_layers=1, num_attention_heads=8, cross_attention_dim=768, add_downsample=False
    )
    trained = trained.eval().requires_grad_(False)
    given = (torch.randn(1, 320, 16, 16), torch.randn(1, 1280), torch.randn(1, 77, 768))
    exact = None
    for name in ("float32", "bfloat16", "float16"):
        dtype = getattr(torch, name)
        block = deepcopy(trained).to(dtype)
        x, time_words, text = (tensor.to(dtype) for tensor in given)

        def run(block: Any = block, x: Any = x, time_words: Any = time_words, text: Any = text) -> Any:
            return block(x, temb=time_words, encoder_hidden_states=text)[0]

        made: list[Any] = []
        started = time.process_time()
        with torch.no_grad():
            peak = record(lambda run=run, made=made: made.append(run()), [x, time_words, text]).peak_bytes
        first = time.process_time() - started
        exact = made[0].float() if exact is None else exact
        error = float((made[0].float() - exact).norm() / exact.norm())
        sizes = {"weight_bytes": module_bytes(block), "peak_bytes": peak, "error": error}
        yield {"dtype": name, "seconds": first if first > LONG_SECONDS else seconds(run, 3)} | sizes


def work_on_tiles() -> Iterator[Row]:
    """What a decoder does beside its convolutions, on float32 tensors: milliseconds of each of two ways."""
    import torch
    from torch.nn.functional import conv2d

    torch.manual_seed(0)
    tile = torch.randn(1, 3, 1024, 1024)
    ramp = torch.linspace(0, 1, 1024)
    frame = torch.randn(1, 64, 192, 192)
    window, kernel = frame[..., 32:160, 32:160], torch.randn(64, 64, 3, 3)
    tight = window.contiguous()
    plane = ramp[:, None] * ramp[None, :]
    ways = {
        "multiplying a tile": (lambda: tile * 1.0, lambda: tile.mul_(1.0)),
        "a convolution of a window": (
            lambda: conv2d(window, kernel, padding=1),
            lambda: conv2d(tight, kernel, padding=1),
        ),
        "a cosine ramp": (lambda: 0.5 - 0.5 * torch.cos(torch.pi * torch.linspace(0, 1, 1024)), lambda: ramp),
        "blending by a plane or by two ramps": (lambda: tile * plane, lambda: tile * ramp[:, None] * ramp),
    }
    for what, (before, after) in ways.items():
        yield {"what": what, "before_ms": 1e3 * seconds(before, 15), "after_ms": 1e3 * seconds(after, 15)}


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "overlap": overlap,
    "counts": counts,
    "weights": weights,
    "pixels": pixels,
    "attention": attention,
    "merging": merging,
    "dtypes": dtypes,
    "tiles": work_on_tiles,
    "batches": lambda: claims_pictures.batches(seconds),
    "guidance": lambda: claims_pictures.guidance(seconds),
    "steps": claims_pictures.steps,
    "runs": claims_pictures.runs,
    "schedules": claims_pictures.schedules,
    "scales": claims_pictures.scales,
}


if __name__ == "__main__":
    main()
