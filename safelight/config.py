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
from dataclasses import fields
from pathlib import Path
from typing import Any

from safelight.errors import UnknownName, UsageError
from safelight.request import CHOICES, OPTIONAL_TEXTS, RANGES, TEXTS, Request

VERSION = "0.1.0"
DTYPES = ("float32", "bfloat16", "float16")
DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "float": "float32"}
PREFIX = "SAFELIGHT_"
MOST_FRAMES = 10_000  # more is a slip of the finger


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
RUN_FIELDS = ("model", "vae", "lora", "lora_dir", "device", "dtype", "optimize", "without", "out", *PLAN_FIELDS)
LISTS = (
    "lora",
    "lora_dir",
    "optimize",
    "without",
    "keep",
)  # in a file these may be lists of texts, too, and "optimize" a table
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
    if not isinstance(value, str) or name in TEXTS or name in OPTIONAL_TEXTS or name in CHOICES:
        return value
    try:
        return float(value) if name in RANGES else int(value)
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
