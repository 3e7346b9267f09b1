"""Progress and messages on stderr: bars on a terminal, plain lines in a pipe. Never on stdout, which is for results."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from safelight.config import is_terminal

if TYPE_CHECKING:
    from safelight.run.generate import Progress


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def harmless(text: str) -> str:
    """Control characters, which command a terminal, written out; but for the line break."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", lambda found: ascii(found[0])[1:-1], text)


@contextmanager
def progress(*, quiet: bool = False) -> Iterator["Progress"]:
    """A function to report (stage, done, of how many) to."""
    if quiet:
        yield lambda stage, done, total: None
    elif is_terminal():
        with _bars() as report:
            yield report
    else:
        yield _plain


def _plain(stage: str, done: int, total: int) -> None:
    if stage == "pictures":
        say(f"picture {done} of {total}")


@contextmanager
def _bars() -> Iterator["Progress"]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield report


def mib(size: int | None) -> str:
    return "not measured" if size is None else f"{size / 2**20:.0f} MiB"
