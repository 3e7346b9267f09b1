"""A Request becomes pictures: text, denoising, decoding, upscaling, each timed, each picture checked.

Comes in: a diffusers pipeline as it stands, a settled Request. Goes out: one Picture after the other. Knows nothing of
optimizers, files or terminals.

Tensors: latents are (batch, channels, latent_height, latent_width) or packed as the pipeline likes; pictures are
float (batch, 3, height, width) in 0..1.
"""

import inspect
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from safelight.errors import DoesNotApply, OutOfMemory, SpoiledPicture, UsageError
from safelight.measure.clock import Clock
from safelight.optimizers.precision import kept_tensors
from safelight.optimizers.registry import swapped
from safelight.optimizers.target import denoiser
from safelight.optimizers.upcast import Float32Latents
from safelight.probe.device import Device
from safelight.request import MAX_SEED, Request
from safelight.run import shortage
from safelight.run.preview import Previews
from safelight.sampling import predicted, schedulers, upscalers

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

DEFAULT_STEPS = 20
BLACK = 2 / 255  # no pixel brighter than this: the picture is taken for black
Progress = Callable[[str, int, int], None]  # (stage, done, of how many), called from the run's own thread


@dataclass(frozen=True, slots=True)
class Picture:
    """`width` x `height` times `upscale`. vae_retried: the VAE gave NaN or black, and float32 mended it.

    batch_index, batch_size: the place in the batch it was drawn in. A picture equals the one its seed gives alone but
    for rounding (one level of 255 in float32: kernels add up in another order); in the same batch it is bit-equal.
    """

    image: "Image"
    index: int
    seed: int
    batch_index: int = 0
    batch_size: int = 1
    vae_retried: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The scheduler that a model came with: samplers are built from it, whatever the pipeline now holds."""

    cls: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, pipe: Any) -> "Checkpoint":
        return cls(type(pipe.scheduler).__name__, dict(pipe.scheduler.config))


def check_supported(pipe: Any) -> None:
    """Raises UsageError for a pipeline that does not turn a prompt into latents of a picture, such as one for video."""
    parts = ("vae_scale_factor", "prepare_latents", "encode_prompt", "scheduler", "vae")
    takes = inspect.signature(pipe.__call__).parameters
    missing = [name for name in parts if not hasattr(pipe, name)]
    missing += [name for name in ("prompt", "width", "callback_on_step_end") if name not in takes]
    if missing or "num_frames" in takes or not (hasattr(pipe, "unet") or hasattr(pipe, "transformer")):
        raise UsageError(f"{type(pipe).__name__} is not a text-to-image pipeline that Safelight can run yet")


def settle(pipe: Any, request: Request, defaults: Mapping[str, Any]) -> Request:
    """The request with nothing left open. Raises UsageError for what this model cannot do."""
    asked = inspect.signature(pipe.__call__).parameters
    side = own_side_px(pipe)
    settled = replace(
        request,
        width=request.width or side,
        height=request.height or side,
        steps=request.steps or defaults.get("steps", DEFAULT_STEPS),
        guidance=request.guidance if request.guidance is not None else _own_guidance(asked, defaults),
        seed=request.seed if request.seed is not None else secrets.randbelow(MAX_SEED + 1),
        sampler=schedulers.find(name).label if (name := request.sampler or defaults.get("sampler")) else None,
    )
    if request.negative and "negative_prompt" not in asked:
        raise DoesNotApply(f"{type(pipe).__name__} takes no negative prompt: leave it out")
    _check_size(settled, size_multiple(pipe))
    return settled


def own_side_px(pipe: Any) -> int:
    """The side of the square picture that the model was trained for, in pixels."""
    size = getattr(pipe, "default_sample_size", None) or denoiser(pipe).config.sample_size
    side = size if isinstance(size, int) else size[0]
    return side * pipe.vae_scale_factor


def size_multiple(pipe: Any) -> int:
    """Width and height are multiples of this: the VAE's factor, twice that where latents are packed two by two."""
    packed = hasattr(pipe, "_unpack_latents")
    patch = 1 if packed else getattr(denoiser(pipe).config, "patch_size", 1) or 1
    return pipe.vae_scale_factor * (2 if packed else patch)


