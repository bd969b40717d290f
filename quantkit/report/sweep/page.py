"""`sweep.html`: a sweep on one self-contained page, which loads nothing and reads without its script.

Without the script the table, the plots and the maps stand there for all settings; with it they can be sorted and
filtered, the plot's figure be chosen, and a map be read cell by cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantkit.report.figures import MISSING, bits, clean, plain, size, span
from quantkit.report.html import Section, asset, document, section
from quantkit.report.layers import LEVELS, percent
from quantkit.report.markup import Markup, join, json_text, render, said, tag
from quantkit.report.svg import WIDE, chart
from quantkit.report.sweep.chart import Room, mark, scatter
from quantkit.report.sweep.data import Entry, Sweep, axis_text, link, page_data
from quantkit.report.sweep.heat import grid_of, scale_of, small
from quantkit.report.sweep.metrics import ACCURACY, Metric
from quantkit.report.sweep.plots import MEASURES
from quantkit.report.sweep.rows import SweepRow
from quantkit.report.sweep.settings import constant_axes, front, point
from quantkit.report.tables import Cell, Column, Table

HEIGHT, NARROW_HEIGHT = 420, 340


def to_page(rows: Sequence[SweepRow], title: str) -> str:
    """The page's text."""
    sweep = Sweep.of(rows)
    columns = _columns(sweep)
    sections = [_plot(sweep), _table(sweep, columns), _maps(sweep), _unfinished(sweep), _settings(sweep)]
    present = [entry for entry in sections if entry is not None]
    nav = tag("nav", *(tag("a", heading, href=f"#{name}") for name, heading, _ in present), aria_label="Contents")
    foot = tag("footer", "quantkit sweep")
    body = join(_head(sweep, title), _tiles(sweep), _warning(sweep), nav, *(entry[2] for entry in present), foot)
    data = json_text(page_data(sweep, [key for key, _ in columns]))
    style, script = asset("sweep", "sweep.css"), asset("sweep", "chart.js") + asset("sweep", "sweep.js")
    return document(f"Sweep: {clean(title)}", body, style, script, data)


def _head(sweep: Sweep, title: str) -> Markup:
    counts = {status: sum(row.status == status for row in sweep.rows) for status in ("done", "failed", "not run")}
    parts = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    references = dict.fromkeys(str(row.measured["reference"]) for row in sweep.rows if row.measured.get("reference"))
    against = join(" against ", tag("bdi", ", ".join(references))) if references else None
    sub = tag("p", f"{len(sweep.rows)} variants: {parts};" if against else f"{len(sweep.rows)} variants: {parts}",
              against, class_="sub")  # fmt: skip
    over = tag("p", "quantkit sweep", class_="over")
    return tag("header", over, tag("h1", tag("bdi", title)), sub, class_="top")


def _as_good(known: Sequence[SweepRow], best: SweepRow, metric: Metric) -> str | None:
    """How many others the items measured cannot tell from the best: their figures lie within its interval."""
    ends = metric.of(best)
    if ends is None:
        return None
    values = [found.value for row in known if row is not best and (found := metric.of(row)) is not None]
    count = sum(ends.low <= value <= ends.high for value in values)
    return f", and {count} within its interval" if count else None


def _tiles(sweep: Sweep) -> Markup | None:
    """The ends of the front, and what is best by each headline figure, with how many are as good."""
    tiles = []
    for metric in (*sweep.metrics[:1], *(one for one in sweep.metrics[1:] if one is ACCURACY)):
        known = [s.row for s in sweep.done if metric.of(s.row) is not None]
        best = min(known, key=lambda row, metric=metric: _cost(row, metric))  # type: ignore[misc]
        found = metric.of(best)
        name = f"least {metric.heading}" if metric.less else f"best {metric.heading}"
        tiles.append((name, metric.shown(found.value if found else None), best, _as_good(known, best, metric)))
    sized = [setting.row for setting in sweep.done if setting.row.bytes]
    if sized:
        least = min(sized, key=lambda row: row.bytes or 0)
        tiles.append(("smallest", size(least.bytes), least, None))
    shown = [
        tag("div", tag("dt", name), tag("dd", value, tag("small", tag("bdi", clean(row.name)), others)))
        for name, value, row, others in tiles
    ]
    if not shown:
        return None
    return tag("section", tag("dl", *shown, class_="tiles"), id="best", class_="figures", aria_label="Best of each")


def _cost(row: SweepRow, metric: Metric) -> float:
    estimate = metric.of(row)
    return 0.0 if estimate is None else estimate.value if metric.less else -estimate.value


