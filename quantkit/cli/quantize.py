"""`quantkit awq` and `quantkit rtn`: options in, one call, a table out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from quantkit.cli.shared import console, escape, megabytes, progress, quiet_libraries
from quantkit.errors import QuantkitError

if TYPE_CHECKING:
    from quantkit.plan import Plan
    from quantkit.quantize import Outcome
    from quantkit.recipe import QuantizeOptions

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
        quiet_libraries()
        from quantkit.quantize import quantize
    with progress() as report:
        outcome = quantize(options, report)
    _print_outcome(outcome)


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
        f"size    {megabytes(plan.bytes_before)} -> {megabytes(plan.bytes_after)} "
        f"({plan.bytes_after / plan.bytes_before:.0%}); vision tower, mergers and embedding stay {plan.dtype}"
    )
    phases = ", ".join(f"{what} {megabytes(count)}" for what, count in plan.memory.items())
    console.print(f"memory  about {megabytes(plan.peak_memory)} at the peak ({phases}, and the libraries)")
    console.print(f"would write {options.out}", markup=False)


def _print_kept(plan: Plan) -> None:
    for name, fused in sorted(plan.kept_along.items()):
        console.print(f"also kept: {name} (vLLM fuses it with {fused.rpartition('.')[2]})", highlight=False)


def _print_outcome(outcome: Outcome) -> None:
    plan = outcome.plan
    table = Table(title=escape(str(outcome.out)), title_justify="left")
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
        f"{megabytes(plan.bytes_before)} -> {megabytes(outcome.bytes_after)} on disk; {seconds}", highlight=False
    )
    console.print(
        f"next: quantkit verify {outcome.source} {outcome.out}", highlight=False, soft_wrap=True, markup=False
    )
