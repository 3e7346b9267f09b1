"""The VAEs that people name: whose latents each is for, what it is known for, and how to tell it from its look-alikes.

Comes in: a name, a path, a hub id, or a VAE's config. Goes out: a row of CATALOGUE, Latents, or why two do not fit. No
weight is read but for a checksum, and torch is not needed.

SD1.5's and SDXL's VAEs have the same shapes, and latents of other meaning: SD1.5's are scaled by 0.18215, SDXL's by
0.13025, and a file alone says neither. The wrong one draws a picture in wrong colours, and no library complains.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.errors import UnknownName

FACTOR = 8  # picture pixels per latent pixel of all of them
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
ALL = ("float32", "bfloat16", "float16")
KL4, KL16, TINY4, TINY16 = 83_653_863, 83_819_683, 2_445_063, 2_458_899  # parameters; a test counts them


@dataclass(frozen=True, slots=True)
class Latents:
    """channels, factor: of their shape. What the denoiser sees is (latents - shift) * scaling.

    own_statistics: the VAE gives a mean and a deviation for each channel.
    """

    channels: int
    factor: int = FACTOR
    scaling: float = 0.18215
    shift: float = 0.0
    own_statistics: bool = False


# family -> (its latents, who has them)
FAMILIES: Mapping[str, tuple[Latents, str]] = {
    "sd": (Latents(4), "SD1.5's and SD2's"),
    "sdxl": (Latents(4, scaling=0.13025), "SDXL's"),
    "sd3": (Latents(16, scaling=1.5305, shift=0.0609), "SD3's and SD3.5's"),
    "flux": (Latents(16, scaling=0.3611, shift=0.1159), "FLUX.1's"),
}
# family -> the known model whose VAE config its large VAEs have
CONFIGS = {"sd": "sd15", "sdxl": "sdxl", "sd3": "sd3-medium", "flux": "flux1-dev"}


@dataclass(frozen=True, slots=True)
class Published:
    """A file as its makers published it. nbytes: None where only its checksum is known."""

    file: str
    sha256: str | None = None
    nbytes: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """family: a key of FAMILIES. hub: where diffusers finds it, in the repository or in its vae folder.

    pickle: within `hub`, where there is no safetensors file. dtypes: known to decode in without not-a-number.
    stored: as its weights are published. files: what it is called and recognised by.
    """

    name: str
    family: str
    known_for: str
    source: str
    hub: str
    parameters: int
    aliases: tuple[str, ...] = ()
    files: tuple[Published, ...] = ()
    dtypes: tuple[str, ...] = ALL
    stored: str = "float32"
    pickle: str | None = None

    @property
    def latents(self) -> Latents:
        return FAMILIES[self.family][0]

    @property
    def tiny(self) -> bool:
        """An AutoencoderTiny: it takes latents as the denoiser has them, and needs no scaling."""
        return self.parameters < KL4 // 10

    @property
    def nbytes(self) -> int:
        """Of its weights, as they are stored."""
        return self.parameters * BYTES[self.stored]


CARD = "https://huggingface.co/stabilityai/sd-vae-ft-mse"
TAESD = "https://github.com/madebyollin/taesd"
SD3_HUB = "stabilityai/stable-diffusion-3-medium-diffusers"
CATALOGUE: tuple[Row, ...] = (
    Row(
        "ft-ema",
        "sd",
        "sharp: the best rFID of its family (4.42; SD1.5's own 4.99), PSNR 23.8 dB; a decoder trained on, nothing else",
        CARD,
        "stabilityai/sd-vae-ft-ema",
        KL4,
        ("ft-ema-560000", "vae-ft-ema-560000", "sd-vae-ft-ema"),
        (Published("vae-ft-ema-560000-ema-pruned.safetensors"), Published("vae-ft-ema-560000-ema-pruned.ckpt")),
    ),
    Row(
        "ft-mse",
        "sd",
        "smooth: the best PSNR of its family (24.5 dB), rFID 4.70; not the sharper one, as guides have it",
        CARD,
        "stabilityai/sd-vae-ft-mse",
        KL4,
        ("ft-mse-840000", "vae-ft-mse-840000", "sd-vae-ft-mse"),
        (
            Published(
                "vae-ft-mse-840000-ema-pruned.safetensors",
                "735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75",
                334_641_190,
            ),
            Published(
                "sd-vae-ft-mse.safetensors",  # the hub calls it diffusion_pytorch_model.safetensors, as any other
                "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
                334_643_276,
            ),
            Published(
                "vae-ft-mse-840000-ema-pruned.ckpt",
                "c6a580b13a5bc05a5e16e4dbb80608ff2ec251a162311590c1f34c013d7f3dab",
            ),
        ),
    ),
    Row(
        "kl-f8-anime2",
        "sd",
        "stronger colours for drawings; SD1.4's, trained on for waifu-diffusion 1.4; only published as a pickle",
        "https://huggingface.co/hakurei/waifu-diffusion-v1-4",
        "hakurei/waifu-diffusion-v1-4",
        KL4,
        ("anime", "waifu-diffusion-vae", "wd-vae"),
        (Published("kl-f8-anime2.ckpt", "df3c506e51b7ee1d7b5a6a2bb7142d47d488743c96aa778afb0f53a2cdc2d38d"),),
        pickle="vae/kl-f8-anime2.ckpt",
    ),
    Row(
        "sdxl-vae",
        "sdxl",
        "SDXL's own (rFID 4.42, PSNR 24.7 dB); in float16 its activations overflow, and the picture is black",
        "https://huggingface.co/stabilityai/sdxl-vae",
        "stabilityai/sdxl-vae",
        KL4,
        ("sdxl", "sdxl_vae"),
        (
            Published(
                "sdxl_vae.safetensors",
                "63aeecb90ff7bc1c115395962d3e803571385b61938377bc7089b36e81e92e2e",
                334_641_164,
            ),
        ),
        ("float32", "bfloat16"),
    ),
    Row(
        "sdxl-vae-fp16-fix",
        "sdxl",
        "SDXL's own, trained on until it decodes in float16 too; pictures differ slightly",
        "https://huggingface.co/madebyollin/sdxl-vae-fp16-fix",
        "madebyollin/sdxl-vae-fp16-fix",
        KL4,
        ("fp16-fix", "sdxl-fp16-fix"),
        (
            # its makers publish it under the name of SDXL's own, too: the checksum tells them apart
            Published(
                "sdxl.vae.safetensors",
                "235745af8d86bf4a4c1b5b4f529868b37019a10f7c0b2e79ad0abca3a22bc6e1",
                334_641_162,
            ),
            Published("sdxl_vae_fp16_fix.safetensors"),
            Published("sdxl-vae-fp16-fix.safetensors"),
        ),
    ),
    Row(
        "sd3-vae",
        "sd3",
        "SD3's and SD3.5's own, 16 channels",
        f"https://huggingface.co/{SD3_HUB}",
        SD3_HUB,
        KL16,
        ("sd3", "sd35-vae"),
        (
            Published(
                "sd3_vae.safetensors",
                "f9b67a279283625caee39d61eacb5324243848477b4eb535355eaaa8423d4e09",
                167_666_654,
            ),
            Published("sd35_vae.safetensors", "6ad8546282f0f74d6a1184585f1c9fe6f1509f38f284e7c4f7ed578554209859"),
        ),
        stored="float16",
    ),
    Row(
        "flux-vae",
        "flux",
        "FLUX.1's own, 16 channels; Chroma, HiDream and Z-Image have the same",
        "https://huggingface.co/black-forest-labs/FLUX.1-schnell",
        "black-forest-labs/FLUX.1-schnell",
        KL16,
        ("flux", "flux-ae", "ae"),
        (
            Published(
                "ae.safetensors", "afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38", 335_304_388
            ),
            Published(
                "flux_vae.safetensors",
                "f5b59a26851551b67ae1fe58d32e76486e1e812def4696a4bea97f16604d40a3",
                167_666_902,
            ),
        ),
        dtypes=("float32", "bfloat16"),
        stored="bfloat16",
    ),
    Row(
        "taesd",
        "sd",
        "34 times smaller; decodes and encodes at next to no cost, for previews; fine detail is lost",
        TAESD,
        "madebyollin/taesd",
        TINY4,
        files=(Published("taesd.safetensors"),),
    ),
    Row(
        "taesdxl",
        "sdxl",
        "taesd for SDXL's latents",
        TAESD,
        "madebyollin/taesdxl",
        TINY4,
        files=(
            Published(
                "taesdxl.safetensors", "ff4824aca94dd6111e0340fa749347fb74101060d9712cb5ef1ca8f1cf17502f", 9_793_292
            ),
        ),
    ),
    Row(
        "taesd3",
        "sd3",
        "taesd for SD3's latents",
        TAESD,
        "madebyollin/taesd3",
        TINY16,
        files=(Published("taesd3.safetensors"),),
    ),
    Row(
        "taef1",
        "flux",
        "taesd for FLUX.1's latents",
        TAESD,
        "madebyollin/taef1",
        TINY16,
        files=(Published("taef1.safetensors"),),
    ),
)


def find(name: str, catalogue: Iterable[Row] = CATALOGUE) -> Row:
    """By name, alias, hub id or published file, with or without its suffix. Raises UnknownName."""
    rows = tuple(catalogue)
    if (row := named(name, rows)) is None:
        raise UnknownName("VAE", name, [row.name for row in rows], [alias for row in rows for alias in row.aliases])
    return row


def named(name: str, catalogue: Iterable[Row] = CATALOGUE) -> Row | None:
    """As `find`; None for what is no name here. Case does not count, and hyphens, dots and underscores are the same."""
    wanted = _normal(name.partition("@")[0])
    return next((row for row in catalogue if wanted in map(_normal, _names(row))), None)


def _names(row: Row) -> Iterable[str]:
    files = [published.file for published in row.files]
    return (row.name, row.hub, *row.aliases, *files, *(Path(file).stem for file in files))


def _normal(name: str) -> str:
    return re.sub(r"[\s_.-]+", "-", name.strip().lower())


def recognised(path: Path, catalogue: Iterable[Row] = CATALOGUE) -> Row | None:
    """The row that a file is: by its checksum where its size is a published one's, else by its name."""
    rows = tuple(catalogue)
    size = path.stat().st_size
    known = {p.sha256: row for row in rows for p in row.files if p.sha256 and p.nbytes in (size, None)}
    exact = any(p.nbytes == size for row in rows for p in row.files)
    # a pickle's size is not known here, and its name is no proof: one checksum of 0.4 GB takes under a second
    if exact or path.suffix in (".ckpt", ".pt"):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest in known:
            return known[digest]
    return named(path.name, rows)


