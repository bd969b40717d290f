"""`quantkit compare`: several reports on one page, with a plot of size against quality.

Only reports measured alike can be compared: the same reference, data, engine and the options that change figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import QuantkitError
from quantkit.report import figures, pareto, scatter
from quantkit.report.figures import MISSING, bits, clean, count, number, plain, share, signed, size
from quantkit.report.html import WORDS, document
from quantkit.report.markup import Markup, join, render, tag
from quantkit.report.tables import Cell, Column, Table

if TYPE_CHECKING:
    from quantkit.verify.report import EngineResult, Group, Interval, Report

Labelled = Sequence[tuple[str, "Report"]]
OPTIONS = ("dtype", "downsample_mode", "max_tokens", "max_new_tokens", "generate")  # of those that change figures


@dataclass(frozen=True)
class Entry:
    """One report with the engine that it is compared on; `group` holds that engine's figures over all items."""

    label: str
    report: Report
    engine: EngineResult | None
    group: Group | None

    def figures(self, where: str) -> Any:
        """Its figures at some positions, None without any."""
        return figures.summary(self.group, where)


def write_compare(reports: Labelled, path: str | Path, *, allow_mixed: bool = False) -> Path:
    """Write the page of several (label, report); labels tell reports apart, whatever the models are called.

    Raises `QuantkitError` naming the first difference for reports that were not measured alike; with `allow_mixed`
    they are shown, under a warning.
    """
    from quantkit.verify.report import write_text

    entries, difference = _entries(reports, allow_mixed)
    where = _positions(entries)
    warning = (
        None if difference is None else tag("p", f"Not measured alike: {difference}.", class_="warning", role="note")
    )
    parts = [
        _head(entries),
        warning,
        _plot(entries, where),
        _table(entries, where),
        _accuracy(entries),
        _gates(entries),
    ]
    target = Path(path)
    write_text(target, document(f"Comparison of {len(entries)} variants", join(*parts, _settings(entries))))
    return target


def compare_rows(reports: Labelled, *, allow_mixed: bool = False) -> list[dict[str, Any]]:
    """The same as plain values, sorted by size, for a table in the terminal.

    Keys: label, verdict, engine, positions, bytes, size_ratio, bits_per_weight, bits_per_quantized_weight, kl_mean,
    kl_low, kl_high, kl_p99, top1, perplexity_ratio, accuracy_reference, accuracy_candidate, accuracy_difference,
    accuracy_low, accuracy_high, same_answers, gates_passed, gates, frontier; None where a report has no such figure.
    """
    entries, _ = _entries(reports, allow_mixed)
    where = _positions(entries)
    best = _frontier(entries, where)
    return [_row(entry, where, entry.label in best) for entry in entries]


def _entries(reports: Labelled, allow_mixed: bool) -> tuple[list[Entry], str | None]:
    """The reports sorted by size, and what the first difference is that forbids to compare them."""
    labels = [label for label, _ in reports]
    if not labels:
        raise QuantkitError("compare: no report given; name at least one report.json")
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise QuantkitError(f"compare: two reports have the label '{twice}'; give each a label of its own")
    name, difference = _common_engine(reports)
    difference = _difference(reports) or difference
    if difference is not None and not allow_mixed:
        raise QuantkitError(f"compare: {difference}; verify them alike, or say --allow-mixed")
    entries = []
    for label, report in reports:
        engines = figures.ran(report)
        engine = next((entry for entry in engines if entry.name == name), engines[0] if engines else None)
        entries.append(Entry(label, report, engine, None if engine is None else figures.overall(engine)))
    return sorted(entries, key=lambda entry: entry.report.candidate.bytes), difference


def _common_engine(reports: Labelled) -> tuple[str | None, str | None]:
    """The first report's first engine that ran in all of them; or what stands against it."""
    names = [(label, [engine.name for engine in figures.ran(report)]) for label, report in reports]
    without = next((label for label, ran in names if not ran), None)
    if without is not None:
        return None, f"in report '{without}' no engine ran, so it has no figures"
    shared = [name for name in names[0][1] if all(name in ran for _, ran in names)]
    if shared:
        return shared[0], None
    first, other = names[0], next((label, ran) for label, ran in names if names[0][1][0] not in ran)
    return None, f"engine: '{first[0]}' ran {plain(first[1])}, '{other[0]}' ran {plain(other[1])}"


