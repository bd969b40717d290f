"""runtimes.json: which runtimes answered a variant's requests rightly; the model card's ticks are read from it.

    {"format": 1, "fingerprint": F, "runs": [
        {"runtime": "vllm", "version": "0.32.0", "device": "cpu", "date": "2026-11-27", "passed": true,
         "reference": "...", "requests": [{"name": "text", "status": "passed", "detail": "..."}]}]}

F: the variant's fingerprint as report.json records it. A run replaces an earlier one of the same runtime and device;
runs over other files (another fingerprint) are dropped.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.output import atomic_file

FORMAT = 1
NAME = "runtimes.json"
PASSED, FAILED, NOT_SHOWN, NOT_RUN = "passed", "failed", "not shown", "not run"


@dataclass(frozen=True)
class Outcome:
    """One request's. status: PASSED, FAILED, NOT_SHOWN (by this model: nothing to pass) or NOT_RUN."""

    name: str
    status: str
    detail: str


@dataclass(frozen=True)
class Run:
    """One runtime's. reference: what the answers were judged by. note: of the runtime itself."""

    runtime: str
    version: str
    device: str
    date: str
    reference: str
    outcomes: tuple[Outcome, ...]
    note: str | None = None

    @property
    def passed(self) -> bool:
        """Whether something passed, and nothing failed or was left out."""
        found = {outcome.status for outcome in self.outcomes}
        return PASSED in found and found <= {PASSED, NOT_SHOWN}

    def content(self) -> dict[str, Any]:
        """The run as it stands in the file."""
        return {
            "runtime": self.runtime,
            "version": self.version,
            "device": self.device,
            "date": self.date,
            "passed": self.passed,
            "reference": self.reference,
            **({"note": self.note} if self.note else {}),
            "requests": [
                {"name": outcome.name, "status": outcome.status, "detail": outcome.detail} for outcome in self.outcomes
            ],
        }


def read(path: Path) -> dict[str, Any]:
    """A record's content, with no runs where there is no file; raises `QuantkitError` for what is no such record."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"format": FORMAT, "fingerprint": None, "runs": []}
    except (OSError, ValueError) as error:
        raise QuantkitError(f"{path}: cannot be read ({' '.join(str(error).split())}); delete it or mend it") from error
    runs = content.get("runs") if isinstance(content, dict) else None
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise QuantkitError(f"{path}: is no record of runtimes; delete it, or choose another --out")
    if content.get("format") != FORMAT:
        raise QuantkitError(f"{path}: has format {content.get('format')!r}, this quantkit writes {FORMAT}; delete it")
    return dict(content)


def check_place(path: Path) -> None:
    """Raise `QuantkitError`, before any work, where a record could not be written or merged."""
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK) or path.is_dir():
        raise QuantkitError(f"{path}: cannot be written; name another file with --out")
    read(path)


def add(path: Path, fingerprint: str, run: Run) -> int:
    """Merge a run into the record; returns how many earlier runs were dropped because the files have changed since."""
    content = read(path)
    dropped = 0
    if content.get("fingerprint") != fingerprint:
        dropped, content["runs"] = len(content["runs"]), []
    place = (run.runtime, run.device)
    kept = [one for one in content["runs"] if (one.get("runtime"), one.get("device")) != place]
    whole = {"format": FORMAT, "fingerprint": fingerprint, "runs": [*kept, run.content()]}
    try:
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise QuantkitError(f"{path}: cannot be written ({error.strerror}); name another file with --out") from error
    return dropped