def _warning(sweep: Sweep) -> Markup | None:
    """What rows that were not measured alike differ in."""
    measured = [row for row in sweep.rows if row.measured]
    for row in measured[1:]:
        for name, value in row.measured.items():
            first = measured[0].measured.get(name)
            if value != first:
                parts = (measured[0].name, " has ", plain(first), ", ", row.name, " has ", plain(value))
                pair = [tag("bdi", clean(part)) if index % 2 == 0 else part for index, part in enumerate(parts)]
                text = join("Not measured alike: ", tag("bdi", clean(name)), ": ", pair, ".")
                return tag("p", text, class_="warning", role="note")
    return None


# ---- the plot


def _plot(sweep: Sweep) -> Section | None:
    drawable = [m for m in sweep.metrics if any(point(setting.row, m) for setting in sweep.done)]
    if not drawable:
        return None
    names = [
        tag("li", tag("svg", mark(series, 8, 8), viewBox="0 0 16 16", width=16, height=16, aria_hidden="true"),
            tag("bdi", clean(method)))
        for series, method in enumerate(sweep.methods)
    ]  # fmt: skip
    seeds = any(setting.seeds > 1 for setting in sweep.settings)
    reading = (
        "Left is smaller. Bars are 95 % intervals over items"
        + (" (of several seeds: their mean, and their range)" if seeds else "")
        + "; the dotted line is the Pareto front, the settings that no other beats in both."
    )
    box = tag("div", _chart(sweep, drawable[0]), id="chart")
    others = [one for one in drawable[1:] if one is ACCURACY]
    still = tag("noscript", *(_chart(sweep, metric) for metric in others)) if others else None
    legend = tag("ul", *names, class_="methods")
    return section("plot", "Size and quality", reading, tag("div", id="controls"), legend, box, still)


def _chart(sweep: Sweep, metric: Metric) -> Markup:
    def draw(width: int) -> tuple[int, Sequence[Markup]]:
        wide = width == WIDE
        room = Room(width, HEIGHT if wide else NARROW_HEIGHT, 64 if wide else 50, named=wide)
        return room.height, scatter(sweep.done, metric, room, sweep.methods)

    return chart(draw, f"Size against {metric.axis}, {len(sweep.done)} settings; the table below has the figures")


# ---- the table


def _columns(sweep: Sweep) -> list[tuple[str, Column]]:
    """(key, column) of the table; the script finds each column's values by its key."""
    found = [("name", Column("variant", False)), ("method", Column("method", False))]
    found.append(("status", Column("status", False)))
    found += [(f"axis:{clean(axis)}", Column(clean(axis), _numeric(sweep, axis))) for axis in sweep.axes]
    found += [("bytes", Column("size")), ("bits", Column("bits a weight"))]
    if any(row.bits_per_quantized_weight is not None for row in sweep.rows):
        found.append(("quantized_bits", Column("bits a quantized weight", title="of the quantized linears alone")))
    found += [(f"metric:{metric.key}", Column(metric.heading, title=metric.axis)) for metric in sweep.metrics]
    if any(row.seconds for row in sweep.rows):
        found.append(("seconds", Column("seconds", title="all phases together, verification too")))
    if any(row.peak_bytes is not None for row in sweep.rows):
        found.append(("peak", Column("peak memory")))
    return found


def _numeric(sweep: Sweep, axis: str) -> bool:
    values = [row.axes.get(axis) for row in sweep.rows]
    return all(value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) for value in values)


def _table(sweep: Sweep, columns: list[tuple[str, Column]]) -> Section:
    best: set[str] = set()
    if sweep.metrics:
        indices = front(sweep.settings, sweep.metrics[0])
        best = {setting.row.name for index, setting in enumerate(sweep.settings) if index in indices}
    lines = [[_cell(entry, key, sweep, best) for key, _ in columns] for entry in sweep.entries]
    where = next((row.positions for row in sweep.rows if row.figures), "answer")
    caption = f"Every variant; KL in nats a token over {'answer tokens' if where == 'answer' else 'all text tokens'}"
    table = Table(caption, [column for _, column in columns], [(None, lines)])
    heading = sweep.metrics[0].heading if sweep.metrics else "quality"
    front_of = tag(
        "p", f"On the front: what no other setting beats in size and {heading}.", class_="how", id="front-of"
    )
    reading = "Intervals stand below the figures; of several seeds, the range."
    if all(setting.seeds == 1 for setting in sweep.settings):
        reading = "Intervals stand below the figures."
    return section("figures", "Figures", reading, front_of, render(table, class_="sweep"))


