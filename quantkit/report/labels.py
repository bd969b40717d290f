"""Labels beside points that meet neither a point nor each other, by a guess at their width."""

from __future__ import annotations

from quantkit.report.markup import Markup
from quantkit.report.svg import CHARACTER, words

Box = tuple[float, float, float, float]  # left, top, right, bottom


def near(text: str, place: tuple[float, float], taken: list[Box], frame: Box) -> Markup:
    """A label beside its point, where it meets no other if there is such a place; `taken` grows by its box."""
    x, _ = place
    boxes = _spots(text, place)
    box = next((box for box in boxes if free(box, taken, frame)), None)
    box = box or next((box for box in boxes if _inside(box, frame)), boxes[0])
    return _set(text, x, box, taken)


def where_free(
    text: str, place: tuple[float, float], taken: list[Box], frame: Box, better_not: list[Box]
) -> Markup | None:
    """A label beside its point where there is room, else none; it meets `better_not` only where it must."""
    boxes = [box for box in _spots(text, place) if free(box, taken, frame)]
    box = next((box for box in boxes if free(box, better_not, frame)), boxes[0] if boxes else None)
    return None if box is None else _set(text, place[0], box, taken)


def free(box: Box, taken: list[Box], frame: Box) -> bool:
    """Whether a box lies in the frame and meets none that is taken."""
    return _inside(box, frame) and not any(_meets(box, other) for other in taken)


def width(text: str) -> float:
    """A guess at a text's width at 12 px; wide characters count twice."""
    return sum(2 if ord(character) > 0x2E80 else 1 for character in text) * CHARACTER


def _spots(text: str, place: tuple[float, float]) -> list[Box]:
    x, y = place
    wide = width(text)
    spots = [(x + 9, y - 4), (x + 9, y + 4), (x - 9 - wide, y + 4), (x + 9, y + 18), (x - 9 - wide, y - 8)]
    spots += [(x - 9 - wide, y + 18), (x - wide / 2, y - 14), (x - wide / 2, y + 24)]
    return [(a, b - 11, a + wide, b + 3) for a, b in spots]


def _set(text: str, x: float, box: Box, taken: list[Box]) -> Markup:
    taken.append(box)
    ends = box[2] <= x  # left of its point: hold the right end, whatever the font
    return words(round(box[2] if ends else box[0], 1), round(box[3] - 3, 1), text, "label on", "end" if ends else None)


def _inside(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[2] <= frame[2] + 8 and box[1] >= frame[1] - 8 and box[3] <= frame[3]


def _meets(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
