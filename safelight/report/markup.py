"""Small pieces of an HTML page. Every text that comes in is escaped here, what goes out is markup."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from safelight.report.bench_figures import NOTHING, UNMEASURED

NO = "NO"


def embedded_json(text: str) -> str:
    """JSON that stands in a script element: nothing in it can end the element or begin another."""
    escaped = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    return re.sub("[<>&\u2028\u2029]", lambda found: escaped[found[0]], text)


def dot(colour: str) -> str:
    return f'<span class="dot" aria-hidden="true" style="background: {colour}"></span>'


def legend(entries: Iterable[tuple[str, str]], more: str = "") -> str:
    """entries: name and colour. more: further items, as markup."""
    items = "".join(f"<li>{dot(colour)}{escape(name)}</li>" for name, colour in entries)
    return f'<ul class="legend">{items}{more}</ul>'


def two(large: str, *small: str) -> str:
    """A figure, and under it what else there is to say of it."""
    tone = ' class="soft"' if large in (UNMEASURED, NOTHING) else ""
    more = "".join(f"<small>{escape(text)}</small>" for text in small if text)
    return f"<div{tone}>{escape(large)}{more}</div>"


def table(name: str, head: Sequence[str], lines: Iterable[Sequence[str]], *, words: bool = False) -> str:
    """One that scrolls for itself where it is too wide. words: cells are to the left and may break. What stands after a
    line break in a cell is small; NO is marked."""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    body = "".join(f"<tr>{_cells(line)}</tr>" for line in lines)
    cls = ' class="words"' if words else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">'
        f"<table{cls}><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cells(line: Sequence[str]) -> str:
    first, *others = line
    cells = (f'<td class="bad">{NO}</td>' if text == NO else f"<td>{_lines(text)}</td>" for text in others)
    return f'<th scope="row">{_lines(first)}</th>{"".join(cells)}'


def _lines(text: str) -> str:
    large, _, small = text.partition("\n")
    return f"{escape(large)}<small>{escape(small)}</small>" if small else escape(large)


def details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def facts(found: Mapping[str, str]) -> str:
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(said)}</dd>" for name, said in found.items())
    return f'<dl class="facts">{lines}</dl>'
