"""Handwriting from strokes of our own: letters, digits, some Chinese characters; jittered, smoothed polylines.

Letters stand on y = 0 with an x-height of 1, ascenders to 2 and descenders to -0.9, y pointing up. Chinese characters
stand in a box of 10 x 10, y pointing up. A stroke is "x,y x,y ..."; strokes are parted by "/".
"""

import math
import random

from drawn.base import Board, Colour

LETTERS = {
    "a": "0.9,0.8 0.5,1 0.1,0.7 0.1,0.25 0.45,0 0.8,0.3 0.9,0.9 0.9,0.2 1.05,0",
    "b": "0.1,2 0.1,0 / 0.1,0.7 0.5,1 0.9,0.7 0.85,0.2 0.45,0 0.1,0.25",
    "c": "0.9,0.8 0.5,1 0.12,0.6 0.2,0.1 0.6,0 0.95,0.2",
    "d": "0.9,0.75 0.5,1 0.1,0.6 0.2,0.1 0.6,0.05 0.9,0.4 0.9,2 0.9,0.1 1.05,0",
    "e": "0.1,0.5 0.9,0.6 0.75,0.95 0.35,0.95 0.1,0.5 0.3,0.05 0.9,0.15",
    "f": "0.9,1.8 0.6,2 0.4,1.6 0.4,0 / 0.1,1 0.8,1",
    "g": "0.9,0.8 0.5,1 0.1,0.6 0.3,0.1 0.8,0.3 0.9,0.9 0.9,-0.5 0.5,-0.9 0.1,-0.6",
    "h": "0.1,2 0.1,0 / 0.1,0.6 0.5,1 0.85,0.7 0.85,0",
    "i": "0.4,1 0.4,0.1 0.6,0 / 0.4,1.4 0.44,1.45",
    "j": "0.6,1 0.6,-0.6 0.3,-0.9 0.05,-0.6 / 0.6,1.4 0.64,1.45",
    "k": "0.1,2 0.1,0 / 0.8,1 0.1,0.45 / 0.35,0.6 0.85,0",
    "l": "0.4,2 0.4,0.15 0.65,0",
    "m": "0.05,1 0.05,0 / 0.05,0.7 0.3,1 0.5,0.7 0.5,0 / 0.5,0.7 0.8,1 1,0.7 1,0",
    "n": "0.1,1 0.1,0 / 0.1,0.65 0.5,1 0.85,0.7 0.85,0",
    "o": "0.5,1 0.1,0.6 0.2,0.1 0.6,0 0.92,0.4 0.8,0.9 0.5,1",
    "p": "0.1,1 0.1,-0.9 / 0.1,0.7 0.5,1 0.9,0.7 0.85,0.2 0.45,0 0.1,0.25",
    "q": "0.9,0.8 0.5,1 0.1,0.6 0.3,0.05 0.8,0.3 / 0.9,1 0.9,-0.9 1.1,-0.6",
    "r": "0.15,1 0.15,0 / 0.15,0.6 0.45,0.95 0.8,0.9",
    "s": "0.85,0.85 0.45,1 0.15,0.75 0.5,0.5 0.85,0.25 0.5,0 0.1,0.15",
    "t": "0.45,1.7 0.45,0.2 0.7,0 0.9,0.15 / 0.1,1.1 0.85,1.1",
    "u": "0.1,1 0.1,0.3 0.4,0 0.8,0.3 / 0.85,1 0.85,0.1 1,0",
    "v": "0.05,1 0.45,0 0.9,1",
    "w": "0.05,1 0.3,0 0.5,0.8 0.75,0 1,1",
    "x": "0.1,1 0.9,0 / 0.9,1 0.1,0",
    "y": "0.1,1 0.5,0.15 / 0.9,1 0.3,-0.9 0.05,-0.8",
    "z": "0.1,1 0.9,1 0.1,0 0.95,0",
    "0": "0.5,2 0.1,1.4 0.15,0.4 0.5,0 0.88,0.5 0.88,1.5 0.5,2",
    "1": "0.25,1.6 0.55,2 0.55,0",
    "2": "0.12,1.6 0.5,2 0.88,1.5 0.6,0.9 0.1,0 0.95,0",
    "3": "0.15,1.8 0.6,2 0.85,1.5 0.45,1.1 0.9,0.6 0.6,0 0.1,0.2",
    "4": "0.65,0 0.65,2 0.05,0.7 0.95,0.7",
    "5": "0.85,2 0.25,2 0.2,1.15 0.7,1.2 0.9,0.6 0.55,0 0.1,0.2",
    "6": "0.8,1.9 0.3,1.3 0.1,0.5 0.5,0 0.88,0.5 0.6,1 0.15,0.7",
    "7": "0.1,2 0.92,2 0.4,0 / 0.3,1 0.85,1",
    "8": "0.5,1.05 0.15,1.5 0.5,2 0.85,1.5 0.5,1.05 0.1,0.5 0.5,0 0.9,0.5 0.5,1.05",
    "9": "0.85,1.4 0.5,1 0.12,1.5 0.5,2 0.85,1.5 0.8,0.6 0.5,0",
    "+": "0.1,0.9 0.9,0.9 / 0.5,1.35 0.5,0.45",
    "-": "0.15,0.9 0.85,0.9",
    "=": "0.1,1.15 0.9,1.15 / 0.1,0.65 0.9,0.65",
    ".": "0.3,0.05 0.36,0.02",
    ":": "0.4,1 0.44,1.02 / 0.4,0.2 0.44,0.22",
}
CHARACTERS = {
    "一": "1,5 9,5.4",
    "二": "2,7 8,7.3 / 1,2 9,2.3",
    "三": "2,8 8,8.3 / 2.5,5 7.5,5.2 / 1,1.6 9,1.9",
    "十": "1,6 9,6.3 / 5,9.5 5,0.5",
    "大": "1,6.3 9,6.7 / 5,9.5 4.6,5 1,0.5 / 5,6 9,0.5",
    "小": "5,9.5 5,1 4,1.8 / 3,6 1.4,3 / 7,6 8.8,3",
    "山": "5,9 5,1.5 / 1.5,6 1.5,1.5 8.5,1.5 / 8.5,6.2 8.5,1",
    "水": "5,9.5 5,0.8 4,1.6 / 1.5,6.8 4,6.6 1,1.8 / 8.4,7.4 5.3,5 / 5.3,5.4 9,1",
    "火": "3,7 2,4.5 / 7.6,7.4 6.4,5 / 5,9.5 4.6,4.5 1,0.6 / 5,5 9,0.6",
    "人": "5,9.3 4.4,5 1,0.5 / 5,6.5 9,0.5",
    "口": "2,8 2,1.5 / 2,8 8,8.2 8,1.5 / 2,1.8 8,2",
    "日": "2.5,9 2.5,0.6 / 2.5,9 7.5,9.2 7.5,0.6 / 2.5,5 7.5,5 / 2.5,1 7.5,1",
    "月": "3,9 3,4 1.5,0.5 / 3,9 7.5,9.2 7.5,0.8 6.5,1.4 / 3,6.4 7.5,6.4 / 3,3.9 7.5,3.9",
    "木": "1,6.5 9,6.8 / 5,9.6 5,0.3 / 5,6.4 1,1.5 / 5,6.4 9,1.5",
    "上": "4.8,9.2 4.8,1 / 4.8,5.6 8,5.7 / 1,1 9,1.2",
    "下": "1,8.4 9,8.7 / 4.8,8.4 4.8,0.5 / 5.2,6 7.6,4.4",
    "中": "2,7 2,3.4 / 2,7 8,7.2 8,3.4 / 2,3.6 8,3.6 / 5,9.5 5,0.3",
    "天": "2,8.4 8,8.6 / 1,5.4 9,5.7 / 5,8.5 4.6,5 1,0.5 / 5,5.4 9,0.5",
    "田": "1.8,8.4 1.8,1.2 / 1.8,8.4 8.2,8.6 8.2,1.2 / 1.8,5 8.2,5 / 5,8.4 5,1.4 / 1.8,1.5 8.2,1.5",
    "土": "2.4,6 7.6,6.2 / 5,9.4 5,1 / 1,1 9,1.2",
    "王": "2,8.4 8,8.6 / 2.4,5 7.6,5.2 / 5,8.4 5,1.2 / 1,1.2 9,1.4",
    "工": "2,8 8,8.2 / 5,8 5,1.6 / 1,1.6 9,1.8",
}


