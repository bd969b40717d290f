"""Alarms: what is wrong beyond any limit that a user would set, and the verdict."""

from __future__ import annotations

from quantkit.verify.report import EngineResult, Finding, GateResult, Group, Verdict

RUINED_KL = 1.0  # nats a token, lower end; four bits cost a hundredth of it
RUINED_TOP1, RUINED_TOP1_KL = 0.5, 0.2  # the share alone says little: nearly equal first choices swap for nothing
DISAGREEMENT = 3.0  # an engine's KL over that of our reading of the same file
DISAGREEMENT_FLOOR = 0.005  # nats; below, runtimes differ by their own rounding
DEGENERATE = 0.05  # more loops or empty answers than the reference has, as a share of items


def alarms(engines: list[EngineResult]) -> list[Finding]:
    """Faults that show in the figures themselves."""
    found = []
    ran = [engine for engine in engines if engine.status == "ran"]
    for engine in ran:
        everything = next((group for group in engine.groups if group.by == "all"), None)
        if everything is not None:
            found += _ruined(engine, everything) + _degenerate(engine, everything)
    baseline = next((engine for engine in ran if engine.name == "dequantized"), None)
    if baseline is not None:
        found += [finding for engine in ran if (finding := _disagrees(baseline, engine)) is not None]
    return found


def _ruined(engine: EngineResult, group: Group) -> list[Finding]:
    tokens = group.text
    if tokens is None:
        return []
    other_words = tokens.top1.high < RUINED_TOP1 and tokens.kl_mean.low > RUINED_TOP1_KL
    if tokens.kl_mean.low < RUINED_KL and not other_words:
        return []
    message = (
        f"mean KL {tokens.kl_mean.value:.3g}, same first choice {tokens.top1.value:.1%}: another model, or damaged"
    )
    return [Finding(severity="error", check="plausible", where=engine.name, message=message)]


def _degenerate(engine: EngineResult, group: Group) -> list[Finding]:
    answers = group.generation
    if answers is None:
        return []
    found = []
    for what, reference, candidate in (
        ("end in a loop", answers.loops_reference, answers.loops_candidate),
        ("are empty", answers.empty_reference, answers.empty_candidate),
    ):
        if candidate - reference > max(1.0, DEGENERATE * answers.items):
            message = f"{candidate} of {answers.items} greedy answers {what}, the reference's: {reference}"
            found.append(Finding(severity="error", check="degenerate", where=engine.name, message=message))
    return found


def _disagrees(baseline: EngineResult, engine: EngineResult) -> Finding | None:
    """An engine that loses far more than the file itself does runs something else than the file."""
    expected = next((group for group in baseline.groups if group.by == "all"), None)
    found = next((group for group in engine.groups if group.by == "all"), None)
    if engine is baseline or expected is None or found is None:
        return None
    pairs = ((expected.answer, found.answer), (expected.text, found.text))
    first, second = next(((a, b) for a, b in pairs if a is not None and b is not None), (None, None))
    if first is None or second is None:
        return None
    if second.kl_mean.low <= max(DISAGREEMENT * first.kl_mean.high, DISAGREEMENT_FLOOR):
        return None
    message = (
        f"mean KL {second.kl_mean.value:.3g} where our reading of the file gives {first.kl_mean.value:.3g}: "
        "this runtime reads or multiplies the weights otherwise"
    )
    return Finding(severity="error", check="kernel", where=engine.name, message=message)


def verdict(
    integrity: list[Finding],
    alarms: list[Finding],
    gates: list[GateResult],
    engines: list[EngineResult],
    quick: bool,
    checked: bool = True,
) -> Verdict:
    """One word, one line, and the lines that explain it. `checked`: the integrity checks ran."""
    errors = [finding for finding in (*integrity, *alarms) if finding.severity == "error"]
    failed = [gate for gate in gates if not gate.passed]
    if errors or failed:
        lines = [f"{finding.check}: {finding.where}: {finding.message}" for finding in errors]
        counts = [f"{len(errors)} fault{'s' * (len(errors) > 1)}"] if errors else []
        counts += [f"{len(failed)} of {len(gates)} gates missed"] if failed else []
        return Verdict(status="fail", headline=", ".join(counts), lines=lines + [gate.message for gate in failed])
    lines = [f"engine {engine.name} not run: {engine.why}" for engine in engines if engine.status == "not run"]
    lines += [
        f"engine {engine.name} left out {sum(engine.left_out.values())} of {engine.groups[0].items} items"
        for engine in engines
        if engine.left_out and engine.groups
    ]
    if quick:
        headline = "The file is in order; nothing was run" if checked else "Nothing was checked: no safetensors folder"
        return Verdict(status="measured", headline=headline, lines=lines)
    if not any(engine.status == "ran" for engine in engines):
        return Verdict(status="measured", headline="Nothing was measured: no engine ran", lines=lines)
    if gates:
        return Verdict(status="pass", headline=f"All {len(gates)} gates kept", lines=lines)
    return Verdict(status="measured", headline="No fault found; no gate was set", lines=lines)
