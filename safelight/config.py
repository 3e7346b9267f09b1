"""What a person asks for, and where its defaults come from.

Comes in: keyword arguments, TOML files, environment variables. Goes out: a frozen Request. The only reader of the
environment. Later wins: built in < user file < safelight.toml here < environment < flags. What is said of the
optimizers adds up, option by option; "none" forgets what came before.
"""

import os
import re
import secrets
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safelight.errors import UnknownName, UsageError

VERSION = "0.1.0"
MAX_SEED = 2**32 - 1
DTYPES = ("float32", "bfloat16", "float16")
DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "float": "float32"}
PREFIX = "SAFELIGHT_"
# far over what any model draws: more is a slip of the finger, and would fill the memory before anything else is said
MOST_FRAMES = 10_000
MOST = {"width": 16384, "height": 16384, "steps": 1000, "count": 100_000, "batch_size": 100_000}


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
        for name in ("prompt", "negative", "sampler"):
            if not _is_text(value := getattr(self, name)) and (name, value) != ("sampler", None):
                raise UsageError(f"{name} is {value!r:.80}: give valid Unicode text")
        for name, most in MOST.items():
            if (value := getattr(self, name)) is not None and not _is_whole(value, 1, most):
                raise UsageError(f"{name.replace('_', '-')} is {value!r:.80}: give a whole number from 1 to {most}")
        if self.guidance is not None and not (_is_number(self.guidance) and 0 <= self.guidance <= 1000):
            raise UsageError(f"guidance is {self.guidance!r:.80}: give a number from 0 to 1000, 7.5 is usual")
        if self.seed is not None and not _is_whole(self.seed, 0, MAX_SEED):
            raise UsageError(f"seed is {self.seed!r:.80}: give a whole number from 0 to {MAX_SEED}")
        if not _is_whole(self.upscale, 1, 4) or self.upscale not in (1, 4):
            raise UsageError(f"upscale is {self.upscale!r:.80}: 1 and 4 are there")

    def seeds(self) -> list[int]:
        """The seed of every picture; `seed` must be known by now."""
        assert self.seed is not None
        return [(self.seed + i) % (MAX_SEED + 1) for i in range(self.count)]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _is_text(value: object) -> bool:
    """Not with half a surrogate pair either, which a command line in another encoding gives: no file can hold it."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


UNITS = {"GIB": 2**30, "GB": 10**9, "MIB": 2**20, "MB": 10**6, "G": 2**30, "M": 2**20, "": 2**30}


def bytes_of(asked: str) -> int:
    """ "8GiB" -> 8 * 2**30; a number alone counts GiB. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*([a-zA-Z]*)\s*", asked, re.ASCII)
    if match is None or match[2].upper() not in UNITS or not float(match[1]):
        raise UsageError(f"{asked!r:.80} is no amount of memory: give such as 8GiB, 7.5GB or 6000MiB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def dtype_name(asked: str) -> str:
    """ "bf16" -> "bfloat16". Raises UnknownName."""
    name = DTYPE_NAMES.get(asked.lower(), asked.lower())
    if name not in DTYPES:
        raise UnknownName("dtype", asked, (*DTYPES, *DTYPE_NAMES))
    return name


REQUEST_FIELDS = {field.name for field in fields(Request)}
PLAN_FIELDS = ("goal", "vram", "max_seconds", "fidelity", "keep")  # what a plan is made for
RUN_FIELDS = ("model", "vae", "lora", "device", "dtype", "optimize", "without", "out", *PLAN_FIELDS)
LISTS = ("lora", "optimize", "without", "keep")  # in a file these may be lists of texts, too, and "optimize" a table
WORDS = ("optimize", "dtype")  # what is asked of the optimizers; see optimizers/words.py
SETTINGS = frozenset(REQUEST_FIELDS) | frozenset(RUN_FIELDS)


def settings(environ: Mapping[str, str] | None = None, folder: Path | None = None) -> dict[str, Any]:
    """Defaults from the user's file, ./safelight.toml and SAFELIGHT_* variables, later ones winning.

    "optimize" is a list with what each of these places says of the optimizers, for optimizers/words.py to merge.
    Raises UsageError for a file that is not TOML, UnknownName for a key or a variable that nobody reads.
    """
    environ = os.environ if environ is None else environ
    home = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".config")
    places = [read(path) for path in (home / "safelight" / "config.toml", (folder or Path.cwd()) / "safelight.toml")]
    places.append(_variables(environ))
    found: dict[str, Any] = {}
    for place in places:
        said = [{name: place.pop(name)} if name == "dtype" else place.pop(name) for name in WORDS if name in place]
        if said:
            found.setdefault("optimize", []).append(said)
        found.update(place)
    return found


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for variable, text in environ.items():
        if variable.startswith(PREFIX):
            key = variable.removeprefix(PREFIX).lower()
            if key not in SETTINGS:
                raise UnknownName("environment variable", variable, [PREFIX + name.upper() for name in SETTINGS])
            found[key] = text
    return found


