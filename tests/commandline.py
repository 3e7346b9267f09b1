"""The command line, run in this process."""

import json
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from safelight import cli


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self):
        return json.loads(self.out)

    @property
    def paths(self):
        return [Path(line) for line in self.out.splitlines()]

    @property
    def said(self):
        """What is said beside the progress and the measurements."""
        return [line for line in self.err.splitlines() if not line.startswith(("picture ", "predicted ", "measured "))]


def as_nobody(monkeypatch, folder):
    """In an empty folder, without the variables of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("SAFELIGHT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(folder)


@contextmanager
def in_process(monkeypatch, capsys, *command):
    """A function that runs `safelight COMMAND ARGUMENTS`; what it does to signals is undone."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["safelight", *command, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Ran(ended.value.code, *capsys.readouterr())

    yield call
    signal.signal(signal.SIGTERM, before)
