r"""A prompt as A1111 reads it: LoRA tags, the parts that AND joins, and in each the words that change.

Comes in: what a person typed. Goes out: a Prompt. Knows no model: weights within a part are read when it is encoded
(`attention`), as its text is known only then.

What A1111 accepts is accepted and means the same. Refused is what cannot be meant, with its column: a weight or a time
that is no number, AND with nothing beside it, a tag without an end or a name.
"""

import re
from dataclasses import dataclass

from safelight.errors import UsageError
from safelight.prompts import attention, schedule
from safelight.prompts.tags import Lora, replaced, tags, without_tags

AND = re.compile(r"\bAND\b")
PART = re.compile(r"(.*?)(?:\s*:\s*([-+]?(?:[0-9]+\.?|[0-9]*\.[0-9]+)))?\s*", re.DOTALL)
SYNTAX = re.compile(r"[()\[\]\\]|\b(?:BREAK|AND)\b|<\w+:")


@dataclass(frozen=True, slots=True)
class Part:
    """What stands between ANDs. weight: how much of it; the first has one, too."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Prompt:
    parts: tuple[Part, ...]
    loras: tuple[Lora, ...] = ()


def parse(text: str) -> Prompt:
    """Raises UsageError that begins with the column, counted from 1.

    A weight after the last colon counts only beside an AND: A1111 reads it in every prompt, so that "a poster, 16:9"
    has nine times its guidance there.
    """
    plain, loras = without_tags(text)
    masked = replaced(text, schedule.MASK)
    ends = [match.span() for match in AND.finditer(masked)]
    begins = [0, *(end for _, end in ends)]
    for begin, end in zip(begins, [*(begin for begin, _ in ends), len(text)], strict=True):
        if ends and not _part(masked[begin:end].replace(schedule.MASK, "")).text:
            raise UsageError(f"column {begin + 1}: AND has nothing beside it: give it a prompt, or write and")
        schedule.read(masked[begin:end], begin + 1)
    pieces = AND.split(plain)
    return Prompt((Part(plain),) if len(pieces) == 1 else tuple(map(_part, pieces)), loras)


def _part(text: str) -> Part:
    match = PART.fullmatch(text)
    assert match is not None  # every group of it may be empty
    return Part(match[1].strip(), 1.0 if match[2] is None else float(match[2]))


def parse_negative(text: str) -> str:
    """A negative prompt has no AND, and a LoRA in it would do nothing. Raises UsageError as `parse` does."""
    for tag in tags(text):
        raise UsageError(
            f"column {tag.start() + 1}: {tag[0]} in the negative prompt does nothing: put it in the prompt"
        )
    schedule.read(text)
    return text


def has_syntax(text: str) -> bool:
    """Whether any of it could mean more than its words."""
    return SYNTAX.search(text) is not None


# what no one writes in prose: (x) alone is left out
LITERAL = (
    ("weights", re.compile(r":[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)\)|\(\(")),
    ("BREAK", re.compile(r"\bBREAK\b")),
    ("AND", AND),
)


def ignored(text: str) -> str | None:
    """What of A1111's syntax a model that reads plain text takes for words, for a warning; None if nothing."""
    found = {name: match.start() + 1 for name, pattern in LITERAL if (match := pattern.search(text))}
    try:
        changes = any(not isinstance(node, str) for node in schedule.read(text))
    except UsageError:
        changes = True
    if changes:
        found["words that change in square brackets"] = text.index("[") + 1 if "[" in text else 1
    if not found:
        return None
    listed = ", ".join(f"{name} (column {column})" for name, column in sorted(found.items(), key=lambda item: item[1]))
    return f"this model reads words only and takes these literally: {listed}"


def sections(text: str, emphasis: str) -> list[list[attention.Piece]]:
    """What is encoded: pieces with weights, split at BREAK; in the mode "None" the text as it is."""
    return [[attention.Piece(text)]] if emphasis == "None" else attention.weighted(text)
