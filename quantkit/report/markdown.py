"""`report.md`: the page's tables as GitHub-flavoured Markdown, without charts and pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.report import figures, items, tables
from quantkit.report import layers as arranged
from quantkit.report.figures import clean, count, number
from quantkit.report.tables import Cell, Table

if TYPE_CHECKING:
    from quantkit.verify.report import EngineResult, Histogram, Item, Report

# what means something to GitHub within a line: code, emphasis, links, HTML, strike-through, entities, tables, maths
SPECIAL = re.compile(r"([\\`*_\[\]<>~|$#@&])")
START = re.compile(r"^(\s*)([-+=]|\d+[.)])")


def write_markdown(report: Report, path: str | Path) -> Path:
    """Write `report.md`; an existing file is replaced at once."""
    from quantkit.verify.report import write_text

    target = Path(path)
    write_text(target, to_markdown(report))
    return target


def escaped(value: str) -> str:
    """Text on one line, with nothing in it that Markdown or HTML would act on."""
    line = " ".join(clean(value).split())
    line = SPECIAL.sub(
        lambda found: "&lt;" if found[1] == "<" else "&amp;" if found[1] == "&" else f"\\{found[1]}", line
    )
    return START.sub(r"\1\\\2", line) if not line[:1].isdigit() else re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)


def to_markdown(report: Report) -> str:
    """The report as Markdown text."""
    verdict = report.verdict
    lines = [
        f"# {escaped(report.candidate.name)}", "", f"Measured against {escaped(report.reference.name)}.", "",
        f"**{verdict.status.upper()}**: {escaped(verdict.headline)}", "",
    ]  # fmt: skip
    lines += [f"- {escaped(reason)}" for reason in verdict.lines]
    found = figures.ran(report)
    parts = ["\n".join(lines).rstrip(), _section("Size", [tables.sizes(report)])]
    parts.append(_section("Gates", [tables.gates(report)]))
    parts.append(_integrity(report))
    parts += [_engine(report, engine, index) for index, engine in enumerate(found)]
    if not found:
        parts.append("No engine ran, so there are no figures: only the files themselves were checked.")
    parts.append(_section("Engines", [tables.engines(report)]))
    parts.append(_section("Noise floor and cache", [tables.noise(report)], tables.cache_line(report)))
    parts.append(_section("Options, environment, fingerprints", tables.settings(report)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(heading: str, found: list[Table], after: str | None = None, level: int = 2) -> str:
    shown = [f"{escaped(table.caption)}:\n\n{table_text(table)}" for table in found if table.bodies]
    shown += [escaped(after)] if after else []
    return "\n\n".join([f"{'#' * level} {heading}", *shown]) if shown else ""


def table_text(table: Table) -> str:
    """A table; headings of bodies become bold rows."""
    lines = ["| " + " | ".join(escaped(column.heading) for column in table.columns) + " |"]
    lines.append("|" + "|".join(" ---: " if column.numeric else " --- " for column in table.columns) + "|")
    for title, rows in table.bodies:
        if title is not None:
            lines.append(f"| **{escaped(title)}** |" + " |" * (len(table.columns) - 1))
        lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    shown = escaped(cell.shown)
    return shown if cell.small is None else f"{shown} ({escaped(cell.small)})"


def _integrity(report: Report) -> str:
    found = [
        tables.findings("Plausibility alarms", report.alarms),
        tables.findings("Integrity findings", report.integrity),
    ]
    done = f"Checks that ran ({len(report.checks)}): {', '.join(report.checks)}" if report.checks else None
    return _section("Integrity", found, done)


def _engine(report: Report, engine: EngineResult, index: int) -> str:
    """One engine's sections; the first engine's layers, worst items and histogram too."""
    name = escaped(engine.name)
    parts = [_section(f"KL divergence, engine {name}", tables.divergence(report, engine))]
    parts.append(_section(f"By position, engine {name}", tables.positions(report, engine)))
    parts.append(_section(f"Task accuracy, engine {name}", [tables.accuracy(engine), tables.benchmark(engine)]))
    parts.append(_section(f"Generation, engine {name}", [tables.generation(engine)]))
    if index == 0:
        found = arranged.arrange(engine)
        if found is not None:
            strips = (("Vision tower", found.vision), ("Mergers and other modules", found.merger))
            parts.append(_section("Layers", [arranged.grid(found)], arranged.largest(found)))
            parts += [_folded(title, arranged.strip(title, found, entries)) for title, entries in strips if entries]
        parts.append(_worst(engine))
        parts.append(_section("Histogram of KL", [] if engine.histogram is None else [_histogram(engine.histogram)]))
    return "\n\n".join(part for part in parts if part)


def _folded(title: str, table: Table) -> str:
    """A table that GitHub shows folded up."""
    return f"<details><summary>{escaped(title)}</summary>\n\n{table_text(table)}\n\n</details>"


def _worst(engine: EngineResult) -> str:
    shown = [_item(item) for item in items.worst(engine)]
    return "\n\n".join(["## Worst items", *shown]) if shown else ""


def _item(item: Item) -> str:
    kind = escaped(", ".join(part for part in (item.modality, item.mode, item.language) if part))
    lines = [
        f"### {escaped(item.id)}",
        "",
        f"{kind}; KL {number(items.kl_of(item))}; {count(item.tokens)} tokens",
        "",
    ]
    lines.append(f"- Prompt: {escaped(item.prompt)}")
    place = items.divergence(item)
    for role, answer in (("Reference", item.reference_text), ("Candidate", item.candidate_text)):
        if answer is not None:
            lines.append(f"- {role}: {_marked(answer, place)}")
    if item.answer is not None:
        lines.append(f"- Expected: {escaped(item.answer)}")
    return "\n".join(lines)


def _marked(answer: str, place: int | None) -> str:
    """An answer with the first differing token in bold."""
    if place is None:
        return escaped(answer) or "(empty)"
    before, token, after = items.split(answer, place)
    bold = f"**{escaped(token)}**" if token.strip() else "**(ends)**"
    return " ".join(part for part in (escaped(before), bold, escaped(after)) if part)


def _histogram(found: Histogram) -> Table:
    """Tokens by decade of KL, so that the table stays short."""
    modalities = list(found.counts)
    bins = max((len(counts) for counts in found.counts.values()), default=0)
    shift = 0 if bins < len(found.edges) else 1
    sums: dict[str, list[int]] = {}
    for index in range(bins):
        lower = found.edges[max(index - shift, 0)]
        decade = f"below 1e{round(found.edges[0])}" if shift and not index else f"from 1e{int(lower // 1)}"
        row = sums.setdefault(decade, [0] * len(modalities))
        for column, name in enumerate(modalities):
            row[column] += found.counts[name][index]
    columns = [tables.Column("KL, nats", False), *(tables.Column(clean(name)) for name in modalities)]
    rows = [[Cell(decade), *(Cell(count(value)) for value in row)] for decade, row in sums.items()]
    return Table("Tokens by decade of KL", columns, [(None, rows)] if rows else [])
