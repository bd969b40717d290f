"""`report.html`: one self-contained page. It loads nothing, and its content policy forbids that it could.

The order is that of a reader's questions: may I use it, what does it save, what broke, how far is it off, where.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.report import charts, figures, items, tables
from quantkit.report import layers as arranged
from quantkit.report.figures import number, share, signed, span
from quantkit.report.markup import Markup, join, render, tag
from quantkit.report.tables import Table

if TYPE_CHECKING:
    from quantkit.verify.report import EngineResult, LayerError, Report

WORDS = {"pass": "Pass", "fail": "Fail", "measured": "Measured"}


def write_html(report: Report, path: str | Path) -> Path:
    """Write the report as one page; an existing file is replaced at once."""
    from quantkit.verify.report import write_text

    target = Path(path)
    write_text(target, to_html(report))
    return target


def to_html(report: Report) -> str:
    """The page's text."""
    found = figures.ran(report)
    sections = [
        _size(report),
        _gates(report),
        _integrity(report),
        *_measured(report, found),
        _others(report, found[1:]),
    ]
    sections += [_engines(report), _noise(report), _settings(report)]
    present = [entry for entry in sections if entry is not None]
    title = f"{report.candidate.name}: {WORDS[report.verdict.status]}"
    contents = [tag("a", heading, href=f"#{name}") for name, heading, _ in present]
    nav = tag("nav", *contents, aria_label="Contents") if len(present) > 2 else None
    foot = tag("footer", "quantkit verify", f" {figures.plain(report.environment.get('quantkit', ''))}".rstrip(), ". ")
    return document(title, join(_head(report), _verdict(report, found), nav, *(entry[2] for entry in present), foot))


def document(title: str, body: Markup, style: str = "", script: str | None = None, data: str | None = None) -> str:
    """A whole page around a body: style and script inside, nothing from outside.

    style: added to the pages' own. script: in place of theirs. data: JSON that a script reads from `#data`, with no
    character in it that HTML acts on.
    """
    style, script = asset("page.css") + style, asset("page.js") if script is None else script
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=f"{policy}script-src 'sha256-{digest}'"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    held = None if data is None else tag("script", Markup(data), type="application/json", id="data")
    page = tag("html", head, tag("body", tag("main", body), held, tag("script", Markup(script))), lang="en")
    return f"<!doctype html>\n{page}\n"


def asset(*name: str) -> str:
    """A file that lies beside the pages' code."""
    return files("quantkit.report").joinpath(*name).read_text(encoding="utf-8")


Section = tuple[str, str, Markup]


def section(name: str, heading: str, reading: str, *content: Markup | None) -> Section:
    """A section: heading, a sentence on how to read it, content."""
    parts = (tag("h2", heading, id=f"{name}-h"), tag("p", reading, class_="how"), *content)
    return name, heading, tag("section", *parts, id=name, aria_labelledby=f"{name}-h")


def _head(report: Report) -> Markup:
    return tag(
        "header",
        tag("p", "quantkit verification report", class_="over"),
        tag("h1", tag("bdi", report.candidate.name)),
        tag("p", "measured against ", tag("bdi", report.reference.name), class_="sub"),
        class_="top",
    )


def _verdict(report: Report, found: list[EngineResult]) -> Markup:
    verdict = report.verdict
    reasons = tag("ul", *(tag("li", line, dir="auto") for line in verdict.lines)) if verdict.lines else None
    return tag(
        "section",
        tag("h2", WORDS[verdict.status], class_="word"),
        tag("p", verdict.headline, class_="headline", dir="auto"),
        reasons,
        tag("dl", *_headline(report, found), class_="tiles"),
        class_=f"verdict {verdict.status}",
        id="verdict",
        aria_label="Verdict",
    )


