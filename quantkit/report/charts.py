"""The charts of one report: KL with intervals, histogram of KL, growth of the error over the blocks, sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantkit.report import figures
from quantkit.report.figures import clean, count, number
from quantkit.report.layers import percent
from quantkit.report.markup import Markup, tag
from quantkit.report.svg import WIDE, LogAxis, chart, dot, line, log_scale_x, noise_band, rect, shorten, words

if TYPE_CHECKING:
    from quantkit.verify.report import EngineResult, Group, Histogram, Interval, LayerError, Report

ROW, TOP = 24, 24
Mark = tuple[str, "Interval", str]  # class, figure, what it is


def divergence(report: Report, engine: EngineResult) -> Markup | None:
    """Dots and whiskers of the mean KL of every group, on a log axis, with the noise floor."""
    rows = _rows(engine)
    values = [edge for _, marks in rows for _, figure, _ in marks for edge in (figure.low, figure.value, figure.high)]
    if not values:
        return None
    noise = [row.kl_mean for row in figures.floors(report, figures.positions(engine))]

    def draw(width: int) -> tuple[int, Sequence[Markup]]:
        left = 190 if width == WIDE else 96
        axis = LogAxis.over([*values, *noise], left + 8, width - 14)
        bottom = TOP + sum(ROW if marks else ROW + 6 for _, marks in rows)
        shapes = [
            *log_scale_x(axis, TOP, bottom, "mean KL, nats a token (log scale)"),
            noise_band(axis, noise, TOP, bottom),
        ]
        y: float = TOP
        for label, marks in rows:
            y += ROW if marks else ROW + 6
            middle = y - (ROW / 2 if marks else 8)
            class_ = "label" if marks else "heading"
            shapes.append(
                words(
                    left if marks else 0,
                    middle + 4,
                    shorten(label, left if marks else left + 60),
                    class_,
                    "end" if marks else None,
                )
            )
            shapes += [_whisker(axis, mark, middle, index, len(marks)) for index, mark in enumerate(marks)]
        return bottom + 42, [shape for shape in shapes if shape is not None]

    spoken = "; ".join(f"{label} {number(marks[0][1].value)}" for label, marks in rows if marks)
    return chart(draw, f"Mean KL divergence with 95 % intervals: {spoken}")


def _rows(engine: EngineResult) -> list[tuple[str, list[Mark]]]:
    """(label, marks) of each group; a heading has no marks."""
    where = figures.positions(engine)
    second = "prompt" if where == "answer" else None
    rows: list[tuple[str, list[Mark]]] = []
    for title, groups in figures.ordered(engine):
        entries = [(_label(group), _marks(group, where, second)) for group in groups]
        entries = [entry for entry in entries if entry[1]]
        if entries and title != figures.BY["all"]:
            rows.append((title, []))
        rows += entries
    return rows


def _label(group: Group) -> str:
    return "all items" if group.by == "all" else clean(group.value)


def _marks(group: Group, where: str, second: str | None) -> list[Mark]:
    found = figures.summary(group, where)
    marks: list[Mark] = [] if found is None else [("first", found.kl_mean, figures.POSITIONS[where])]
    other = None if second is None else figures.summary(group, second)
    if other is not None:
        marks.append(("second", other.kl_mean, figures.POSITIONS["prompt"]))
    return marks


def _whisker(axis: LogAxis, mark: Mark, middle: float, index: int, marks: int) -> Markup:
    class_, figure, what = mark
    y = middle if marks == 1 else middle - 4 + 8 * index
    low, high = axis.place(figure.low), axis.place(figure.high)
    hint = f"{what}: {number(figure.value)} ({number(figure.low)} to {number(figure.high)})"
    shapes = [line(low, y, high, y, "whisker"), line(low, y - 3, low, y + 3, "whisker")]
    shapes += [line(high, y - 3, high, y + 3, "whisker"), dot(axis.place(figure.value), y, 4, f"dot {class_}", hint)]
    return tag("g", *shapes, class_=class_)


def histogram(found: Histogram) -> Markup | None:
    """One row of bars a modality, on one log axis; heights are shares of that modality's tokens."""
    series = [(clean(name), counts) for name, counts in found.counts.items() if sum(counts)]
    if not series or len(found.edges) < 2:
        return None
    shares = [[value / sum(counts) for value in counts] for _, counts in series]
    top = max(max(row) for row in shares)

    def draw(width: int) -> tuple[int, Sequence[Markup]]:
        left, each = (110, 58) if width == WIDE else (72, 52)
        start, end = left + 8, width - 12
        step = (end - start) / len(shares[0])
        shapes = []
        for row, (name, counts) in enumerate(series):
            base = TOP + each * (row + 1)
            shapes.append(words(left, base - 16, shorten(name, left), "label", "end"))
            shapes.append(words(left, base - 2, count(sum(counts)), "tick", "end"))
            for index, part in enumerate(shares[row]):
                if part:
                    tall = round(max((each - 12) * part / top, 0.8), 1)
                    where = _bin(found.edges, len(counts), index)
                    hint = f"{name}, {where}: {count(counts[index])} tokens, {100 * part:.2f} %"
                    x = round(start + index * step, 1)
                    shapes.append(rect(x, base - tall, round(step - 1, 1), tall, "bar", hint))
            shapes.append(line(start, base, end, base, "base"))
        bottom = TOP + each * len(series)
        return bottom + 42, [*shapes, *_decades(found.edges, len(shares[0]), start, step, bottom)]

    return chart(draw, "Histogram of KL a token by modality: " + "; ".join(name for name, _ in series))


