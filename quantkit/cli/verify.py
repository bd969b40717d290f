"""`quantkit verify` and `quantkit compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from quantkit.cli.options import with_options
from quantkit.cli.shared import console, default_cache, escape, megabytes, progress, quiet_libraries
from quantkit.errors import QuantkitError
from quantkit.recipe import VerifyCommandOptions

if TYPE_CHECKING:
    from quantkit.checkpoint import Checkpoint
    from quantkit.verify.gates import Gate
    from quantkit.verify.report import Report

GATE_FAILED = 3

Reference = Annotated[str, typer.Argument(help="The unquantized model: a folder, a hub id, or tiny.", metavar="REF")]
Candidate = Annotated[
    str,
    typer.Argument(help="The quantized one: a folder, a hub id, a .gguf file; any name with --url.", metavar="QUANT"),
]


@with_options(VerifyCommandOptions)
def verify(given: dict[str, Any], reference: Reference, candidate: Candidate) -> None:
    """Measure what a quantized model lost, on held-out images, video and text.

    Checks the files first, then runs both models: KL divergence, agreement, accuracy, free-running answers, each with
    its interval. Writes report.json, report.md and report.html. Exit code 3: a fault was found or a gate was missed.
    """
    options = VerifyCommandOptions(**given)
    with console.status("loading torch and transformers"):
        quiet_libraries()
        from quantkit.verify.gates import read_recipe
    inherited = read_recipe(options.recipe) if options.recipe is not None else []
    if measure(reference, candidate, options, inherited) == "fail":
        raise typer.Exit(GATE_FAILED)


def measure(
    reference: str | Checkpoint, candidate: str | Path, options: VerifyCommandOptions, inherited: Sequence[Gate]
) -> str:
    """Verify, show and write the report; gives the verdict's status."""
    from quantkit.report import write_junit
    from quantkit.verify.asked import all_gates, verify_as_asked

    all_gates(options, inherited)  # what is wrong with them, before the work
    target = _report_target(options.report, str(candidate))
    with progress() as bars:
        result = verify_as_asked(
            reference, candidate, options, inherited=inherited, cache=default_cache(), progress=bars
        )
    _print_report(result)
    if options.quick and options.report is None and _measured(target):
        said = f"{target}: kept, it has what was measured; --report DIR writes this check there"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
        if options.junit is not None:
            write_junit(result, options.junit)
        return result.verdict.status
    _write(result, target, options.junit)
    return result.verdict.status


def _measured(target: Path) -> bool:
    """Whether a report that is there already holds figures, which a check of the files has not."""
    from quantkit.verify.report import Report

    try:
        return bool(Report.load(target).engines)
    except QuantkitError:
        return False


