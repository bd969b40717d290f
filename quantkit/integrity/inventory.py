"""What a checkpoint holds, from headers and config.json alone: a row a linear, what stayed plain, sizes, provenance.

Works for any checkpoint of this architecture, whoever wrote it: AWQ, GPTQ, compressed-tensors, bitsandbytes or plain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from quantkit.checkpoint import Checkpoint
from quantkit.errors import QuantkitError
from quantkit.integrity.stated import stated
from quantkit.integrity.subject import Linear, find_linears, quantization_of
from quantkit.model import EMBEDDING, HEAD, LAYERS_PREFIX, ModelMap, build_map
from quantkit.tensorfile import DTYPES, strict_json

PROVENANCE = "quantkit.json"
_PARTS = (
    ("model.vision_tower.vit_merger.", "merger inside the vision tower"),
    ("model.vision_tower.", "vision tower"),
    ("model.merger.", "merger"),
    (EMBEDDING, "embedding"),
    (HEAD, "head"),
)
_PLAIN_BITS = {"BF16": 16, "F16": 16, "F32": 32}


@dataclass(frozen=True)
class Row:
    """One linear. kind: its name inside its layer. layout: "plain" where nothing is packed. bits, group_size (-1: the
    whole row), symmetric: None where neither shapes nor config tell. bytes: scales and zero points included."""

    name: str
    kind: str
    layer: int | None
    layout: str
    bits: int | None
    group_size: int | None
    symmetric: bool | None
    out_features: int
    in_features: int
    bytes: int
    error: float | None = None
    note: str = ""

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / max(1, self.out_features * self.in_features)


@dataclass(frozen=True)
class Part:
    """Tensors that stayed as they were: what they are, how many, elements, bytes, dtypes."""

    what: str
    tensors: int
    elements: int
    bytes: int
    dtypes: tuple[str, ...]
    names: tuple[str, ...] = ()


@dataclass
class Inventory:
    """linears: the packed ones, or all of the language model where none is. kept: plain ones among them, part of rest.

    bytes: of the tensors; file_bytes: of the weight files. parameters: of the model before it was quantized.
    """

    name: str
    method: str | None
    linears: list[Row]
    rest: list[Part]
    kept: list[str]
    bytes: int
    file_bytes: int
    parameters: int
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / max(1, self.parameters)

    @property
    def bits_per_quantized_weight(self) -> float | None:
        """Of the packed linears, scales and zero points included; None where nothing is packed."""
        packed = [row for row in self.linears if row.layout != "plain"]
        weights = sum(row.out_features * row.in_features for row in packed)
        return 8 * sum(row.bytes for row in packed) / weights if weights else None


def take_inventory(checkpoint: Checkpoint) -> Inventory:
    """Count what ``checkpoint`` holds; raises QuantkitError for another architecture or a damaged quantkit.json."""
    model = build_map(checkpoint.config, checkpoint.name)
    made = _provenance(checkpoint)
    notes = {str(row.get("name")): row for row in made.get("layers", []) if isinstance(row, dict)}
    found = find_linears(checkpoint)
    packed = {name: linear for name, linear in found.items() if linear.packed}
    shown = packed or {name: found[name] for name in model.linears() if name in found}
    rows = [_row(checkpoint, linear, model, notes.get(name, {})) for name, linear in shown.items()]
    used = {tensor for linear in shown.values() for tensor in linear.tensors}
    kept = [name for name in model.linears() if name in found and name not in shown]
    rest = _rest(checkpoint, used, {f"{name}.weight" for name in kept})
    return Inventory(
        checkpoint.name,
        checkpoint.quantization_method,
        sorted(rows, key=lambda row: (row.layer is None, row.layer or 0)),
        rest,
        kept,
        checkpoint.total_bytes,
        sum(path.stat().st_size for path in {checkpoint.info(name).file for name in checkpoint.tensor_names}),
        sum(row.out_features * row.in_features for row in rows) + _elements(checkpoint, used, model.tied),
        made,
    )


def _row(checkpoint: Checkpoint, linear: Linear, model: ModelMap, made: dict[str, Any]) -> Row:
    out, inputs = linear.out_features, linear.in_features
    if not out:  # a packed linear whose tensors do not tell
        out, inputs = model.linears().get(linear.name, (0, 0))
    layer, kind = _place(linear.name)
    bits, group, symmetric = linear.bits, linear.group_size, None
    if linear.layout == "plain":
        bits = _PLAIN_BITS.get(checkpoint.dtype(linear.tensors[0]))
    elif linear.layout != "bitsandbytes":
        said = stated(linear.layout, quantization_of(checkpoint.config), [linear.name])
        symmetric = said.symmetric if said else None
        bits, group = bits or (said.bits if said else None), group or (said.group_size if said else None)
    size = sum(checkpoint.nbytes(name) for name in linear.tensors)
    error, note = made.get("error"), made.get("note") or made.get("notes") or ""
    return Row(
        linear.name, kind, layer, linear.layout, bits, group, symmetric, out, inputs, size,
        error if isinstance(error, int | float) else None,
        note if isinstance(note, str) else "; ".join(str(one) for one in note) if isinstance(note, list) else str(note),
    )  # fmt: skip


def _place(name: str) -> tuple[int | None, str]:
    """The layer of the language model and the name inside it."""
    number, _, kind = name.removeprefix(LAYERS_PREFIX).partition(".")
    inside = name.startswith(LAYERS_PREFIX) and number.isdecimal()
    return (int(number), kind) if inside else (None, name)


def _rest(checkpoint: Checkpoint, used: set[str], kept: set[str]) -> list[Part]:
    groups: dict[str, list[str]] = {}
    for name in checkpoint.tensor_names:
        if name in used:
            continue
        what = next((what for prefix, what in _PARTS if name.startswith(prefix)), None)
        if what is None:
            what = "kept linears" if name in kept else _small(checkpoint, name)
        groups.setdefault(what, []).append(name)
    return [_part(checkpoint, what, names, kept) for what, names in groups.items()]


def _small(checkpoint: Checkpoint, name: str) -> str:
    passenger = len(checkpoint.shape(name)) == 2 and name.endswith((".in_proj_a.weight", ".in_proj_b.weight"))
    return "in_proj_a and in_proj_b" if passenger else "norms and other small tensors"


def _part(checkpoint: Checkpoint, what: str, names: list[str], kept: set[str]) -> Part:
    shown = tuple(name.removesuffix(".weight") for name in names if name in kept)
    dtypes = tuple(dict.fromkeys(checkpoint.dtype(name) for name in names))
    size = sum(checkpoint.nbytes(name) for name in names)
    return Part(what, len(names), sum(math.prod(checkpoint.shape(name)) for name in names), size, dtypes, shown)


def _elements(checkpoint: Checkpoint, used: set[str], tied: bool) -> int:
    """Elements of all tensors outside ``used``; a head tied to the embedding counts once."""
    names = [name for name in checkpoint.tensor_names if name not in used and not (tied and name == HEAD)]
    return sum(checkpoint.nbytes(name) // DTYPES[checkpoint.dtype(name)][1] for name in names)


def _provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    """quantkit.json; empty where there is none."""
    path = checkpoint.path / PROVENANCE
    if not path.is_file():
        return {}
    try:
        value = strict_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise QuantkitError(f"{path}: no valid JSON ({' '.join(str(error).split())}); delete it or mend it") from error
    return value if isinstance(value, dict) else {}


def grouped(rows: list[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """Rows of one kind and the same settings together, in the order of the first of each."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        shape = (row.out_features, row.in_features, row.bytes)
        found.setdefault((row.kind, row.layout, row.bits, row.group_size, row.symmetric, shape), []).append(row)
    for members in found.values():
        yield members[0], members
