"""The record of one finished picture: all that makes it again, as a dataclass and as JSON, exact both ways.

Comes in: keyword arguments, or JSON from anybody's file. Goes out: a Record with every field checked, or a UsageError.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from safelight.errors import UsageError
from safelight.request import MAX_SEED

SCHEMA = 1
PAIR_SIZE = 2


@dataclass(frozen=True, slots=True)
class Kind:
    """What a field of a record may hold, in code and in words."""

    holds: Callable[[Any], bool]
    words: str


def is_text(value: Any) -> bool:
    """Also not one with half a surrogate pair, which no file could hold."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _is_tuple_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and all(map(holds, value))


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == PAIR_SIZE and all(map(is_text, value))


TEXT = Kind(is_text, "valid Unicode text")
OPTIONAL_TEXT = Kind(lambda value: value is None or is_text(value), "valid Unicode text or nothing")
NUMBER = Kind(lambda value: type(value) is int and 0 <= value <= MAX_SEED, f"a whole number from 0 to {MAX_SEED}")
GUIDANCE = Kind(
    lambda value: value is None or (type(value) in (int, float) and 0 <= value <= 1e6),
    "a number of 0 or more, or nothing",
)
HASH = Kind(
    lambda value: value is None or (is_text(value) and bool(re.fullmatch("[0-9a-f]{64}", value))),
    "a sha256 in hexadecimal, or nothing",
)
VERSIONS = Kind(
    lambda value: isinstance(value, dict) and all(map(is_text, (*value, *value.values()))), "names and versions as text"
)
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("prompt", "negative", "sampler", "model", "model_name", "dtype", "device"), TEXT),
    **dict.fromkeys(("revision", "vae", "upscaler"), OPTIONAL_TEXT),
    **dict.fromkeys(("width", "height", "steps", "seed", "batch_size", "batch_index", "upscale"), NUMBER),
    "guidance": GUIDANCE,
    "model_hash": HASH,
    "lora": Kind(_is_tuple_of(is_text), "a list of texts"),
    "optimizers": Kind(_is_tuple_of(_is_pair), "a list of names with values, all text"),
    "versions": VERSIONS,
}


@dataclass(frozen=True, slots=True)
class Record:
    """All that makes one picture again. Raises UsageError for a field of the wrong kind: it may come from anywhere.

    width, height: pixels the model drew, before upscaling. seed: of this one picture. sampler: A1111's label with its
    schedule, "DPM++ 2M Karras". model: what was asked for, a name, hub id or path; model_name: its stem.
    model_hash: sha256 of the file, 64 hex digits. optimizers: (name, value) pairs. versions: of safelight,
    torch and diffusers.
    """

    prompt: str
    negative: str
    width: int
    height: int
    steps: int
    guidance: float | None
    seed: int
    sampler: str
    model: str
    model_name: str
    model_hash: str | None
    revision: str | None
    vae: str | None
    lora: tuple[str, ...] = ()
    dtype: str = "float32"
    device: str = "cpu"
    optimizers: tuple[tuple[str, str], ...] = ()
    batch_size: int = 1
    batch_index: int = 0
    upscale: int = 1
    upscaler: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            value = getattr(self, name)
            if not kind.holds(value):
                raise UsageError(f"the record's {name} is {_short(value)}: expected {kind.words}")

    def to_json(self) -> str:
        """One line, ASCII."""
        return json.dumps({"safelight": SCHEMA, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises UsageError for anything but a record of this schema."""
        table = _table(text)
        known = {item.name for item in fields(cls)}
        if unknown := sorted(table.keys() - known):
            raise UsageError(f"the record has fields that this safelight does not know: {_short(', '.join(unknown))}")
        values = {name: _as_tuple(value) for name, value in table.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise UsageError("the record is not complete: it lacks fields that every safelight record has") from error


def _table(text: str) -> dict[str, Any]:
    """The JSON object in `text`, its schema checked and taken out."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError("the record is not valid JSON") from error
    if not isinstance(table, dict) or "safelight" not in table:
        raise UsageError("the record is not one of safelight's: it names no schema")
    schema = table.pop("safelight")
    if type(schema) is not int or schema != SCHEMA:
        raise UsageError(f"the record is of schema {_short(schema)}, this safelight reads {SCHEMA}: use a newer one")
    return table


def _as_tuple(value: Any) -> Any:
    """JSON has lists where a record has tuples, at most one inside the other."""
    if not isinstance(value, list):
        return value
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


def _short(value: object) -> str:
    """A hostile value, harmless in a message: one line, ASCII, not long."""
    if type(value) is int and value.bit_length() > 64:  # Python refuses to write out far larger ones
        return "a huge number"
    shown = ascii(value) if isinstance(value, str | int | float | None) else f"of type {type(value).__name__}"
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
