"""A Request becomes pictures: text, denoising, decoding, upscaling, each timed, each picture checked.

Comes in: a diffusers pipeline as it stands, a settled Request. Goes out: one Picture after the other. Knows nothing of
optimizers, files or terminals.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safelight.errors import OutOfMemory
from safelight.measure.clock import Clock
from safelight.probe.device import Device
from safelight.request import Request
from safelight.run import shortage
from safelight.run.canvas import Canvas, canvas
from safelight.run.decoding import decode_checked, to_images, to_tensor
from safelight.run.denoising import Progress, Watch
from safelight.run.passes import Drawn, Passes
from safelight.run.preview import Previews
from safelight.run.settling import family, final_size, size_multiple
from safelight.run.words import words_of
from safelight.sampling import schedulers, upscalers
from safelight.sampling.checkpoint import Checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Picture:
    """`width` x `height` times `upscale`. vae_retried: the VAE gave NaN or black, and float32 mended it.

    first: of two passes, where it is wanted.

    batch_index, batch_size: the place in the batch it was drawn in. A picture equals the one its seed gives alone but
    for rounding (one level of 255 in float32: kernels add up in another order); in the same batch it is bit-equal.
    """

    image: "Image"
    index: int
    seed: int
    batch_index: int = 0
    batch_size: int = 1
    vae_retried: bool = False
    first: "Image | None" = None


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
    keep_first: bool = False,
) -> Iterator[Picture]:
    """Draws `request.count` pictures, `batch_size` at a time, and yields each batch as soon as it is done.

    first: the picture to begin with, the first of a batch; those before it were drawn already.
    begin: called with the request's own pipeline object before each batch. preview: leaves the pictures as they are.
    turn: a lock that is held for each batch, as optimizers keep the state of a run in the models that all requests
    share. keep_first: pictures carry that of their first pass, too.
    Raises SpoiledPicture, OutOfMemory. The pipeline is left as it was, whatever happens.
    """
    pipe = own_object(pipe)
    width, height = final_size(request, size_multiple(pipe))
    _check_memory(pipe, request, device, width, height)
    watch = Watch(clock or Clock(), progress, preview)
    passes = _passes(pipe, request, checkpoint, device, keep_first=keep_first)
    network = upscalers.load(request.upscale, device=device.torch_name) if request.upscale > 1 else None
    seeds, variations = request.seeds(), request.variation_seeds()
    for start in range(first, request.count, request.batch_size):
        places = slice(start, start + request.batch_size)
        with turn or nullcontext(), _out_of_memory_explained(watch.clock, device, request):
            begin(pipe)
            drawn, images, retried = _batch(passes, seeds[places], (variations or [])[places], watch, network)
        for i, image in enumerate(images):
            progress("pictures", start + i + 1, request.count)
            before = drawn.first[i] if drawn.first else None
            yield Picture(image, start + i, seeds[start + i], i, len(images), retried[i], before)


def _batch(
    passes: Passes, seeds: list[int], variation_seeds: list[int], watch: Watch, network: Any
) -> "tuple[Drawn, list[Image], list[bool]]":
    """The pictures of these seeds, and which of them the VAE gave only in float32."""
    drawn = passes(seeds, variation_seeds or None, watch)
    watch.clock.switch("decode")
    watch.progress("decode", 0, 1)
    decoded, retried = decode_checked(passes.pipe, drawn.latents, drawn.height, drawn.width)
    watch.progress("decode", 1, 1)
    if passes.canvas is not None:
        decoded = to_tensor([passes.canvas.finished(image) for image in to_images(decoded)])
    if network is not None:
        decoded = _upscaled(network, decoded, watch)
    watch.clock.switch()
    return drawn, to_images(decoded), retried


def _upscaled(network: Any, decoded: "Tensor", watch: Watch) -> "Tensor":
    watch.clock.switch("upscale")
    watch.progress("upscale", 0, 1)
    larger = upscalers.upscale(network, decoded.float())
    watch.progress("upscale", 1, 1)
    return larger


def _passes(pipe: Any, request: Request, checkpoint: Checkpoint, device: Device, *, keep_first: bool) -> Passes:
    """What all batches have in common; an error now rather than later."""
    assert request.width and request.height, "the request is settled"
    recipe = schedulers.find(request.sampler, request.schedule)
    schedulers.check(recipe, request.sampler_options, checkpoint, family(pipe))
    begins: Canvas | None = canvas(request, request.width, request.height) if request.init else None
    words, multiple = words_of(pipe, request, recipe), size_multiple(pipe)
    enlarged = upscalers.enlarging(request.hires_upscaler, device=device.torch_name) if request.hires else None
    return Passes(pipe, request, checkpoint, recipe, family(pipe), words, multiple, begins, enlarged, keep_first)


def own_object(pipe: Any) -> Any:
    """A pipeline object for one request, over the same models: what a run writes into it no other request sees.

    Two runs on one object share its scheduler, and end in an IndexError or in each other's noise (diffusers issues
    3672, 7851). Not `from_pipe`: without a dtype that converts the shared models to float32 (diffusers issue 12754).
    """
    own = copy(pipe)
    vars(own)["scheduler"] = deepcopy(pipe.scheduler)
    return own


def _check_memory(pipe: Any, request: Request, device: Device, width: int, height: int) -> None:
    """Raises OutOfMemory if not even the decoder's last layer fits: Linux would kill the process without a word.

    Counted are its input and its output alone, so that what might fit is never refused.
    """
    vae = pipe.vae
    whole = type(vae).__name__ == "AutoencoderKL" and not vae.use_tiling
    channels = vae.config.block_out_channels[0] if whole else 3
    pictures = 1 if getattr(vae, "use_slicing", False) else min(request.batch_size, request.count)
    pixels = pictures * width * height
    wanted = 2 * pixels * channels * next(vae.parameters()).element_size()
    if wanted > device.free_bytes:
        raise OutOfMemory(
            f"decode of {pictures} picture(s) of {width}x{height} needs more than "
            f"{wanted / 2**30:.1f} GiB, and {device.free_bytes / 2**30:.1f} GiB are free on {device.name}: "
            f"try {REMEDIES['decode']}"
        )


REMEDIES = {
    "text": "a 16 bit --dtype",
    "denoise": "a smaller --batch-size or picture, or -o dtype",
    "preview": "no previews, or a smaller picture",
    "decode": "-o vae-tiling, -o vae-slicing for batches, or a smaller picture",
    "encode": "-o vae-tiling, or a smaller picture",
    "hires": "a smaller --batch-size or --hires, or -o dtype",
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
