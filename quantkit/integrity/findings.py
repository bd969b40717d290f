"""What a check reports, and what all checks together came to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One fault. check: the check's name. where: the tensor, module, field or file. message: one line."""

    severity: Severity
    check: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.check}: {self.where}: {self.message}"


@dataclass
class Outcome:
    """findings: errors first, then warnings. checks: names of the checks that ran, in order."""

    findings: list[Finding] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def ok(self) -> bool:
        """No error; warnings do not count."""
        return not self.errors


def error(check: str, where: str, message: str) -> Finding:
    return Finding("error", check, where, message)


def warning(check: str, where: str, message: str) -> Finding:
    return Finding("warning", check, where, message)


def some(names: Iterable[str], limit: int = 2) -> str:
    """``a, b and 7 more``: enough of a list to find the place."""
    found = list(names)
    more = f" and {len(found) - limit} more" if len(found) > limit else ""
    return ", ".join(found[:limit]) + more
