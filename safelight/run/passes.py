"""The walks that one batch takes: from noise, or from a picture; and a second, larger one (A1111's highres fix).

Comes in: a settled Request. Goes out: latents as the pipeline has them, and the size of their pictures.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from safelight.request import Request
from safelight.run.canvas import Canvas
from safelight.run.decoding import decode_checked, encode, to_images, to_tensor, unpacked
from safelight.run.denoising import Pass, Watch, denoise
from safelight.run.hires import HiresPlan, hires_plan, walk_of
from safelight.run.words import WordsFor
from safelight.sampling import schedulers, upscalers
from safelight.sampling.checkpoint import Checkpoint
from safelight.sampling.driven import Inpaint, Walk
from safelight.sampling.noise import Noise
from safelight.sampling.schedulers import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

SECOND = "hires"  # what the second pass is called by the clock
LATENT = "Latent"  # A1111's upscaler of a second pass where none is named


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """latents: as the pipeline has them. height, width: of their pictures in pixels.

    first: the pictures of the first of two passes, where they are wanted. retried: which of these the VAE gave only in
    float32.
    """

    latents: "Tensor"
    height: int
    width: int
    first: "tuple[Image, ...]" = ()


@dataclass(frozen=True, slots=True, eq=False)
class Passes:
    """What all batches of a request have in common. multiple: pixels that sides are multiples of.

    recipe, family: of the sampler and of the model. upscale: of pictures, between two passes.
    """

    pipe: Any
    request: Request
    checkpoint: Checkpoint
    recipe: Recipe
    family: str | None
    words: WordsFor
    multiple: int
    canvas: Canvas | None = None
    enlarged: "Callable[[Tensor, int, int], Tensor] | None" = None
    keep_first: bool = False

    def __call__(self, seeds: list[int], variation_seeds: list[int] | None, watch: Watch) -> Drawn:
        request = self.request
        assert request.width and request.height and request.steps, "the request is settled"
        start = Pass(request.height, request.width, request.steps, request.guidance, tuple(seeds))
        if self.canvas is not None:
            return self._from_canvas(self.canvas, start, variation_seeds, watch)
        latents = self._walk(start, variation_seeds, watch, Walk())
        drawn = Drawn(latents, request.height, request.width)
        return self._larger(drawn, start, variation_seeds, watch) if request.hires else drawn

    def _walk(self, task: Pass, variation_seeds: list[int] | None, watch: Watch, walk: Walk) -> "Tensor":
        request, count = self.request, len(task.seeds)
        noise = Noise(
            list(task.seeds),
            rng=request.rng,
            variation_seeds=variation_seeds,
            variation_strength=request.variation_strength,
            seed_delta=request.eta_noise_seed_delta,
        )
        ours = {} if walk == Walk() else {"walk": walk}
        scheduler = schedulers.build(
            self.recipe,
            self.checkpoint,
            options=request.sampler_options,
            batch_size=count,
            family=self.family,
            guidance=request.guidance,
            **ours,
        )
        watch.clock.switch("text")
        first_pass = request.steps if watch.stage == SECOND else None
        words = self.words(count, task.steps, first_pass)
        return denoise(self.pipe, task, words, scheduler, noise, watch)

    # -- from a picture ------------------------------------------------------------------------------------------------

    def _from_canvas(self, canvas: Canvas, start: Pass, variation_seeds: list[int] | None, watch: Watch) -> Drawn:
        request = self.request
        watch.clock.switch("encode")
        watch.progress("encode", 0, 1)
        clean = encode(self.pipe, to_tensor([canvas.image])).repeat(len(start.seeds), 1, 1, 1)
        watch.progress("encode", 1, 1)
        mask = canvas.latent_mask(*clean.shape[-2:])
        begin = clean if mask is None else self._under(mask.to(clean), clean, start.seeds)
        assert request.denoise is not None, "the request is settled"
        total, steps = walk_of(start.steps, request.denoise, fixed=False)
        inpaint = None if mask is None else Inpaint(clean, mask.to(clean))
        task = replace(start, steps=steps, clean=begin, inpaint=inpaint)
        latents = self._walk(task, variation_seeds, watch, Walk(total, steps))
        return Drawn(latents, start.height, start.width)

    def _under(self, mask: "Tensor", clean: "Tensor", seeds: tuple[int, ...]) -> "Tensor":
        """What the walk begins from where it draws: the picture (filled or not, as the canvas has it), noise, nothing.

        Source: modules/processing.py of A1111 1.10, StableDiffusionProcessingImg2Img.init.
        """
        content = self.request.mask_content
        if content in ("original", "fill"):
            return clean
        kept = clean * (1 - mask)
        if content == "nothing":
            return kept
        return kept + Noise(list(seeds), rng=self.request.rng).first(tuple(clean.shape[1:])).to(clean) * mask

    # -- the second, larger pass ---------------------------------------------------------------------------------------

    def _larger(self, drawn: Drawn, start: Pass, variation_seeds: list[int] | None, watch: Watch) -> Drawn:
        request = self.request
        assert request.hires is not None, "asked for"
        plan = hires_plan(start.width, start.height, request.hires, self.multiple, self.pipe.vae_scale_factor)
        upscaler = upscalers.find(request.hires_upscaler or LATENT)
        first: tuple[Image, ...] = ()
        if upscaler.kind == "latent" and not self.keep_first:
            pictures = None
        else:
            watch.clock.switch("decode")
            pictures, _ = decode_checked(self.pipe, drawn.latents, drawn.height, drawn.width)
            first = tuple(to_images(pictures)) if self.keep_first else ()
        if upscaler.kind == "latent":
            latents = unpacked(self.pipe, drawn.latents, drawn.height, drawn.width).float()
            factor = self.pipe.vae_scale_factor
            sides = (plan.upscale_height // factor, plan.upscale_width // factor)
            clean = upscalers.upscale_latents(latents, *sides, request.hires_upscaler or LATENT)
        else:
            clean = self._through_pictures(pictures, plan, watch)
        clean = cropped(clean, plan)
        steps = request.hires_steps or start.steps
        if not request.hires_denoise:
            return Drawn(clean.to(drawn.latents.dtype), plan.target_height, plan.target_width, first)
        total, _ = walk_of(steps, request.hires_denoise, fixed=True)
        task = replace(start, height=plan.target_height, width=plan.target_width, steps=steps, clean=clean)
        latents = self._walk(task, variation_seeds, replace(watch, stage=SECOND), Walk(total, steps))
        return Drawn(latents, plan.target_height, plan.target_width, first)

    def _through_pictures(self, pictures: "Tensor | None", plan: HiresPlan, watch: Watch) -> "Tensor":
        assert pictures is not None, "an upscaler of pictures has pictures"
        assert self.enlarged is not None, "an upscaler of pictures is loaded"
        watch.clock.switch("upscale")
        watch.progress("upscale", 0, 1)
        larger = self.enlarged(pictures, plan.upscale_height, plan.upscale_width)
        watch.progress("upscale", 1, 1)
        watch.clock.switch("encode")
        return encode(self.pipe, larger)


def cropped(latents: "Tensor", plan: HiresPlan) -> "Tensor":
    """What an explicit size of another shape cuts off, as A1111 does: in latent cells, the odd one right and below."""
    high, wide = latents.shape[-2:]
    return latents[..., plan.crop_top : high - plan.crop_bottom, plan.crop_left : wide - plan.crop_right]
