"""Plots for papers: each as an SVG that stands alone and as a PNG of the same drawing, in `plots/`.

size-kl, size-accuracy     every setting; bars are 95 % intervals, or the range over the seeds
layers-NAME                what every linear of a setting lost, by layer; one colour scale for all of them
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from quantkit.report.figures import clean
from quantkit.report.markup import Markup, tag
from quantkit.report.svg import rect, shorten, words
from quantkit.report.sweep.chart import Room, legend, scatter
from quantkit.report.sweep.heat import grid_of, heat, scale_of
from quantkit.report.sweep.metrics import ACCURACY, KL, KL_TEXT, Metric
from quantkit.report.sweep.raster import to_png
from quantkit.report.sweep.rows import SweepRow
from quantkit.report.sweep.settings import Setting, methods_of, point, settings_of
from quantkit.report.sweep.style import style_sheet

logger = logging.getLogger(__name__)
WIDTH, HEIGHT = 640, 430
MARGIN = 12
MEASURES = {
    "layers": "share of each linear's output energy lost by rounding, calibration data",
    "outputs": "relative error of each linear's output, each model on its own inputs",
}


def write_plots(rows: Sequence[SweepRow], folder: Path) -> list[Path]:
    """Write all plots there is data for into `folder`; what could not be drawn is said in the log."""
    drawn = all_plots(rows)
    written = []
    for name, svg in drawn.items():
        written += [_write(folder / f"{name}.svg", svg.encode()), _write(folder / f"{name}.png", to_png(svg))]
    return written


def all_plots(rows: Sequence[SweepRow]) -> dict[str, str]:
    """{file name without its ending: SVG}."""
    settings = [setting for setting in settings_of(rows) if setting.row.status == "done"]
    found = {}
    for name, metrics in (("size-kl", (KL, KL_TEXT)), ("size-accuracy", (ACCURACY,))):
        metric = next((one for one in metrics if _drawable(settings, one)), None)
        if metric is None:
            logger.warning("plots/%s: not drawn, as no variant has both a size and that figure", name)
        else:
            found[name] = size_plot(settings, metric)
    return found | layer_plots(settings)


def _drawable(settings: Sequence[Setting], metric: Metric) -> bool:
    return any(point(setting.row, metric) is not None for setting in settings)


def size_plot(settings: Sequence[Setting], metric: Metric) -> str:
    """Size against one figure."""
    methods = methods_of([setting.row for setting in settings])
    shapes = scatter(settings, metric, Room(WIDTH, HEIGHT - 40, 58), methods)
    key = [*legend(methods, 52, HEIGHT - 26), words(52, HEIGHT - 8, _bars(settings), "tick")]
    title = f"Size against {metric.axis}; {len(settings)} settings"
    return standalone(WIDTH, HEIGHT, [*shapes, *key], title)


def _bars(settings: Sequence[Setting]) -> str:
    counts = {setting.seeds for setting in settings}
    bars = "95 % intervals over items" if counts <= {1} else "range over seeds" + (
        "" if min(counts) > 1 else "; of a single seed, 95 % intervals over items"
    )  # fmt: skip
    return f"bars: {bars}; dotted: Pareto front"


def layer_plots(settings: Sequence[Setting]) -> dict[str, str]:
    """A map a setting; of the error by rounding where there is one, else of the outputs' error."""
    scales = {name: scale_of(getattr(setting.row, name) for setting in settings) for name in MEASURES}
    found: dict[str, str] = {}
    for setting in settings:
        measure = next((name for name in MEASURES if getattr(setting.row, name)), None)
        grid = None if measure is None else grid_of(getattr(setting.row, measure), scales[measure])
        if measure is None or grid is None or not grid.cells:
            logger.info("plots/layers: %s has no errors by layer", setting.row.name)
            continue
        height, shapes = heat(grid, WIDTH, top=52)
        shapes.append(words(MARGIN, 18, shorten(clean(setting.row.name), WIDTH - 2 * MARGIN), "label"))
        shapes.append(words(MARGIN, height + 4, f"{MEASURES[measure]}, per cent", "tick"))
        svg = standalone(WIDTH, height + 14, shapes, f"{setting.row.name}: {MEASURES[measure]}")
        found[_file_name(setting.row.name, found)] = svg
    return found


def _file_name(name: str, taken: dict[str, str]) -> str:
    """A name that every file system takes, and that no other plot has."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "variant"
    wanted, count = f"layers-{plain}", 2
    while wanted.lower() in {one.lower() for one in taken}:
        wanted, count = f"layers-{plain}-{count}", count + 1
    return wanted


def standalone(width: int, height: int, shapes: Sequence[Markup], title: str) -> str:
    """A whole SVG file: white ground, styles inside, nothing from outside."""
    ground = rect(0, 0, width, height, "paper")
    style = tag("style", Markup(f"\n{style_sheet()}\n"))
    svg = tag(
        "svg", tag("title", clean(title)), style, ground, *shapes, xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}", width=width, height=height, role="img",
    )  # fmt: skip
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{svg}\n'


def _write(path: Path, content: bytes) -> Path:
    from quantkit.output import atomic_file

    with atomic_file(path) as partial:
        partial.write_bytes(content)
    return path