def _own_guidance(asked: Mapping[str, inspect.Parameter], defaults: Mapping[str, Any]) -> float | None:
    if "guidance" in defaults:
        return defaults["guidance"]
    return asked["guidance_scale"].default if "guidance_scale" in asked else None


def _check_size(request: Request, multiple: int) -> None:
    for name in ("width", "height"):
        asked = getattr(request, name)
        if asked % multiple:
            below = asked // multiple * multiple
            near = f"{below} and {below + multiple}" if below else str(multiple)
            raise UsageError(f"{name} is {asked}: this model draws multiples of {multiple} pixels ({near} are near)")


def pictures(
    pipe: Any,
    request: Request,
    device: Device,
    checkpoint: Checkpoint,
    *,
    clock: Clock | None = None,
    progress: Progress = lambda stage, done, total: None,
    begin: Callable[[Any], None] = lambda pipe: None,
    preview: Previews | None = None,
    turn: AbstractContextManager[Any] | None = None,
    first: int = 0,
) -> Iterator[Picture]:
    """Draws `request.count` pictures, `batch_size` at a time, and yields each batch as soon as it is done.

    first: the picture to begin with, the first of a batch; those before it were drawn already.
    begin: called with the request's own pipeline object before each batch. preview: leaves the pictures as they are.
    turn: a lock that is held for each batch, as optimizers keep the state of a run in the models that all requests
    share.
    Raises SpoiledPicture, OutOfMemory. The pipeline is left as it was, whatever happens.
    """
    pipe = own_object(pipe)
    _check_memory(pipe, request, device)
    clock = clock or Clock()
    network = upscalers.load(request.upscale, device=device.torch_name) if request.upscale > 1 else None
    scheduler = _scheduler(request, checkpoint)
    numbered = list(enumerate(request.seeds()))
    for start in range(first, request.count, request.batch_size):
        chunk = numbered[start : start + request.batch_size]
        with turn or nullcontext(), _out_of_memory_explained(clock, device, request):
            begin(pipe)
            latents = _denoise(pipe, request, [seed for _, seed in chunk], scheduler(), clock, progress, preview)
            clock.switch("decode")
            progress("decode", 0, 1)
            decoded, retried = decode_checked(pipe, latents, request)
            progress("decode", 1, 1)
            if network is not None:
                clock.switch("upscale")
                progress("upscale", 0, 1)
                decoded = upscalers.upscale(network, decoded.float())
                progress("upscale", 1, 1)
            clock.switch()
        images = to_images(decoded)
        for i, ((index, seed), image) in enumerate(zip(chunk, images, strict=True)):
            progress("pictures", index + 1, request.count)
            yield Picture(image, index, seed, i, len(chunk), retried[i])


def own_object(pipe: Any) -> Any:
    """A pipeline object for one request, over the same models: what a run writes into it no other request sees.

    Two runs on one object share its scheduler, and end in an IndexError or in each other's noise (diffusers issues
    3672, 7851). Not `from_pipe`: without a dtype that converts the shared models to float32 (diffusers issue 12754).
    """
    own = copy(pipe)
    vars(own)["scheduler"] = deepcopy(pipe.scheduler)
    return own


