"""The measured loss: one table an engine, with intervals, by modality, mode and language; and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

from quantkit.card.evidence import Measured
from quantkit.card.facts import Facts
from quantkit.card.markup import code, fence, table, text
from quantkit.card.texts import Texts
from quantkit.report.figures import MISSING, number, overall, plain, positions, ran, share, signed, summary

if TYPE_CHECKING:
    from quantkit.verify.report import EngineResult, Group, Interval, Report, TokenSummary

_URLS = {"sglang": "http://localhost:30000", "ollama": "http://localhost:11434"}


def loss_section(facts: Facts, t: Texts) -> str:
    """Every report of these files: tables, limits, machine, and the command that repeats it."""
    if not facts.evidence.measured:
        return t("loss_none")
    return "\n\n".join(_measured(facts, one, t) for one in facts.evidence.measured)


def headline(facts: Facts) -> tuple[Report, TokenSummary, int] | None:
    """The figures at the top and their items: the first report's first engine, over all items."""
    for one in facts.evidence.measured:
        for engine in ran(one.report):
            group = overall(engine)
            figures = summary(group, positions(engine))
            if group is not None and figures is not None:
                return one.report, figures, group.ran
    return None


def interval(value: Interval | None, shown: Callable[[float], str] = number) -> str:
    """A figure and its interval in brackets."""
    if value is None:
        return MISSING
    if value.low == value.value == value.high:
        return shown(value.value)
    return f"{shown(value.value)} [{shown(value.low)}, {shown(value.high)}]"


def _measured(facts: Facts, one: Measured, t: Texts) -> str:
    report = one.report
    parts = [t("loss_file", files=t.list([code(name) for name in one.covers]))] if facts.variant.is_gguf else []
    parts += [part for engine in ran(report) for part in _engine(report, engine, t)]
    parts += [text(report.verdict.headline)] if not ran(report) else []
    parts.append(_gates(report, t))
    parts.append(_machine(report, t))
    parts += [t("repeat"), fence("bash", command(facts, one))]
    pages = [code(facts.report_stem(one) + end) for end in (".html", ".md", ".json")]
    parts.append(t("repeat_pages", files=t.list(pages)))
    return "\n\n".join(part for part in parts if part)


def _engine(report: Report, engine: EngineResult, t: Texts) -> list[str]:
    where = positions(engine)
    data = report.data
    intro = t(
        "loss_intro", items="?" if data is None else data.items, data=MISSING if data is None else code(data.source),
        engine=code(engine.name), dtype=code(plain(report.options.get("dtype"))),
        device=code(plain(report.options.get("device"))), positions=t(f"at_{where}"),
    )  # fmt: skip
    headings = ["group", "items", "kl", "p99", "top1", "score", "difference", "same"]
    rows = [_row(group, where, t) for group in engine.groups]
    notes = [t("loss_left_out", count=found, reason=text(reason)) for reason, found in engine.left_out.items()]
    whole = summary(overall(engine), where)
    if not engine.exact and whole is not None:
        notes.append(t("loss_bound", coverage=share(whole.coverage)))
    for row in report.noise_floor:
        if (row.positions == "answer") == (where == "answer"):
            notes.append(t("loss_floor", what=text(t.part(row.what)), kl=number(row.kl_mean)))
    if data is not None:
        notes.append(t(f"overlap_{data.overlap}", count=len(data.overlapping)))
    return [intro, table([t(f"col_{name}") for name in headings], rows), t.sentences(notes)]


def _row(group: Group, where: str, t: Texts) -> list[str]:
    found, accuracy, generation = summary(group, where), group.accuracy, group.generation
    scores = MISSING if accuracy is None else f"{share(accuracy.reference)} → {share(accuracy.candidate)}"
    return [
        t.known(f"group_{group.value}") or text(group.value), f"{group.ran}",
        MISSING if found is None else interval(found.kl_mean), MISSING if found is None else interval(found.kl_p99),
        MISSING if found is None else interval(found.top1, share), scores,
        MISSING if accuracy is None else interval(accuracy.difference, signed),
        MISSING if generation is None else interval(generation.same, share),
    ]  # fmt: skip


def _gates(report: Report, t: Texts) -> str:
    if not report.gates:
        return ""
    rows = [
        [code(gate.gate), t.known(f"group_{gate.group}") or text(gate.group), f"{gate.limit:g}", number(gate.value),
         t("yes" if gate.passed else "no")]
        for gate in report.gates
    ]  # fmt: skip
    headings = [t(f"col_{name}") for name in ("limit", "group", "asked", "value", "kept")]
    return f"{t('loss_gates')}\n\n{table(headings, rows, left=2)}"


def _machine(report: Report, t: Texts) -> str:
    known = report.environment
    packages = [f"{name} {known[name]}" for name in ("quantkit", "torch", "transformers", "python") if known.get(name)]
    packages += [
        f"{name} {version}" for engine in ran(report) for name, version in engine.versions.items() if name not in known
    ]
    machine = ", ".join(str(known[name]) for name in ("processor", "system") if known.get(name))
    return t("loss_machine", machine=text(machine or "?"), versions=text(", ".join(dict.fromkeys(packages))))


# ---- the command --------------------------------------------------------------------------------------------------


def command(facts: Facts, one: Measured) -> str:
    """The `quantkit verify` that gave a report, with every option that it records; GGUF files are fetched first."""
    report = one.report
    words = ["quantkit", "verify", facts.base.repo or report.reference.name, _candidate(facts, one)]
    if report.data is not None:
        words += ["--data", report.data.source]
    words += [*_options(report), *_vision(facts, one), *_limits(report)]
    # a GGUF file is not read from the hub by its name
    fetch = f"hf download {shlex.quote(facts.target)} --local-dir {shlex.quote(facts.name)}\n"
    return (fetch if facts.variant.is_gguf and facts.repo else "") + shlex.join(words)


def _candidate(facts: Facts, one: Measured) -> str:
    if not facts.variant.is_gguf:
        return facts.target
    first = next((name for name, parts in facts.variant.texts.items() if parts[0].name in one.covers), one.covers[0])
    return f"{facts.name}/{first}"


def _options(report: Report) -> list[str]:
    options = report.options
    words: list[str] = []
    for engine in options.get("engines") or []:
        words += ["--engine", str(engine)]
        if engine in _URLS:
            words += ["--url", _URLS[engine]]
    names = ("samples", "max_tokens", "downsample_mode", "max_slice_nums", "seed", "max_new_tokens", "dtype", "device")
    for name in names:
        if options.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(options[name])]
    return words


def _vision(facts: Facts, one: Measured) -> list[str]:
    """The vision file where it has to be named: one that is alone in a folder is found by itself."""
    used = [file.name for file in facts.variant.visions if file.name in one.covers]
    return ["--mmproj", f"{facts.name}/{used[0]}"] if used and len(facts.variant.visions) > 1 else []


def _limits(report: Report) -> list[str]:
    """The gates, once each: an engine has its own results."""
    words = []
    for gate in dict.fromkeys((one.gate, one.group, one.limit) for one in report.gates):
        name, group, limit = gate
        words += [f"--{name.replace('_', '-')}", f"{limit!r}" if group == "all" else f"{group}={limit!r}"]
    return words
