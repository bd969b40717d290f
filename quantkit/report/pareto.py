"""The Pareto front: the points that no other beats. Both coordinates are costs, less is better."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats, by the first coordinate.

    A point is beaten by one that is not worse in either coordinate and better in one; equal points stand together.
    Coordinates are finite.
    """
    best: list[int] = []
    for index in sorted(range(len(points)), key=points.__getitem__):
        if not best or points[index][1] < points[best[-1]][1] or points[index] == points[best[-1]]:
            best.append(index)
    return best