def _check_memory(pipe: Any, request: Request, device: Device) -> None:
    """Raises OutOfMemory if not even the decoder's last layer fits: Linux would kill the process without a word.

    Counted are its input and its output alone, so that what might fit is never refused.
    """
    vae = pipe.vae
    whole = type(vae).__name__ == "AutoencoderKL" and not vae.use_tiling
    channels = vae.config.block_out_channels[0] if whole else 3
    pictures = 1 if getattr(vae, "use_slicing", False) else min(request.batch_size, request.count)
    pixels = pictures * (request.width or 0) * (request.height or 0)
    wanted = 2 * pixels * channels * next(vae.parameters()).element_size()
    if wanted > device.free_bytes:
        raise OutOfMemory(
            f"decode of {pictures} picture(s) of {request.width}x{request.height} needs more than "
            f"{wanted / 2**30:.1f} GiB, and {device.free_bytes / 2**30:.1f} GiB are free on {device.name}: "
            f"try {REMEDIES['decode']}"
        )


def _scheduler(request: Request, checkpoint: Checkpoint) -> Callable[[], Any]:
    """Makes a fresh scheduler each time: they carry state from run to run."""
    if request.sampler is None:
        return lambda: schedulers.own(checkpoint.config, checkpoint.cls)
    sampler = schedulers.find(request.sampler)
    schedulers.build(sampler, checkpoint.config, checkpoint.cls)  # an error now rather than later
    return lambda: schedulers.build(sampler, checkpoint.config, checkpoint.cls)