def listing(catalogue: Iterable[Row] = CATALOGUE) -> list[str]:
    """A table for people: name, whose latents, MiB, precision, and what it is known for."""
    lines = [f"{'name':18s} {'for':18s} {'MiB':>5}  {'decodes in':28s} known for"]
    for row in catalogue:
        dtypes = "all" if row.dtypes == ALL else ", ".join(row.dtypes)
        whose = FAMILIES[row.family][1]
        lines.append(
            f"{row.name:18s} {whose:18s} {row.nbytes / 2**20:5.0f}  {dtypes:28s} {row.known_for} ({row.source})"
        )
    return lines


# -- whether one fits --------------------------------------------------------------------------------------------------


def latents_of(config: Mapping[str, Any]) -> Latents:
    """Of a VAE's config, as diffusers writes it; what it does not say, AutoencoderKL has as its default."""
    blocks = config.get("encoder_block_out_channels") or config.get("block_out_channels")
    return Latents(
        int(config.get("latent_channels") or config.get("z_dim") or 4),
        2 ** (len(blocks) - 1) if blocks else FACTOR,
        float(config.get("scaling_factor") or 0.18215),
        float(config.get("shift_factor") or 0.0),
        own_statistics=bool(config.get("latents_mean")),
    )


def family_of(latents: Latents) -> str | None:
    """The key of FAMILIES that has such latents; None for any other, such as a bundled model's."""
    return next((name for name, (known, _) in FAMILIES.items() if not _difference(known, latents)), None)