# diffgentor's variables that ask for an optimization, each for one family of models: (the variable, a word of the
# model's name, what its value asks for)
YES = ("1", "true", "yes", "on")
DIFFGENTOR = (
    ("DG_STEP1X_OFFLOAD", "step1x", dict.fromkeys(YES, "model-offload")),
    ("DG_STEP1X_QUANTIZED", "step1x", dict.fromkeys(YES, "quantization")),
    ("DG_FLUX_KONTEXT_OFFLOAD", "kontext", dict.fromkeys(YES, "model-offload")),
    ("DG_HUNYUAN_IMAGE_3_USE_TAYLOR_CACHE", "hunyuan", dict.fromkeys(YES, "taylorseer-cache")),
    ("DG_HUNYUAN_IMAGE_3_ATTN_IMPL", "hunyuan", {"flash_attention_2": "attention-backend=flash"}),
)


def diffgentor(model: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """What diffgentor's variables ask of the optimizers for a model of this name; all that is ours wins over it."""
    environ = os.environ if environ is None else environ
    asked = (
        values.get(environ.get(variable, "").strip().lower())
        for variable, family, values in DIFFGENTOR
        if family in model.lower()
    )
    return [word for word in asked if word]


def read(path: Path) -> dict[str, Any]:
    """The table of a settings file, its keys and the kinds of its values checked; {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, not UTF-8, or a number of more digits than Python reads
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in SETTINGS:
            raise UnknownName(f"key in {path}", key, SETTINGS)
        if name in RUN_FIELDS and not _is_kind_of(name, value):
            wanted = 'text, or a list ["a", "b"]' if name in LISTS else "text"
            raise UsageError(f"{key} in {path} is {value!r:.80}: give {wanted}")
    return {key.replace("-", "_"): value for key, value in table.items()}


def _is_kind_of(name: str, value: object) -> bool:
    if name == "optimize" and isinstance(value, dict):
        return True
    return isinstance(value, str) or (name in LISTS and _is_list_of_texts(value))


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def request(wanted: Mapping[str, Any]) -> Request:
    """The Request among settings and flags, whose numbers may be text. Raises UsageError."""
    return Request(**{name: _parsed(name, value) for name, value in wanted.items() if name in REQUEST_FIELDS})


def _parsed(name: str, value: Any) -> Any:
    if not isinstance(value, str) or name in ("prompt", "negative", "sampler"):
        return value
    try:
        return float(value) if name == "guidance" else int(value)
    except ValueError:
        return value  # Request says what is wrong with it


def environment() -> Mapping[str, str]:
    """Other people's variables (PYTORCH_ALLOC_CONF, HF_HOME, ...), for `doctor` to look at."""
    return os.environ


def cache_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Where what can be made anew is kept; it need not be there yet. LOCALAPPDATA is Windows' place for it."""
    environ = os.environ if environ is None else environ
    named = environ.get("XDG_CACHE_HOME") or environ.get("LOCALAPPDATA")
    return Path(named or Path(environ.get("HOME", "~")).expanduser() / ".cache") / "safelight"


def put_whole(path: Path, text: str) -> None:
    """A file of the cache, in one step, so that another process never reads half of it. Raises OSError."""
    part = path.with_name(f".{path.name}-{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def is_terminal() -> bool:
    """Whether progress bars make sense: stderr is a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