def compare(
    reports: Annotated[
        list[Path], typer.Argument(help="Folders with a report.json, or the files.", metavar="REPORT...")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("compare.html"),
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Also reports of other data or options, with a warning.")
    ] = False,
) -> None:
    """Put several reports into one page: size against quality, and every headline figure side by side."""
    from quantkit.report import compare_rows, write_compare
    from quantkit.verify.report import Report

    if len(reports) < 2:
        raise QuantkitError("compare: name at least two reports")
    named = list(zip(_labels(reports), map(Report.load, reports), strict=True))
    path = write_compare(named, out, allow_mixed=allow_mixed)
    table = Table(title="size and quality")
    rows = compare_rows(named, allow_mixed=allow_mixed)
    for heading in ("variant", "size", "bits", "KL mean", "p99", "top-1", "accuracy", "verdict"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for row in rows:
        table.add_row(*_compare_cells(row))
    console.print(table)
    console.print(f"page: {path}", highlight=False, soft_wrap=True, markup=False)


def _labels(paths: list[Path]) -> list[str]:
    """The folders' names; as much of the path as tells them apart."""
    places = [path.parent if path.name == "report.json" else path.with_suffix("") for path in paths]
    absolute = [place.absolute() for place in places]
    for depth in range(1, max(len(place.parts) for place in absolute) + 1):
        labels = ["/".join(place.parts[-depth:]) for place in absolute]
        if len(set(labels)) == len(labels):
            return labels
    raise QuantkitError("compare: the same report is named twice")


def _report_target(report: Path | None, candidate: str) -> Path:
    """report.json's path; checked before the work, not after it."""
    from quantkit.verify.ggufset import is_gguf

    target = report
    if target is None:
        path = Path(candidate).expanduser()
        target = path if path.is_dir() and not is_gguf(candidate) else Path()
    if target.suffix != ".json":
        target = target / "report.json"
    if target.parent.exists() and not target.parent.is_dir():
        raise QuantkitError(f"--report {target.parent}: is a file; name a folder or a .json file")
    return target


def _write(result: Report, target: Path, junit: Path | None) -> None:
    from quantkit.report import write_report

    write_report(result, target, junit)
    console.print(
        f"report: {target}, {target.with_suffix('.md').name}, {target.with_suffix('.html').name}",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip


def _print_report(result: Report) -> None:
    from quantkit.verify.table import to_table

    for engine in result.engines:
        if engine.status == "ran":
            console.print(to_table(result, engine, console.width))
            for reason, count in engine.left_out.items():
                console.print(f"left out: {count} items: {reason}", markup=False, highlight=False)
        else:
            console.print(f"[yellow]not run:[/] {escape(engine.why or '')}", highlight=False, soft_wrap=True)
    for finding in (*result.integrity, *result.alarms):
        colour = "red" if finding.severity == "error" else "yellow"
        text = escape(f"{finding.check}: {finding.where}: {finding.message}")
        console.print(f"[{colour}]{finding.severity}:[/] {text}", highlight=False, soft_wrap=True)
    for gate in result.gates:
        if not gate.passed:
            console.print(f"[red]gate:[/] {escape(gate.message)}", highlight=False, soft_wrap=True)
    if result.checks:
        console.print(f"checked: {', '.join(result.checks)}", highlight=False, style="dim")
    if result.cache is not None:
        what = "taken from" if result.cache.hit else "kept in"
        console.print(
            f"reference pass {what} the cache: {megabytes(result.cache.bytes)}, {result.cache.bytes_per_position:.0f} "
            f"bytes a position; error bound of every KL: {result.cache.kl_error_bound:g}",
            highlight=False, style="dim", soft_wrap=True,
        )  # fmt: skip
    bits = f"{result.candidate.bits_per_weight:.2f} bits a weight"
    if result.candidate.bits_per_quantized_weight:
        bits += f", {result.candidate.bits_per_quantized_weight:.2f} in the quantized linears"
    if result.candidate.bytes:
        sizes = f"{megabytes(result.reference.bytes)} -> {megabytes(result.candidate.bytes)} ({bits})"
        console.print(f"size: {sizes}", highlight=False)
    colour = {"pass": "green", "fail": "red", "measured": "bold"}[result.verdict.status]
    console.print(f"[{colour}]{result.verdict.status.upper()}[/] {escape(result.verdict.headline)}", highlight=False)


def _compare_cells(row: dict[str, Any]) -> list[str]:
    from quantkit.verify.table import number, share

    bits = row["bits_per_quantized_weight"] or row["bits_per_weight"]
    accuracy = "-"
    if row["accuracy_candidate"] is not None:
        accuracy = f"{share(row['accuracy_reference'])} → {share(row['accuracy_candidate'])}"
    return [
        escape(row["label"]),
        megabytes(row["bytes"]),
        f"{bits:.2f}",
        number(row["kl_mean"]) if row["kl_mean"] is not None else "-",
        number(row["kl_p99"]) if row["kl_p99"] is not None else "-",
        share(row["top1"]) if row["top1"] is not None else "-",
        accuracy,
        str(row["verdict"]),
    ]
