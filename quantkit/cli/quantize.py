"""`quantkit awq`, `gptq`, `rtn` and `bnb`: options in, one call, a table out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from quantkit.cli.options import with_options
from quantkit.cli.shared import check_data, console, default_cache, escape, megabytes, progress, quiet_libraries
from quantkit.recipe import COMMANDS, KEPT_BITS, RUN, BnbOptions, QuantizeOptions, make_options

if TYPE_CHECKING:
    from quantkit.plan import Plan
    from quantkit.quantize import Outcome

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what would be done, sizes and memory; load nothing.", rich_help_panel=RUN),
]


@with_options(QuantizeOptions, COMMANDS["awq"].leave_out)
def awq(given: dict[str, Any], dry_run: DryRun = False) -> None:
    """Quantize to 4 bits with activation-aware scales (AWQ), calibrated on images, video and text.

    Writes AutoAWQ's gemm layout, which Transformers and vLLM load. The vision tower, the mergers and the embedding stay
    as they are.
    """
    run_quantize(make_options("awq", given), dry_run)


@with_options(QuantizeOptions, COMMANDS["gptq"].leave_out)
def gptq(given: dict[str, Any], dry_run: DryRun = False) -> None:
    """Quantize to 2, 3, 4 or 8 bits, each column's error fed into the next ones (GPTQ), calibrated alike.

    Writes GPTQ's layout: Transformers loads all of it, vLLM the symmetric grids of 4 and 8 bits. The vision tower, the
    mergers and the embedding stay as they are.
    """
    run_quantize(make_options("gptq", given), dry_run)


@with_options(QuantizeOptions, COMMANDS["rtn"].leave_out)
def rtn(given: dict[str, Any], dry_run: DryRun = False) -> None:
    """Round to nearest without any data: the baseline that every other method is measured against."""
    run_quantize(make_options("rtn", given), dry_run)


@with_options(BnbOptions)
def bnb(given: dict[str, Any], dry_run: DryRun = False) -> None:
    """Round to NF4, FP4 or INT8 with bitsandbytes, without any data: to load anywhere Transformers runs, and for QLoRA.

    Needs the package bitsandbytes (pip install 'quantkit[bnb]'). The vision tower, the mergers and the embedding stay
    as they are.
    """
    run_bnb(make_options("bnb", given), dry_run)


def run_bnb(options: BnbOptions, dry_run: bool) -> None:
    """`quantkit bnb` with its options made."""
    with console.status("loading torch and transformers"):
        quiet_libraries()
        from quantkit.bnb import plan_bnb, quantize_bnb
        from quantkit.checkpoint import open_checkpoint
    if dry_run:
        checkpoint = open_checkpoint(options.model, options.revision, options.token, verify_checksums=False)
        _print_plan(plan_bnb(checkpoint, options), checkpoint.name, options)
        return
    with progress() as report:
        outcome = quantize_bnb(options, report)
    _print_outcome(outcome)


def run_quantize(options: QuantizeOptions, dry_run: bool) -> None:
    """`quantkit awq`, `gptq` or `rtn` with its options made."""
    from quantkit.checkpoint import open_checkpoint
    from quantkit.plan import make_plan

    if dry_run:
        checkpoint = open_checkpoint(options.model, options.revision, options.token, verify_checksums=False)
        plan = make_plan(checkpoint, options)
        if "calib" in COMMANDS[options.method].option_names():
            check_data(options)
        _print_plan(plan, checkpoint.name, options)
        return
    with console.status("loading torch and transformers"):
        quiet_libraries()
        from quantkit.quantize import quantize
    cache = None if options.no_cache else (options.cache or default_cache())
    with progress() as report:
        outcome = quantize(replace(options, cache=cache), report)
    _print_outcome(outcome)


def _print_plan(plan: Plan, name: str, options: QuantizeOptions | BnbOptions) -> None:
    table = Table(title=f"{name}: what {options.method} would quantize", title_justify="left")
    for heading, justify in (("linear", "left"), ("layers", "right"), ("shape", "right"), ("bits", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    rows: dict[tuple[str, tuple[int, int], str], int] = {}
    for full, shape in plan.map.linears().items():
        key = (full.split(".", 4)[4], shape, _planned_bits(plan, full, options))
        rows[key] = rows.get(key, 0) + 1
    for (linear, shape, bits), count in rows.items():
        table.add_row(linear, str(count), f"{shape[0]} x {shape[1]}", bits)
    console.print(table)
    _print_kept(plan)
    after = _planned_bytes(plan)
    console.print(
        f"size    {megabytes(plan.bytes_before)} -> {megabytes(after)} "
        f"({after / plan.bytes_before:.0%}); vision tower, mergers and embedding stay {plan.dtype}"
    )
    if plan.allowance is not None:
        room = plan.allowance
        console.print(
            f"budget  {room.asked}: {megabytes(room.bytes)} for the linears, "
            f"{room.bits_per_weight(room.bytes):.2f} bits a weight, as their measured losses will have it"
        )
    phases = ", ".join(f"{what} {megabytes(count)}" for what, count in plan.memory.items())
    console.print(f"memory  about {megabytes(plan.peak_memory)} at the peak ({phases}, and the libraries)")
    console.print(f"would write {options.out}", markup=False)


def _planned_bits(plan: Plan, full: str, options: QuantizeOptions | BnbOptions) -> str:
    if full not in plan.quantized:
        return plan.dtype
    if plan.allowance is None or not isinstance(options, QuantizeOptions):
        return str(plan.grids[full].bits)
    return " or ".join(plan.dtype if bits == KEPT_BITS else str(bits) for bits in options.widths)


def _planned_bytes(plan: Plan) -> int:
    """Of the output; where a budget is to be spent, at most."""
    if plan.allowance is None:
        return plan.bytes_after
    fewest = sum(min(by_width.values()) for by_width in plan.allowance.sizes.values())
    return plan.bytes_after - fewest + plan.allowance.bytes


def _print_kept(plan: Plan) -> None:
    for name, fused in sorted(plan.kept_along.items()):
        console.print(f"also kept: {name} (vLLM fuses it with {fused.rpartition('.')[2]})", highlight=False)


def _print_notes(outcome: Outcome) -> None:
    """Where the rounding fell back, a line a note with the first linear that it is about."""
    rows: dict[str, list[str]] = {}
    for row in outcome.rows:
        for note in row.notes:
            rows.setdefault(note, []).append(row.name)
    for note, names in rows.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.print(f"[yellow]note:[/] {names[0]}{others}: {escape(note)}", highlight=False, soft_wrap=True)


def _print_spending(outcome: Outcome) -> None:
    spent = outcome.spending
    if spent is None:
        return
    fewest = min(bits for by_bits in spent.losses.values() for bits in by_bits)
    uniform = sum(by_bits[fewest] for by_bits in spent.losses.values())
    left = sum(bits == KEPT_BITS for bits in spent.bits.values())
    console.print(
        f"budget {spent.asked}: {spent.bits_per_weight:.2f} bits a weight; {spent.expected_loss:.2g} nats a token "
        f"foretold of GPTQ alone (all at {fewest} bits: {uniform:.2g})"
        + (f"; {left} of {len(spent.bits)} inputs' linears stay {outcome.plan.dtype}" if left else ""),
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if outcome.plan.format == "gptq" and len({spec.bits for spec in outcome.plan.grids.values()}) > 1:
        console.print(
            "[yellow]note:[/] several widths in GPTQ's layout: gptqmodel reads them, vLLM symmetric ones of 4 and 8 "
            "bits, Transformers none (it reads --method-format compressed-tensors)",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _print_tuning(outcome: Outcome) -> None:
    tuned = outcome.tuning
    if tuned is None:
        return
    console.print(
        f"tuned: {tuned.before:.3g} -> {tuned.after:.3g} nats a token on {tuned.withheld} withheld conversations"
        f"{'' if tuned.taken else '; no better, so all stays as it was'} (errors above: before it)",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


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
            kind, str(len(rows)), "/".join(sorted({str(row.bits) for row in rows})), f"{mean:.2%}" if known else "-",
            f"{worst.error:.2%}" if known else "-", worst.name.split(".")[3] if known else "-", f"{scaled}/{len(rows)}",
        )  # fmt: skip
    console.print(table)
    _print_kept(plan)
    _print_notes(outcome)
    _print_spending(outcome)
    _print_tuning(outcome)
    if outcome.samples:
        console.print("error: share of the output's energy over the calibration tokens", style="dim")
        console.print(f"calibrated on {outcome.samples} conversations, {outcome.tokens} tokens", highlight=False)
        if outcome.skipped:
            console.print(f"left out {outcome.skipped} bad rows (quantkit calib check lists them)", highlight=False)
    seconds = ", ".join(f"{phase} {count:.1f} s" for phase, count in outcome.seconds.items())
    console.print(
        f"{megabytes(plan.bytes_before)} -> {megabytes(outcome.bytes_after)} on disk; {seconds}", highlight=False
    )
    console.print(
        f"next: quantkit verify {outcome.source} {outcome.out}", highlight=False, soft_wrap=True, markup=False
    )
