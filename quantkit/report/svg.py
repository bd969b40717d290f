"""What every chart is drawn with: a logarithmic and a linear axis, and shapes whose coordinates are always finite.

Charts are drawn in CSS pixels for two widths, one for a desk and paper and one for a phone, so that their text keeps
its size; the style sheet shows the one that fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from quantkit.report.figures import number
from quantkit.report.markup import Markup, join, tag

WIDE, NARROW = 960, 328
DECADES = 6  # at most; what lies further below stands at the axis's end
CHARACTER = 6.8  # mean width of one at 12 px, for labels only


class Axis(Protocol):
    """Where values stand between two ends, and what its ticks are called."""

    def place(self, value: float) -> float: ...

    def ticks(self) -> list[float]: ...

    def label(self, tick: float) -> str: ...


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic axis from `low` to `high` (both powers of ten times 1, 2 or 5), drawn from `start` to `end`.

    Values at or below `low` stand at `start`; `below` says that there are such values, so that end's label reads "≤".
    """

    low: float
    high: float
    start: float
    end: float
    below: bool = False

    @staticmethod
    def over(values: Iterable[float], start: float, end: float) -> LogAxis:
        """An axis that holds all positive values, over six decades at most."""
        known = list(values)
        positive = [value for value in known if value > 0 and math.isfinite(value)]
        top, bottom = (max(positive), min(positive)) if positive else (1.0, 0.1)
        high = _step_up(top * 1.02)
        low = max(_step_down(bottom * 0.98), high / 10**DECADES)
        low = min(low, high / 10)
        below = any(value < low for value in known)
        return LogAxis(low, high, start, end, below)

    def place(self, value: float) -> float:
        """Where a value stands, held within the axis."""
        if not math.isfinite(value):
            return self.end if value > 0 else self.start
        if value <= self.low:
            return self.start
        part = math.log10(value / self.low) / math.log10(self.high / self.low)
        return round(self.start + (self.end - self.start) * min(part, 1.0), 1)

    def ticks(self) -> list[float]:
        """Powers of ten; with 2 and 5 between them where there are few."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        steps = (1, 2, 5) if last - first <= 2 else (1,)
        found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        within = [tick for tick in found if self.low * 0.999 <= tick <= self.high * 1.001]
        return [self.low, *(tick for tick in within if tick > self.low * 1.001)] if self.below else within

    def label(self, tick: float) -> str:
        """A tick's label: plain numbers near one, powers of ten beyond; the end takes all below, where there is any."""
        if self.below and tick == self.low:
            return f"≤ {self._plain(tick)}"
        return self._plain(tick)

    @staticmethod
    def _plain(tick: float) -> str:
        return f"{tick:g}" if 1e-4 <= tick < 1e5 else f"{tick:.0e}".replace("e-0", "e-")


def _step_up(value: float) -> float:
    base = 10.0 ** math.floor(math.log10(value))
    return next((step * base for step in (1, 2, 5) if value <= step * base * 1.0001), 10 * base)


def _step_down(value: float) -> float:
    base = 10.0 ** math.floor(math.log10(value))
    return next(step * base for step in (5, 2, 1) if value >= step * base * 0.9999)


@dataclass(frozen=True)
class LinearAxis:
    """A linear axis over round numbers (`steps`, the first and last of them its ends), from `start` to `end`."""

    steps: tuple[float, ...]
    start: float
    end: float

    @staticmethod
    def over(values: Sequence[float], start: float, end: float, most: int = 8) -> LinearAxis:
        """An axis that holds all values, with `most` + 2 ticks at most."""
        return LinearAxis(tuple(linear_ticks(values, most)), start, end)

    def place(self, value: float) -> float:
        """Where a value stands."""
        low, high = self.steps[0], self.steps[-1]
        return round(self.start + (self.end - self.start) * (value - low) / (high - low), 1)

    def ticks(self) -> list[float]:
        """All of its round numbers."""
        return list(self.steps)

    def label(self, tick: float) -> str:
        """A tick's label, with a true minus."""
        return f"{tick:.4g}".replace("-", "\u2212")