def _bin(edges: list[float], bins: int, index: int) -> str:
    """A bin in words; the first takes all below, and with more bins than intervals the last takes all above."""
    shift = 0 if bins < len(edges) else 1  # edge j lies before bin j + shift
    first = index - shift
    lower = None if index == 0 else edges[first]
    upper = edges[first + 1] if first + 1 < len(edges) else None
    said = ([] if lower is None else [f"from {10**lower:.1e}"]) + ([] if upper is None else [f"below {10**upper:.1e}"])
    return "KL " + " ".join(said)


def _decades(edges: list[float], bins: int, start: float, step: float, bottom: float) -> list[Markup]:
    shapes = []
    last = -100.0
    for index, edge in enumerate(edges):
        if abs(edge - round(edge)) > 1e-6:
            continue
        x = round(start + step * min(index + (bins >= len(edges)), bins), 1)
        shapes.append(line(x, bottom, x, bottom + 4, "base"))
        if x - last >= 38:
            shapes.append(words(x, bottom + 17, _power(round(edge)), "tick", "middle"))
            last = x
    return [*shapes, words(start + step * bins / 2, bottom + 36, "KL of a token, nats (log scale)", "axis", "middle")]


def _power(exponent: int) -> str:
    return f"{10.0**exponent:g}" if -3 <= exponent <= 3 else f"1e{exponent}"


def growth(blocks: list[LayerError], title: str) -> Markup | None:
    """Error of each block as a line, and what it added as a bar below it."""
    if not blocks:
        return None
    top = max(max(entry.error for entry in blocks), 1e-12)
    grown = [entry.growth or 0.0 for entry in blocks]
    widest = max(max(abs(value) for value in grown), 1e-12)

    def draw(width: int) -> tuple[int, Sequence[Markup]]:
        left, end, high, zero = (52 if width == WIDE else 44), width - 12, 130, 186
        step = (end - left) / len(blocks)
        shapes = [line(left, y, end, y, "grid") for y in (TOP, (TOP + high) / 2)] + [
            line(left, high, end, high, "base")
        ]
        shapes.append(words(left - 6, TOP + 4, f"{percent(top)} %", "tick", "end"))
        shapes += [words(left - 6, high + 4, "0", "tick", "end"), words(left - 6, zero + 4, "growth", "tick", "end")]
        points = []
        for index, entry in enumerate(blocks):
            x = round(left + step * (index + 0.5), 1)
            y = round(high - (high - TOP) * entry.error / top, 1)
            points.append(f"{x:g},{y:g}")
            tall = round(30 * abs(grown[index]) / widest, 1)
            hint = f"{title} {entry.layer}: growth {100 * grown[index]:+.2f} points"
            above = zero - tall if grown[index] >= 0 else zero
            shapes.append(
                rect(x - step * 0.32, above, step * 0.64, tall, "bar" if grown[index] >= 0 else "bar less", hint)
            )
            shapes.append(dot(x, y, 3, "dot first", f"{title} {entry.layer}: error {percent(entry.error)} %"))
            if index % max(1, round(len(blocks) * 24 / (end - left))) == 0:
                shapes.append(words(x, zero + 44, str(entry.layer), "tick", "middle"))
        shapes.insert(0, tag("polyline", points=" ".join(points), class_="path"))
        shapes += [line(left, zero, end, zero, "base"), words((left + end) / 2, zero + 62, title, "axis", "middle")]
        return zero + 70, shapes

    return chart(draw, f"Output error by {title}: last {percent(blocks[-1].error)} %")


def sizes(report: Report) -> Markup:
    """Two bars, the reference's and the candidate's bytes."""
    models = (("reference", report.reference), ("candidate", report.candidate))
    top = max(report.reference.bytes, report.candidate.bytes, 1)

    def draw(width: int) -> tuple[int, Sequence[Markup]]:
        left = 78
        room = width - left - 84
        shapes = []
        for row, (role, model) in enumerate(models):
            y = 6 + 26 * row
            wide = round(room * model.bytes / top, 1)
            shapes.append(words(left - 8, y + 14, role, "label", "end"))
            shapes.append(rect(left, y, wide, 18, f"bar {role}"))
            shapes.append(words(left + wide + 6, y + 14, figures.size(model.bytes), "tick"))
        return 60, shapes

    return chart(draw, "; ".join(f"{role} {figures.size(model.bytes)}" for role, model in models))
