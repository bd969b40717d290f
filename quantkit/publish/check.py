"""What passes: every weight file is covered by a report whose fingerprint is that of the files as they are now, and
whose gates were set and kept."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from quantkit.card.evidence import Measured, report_path
from quantkit.card.facts import Facts
from quantkit.errors import QuantkitError


def check_evidence(facts: Facts, ungated: bool = False, named: Iterable[Path] = ()) -> list[Measured]:
    """The reports that speak for the variant; QuantkitError naming the first thing that is missing.

    ungated: a report without gates passes as well, if it measured something and found no fault. named: reports that
    were asked for, of which none may be about other files.
    """
    variant, evidence = facts.variant, facts.evidence
    for path in map(report_path, named):
        if path in evidence.stale:
            raise QuantkitError(f"--report {path}: is about other files than those in {variant.path}; verify again")
    passing = []
    for one in evidence.measured:
        _check_verdict(one, ungated)
        _check_source(facts, one)
        passing.append(one)
    covered = {name for one in passing for name in one.covers}
    missing = [file.name for file in variant.weights if file.name not in covered]
    if missing and evidence.stale and not passing:
        raise QuantkitError(
            f"{evidence.stale[0]}: is about other files than those in {variant.path}; run quantkit verify again"
        )
    if missing:
        what = variant.path if len(missing) == len(variant.weights) else variant.path / missing[0]
        raise QuantkitError(f"{what}: no report of it; run {_verify(facts, missing[0])} with gates such as --max-kl")
    return passing


def _check_verdict(one: Measured, ungated: bool) -> None:
    verdict = one.report.verdict
    if verdict.status == "pass":
        return
    if verdict.status == "fail":
        raise QuantkitError(f"{one.path}: the variant failed ({verdict.headline}); what fails is not published")
    if not any(engine.status == "ran" for engine in one.report.engines):
        raise QuantkitError(f"{one.path}: nothing was measured ({verdict.headline}); verify without --quick")
    if not ungated:
        raise QuantkitError(
            f"{one.path}: no gate was set, so none was kept; verify with gates such as --max-kl, or add --ungated"
        )


def _check_source(facts: Facts, one: Measured) -> None:
    """A loss against another model than the one that was quantized says nothing of the quantization."""
    made_of, against = facts.base.fingerprint, one.report.reference.fingerprint
    if made_of is not None and made_of != against:
        raise QuantkitError(
            f"{one.path}: measured against {one.report.reference.name} ({against[:12]}), but made of {facts.base.name} "
            f"({made_of[:12]}); verify against that"
        )


def _verify(facts: Facts, missing: str) -> str:
    """The command that would make the missing report."""
    source, path = facts.base.repo or facts.base.name, facts.variant.path
    if not facts.variant.is_gguf:
        return f"quantkit verify {source} {path}"
    texts = facts.variant.texts.items()
    first = next((name for name, parts in texts if missing in [part.name for part in parts]), None)
    if first is None:
        text = next(iter(facts.variant.texts))
        return (
            f"quantkit verify {source} {path / text} --mmproj {path / missing} --report {path / f'report-{text}.json'}"
        )
    return f"quantkit verify {source} {path / first} --report {path / f'report-{first}.json'}"