def linear_ticks(values: Sequence[float], most: int) -> list[float]:
    """Round numbers around the values, at most `most` + 2; at least two, whatever the values.

    Below zero only where a value is.
    """
    low, high = min(values), max(values)
    room = max((high - low) * 0.12, max(abs(low), abs(high)) * 0.02, 1e-9)
    low, high = (max(low - room, 0.0) if low >= 0 else low - room), (min(high + room, 0.0) if high < 0 else high + room)
    raw = (high - low) / most
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * base for factor in (1, 2, 5, 10) if factor * base >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def axes(x: Axis, y: Axis, frame: tuple[float, float, float, float], names: tuple[str, str]) -> list[Markup]:
    """Grid lines across at y's ticks, the base line with x's, labels and the axes' names; frame: left, top, right,
    bottom."""
    left, top, right, bottom = frame
    shapes = []
    for tick in y.ticks():
        place = y.place(tick)
        shapes.append(line(left, place, right, place, "grid"))
        shapes.append(words(left - 6, place + 4, y.label(tick), "tick", "end"))
    shapes.append(line(left, bottom, right, bottom, "base"))
    last = -math.inf
    for tick in x.ticks():
        place = x.place(tick)
        shapes.append(line(place, bottom, place, bottom + 4, "base"))
        if place - last >= 34:
            shapes.append(words(place, bottom + 18, x.label(tick), "tick", "middle"))
            last = place
    shapes.append(words(right, bottom + 38, names[0], "axis", "end"))
    return [*shapes, words(left, top - 8, names[1], "axis")]


def whisker(x: float, low: float, high: float, class_: str = "whisker") -> list[Markup]:
    """A vertical bar with ends."""
    return [line(x, low, x, high, class_), *(line(x - 3, end, x + 3, end, class_) for end in (low, high))]


def chart(draw: Callable[[int], tuple[int, Sequence[Markup]]], title: str) -> Markup:
    """Both widths of a chart, in a box; `draw` gives height and shapes for a width; `title` says it in words."""
    drawn = []
    for width, class_ in ((WIDE, "wide"), (NARROW, "narrow")):
        height, shapes = draw(width)
        svg = tag(
            "svg", tag("title", title), *shapes, viewBox=f"0 0 {width} {height}", width=width, height=height,
            role="img", class_=class_,
        )  # fmt: skip
        drawn.append(svg)
    return tag("div", *drawn, class_="chart")


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=f"{x1:g}", y1=f"{y1:g}", x2=f"{x2:g}", y2=f"{y2:g}", class_=class_)


def rect(x: float, y: float, width: float, height: float, class_: str, hint: str | None = None) -> Markup:
    """A rectangle; `hint` shows under the pointer."""
    inner = None if hint is None else tag("title", hint)
    sides = {"width": f"{max(width, 0):g}", "height": f"{max(height, 0):g}"}
    return tag("rect", inner, x=f"{x:g}", y=f"{y:g}", class_=class_, **sides)


def dot(x: float, y: float, radius: float, class_: str, hint: str | None = None) -> Markup:
    """A round mark; `hint` shows under the pointer."""
    return tag(
        "circle", None if hint is None else tag("title", hint), cx=f"{x:g}", cy=f"{y:g}", r=radius, class_=class_
    )


def words(x: float, y: float, content: Any, class_: str = "", anchor: str | None = None) -> Markup:
    """Text; `anchor` is middle or end."""
    return tag("text", content, x=f"{x:g}", y=f"{y:g}", class_=class_ or None, text_anchor=anchor)


def shorten(label: str, pixels: float) -> str:
    """A label cut to a width, by a guess at its characters (wide ones count twice)."""
    room = int(pixels / CHARACTER)
    taken = 0
    for index, character in enumerate(label):
        taken += 2 if ord(character) > 0x2E80 else 1
        if taken > room:
            return label[: max(index - 1, 1)] + "…"
    return label


def log_scale_x(axis: LogAxis, top: float, bottom: float, name: str) -> list[Markup]:
    """Grid, tick labels and name of a horizontal axis."""
    shapes = []
    last = -math.inf
    for tick in axis.ticks():
        x = axis.place(tick)
        shapes.append(line(x, top, x, bottom, "grid"))
        if x - last >= 40:
            shapes.append(words(x, bottom + 16, axis.label(tick), "tick", "middle"))
            last = x
    middle = (axis.start + axis.end) / 2
    return [*shapes, words(middle, bottom + 34, name, "axis", "middle")]


def noise_band(axis: LogAxis, values: Sequence[float], top: float, bottom: float) -> Markup | None:
    """The reference's own noise as a band with a dashed line at its upper end."""
    if not values:
        return None
    left, right = axis.place(min(values)), axis.place(max(values))
    hint = "noise floor of the reference: " + " to ".join(dict.fromkeys((number(min(values)), number(max(values)))))
    off = max(values) < axis.low
    label = "← noise floor" if off else "noise floor"
    near_end = right > (axis.start + axis.end) / 2
    return tag(
        "g", tag("title", hint), rect(axis.start, top, right - axis.start, bottom - top, "noise"),
        rect(left, top, right - left, bottom - top, "noise"), line(right, top, right, bottom, "floor"),
        words(right + (-5 if near_end else 5), top - 5, label, "noise-label", "end" if near_end else None),
    )  # fmt: skip


__all__ = [
    "NARROW", "WIDE", "Axis", "LinearAxis", "LogAxis", "axes", "chart", "dot", "join", "line", "linear_ticks",
    "log_scale_x", "noise_band", "rect", "shorten", "whisker", "words",
]  # fmt: skip
