"""The axes of a grid: "steps=10-30 (+10)" is one option and the values it takes, in A1111's syntax of X/Y/Z plot.

Comes in: text. Goes out: Axis. Knows nothing of models and pictures.

Values stand in one CSV line, quotes allowed. For numbers there are ranges: 1-5, 1-5 (+2), 10-5 (-3), 1-3 (+0.5), and
1-10 [5] for so many values evenly spaced, both ends among them. A range stops where its next value would lie beyond
its end: A1111's own goes one too far where the step does not divide it.
Source: scripts/xyz_grid.py of A1111 1.10.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from itertools import permutations
from pathlib import Path
from typing import Any

from safelight.errors import UnknownName, UsageError
from safelight.request import CHOICES, OPTIONAL_TEXTS, RANGES, Request

NUMBER = r"(-?\d+(?:\.\d+)?)"
STEPPED = re.compile(rf"\s*{NUMBER}\s*-\s*{NUMBER}(?:\s*\(\s*([+-]\d+(?:\.\d+)?)\s*\))?\s*", re.ASCII)
COUNTED = re.compile(rf"\s*{NUMBER}\s*-\s*{NUMBER}\s*\[\s*(\d+)\s*\]\s*", re.ASCII)
MOST_VALUES = 1000
REPLACED, ORDERED, SIZE = "prompt-sr", "prompt-order", "size"  # axes that are no field of a Request
# what costs to change: the axis that costs most is walked slowest; all of these load the model anew
COSTS: Mapping[str, float] = {
    "model": 1.0,
    **dict.fromkeys(("device", "dtype", "optimize", "goal", "fidelity", "vram"), 0.9),
    **dict.fromkeys(("vae", "lora"), 0.7),
    "preset": 0.5,
}
SPECIAL = (*COSTS, REPLACED, ORDERED, SIZE)
FILES = ("model", "vae", "lora")  # whose values may be paths
OWN = "own"  # as a VAE: the model's
PLAIN = "plain"  # as a preset: none, and no optimizer
NOT_AXES = ("prompt", "count", "batch_size")  # the first has axes of its own, of the others a cell has one
# as A1111 calls them in the text of a grid's picture; the others have their own names there
TYPES: Mapping[str, str] = {
    "model": "Checkpoint name",
    "vae": "VAE",
    REPLACED: "Prompt S/R",
    ORDERED: "Prompt order",
    SIZE: "Size",
    "steps": "Steps",
    "guidance": "CFG Scale",
    "seed": "Seed",
    "variation-seed": "Var. seed",
    "variation-strength": "Var. strength",
    "sampler": "Sampler",
    "schedule": "Schedule type",
    "hires-steps": "Hires steps",
    "hires-upscaler": "Hires upscaler",
    "denoise": "Denoising",
    "clip-skip": "Clip skip",
    "eta": "Eta",
    "s-churn": "Sigma Churn",
    "s-tmin": "Sigma min",
    "s-tmax": "Sigma max",
    "s-noise": "Sigma noise",
    "rng": "RNG source",
}
SAY_THEMSELVES = ("sampler", REPLACED, ORDERED, "")  # values that need no name before them


@dataclass(frozen=True, slots=True)
class Axis:
    """name: of a Request's field, with hyphens, or one of SPECIAL. labels: as they stand beside the grid.

    values: what each cell is given, parsed for a field; for prompt-sr (search, replacement), for prompt-order the
    words in their order, for size (width, height).
    """

    name: str
    values: tuple[Any, ...]
    labels: tuple[str, ...]

    @property
    def cost(self) -> float:
        return COSTS.get(self.name, 0.0)

    @property
    def kind(self) -> str:
        """As A1111 calls it."""
        return TYPES.get(self.name, self.name)

    @property
    def headings(self) -> tuple[str, ...]:
        """As they stand beside a picture: "steps: 10", and of samplers and words the value alone."""
        before = "" if self.name in SAY_THEMSELVES else f"{self.name}: "
        return tuple(f"{before}{label}" for label in self.labels)

    @property
    def written(self) -> str:
        """The values as one line of CSV; of ranges each of them."""
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(self.values[0] if self.name == ORDERED else self.labels)
        return line.getvalue()


NO_AXIS = Axis("", (None,), ("",))  # of a grid that has fewer than three


def names() -> tuple[str, ...]:
    return (*SPECIAL, *(field.name.replace("_", "-") for field in fields(Request) if field.name not in NOT_AXES))


def axis(written: str) -> Axis:
    """ "sampler=Euler, Euler a" -> its Axis. Raises UsageError."""
    asked, equals, text = written.partition("=")
    name = asked.strip().lower().replace("_", "-").replace(" ", "-")
    if not equals or not text.strip():
        raise UsageError(f"axis {written!r:.80} has no values: write such as steps=10,20,30")
    if name not in names():
        raise UnknownName("axis", asked.strip(), names())
    texts = _values(text)
    values = _parsed(name, texts)
    if len(values) > MOST_VALUES:
        raise UsageError(f"axis {name} has {len(values)} values: {MOST_VALUES} are the most")
    labels = tuple(_label(name, value) for value in values)
    if name in FILES and len(set(labels)) == len(labels):
        labels = tuple(Path(label).name or label for label in labels)
    return Axis(name, tuple(values), labels)


def _values(text: str) -> list[str]:
    """One line of CSV; what is set in quotes may hold commas."""
    try:
        (row,) = csv.reader([text], skipinitialspace=True, strict=True)
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{text!r:.80} is no line of values: set one with a comma in quotes ({error})") from error
    found = [value.strip() for value in row]
    if not all(found):
        raise UsageError(f"{text!r:.80} has an empty value between its commas")
    return found


def _parsed(name: str, texts: list[str]) -> list[Any]:
    if parser := PARSERS.get(name):
        return parser(texts)
    field = name.replace("-", "_")
    if name in SPECIAL or field in OPTIONAL_TEXTS or field in CHOICES or field == "negative":
        return list(texts)
    whole = field not in RANGES
    return [number for text in texts for number in _numbers(name, text, whole=whole)]


def _numbers(name: str, text: str, *, whole: bool) -> list[int] | list[float]:
    if found := COUNTED.fullmatch(text):
        made = _spaced(float(found[1]), float(found[2]), int(found[3]))
    elif found := STEPPED.fullmatch(text):
        made = _stepped(float(found[1]), float(found[2]), found[3])
    else:
        made = [_number(name, text)]
    if not whole:
        return made
    if any(number != int(number) for number in made):
        raise UsageError(f"axis {name}: {text!r} gives {made}: whole numbers are wanted")
    return [int(number) for number in made]


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"axis {name}: {text!r:.40} is no number: give a number, a range 1-5 (+2) or 1-10 [5]")
    return number


def _spaced(first: float, last: float, count: int) -> list[float]:
    if not 1 <= count <= MOST_VALUES:
        raise UsageError(f"[{count}] values of a range: 1 to {MOST_VALUES} can be drawn")
    if count == 1:
        return [first]
    return [round(first + (last - first) * i / (count - 1), 8) for i in range(count)]


def _stepped(first: float, last: float, written: str | None) -> list[float]:
    step = float(written) if written else (1.0 if last >= first else -1.0)
    if not step or (last - first) * step < 0:
        raise UsageError(f"a range from {first:g} to {last:g} is not walked in steps of {step:g}")
    count = int((last - first) / step + 1e-9) + 1
    if count > MOST_VALUES:
        raise UsageError(f"a range of {count} values: {MOST_VALUES} are the most")
    return [round(first + i * step, 8) for i in range(count)]


def _replacements(texts: list[str]) -> list[tuple[str, str]]:
    """The first is searched for, and each takes its place, itself among them."""
    return [(texts[0], text) for text in texts]


def _orders(texts: list[str]) -> list[tuple[str, ...]]:
    most = 6  # 720 pictures
    if len(texts) > most:
        raise UsageError(f"prompt-order of {len(texts)} words has too many orders: {most} words are the most")
    return list(permutations(texts))


def _sizes(texts: list[str]) -> list[tuple[int, int]]:
    found = [re.fullmatch(r"(\d{1,5})\s*x\s*(\d{1,5})", text, re.ASCII) for text in texts]
    if wrong := [text for text, match in zip(texts, found, strict=True) if match is None]:
        raise UsageError(f"size {wrong[0]!r:.40}: write WIDTHxHEIGHT, such as 512x768")
    return [(int(match[1]), int(match[2])) for match in found if match]


PARSERS: Mapping[str, Callable[[list[str]], list[Any]]] = {REPLACED: _replacements, ORDERED: _orders, SIZE: _sizes}


def _label(name: str, value: Any) -> str:
    if name == REPLACED:
        return str(value[1])
    if name == ORDERED:
        return " ".join(value)
    if name == SIZE:
        return f"{value[0]}x{value[1]}"
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def applied(axis: Axis, value: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` (fields of a Request, and model, vae, optimize, preset) with the axis at one of its values.

    Raises UsageError where a prompt does not have what is searched for.
    """
    if axis == NO_AXIS:
        return dict(settings)
    if (axis.name, value) == ("vae", OWN):
        return {**settings, "vae": None}
    if (axis.name, value) == ("preset", PLAIN):
        return {**settings, "preset": None, "optimize": "none"}
    if axis.name == SIZE:
        return {**settings, "width": value[0], "height": value[1]}
    if axis.name == REPLACED:
        return {**settings, **_replaced(settings, *value)}
    if axis.name == ORDERED:
        return {**settings, "prompt": _ordered(str(settings["prompt"]), axis.values[0], value)}
    return {**settings, axis.name.replace("-", "_"): value}


def _replaced(settings: Mapping[str, Any], search: str, replacement: str) -> dict[str, str]:
    texts = {name: str(settings.get(name) or "") for name in ("prompt", "negative")}
    if not any(search in text for text in texts.values()):
        raise UsageError(f"prompt-sr: {search!r} stands neither in the prompt nor in the negative prompt")
    return {name: text.replace(search, replacement) for name, text in texts.items()}


def _ordered(prompt: str, words: tuple[str, ...], order: tuple[str, ...]) -> str:
    """Each word's place, left to right, is taken by the next of the order."""
    places = sorted((prompt.find(word), word) for word in words)
    if places[0][0] < 0:
        raise UsageError(f"prompt-order: {places[0][1]!r} does not stand in the prompt")
    made, at = "", 0
    for (start, word), new in zip(places, order, strict=True):
        made, at = made + prompt[at:start] + new, start + len(word)
    return made + prompt[at:]
