r"""Weights of words: (x) is x1.1, (x:1.3) is x1.3, [x] is /1.1, what is nested multiplies, `\(` is a bracket.

Comes in: a text whose schedules are settled. Goes out: its pieces with their weights, split where BREAK stands. What is
not closed counts to the end of the text.

Source: the rules of A1111 1.10, modules/prompt_parser.py, parse_prompt_attention. One differs: BREAK within brackets is
a BREAK here, and there the word "BREAK" with a negative weight.
"""

import re
from dataclasses import dataclass, field

UP, DOWN = 1.1, 1 / 1.1
TOKEN = re.compile(
    r":(?P<weight>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\)|\\(?P<escaped>[()\[\]\\]?)|[()\[\]:]|[^\\()\[\]:]+"
)
BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass(slots=True)
class Piece:
    text: str
    weight: float = 1.0


@dataclass(slots=True)
class _Weighing:
    """pieces: None is a BREAK. opened: of each kind of bracket, where in `pieces` each open one begins."""

    pieces: list[Piece | None] = field(default_factory=list)
    opened: dict[str, list[int]] = field(default_factory=lambda: {"(": [], "[": []})

    def add(self, text: str) -> None:
        first, *others = BREAK.split(text)
        self.pieces.append(Piece(first))
        for other in others:
            self.pieces += [None, Piece(other)]

    def multiply(self, begin: int, factor: float) -> None:
        for piece in self.pieces[begin:]:
            if piece is not None:
                piece.weight *= factor

    def see(self, token: str, weight: str | None) -> None:
        rounds, squares = self.opened["("], self.opened["["]
        if token in self.opened:
            self.opened[token].append(len(self.pieces))
        elif weight is not None and rounds:
            self.multiply(rounds.pop(), float(weight))
        elif token == ")" and rounds:
            self.multiply(rounds.pop(), UP)
        elif token == "]" and squares:
            self.multiply(squares.pop(), DOWN)
        else:
            self.add(token)


def weighted(text: str) -> list[list[Piece]]:
    """Pieces between one BREAK and the next; neighbours of one weight are one piece."""
    state = _Weighing()
    for match in TOKEN.finditer(text):
        if match["escaped"] is not None:
            state.pieces.append(Piece(match["escaped"]))  # a backslash before anything else is dropped
        else:
            state.see(match[0], match["weight"])
    for bracket, factor in (("(", UP), ("[", DOWN)):
        for begin in state.opened[bracket]:
            state.multiply(begin, factor)
    return _merged(state.pieces)


def _merged(pieces: list[Piece | None]) -> list[list[Piece]]:
    sections: list[list[Piece]] = [[]]
    for piece in pieces:
        section = sections[-1]
        if piece is None:
            sections.append([])
        elif section and section[-1].weight == piece.weight:
            section[-1].text += piece.text
        else:
            section.append(piece)
    return [section or [Piece("")] for section in sections]
