"""`quantkit verify` and `quantkit compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from quantkit.cli.shared import console, default_cache, escape, megabytes, progress, quiet_libraries
from quantkit.errors import QuantkitError

if TYPE_CHECKING:
    from quantkit.verify.gates import Gate
    from quantkit.verify.report import Report

GATE_FAILED = 3
DATA, RUN, ENGINES, GATES, REPORTS = "Data", "Run", "Engines", "Gates", "Reports"

Reference = Annotated[str, typer.Argument(help="The unquantized model: a folder, a hub id, or tiny.", metavar="REF")]
Candidate = Annotated[
    str,
    typer.Argument(help="The quantized one: a folder, a hub id, a .gguf file; any name with --url.", metavar="QUANT"),
]
Items = Annotated[
    int | None,
    typer.Option("--samples", min=1, help="Items to take, by modality. (default: all)", rich_help_panel=DATA),
]
Engine = Annotated[
    list[str] | None,
    typer.Option(
        help="dequantized: the file's weights in the reference model; transformers, vllm, llama.cpp, sglang, ollama: "
        "the real runtime. May be repeated. (default: dequantized, llama.cpp for a .gguf)",
        rich_help_panel=ENGINES,
    ),
]
_LIMIT = "May be repeated, GROUP=NUMBER for one modality, mode or language."
Limit = list[str] | None


def _gate(what: str) -> Any:
    return typer.Option(help=f"{what} {_LIMIT}", rich_help_panel=GATES, show_default=False)


def verify(
    reference: Reference,
    candidate: Candidate,
    data: Annotated[
        str,
        typer.Option(
            help="heldout, anything --calib takes (answers are scored where given), or a benchmark: MMBench, OCRBench, "
            "HallusionBench, MMMU, RefCOCO, Video-MME; NAME:SPLIT=FOLDER for a local copy.",
            rich_help_panel=DATA,
        ),
    ] = "heldout",
    samples: Items = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longer items are left out.", rich_help_panel=DATA)] = 2048,
    downsample_mode: Annotated[
        str, typer.Option(help="Visual token compression: 16x, 4x or both.", rich_help_panel=DATA)
    ] = "16x",
    max_slice_nums: Annotated[
        int | None, typer.Option(min=1, help="Most slices an image is cut into.", rich_help_panel=DATA)
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides which items are taken.", rich_help_panel=DATA)] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Check the files only: seconds, no model is run.", rich_help_panel=RUN)
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest greedy answer.", rich_help_panel=RUN)] = 64,
    dtype: Annotated[
        str, typer.Option(help="float32 shows quantization alone; bfloat16 adds its own rounding.", rich_help_panel=RUN)
    ] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.", rich_help_panel=RUN)] = "cpu",
    cache: Annotated[
        Path | None,
        typer.Option(help="Where reference passes are kept. (default: ~/.cache/quantkit)", rich_help_panel=RUN),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither use nor keep a reference pass.", rich_help_panel=RUN)
    ] = False,
    engine: Engine = None,
    engine_python: Annotated[
        Path | None, typer.Option(help="Python of the environment that has vLLM.", rich_help_panel=ENGINES)
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A running server: http://localhost:8000.", rich_help_panel=ENGINES)
    ] = None,
    served_name: Annotated[
        str | None, typer.Option(help="The model's name at that server.", rich_help_panel=ENGINES)
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help="Key of that server.", envvar="QUANTKIT_API_KEY", show_envvar=True, rich_help_panel=ENGINES),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds without progress.", rich_help_panel=ENGINES)] = 600.0,
    mmproj: Annotated[
        Path | None, typer.Option(help="The vision file of a .gguf, where it cannot be told.", rich_help_panel=ENGINES)
    ] = None,
    max_kl: Annotated[Limit, _gate("Largest mean KL, nats.")] = None,
    max_kl_p99: Annotated[Limit, _gate("Largest 99th percentile of KL, nats.")] = None,
    min_top1: Annotated[Limit, _gate("Smallest share of equal first choices.")] = None,
    max_accuracy_drop: Annotated[Limit, _gate("Largest loss of score, as a share.")] = None,
    min_agreement: Annotated[Limit, _gate("Smallest share of equal greedy answers.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML with a section gates; options here come first.", rich_help_panel=GATES)
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Folder (or .json) for report.json, .md and .html. (default: QUANT, ./ for a hub id or .gguf)",
            rich_help_panel=REPORTS,
        ),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(help="Write the gates and checks as JUnit XML.", rich_help_panel=REPORTS)
    ] = None,
) -> None:
    """Measure what a quantized model lost, on held-out images, video and text.

    Checks the files first, then runs both models: KL divergence, agreement, accuracy, free-running answers, each with
    its interval. Writes report.json, report.md and report.html. Exit code 3: a fault was found or a gate was missed.
    """
    given = {
        "max_kl": max_kl, "max_kl_p99": max_kl_p99, "min_top1": min_top1, "max_accuracy_drop": max_accuracy_drop,
        "min_agreement": min_agreement,
    }  # fmt: skip
    engines = tuple(engine or (["llama.cpp"] if _is_gguf(candidate) else ["dequantized"]))
    with console.status("loading torch and transformers"):
        quiet_libraries()
        from quantkit.verify import verify as run
    gates = _gates(given, recipe)
    target = _report_target(report, candidate)
    with progress() as bars:
        result = run(
            reference, candidate, data, engine=engines, progress=bars, samples=samples, max_tokens=max_tokens,
            downsample_mode=downsample_mode, max_slice_nums=max_slice_nums, seed=seed, quick=quick,
            max_new_tokens=max_new_tokens, dtype=dtype, device=device, gates=gates, url=url,
            engine_python=engine_python, served_name=served_name, api_key=api_key, timeout=timeout, mmproj=mmproj,
            cache=None if no_cache else (cache or default_cache()),
        )  # fmt: skip
    _print_report(result)
    _write(result, target, junit)
    if result.verdict.status == "fail":
        raise typer.Exit(GATE_FAILED)


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


def _is_gguf(candidate: str) -> bool:
    path = Path(candidate).expanduser()
    if path.is_dir():
        return not (path / "config.json").exists() and any(path.glob("*.gguf"))
    return path.suffix == ".gguf"


def _gates(given: dict[str, list[str] | None], recipe: Path | None) -> tuple[Gate, ...]:
    from quantkit.verify.gates import parse, read_recipe

    stated = [parse(name, text) for name, texts in given.items() for text in texts or ()]
    places = {(gate.name, gate.group) for gate in stated}
    inherited = read_recipe(recipe) if recipe is not None else []
    return tuple(stated + [gate for gate in inherited if (gate.name, gate.group) not in places])


def _report_target(report: Path | None, candidate: str) -> Path:
    """report.json's path; checked before the work, not after it."""
    target = report
    if target is None:
        path = Path(candidate).expanduser()
        target = path if path.is_dir() and not _is_gguf(candidate) else Path()
    if target.suffix != ".json":
        target = target / "report.json"
    if target.parent.exists() and not target.parent.is_dir():
        raise QuantkitError(f"--report {target.parent}: is a file; name a folder or a .json file")
    return target


def _write(result: Report, target: Path, junit: Path | None) -> None:
    from quantkit.report import write_html, write_junit, write_markdown

    try:
        result.save(target)
        write_markdown(result, target.with_suffix(".md"))
        write_html(result, target.with_suffix(".html"))
        if junit is not None:
            write_junit(result, junit)
    except OSError as error:
        raise QuantkitError(
            f"{error.filename or target}: cannot be written ({error.strerror}); see --report"
        ) from error
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
