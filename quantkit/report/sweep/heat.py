"""Maps of every linear's error: large with its figures, and small for many side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quantkit.report.figures import clean
from quantkit.report.layers import LEVELS, level, percent
from quantkit.report.markup import Markup, tag
from quantkit.report.svg import rect, shorten, words

Box = tuple[float, float, float, float]  # left, top, width, height
PLACE = re.compile(r"(?:.*\.)?(?:layers|blocks|h|blk)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Grid:
    """Errors by kind of linear (rows) and layer (columns); `low` and `high` end the colour scale."""

    cells: Mapping[tuple[int, str], float]
    layers: tuple[int, ...]
    kinds: tuple[str, ...]
    low: float
    high: float

    def level(self, error: float) -> int:
        """Its step on the colour scale."""
        return level(error, self.low, self.high)


def place_of(name: str) -> tuple[int, str] | None:
    """Layer and kind of a linear; None for one outside the layers."""
    found = PLACE.fullmatch(name)
    return (int(found[1]), clean(found[2])) if found else None


def scale_of(maps: Iterable[Mapping[str, float]]) -> tuple[float, float]:
    """The ends of one colour scale for all maps: from the smallest to the largest error, four decades at most."""
    errors = [error for one in maps for name, error in one.items() if place_of(name) and math.isfinite(error)]
    high = max(errors, default=0.0)
    return max(min((error for error in errors if error > 0), default=0.0), high / 1e4), high


def grid_of(errors: Mapping[str, float], scale: tuple[float, float]) -> Grid:
    """A variant's errors arranged; kinds in the order they turn up, as attention, then the feed-forward part."""
    cells = {place: error for name, error in errors.items() if (place := place_of(name)) is not None}
    kinds = sorted(dict.fromkeys(kind for _, kind in cells), key=lambda kind: kind.startswith(("mlp", "ffn")))
    layers = sorted({layer for layer, _ in cells})
    return Grid(cells, tuple(layers), tuple(kinds), *scale)


def heat(grid: Grid, width: int, top: int = 26) -> tuple[int, list[Markup]]:
    """Height and shapes of a map from `top` on: layers across, kinds down, figures in the cells where they fit."""
    left, row = 176, 22
    step = min((width - left - 8) / max(len(grid.layers), 1), 116.0)
    columns = {layer: round(left + index * step, 1) for index, layer in enumerate(grid.layers)}
    shapes = [words(left - 8, top - 8, "layer", "tick", "end")]
    every = max(1, math.ceil(18 / step))
    for index, (layer, x) in enumerate(columns.items()):
        if index % every == 0:
            shapes.append(words(round(x + step / 2, 1), top - 8, str(layer), "tick", "middle"))
    for index, kind in enumerate(grid.kinds):
        y = top + index * row
        shapes.append(words(left - 8, y + 15, shorten(kind, left - 12), "label", "end"))
        for layer, x in columns.items():
            error = grid.cells.get((layer, kind))
            if error is not None:
                shapes += _cell(grid, error, (x, y, step, row), f"layer {layer}, {kind}: {percent(error)} %")
    bottom = top + row * len(grid.kinds)
    return bottom + 44, [*shapes, *_key(grid, left, bottom + 18)]


def _cell(grid: Grid, error: float, box: Box, hint: str) -> list[Markup]:
    x, y, step, row = box
    step_of = grid.level(error)
    shapes = [rect(x + 0.5, y + 0.5, round(step - 1, 1), row - 1, f"q{step_of}", hint)]
    if step >= 40:
        shapes.append(words(round(x + step / 2, 1), y + 15, percent(error), f"cell on{step_of}", "middle"))
    return shapes


def _key(grid: Grid, left: float, y: float) -> list[Markup]:
    """The colour scale with its ends."""
    low, high = f"\u2264 {percent(grid.low)} %", f"{percent(grid.high)} %"
    start = left + 7 * len(low) + 4
    shapes = [words(left, y + 10, low, "tick")]
    shapes += [rect(start + 22 * index, y, 22, 11, f"q{index}") for index in range(LEVELS)]
    return [*shapes, words(start + 22 * LEVELS + 6, y + 10, f"{high} (log scale)", "tick")]


def small(grid: Grid) -> Markup:
    """A map as a picture without words, four by three pixels a cell; one path a colour keeps it small."""
    rows, columns = ({one: i for i, one in enumerate(names)} for names in (grid.kinds, grid.layers))
    paths: dict[int, list[str]] = {}
    for (layer, kind), error in grid.cells.items():
        paths.setdefault(grid.level(error), []).append(f"M{4 * columns[layer]} {3 * rows[kind]}h4v3h-4z")
    shapes = [tag("path", d="".join(parts), class_=f"q{step}") for step, parts in sorted(paths.items())]
    wide, high = 4 * max(len(columns), 1), 3 * max(len(rows), 1)
    worst = max(grid.cells, key=grid.cells.__getitem__, default=None)
    title = "no layers" if worst is None else f"most at layer {worst[0]}, {worst[1]}: {percent(grid.cells[worst])} %"
    return tag("svg", tag("title", title), *shapes, viewBox=f"0 0 {wide} {high}", role="img", class_="small",
               preserveAspectRatio="none")  # fmt: skip
