"""Size against a figure, as shapes for any width; `chart.js` draws the same on the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quantkit.report.figures import clean, number, share, size
from quantkit.report.labels import Box, where_free, width
from quantkit.report.markup import Markup, tag
from quantkit.report.svg import Axis, LinearAxis, LogAxis, axes, dot, line, shorten, whisker, words
from quantkit.report.sweep.metrics import Metric
from quantkit.report.sweep.rows import ALL, SweepRow
from quantkit.report.sweep.settings import Setting, front, point

SERIES = 8  # colours and marks; more methods begin again
LABEL = 190  # pixels of a label at most
RADIUS, SMALL, MANY = 5.0, 4.0, 30  # of a mark; where there are many
# polygons around (0, 0) by series, in halves of a mark's width; the first series is a circle
MARKS: tuple[tuple[tuple[float, float], ...], ...] = (
    (),
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
    ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    ((0, 1.15), (1.1, -0.85), (-1.1, -0.85)),
    ((-0.45, -1.2), (0.45, -1.2), (0.45, -0.45), (1.2, -0.45), (1.2, 0.45), (0.45, 0.45), (0.45, 1.2), (-0.45, 1.2),
     (-0.45, 0.45), (-1.2, 0.45), (-1.2, -0.45), (-0.45, -0.45)),
    ((0, -1.2), (1.14, -0.37), (0.7, 0.97), (-0.7, 0.97), (-1.14, -0.37)),
    ((-0.65, -1.1), (0.65, -1.1), (1.3, 0), (0.65, 1.1), (-0.65, 1.1), (-1.3, 0)),
)  # fmt: skip


Place = tuple[float, float]
Level = tuple[float, str]  # what figures are held against, and its name


@dataclass(frozen=True)
class Room:
    """Where a scatter is drawn, in pixels, and whether points of the front are named."""

    width: int
    height: int
    left: int
    top: int = 22
    named: bool = True


def unit_of(rows: Iterable[SweepRow]) -> tuple[str, float]:
    """The unit that sizes are shown in, and its bytes."""
    most = max((row.bytes or 0 for row in rows), default=0)
    return next(((name, scale) for name, scale in (("GB", 1e9), ("MB", 1e6)) if most >= scale), ("kB", 1e3))


def mark(series: int, x: float, y: float, hint: str | None = None, radius: float = RADIUS) -> Markup:
    """A series' mark: shape and colour both tell it."""
    index = series % SERIES
    if not MARKS[index]:
        return dot(x, y, radius, f"mark s{index}", hint)
    corners = " ".join(f"{round(x + radius * a, 1):g},{round(y + radius * b, 1):g}" for a, b in MARKS[index])
    return tag("polygon", None if hint is None else tag("title", hint), points=corners, class_=f"mark s{index}")


def scatter(
    settings: Sequence[Setting], metric: Metric, room: Room, methods: Sequence[str], group: str = ALL
) -> list[Markup]:
    """Size against a figure: bars, the front as a line, what figures are held against. Needs a setting with both.

    methods: all that have a mark, in the order of the legend.
    """
    known = {index: found for index, s in enumerate(settings) if (found := point(s.row, metric, group)) is not None}
    best, level = front(settings, metric, group), _level(settings, metric, group)
    unit, scale = unit_of(setting.row for setting in settings)
    frame = (room.left, room.top, room.width - 14, room.height - 46)
    x = LinearAxis.over([nbytes / scale for nbytes, _ in known.values()], frame[0], frame[2], 8 if room.named else 4)
    y = _y_axis(
        [end * metric.factor for _, e in known.values() for end in (e.value, e.low, e.high)], level, metric, frame
    )
    shapes = axes(x, y, frame, (f"size, {unit}", metric.axis + (" (log scale)" if metric.log else "")))
    shapes += [] if level is None else _rule(level, y, frame)
    places = {
        index: (x.place(nbytes / scale), y.place(e.value * metric.factor)) for index, (nbytes, e) in known.items()
    }
    series = {index: methods.index(settings[index].row.method) for index in known}
    poles = []
    for index, (_, estimate) in known.items():
        low, high = y.place(estimate.low * metric.factor), y.place(estimate.high * metric.factor)
        shapes += whisker(places[index][0], low, high, f"whisker w{series[index] % SERIES}") if low != high else []
        poles.append((places[index][0] - 2, high, places[index][0] + 2, low))
    line_ = [f"{a:g},{b:g}" for a, b in sorted(places[index] for index in best)]
    shapes.append(tag("polyline", points=" ".join(line_), class_="front"))
    radius = RADIUS if len(known) < MANY else SMALL
    for index in sorted(known, key=lambda one: one in best):
        shapes.append(mark(series[index], *places[index], said(settings[index].row, metric, group), radius))
    if room.named:
        named = [(settings[index].row.name, places[index]) for index in best]
        taken = [(a - 6, b - 6, a + 6, b + 6) for a, b in places.values()]
        shapes += _labels(named, taken + ([] if level is None else [_rule_box(level, y, frame)]), frame, poles)
    return shapes


