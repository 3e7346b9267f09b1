"""Everything Safelight raises on purpose. Each message is one line: what was asked, what is there, what to do.

SafelightError                   exit 1   the run failed
├── UsageError                   exit 2   the request cannot be right
│   ├── UnknownName              exit 2   no such optimizer, sampler, option, ...: names the nearest
│   ├── ModelNotFound            exit 2   no such folder, file or repository
│   ├── DoesNotApply             exit 2   an optimizer was asked for that cannot act here
│   ├── CannotPredict            exit 2   nobody knows how a part of this model is called
│   └── Conflict                 exit 2   two optimizers were asked for that exclude each other
├── DamagedModel                 exit 1   a folder or file that cannot be read as a model
├── DidNotEngage                 exit 1   an optimizer was applied and left no evidence of an effect
├── SpoiledPicture               exit 1   not-a-number or all black, also with the VAE in float32
├── PartlyDone                   exit 3   some pictures were written, some were not
├── EnvironmentProblem           exit 4   a package, a device, a folder or disk space is missing
├── OutOfMemory                  exit 6   names the part, what it needed and what would help
└── Interrupted                  exit 130 Ctrl-C; says how many pictures were written
"""

import difflib
from collections.abc import Iterable


class SafelightError(Exception):
    """The root: `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(SafelightError):
    exit_code = 2


class UnknownName(UsageError):
    """known: what there is. also: what is understood besides, and only named when it is near."""

    def __init__(self, kind: str, asked: str, known: Iterable[str], also: Iterable[str] = ()) -> None:
        known = sorted(known)
        near = nearest(asked, (*known, *also))
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} {asked!r}: {hint}")


class ModelNotFound(UsageError):
    pass


class DoesNotApply(UsageError):
    pass


class CannotPredict(UsageError):
    pass


class Conflict(UsageError):
    pass


class DamagedModel(SafelightError):
    pass


class DidNotEngage(SafelightError):
    """names: of the optimizers."""

    def __init__(self, message: str, names: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.names = tuple(names)


class SpoiledPicture(SafelightError):
    pass


class PartlyDone(SafelightError):
    exit_code = 3


class EnvironmentProblem(SafelightError):
    exit_code = 4


class OutOfMemory(SafelightError):
    exit_code = 6


class Interrupted(SafelightError):
    exit_code = 130


def nearest(asked: str, known: Iterable[str]) -> list[str]:
    """At most three of `known`, best first; case does not count."""
    by_lower = {name.lower(): name for name in known}
    return [by_lower[name] for name in difflib.get_close_matches(asked.lower(), by_lower, n=3, cutoff=0.5)]
