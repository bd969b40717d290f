"""Rows that differ in their seed alone are one setting: mean and range over the seeds.

Also the few questions that tables and plots ask of all settings: which axes vary, which groups were measured, which
settings no other beats.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any

from quantkit.report import pareto
from quantkit.report.figures import plain
from quantkit.report.sweep.metrics import Metric
from quantkit.report.sweep.rows import ALL, Estimate, Figures, SweepRow

SEED = "seed"


@dataclass(frozen=True)
class Setting:
    """One point of the plots: `row` is the only variant, or the mean of `members`, which differ in their seed."""

    row: SweepRow
    members: tuple[SweepRow, ...]

    @property
    def seeds(self) -> int:
        return len(self.members)


def settings_of(rows: Sequence[SweepRow]) -> list[Setting]:
    """The settings in the order of their first row. What is not done stands alone."""
    groups: dict[object, list[SweepRow]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(_key(row) if row.status == "done" else index, []).append(row)
    names = _names(list(groups.values()))
    return [
        Setting(members[0] if len(members) == 1 else _mean(members, name), tuple(members))
        for members, name in zip(groups.values(), names, strict=True)
    ]


def _key(row: SweepRow) -> tuple[object, ...]:
    axes = sorted((name, repr(value)) for name, value in row.axes.items() if name != SEED)
    return row.method, row.engine, row.positions, *axes


def _names(groups: list[list[SweepRow]]) -> list[str]:
    """The members' name without its seed; where the seed is no part of it, the axes in words. No name twice."""
    rows = [row for group in groups for row in group]
    taken = {row.name for row in rows}
    varying = [axis for axis in varying_axes(rows) if axis != SEED]
    names = []
    for group in groups:
        name = group[0].name
        if len(group) > 1:
            bare = {_without_seed(row) for row in group} - {""}
            said = ", ".join([group[0].method, *(f"{axis} {plain(group[0].axes.get(axis))}" for axis in varying)])
            name = bare.pop() if len(bare) == 1 else said
            while name in taken:
                name += " (mean)"
            taken.add(name)
        names.append(name)
    return names


def _without_seed(row: SweepRow) -> str:
    seed = re.escape(str(row.axes.get(SEED)))
    return re.sub(rf"[-_ ,.]*(?<![A-Za-z])(?:seed|s)[-_= ]?{seed}(?!\d)", "", row.name)


def _mean(members: list[SweepRow], name: str) -> SweepRow:
    first = members[0]
    phases = dict.fromkeys(phase for row in members for phase in row.seconds)
    groups = dict.fromkeys(group for row in members for group in row.figures)
    return replace(
        first,
        name=name,
        axes={axis: value for axis, value in first.axes.items() if axis != SEED},
        bytes=_whole([row.bytes for row in members]),
        bits_per_weight=_average([row.bits_per_weight for row in members]),
        bits_per_quantized_weight=_average([row.bits_per_quantized_weight for row in members]),
        seconds={phase: fmean(row.seconds[phase] for row in members if phase in row.seconds) for phase in phases},
        peak_bytes=max((row.peak_bytes for row in members if row.peak_bytes is not None), default=None),
        figures={group: _mean_figures([row.figures.get(group) for row in members]) for group in groups},
        layers=_mean_map([row.layers for row in members]),
        outputs=_mean_map([row.outputs for row in members]),
        verdict="fail" if any(row.verdict == "fail" for row in members) else first.verdict,
        fingerprint=None,
        report=None,
    )


def _mean_figures(found: Sequence[Figures | None]) -> Figures:
    present = [one for one in found if one is not None]
    values: dict[str, Any] = {"items": present[0].items}
    for one in fields(Figures)[1:]:
        entries = [entry for figures in present if (entry := getattr(figures, one.name)) is not None]
        if entries and isinstance(entries[0], Estimate):
            numbers = [entry.value for entry in entries]
            values[one.name] = Estimate(fmean(numbers), min(numbers), max(numbers))
        else:
            values[one.name] = _average(entries)
    return Figures(**values)


def _mean_map(maps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in maps for name in one)
    return {name: fmean(one[name] for one in maps if name in one) for name in names}


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _whole(values: Sequence[int | None]) -> int | None:
    mean = _average(values)
    return None if mean is None else round(mean)


def varying_axes(rows: Sequence[SweepRow]) -> list[str]:
    """Axes that have more than one value among the rows that have them, in the order they turn up."""
    names = dict.fromkeys(name for row in rows for name in row.axes)
    return [name for name in names if len({repr(row.axes[name]) for row in rows if name in row.axes}) > 1]


def constant_axes(rows: Sequence[SweepRow]) -> dict[str, Any]:
    """Axes that are the same in all rows that have them, with their value."""
    varying = set(varying_axes(rows))
    return {name: value for row in rows for name, value in row.axes.items() if name not in varying}


def groups_of(rows: Sequence[SweepRow]) -> list[str]:
    """Names of the groups of items with figures: all of them first, then the modalities."""
    found = dict.fromkeys(group for row in rows for group in row.figures)
    return sorted(found, key=lambda group: group != ALL)


def methods_of(rows: Sequence[SweepRow]) -> list[str]:
    """The methods in the order they turn up."""
    return list(dict.fromkeys(row.method for row in rows))


def front(settings: Sequence[Setting], metric: Metric, group: str = ALL) -> set[int]:
    """Indices of the settings that no other beats in size and the metric."""
    known = [index for index, setting in enumerate(settings) if point(setting.row, metric, group) is not None]
    costs = []
    for index in known:
        size, estimate = point(settings[index].row, metric, group) or (0, Estimate(0.0, 0.0, 0.0))
        costs.append((float(size), estimate.value if metric.less else -estimate.value))
    return {known[index] for index in pareto.front(costs)}


def point(row: SweepRow, metric: Metric, group: str = ALL) -> tuple[int, Estimate] | None:
    """Size and figure; None without both (a server's model has no size that is known here)."""
    estimate = metric.of(row, group)
    return None if estimate is None or not row.bytes else (row.bytes, estimate)
