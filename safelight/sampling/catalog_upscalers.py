"""The upscalers by the names people know, A1111's: what each is, where its weights are from, and where they lie here.

Comes in: a name in any case, an alias, or the path of a file. Goes out: an Upscaler, one row of the table.
"""

from dataclasses import dataclass
from pathlib import Path

from safelight import config
from safelight.errors import EnvironmentProblem, ModelNotFound, UnknownName
from safelight.sampling.resampling import LATENT_MODES

BUNDLED = Path(__file__).parent / "weights"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
RELEASES = "https://github.com/xinntao/Real-ESRGAN/releases/download"
HOME = "https://github.com/xinntao/Real-ESRGAN"
BSD3 = "BSD-3-Clause, Xintao Wang"


@dataclass(frozen=True, slots=True)
class Upscaler:
    """One way to enlarge.

    kind: "image", or "latent" for what works on latents between two passes. way: "network", or how it is resampled.
    scale: what one pass of it multiplies the sides by; for those without a network, what is done unless told otherwise.
    file: the weights' name here; the whole path of a file of one's own. bundled: comes with safelight. network: what
    the weights are, as networks.py describes them. url, sha256, size_bytes: of the file as it was published.
    """

    name: str
    kind: str
    way: str
    scale: int
    file: str = ""
    bundled: bool = False
    network: str = ""
    url: str = ""
    sha256: str = ""
    size_bytes: int = 0
    licence: str = ""
    source: str = ""
    note: str = ""
    aliases: tuple[str, ...] = ()


# sha256 and sizes: as several packagers give them for these very release files, among them the Arch Linux package
# python-realesrgan (PKGBUILD) and nixpkgs-style hashes in flakes; they agree
ROWS = (
    Upscaler("None", "image", "lanczos", 4, note="Lanczos, as with A1111"),
    Upscaler("Lanczos", "image", "lanczos", 4),
    Upscaler("Nearest", "image", "nearest", 4),
    Upscaler(
        "realesr-animevideov3-x4",
        *("image", "network", 4, "realesr-animevideov3-x4.safetensors"),
        bundled=True,
        network="SRVGGNetCompact of 18 layers, 64 features, x4",
        size_bytes=1_247_008,
        licence=BSD3,
        source=HOME,
        aliases=("realesr-animevideov3", "R-ESRGAN AnimeVideo"),
    ),
    Upscaler(
        "realesr-animevideov3-x2",
        *("image", "network", 2, "realesr-animevideov3-x4.safetensors"),
        bundled=True,
        network="SRVGGNetCompact of 18 layers, 64 features, x4",
        size_bytes=1_247_008,
        licence=BSD3,
        source=HOME,
        note="the x4 network, made half as large afterwards, as upstream's own x2 is",
    ),
    Upscaler(
        "R-ESRGAN 4x+",
        *("image", "network", 4, "realesrgan-x4plus.safetensors"),
        network="RRDBNet of 23 blocks, 64 features, 32 growing, x4",
        url=f"{RELEASES}/v0.1.0/RealESRGAN_x4plus.pth",
        sha256="4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
        size_bytes=67_040_989,
        licence=BSD3,
        source=HOME,
        aliases=("RealESRGAN_x4plus", "realesrgan-x4plus"),
    ),
    Upscaler(
        "R-ESRGAN 4x+ Anime6B",
        *("image", "network", 4, "realesrgan-x4plus-anime.safetensors"),
        network="RRDBNet of 6 blocks, 64 features, 32 growing, x4",
        url=f"{RELEASES}/v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth",
        sha256="f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da",
        size_bytes=17_938_799,
        licence=BSD3,
        source=HOME,
        aliases=("RealESRGAN_x4plus_anime_6B", "realesrgan-x4plus-anime"),
    ),
    Upscaler(
        "R-ESRGAN 2x+",
        *("image", "network", 2, "realesrgan-x2plus.safetensors"),
        network="RRDBNet of 23 blocks, 64 features, 32 growing, x2",
        url=f"{RELEASES}/v0.2.1/RealESRGAN_x2plus.pth",
        sha256="49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
        size_bytes=67_061_725,
        licence=BSD3,
        source=HOME,
        aliases=("RealESRGAN_x2plus", "realesrgan-x2plus"),
    ),
    Upscaler(
        "R-ESRGAN General 4xV3",
        *("image", "network", 4, "realesr-general-x4v3.safetensors"),
        network="SRVGGNetCompact of 34 layers, 64 features, x4",
        url=f"{RELEASES}/v0.2.5.0/realesr-general-x4v3.pth",
        sha256="8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
        size_bytes=4_885_111,
        licence=BSD3,
        source=HOME,
        aliases=("realesr-general-x4v3",),
    ),
    *(Upscaler(name, "latent", mode, 2) for name, (mode, _) in LATENT_MODES.items()),
)
UPSCALERS = {row.name: row for row in ROWS}
ALIASES = {alias: row.name for row in ROWS for alias in row.aliases}
BY_LOWER = {name.lower(): row for name, row in (ALIASES | {name: name for name in UPSCALERS}).items()}


def find(asked: str) -> Upscaler:
    """Raises UnknownName, or ModelNotFound for a path where no file is."""
    if found := BY_LOWER.get(asked.lower()):
        return UPSCALERS[found]
    path = Path(asked).expanduser()
    if path.is_file():
        return Upscaler(path.stem, "image", "network", 0, file=str(path.absolute()))
    if "/" in asked or path.suffix.lower() in SUFFIXES:
        raise ModelNotFound(
            f"no file of weights at {asked}: give a .safetensors or .pth file, or a name: safelight get"
        )
    return UPSCALERS[known(asked)]


def known(asked: str) -> str:
    """The name of a row, for it or an alias in any case. Raises UnknownName."""
    if found := BY_LOWER.get(asked.lower()):
        return found
    raise UnknownName("upscaler", asked, UPSCALERS, ALIASES)


def folder() -> Path:
    """Where fetched weights lie; it need not be there yet."""
    return config.cache_folder() / "upscalers"


def place(row: Upscaler) -> Path:
    """Where the row's weights are, or would be."""
    return BUNDLED / row.file if row.bundled else folder() / row.file  # a whole path stays as it is


def is_here(row: Upscaler) -> bool:
    return row.way != "network" or place(row).is_file()


def weights_of(row: Upscaler) -> Path:
    """Raises EnvironmentProblem for weights that are not here: what to do about it."""
    path = place(row)
    if path.is_file():
        return path
    if row.bundled:
        raise EnvironmentProblem(f"the upscaler's weights are missing ({path}): install safelight again")
    raise EnvironmentProblem(
        f"the weights of {row.name!r} are not here: safelight get {row.name!r} fetches them ({megabytes(row)})"
    )


def megabytes(row: Upscaler) -> str:
    return f"{row.size_bytes / 1e6:.1f} MB"
