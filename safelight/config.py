"""What a person asks for, and where its defaults come from.

Comes in: keyword arguments, TOML files, environment variables. Goes out: a frozen Request. The only reader of the
environment. Later wins: built in < user file < safelight.toml here < environment < flags.
"""

import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safelight.errors import UnknownName, UsageError

MAX_SEED = 2**32 - 1
DTYPES = ("float32", "bfloat16", "float16")
DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "float": "float32"}
PREFIX = "SAFELIGHT_"


@dataclass(frozen=True, slots=True)
class Request:
    """What to draw. None means the model's own default.

    width, height: pixels of the picture the model draws, before any upscaling; multiples of the VAE's factor.
    steps: denoising steps, 1 or more. guidance: scale of classifier-free guidance, 0 or more; 1 and less is without.
    seed: 0 to 2**32 - 1; picture i of a run uses seed + i, wrapping around. None: drawn anew for every run.
    count: pictures to make. batch_size: how many of them at a time; changes no picture.
    sampler: a name from `sampling.schedulers`. upscale: 1 or 4, by the bundled Real-ESRGAN.
    """

    prompt: str
    negative: str = ""
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    count: int = 1
    batch_size: int = 1
    sampler: str | None = None
    upscale: int = 1

    def __post_init__(self) -> None:
        for name in ("width", "height", "steps", "count", "batch_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"{name.replace('_', '-')} is {value!r}: give a whole number of 1 or more")
        if self.guidance is not None and not 0 <= self.guidance <= 1000:
            raise UsageError(f"guidance is {self.guidance!r}: give a number from 0 to 1000, 7.5 is usual")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"seed is {self.seed}: give a whole number from 0 to {MAX_SEED}")
        if self.upscale not in (1, 4):
            raise UsageError(f"upscale is {self.upscale}: 1 and 4 are there")

    def seeds(self) -> list[int]:
        """The seed of every picture; `seed` must be known by now."""
        assert self.seed is not None
        return [(self.seed + i) % (MAX_SEED + 1) for i in range(self.count)]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def dtype_name(asked: str) -> str:
    """ "bf16" -> "bfloat16". Raises UnknownName."""
    name = DTYPE_NAMES.get(asked.lower(), asked.lower())
    if name not in DTYPES:
        raise UnknownName("dtype", asked, (*DTYPES, *DTYPE_NAMES))
    return name


REQUEST_FIELDS = {field.name for field in fields(Request)}
RUN_FIELDS = ("model", "vae", "lora", "device", "dtype", "optimize", "without", "out", "format")
SETTINGS = frozenset(REQUEST_FIELDS) | frozenset(RUN_FIELDS)


def settings(environ: Mapping[str, str] | None = None, folder: Path | None = None) -> dict[str, Any]:
    """Defaults from the user's file, ./safelight.toml and SAFELIGHT_* variables, later ones winning.

    Raises UsageError for a file that is not TOML, UnknownName for a key or a variable that nobody reads.
    """
    environ = os.environ if environ is None else environ
    home = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".config")
    found: dict[str, Any] = {}
    for path in (home / "safelight" / "config.toml", (folder or Path.cwd()) / "safelight.toml"):
        found.update(_read(path))
    for variable, text in environ.items():
        if variable.startswith(PREFIX):
            key = variable.removeprefix(PREFIX).lower()
            if key not in SETTINGS:
                raise UnknownName("environment variable", variable, [PREFIX + name.upper() for name in SETTINGS])
            found[key] = text
    return found


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    for key in table:
        if key.replace("-", "_") not in SETTINGS:
            raise UnknownName(f"key in {path}", key, SETTINGS)
    return {key.replace("-", "_"): value for key, value in table.items()}


def environment(name: str) -> str | None:
    """One variable of somebody else's (PYTORCH_ALLOC_CONF, HF_HOME, ...); None when it is not set."""
    return os.environ.get(name)


def is_terminal() -> bool:
    """Whether progress bars make sense: stderr is a terminal and NO_COLOR or TERM=dumb do not speak against it."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