def _difference(reports: Labelled) -> str | None:
    """The first difference in what figures depend on, in words."""
    first = conditions(reports[0][1])
    for label, report in reports[1:]:
        for name, value in conditions(report).items():
            if value != first[name]:
                return f"{name}: '{reports[0][0]}' has {plain(first[name])}, '{label}' has {plain(value)}"
    return None


def conditions(report: Report) -> dict[str, Any]:
    """What two reports must share to be comparable."""
    data = None if report.data is None else report.data.fingerprint
    options = {f"option {name}": report.options.get(name) for name in OPTIONS}
    return {"reference fingerprint": report.reference.fingerprint, "data fingerprint": data, **options}


def _positions(entries: list[Entry]) -> str:
    """Answer tokens if every report with figures has them, else all text tokens."""
    return "answer" if all(entry.figures("answer") for entry in entries if entry.group is not None) else "text"


def _frontier(entries: list[Entry], where: str) -> list[str]:
    """Labels of the variants that no other beats in both size and mean KL; smallest first."""
    # a server's model has no size that is known here
    known = [entry for entry in entries if entry.figures(where) is not None and entry.report.candidate.bytes]
    costs = [(float(entry.report.candidate.bytes), entry.figures(where).kl_mean.value) for entry in known]
    return [known[index].label for index in pareto.front(costs)]


def _row(entry: Entry, where: str, frontier: bool) -> dict[str, Any]:
    report, values = entry.report, entry.figures(where)
    candidate = report.candidate
    accuracy = None if entry.group is None else entry.group.accuracy
    generation = None if entry.group is None else entry.group.generation
    gates = [gate.passed for gate in report.gates]
    return {
        "label": entry.label,
        "verdict": report.verdict.status,
        "engine": None if entry.engine is None else entry.engine.name,
        "positions": where,
        "bytes": candidate.bytes,
        "size_ratio": candidate.bytes / report.reference.bytes if report.reference.bytes else None,
        "bits_per_weight": candidate.bits_per_weight,
        "bits_per_quantized_weight": candidate.bits_per_quantized_weight,
        **_interval("kl_mean", "kl", None if values is None else values.kl_mean),
        "kl_p99": None if values is None else values.kl_p99.value,
        "top1": None if values is None else values.top1.value,
        "perplexity_ratio": None if values is None or not values.perplexity_ratio else values.perplexity_ratio.value,
        "accuracy_reference": None if accuracy is None else accuracy.reference,
        "accuracy_candidate": None if accuracy is None else accuracy.candidate,
        **_interval("accuracy_difference", "accuracy", None if accuracy is None else accuracy.difference),
        "same_answers": None if generation is None else generation.same.value,
        "gates_passed": sum(gates),
        "gates": len(gates),
        "frontier": frontier,
    }


def _interval(name: str, short: str, found: Interval | None) -> dict[str, float | None]:
    if found is None:
        return {name: None, f"{short}_low": None, f"{short}_high": None}
    return {name: found.value, f"{short}_low": found.low, f"{short}_high": found.high}


def _head(entries: list[Entry]) -> Markup:
    names = dict.fromkeys(entry.report.reference.name for entry in entries)
    against = join("against ", tag("bdi", ", ".join(names)))
    title = f"{len(entries)} variants compared" if len(entries) > 1 else "One variant"
    over = tag("p", "quantkit comparison", class_="over")
    return tag("header", over, tag("h1", title), tag("p", against, class_="sub"), class_="top")


def _section(name: str, heading: str, reading: str, *content: Markup | None) -> Markup:
    parts = (tag("h2", heading, id=f"{name}-h"), tag("p", reading, class_="how"), *content)
    return tag("section", *parts, id=name, aria_labelledby=f"{name}-h")


def _plot(entries: list[Entry], where: str) -> Markup | None:
    best = _frontier(entries, where)
    points = [
        scatter.Point(
            index + 1, clean(entry.label), entry.report.candidate.bytes / 1e9, found.kl_mean, entry.label in best
        )
        for index, entry in enumerate(entries)
        if (found := entry.figures(where)) is not None
    ]
    if not points:
        return None
    floors = [floor.kl_mean for entry in entries if (floor := figures.floor_of(entry.report, where)) is not None]
    reading = (
        f"Left is smaller, down is closer to the reference ({figures.POSITIONS[where]}, 95 % intervals); "
        "the dotted line is the Pareto frontier, variants that no other beats in both."
    )
    return _section("plot", "Size and quality", reading, scatter.plot(points, max(floors, default=None)))


