"""One worker, from its task to its end: its lines are heard as they come, and no worker outlives the call.

Comes in: a Task. Goes out: events to whoever hears them, and how the process ended where that was not well.
"""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any

from safelight.measure.worker import Task

Hear = Callable[[Mapping[str, Any]], None]
Launch = Callable[[Task, Hear], str | None]
WORKER = (sys.executable, "-m", "safelight.measure.worker")


def launched(task: Task, hear: Hear, command: Sequence[str] = WORKER) -> str | None:
    """Runs one worker to its end. Goes out: None, or how it ended where that was not well."""
    told = False
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        # a session of its own: Ctrl-C is for this process, which then ends the other
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        with _ended(process) as (stdin, stdout):
            with contextlib.suppress(BrokenPipeError):  # it has ended already, and says below how
                stdin.write(json.dumps(asdict(task)))
                stdin.close()
            for line in stdout:
                event = json.loads(line)
                told = told or event["event"] in ("measured", "failed")
                hear(event)
            code = process.wait()
        return None if told and code == 0 else ending(code, errors)


@contextlib.contextmanager
def _ended(process: "subprocess.Popen[str]") -> Iterator[tuple[IO[str], IO[str]]]:
    """No worker outlives this block."""
    assert process.stdin and process.stdout, "both are pipes"
    try:
        yield process.stdin, process.stdout
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def ending(code: int, errors: IO[str]) -> str:
    """How a process ended that did not tell."""
    errors.seek(0)
    last = next((line.strip() for line in reversed(errors.read().splitlines()) if line.strip()), "")
    if code < 0:
        name = signal.Signals(-code).name
        why = " (as a rule the system had no memory left)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{why}"
    return f"its process ended with exit code {code}{f': {last:.300}' if last else ''}"