def _cell(entry: Entry, key: str, sweep: Sweep, best: set[str]) -> Cell:
    row = entry.row
    if key == "name":
        return _name(entry, row.name in best and not entry.member)
    if key.startswith("axis:"):
        axis = next(axis for axis in sweep.axes if f"axis:{clean(axis)}" == key)
        return Cell(axis_text(row, axis), foreign=True)
    if key.startswith("metric:"):
        metric = next(metric for metric in sweep.metrics if f"metric:{metric.key}" == key)
        estimate = metric.of(row)
        if estimate is None:
            return Cell(MISSING)
        return Cell(metric.shown(estimate.value), span(estimate, metric.shown))
    if key == "status":
        return _status(row)
    values: dict[str, Any] = {
        "method": clean(row.method), "bytes": size(row.bytes), "bits": bits(row.bits_per_weight),
        "quantized_bits": bits(row.bits_per_quantized_weight), "peak": size(row.peak_bytes),
        "seconds": MISSING if row.total_seconds is None else f"{row.total_seconds:.1f}",
    }  # fmt: skip
    return Cell(values[key], foreign=key == "method")


def _name(entry: Entry, best: bool) -> Cell:
    row = entry.row
    place = link(row.report)
    shown = said(clean(row.name), "bdi") if place is None else tag("a", tag("bdi", clean(row.name)), href=place)
    notes = [f"mean of {entry.seeds} seeds"] if entry.seeds > 1 else []
    notes += ["one of several seeds"] if entry.member else []
    return Cell(shown, ", ".join([*notes, *(["on the front"] if best else [])]) or None)


def _status(row: SweepRow) -> Cell:
    if row.status != "done":
        return Cell(row.status, tone="bad" if row.status == "failed" else "weak")
    return Cell("done", "verification failed" if row.verdict == "fail" else None)


# ---- maps


def _maps(sweep: Sweep) -> Section | None:
    """A small map for every setting, all on one scale, for each measure that any has."""
    parts = []
    for key, name in MEASURES.items():
        scale = scale_of(getattr(setting.row, key) for setting in sweep.done)
        figures = []
        for setting in sweep.done:
            grid = grid_of(getattr(setting.row, key), scale)
            if grid.cells:
                (layer, kind), worst = max(grid.cells.items(), key=lambda pair: pair[1])
                most = tag("small", f"at most {percent(worst)} %: layer {layer}, {kind}")
                figures.append(tag("figure", small(grid), tag("figcaption", tag("bdi", clean(setting.row.name)), most)))
        if figures:
            ends = (f"\u2264 {percent(scale[0])} % ", f" {percent(scale[1])} %")
            steps = [tag("i", class_=f"q{step}") for step in range(LEVELS)]
            key_ = tag("p", ends[0], *steps, ends[1], " (log scale)", class_="legend", aria_hidden="true")
            heading = tag("h3", name[0].upper() + name[1:])
            parts.append(
                tag("div", heading, key_, tag("div", *figures, class_="smalls"), class_="measure", id=f"map-{key}")
            )
    if not parts:
        return None
    reading = (
        "Layers run across, their linears down; dark is a large error, and all settings share one scale. What is "
        "measured on outputs holds the errors of the layers before; what rounding lost does not."
    )
    return section("layers", "Layers", reading, tag("div", id="map"), *parts)


# ---- the rest


def _unfinished(sweep: Sweep) -> Section | None:
    rows = [row for row in sweep.rows if row.status != "done"]
    if not rows:
        return None
    lines = [
        [Cell(clean(row.name), foreign=True), _status(row), Cell(clean(row.why or MISSING), foreign=True)]
        for row in rows
    ]
    columns = [Column("variant", False), Column("status", False), Column("why", False)]
    reading = "These have no point in the plot."
    table = render(Table("Variants without figures", columns, [(None, lines)]))
    return section("unfinished", "Failed and not run", reading, table)


def _settings(sweep: Sweep) -> Section | None:
    """What is the same in all variants, and what they were measured on."""
    measured = next((row.measured for row in sweep.rows if row.measured), {})
    engines = dict.fromkeys(row.engine for row in sweep.rows if row.engine)
    pairs = {"The same in all variants that have it": constant_axes(sweep.rows), "Measured on": dict(measured)}
    if engines:
        pairs["Measured on"]["engine"] = list(engines)
    shown = [_pairs(caption, values) for caption, values in pairs.items() if values]
    reading = "What a repetition needs beside the table; each variant's own report has the rest."
    return section("settings", "Settings", reading, *shown) if shown else None


def _pairs(caption: str, values: dict[str, Any]) -> Markup:
    lines = [[Cell(clean(name)), Cell(clean(plain(value)), foreign=True)] for name, value in values.items()]
    return render(Table(caption, [Column("name", False), Column("value", False)], [(None, lines)]), class_="pairs")