def _headline(report: Report, found: list[EngineResult]) -> list[Markup]:
    """The few figures that one would cite."""
    tiles = []
    if found:
        where = figures.positions(found[0])
        group = figures.overall(found[0])
        values = figures.summary(group, where)
        if values is not None:
            named = figures.POSITIONS[where]
            tiles.append(_tile(f"mean KL, {named}", number(values.kl_mean.value), span(values.kl_mean)))
            tiles.append(_tile("top-1 agreement", share(values.top1.value), span(values.top1, share)))
        if group is not None and group.accuracy is not None:
            change = group.accuracy.difference
            tiles.append(_tile("accuracy, points", signed(change.value), span(change, signed)))
    if report.reference.bytes:
        part = share(report.candidate.bytes / report.reference.bytes)
        tiles.append(_tile("size", figures.size(report.candidate.bytes), f"{part} of the reference"))
    return tiles


def _tile(name: str, value: str, small: str | None) -> Markup:
    return tag("div", tag("dt", name), tag("dd", value, None if small is None else tag("small", small)))


def _size(report: Report) -> Section:
    reading = (
        "Bits a weight counts every byte of the checkpoint over all weights; bits a quantized weight counts only the "
        "quantized linears, their scales and zero points included."
    )
    return section("size", "Size", reading, charts.sizes(report), render(tables.sizes(report)))


def _gates(report: Report) -> Section | None:
    table = tables.gates(report)
    if not table.bodies:
        return None
    reading = "Each limit is judged on the pessimistic end of the 95 % interval, so a pass holds with few items too."
    return section("gates", "Gates", reading, render(table))


def _integrity(report: Report) -> Section | None:
    found = [
        tables.findings("Plausibility alarms", report.alarms),
        tables.findings("Integrity findings", report.integrity),
    ]
    shown = [render(table) for table in found if table.bodies]
    if not shown and not report.checks:
        return None
    reading = "Errors make the figures below doubtful or the files unusable; mend them before you read on."
    if not shown:
        reading = "Every check that ran found the checkpoint in order."
    done = tag("p", f"Checks that ran ({len(report.checks)}): ", ", ".join(report.checks), class_="checks")
    return section("integrity", "Integrity", reading, *shown, done if report.checks else None)


def _measured(report: Report, found: list[EngineResult]) -> list[Section | None]:
    """The sections of the first engine that ran."""
    if not found:
        text = "No engine ran, so there are no figures: only the files themselves were checked."
        return [section("measured", "Figures", text)]
    engine = found[0]
    return [
        _divergence(report, engine, ""),
        _positions(report, engine, ""),
        _accuracy(engine, ""),
        _generation(engine, ""),
        _layers(engine),
        _worst(engine),
        _histogram(engine),
    ]


def _divergence(report: Report, engine: EngineResult, suffix: str) -> Section | None:
    shown = [render(table) for table in tables.divergence(report, engine) if table.bodies]
    if not shown:
        return None
    both = figures.positions(engine) == "answer" and any(group.prompt for group in engine.groups)
    reading = (
        f"Engine {engine.name}: how far the candidate's next-token distribution is from the reference's; lower is "
        "better"
        + (", and what lies in the grey noise floor is no loss." if report.noise_floor else ".")
        + (" Filled dots are answer tokens, hollow ones prompt tokens; bars are 95 % intervals." if both else "")
    )
    return section(f"kl{suffix}", "KL divergence", reading, charts.divergence(report, engine), *shown)


def _positions(report: Report, engine: EngineResult, suffix: str) -> Section | None:
    shown = [render(table) for table in tables.positions(report, engine) if table.bodies]
    reading = "Answer tokens are what a user reads; prompt tokens are given text, which is often harder to predict."
    return section(f"positions{suffix}", "By position", reading, *shown) if shown else None


def _accuracy(engine: EngineResult, suffix: str) -> Section | None:
    shown = [render(table) for table in (tables.accuracy(engine), tables.benchmark(engine)) if table.bodies]
    reading = (
        "The difference is candidate minus reference in percentage points; an interval that holds 0 and a McNemar p "
        "above 0.05 mean that no loss is shown, not that there is none."
    )
    return section(f"accuracy{suffix}", "Task accuracy", reading, *shown) if shown else None


