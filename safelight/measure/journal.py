"""All that a search has measured, in a JSON file: a search that was broken off goes on from there.

Comes in: a setting's outcome. Goes out: what is known of a setting. The file is whole at any time. What was measured
with another model, request, device or other versions stays in it, and counts for nothing.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safelight.errors import UsageError
from safelight.measure.frontier import PLAIN, Outcome, Setting

SCHEMA = 1
NUMBERS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}  # JSON has no numbers for these


def key_of(situation: Mapping[str, Any]) -> str:
    """The same for measurements that may be held against each other."""
    return hashlib.sha256(json.dumps(situation, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass
class Journal:
    """path: None keeps it in memory. better: direction of each metric."""

    path: Path | None = None
    situation: Mapping[str, Any] = field(default_factory=dict)
    better: Mapping[str, str] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.key = key_of(self.situation)

    @classmethod
    def read(cls, path: Path, situation: Mapping[str, Any], better: Mapping[str, str]) -> "Journal":
        """An empty one where there is no file. Plain without its pictures is forgotten: others are held against them.

        Raises UsageError for a file that is none of ours.
        """
        journal = cls(path, situation, better)
        if path.exists():
            journal.entries = _entries(path)
            plain = [one for one in journal._mine if one["plan"] == PLAIN.written]
            pictures = [Path(picture["path"]) for one in plain for picture in one["outcome"]["pictures"]]
            if not all((path.parent / picture).is_file() for picture in pictures):
                journal.entries = [one for one in journal.entries if one not in plain]
        return journal

    @property
    def _mine(self) -> list[dict[str, Any]]:
        return [one for one in self.entries if one["situation"] == self.key]

    @property
    def others(self) -> int:
        """Measurements that count for nothing here."""
        return len(self.entries) - len(self._mine)

    def add(self, setting: Setting, runs: range, outcome: Outcome) -> None:
        """Raises EnvironmentProblem where it cannot be written."""
        told = asdict(outcome)
        told["worst"] = {name: value if math.isfinite(value) else str(value) for name, value in outcome.worst.items()}
        entry = {"situation": self.key, "plan": setting.written, "first": runs.start, "runs": len(runs)}
        self.entries.append({**entry, "outcome": told})
        if self.path is not None:
            from safelight.run import metadata

            document = {"schema": SCHEMA, "kind": "tune", "situation": dict(self.situation)}
            text = json.dumps({**document, "measurements": self.entries}, indent=1, default=str, allow_nan=False)
            metadata.stored(self.path, f"{text}\n".encode())

    def of(self, setting: Setting) -> Outcome | None:
        """All that was measured of it together."""
        found: Outcome | None = None
        for entry in self._mine:
            if entry["plan"] == setting.written:
                outcome = _outcome(entry["outcome"])
                found = outcome if found is None else found.then(outcome, self.better)
        return found


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if (table["kind"], table["schema"]) != ("tune", SCHEMA):
            raise UsageError(f"{path} is of {table['kind']!r:.20}, schema {table['schema']!r:.20}: give another --out")
        entries = list(table["measurements"])
        for one in entries:
            _outcome(one["outcome"])
            one["situation"], one["plan"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} holds no measurements of safelight tune: give another --out") from error
    return entries


def _outcome(told: Mapping[str, Any]) -> Outcome:
    worst = {name: NUMBERS.get(value, value) for name, value in told["worst"].items()}
    tuples = {name: tuple(told[name]) for name in ("seconds", "artifacts", "pictures")}
    return Outcome(**{**told, **tuples, "worst": worst})
