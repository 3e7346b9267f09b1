"""<lora:name:0.8> in a prompt: taken out, read, and found on disk.

Comes in: a prompt. Goes out: the prompt without its tags, and what they ask for. Knows no model.
Source: A1111 1.10, modules/extra_networks.py and extensions-builtin/Lora/extra_networks_lora.py.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safelight.errors import UnknownName, UsageError, nearest

TAG = re.compile(r"<([A-Za-z]\w*):([^<>]*)(>?)")
KINDS = ("lora", "lyco")  # A1111 takes the second for the first
OTHERS = ("hypernet",)  # A1111's, and not ours
SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Lora:
    """text_weight: for the text encoders. denoiser_weight: for the UNet or transformer. 1 is as trained."""

    name: str
    text_weight: float = 1.0
    denoiser_weight: float = 1.0


def tags(text: str) -> list[re.Match[str]]:
    """A1111 drops every <word:...>; here one that is neither a LoRA nor nearly one is text."""
    return [match for match in TAG.finditer(text) if match[1] in (*KINDS, *OTHERS) or nearest(match[1], KINDS)]


def replaced(text: str, filler: str) -> str:
    """The text with `filler` for each letter of its tags."""
    for match in reversed(tags(text)):
        text = text[: match.start()] + filler * len(match[0]) + text[match.end() :]
    return text


def without_tags(text: str) -> tuple[str, tuple[Lora, ...]]:
    """Raises UsageError for a tag that has no end or no name, or that asks for what is not there."""
    loras = tuple(_lora(match) for match in tags(text))
    return replaced(text, ""), loras


def _lora(match: re.Match[str]) -> Lora:
    kind, inside, end = match.groups()
    column = match.start() + 1
    if kind not in KINDS:
        raise UsageError(f"column {column}: <{kind}:...> is no tag that Safelight knows: write <lora:name:weight>")
    if not end:
        raise UsageError(f"column {column}: <{kind}: has no end: write <{kind}:name:weight>")
    name, *rest = inside.split(":")
    if not name.strip():
        raise UsageError(f"column {column}: <{kind}: names no file: write <{kind}:name:weight>")
    return Lora(name.strip(), *_weights(rest, column))


def _weights(words: list[str], column: int) -> tuple[float, float]:
    """By place (text encoders, denoiser) or by name (te=, unet=); the text's is the other's where that is not said."""
    said: dict[str, float] = {}
    for place, word in enumerate(words):
        key, equals, value = word.partition("=")
        key, value = (key.strip(), value) if equals else (("te", "unet", "dyn")[min(place, 2)], word)
        if key not in ("te", "unet"):
            raise UsageError(f"column {column}: {word!r} of a LoRA is not supported: give name, te and unet weight")
        said[key] = _number(value, column)
    text = said.get("te", 1.0)
    return text, said.get("unet", text)


def _number(word: str, column: int) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"column {column}: the weight {word!r} of a LoRA is no number: 1 is as it was trained")
    return number


def lora_file(name: str, folders: Iterable[Path]) -> Path:
    """The file of a LoRA: `name` is a path, or that of NAME.safetensors in a folder or below it.

    Raises UsageError that names the nearest.
    """
    if name.endswith(SUFFIX) and Path(name).expanduser().is_file():
        return Path(name).expanduser()
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob(f"*{SUFFIX}")):
            found.setdefault(path.relative_to(folder).as_posix().removesuffix(SUFFIX), path)
            found.setdefault(path.stem, path)
    wanted = name.removesuffix(SUFFIX)
    if wanted in found:
        return found[wanted]
    if not found:
        raise UsageError(f"no LoRA {name!r}: give the path of a {SUFFIX} file, or a folder that has one")
    raise UnknownName("LoRA", name, found)
