"""Size against quality: points with whiskers on a log axis, the noise floor, and the line of the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantkit.report.figures import number
from quantkit.report.labels import Box, near
from quantkit.report.markup import Markup, tag
from quantkit.report.svg import WIDE, LinearAxis, LogAxis, axes, chart, dot, line, linear_ticks, shorten, whisker, words

if TYPE_CHECKING:
    from quantkit.verify.report import Interval

__all__ = ["Point", "linear_ticks", "plot"]
NAMES = ("size, GB", "mean KL, nats a token (log scale)")


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
        x = LinearAxis.over([point.size for point in points], left, right, 8 if width == WIDE else 4)
        shapes = axes(x, y, (left, 16, right, bottom), NAMES)
        if noise is not None:
            shapes += _noise_floor(y, noise, left, right)
        places = [(x.place(point.size), y.place(point.kl.value)) for point in points]
        best = [(a, b) for point, (a, b) in zip(points, places, strict=True) if point.best]
        shapes.append(tag("polyline", points=" ".join(f"{a:g},{b:g}" for a, b in sorted(best)), class_="front"))
        taken: list[Box] = [(a - 6, b - 6, a + 6, b + 6) for a, b in places]
        for point, place in zip(points, places, strict=True):
            shapes += _point(point, place, y)
        for point, place in zip(points, places, strict=True):
            text = f"{point.number}. {shorten(point.label, 200)}" if width == WIDE else str(point.number)
            shapes.append(near(text, place, taken, (left, 16, right, bottom)))
        return height, shapes

    spoken = "; ".join(f"{p.label}: {p.size:.2f} GB, KL {number(p.kl.value)}" for p in points)
    return chart(draw, f"Size in GB against mean KL divergence. {spoken}")


def _noise_floor(y: LogAxis, noise: float, left: float, right: float) -> list[Markup]:
    """The reference's own noise as a dashed line, with its name."""
    place = y.place(noise)
    label = f"noise floor {number(noise)}" + (" (below the axis)" if noise < y.low else "")
    hint = tag("title", f"noise floor of the reference: {number(noise)}")
    floor = tag("g", hint, line(left, place, right, place, "floor"))
    return [floor, words(left + 6, place - 5, label, "noise-label")]


def _point(point: Point, place: tuple[float, float], y: LogAxis) -> list[Markup]:
    x, middle = place
    kl = f"KL {number(point.kl.value)} ({number(point.kl.low)} to {number(point.kl.high)})"
    hint = f"{point.label}: {point.size:.3f} GB, {kl}"
    bar = whisker(x, y.place(point.kl.low), y.place(point.kl.high))
    return [*bar, dot(x, middle, 5, "dot first" if point.best else "dot second", hint)]
