"""Tokens in chunks: CLIP reads 75 at a time, so longer prompts are cut, if possible behind a comma.

Comes in: numbers of tokens with weights. Goes out: chunks that fit. Knows no tokenizer.
Source: A1111 1.10, modules/sd_hijack_clip.py, tokenize_line.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

BACKTRACK = 20  # tokens: a comma this near to the end is where the chunk is cut (A1111's comma_padding_backtrack)

Weighted = tuple[int, float]  # a token and its weight


@dataclass(slots=True)
class _Filling:
    size: int
    comma: int | None
    full: list[list[Weighted]] = field(default_factory=list)
    now: list[Weighted] = field(default_factory=list)
    last_comma: int | None = None  # its place in `now`

    def cut(self, keep: int | None = None) -> None:
        """Ends the chunk; what it does not keep begins the next."""
        keep = len(self.now) if keep is None else keep
        self.full.append(self.now[:keep])
        self.now, self.last_comma = self.now[keep:], None

    def add(self, token: Weighted) -> None:
        is_full = len(self.now) == self.size
        if token[0] == self.comma:
            self.last_comma = len(self.now)
        elif is_full and self.last_comma is not None and self.size - self.last_comma <= BACKTRACK:
            self.cut(self.last_comma + 1)
        if len(self.now) == self.size:
            self.cut()
        self.now.append(token)


def filled(sections: Iterable[Iterable[Weighted]], size: int, comma: int | None) -> list[list[Weighted]]:
    """Chunks of at most `size` tokens, at least one; a section begins a new one. comma: its token, if any."""
    filling = _Filling(size, comma)
    for i, section in enumerate(sections):
        if i:
            filling.cut()
        for token in section:
            filling.add(token)
    if filling.now or not filling.full:
        filling.cut()
    return filling.full
