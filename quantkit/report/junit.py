"""JUnit XML for CI, as Jenkins and GitLab read it: gates, integrity checks, alarms and engines as test cases.

A case fails by `<failure>`; an engine that was not run is `<skipped>`, never passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from quantkit.report.figures import MISSING, clean, number

if TYPE_CHECKING:
    from quantkit.verify.report import Finding, Report


@dataclass(frozen=True)
class Case:
    """One test case; `failure` and `skipped` hold the reason."""

    classname: str
    name: str
    failure: str | None = None
    skipped: str | None = None
    output: str | None = None


def write_junit(report: Report, path: str | Path) -> Path:
    """Write the XML file; an existing one is replaced at once."""
    from quantkit.verify.report import write_text

    target = Path(path)
    write_text(target, to_junit(report))
    return target


def to_junit(report: Report) -> str:
    """The XML text: one suite each for gates, integrity, alarms and engines, where there are any."""
    suites = {
        "quantkit.gates": _gates(report),
        "quantkit.integrity": _findings("quantkit.integrity", report.checks, report.integrity),
        "quantkit.alarms": _findings("quantkit.alarms", [], report.alarms),
        "quantkit.engines": _engines(report),
    }
    failed = any(case.failure is not None for cases in suites.values() for case in cases)
    if report.verdict.status == "fail" and not failed:  # CI must never see green where the report says fail
        suites["quantkit.verdict"] = [Case("quantkit.verdict", "verdict", failure=report.verdict.headline)]
    every = [case for cases in suites.values() for case in cases]
    root = ET.Element("testsuites", {"name": clean(f"quantkit verify {report.candidate.name}"), **_counts(every)})
    root.set("time", f"{sum(report.seconds.values()):.3f}")
    for name, cases in suites.items():
        if cases:
            _suite(root, name, cases, sum(report.seconds.values()) if name == "quantkit.engines" else 0.0)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _counts(cases: list[Case]) -> dict[str, str]:
    failures = sum(case.failure is not None for case in cases)
    skipped = sum(case.skipped is not None for case in cases)
    return {"tests": str(len(cases)), "failures": str(failures), "errors": "0", "skipped": str(skipped)}


def _suite(root: ET.Element, name: str, cases: list[Case], seconds: float) -> None:
    suite = ET.SubElement(root, "testsuite", {"name": name, **_counts(cases), "time": f"{seconds:.3f}"})
    for case in cases:
        entry = ET.SubElement(suite, "testcase", classname=clean(case.classname), name=clean(case.name), time="0.000")
        if case.failure is not None:
            reason = clean(case.failure)
            ET.SubElement(entry, "failure", message=reason.partition("\n")[0], type="failure").text = reason
        if case.skipped is not None:
            ET.SubElement(entry, "skipped", message=clean(case.skipped))
        if case.output:
            ET.SubElement(entry, "system-out").text = clean(case.output)


def _gates(report: Report) -> list[Case]:
    cases = []
    for gate in report.gates:
        value = MISSING if gate.value is None else number(gate.value)
        judged = f"limit {gate.limit:g}, pessimistic value {value}"
        failure = None if gate.passed else f"{gate.message}\n{judged}"
        cases.append(Case(f"quantkit.gates.{gate.engine}", f"{gate.gate} [{gate.group}]", failure, output=judged))
    return cases


def _findings(classname: str, checks: list[str], found: list[Finding]) -> list[Case]:
    """One case a check, those included that only a finding names; errors fail it, warnings are its output."""
    cases = []
    for name in dict.fromkeys([*checks, *(finding.check for finding in found)]):
        mine = [finding for finding in found if finding.check == name]
        errors = [_line(finding) for finding in mine if finding.severity == "error"]
        warnings = [_line(finding) for finding in mine if finding.severity == "warning"]
        cases.append(Case(classname, name, "\n".join(errors) or None, output="\n".join(warnings) or None))
    return cases


def _line(finding: Finding) -> str:
    return f"{finding.severity}: {finding.where}: {finding.message}"


def _engines(report: Report) -> list[Case]:
    cases = []
    for engine in report.engines:
        reason = None if engine.status == "ran" else engine.why or "not run"
        left = "\n".join(f"{times} items left out: {why}" for why, times in engine.left_out.items())
        cases.append(Case("quantkit.engines", engine.name, skipped=reason, output=left or None))
    return cases
