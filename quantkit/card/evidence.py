"""What was measured and what was run on exactly these files: `report.json` of verify, `runtimes.json` of serve-check.

A record of other files is no evidence: every fingerprint is compared with that of the files as they are now.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.card.variant import Variant, read_json
from quantkit.errors import QuantkitError

if TYPE_CHECKING:
    from quantkit.verify.report import Report

RUNTIMES = "runtimes.json"  # of a folder; of one GGUF file NAME.runtimes.json
FORMAT = 1
# what a card has a line for, in its order
KNOWN = (
    "transformers", "transformers-serve", "vllm", "sglang", "llama-server", "llama-cli", "ollama",
    "ios", "android", "harmonyos", "llama-factory", "swift",
)  # fmt: skip
# verify's engine `llama.cpp` is llama.cpp's own server, started through a Python package
_ENGINES = {
    "transformers": "transformers", "vllm": "vllm", "sglang": "sglang", "llama.cpp": "llama-server", "ollama": "ollama",
}  # fmt: skip
_STATES = ("passed", "failed", "not shown", "not run")


@dataclass(frozen=True)
class Measured:
    """A report of files that are in the folder; covers: their names."""

    report: Report
    path: Path
    covers: tuple[str, ...]


@dataclass(frozen=True)
class Ran:
    """One runtime that ran these files. items: of a verification; requests: of a server check, name and state."""

    runtime: str
    version: str
    device: str
    date: str | None = None
    items: int | None = None
    requests: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Evidence:
    """measured: reports of these files. stale: reports of other files. runs: by runtime, those alone that passed."""

    measured: tuple[Measured, ...]
    stale: tuple[Path, ...]
    runs: dict[str, list[Ran]]
    runtimes: tuple[Path, ...]  # the files that `runs` come from, those that are about these files


def gather_evidence(variant: Variant, reports: Iterable[Path] = ()) -> Evidence:
    """Read the named reports and every report*.json in the folder, and runtimes.json."""
    from quantkit.verify.report import Report

    given = [report_path(path) for path in reports]
    places = list(dict.fromkeys([*given, *sorted(variant.path.glob("report*.json"))]))
    measured, stale = [], []
    for path in places:
        report = Report.load(path)
        covers = variant.covered(report.candidate)
        if covers:
            measured.append(Measured(report, path, tuple(file.name for file in covers)))
        else:
            stale.append(path)
    checks = {path: _server_checks(variant, path) for path in sorted(variant.path.glob(f"*{RUNTIMES}"))}
    checked = {path: runs for path, runs in checks.items() if runs is not None}
    runs = [ran for one in measured for ran in _engines(one.report)] + [ran for one in checked.values() for ran in one]
    return Evidence(
        tuple(measured),
        tuple(stale),
        {name: [ran for ran in runs if ran.runtime == name] for name in KNOWN},
        tuple(checked),
    )


def report_path(path: Path) -> Path:
    """A report's file, also where its folder was given."""
    path = path.expanduser()
    return (path / "report.json" if path.is_dir() else path).resolve()


def _engines(report: Report) -> list[Ran]:
    device = str(report.options.get("device", "cpu"))
    found = []
    for engine in report.engines:
        if engine.status == "ran" and engine.name in _ENGINES:
            items = next((group.ran for group in engine.groups if group.by == "all"), None)
            version = ", ".join(f"{name} {number}" for name, number in engine.versions.items())
            if not version and engine.name == "transformers":
                version = f"transformers {report.environment.get('transformers')}"
            found.append(Ran(_ENGINES[engine.name], version, device, items=items))
    return found


# ---- runtimes.json ------------------------------------------------------------------------------------------------


def _server_checks(variant: Variant, path: Path) -> list[Ran] | None:
    """The runs of a file that passed; None where it is about other files."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("runs"), list):
        raise QuantkitError(f"{path}: not of format {FORMAT}; run quantkit serve-check again")
    if not variant.knows(str(content.get("fingerprint"))):
        return None
    return [_run(run, path) for run in content["runs"] if _passed(run, path)]


def _passed(run: Any, path: Path) -> bool:
    if not isinstance(run, dict) or not isinstance(run.get("passed"), bool) or not isinstance(run.get("runtime"), str):
        raise QuantkitError(f"{path}: a run without runtime or passed; run quantkit serve-check again")
    return bool(run["passed"])


def _run(run: dict[str, Any], path: Path) -> Ran:
    requests = run.get("requests", [])
    if not isinstance(requests, list) or not all(isinstance(one, dict) for one in requests):
        raise QuantkitError(f"{path}: requests is no list of records; run quantkit serve-check again")
    states = [(str(one.get("name")), str(one.get("status"))) for one in requests]
    wrong = next((state for _, state in states if state not in _STATES), None)
    if wrong is not None:
        raise QuantkitError(f"{path}: a request's status is {wrong!r}, known are {', '.join(_STATES)}")
    date = run.get("date")
    return Ran(
        run["runtime"], str(run.get("version", "")), str(run.get("device", "")),
        None if date is None else str(date), requests=tuple(states),
    )  # fmt: skip
