"""The pieces of work that a sweep is made of: a pass of statistics for several cells, and one cell.

Both take plain values, so that another process can do them, and leave their result in the sweep's folder.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.bnb import quantize_bnb
from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.gather import Statistics, gather
from quantkit.gguf.plan import pass_dtype, plan_gguf
from quantkit.gguf.quantize import quantize_gguf
from quantkit.methods import METHODS
from quantkit.plan import make_plan, plain_dtype, source_map
from quantkit.quantize import quantize
from quantkit.recipe import GgufOptions, QuantizeOptions
from quantkit.report import write_report
from quantkit.sweep.plan import Cell, Sweep
from quantkit.sweep.store import Done, Store, statistics_key
from quantkit.verify.asked import measured_files, verify_as_asked
from quantkit.verify.gates import from_section

if TYPE_CHECKING:
    from quantkit.verify.report import Report

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Planned:
    """What a cell will be: bytes of its weights, of memory at the peak, and the statistics that it shares."""

    bytes: int
    memory: int | None
    statistics: str | None


def plan_cell(checkpoint: Checkpoint, cell: Cell) -> Planned:
    """Check a cell against the checkpoint, from headers alone. Raises QuantkitError naming the cell."""
    options = cell.options
    try:
        shared = statistics_key(cell, _dtype(checkpoint, options))
        if isinstance(options, GgufOptions):
            return Planned(plan_gguf(checkpoint, options).nbytes, None, shared)
        if isinstance(options, QuantizeOptions):
            made = make_plan(checkpoint, options)
            return Planned(made.bytes_after, made.peak_memory, shared)
        from quantkit.bnb import plan_bnb

        made = plan_bnb(checkpoint, options)
        return Planned(made.bytes_after, made.peak_memory, shared)
    except QuantkitError as error:
        raise QuantkitError(f"{cell.name}: {error}") from error


def _dtype(checkpoint: Checkpoint, options: Any) -> str | None:
    """Of the calibration pass; None where a cell looks at no data."""
    if isinstance(options, GgufOptions):
        needs = options.looks_at_data and plan_gguf(checkpoint, options).quantizes
        return pass_dtype(checkpoint, options) if needs else None
    if isinstance(options, QuantizeOptions):
        return plain_dtype(checkpoint, options) if METHODS[options.method].needs_data else None
    return None


def gather_statistics(cell: Cell, folder: Path, cache: Path | None, progress: Progress) -> float:
    """One pass for all cells that share ``cell``'s statistics, into ``folder``; gives the seconds it took."""
    started = time.perf_counter()
    options = replace(cell.options, save_stats=folder, overwrite=True, cache=_cache(cell, cache))
    checkpoint = open_checkpoint(options.model, options.revision, options.token)
    dtype = _dtype(checkpoint, options)
    assert dtype is not None
    data = gather(checkpoint, options, dtype, progress)
    for _block in Statistics(checkpoint, source_map(checkpoint), data, options, dtype, progress):
        pass
    return time.perf_counter() - started


def run_cell(
    sweep: Sweep, cell: Cell, store: Store, statistics: Path | None, cache: Path | None, progress: Progress
) -> Done:
    """Quantize, verify, report, record; a variant that is there already, only measured otherwise, is not made again.

    An error that a user can mend is the cell's own, and goes into its record.
    """
    keys = store.keys(sweep, cell)
    before = store.made(sweep, cell)
    store.begin(cell, before)
    seconds = dict(before.seconds) if before is not None else {}
    clear = _clear_peak()
    try:
        if before is None:
            seconds |= _quantize(_placed(cell, store, statistics, cache), progress)
        started = time.perf_counter()
        verdict = _verify(sweep, cell, store.variant(cell), cache, progress)
        seconds["verify"] = time.perf_counter() - started
        why = "verdict: fail" if verdict == "fail" else None
        done = Done(*keys, "done", why, _rounded(seconds), _highest(_peak(clear), before))
    except (QuantkitError, OSError, RuntimeError, MemoryError) as error:  # RuntimeError: torch's own, out of memory too
        done = Done(*keys, "failed", failure(error), _rounded(seconds), _peak(clear))
    store.write(cell, done)
    return done


def _placed(cell: Cell, store: Store, statistics: Path | None, cache: Path | None) -> Any:
    """A cell's options with the places that are the sweep's."""
    options = replace(cell.options, out=store.variant(cell), overwrite=True)
    if hasattr(options, "cache"):
        options = replace(options, cache=_cache(cell, cache))
    return options if statistics is None else replace(options, stats=statistics)


def failure(error: Exception) -> str:
    """Why a cell failed, in one line; of what is no QuantkitError with its kind. Ctrl-C behind it is raised again."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):  # torch may stumble while it unwinds
            raise cause
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())[:300]
    if isinstance(error, QuantkitError):
        return text
    logger.debug("a cell failed", exc_info=error)
    return f"{type(error).__name__}: {text}"


def _quantize(options: Any, progress: Progress) -> dict[str, float]:
    if isinstance(options, GgufOptions):
        return quantize_gguf(options, progress).seconds
    if isinstance(options, QuantizeOptions):
        return quantize(options, progress).seconds
    return quantize_bnb(options, progress).seconds


def _verify(sweep: Sweep, cell: Cell, folder: Path, cache: Path | None, progress: Progress) -> str:
    status = "measured"
    original = open_checkpoint(sweep.model, cell.options.revision, cell.options.token)
    for candidate, target in measured_files(folder):
        report: Report = verify_as_asked(
            original, candidate, sweep.verify, inherited=from_section(sweep.gates), cache=cache, progress=progress
        )
        write_report(report, target)
        status = report.verdict.status
    return status


def _cache(cell: Cell, cache: Path | None) -> Path | None:
    return None if cell.options.no_cache else (cell.options.cache or cache)


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {phase: round(count, 3) for phase, count in seconds.items()}


def _clear_peak() -> bool:
    """Start the process's peak of memory anew, where Linux lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _highest(peak: int | None, before: Done | None) -> int | None:
    found = [one for one in (peak, before.peak_bytes if before is not None else None) if one is not None]
    return max(found, default=None)


def _peak(cleared: bool) -> int | None:
    """Bytes, since `_clear_peak`."""
    if not cleared:
        return None
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
