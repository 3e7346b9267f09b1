"""Progress and messages on stderr: bars on a terminal, plain lines in a pipe. Never on stdout, which is for results."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from safelight.config import is_terminal

if TYPE_CHECKING:
    from safelight.run.generate import Progress


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


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