def _level(settings: Sequence[Setting], metric: Metric, group: str) -> Level | None:
    """What figures are held against: the reference's own noise, its accuracy."""
    noise = max((setting.row.noise for setting in settings if setting.row.noise is not None), default=None)
    if metric.key == "kl" and noise is not None and math.isfinite(noise) and group == ALL:
        return noise, f"noise floor {number(noise)}"
    if metric.key != "accuracy":
        return None
    accuracy = reference_of(settings, group)
    return 0.0, "reference" if accuracy is None else f"reference: {share(accuracy)}"


def reference_of(settings: Sequence[Setting], group: str) -> float | None:
    """The reference's accuracy over a group, where all settings have the same."""
    found = [setting.row.figures[group].reference_accuracy for setting in settings if group in setting.row.figures]
    known = {None if accuracy is None else round(accuracy, 9) for accuracy in found}
    return known.pop() if len(known) == 1 else None


def _y_axis(values: Sequence[float], level: Level | None, metric: Metric, frame: Box) -> Axis:
    """Logarithmic for KL, linear over what is there for the others; what they are held against is in view."""
    held = [*values, *([] if level is None else level[:1])]
    return LogAxis.over(held, frame[3], frame[1]) if metric.log else LinearAxis.over(held, frame[3], frame[1], 6)


def _rule(level: Level, y: Axis, frame: Box) -> list[Markup]:
    """What figures are held against, as a dashed line with its name."""
    height = y.place(level[0])
    return [line(frame[0], height, frame[2], height, "floor"), words(frame[0] + 6, height - 5, level[1], "noise-label")]


def _rule_box(level: Level, y: Axis, frame: Box) -> Box:
    height = y.place(level[0])
    return frame[0], height - 16, frame[0] + 6 + width(level[1]), height


def _labels(named: list[tuple[str, Place]], taken: list[Box], frame: Box, poles: list[Box]) -> list[Markup]:
    """Names of the front's points where there is room for them, beside the bars rather than across them."""
    found = [
        where_free(shorten(clean(name), LABEL), place, taken, frame, poles)
        for name, place in sorted(named, key=lambda one: one[1])
    ]
    return [label for label in found if label is not None]


def said(row: SweepRow, metric: Metric, group: str = ALL) -> str:
    """A point in words."""
    estimate = metric.of(row, group)
    if estimate is None:
        return row.name
    ends = "" if estimate.low == estimate.high else f" ({metric.shown(estimate.low)} to {metric.shown(estimate.high)})"
    return f"{row.name}: {size(row.bytes)}, {metric.heading} {metric.shown(estimate.value)}{ends}"


def legend(methods: Sequence[str], x: float, y: float) -> list[Markup]:
    """The methods' marks and names in a line, right of `x`."""
    shapes: list[Markup] = []
    for series, method in enumerate(methods):
        name = shorten(clean(method), 110)
        shapes += [mark(series, x + 6, y - 4), words(x + 16, y, name, "label")]
        x += 34 + 6.8 * len(name)
    return shapes
