"""One thing that was found, how a list of them reads, and what it means for the exit code."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from safelight.errors import EnvironmentProblem

MARKS = {"ok": "ok", "note": "note", "warning": "warn", "error": "ERROR"}


@dataclass(frozen=True, slots=True)
class Finding:
    """level: "ok", "note" (worth knowing), "warning" (costs time, memory or safety) or "error" (will not work).

    mend: what to do; "" where there is nothing to do.
    """

    level: str
    subject: str
    says: str
    mend: str = ""


def worst(findings: Iterable[Finding]) -> int:
    """The exit code: 0, or that of EnvironmentProblem (4) when anything is an error."""
    return EnvironmentProblem.exit_code if any(finding.level == "error" for finding in findings) else 0


def lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Plain text, aligned; a remedy stands on a line of its own below."""
    findings = list(findings)
    width = max((len(finding.subject) for finding in findings), default=0)
    for finding in findings:
        yield f"{MARKS[finding.level]:<5}  {finding.subject:<{width}}  {finding.says}"
        if finding.mend:
            yield f"{'':<5}  {'':<{width}}  -> {finding.mend}"
