"""The parts of claims_measure.py that draw with the bundled model: batches, guidance, steps, schedules.

64 px unless a row says otherwise, float32. Goes out: rows for its JSON.
"""

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import sampling_worker as worker
import torch
from torch import Tensor

from safelight.sampling import schedulers
from safelight.simulate.trace import record

PROMPTS = (
    "a red apple, 3d, on a blue background",
    "a dog, flat, on a white background",
    "a tree, 3d, on a green background",
    "a violin, 3d, on a purple background",
)
GUIDANCE = 3.0  # what the bundled model was made for
FEW = 2  # pictures of each number of steps
LIMIT = 120  # evaluations that count as the end
# which steps the guides name; Euler a has no limit: every number of steps is another picture
STEPS = {
    "DPM++ 2M Karras": (10, 15, 20, 25, 30, 50),
    "DPM++ 2M Uniform": (20, 25),
    "DPM++ SDE Karras": (15, 20, 25, 30),
    "UniPC": (12, 15, 20, 25),
    "Euler": (15, 20),
    "Heun": (15, 20),
    "LMS Karras": (15, 25),
    "DDIM": (20, 30, 50, 100),
}
PATHS = ("DPM++ SDE Karras",)  # it ends at its own picture, on its own noise
Row = dict[str, Any]
Timing = Callable[..., float]


@cache
def model() -> worker.Model:
    return worker.opened(PROMPTS, GUIDANCE)


def call(pictures: int, side: int) -> tuple[list[Tensor], Callable[[], Any]]:
    """One evaluation of the denoiser, for so many rows."""
    words = model().words[-1:].expand(pictures, -1, -1)
    torch.manual_seed(0)
    given = torch.randn(pictures, model().shape[0], side, side)
    return [given, words], lambda: model().pipe.unet(given, torch.tensor(500), words, return_dict=False)


def evaluation(rows: int, side: int, seconds: Timing) -> Row:
    given, run = call(rows, side)
    with torch.no_grad():
        peak = record(run, given).peak_bytes
    return {"rows": rows, "seconds": seconds(run), "peak_bytes": peak}


def batches(seconds: Timing) -> Iterator[Row]:
    """With guidance, so that a picture is two rows of a batch."""
    for pictures in (1, 2, 4, 8, 16):
        yield {"pictures": pictures} | evaluation(2 * pictures, model().shape[1], seconds)


def guidance(seconds: Timing) -> Iterator[Row]:
    """One picture without guidance (one row) and with it (two)."""
    for factor in (1, 4):
        side = model().shape[1] * factor
        for rows in (1, 2):
            yield {"latents": side, "guided": rows == 2} | evaluation(rows, side, seconds)


def steps() -> Iterator[Row]:
    """PSNR to where a sampler ends, and processor seconds per picture, decode left out."""
    limits: dict[str, Tensor] = {}
    flow = drawn("DPM++ 2M Karras", LIMIT, FEW)[0]
    for name, counts in STEPS.items():
        limits[name] = drawn(name, LIMIT // 2, FEW)[0] if name in PATHS else flow
        for count in counts:
            shown, evaluations, spent = drawn(name, count, FEW)
            told = {"sampler": name, "steps": count, "evaluations": evaluations, "seconds": spent}
            yield told | {"psnr": worker.psnr(shown, limits[name])}


def drawn(name: str, count: int, of: int = len(PROMPTS)) -> tuple[Tensor, int, float]:
    """(pictures of the first prompts, evaluations, processor seconds per picture)."""
    made = model().only(0, of)
    started = time.process_time()
    found = worker.drawn(made, schedulers.find(name), count, range(of))
    spent = (time.process_time() - started) / of
    return worker.pictures(made, found.latents), found.evaluations, spent


def runs() -> Iterator[Row]:
    """Bytes of tensors at the worst moment of a whole run but its decode, counted while it draws."""
    made = model()  # before it is counted
    draw = worker.drawn.__wrapped__  # without inference mode, in which some operators are not seen
    for name, count in (("DDIM", 50), ("DPM++ 2M", 20), ("DPM++ 2M", 10)):
        with torch.no_grad():
            trace = record(lambda name=name, count=count: draw(made, schedulers.find(name), count, range(4)))
        yield {"sampler": name, "steps": count, "peak_bytes": trace.peak_bytes, "operators": trace.launches}


def schedules() -> Iterator[Row]:
    """DDIM with the noise levels that the model was trained with, and with cosine ones, as diffusers has it."""
    flow = drawn("DPM++ 2M Karras", LIMIT)[0]
    for betas in ("scaled_linear", "squaredcos_cap_v2"):
        scheduler = ddim(beta_schedule=betas)
        last = scheduler.alphas_cumprod[-1]
        shown = pictures(scheduler, 20, GUIDANCE)
        yield {"betas": betas, "largest_sigma": float(((1 - last) / last) ** 0.5), "psnr": worker.psnr(shown, flow)}
    yield {"betas": "cosine", "refused": refusal()}


def refusal() -> str:
    """What diffusers says to the word that the guide has."""
    from diffusers import DDIMScheduler

    try:
        DDIMScheduler(beta_schedule="cosine")
    except NotImplementedError as error:
        return str(error)
    return ""


def scales() -> Iterator[Row]:
    """The share of a picture's values that is cut off at black or white, by guidance."""
    scheduler = ddim()
    for scale in (1.0, 3.0, 7.5, 12.0):
        shown = pictures(scheduler, 20, scale)
        cut = ((shown <= 0) | (shown >= 1)).float().mean()
        yield {"guidance": scale, "cut": float(cut)}


def ddim(**changed: Any) -> Any:
    """diffusers' own. clip_sample is for models that draw pixels, and true unless it is said."""
    from diffusers import DDIMScheduler

    config = {**model().pipe.scheduler.config, "clip_sample": False, **changed}
    return DDIMScheduler.from_config(config)


@torch.inference_mode()
def pictures(scheduler: Any, count: int, scale: float) -> Tensor:
    """A picture of each prompt; the first noise is that of seeds 0, 1, ..."""
    from safelight.sampling.noise import Noise

    made = model()
    scheduler.set_timesteps(count)
    x = Noise(list(range(len(PROMPTS)))).first(made.shape)
    for step in scheduler.timesteps:
        without, prompted = made.pipe.unet(torch.cat([x, x]), step, made.words).sample.chunk(2)
        x = scheduler.step(without + scale * (prompted - without), step, x, return_dict=False)[0]
    return worker.pictures(made, x)