def mismatch(asked: str, found: Latents, wanted: Latents, model: str = "this model") -> str | None:
    """None, or why a VAE with latents such as `found` cannot stand in for one with `wanted`."""
    if not (reason := _difference(found, wanted)):
        return None
    whose = (_whose(found), _whose(wanted))
    return f"{asked}{whose[0]} does not fit {model}{whose[1]}: {reason}"


def _whose(latents: Latents) -> str:
    family = family_of(latents)
    return f" ({FAMILIES[family][1]} latents)" if family else ""


def _difference(found: Latents, wanted: Latents) -> str | None:
    if found.channels != wanted.channels:
        return f"its latents have {found.channels} channels, and {wanted.channels} are wanted"
    if found.factor != wanted.factor:
        return f"its latents stand for {found.factor} pixels each, and {wanted.factor} are wanted"
    if abs(found.scaling / wanted.scaling - 1) > 1e-3 or abs(found.shift - wanted.shift) > 1e-3:
        return (
            f"the shapes are the same, but its latents are scaled by {_scaled(found)} and the model was trained on "
            f"{_scaled(wanted)}: the colours would be wrong"
        )
    if found.own_statistics != wanted.own_statistics:
        return "only one of them has a mean and a deviation for each channel"
    return None


def _scaled(latents: Latents) -> str:
    return f"{latents.scaling:g}" + (f" (shift {latents.shift:g})" if latents.shift else "")
