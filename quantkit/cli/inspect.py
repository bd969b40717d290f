"""`quantkit inspect`: what a checkpoint holds, layer by layer, from its headers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from quantkit.cli.shared import console, escape, megabytes
from quantkit.errors import QuantkitError

if TYPE_CHECKING:
    from quantkit.integrity.inventory import Inventory, Row

HEADINGS = ("linear", "layers", "layout", "bits", "group", "shape", "MB", "bits a weight")
SHORT = {"compressed-tensors": "compressed", "bitsandbytes": "bnb"}
_NAMED = 6  # kept linears and notes to print before a count takes over


def inspect(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or tiny.", metavar="DIR")],
    layers: Annotated[bool, typer.Option("--layers", help="A line for every layer's linear.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all of it as JSON to this file; - for the terminal.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    token: Annotated[
        str | None, typer.Option(help="Hub token. (default: the hub's own login)", envvar="HF_TOKEN", show_envvar=False)
    ] = None,
) -> None:
    """Show what is quantized, and how: bits, group, size of every linear, what stayed as it is, and who made it.

    Reads headers only. Takes AWQ, GPTQ, compressed-tensors, bitsandbytes and unquantized checkpoints, whoever made
    them. Whether the numbers in them are right is what `quantkit verify` says.
    """
    from quantkit.checkpoint import open_checkpoint
    from quantkit.integrity.inventory import take_inventory

    found = take_inventory(open_checkpoint(model, revision, token, verify_checksums=False))
    if json_file is not None:
        _write(found, json_file)
    if json_file is None or str(json_file) != "-":
        _print(found, layers)


def _write(found: Inventory, target: Path) -> None:
    text = json.dumps(_content(found), indent=2, ensure_ascii=False)
    if str(target) == "-":
        typer.echo(text)
        return
    try:
        target.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise QuantkitError(f"--json {target}: cannot be written ({error.strerror})") from error


def _content(found: Inventory) -> dict[str, Any]:
    """All that was found; of quantkit.json not the list of calibration items, nor the layers a second time."""
    made = {key: value for key, value in found.provenance.items() if key != "layers"}
    if isinstance(made.get("calibration"), dict):
        made["calibration"] = {
            key: value for key, value in made["calibration"].items() if key not in ("items", "pictures")
        }
    return {
        "name": found.name,
        "method": found.method,
        "bytes": found.bytes,
        "file_bytes": found.file_bytes,
        "parameters": found.parameters,
        "bits_per_weight": round(found.bits_per_weight, 4),
        "bits_per_quantized_weight": _rounded(found.bits_per_quantized_weight),
        "linears": [asdict(row) | {"bits_per_weight": round(row.bits_per_weight, 4)} for row in found.linears],
        "rest": [asdict(part) for part in found.rest],
        "kept": found.kept,
        "provenance": made,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


# ---- tables -------------------------------------------------------------------------------------------------------


def _print(found: Inventory, layers: bool) -> None:
    from quantkit.integrity.inventory import grouped

    table = _table(f"{found.name}: {found.method or 'not quantized'}", HEADINGS)
    groups = [(row, [row]) for row in found.linears] if layers else grouped(found.linears)
    for row, members in groups:
        table.add_row(*_cells(row, members))
    console.print(table)
    console.print()
    rest = _table("what stayed as it is", ("part", "tensors", "dtype", "MB"))
    for part in found.rest:
        rest.add_row(part.what, str(part.tensors), "/".join(part.dtypes), f"{part.bytes / 1e6:.2f}")
    console.print(rest)
    console.print()
    if found.kept and found.bits_per_quantized_weight is not None:
        _line(f"kept: {_some(found.kept)}")
    _print_totals(found)
    _print_provenance(found)


def _table(title: str, headings: tuple[str, ...]) -> Table:
    """Narrow enough for a terminal of 80 columns."""
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in headings:
        left = heading in ("linear", "layout", "part", "dtype")
        table.add_column(heading, justify="left" if left else "right", no_wrap=heading in ("linear", "bits", "shape"))
    return table


def _cells(row: Row, members: list[Row]) -> list[str]:
    numbers = [str(one.layer) for one in members if one.layer is not None]
    which = numbers[0] if len(members) == 1 and numbers else str(len(members))
    bits = "?" if row.bits is None else f"{row.bits} {'sym' if row.symmetric else 'asym'}"
    if row.bits is not None and row.symmetric is None:
        bits = str(row.bits)
    group = {None: "-", -1: "row"}.get(row.group_size, str(row.group_size))
    shape = f"{row.out_features}x{row.in_features}" if row.out_features else "?"
    size = sum(one.bytes for one in members) / 1e6
    place = f"#{which}" if len(members) == 1 and numbers else which
    layout = SHORT.get(row.layout, row.layout)
    density = f"{row.bits_per_weight:.2f}" if row.out_features else "?"
    return [escape(row.kind), place, layout, bits, group, shape, f"{size:.2f}", density]


def _print_totals(found: Inventory) -> None:
    quantized = found.bits_per_quantized_weight
    inside = "" if quantized is None else f", {quantized:.2f} in the {len(found.linears)} quantized linears"
    _line(
        f"size: {megabytes(found.file_bytes)}, {found.parameters / 1e6:.1f} M weights; "
        f"{found.bits_per_weight:.2f} bits a weight{inside} (scales and zero points included)"
    )


def _print_provenance(found: Inventory) -> None:
    made = found.provenance
    if not made:
        return
    given = made.get("options")
    options: dict[str, Any] = given if isinstance(given, dict) else {}
    shown = [f"{key} {options[key]}" for key in ("method", "solver", "samples", "seed") if options.get(key) is not None]
    _line(f"made by: quantkit {made.get('quantkit', '?')}; {', '.join(shown)}")
    source, calibration = made.get("source"), made.get("calibration")
    if isinstance(source, dict):
        _line(f"from: {source.get('name')} ({str(source.get('fingerprint'))[:12]})")
    if isinstance(calibration, dict) and calibration.get("fingerprint"):
        counts = f"{calibration.get('samples')} conversations, {calibration.get('tokens')} tokens"
        _line(f"calibrated on: {counts} ({str(calibration['fingerprint'])[:12]})")
    for name, words in (("budget", _budget), ("tuning", _tuning)):
        told = made.get(name)
        if isinstance(told, dict):
            _line(words(told))
    notes: dict[str, list[str]] = {}
    for row in found.linears:
        if row.note:
            notes.setdefault(row.note, []).append(row.name)
    for note, names in notes.items():
        _line(f"note: {note}: {_some(names)}")


def _budget(told: dict[str, Any]) -> str:
    return (
        f"budget: {told.get('asked')} asked for, {told.get('bits_per_weight')} bits a weight of all linears, "
        "those that stayed as they are included"
    )


def _tuning(told: dict[str, Any]) -> str:
    counted = f"{told.get('kl_before')} -> {told.get('kl_after')} nats a token on {told.get('withheld')} conversations"
    return f"scales tuned: {counted}{'' if told.get('taken') else ', not taken'}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _line(text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)
