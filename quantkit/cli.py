"""The command line: arguments in, one call, a table out. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from quantkit import __version__
from quantkit.errors import QuantkitError

if TYPE_CHECKING:
    from quantkit.plan import Plan
    from quantkit.quantize import Outcome
    from quantkit.recipe import QuantizeOptions

app = typer.Typer(
    name="quantkit",
    help="Quantized variants of MiniCPM-V 4.6 that load in the runtimes people use, with a measured report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(stderr=False)
errors = Console(stderr=True)

INTERRUPTED = 130
MODEL, GRID, DATA, RUN = "Model", "Grid", "Calibration", "Run"

Model = Annotated[
    str,
    typer.Option("--model", "-m", help="A folder, a hub id (openbmb/MiniCPM-V-4.6), or tiny.", rich_help_panel=MODEL),
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder to write. [default: ./MODEL-METHOD]", rich_help_panel=RUN)
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a hub id.", rich_help_panel=MODEL, show_default=False)
]
Token = Annotated[
    str | None,
    typer.Option(
        help="Hub token. [default: the hub's own login]", envvar="HF_TOKEN", rich_help_panel=MODEL, show_envvar=False
    ),
]
Bits = Annotated[int, typer.Option(help="Bits a weight (this layout holds 4).", rich_help_panel=GRID)]
GroupSize = Annotated[
    int,
    typer.Option(help="Input channels that share a scale: 128, 64, 32, or -1 for a whole row.", rich_help_panel=GRID),
]
Symmetric = Annotated[
    bool, typer.Option("--symmetric/--zero-point", help="Fixed or free zero point.", rich_help_panel=GRID)
]
Solver = Annotated[
    str,
    typer.Option(
        help="Rounding: gptq feeds each column's error into the next ones; rtn takes the nearest code.",
        rich_help_panel=GRID,
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave these layers unquantized: a part of their name, * allowed. May be repeated.", rich_help_panel=GRID
    ),
]
Calib = Annotated[
    str,
    typer.Option(
        help="bundled, a folder with manifest.jsonl, a folder of images, or a .jsonl of chats.", rich_help_panel=DATA
    ),
]
Samples = Annotated[int, typer.Option(min=1, help="Conversations to calibrate on.", rich_help_panel=DATA)]
MaxTokens = Annotated[
    int, typer.Option(min=1, help="Longest conversation, visual tokens included.", rich_help_panel=DATA)
]
Mode = Annotated[
    str, typer.Option(help="Visual token compression: 16x, 4x or both, alternating.", rich_help_panel=DATA)
]
Slices = Annotated[
    int | None,
    typer.Option(min=1, help="Most slices an image is cut into. [default: the processor's]", rich_help_panel=DATA),
]
Seed = Annotated[int, typer.Option(help="Decides which conversations are taken.", rich_help_panel=DATA)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1.", rich_help_panel=RUN)]
Dtype = Annotated[
    str,
    typer.Option(
        help="Of the pass and of what stays unquantized: auto (the source's), bfloat16, float16, float32.",
        rich_help_panel=RUN,
    ),
]
ShardSize = Annotated[str, typer.Option(help="Largest weight file, as 5GB or 500MB.", rich_help_panel=RUN)]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace an existing folder, once the new one is complete.", rich_help_panel=RUN),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what would be done, sizes and memory; load nothing.", rich_help_panel=RUN),
]
SaveStats = Annotated[
    Path | None, typer.Option(help="Keep the calibration statistics in this folder.", rich_help_panel=DATA)
]
Stats = Annotated[
    Path | None, typer.Option(help="Use statistics kept by --save-stats: no pass is made.", rich_help_panel=DATA)
]


def _version(value: bool) -> None:
    if value:
        console.print(f"quantkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: quantkit awq --model openbmb/MiniCPM-V-4.6 --out MiniCPM-V-4.6-AWQ")
def awq(
    model: Model = "tiny",
    out: Out = None,
    revision: Revision = None,
    token: Token = None,
    bits: Bits = 4,
    group_size: GroupSize = 128,
    symmetric: Symmetric = False,
    solver: Solver = "gptq",
    keep: Keep = None,
    calib: Calib = "bundled",
    samples: Samples = 128,
    max_tokens: MaxTokens = 2048,
    downsample_mode: Mode = "16x",
    max_slice_nums: Slices = None,
    seed: Seed = 0,
    save_stats: SaveStats = None,
    stats: Stats = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    max_shard_size: ShardSize = "5GB",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Quantize to 4 bits with activation-aware scales (AWQ), calibrated on images, video and text.

    Writes AutoAWQ's gemm layout, which Transformers and vLLM load. The vision tower, the mergers and the embedding stay
    as they are.
    """
    options = _options(
        method="awq", model=model, out=out, revision=revision, token=token, bits=bits, group_size=group_size,
        symmetric=symmetric, solver=solver, keep=tuple(keep or ()), calib=calib, samples=samples, max_tokens=max_tokens,
        downsample_mode=downsample_mode, max_slice_nums=max_slice_nums, seed=seed, save_stats=save_stats, stats=stats,
        device=device, dtype=dtype, max_shard_bytes=_parse_size(max_shard_size), overwrite=overwrite,
    )  # fmt: skip
    _run(options, dry_run)