def _denoise(
    pipe: Any,
    request: Request,
    seeds: list[int],
    scheduler: Any,
    clock: Clock,
    progress: Progress,
    preview: Previews | None = None,
) -> "Tensor":
    import torch

    def first_step(*_: Any) -> None:
        if clock.stage == "text":
            clock.switch("denoise")
            progress("text", 1, 1)
            progress("denoise", 0, request.steps or 0)

    with ExitStack() as stack:
        watched = stack.enter_context(predicted.watched(scheduler)) if preview else []

        def step_done(own: Any, step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
            progress("denoise", step + 1, request.steps or 0)
            if preview and preview.due(step):
                clock.switch("preview")
                latents = unpacked(own, predicted.clean(scheduler, watched[0]), request)
                preview.show(step + 1, to_images(preview.decode(latents).float()))
                clock.switch("denoise")
            return values

        hook = denoiser(pipe).register_forward_pre_hook(first_step)
        stack.callback(hook.remove)
        stack.enter_context(swapped(pipe, scheduler=scheduler))
        stack.enter_context(float32_noise(pipe))
        stack.enter_context(torch.inference_mode())
        clock.switch("text")
        progress("text", 0, 1)
        return pipe(**_arguments(request, seeds), callback_on_step_end=step_done).images


def _arguments(request: Request, seeds: list[int]) -> dict[str, Any]:
    """What the pipeline is called with."""
    import torch

    arguments: dict[str, Any] = {
        "prompt": [request.prompt] * len(seeds),
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.steps,
        # one generator for each picture, on the CPU: noise depends neither on its place in a batch nor on the device
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        "output_type": "latent",
    }
    if request.guidance is not None:
        arguments["guidance_scale"] = request.guidance
    if request.negative:
        arguments["negative_prompt"] = [request.negative] * len(seeds)
    return arguments


@contextmanager
def float32_noise(pipe: Any) -> Iterator[None]:
    """Draws the first noise in float32 and rounds it: drawn in bfloat16, the same seed gives other noise."""
    import torch

    prepare = pipe.prepare_latents
    if isinstance(prepare, Float32Latents):  # an optimizer keeps them in float32: nothing is to be rounded
        yield
        return
    signature = inspect.signature(prepare)

    def prepare_in_float32(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        wanted = bound.arguments["dtype"]
        bound.arguments["dtype"] = torch.float32
        made = prepare(*bound.args, **bound.kwargs)
        return (made[0].to(wanted), *made[1:]) if isinstance(made, tuple) else made.to(wanted)

    with swapped(pipe, prepare_latents=prepare_in_float32):
        yield


def decode_checked(pipe: Any, latents: "Tensor", request: Request) -> tuple["Tensor", list[bool]]:
    """Decodes, looks for NaN and black, and tries once more in float32. Raises SpoiledPicture."""
    import torch

    if not torch.isfinite(latents).all():
        dtype = next(denoiser(pipe).parameters()).dtype
        raise SpoiledPicture(f"the denoiser gave not-a-number ({dtype}): try --dtype float32 or bfloat16")
    decoded = decode(pipe, latents, request)
    spoiled = [not good(picture) for picture in decoded]
    if any(spoiled):
        if any(parameter.is_meta for parameter in pipe.vae.parameters()):
            # what offloads the weights brings them in their own dtype, whatever is set here
            raise SpoiledPicture("the picture is black or not a number, and an offloaded VAE is not upcast")
        with kept_tensors(pipe, "vae"):
            pipe.vae.to(dtype=torch.float32)
            again = decode(pipe, latents.float(), request)
        if not all(good(picture) for picture in again):
            raise SpoiledPicture("the picture is black or not a number, also with the VAE in float32: not written")
        decoded = torch.stack([new if bad else old for old, new, bad in zip(decoded, again, spoiled, strict=True)])
    return decoded.float(), spoiled


def good(picture: "Tensor") -> bool:
    """A (3, height, width) picture in 0..1 without NaN, and not all black."""
    import torch

    return bool(torch.isfinite(picture).all()) and float(picture.max()) > BLACK


def unpacked(pipe: Any, latents: "Tensor", request: Request) -> "Tensor":
    """(batch, channels, latent_height, latent_width) of latents as the pipeline has them."""
    if latents.ndim == 4:
        return latents
    # packed two by two, as FLUX does
    return pipe._unpack_latents(latents, request.height, request.width, pipe.vae_scale_factor)


def decode(pipe: Any, latents: "Tensor", request: Request) -> "Tensor":
    """Latents as the pipeline returns them -> (batch, 3, height, width) in 0..1, in the VAE's dtype."""
    import torch

    config = pipe.vae.config
    latents = unpacked(pipe, latents, request)
    with torch.inference_mode(), _upcast_if_the_vae_overflows(pipe):
        latents = latents.to(next(pipe.vae.parameters()).dtype)
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            shape = (1, -1, 1, 1)
            mean, std = (latents.new_tensor(config[name]).view(shape) for name in ("latents_mean", "latents_std"))
            latents = latents * std / config.scaling_factor + mean
        else:
            latents = latents / config.scaling_factor + (config.get("shift_factor") or 0)
        return (pipe.vae.decode(latents, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)


@contextmanager
def _upcast_if_the_vae_overflows(pipe: Any) -> Iterator[None]:
    """SDXL's VAE says of itself (force_upcast) that it overflows in float16."""
    import torch

    if not (pipe.vae.dtype == torch.float16 and pipe.vae.config.get("force_upcast")):
        yield
        return
    with kept_tensors(pipe, "vae"):
        pipe.vae.to(dtype=torch.float32)
        yield


def to_images(decoded: "Tensor") -> list["Image"]:
    """(batch, 3, height, width) in 0..1 -> 8 bit pictures."""
    from PIL import Image

    pixels = (decoded * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


REMEDIES = {
    "text": "a 16 bit --dtype",
    "denoise": "a smaller --batch-size or picture, or -o dtype",
    "preview": "no previews, or a smaller picture",
    "decode": "-o vae-tiling, -o vae-slicing for batches, or a smaller picture",
    "upscale": "a smaller --batch-size, or no --upscale",
}


@contextmanager
def _out_of_memory_explained(clock: Clock, device: Device, request: Request) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if (wanted := shortage.wanted(error)) is None:
            raise
        raise OutOfMemory(
            f"{clock.stage} of {request.batch_size} picture(s) of {request.width}x{request.height} ran out of memory "
            f"on {device.name}: {wanted}; try {REMEDIES.get(clock.stage, 'a smaller picture')}"
        ) from error
