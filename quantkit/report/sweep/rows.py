"""One row of a sweep: what was asked for, what came of it, and where its report lies.

    row_of(folder)      from a variant's folder, with its quantkit.json and report.json
    unfinished(...)     a cell that failed, or that was not run

A row is plain data without anything heavy behind it, so that rows of any number of machines go into one table.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quantkit.errors import QuantkitError
from quantkit.report import figures
from quantkit.report.compare import conditions

if TYPE_CHECKING:
    from quantkit.verify.report import EngineResult, Group, Interval, Report, TokenSummary

Status = Literal["done", "failed", "not run"]
STATUSES: tuple[Status, ...] = ("done", "failed", "not run")
ALL = "all"
PROVENANCE = "quantkit.json"
VISION = "mmproj"


@dataclass(frozen=True)
class Estimate:
    """A figure between two ends: a 95 % interval over items, or of several seeds the range."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Figures:
    """What was lost on some of the items. Shares are of one, KL divergences nats a token; None: not measured.

    `kl`, `kl_p99` and `top1` are taken at the row's `positions`; `accuracy` is candidate - reference on the same items.
    """

    items: int = 0
    kl: Estimate | None = None
    kl_p99: Estimate | None = None
    kl_text: Estimate | None = None  # over all text tokens
    top1: Estimate | None = None
    reference_accuracy: float | None = None
    candidate_accuracy: float | None = None
    accuracy: Estimate | None = None
    same: Estimate | None = None  # greedy answers that stay the same


@dataclass(frozen=True)
class SweepRow:
    """One variant. `axes` are the options that made it, by name; `figures` those of `all` items and each modality."""

    name: str
    method: str
    status: Status
    axes: Mapping[str, Any] = field(default_factory=dict)
    why: str | None = None  # of what is not done
    bytes: int | None = None
    bits_per_weight: float | None = None
    bits_per_quantized_weight: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)  # by phase
    peak_bytes: int | None = None
    figures: Mapping[str, Figures] = field(default_factory=dict)
    positions: str = "answer"  # of the headline figures: answer tokens, or all text tokens
    noise: float | None = None  # mean KL of the reference against itself
    layers: Mapping[str, float] = field(default_factory=dict)  # linear: share of its output's energy that was lost
    outputs: Mapping[str, float] = field(default_factory=dict)  # linear: relative error of its output, as measured
    engine: str | None = None
    verdict: str | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)  # what two rows must share to be comparable
    fingerprint: str | None = None
    report: str | None = None  # the page of its report, from the sweep's folder

    def overall(self) -> Figures:
        """The figures of all items; empty ones where nothing was measured."""
        return self.figures.get(ALL, Figures())

    @property
    def total_seconds(self) -> float | None:
        """Of all phases together."""
        return sum(self.seconds.values()) if self.seconds else None


def unfinished(
    name: str,
    method: str,
    why: str,
    *,
    status: Status = "failed",
    axes: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float] | None = None,
    peak_bytes: int | None = None,
) -> SweepRow:
    """The row of a cell that has no figures: it failed, or was not run; `why` is one line."""
    return SweepRow(
        name, method, status, dict(axes or {}), why, seconds=dict(seconds or {}), peak_bytes=peak_bytes
    )  # fmt: skip


def row_of(
    folder: str | Path,
    *,
    root: str | Path | None = None,
    name: str | None = None,
    axes: Mapping[str, Any] | None = None,
    report: str | Path | None = None,
    seconds: Mapping[str, float] | None = None,
    peak_bytes: int | None = None,
) -> SweepRow:
    """The row of a variant that was quantized and verified.

    folder: holds quantkit.json, and report.json unless `report` says where that is. root: the sweep's folder, which
    the report's place is told from (default: the folder's own). name: default, the folder's. axes: default, all
    options that quantkit.json records. seconds, peak_bytes: what the run that made it saw; files do not tell.

    A variant that no engine could run is a failed row with its size. Raises QuantkitError that names the file.
    """
    from quantkit.verify.report import Report

    place = Path(folder)
    made = _provenance(place / PROVENANCE)
    found = Path(report) if report is not None else place / "report.json"
    found = found / "report.json" if found.is_dir() else found
    read = Report.load(found)
    ran = figures.ran(read)
    engine = ran[0] if ran else None
    where = "answer" if engine is None else figures.positions(engine)
    why = _why_without_figures(read) if engine is None else None
    floor = figures.floor_of(read, where)
    nbytes = _gguf_bytes(place, made, read) or read.candidate.bytes
    return SweepRow(
        name=name or place.absolute().name,
        method=_method(made),
        status="done" if why is None else "failed",
        axes=dict(axes) if axes is not None else _options(made, read),
        why=why,
        bytes=nbytes,
        bits_per_weight=8 * nbytes / read.candidate.parameters,
        bits_per_quantized_weight=read.candidate.bits_per_quantized_weight,
        seconds=dict(seconds or {}) | {"verify": round(sum(read.seconds.values()), 3)},
        peak_bytes=peak_bytes,
        figures={} if engine is None else _figures(engine, where),
        positions=where,
        noise=None if floor is None else floor.kl_mean,
        layers=_layers(made, read),
        outputs={} if engine is None else {e.name: e.error for e in engine.layers if e.kind == "linear"},
        engine=None if engine is None else engine.name,
        verdict=read.verdict.status,
        measured={"reference": read.reference.name, "data": read.data and read.data.source, **conditions(read)},
        fingerprint=read.candidate.fingerprint,
        report=_relative(found, Path(root) if root is not None else place),
    )