def _generation(engine: EngineResult, suffix: str) -> Section | None:
    table = tables.generation(engine)
    reading = (
        "Answers written freely: one differing token changes all that follows, so look at loops, empty and unfinished "
        "answers before the share of same ones."
    )
    return section(f"generation{suffix}", "Generation", reading, render(table)) if table.bodies else None


def _layers(engine: EngineResult) -> Section | None:
    found = arranged.arrange(engine)
    if found is None:
        return None
    parts = [charts.growth(found.blocks, "block"), _heat(arranged.grid(found)), _legend(found)]
    parts += [_strip(found, "Vision tower", found.vision), _strip(found, "Mergers and other modules", found.merger)]
    reading = (
        "Relative error of each module's output, each model on its own inputs, so errors add up from layer to layer; "
        "growth is what a block adds. " + arranged.largest(found)
    )
    return section("layers", "Layers", reading, *parts)


def _heat(table: Table) -> Markup | None:
    return render(table, class_="heat") if table.bodies else None


def _strip(found: arranged.Layers, name: str, entries: list[LayerError]) -> Markup | None:
    """Modules outside the grid; a long list is folded up, with its largest error in view."""
    table = _heat(arranged.strip(f"{name}, error in per cent", found, entries))
    if table is None or len(entries) <= 4:
        return table
    most = max(entry.error for entry in entries)
    return tag(
        "details", tag("summary", f"{name}: {len(entries)} modules, error at most {arranged.percent(most)} %"), table
    )


def _legend(found: arranged.Layers) -> Markup:
    steps = [tag("i", class_=f"q{level}") for level in range(arranged.LEVELS)]
    ends = (f"{arranged.percent(found.low)} % ", f" {arranged.percent(found.high)} %")
    return tag("p", ends[0], *steps, ends[1], " (log scale)", class_="legend", aria_hidden="true")


def _worst(engine: EngineResult) -> Section | None:
    if not engine.items:
        return None
    shown = items.worst(engine)
    reading = (
        f"The {len(shown)} worst items, lost answers first, then other answers, then the largest KL: what both answers "
        "share is plain, the first token that differs is marked in each."
    )
    if len(shown) == 1:
        reading = "The one item: what both answers share is plain, the first token that differs is marked in each."
    return section("worst", "Worst items", reading, *(items.card(item) for item in shown), items.full_list(engine))


def _histogram(engine: EngineResult) -> Section | None:
    chart = None if engine.histogram is None else charts.histogram(engine.histogram)
    reading = (
        "Share of each modality's tokens by their KL; the first bar takes all below, and a hump on the right is damage "
        "that a mean hides."
    )
    return None if chart is None else section("histogram", "Histogram of KL", reading, chart)


def _others(report: Report, engines: list[EngineResult]) -> Section | None:
    """The other engines' figures, each under a heading of its own."""
    parts = []
    for engine in engines:
        named = [tables.accuracy(engine), tables.benchmark(engine), tables.generation(engine)]
        shown = [render(table) for table in [*tables.divergence(report, engine), *named] if table.bodies]
        parts.append(join(tag("h3", "Engine ", tag("bdi", engine.name)), charts.divergence(report, engine), *shown))
    reading = "The same figures from the other engines: where they differ from those above, the kernel is the cause."
    return section("others", "Other engines", reading, *parts) if parts else None


def _engines(report: Report) -> Section | None:
    table = tables.engines(report)
    reading = "An engine that did not run proves nothing; top-k only means that the KL rests on part of the mass."
    return section("engines", "Engines", reading, render(table)) if table.bodies else None


def _noise(report: Report) -> Section | None:
    table, cached = tables.noise(report), tables.cache_line(report)
    if not table.bodies and cached is None:
        return None
    reading = (
        "What the reference differs from itself when it is computed in another way: no figure can be finer than that."
    )
    shown = render(table) if table.bodies else None
    return section("noise", "Noise floor and cache", reading, shown, None if cached is None else tag("p", cached))


def _settings(report: Report) -> Section:
    reading = "All that a repetition needs: two reports with the same fingerprints and options can be compared."
    shown = [render(table, class_="pairs") for table in tables.settings(report)]
    return section("settings", "Options, environment, fingerprints", reading, *shown)