@app.command(epilog="Example: quantkit rtn --model tiny --out tiny-rtn")
def rtn(
    model: Model = "tiny",
    out: Out = None,
    revision: Revision = None,
    token: Token = None,
    bits: Bits = 4,
    group_size: GroupSize = 128,
    symmetric: Symmetric = False,
    keep: Keep = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    max_shard_size: ShardSize = "5GB",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Round to nearest without any data: the baseline that every other method is measured against."""
    options = _options(
        method="rtn", solver="rtn", model=model, out=out, revision=revision, token=token, bits=bits,
        group_size=group_size, symmetric=symmetric, keep=tuple(keep or ()), device=device, dtype=dtype,
        max_shard_bytes=_parse_size(max_shard_size), overwrite=overwrite,
    )  # fmt: skip
    _run(options, dry_run)


Reference = Annotated[str, typer.Argument(help="The unquantized model: a folder, a hub id, or tiny.", metavar="REF")]
Candidate = Annotated[Path, typer.Argument(help="Folder of the quantized model.", metavar="QUANT")]
Items = Annotated[int | None, typer.Option("--samples", min=1, help="Items to take, by modality. [default: all]")]
Engine = Annotated[
    str, typer.Option(help="dequantized: the file's weights in the reference model; transformers: the real kernels.")
]
VerifyDtype = Annotated[str, typer.Option(help="float32 shows quantization alone; bfloat16 adds its own rounding.")]


@app.command(epilog="Example: quantkit verify tiny tiny-AWQ")
def verify(
    reference: Reference,
    candidate: Candidate,
    data: Annotated[
        str, typer.Option(help="heldout, or anything --calib takes; answers are scored where given.")
    ] = "heldout",
    samples: Items = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longer items are left out.")] = 2048,
    downsample_mode: Annotated[str, typer.Option(help="Visual token compression: 16x, 4x or both.")] = "16x",
    max_slice_nums: Annotated[int | None, typer.Option(min=1, help="Most slices an image is cut into.")] = None,
    seed: Annotated[int, typer.Option(help="Decides which items are taken.")] = 0,
    engine: Engine = "dequantized",
    dtype: VerifyDtype = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    report: Annotated[Path | None, typer.Option(help="Where to write the report. [default: QUANT/report.json]")] = None,
) -> None:
    """Measure what a quantized model lost: both models' forward passes over held-out images, video and text.

    Prints KL divergence, top-1 agreement, exact match and perplexity by modality, and writes report.json.
    """
    with console.status("loading torch and transformers"):
        _quiet_libraries()
        from quantkit.verify import to_table
        from quantkit.verify import verify as run
    with _progress() as progress:
        result = run(
            reference, candidate, data, progress=progress, samples=samples, max_tokens=max_tokens,
            downsample_mode=downsample_mode, max_slice_nums=max_slice_nums, seed=seed, engine=engine, dtype=dtype,
            device=device,
        )  # fmt: skip
    console.print(to_table(result))
    console.print(f"report: {result.save(report or candidate)}", highlight=False, soft_wrap=True)


def _options(**given: Any) -> QuantizeOptions:
    from pydantic import ValidationError

    from quantkit.recipe import QuantizeOptions

    if given["out"] is None:
        given["out"] = Path(f"{given['model'].rstrip('/').split('/')[-1]}-{given['method'].upper()}")
    try:
        return QuantizeOptions(**given)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise QuantkitError(f"{option} {first['input']!r}: {first['msg']}") from error


def _parse_size(text: str) -> int:
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = text[:-2], text[-2:].upper()
    if unit not in units or not number.replace(".", "", 1).isdigit() or float(number) <= 0:
        raise QuantkitError(f"--max-shard-size {text!r}: write it as 5GB or 500MB")
    return int(float(number) * units[unit])


def _run(options: QuantizeOptions, dry_run: bool) -> None:
    from quantkit.checkpoint import open_checkpoint
    from quantkit.plan import make_plan

    if dry_run:
        checkpoint = open_checkpoint(options.model, options.revision, options.token, verify_checksums=False)
        _print_plan(make_plan(checkpoint, options), checkpoint.name, options)
        return
    with console.status("loading torch and transformers"):
        _quiet_libraries()
        from quantkit.quantize import quantize
    with _progress() as report:
        outcome = quantize(options, report)
    _print_outcome(outcome)


def _quiet_libraries() -> None:
    """transformers' notes on optional kernels are no news to somebody who quantizes."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.utils.logging.disable_progress_bar()


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar a phase; phases with names of the form "layer 3" share one."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=errors, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            key = what.split(" ")[0]
            if key not in tasks:
                tasks[key] = bars.add_task(what, total=total)
            bars.update(tasks[key], description=what, completed=done, total=total)

        yield report


def _print_plan(plan: Plan, name: str, options: QuantizeOptions) -> None:
    table = Table(title=f"{name}: what {options.method} would quantize", title_justify="left")
    for heading, justify in (("linear", "left"), ("layers", "right"), ("shape", "right"), ("bits", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    rows: dict[tuple[str, tuple[int, int], str], int] = {}
    for full, shape in plan.map.linears().items():
        key = (full.split(".", 4)[4], shape, str(plan.spec.bits) if full in plan.quantized else plan.dtype)
        rows[key] = rows.get(key, 0) + 1
    for (linear, shape, bits), count in rows.items():
        table.add_row(linear, str(count), f"{shape[0]} x {shape[1]}", bits)
    console.print(table)
    _print_kept(plan)
    console.print(
        f"size    {_megabytes(plan.bytes_before)} -> {_megabytes(plan.bytes_after)} "
        f"({plan.bytes_after / plan.bytes_before:.0%}); vision tower, mergers and embedding stay {plan.dtype}"
    )
    phases = ", ".join(f"{what} {_megabytes(count)}" for what, count in plan.memory.items())
    console.print(f"memory  about {_megabytes(plan.peak_memory)} at the peak ({phases}, and the libraries)")
    console.print(f"would write {options.out}", markup=False)


def _print_kept(plan: Plan) -> None:
    for name, fused in sorted(plan.kept_along.items()):
        console.print(f"also kept: {name} (vLLM fuses it with {fused.rpartition('.')[2]})", highlight=False)


def _print_outcome(outcome: Outcome) -> None:
    plan = outcome.plan
    table = Table(title=_escape(str(outcome.out)), title_justify="left")
    for heading in ("linear", "layers", "bits", "mean error", "worst error", "worst layer", "scaled"):
        table.add_column(heading, justify="left" if heading == "linear" else "right", no_wrap=heading == "linear")
    kinds: dict[str, list[Any]] = {}
    for row in outcome.rows:
        kinds.setdefault(row.name.split(".", 4)[4], []).append(row)
    for kind, rows in kinds.items():
        worst = max(rows, key=lambda row: row.error)
        known = worst.error == worst.error
        mean = sum(row.error for row in rows) / len(rows)
        scaled = sum(row.scaled_by not in ("", "none") for row in rows)
        table.add_row(
            kind, str(len(rows)), str(plan.spec.bits), f"{mean:.2%}" if known else "-",
            f"{worst.error:.2%}" if known else "-", worst.name.split(".")[3] if known else "-", f"{scaled}/{len(rows)}",
        )  # fmt: skip
    console.print(table)
    _print_kept(plan)
    if outcome.samples:
        console.print("error: share of the output's energy over the calibration tokens", style="dim")
        console.print(f"calibrated on {outcome.samples} conversations, {outcome.tokens} tokens", highlight=False)
    seconds = ", ".join(f"{phase} {count:.1f} s" for phase, count in outcome.seconds.items())
    console.print(
        f"{_megabytes(plan.bytes_before)} -> {_megabytes(outcome.bytes_after)} on disk; {seconds}", highlight=False
    )
    console.print(
        f"next: quantkit verify {outcome.source} {outcome.out}", highlight=False, soft_wrap=True, markup=False
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def main() -> None:
    """Entry point: every error a user can mend is one line and exit code 2; Ctrl-C is 130."""
    try:
        code = app(standalone_mode=False)  # typer's Exit comes back as its code, and Ctrl-C as 130
        if code == INTERRUPTED:
            _interrupted()
        sys.exit(code or 0)
    except QuantkitError as error:
        errors.print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        _interrupted()
    except Exception as error:  # noqa: BLE001 - typer carries its own copy of click: its errors have no public class
        if _from_interrupt(error):
            _interrupted()
        _click_error(error)


def _from_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C lies behind an error: click turns it into its own, and torch may stumble while it unwinds."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _interrupted() -> NoReturn:
    errors.print("interrupted; nothing was written", highlight=False)
    sys.exit(INTERRUPTED)


def _click_error(error: Exception) -> None:
    """typer's own usage errors keep their form; anything else is a bug and keeps its traceback."""
    show = getattr(error, "show", None)
    if show is None:
        raise error
    show()
    sys.exit(getattr(error, "exit_code", 2))


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split()))
