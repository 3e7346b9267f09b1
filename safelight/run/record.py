"""The record of one finished picture: all that makes it again, as a dataclass and as JSON, exact both ways.

Comes in: keyword arguments, or JSON from anybody's file. Goes out: a Record with every field checked, or a UsageError.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from safelight.errors import UsageError
from safelight.request import MAX_SEED, Request

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


def _is_plain(value: Any) -> bool:
    return is_text(value) or type(value) in (int, float)


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
MORE = Kind(
    lambda value: isinstance(value, dict) and all(map(is_text, value)) and all(map(_is_plain, value.values())),
    "names with numbers or texts",
)
VERSIONS = Kind(
    lambda value: isinstance(value, dict) and all(map(is_text, (*value, *value.values()))), "names and versions as text"
)
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("prompt", "negative", "sampler", "model", "model_name", "dtype", "device"), TEXT),
    **dict.fromkeys(("revision", "vae", "upscaler", "schedule"), OPTIONAL_TEXT),
    **dict.fromkeys(("width", "height", "steps", "seed", "batch_size", "batch_index", "upscale"), NUMBER),
    "guidance": GUIDANCE,
    **dict.fromkeys(("model_hash", "init_hash", "mask_hash"), HASH),
    "lora": Kind(_is_tuple_of(is_text), "a list of texts"),
    "optimizers": Kind(_is_tuple_of(_is_pair), "a list of names with values, all text"),
    "versions": VERSIONS,
    "more": MORE,
}
OWN = "checkpoint's own"  # in older records: a scheduler of the model that had no name
USUAL = {item.name: item.default for item in fields(Request)}
PICTURES = ("init", "mask")
MOST_PICTURE_BYTES = 2**32  # what is larger is no picture, and hashing it would take minutes


@dataclass(frozen=True, slots=True)
class Record:
    """All that makes one picture again. Raises UsageError for a field of the wrong kind: it may come from anywhere.

    width, height: pixels the model drew, in the first pass and before upscaling. seed: of this one picture.
    sampler: A1111's label, "DPM++ 2M", or the diffusers class of the model's own scheduler; in older records the label
    with its schedule. schedule: a label, "Karras"; None for the sampler's own. more: what else of the Request is not
    usual, by name; variation_seed is that of this one picture. init_hash, mask_hash: sha256 of the files that `more`
    names. model: what was asked for, a name, hub id or path; model_name: its stem. model_hash: sha256 of the file, 64
    hex digits. optimizers: (name, value) pairs. versions: of safelight, torch and diffusers.
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
    schedule: str | None = None
    more: dict[str, Any] = field(default_factory=dict)
    init_hash: str | None = None
    mask_hash: str | None = None

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            value = getattr(self, name)
            if not kind.holds(value):
                raise UsageError(f"the record's {name} is {_short(value)}: expected {kind.words}")
        _check_more(self)

    def asked(self, name: str) -> Any:
        """What the Request had for a field that stands in `more`, or would."""
        return self.more.get(name, USUAL[name])

    def request_fields(self) -> dict[str, Any]:
        """Fields of a Request that makes this one picture again.

        Drawn alone it may differ by rounding from what it was in its batch: see `batch_fields`.
        """
        same = {name: value for name in SAME if (value := getattr(self, name)) is not None}
        return same | _sampler_field(self.sampler) | self.more

    def batch_fields(self) -> dict[str, Any]:
        """Fields of a Request that makes its whole batch again; it is picture `batch_index` of that."""
        # with a variation all pictures have one seed, and the variation's goes up: Request.seeds
        counted = "variation_seed" if self.asked("variation_strength") else "seed"
        alone = self.request_fields()
        first = (alone[counted] - self.batch_index) % (MAX_SEED + 1)
        return alone | {counted: first, "count": self.batch_size, "batch_size": self.batch_size}

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


SAME = ("prompt", "negative", "width", "height", "steps", "guidance", "seed", "upscale", "schedule")
# count: a record is of one picture
IN_MORE = {item.name for item in fields(Request)} - {item.name for item in fields(Record)} - {"count"}


def more_of(request: Request, index: int) -> dict[str, Any]:
    """`more` of picture `index` of a settled request."""
    more = {name: value for name in IN_MORE if (value := getattr(request, name)) != USUAL[name]}
    if seeds := request.variation_seeds():
        more["variation_seed"] = seeds[index]
    return dict(sorted(more.items()))


def file_hash(name: str) -> str:
    """sha256 of a picture's file, 64 hex digits. Raises UsageError where there is none that can be read."""
    try:
        path = Path(name).expanduser()
        if not path.is_file() or path.stat().st_size > MOST_PICTURE_BYTES:  # a pipe would be waited for
            raise UsageError(f"{name!r:.200} is no picture's file, or over {MOST_PICTURE_BYTES >> 30} GiB")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, RuntimeError) as error:  # RuntimeError: "~somebody" who has no home
        raise UsageError(f"{name!r:.200} cannot be read: {error}") from error


def changed_files(record: Record) -> list[str]:
    """Of the pictures that this one was made from, those that are not there or not the same any more."""
    return [record.more[name] for name in PICTURES if name in record.more and not _is_same(record, name)]


def _is_same(record: Record, name: str) -> bool:
    try:
        return file_hash(record.more[name]) == getattr(record, f"{name}_hash")
    except UsageError:
        return False


def _sampler_field(sampler: str) -> dict[str, str]:
    """Nothing for a scheduler that nobody can ask for by name: it was the model's own."""
    from safelight.sampling.schedulers import CLASSES

    is_own = sampler == OWN or (sampler.endswith("Scheduler") and sampler not in CLASSES)
    return {} if is_own else {"sampler": sampler}


def _check_more(record: Record) -> None:
    """Raises UsageError for what no Request could have asked for: a record may come from anywhere."""
    if unknown := sorted(record.more.keys() - IN_MORE):
        raise UsageError(f"the record asks for what this safelight does not know: {_short(', '.join(unknown))}")
    try:
        Request(record.prompt, sampler=record.sampler, schedule=record.schedule, **record.more)
    except UsageError as error:
        raise UsageError(f"the record asks for what cannot be: {error}") from error
    if record.more.get("variation_strength") and "variation_seed" not in record.more:
        raise UsageError("the record is not complete: it has a variation_strength and no variation_seed")
    for name in PICTURES:
        if (name in record.more) != (getattr(record, f"{name}_hash") is not None):
            raise UsageError(f"the record is not complete: {name} and {name}_hash belong together")


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
