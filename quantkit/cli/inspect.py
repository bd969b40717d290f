"""`quantkit inspect`: what a checkpoint or a GGUF file holds, layer by layer, from its headers."""

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
    from quantkit.gguf.inventory import Budget, GgufInventory
    from quantkit.integrity.inventory import Inventory, Part, Row

HEADINGS = ("linear", "layers", "layout", "bits", "group", "shape", "MB", "bits a weight")
SHORT = {"compressed-tensors": "compressed", "bitsandbytes": "bnb"}
_NAMED = 6  # kept linears and notes to print before a count takes over


def inspect(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, tiny, or a .gguf file.", metavar="DIR")],
    layers: Annotated[
        bool, typer.Option("--layers", help="A line for every layer's linear; of GGUF, every tensor.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all of it as JSON to this file; - for the terminal.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Positions that a GGUF file's memory is for. (default: 4096)", min=1, max=1 << 32)
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    token: Annotated[
        str | None, typer.Option(help="Hub token. (default: the hub's own login)", envvar="HF_TOKEN", show_envvar=False)
    ] = None,
) -> None:
    """Show what is quantized, and how: bits, group, size of every linear, what stayed as it is, and who made it.

    Reads headers only. Takes AWQ, GPTQ, compressed-tensors, bitsandbytes and unquantized checkpoints, whoever made
    them, and GGUF files (one, the first of a split set, or a folder of them) with the memory they take on a device.
    Whether the numbers in them are right is what `quantkit verify` says.
    """
    if _is_gguf(model):
        _inspect_gguf(Path(model).expanduser(), layers, json_file, context)
        return
    if context is not None:
        raise QuantkitError(f"--context: is for GGUF files, and {model} is none; leave it out")
    from quantkit.checkpoint import open_checkpoint
    from quantkit.integrity.inventory import take_inventory

    found = take_inventory(open_checkpoint(model, revision, token, verify_checksums=False))
    if json_file is not None:
        _write(_content(found), json_file)
    if json_file is None or str(json_file) != "-":
        _print(found, layers)


def _is_gguf(model: str) -> bool:
    """Whether it names a GGUF file, by its end or its first bytes (Ollama's have no end), or a folder of them."""
    from quantkit.verify.ggufset import is_gguf

    path = Path(model).expanduser()
    try:
        if path.is_file() and path.suffix != ".gguf":
            with path.open("rb") as file:
                return file.read(4) == b"GGUF"
        return is_gguf(path)
    except OSError:  # whoever opens it says what is wrong
        return False


def _write(content: dict[str, Any], target: Path) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
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
    _print_linears(f"{found.name}: {found.method or 'not quantized'}", found, layers)
    _print_rest("what stayed as it is", found.rest)
    _print_end(found)


def _print_linears(title: str, found: Inventory, layers: bool) -> None:
    from quantkit.integrity.inventory import grouped

    table = _table(title, HEADINGS)
    groups = [(row, [row]) for row in found.linears] if layers else grouped(found.linears)
    for row, members in groups:
        table.add_row(*_cells(row, members))
    console.print(table)
    console.print()


def _print_rest(title: str, parts: list[Part]) -> None:
    rest = _table(title, ("part", "tensors", "dtype", "MB"))
    for part in parts:
        rest.add_row(escape(part.what), str(part.tensors), "/".join(part.dtypes), f"{part.bytes / 1e6:.2f}")
    console.print(rest)
    console.print()


def _print_end(found: Inventory) -> None:
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
    given = made.get("recipe")
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
    return f"tuned: {counted}{'' if told.get('taken') else ', not taken'}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _line(text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)


# ---- GGUF ---------------------------------------------------------------------------------------------------------


def _inspect_gguf(path: Path, layers: bool, json_file: Path | None, context: int | None) -> None:
    from quantkit.gguf.inventory import CONTEXT, budgets, gguf_paths, take_gguf_inventory

    found = [take_gguf_inventory(file) for file in gguf_paths(path)]
    memory = budgets(found, path, context or CONTEXT)
    if json_file is not None:
        files = [_gguf_content(one, memory.get(one.name)) for one in found]
        _write({"name": path.name, "files": files} if path.is_dir() else files[0], json_file)
    if json_file is not None and str(json_file) == "-":
        return
    for one in found:
        _print_gguf(one, layers)
        if one.name in memory:
            _print_budget(one, memory[one.name])
        elif one.facts.kind == "model":
            _line(f"memory: not known for {one.facts.architecture or 'a file that names no architecture'}")
        console.print()


def _gguf_content(found: GgufInventory, memory: Budget | None) -> dict[str, Any]:
    budget = None if memory is None else asdict(memory) | {"total": memory.total}
    return _content(found) | {"gguf": asdict(found.facts), "memory": budget}


def _print_gguf(found: GgufInventory, layers: bool) -> None:
    facts = found.facts
    _print_linears(f"{found.name}: {facts.file_type or facts.kind}", found, layers)
    _print_rest("beside these linears", found.singly() if layers else found.rest)
    mode = f", {facts.downsample_mode}" if facts.downsample_mode else ""
    said = {
        "architecture": facts.architecture,
        "name": facts.name,
        "projector": f"{facts.projector}{mode}" if facts.projector else None,
        "context": facts.context_length,
        "vocabulary": facts.vocabulary,
        "files": facts.files if facts.files > 1 else None,
    }
    _line("; ".join(f"{what} {value}" for what, value in said.items() if value is not None))
    _print_end(found)


def _print_budget(found: GgufInventory, memory: Budget) -> None:
    console.print()
    table = _table(f"memory at {memory.context} positions", ("part", "MB"))
    for need in (*memory.needs, None):
        size = memory.total if need is None else need.bytes
        table.add_row("total" if need is None else escape(need.what), "?" if size is None else f"{size / 1e6:.1f}")
    console.print(table)
    console.print()
    _line("memory: of llama.cpp with one conversation; the program around it is not counted")
    whole = memory.total_with_all_logits
    if whole is not None and memory.all_logits is not None and whole != memory.total:
        _line(
            "with room for the logits of a whole batch (llama.h's default n_outputs_max): compute buffers for text of "
            f"{megabytes(memory.all_logits)}, {megabytes(whole)} in all"
        )
    if memory.copies:
        _line(
            f"on an ARM CPU: {megabytes(memory.copies)} of the weights are kept in the kernels' order as well; "
            "the system can drop the file's pages of these"
        )
    if memory.missing:
        _line(f"not known: the file does not say {', '.join(memory.missing)}")
    trained = found.facts.context_length
    if found.facts.kind != "mmproj" and trained is not None and memory.context > trained:
        _line(f"note: the model was trained on {trained} positions")
