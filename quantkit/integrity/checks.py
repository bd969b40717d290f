"""The table of checks, and the one function that runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from quantkit.checkpoint import Checkpoint
from quantkit.errors import QuantkitError
from quantkit.integrity.accounting import check_accounting, check_copies
from quantkit.integrity.config import check_checksums, check_config, check_files, has_checksums
from quantkit.integrity.findings import Finding, Outcome, error
from quantkit.integrity.skiplist import check_skip_list
from quantkit.integrity.subject import Subject
from quantkit.integrity.values import check_finite, check_scales, check_tied
from quantkit.integrity.weights import check_weights


def _always(subject: Subject) -> bool:
    return True


def _has_source(subject: Subject) -> bool:
    return subject.reference is not None


def _is_packed(subject: Subject) -> bool:
    return bool(subject.packed)


@dataclass(frozen=True)
class Check:
    """One check: its stable name, what it does, and when it has anything to say."""

    name: str
    run: Callable[[Subject], Iterable[Finding]]
    applies: Callable[[Subject], bool] = _always


CHECKS = (
    Check("checksums", check_checksums, has_checksums),
    Check("accounting", check_accounting),
    Check("config", check_config),
    Check("side files", check_files),
    Check("skip list", check_skip_list, _is_packed),
    Check("tied", check_tied),
    Check("finite", check_finite),
    Check("scales", check_scales, _is_packed),
    Check("copies", check_copies, _has_source),
    Check("weights", check_weights, _has_source),
)


def check(candidate: Checkpoint, reference: Checkpoint | None = None) -> Outcome:
    """Hold a checkpoint against its own config, against the runtimes' rules, and against its source where one is given.

    Reads every weight once or twice, a tensor or a group of linears at a time; runs no model and imports no
    transformers. What a check cannot judge is a warning "not checked".
    """
    subject = Subject(candidate, reference)
    outcome = Outcome()
    for entry in CHECKS:
        if not entry.applies(subject):
            continue
        outcome.checks.append(entry.name)
        try:
            outcome.findings += entry.run(subject)
        except QuantkitError as problem:
            outcome.findings.append(error(entry.name, str(candidate.path.name), str(problem)))
    outcome.findings.sort(key=lambda finding: finding.severity != "error")
    return outcome
