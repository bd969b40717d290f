"""A sweep in this process: one cell after the other, statistics first where several cells share them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from quantkit.errors import QuantkitError
from quantkit.sweep.plan import Cell, Sweep
from quantkit.sweep.store import Done, Store
from quantkit.sweep.work import Planned, Progress, failure, gather_statistics, run_cell

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
    """Do ``cells``; ``told`` hears of each as it is finished. An interrupted run keeps the cells it has finished.

    A pass that fails is a fault of the cells that need it; the others go on."""
    made = {cell.name for cell in cells if store.made(sweep, cell) is not None}
    shared = shared_statistics([cell for cell in cells if cell.name not in made], planned)
    gathered: dict[str, str | None] = {}
    for cell in cells:
        key = planned[cell.name].statistics
        if key is None or key not in shared or cell.name in made:
            told(cell, run_cell(sweep, cell, store, None, cache, progress))
            continue
        if key not in gathered:
            gathered[key] = _gathered(key, shared[key], store, cache, progress)
        why = gathered[key]
        if why is None:
            told(cell, run_cell(sweep, cell, store, store.statistics(key), cache, progress))
        else:
            done = Done(*store.keys(sweep, cell), "failed", why)
            store.write(cell, done)
            told(cell, done)


def _gathered(key: str, cell: Cell, store: Store, cache: Path | None, progress: Progress) -> str | None:
    """Make a pass; why it failed, None where it did not."""
    try:
        store.write_pass(key, gather_statistics(cell, store.statistics(key), cache, progress))
    except (QuantkitError, OSError, RuntimeError, MemoryError) as error:
        return failure(error)
    return None
