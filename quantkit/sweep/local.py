"""A sweep in this process: one cell after the other, statistics first where several cells share them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from quantkit.sweep.plan import Cell, Sweep
from quantkit.sweep.store import Done, Store
from quantkit.sweep.work import Planned, Progress, gather_statistics, run_cell

Told = Callable[[Cell, Done], None]


def shared_statistics(cells: Sequence[Cell], planned: Mapping[str, Planned]) -> dict[str, Cell]:
    """Passes that two cells or more of ``cells`` need: key -> a cell whose options say what is gathered."""
    counts = Counter(planned[cell.name].statistics for cell in cells)
    found: dict[str, Cell] = {}
    for cell in cells:
        key = planned[cell.name].statistics
        if key is not None and counts[key] > 1:
            found.setdefault(key, cell)
    return found


def run_local(
    sweep: Sweep,
    cells: Sequence[Cell],
    planned: Mapping[str, Planned],
    store: Store,
    cache: Path | None,
    progress: Progress,
    told: Told,
) -> None:
    """Do ``cells``; ``told`` hears of each as it is finished. An interrupted run keeps the cells it has finished."""
    shared = shared_statistics(cells, planned)
    gathered: set[str] = set()
    for cell in cells:
        key = planned[cell.name].statistics
        folder = store.statistics(key) if key in shared else None
        if key is not None and folder is not None and key not in gathered:
            store.write_pass(key, gather_statistics(shared[key], folder, cache, progress))
            gathered.add(key)
        told(cell, run_cell(sweep, cell, store, folder, cache, progress))
