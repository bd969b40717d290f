"""`quantkit sweep`: one file in, many variants, one table and one page out."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from quantkit.cli.shared import check_data, console, default_cache, errors, escape, megabytes, quiet_libraries
from quantkit.cli.verify import GATE_FAILED
from quantkit.errors import QuantkitError

if TYPE_CHECKING:
    from quantkit.checkpoint import Checkpoint
    from quantkit.report.sweep import SweepRow
    from quantkit.sweep.plan import Cell, Sweep
    from quantkit.sweep.store import Done, Store
    from quantkit.sweep.work import Planned


def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep in YAML: shared options, grids of variants.", metavar="SWEEP")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The sweep's folder. (default: the file's out, or ./NAME)")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="In place of the file's model.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, with sizes, memory and time; make nothing.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(help="Run on a Ray cluster: auto (this machine's), local (a new one here), or its address."),
    ] = None,
    cpus: Annotated[float, typer.Option(min=0.1, help="Cores that each task takes on a cluster.")] = 1,
    keep_statistics: Annotated[
        bool, typer.Option("--keep-statistics", help="Leave the calibration statistics in the folder.")
    ] = False,
) -> None:
    """Make and measure many variants: methods x bits x groups x solvers x mixes x seeds, from one file.

    Calibration passes are shared, finished variants are kept: run it again to go on after an interruption. Writes
    sweep.html, .csv, .parquet, .tex and plots. Exit code 3: a variant failed, or missed a gate.
    """
    from quantkit.sweep.plan import data_of, read_sweep

    found = read_sweep(file)
    if model is not None:
        found = _of_model(found, model)
    folder = (out or found.out or Path(file.stem)).expanduser()
    with console.status("loading torch and transformers"):
        quiet_libraries()
        from quantkit.checkpoint import open_checkpoint
        from quantkit.sweep.store import Store
        from quantkit.sweep.work import plan_cell
        from quantkit.verify.asked import check_asked
        from quantkit.verify.gates import from_section
    # a cluster's devices are not this machine's
    check_asked(found.verify if ray is None else replace(found.verify, device="cpu"), from_section(found.gates))
    first = found.cells[0].options
    checkpoint = open_checkpoint(found.model, first.revision, first.token, verify_checksums=not dry_run)
    try:
        for _calib, options in {repr(data_of(cell.options)): cell.options for cell in found.cells}.items():
            if hasattr(options, "calib"):
                check_data(options)
        planned = {cell.name: plan_cell(checkpoint, cell) for cell in found.cells}
    except QuantkitError as error:
        raise QuantkitError(f"{file}: {error}") from error
    store = Store(folder, checkpoint.fingerprint())
    todo = [cell for cell in found.cells if not store.finished(found, cell)]
    made = {cell.name for cell in todo if store.made(found, cell) is not None}
    if dry_run:
        _print_plan(found, planned, todo, made, checkpoint, folder)
        return
    store.prepare(sum(planned[cell.name].bytes for cell in todo if cell.name not in made))
    if len(todo) < len(found.cells):
        console.print(f"{len(found.cells) - len(todo)} of {len(found.cells)} variants are finished already")
    if made:
        console.print(f"{len(made)} of {len(found.cells)} variants are there already, and only measured again")
    with store.held():
        with _interruptible(folder), _bars(len(todo)) as (tell, told):
            if ray is None:
                from quantkit.sweep.local import run_local

                run_local(found, todo, planned, store, default_cache(), tell, told)
            else:
                from quantkit.sweep.cluster import run_on_ray

                run_on_ray(found, todo, planned, store, default_cache(), told, address=ray, cpus=cpus)
        if not keep_statistics:
            store.drop_statistics()
        strange = store.others(found)
        if strange:
            console.print(
                f"note: {folder / 'variants'} also holds {', '.join(strange)}, of which {file} says nothing any more",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
        _finish(found, [_row(found, cell, store) for cell in found.cells], folder)


def _of_model(found: Sweep, model: str) -> Sweep:
    cells = tuple(replace(cell, options=replace(cell.options, model=model)) for cell in found.cells)
    return replace(found, model=model, cells=cells)


@contextmanager
def _interruptible(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        errors.print(f"interrupted; {folder} keeps what is finished: run it again to go on", markup=False)
        sys.exit(128 + signal.SIGINT)


@contextmanager
def _bars(total: int) -> Iterator[tuple[Any, Any]]:
    """A bar for the cells, and one for the phase of the cell at work."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=errors, transient=True) as bars:
        cells, phase = bars.add_task("variants", total=total), bars.add_task("", total=None)

        def tell(what: str, done: int, count: int) -> None:
            bars.update(phase, description=what[:24], completed=done, total=count)

        def told(cell: Cell, done: Done) -> None:
            bars.advance(cells)
            if not errors.is_terminal:  # a log has no bars
                count = int(bars.tasks[cells].completed)
                errors.print(f"{count} of {total}: {cell.name}: {done.status}", markup=False, highlight=False)
            if done.status == "failed":
                errors.print(f"[red]failed:[/] {escape(f'{cell.name}: {done.why}')}", highlight=False, soft_wrap=True)

        yield tell, told


