"""Styles: named pieces of prompts in a CSV file, as A1111 keeps them.

Comes in: a file with the columns name, prompt and negative_prompt. Goes out: prompts with the styles in them.
Source: A1111 1.10, modules/styles.py.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safelight.errors import UnknownName, UsageError

PLACE = "{prompt}"


@dataclass(frozen=True, slots=True)
class Style:
    name: str
    prompt: str = ""
    negative: str = ""


def load(path: Path) -> dict[str, Style]:
    """By name; a name that begins with # is a comment, and a later one of the same name counts. Raises UsageError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"styles {str(path)!r} cannot be read: {error}") from error
    if any("name" not in row for row in rows):
        raise UsageError(f"styles {str(path)!r} have no column called name: give name,prompt,negative_prompt")
    made = [_style(row) for row in rows if row["name"] and not row["name"].startswith("#")]
    return {style.name: style for style in made}


def _style(row: Mapping[str, str | None]) -> Style:
    # old files have one column, "text"
    return Style(row["name"] or "", row.get("prompt") or row.get("text") or "", row.get("negative_prompt") or "")


def applied(prompt: str, negative: str, names: Sequence[str], styles: Mapping[str, Style]) -> tuple[str, str]:
    """(prompt, negative prompt) with the styles in them, in order. Raises UnknownName."""
    for name in names:
        if name not in styles:
            raise UnknownName("style", name, styles)
        prompt = _joined(prompt.strip(), styles[name].prompt.strip())
        negative = _joined(negative.strip(), styles[name].negative.strip())
    return prompt, negative


def _joined(prompt: str, style: str) -> str:
    if PLACE in style:
        return style.replace(PLACE, prompt)
    return ", ".join(text for text in (prompt, style) if text)
