r"""Words that change while a picture is drawn: [from:to:when], [to:when], [from::when] and [a|b], nested as you like.

Comes in: a text and the number of steps. Goes out: which text holds until which step. Knows no weights: what stands in
round brackets, and in square ones without a time, is passed on as it is. What is not closed is text, as it is in A1111;
a bar outside of square brackets makes the whole text one that does not change.

Source: the grammar of A1111 1.10, modules/prompt_parser.py.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from safelight.errors import UsageError

TOKEN = re.compile(r"(?:[^\\\[\]():|]|\\.)+|[\[\]():|\\\n]")
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
WEIGHT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
# a slip of the finger in a number: 1.x, 0,5, 1.2.3, 50%; but 3d and 30pm are words
SLIP = re.compile(r"[+-]?(?:[0-9]*[.,][\w.,]*|[0-9]+%)")
CLOSING = {"(": ")", "[": "]"}
DEEPEST = 50  # open brackets where one closes: far over what is written by hand
MASK = "\0"  # stands where a tag was, so that columns stay true


@dataclass(frozen=True, slots=True)
class Entry:
    """`text` holds up to step `until`, counted from 1; how A1111 counts the steps of a run says `text_at`."""

    until: int
    text: str


@dataclass(frozen=True, slots=True)
class Timed:
    before: "Nodes"
    after: "Nodes"
    when: str


@dataclass(frozen=True, slots=True)
class Alternating:
    options: "tuple[Nodes, ...]"


Nodes = tuple["str | Timed | Alternating", ...]


def schedule(text: str, steps: int, *, first_pass: int | None = None) -> tuple[Entry, ...]:
    """What is drawn when, the last entry until `steps`. "when" with a point is a share of the steps, else a step.

    first_pass: in the second of two passes, the steps of the first: whole numbers count on from there, and shares from
    1.0.
    """
    nodes = read(text)

    def last_of(when: str) -> int:
        whole, share = (0, 0.0) if first_pass is None else (first_pass, 1.0)
        end = (float(when) - share) * steps if "." in when else float(when) - whole
        return int(max(min(end, steps), -1))

    ends = {steps}
    for node in _inside(nodes):
        if isinstance(node, Alternating):
            ends.update(range(1, steps + 1))
        elif isinstance(node, Timed) and (end := last_of(node.when)) >= 1:
            ends.add(end)

    def drawn(nodes: Nodes, step: int) -> str:
        return "".join(chosen(node, step) for node in nodes)

    def chosen(node: str | Timed | Alternating, step: int) -> str:
        if isinstance(node, Timed):
            return drawn(node.before if step <= last_of(node.when) else node.after, step)
        if isinstance(node, Alternating):
            return drawn(node.options[(step - 1) % len(node.options)], step)
        return node

    return tuple(Entry(end, drawn(nodes, end)) for end in sorted(ends))


def text_at(entries: tuple[Entry, ...], step: int) -> str:
    """The text of a step, counted from 0.

    A1111 compares this number with ends that count from 1, so the first text holds one step longer than it says:
    [a|b] draws a, a, b, a, b, and [a:b:3] draws a four times. Its pictures have it, so ours do.
    """
    return next((entry.text for entry in entries if step <= entry.until), entries[-1].text)


def _inside(nodes: Nodes) -> Iterator[str | Timed | Alternating]:
    for node in nodes:
        yield node
        if isinstance(node, Timed):
            yield from _inside(node.before)
            yield from _inside(node.after)
        elif isinstance(node, Alternating):
            for option in node.options:
                yield from _inside(option)


def read(text: str, column: int = 1) -> Nodes:
    """The text as nodes. column: of its first letter. Raises UsageError for a time or a weight that is no number."""
    return _Reader(text, column).read()


@dataclass(slots=True)
class _Open:
    """A bracket that is not closed yet. parts: between its separators; begins: where the latest of them begins."""

    bracket: str
    begins: int
    parts: "list[list[str | Timed | Alternating]]" = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)

    def separate(self, mark: str, begins: int) -> None:
        self.parts.append([])
        self.separators.append(mark)
        self.begins = begins

    def as_text(self) -> "list[str | Timed | Alternating]":
        """Its bracket, parts and separators one after the other, as if it had no meaning."""
        marks = [self.bracket, *self.separators]
        return [node for mark, part in zip(marks, self.parts, strict=True) for node in (mark, *part)]


class _Reader:
    def __init__(self, text: str, column: int) -> None:
        self.text, self.column = text, column
        self.open = [_Open("", 0)]
        self.is_fixed = False

    def read(self) -> Nodes:
        for match in TOKEN.finditer(self.text):
            token, at = match[0], match.start()
            if token in CLOSING:
                self.open.append(_Open(token, at + 1))
            elif token in CLOSING.values():
                self._close(token, at)
            elif token in (":", "|") and len(self.open) > 1:
                self.open[-1].separate(token, at + 1)
            else:
                self.is_fixed |= token in ("|", "\\")
                self.open[-1].parts[-1].append(token)
        self._give_up()
        return (self.text,) if self.is_fixed else tuple(self.open[0].parts[0])

    def _close(self, token: str, at: int) -> None:
        bracket = self.open[-1]
        if len(self.open) > DEEPEST:
            raise UsageError(f"column {self.column + at}: more than {DEEPEST} brackets are open: close some before")
        shape = SHAPES.get((bracket.bracket, token))
        nodes = shape(self, bracket, at) if shape else None
        if nodes is None:
            self._give_up()
            nodes = [token]
        else:
            self.open.pop()
        self.open[-1].parts[-1] += nodes

    def _give_up(self) -> None:
        """Whatever is open is text: a bracket with a stray one inside means nothing either."""
        for bracket in self.open[1:]:
            self.is_fixed |= "|" in bracket.separators
            self.open[0].parts[0] += bracket.as_text()
        del self.open[1:]

    def _round(self, bracket: _Open, at: int) -> "list[str | Timed | Alternating] | None":
        last = self.text[bracket.begins : at].replace(MASK, "")
        if bracket.separators[-1:] == [":"] and SLIP.fullmatch(last) and not WEIGHT.fullmatch(last):
            raise self._refusal(bracket, f"the weight {last!r} is no number", r"\( \)")
        if "|" in bracket.separators or len(bracket.parts) > 2:
            return None
        return [*bracket.as_text(), ")"]

    def _square(self, bracket: _Open, at: int) -> "list[str | Timed | Alternating] | None":
        kinds = set(bracket.separators)
        if not kinds:
            return [*bracket.as_text(), "]"]
        if kinds == {"|"}:
            return [Alternating(tuple(map(tuple, bracket.parts)))]
        if kinds != {":"} or len(bracket.parts) > 3:
            return None
        when = self.text[bracket.begins : at].replace(MASK, "").strip()
        if NUMBER.fullmatch(when):
            *before, after, _ = bracket.parts
            return [Timed(tuple(before[0]) if before else (), tuple(after), when)]
        if len(bracket.parts) == 3 or SLIP.fullmatch(when):
            raise self._refusal(bracket, f"the time {when!r} is no number", r"\[ \]")
        return None

    def _refusal(self, bracket: _Open, problem: str, brackets: str) -> UsageError:
        return UsageError(f"column {self.column + bracket.begins}: {problem}: give one, or write {brackets} for text")


SHAPES = {("(", ")"): _Reader._round, ("[", "]"): _Reader._square}