def _table(entries: list[Entry], where: str) -> Markup:
    columns = [Column("variant", False), Column("verdict", False), Column("size"), Column("bits a weight")]
    columns += [Column("bits a quantized weight"), Column("KL mean"), Column("KL p99"), Column("top-1")]
    columns += [Column("perplexity ratio"), Column("same answers")]
    best = _frontier(entries, where)
    rows = []
    for index, entry in enumerate(entries):
        row = _row(entry, where, entry.label in best)
        tones = {"pass": "good", "fail": "bad"}
        part = None if row["size_ratio"] is None else f"{share(row['size_ratio'])}"
        kl = [row[name] for name in ("kl_low", "kl_high")]
        note = "on the frontier" if row["frontier"] else None
        ratio = MISSING if row["perplexity_ratio"] is None else f"{row['perplexity_ratio']:.4f}"
        rows.append(
            [
                Cell(f"{index + 1}. {clean(entry.label)}", note, foreign=True),
                Cell(WORDS[row["verdict"]], tone=tones.get(row["verdict"])),
                Cell(size(row["bytes"]), part), Cell(bits(row["bits_per_weight"])),
                Cell(bits(row["bits_per_quantized_weight"])),
                Cell(number(row["kl_mean"]), None if kl[0] is None else f"{number(kl[0])} to {number(kl[1])}"),
                Cell(number(row["kl_p99"])), Cell(share(row["top1"])), Cell(ratio), Cell(share(row["same_answers"])),
            ]
        )  # fmt: skip
    caption = f"Headline figures, smallest first; KL in nats a token over {figures.POSITIONS[where]}"
    reading = "One line a variant; its number is the one in the plot."
    return _section("figures", "Figures", reading, render(Table(caption, columns, [(None, rows)])))


def _accuracy(entries: list[Entry]) -> Markup | None:
    columns = [Column("modality", False), Column("items"), Column("reference")]
    columns += [Column("candidate"), Column("difference, points"), Column("McNemar p")]
    bodies: list[tuple[str | None, list[list[Cell]]]] = []
    for entry in entries:
        rows = []
        groups = [] if entry.engine is None else [g for g in entry.engine.groups if g.by in ("all", "modality")]
        for group in groups:
            found = group.accuracy
            if found is None:
                continue
            change = Cell(signed(found.difference.value), figures.span(found.difference, signed))
            scores = [
                Cell(clean(group.value), foreign=True),
                Cell(count(found.items)),
                Cell(share(found.reference)),
                Cell(share(found.candidate)),
            ]
            rows.append([*scores, change, Cell(figures.p_value(found.mcnemar.p_value))])
        if rows:
            bodies.append((clean(entry.label), rows))
    if not bodies:
        return None
    reading = "Candidate minus reference on the same items; an interval that holds 0 shows no loss."
    table = Table("Task accuracy by modality; 95 % intervals below", columns, bodies)
    return _section("accuracy", "Task accuracy", reading, render(table))


def _gates(entries: list[Entry]) -> Markup | None:
    columns = [Column("variant", False), Column("gate", False), Column("group", False), Column("engine", False)]
    columns += [Column("limit"), Column("pessimistic value"), Column("result", False)]
    rows = []
    for entry in entries:
        for gate in entry.report.gates:
            result = Cell("pass" if gate.passed else "FAIL", tone="good" if gate.passed else "bad")
            texts = [Cell(clean(name), foreign=True) for name in (entry.label, gate.gate, gate.group, gate.engine)]
            rows.append([*texts, Cell(f"{gate.limit:g}"), Cell(number(gate.value)), result])
    if not rows:
        return None
    table = Table("Gates of each variant", columns, [(None, rows)])
    return _section("gates", "Gates", "Limits are judged on the pessimistic end of the interval.", render(table))


def _settings(entries: list[Entry]) -> Markup:
    columns = [Column("variant", False), Column("model", False), Column("engine", False), Column("fingerprints", False)]
    columns += [Column("options", False)]
    rows = []
    for entry in entries:
        report = entry.report
        data = MISSING if report.data is None else report.data.fingerprint
        prints = f"candidate {report.candidate.fingerprint}, reference {report.reference.fingerprint}, data {data}"
        options = plain({name: report.options.get(name) for name in OPTIONS})
        engine = MISSING if entry.engine is None else entry.engine.name
        texts = (entry.label, report.candidate.name, engine, prints, options)
        rows.append([Cell(clean(value), foreign=True) for value in texts])
    reading = "What the figures depend on; the reports themselves hold the rest."
    return _section("settings", "Measured on", reading, render(Table("Models and options", columns, [(None, rows)])))