def _row(found: Sweep, cell: Cell, store: Store) -> SweepRow:
    from quantkit.report.sweep import row_of, unfinished

    done = store.record(cell)
    axes = cell.axes
    if done is None:
        return unfinished(cell.name, cell.method, "not run", status="not run", axes=axes)
    if done.status != "done":
        return unfinished(cell.name, cell.method, done.why or "failed", axes=axes, seconds=done.seconds)
    return row_of(
        store.variant(cell), root=store.folder, name=cell.name, axes=axes, seconds=done.seconds,
        peak_bytes=done.peak_bytes,
    )  # fmt: skip


def _finish(found: Sweep, rows: list[SweepRow], folder: Path) -> None:
    from quantkit.report.sweep import write_sweep
    from quantkit.verify.table import number, share

    written = write_sweep(rows, folder, folder.name)
    table = Table(title=escape(str(folder)), title_justify="left")
    for heading in ("variant", "size", "bits", "KL mean", "accuracy", "seconds", ""):
        table.add_column(heading, justify="left" if heading in ("variant", "") else "right")
    for row in rows:
        overall = row.overall()
        kl = "-" if overall.kl is None else number(overall.kl.value)
        lost = "-" if overall.candidate_accuracy is None else share(overall.candidate_accuracy)
        bits = row.bits_per_weight
        size = "-" if row.bytes is None else megabytes(row.bytes)
        seconds = "-" if row.total_seconds is None else f"{row.total_seconds:.0f}"
        width = "-" if bits is None else f"{bits:.2f}"
        table.add_row(escape(row.name), size, width, kl, lost, seconds, escape(row.verdict or row.status))
    console.print(table)
    accuracy = next((row.overall().reference_accuracy for row in rows if row.overall().candidate_accuracy), None)
    if accuracy is not None:
        console.print(f"bits: of all weights; accuracy of the reference: {share(accuracy)}", style="dim")
    for row in rows:
        if row.status == "failed":
            console.print(f"[red]failed:[/] {escape(f'{row.name}: {row.why}')}", highlight=False, soft_wrap=True)
    page = next(path for path in written if path.suffix == ".html")
    console.print(f"page: {page}; beside it tables and plots", highlight=False, soft_wrap=True, markup=False)
    missed = bool(found.gates) and any(row.verdict == "fail" for row in rows)
    if missed or any(row.status != "done" for row in rows):
        raise typer.Exit(GATE_FAILED)


def _print_plan(
    found: Sweep,
    planned: dict[str, Planned],
    todo: list[Cell],
    made: set[str],
    checkpoint: Checkpoint,
    folder: Path,
) -> None:
    from quantkit.sweep.estimate import estimate

    table = Table(title=escape(f"{found.path}: {len(found.cells)} variants"), title_justify="left")
    for heading in ("variant", "size", "memory", "time", "statistics"):
        table.add_column(heading, justify="left" if heading in ("variant", "statistics") else "right")
    names = {cell.name for cell in todo}
    foretold = estimate(checkpoint, found, todo, planned, made)
    for cell in found.cells:
        plan = planned[cell.name]
        memory = "-" if plan.memory is None else megabytes(plan.memory)
        when = f"{foretold.cells[cell.name]:.0f} s" if cell.name in names else "finished"
        shared = "-" if plan.statistics is None or cell.name not in names - made else "its own"
        if shared != "-" and plan.statistics in foretold.passes:
            shared = f"pass {foretold.passes.index(plan.statistics) + 1}"
        table.add_row(escape(cell.name), megabytes(plan.bytes), memory, when, shared)
    console.print(table)
    room = sum(planned[cell.name].bytes for cell in todo if cell.name not in made)
    console.print(
        f"to do: {len(todo)} variants, calibration passes to share: {len(foretold.passes)}; about {foretold.words}; "
        f"{megabytes(room)} of disk, and {megabytes(foretold.statistics_bytes)} for statistics while it runs",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print(f"would write {folder}", markup=False, highlight=False)
