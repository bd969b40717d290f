"""The sweep as flat records, a row a variant: `sweep.csv` and `sweep.parquet`.

Columns: name, method, status, why, verdict, engine; each axis under its option's name; sizes, seconds (in all and by
phase), peak memory; for all items and then each modality, with its name in front (`image_kl`), the figures with the
ends of their intervals (`kl`, `kl_low`, `kl_high`); the linear that lost most; whether the setting is on the Pareto
front of size and the first figure; fingerprint, report. Parquet also holds every linear's error, as two maps.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from quantkit.report.figures import clean
from quantkit.report.sweep.metrics import METRICS, present
from quantkit.report.sweep.rows import ALL, Estimate, Figures, SweepRow
from quantkit.report.sweep.settings import front, groups_of, settings_of

logger = logging.getLogger(__name__)
MAPS = ("layers", "outputs")


def records(rows: Sequence[SweepRow]) -> list[dict[str, Any]]:
    """One flat record a row, all with the same keys; None where there is nothing."""
    axes = list(dict.fromkeys(axis for row in rows for axis in row.axes))
    phases = list(dict.fromkeys(phase for row in rows for phase in row.seconds))
    groups, best = groups_of(rows), _on_front(rows)
    found = []
    for row in rows:
        entry: dict[str, Any] = {name: _text(getattr(row, name)) for name in ("name", "method", "status", "why")}
        entry |= {"verdict": row.verdict, "engine": row.engine}
        figures = _figures_of(row, groups)
        rest = _sizes(row, phases) | figures | _worst(row)
        rest |= {"pareto": best.get(row.name), "fingerprint": row.fingerprint, "report": _text(row.report)}
        # an option may be called as a column is
        named = {
            (f"option_{axis}" if axis in entry or axis in rest else clean(axis)): row.axes.get(axis) for axis in axes
        }
        found.append(entry | {name: _plain(value) for name, value in named.items()} | rest)
    return found


def _sizes(row: SweepRow, phases: list[str]) -> dict[str, Any]:
    sizes = {name: getattr(row, name) for name in ("bytes", "bits_per_weight", "bits_per_quantized_weight")}
    seconds = {f"seconds_{clean(phase)}": row.seconds.get(phase) for phase in phases}
    return sizes | {"seconds": row.total_seconds, **seconds, "peak_bytes": row.peak_bytes}


def _figures_of(row: SweepRow, groups: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"positions": row.positions if row.figures else None, "noise": row.noise}
    for group in groups:
        figures, front_of = row.figures.get(group, Figures()), "" if group == ALL else f"{clean(group)}_"
        for one in fields(Figures):
            value = getattr(figures, one.name)
            if one.name == "items":
                found[f"{front_of}items"] = value or None
            elif one.name in ("reference_accuracy", "candidate_accuracy"):
                found[front_of + one.name] = value
            else:
                ends = value if isinstance(value, Estimate) else None
                found[front_of + one.name] = ends and ends.value
                found[f"{front_of}{one.name}_low"] = ends and ends.low
                found[f"{front_of}{one.name}_high"] = ends and ends.high
    return found


def _worst(row: SweepRow) -> dict[str, Any]:
    """Of `layers`: mean and largest share of energy lost, and where."""
    errors = row.layers
    most = max(errors, key=errors.__getitem__, default=None)
    return {
        "layer_error_mean": sum(errors.values()) / len(errors) if errors else None,
        "layer_error_max": None if most is None else errors[most],
        "layer_error_max_at": most,
    }


def _on_front(rows: Sequence[SweepRow]) -> dict[str, bool]:
    """By the name of each row with figures, whether its setting is on the front of size and the first metric."""
    metrics = present(rows)
    if not metrics:
        return {}
    settings = settings_of(rows)
    best = front(settings, metrics[0])
    return {
        row.name: index in best
        for index, setting in enumerate(settings)
        for row in setting.members
        if metrics[0].of(row) is not None and row.bytes
    }


def _text(value: str | None) -> str | None:
    return None if value is None else clean(value)


def _plain(value: Any) -> Any:
    """An axis's value as a table holds it: lists as JSON."""
    if isinstance(value, (list, tuple, dict)):
        return clean(json.dumps(value, ensure_ascii=False))
    return clean(value) if isinstance(value, str) else value


def to_csv(rows: Sequence[SweepRow]) -> str:
    """The records as CSV: a heading, full precision, nothing where nothing is, true and false in small letters."""
    found = records(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(found[0])
    for record in found:
        writer.writerow([str(v).lower() if isinstance(v, bool) else v for v in record.values()])
    return out.getvalue()


def write_parquet(rows: Sequence[SweepRow], path: Path) -> bool:
    """Write the records as Parquet; without pyarrow, say so and return False."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        logger.warning("%s: not written, as pyarrow is missing; pip install 'quantkit[data]'", path.name)
        return False
    from quantkit.output import atomic_file

    found = records(rows)
    columns = {name: _column([record[name] for record in found], name, arrow) for name in found[0]}
    numbers = arrow.map_(arrow.string(), arrow.float64())
    for name in MAPS:
        columns[name] = arrow.array([list(getattr(row, name).items()) for row in rows], numbers)
    with atomic_file(path) as partial:
        parquet.write_table(arrow.table(columns), partial)
    return True


def _column(values: list[Any], name: str, arrow: Any) -> Any:
    """A typed column; text where the values are of several kinds. Empty ones get the kind that they would have."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        wanted = arrow.int64() if name.endswith("bytes") else arrow.float64() if _is_figure(name) else arrow.string()
        return arrow.nulls(len(values), wanted)
    if kinds <= {int, float} and len(kinds) == 2:
        return arrow.array([None if value is None else float(value) for value in values], arrow.float64())
    if len(kinds) > 1:
        return arrow.array([None if value is None else str(value) for value in values], arrow.string())
    return arrow.array(values)


def _is_figure(name: str) -> bool:
    keys = [metric.key for metric in METRICS]
    return name.endswith(("_low", "_high", "_accuracy", "_mean", "_max", "_weight", "seconds", "noise", *keys))
