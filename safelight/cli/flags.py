"""The flags of safelight generate. They say nothing themselves: `draw` reads them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from safelight.optimizers import OPTIMIZERS, words

# what a plan is made for
PLANNED = (
    click.option("--goal", help="balanced (default), fast, quality, low-memory or throughput."),
    click.option("--vram", metavar="SIZE", help="What the device may spend: 8GiB; all there is by default."),
    click.option("--max-seconds", metavar="S", help="Of one picture."),
    click.option("--fidelity", help="What the picture may lose: exact, rounding, approximate; the goal's by default."),
    click.option("--keep", multiple=True, metavar="NAMES", help="Optimizers to plan around; written as for -o."),
    click.option("--without", multiple=True, metavar="NAME", help="Never this optimizer; may be given again."),
)
# how the noise is taken away
SAMPLING = (
    click.option("--sampler", help='As A1111 writes it ("DPM++ 2M Karras") or a diffusers class.'),
    click.option("--schedule", metavar="NAME", help="Karras, Exponential, SGM Uniform, ...; the sampler's by default."),
    click.option("--eta", metavar="X", help="Noise of ancestral samplers and DDIM: 0 none, 1 all."),
    click.option("--s-churn", metavar="X", help="Noise that Euler, Heun and DPM2 add at each step; 0 by default."),
    click.option("--s-tmin", metavar="SIGMA", help="No churn below this noise level."),
    click.option("--s-tmax", metavar="SIGMA", help="No churn above it; 0 is no limit."),
    click.option("--s-noise", metavar="X", help="Scale of the noise that is added; 1 by default."),
    click.option("--eta-noise-seed-delta", metavar="N", help="ENSD: added to the seed for the noise of the steps."),
    click.option("--rng", help="cpu, or nv: the numbers that NVIDIA's cards draw, on any machine."),
    click.option("--variation-seed", metavar="N", help="Mix in the noise of this seed; picture i uses it + i."),
    click.option("--variation-strength", metavar="X", help="How much of it, 0 to 1."),
    click.option("--clip-skip", metavar="N", help="CLIP's layer from the end that counts; 1 is the last."),
)
# two passes, and pictures to begin from
PICTURES = (
    click.option("--hires", metavar="X|WxH", help="A second pass, 1.5 times larger or of this size."),
    click.option("--hires-steps", metavar="N", help="Steps of the second pass; as many as the first by default."),
    click.option("--hires-denoise", metavar="X", help="How much it draws anew, 0 to 1; 0.7 by default."),
    click.option("--hires-upscaler", metavar="NAME", help="Latent (default) and its modes, Lanczos, R-ESRGAN 4x+, ..."),
    click.option("--keep-first-pass", is_flag=True, help="Write the first pass, too: NAME-before-highres-fix.png."),
    click.option("--init", metavar="PICTURE", help="Begin from this picture."),
    click.option("--denoise", metavar="X", help="How much of it is drawn anew, 0 to 1; 0.75 by default."),
    click.option("--mask", metavar="PICTURE", help="What is white in it is drawn, the rest stays."),
    click.option("--mask-blur", metavar="PIXELS", help="Of the mask's edge; 4 by default."),
    click.option("--mask-content", metavar="WHAT", help="Under the mask at first: original, fill, noise, nothing."),
    click.option("--mask-area", metavar="WHAT", help="whole (default); masked: only around the mask, at full size."),
    click.option("--mask-padding", metavar="PIXELS", help="Around the mask with --mask-area masked; 32 by default."),
)
FLAGS = (
    click.option(
        "--model", help="firstlight (bundled), a diffusers folder, a .safetensors file, or a hub id[@revision]."
    ),
    click.option("--vae", help="Another VAE: a folder, a .safetensors file or a hub id."),
    click.option("--lora", multiple=True, metavar="FILE[=WEIGHT]", help="A LoRA; may be given again."),
    click.option("--lora-dir", multiple=True, metavar="FOLDER", help="Where <lora:name:weight> in a prompt is found."),
    click.option("--config", "config_folder", help="Configs and tokenizers for a single file, where there is no hub."),
    click.option("--allow-pickle", is_flag=True, help="Read .ckpt files, with weights_only=True."),
    click.option("--negative", help="What the picture should not show."),
    click.option("--width", metavar="PIXELS", help="A multiple of the VAE's factor; the model's own by default."),
    click.option("--height", metavar="PIXELS", help="Like --width."),
    click.option("--steps", metavar="N", help="Denoising steps, 20 by default."),
    click.option("--guidance", metavar="X", help="Scale of classifier-free guidance."),
    click.option("--seed", metavar="N", help="Picture i uses seed + i; random by default."),
    click.option("--count", metavar="N", help="How many pictures, 1 by default."),
    click.option("--batch-size", metavar="N", help="How many at a time; changes no picture."),
    click.option("--upscale", metavar="N", help="4: enlarge with the bundled Real-ESRGAN."),
    click.option("--dtype", help="float32, bfloat16 or float16; short for -o dtype=..."),
    click.option("--device", help="cpu, cuda, cuda:1, mps, ...; the best there is by default."),
    click.option(
        "-o",
        "--optimize",
        help='Names: "dtype=bfloat16,vae-tiling=256"; "none" is plain, "auto" what is planned, as without -o.',
    ),
    *SAMPLING,
    *PICTURES,
    *PLANNED,
    click.option("--preset", metavar="NAME", help="Goal, limits and request by a name; safelight presets lists them."),
    click.option("--plan", metavar="FILE", help="A plan file, as safelight plan --toml writes it; flags win."),
    click.option("--out", "-O", help="A .png, .jpg or .webp file, or a folder; safelight-0000.png and on by default."),
    click.option(
        "--preview", metavar="FILE", help="The first picture as it is, after each step; wants -o tiny-vae.use=preview."
    ),
    click.option("--preview-every", type=click.IntRange(1), metavar="N", help="Only every N steps, from the first on."),
    click.option("--from", "source", metavar="PICTURE", help="Make this picture again; other flags change it."),
    click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
    click.option("--quiet", "-q", is_flag=True, help="No progress."),
)


# diffgentor's flags that take a value; they are understood and not shown
VALUES = ("torch-dtype", "attention-backend", "cache-type", "compile-mode", "group-offload-type", "storage-dtype")
SWITCHES = ("compile-fullgraph",)


def _single_flags() -> Iterator[Any]:
    """--enable-NAME for every optimizer and every other name of one, and diffgentor's own."""
    names = [*OPTIMIZERS, *(alias for alias, ours in words.ALIASES.items() if "." not in ours)]
    for name in (*(f"enable-{name}" for name in names), *SWITCHES):
        yield click.option(f"--{name}", is_flag=True, hidden=True, help=f"Short for -o {name}.")
    for name in VALUES:
        yield click.option(f"--{name}", metavar="X", hidden=True, help=f"Short for -o {name}=X.")


SINGLE = tuple(_single_flags())
_ENABLE = [f"enable-{name}" for name in (*OPTIMIZERS, *words.ALIASES)]
WORDS = frozenset(flag.replace("-", "_") for flag in ("optimize", "dtype", *VALUES, *SWITCHES, *_ENABLE))


def put(flags: Sequence[Any]) -> Callable[[Any], Any]:
    """A decorator that gives a command these flags, in this order."""

    def decorate(command: Any) -> Any:
        for flag in reversed(flags):
            command = flag(command)
        return command

    return decorate


on = put((*FLAGS, *SINGLE))


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were said. Not "in (None, (), False)": 0 == False, and --seed 0 is a seed."""
    return {name: value for name, value in values.items() if not (value is None or value is False or value == ())}
