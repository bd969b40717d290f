"""`quantkit gguf` and `quantkit imatrix`: options in, one call, a table out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from quantkit.cli.options import with_options
from quantkit.cli.shared import check_data, console, default_cache, escape, megabytes, progress, quiet_libraries
from quantkit.recipe import COMMANDS, RUN, GgufOptions, ImatrixOptions, make_options

if TYPE_CHECKING:
    from quantkit.gguf.plan import GgufPlan, Variant
    from quantkit.gguf.quantize import GgufOutcome

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print types and sizes; load no weight.", rich_help_panel=RUN)]


@with_options(GgufOptions, COMMANDS["gguf"].leave_out)
def gguf(given: dict[str, Any], dry_run: DryRun = False) -> None:
    """Write GGUF files for llama.cpp and Ollama: the text model, its vision (mmproj), and an Ollama Modelfile.

    Calibrated on images, video and text, unless --solver rtn or --imatrix. Runs on wheels alone: no checkout of
    llama.cpp, no compiler.
    """
    run_gguf(make_options("gguf", given), dry_run)


def run_gguf(options: GgufOptions, dry_run: bool) -> None:
    """`quantkit gguf` with its options made."""
    with console.status("loading torch and transformers"):
        quiet_libraries()
        from quantkit.checkpoint import open_checkpoint
        from quantkit.gguf.budget import check_budget
        from quantkit.gguf.plan import plan_gguf
        from quantkit.gguf.quantize import quantize_gguf
    if dry_run:
        checkpoint = open_checkpoint(options.model, options.revision, options.token, verify_checksums=False)
        plan = plan_gguf(checkpoint, options)
        if options.budget is not None:
            check_budget(plan, options)
        if options.looks_at_data:
            check_data(options)
        _print_plan(plan, checkpoint.name, options)
        return
    cache = None if options.no_cache else (options.cache or default_cache())
    with progress() as report:
        outcome = quantize_gguf(replace(options, cache=cache), report)
    _print_outcome(outcome, options)


@with_options(ImatrixOptions, COMMANDS["imatrix"].leave_out)
def imatrix(given: dict[str, Any]) -> None:
    """Write an importance matrix that has seen images, in llama.cpp's GGUF form, for any tool that reads one."""
    run_imatrix(make_options("imatrix", given))


def run_imatrix(options: ImatrixOptions) -> None:
    """`quantkit imatrix` with its options made."""
    with console.status("loading torch and transformers"):
        quiet_libraries()
        from quantkit.gguf.collect import collect_imatrix
    cache = None if options.no_cache else (options.cache or default_cache())
    with progress() as report:
        found = collect_imatrix(replace(options, cache=cache), report)
    table = Table(title=escape(str(options.out)), title_justify="left")
    for heading in ("tensors", "conversations", "tokens"):
        table.add_column(heading, justify="right")
    table.add_row(str(found.tensors), str(found.samples), str(found.tokens))
    console.print(table)
    console.print(
        f"next: quantkit gguf --model {options.model} --imatrix {options.out}",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip


def _files(plan: GgufPlan, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("file", "size", "bits a weight", "types"):
        table.add_column(heading, justify="right" if heading in ("size", "bits a weight") else "left")
    for variant in plan.variants:
        for place, file in enumerate(variant.files):
            whole = place == 0
            table.add_row(
                escape(file.name), megabytes(file.nbytes), f"{variant.bits_per_weight:.2f}" if whole else "",
                _types(variant) if whole else "",
            )  # fmt: skip
    return table


def _types(variant: Variant) -> str:
    """The quantized tensors by type, most first."""
    counts = Counter(kind for kind in variant.types.values() if kind != "F32")
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common()) or "F32"


def _print_plan(plan: GgufPlan, name: str, options: GgufOptions) -> None:
    console.print(_files(plan, f"{escape(name)}: what gguf would write"))
    data = "calibrates first" if plan.quantizes and options.solver != "rtn" and not options.imatrix else "without data"
    console.print(f"size    {megabytes(plan.bytes_before)} -> {megabytes(plan.nbytes)} in all; {data}")
    if options.budget is not None:
        console.print(f"types of the linears: as --budget {options.budget} will choose them")
    console.print(f"would write {options.out}", markup=False)


def _print_outcome(outcome: GgufOutcome, options: GgufOptions) -> None:
    if any(row.error == row.error for row in outcome.rows):
        _print_rows(outcome)
    console.print(_files(outcome.plan, escape(str(outcome.out))))
    notes: dict[str, list[str]] = {}
    for row in outcome.rows:
        for note in row.notes:
            notes.setdefault(note, []).append(row.name)
    for note in outcome.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)
    for note, names in notes.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.print(f"[yellow]note:[/] {names[0]}{others}: {escape(note)}", highlight=False, soft_wrap=True)
    if outcome.spent is not None:
        spent = outcome.spent
        console.print(
            f"budget {spent.asked}: {spent.bits_per_weight:.2f} bits a weight; {spent.expected_loss:.2g} nats a token "
            "foretold of error feedback alone",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if outcome.data is not None:
        console.print(
            f"calibrated on {len(outcome.data.samples)} conversations, {outcome.data.tokens} tokens", highlight=False
        )
        if outcome.data.mix.skipped:
            console.print(f"left out {len(outcome.data.mix.skipped)} bad rows", highlight=False)
    seconds = ", ".join(f"{phase} {count:.1f} s" for phase, count in outcome.seconds.items())
    console.print(seconds, highlight=False)
    first = outcome.plan.texts[0].files[0].name
    console.print(
        f"next: quantkit verify {outcome.source} {outcome.out / first}", highlight=False, soft_wrap=True, markup=False
    )


def _print_rows(outcome: GgufOutcome) -> None:
    table = Table(title_justify="left")
    for heading in ("file", "tensor", "layers", "types", "mean error", "worst error", "worst layer"):
        table.add_column(heading, justify="left" if heading in ("file", "tensor", "types") else "right")
    kinds: dict[tuple[str, str], list[Any]] = {}
    for row in outcome.rows:
        if row.error == row.error:
            kinds.setdefault((row.file, row.name.split(".", 2)[-1].removesuffix(".weight")), []).append(row)
    for (file, tensor), rows in kinds.items():
        worst = max(rows, key=lambda row: row.error)
        mean = sum(row.error for row in rows) / len(rows)
        table.add_row(
            file, tensor, str(len(rows)), "/".join(sorted({row.kind for row in rows})), f"{mean:.2%}",
            f"{worst.error:.2%}", worst.name.split(".")[1],
        )  # fmt: skip
    console.print(table)
    console.print("error: share of the output's energy over the calibration tokens", style="dim")
