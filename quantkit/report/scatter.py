"""Size against quality: points with whiskers on a log axis, the noise floor, and the line of the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantkit.report.figures import number
from quantkit.report.markup import Markup, tag
from quantkit.report.svg import CHARACTER, WIDE, LogAxis, chart, dot, line, shorten, words

if TYPE_CHECKING:
    from quantkit.verify.report import Interval

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    """One variant: its number in the table, label, size in GB, mean KL, and whether no other beats it in both."""

    number: int
    label: str
    size: float
    kl: Interval
    best: bool


def plot(points: list[Point], noise: float | None) -> Markup:
    """The chart in both widths; on the narrow one points carry their numbers, else their labels."""

    def draw(width: int) -> tuple[int, Sequence[Markup]]:
        height, left, right = (420, 64, width - 20) if width == WIDE else (340, 50, width - 10)
        bottom = height - 46
        values = [value for point in points for value in (point.kl.low, point.kl.value, point.kl.high)]
        y = LogAxis.over([*values, *([] if noise is None else [noise])], bottom, 16)
        ticks = linear_ticks([point.size for point in points], 8 if width == WIDE else 4)
        low, high = ticks[0], ticks[-1]

        def x(size: float) -> float:
            return round(left + (right - left) * (size - low) / (high - low), 1)

        shapes = _axes(y, ticks, x_of=[x(tick) for tick in ticks], frame=(left, 16, right, bottom))
        if noise is not None:
            shapes += _noise(y, noise, left, right)
        front = [f"{x(p.size):g},{y.place(p.kl.value):g}" for p in sorted(points, key=lambda p: p.size) if p.best]
        shapes.append(tag("polyline", points=" ".join(front), class_="front"))
        places = [(x(point.size), y.place(point.kl.value)) for point in points]
        taken: list[Box] = [(a - 6, b - 6, a + 6, b + 6) for a, b in places]
        for point, place in zip(points, places, strict=True):
            shapes += _point(point, place, y)
        for point, place in zip(points, places, strict=True):
            text = f"{point.number}. {shorten(point.label, 200)}" if width == WIDE else str(point.number)
            shapes.append(_label(text, place, taken, (left, 16, right, bottom)))
        return height, shapes

    spoken = "; ".join(f"{p.label}: {p.size:.2f} GB, KL {number(p.kl.value)}" for p in points)
    return chart(draw, f"Size in GB against mean KL divergence. {spoken}")


def linear_ticks(values: Sequence[float], most: int) -> list[float]:
    """Round numbers around the values, at most `most` + 2; at least two, whatever the values."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.12, high * 0.02, 1e-9)
    low, high = max(low - room, 0.0), high + room
    raw = (high - low) / most
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * base for factor in (1, 2, 5, 10) if factor * base >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _axes(y: LogAxis, ticks: list[float], x_of: list[float], frame: Box) -> list[Markup]:
    left, _, right, bottom = frame
    shapes = []
    for tick in y.ticks():
        place = y.place(tick)
        shapes.append(line(left, place, right, place, "grid"))
        shapes.append(words(left - 6, place + 4, y.label(tick), "tick", "end"))
    shapes.append(line(left, bottom, right, bottom, "base"))
    last = -math.inf
    for tick, x in zip(ticks, x_of, strict=True):
        shapes.append(line(x, bottom, x, bottom + 4, "base"))
        if x - last >= 34:
            shapes.append(words(x, bottom + 18, f"{tick:.4g}", "tick", "middle"))
            last = x
    shapes.append(words(right, bottom + 38, "size, GB", "axis", "end"))
    return [*shapes, words(left, 8, "mean KL, nats a token (log scale)", "axis")]


def _noise(y: LogAxis, noise: float, left: float, right: float) -> list[Markup]:
    place = y.place(noise)
    label = f"noise floor {number(noise)}" + (" (below the axis)" if noise < y.low else "")
    hint = tag("title", f"noise floor of the reference: {number(noise)}")
    floor = tag("g", hint, line(left, place, right, place, "floor"))
    return [floor, words(left + 6, place - 5, label, "noise-label")]


def _point(point: Point, place: tuple[float, float], y: LogAxis) -> list[Markup]:
    x, middle = place
    low, high = y.place(point.kl.low), y.place(point.kl.high)
    kl = f"KL {number(point.kl.value)} ({number(point.kl.low)} to {number(point.kl.high)})"
    hint = f"{point.label}: {point.size:.3f} GB, {kl}"
    shapes = [line(x, low, x, high, "whisker"), line(x - 3, low, x + 3, low, "whisker")]
    shapes.append(line(x - 3, high, x + 3, high, "whisker"))
    return [*shapes, dot(x, middle, 5, "dot first" if point.best else "dot second", hint)]


def _label(text: str, place: tuple[float, float], taken: list[Box], frame: Box) -> Markup:
    """A label beside its point, where it meets no other; `taken` grows by its box."""
    x, y = place
    wide = sum(2 if ord(character) > 0x2E80 else 1 for character in text) * CHARACTER
    spots = [(x + 9, y - 4), (x + 9, y + 4), (x - 9 - wide, y + 4), (x + 9, y + 18), (x - 9 - wide, y - 8)]
    spots += [(x - 9 - wide, y + 18), (x - wide / 2, y - 14), (x - wide / 2, y + 24)]
    boxes = [(a, b - 11, a + wide, b + 3) for a, b in spots]
    free = [box for box in boxes if _inside(box, frame) and not any(_meets(box, other) for other in taken)]
    box = free[0] if free else next((box for box in boxes if _inside(box, frame)), boxes[0])
    taken.append(box)
    ends = box[2] <= x  # left of its point: hold the right end, whatever the font
    return words(round(box[2] if ends else box[0], 1), round(box[3] - 3, 1), text, "label on", "end" if ends else None)


def _inside(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[2] <= frame[2] + 8 and box[1] >= frame[1] - 8 and box[3] <= frame[3]


def _meets(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