class Hand:
    """One person's hand: slant, roundness, jitter and pen; writes on a board."""

    def __init__(self, rng: random.Random, colour: Colour, pen: float) -> None:
        self.rng, self.colour, self.pen = rng, colour, pen
        self.slant, self.jitter = rng.uniform(-0.05, 0.3), rng.uniform(0.02, 0.06)

    def write(self, board: Board, x: float, y: float, text: str, size: float) -> float:
        """Write a line from (x, y) on its baseline, `size` units to an x-height; returns its end."""
        for character in text:
            if character == " ":
                x += size * 0.7
                continue
            drift = self.rng.uniform(-0.06, 0.06) * size
            if character in CHARACTERS:
                self.strokes(board, CHARACTERS[character], (x, y + drift), (size * 0.2, size * 0.2), 2.0)
                x += size * 2.2
            else:
                wide = self.rng.uniform(0.85, 1.0) * size * (0.5 if character in ".:il1" else 0.95)
                step = size * (0.8 if character in ".:il1" else 1.15)
                self.strokes(board, LETTERS[character], (x, y + drift), (wide, size), 0.4)
                x += step
        return x

    def strokes(
        self, board: Board, source: str, origin: tuple[float, float], unit: tuple[float, float], loose: float
    ) -> None:
        """Draw the strokes of one sign."""
        for stroke in source.split("/"):
            points = [tuple(map(float, pair.split(","))) for pair in stroke.split()]
            spread = self.jitter * loose * (2 if len(points) < 3 else 1)
            shaken = [(px + self.rng.gauss(0, spread), py + self.rng.gauss(0, spread)) for px, py in points]
            placed = [
                (origin[0] + (px + self.slant * py) * unit[0], origin[1] - py * unit[1]) for px, py in smooth(shaken)
            ]
            board.line(placed, self.colour, self.pen)
            for end in (placed[0], placed[-1]):
                board.disc(*end, self.pen / 2, fill=self.colour)


def smooth(points: list[tuple[float, float]], steps: int = 6) -> list[tuple[float, float]]:
    """A Catmull-Rom curve through the points."""
    ends = [points[0], *points, points[-1]]
    curve = []
    for before, start, end, after in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        for step in range(steps):
            t = step / steps
            curve.append(tuple(spline(*values, t) for values in zip(before, start, end, after, strict=False)))
    return [*curve, points[-1]]  # type: ignore[list-item]


def spline(before: float, start: float, end: float, after: float, t: float) -> float:
    """The Catmull-Rom value between `start` and `end`."""
    return 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t * t
        + (3 * start - before - 3 * end + after) * math.pow(t, 3)
    )