def _provenance(path: Path) -> dict[str, Any]:
    """quantkit.json with the parts that a row is made of."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QuantkitError(f"{path}: cannot be read ({error.strerror}); quantize the variant first") from error
    except ValueError as error:
        raise QuantkitError(f"{path}: no valid JSON ({error}); quantize the variant again") from error
    if not isinstance(content, dict) or not isinstance(content.get("recipe"), dict):
        raise QuantkitError(f"{path}: no file of quantkit's (it has no recipe); quantize the variant again")
    return content


def _method(made: dict[str, Any]) -> str:
    """The command that made it: awq, gptq, rtn by their own name, bnb and gguf by their layout."""
    layout = str(made.get("format"))
    return str(made["recipe"].get("method") or {"bitsandbytes": "bnb"}.get(layout, layout))


def _options(made: dict[str, Any], report: Report) -> dict[str, Any]:
    """All options on record; a GGUF file's own type; nothing of calibration where no data was looked at."""
    from quantkit.recipe import CalibrationOptions, ModelOptions

    options = {name: tuple(v) if isinstance(v, list) else v for name, v in made["recipe"].items() if name != "method"}
    kind = _gguf_type(made, report)
    if kind is not None:
        options["type"] = kind
    calibration = made.get("calibration")
    if isinstance(calibration, dict) and calibration.get("fingerprint") is None:
        unused = {one.name for one in fields(CalibrationOptions)} - {one.name for one in fields(ModelOptions)}
        options = {name: value for name, value in options.items() if name not in unused}
    return options


def _gguf_files(made: dict[str, Any]) -> dict[str, str]:
    """The type of each text file of a GGUF folder; empty for other layouts."""
    files = made.get("files")
    if made.get("format") != "gguf" or not isinstance(files, dict):
        return {}
    return {
        name: str(about.get("type"))
        for name, about in files.items()
        if isinstance(about, dict) and not name.startswith(VISION)
    }


def _gguf_type(made: dict[str, Any], report: Report) -> str | None:
    """The type of the text file that was measured; None for other layouts. QuantkitError where it cannot be told."""
    texts = _gguf_files(made)
    if not texts:
        return None
    kinds = {texts[report.candidate.name]} if report.candidate.name in texts else set(texts.values())
    if len(kinds) > 1:
        raise QuantkitError(
            f"{report.candidate.name}: holds {', '.join(sorted(kinds))}; verify one of its files, not the folder"
        )
    return kinds.pop()


def _gguf_bytes(folder: Path, made: dict[str, Any], report: Report) -> int | None:
    """What a user loads: the text file that was measured and one vision file; None where they are not there."""
    texts, kind = _gguf_files(made), _gguf_type(made, report)
    if kind is None:
        return None
    vision = [name for name in made["files"] if name.startswith(VISION)]
    paths = [folder / name for name in [*(name for name, one in texts.items() if one == kind), *vision[:1]]]
    return sum(path.stat().st_size for path in paths) if all(path.is_file() for path in paths) else None


def _layers(made: dict[str, Any], report: Report) -> dict[str, float]:
    """What each linear lost when it was rounded; empty where that was done without data."""
    kind = _gguf_type(made, report)
    rows = made.get("layers")
    found = {}
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, dict) or (kind is not None and row.get("file") != kind):
            continue
        error = row.get("error")
        if isinstance(error, (int, float)) and math.isfinite(error):
            found[str(row.get("name")).removesuffix(".weight")] = float(error)
    return found


def _why_without_figures(report: Report) -> str | None:
    """Why no engine ran; None where none was asked for and nothing speaks against the files."""
    for engine in report.engines:
        return f"{engine.name}: {engine.why or 'not run'}"
    return report.verdict.headline if report.verdict.status == "fail" else None


def _figures(engine: EngineResult, where: str) -> dict[str, Figures]:
    return {
        ALL if group.by == "all" else group.value: _of_group(group, where)
        for group in engine.groups
        if group.by in ("all", "modality")
    }


def _of_group(group: Group, where: str) -> Figures:
    values: TokenSummary | None = figures.summary(group, where)
    return Figures(
        items=group.items,
        kl=_estimate(values.kl_mean if values else None),
        kl_p99=_estimate(values.kl_p99 if values else None),
        # an engine that scores answers alone has no other text
        kl_text=_estimate(group.text.kl_mean if group.text and (group.prompt or not group.answer) else None),
        top1=_estimate(values.top1 if values else None),
        reference_accuracy=group.accuracy.reference if group.accuracy else None,
        candidate_accuracy=group.accuracy.candidate if group.accuracy else None,
        accuracy=_estimate(group.accuracy.difference if group.accuracy else None),
        same=_estimate(group.generation.same if group.generation else None),
    )


def _estimate(interval: Interval | None) -> Estimate | None:
    return None if interval is None else Estimate(interval.value, interval.low, interval.high)


def _relative(report: Path, root: Path) -> str | None:
    """The page beside a report.json (else the file itself), as a path within the sweep's folder; None outside of it."""
    page = report.with_suffix(".html")
    path = os.path.relpath(page if page.is_file() else report, root)
    return None if path.startswith("..") or os.path.isabs(path) else Path(path).as_posix()
