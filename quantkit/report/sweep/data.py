"""What the page's script knows of a sweep, as plain values for JSON: the same entries as the table's rows, in order."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from quantkit.report.figures import clean, plain
from quantkit.report.sweep.chart import MARKS, SERIES, reference_of, unit_of
from quantkit.report.sweep.heat import place_of, scale_of
from quantkit.report.sweep.metrics import Metric, present
from quantkit.report.sweep.plots import MEASURES
from quantkit.report.sweep.rows import STATUSES, SweepRow
from quantkit.report.sweep.settings import SEED, Setting, groups_of, methods_of, settings_of, varying_axes

VALUES = 12  # of one axis, in a filter


@dataclass(frozen=True)
class Entry:
    """A line of the table: a variant, or the mean of a setting's seeds, whose members follow it."""

    row: SweepRow
    seeds: int = 1  # more: a mean
    member: bool = False  # one of several seeds


@dataclass(frozen=True)
class Sweep:
    """The rows with what is asked of all of them, once."""

    rows: tuple[SweepRow, ...]
    settings: tuple[Setting, ...]
    entries: tuple[Entry, ...]
    axes: tuple[str, ...]
    metrics: tuple[Metric, ...]
    groups: tuple[str, ...]
    methods: tuple[str, ...]

    @staticmethod
    def of(rows: Sequence[SweepRow]) -> Sweep:
        """Everything that the page asks."""
        settings = settings_of(rows)
        entries: list[Entry] = []
        for setting in settings:
            entries.append(Entry(setting.row, setting.seeds))
            if setting.seeds > 1:
                entries += [Entry(row, member=True) for row in setting.members]
        return Sweep(
            tuple(rows), tuple(settings), tuple(entries), tuple(varying_axes(rows)), tuple(present(rows)),
            tuple(groups_of(rows)), tuple(methods_of([setting.row for setting in settings])),
        )  # fmt: skip

    @property
    def done(self) -> list[Setting]:
        """The settings that have come to an end."""
        return [setting for setting in self.settings if setting.row.status == "done"]


def axis_text(row: SweepRow, axis: str) -> str:
    """An axis's value as text; "–" where the variant has no such option."""
    return clean(plain(row.axes[axis])) if axis in row.axes else "–"


def link(path: str | None) -> str | None:
    """A report's place as a link that stays within the sweep's folder; None for any other."""
    if path is None or path.startswith("/") or "\\" in path or ".." in path.split("/"):
        return None
    return "./" + quote(clean(path), safe="/")


def page_data(sweep: Sweep, columns: Sequence[str]) -> dict[str, Any]:
    """The values; `columns` are the keys of the table's columns."""
    unit, scale = unit_of(setting.row for setting in sweep.settings)
    noise = max((row.noise for row in sweep.rows if row.noise is not None), default=None)
    return {
        "columns": list(columns),
        "metrics": [
            {"key": m.key, "heading": m.heading, "axis": m.axis, "less": m.less, "factor": m.factor, "log": m.log}
            for m in sweep.metrics
        ],
        "groups": list(map(clean, sweep.groups)),
        "methods": list(map(clean, sweep.methods)),
        "marks": MARKS[:SERIES],
        "references": {clean(group): reference_of(sweep.settings, group) for group in sweep.groups},
        "unit": {"name": unit, "bytes": scale},
        "noise": noise if noise is not None and math.isfinite(noise) else None,
        "facets": _facets(sweep),
        "entries": [_entry(entry, sweep) for entry in sweep.entries],
        "maps": [found for key, name in MEASURES.items() if (found := _maps(sweep, key, name)) is not None],
    }


def _entry(entry: Entry, sweep: Sweep) -> dict[str, Any]:
    row = entry.row
    figures = {
        clean(group): {
            metric.key: [estimate.value, estimate.low, estimate.high]
            for metric in sweep.metrics
            if (estimate := metric.of(row, group)) is not None
        }
        for group in row.figures
    }
    return {
        "name": clean(row.name), "method": clean(row.method), "status": row.status, "seeds": entry.seeds,
        "member": entry.member, "axes": {clean(axis): axis_text(row, axis) for axis in sweep.axes},
        "bytes": row.bytes, "bits": row.bits_per_weight, "quantized_bits": row.bits_per_quantized_weight,
        "seconds": row.total_seconds, "peak": row.peak_bytes, "figures": figures,
    }  # fmt: skip


def _facets(sweep: Sweep) -> list[dict[str, Any]]:
    """What can be filtered by: method, status and every axis with a few values, where there is a choice."""
    found: list[tuple[str, str, list[str]]] = [
        ("method", "method", list(sweep.methods)),
        ("status", "status", [status for status in STATUSES if any(row.status == status for row in sweep.rows)]),
    ]
    means = any(entry.member for entry in sweep.entries)
    for axis in (one for one in sweep.axes if one != SEED or not means):  # a mean has no seed of its own
        values = dict.fromkeys(axis_text(row, axis) for row in sweep.rows if axis in row.axes)
        found.append((f"axis:{clean(axis)}", clean(axis), sorted(values, key=_in_order)))
    return [
        {"key": key, "name": name, "values": list(map(clean, values))}
        for key, name, values in found
        if 1 < len(values) <= VALUES
    ]


def _in_order(value: str) -> tuple[bool, float, str]:
    """Numbers by their size, then words."""
    number = float(value) if re.fullmatch(r"-?\d{1,15}(\.\d+)?", value) else None
    return number is None, number or 0.0, value


def _maps(sweep: Sweep, key: str, name: str) -> dict[str, Any] | None:
    """One measure's errors of every setting: places once, then a list of figures a setting (null: none there)."""
    maps: list[Mapping[str, float]] = [getattr(setting.row, key) for setting in sweep.done]
    places = dict.fromkeys(place for one in maps for linear in one if (place := place_of(linear)) is not None)
    if not places:
        return None
    low, high = scale_of(maps)
    of = []
    for setting, one in zip(sweep.done, maps, strict=True):
        cells = {place: value for linear, value in one.items() if (place := place_of(linear)) is not None}
        values = [_three(cells.get(place)) for place in places]
        of.append({"name": clean(setting.row.name), "values": values if cells else []})
    return {"key": key, "name": name, "low": low, "high": high, "places": [list(place) for place in places], "of": of}


def _three(value: float | None) -> float | None:
    """Three digits, as many as are shown."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.3g}")
