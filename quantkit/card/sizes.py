"""Where the bytes are: source against variant, part by part, from the weight files' headers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from quantkit.card.variant import Variant
from quantkit.integrity.inventory import Inventory, Row, take_inventory

SOURCE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTIZED, PLAIN = "quantized linears", "linears"


@dataclass(frozen=True)
class PartSize:
    """One part of one file: its weights, its bytes here, and how they are stored."""

    what: str
    stored: str
    weights: int
    bytes: int

    @property
    def bits(self) -> float:
        return 8 * self.bytes / max(1, self.weights)

    def in_source(self, each: int) -> int:
        """Bytes of the same weights in the source, at so many bytes each."""
        return self.weights * each


@dataclass(frozen=True)
class FileSize:
    """A weight file, or all of a checkpoint's: name, parts, bytes on disk with headers."""

    name: str
    inventory: Inventory
    parts: tuple[PartSize, ...]
    file_bytes: int

    @property
    def whole(self) -> PartSize:
        """All parts together."""
        weights, size = sum(part.weights for part in self.parts), sum(part.bytes for part in self.parts)
        return PartSize(self.name, "", weights, size)


def file_sizes(variant: Variant) -> list[FileSize]:
    """Every text and vision file of a GGUF folder, split sets as one; a checkpoint as one."""
    if variant.checkpoint is not None:
        found = take_inventory(variant.checkpoint)
        return [FileSize(variant.path.name, found, tuple(_parts(found)), found.file_bytes)]
    from quantkit.gguf.inventory import take_gguf_inventory

    firsts = [*(parts[0] for parts in variant.texts.values()), *variant.visions]
    inventories = [take_gguf_inventory(file) for file in firsts]
    return [
        FileSize(file.name, found, tuple(_parts(found)), found.file_bytes)
        for file, found in zip(firsts, inventories, strict=True)
    ]


def _parts(found: Inventory) -> Iterable[PartSize]:
    """The linears by how they are stored, then what stayed as it was."""
    packed = found.bits_per_quantized_weight is not None
    groups: dict[str, list[Row]] = {}
    for row in found.linears:
        groups.setdefault(stored(row), []).append(row)
    for how, rows in groups.items():
        weights = sum(row.out_features * row.in_features for row in rows)
        yield PartSize(QUANTIZED if packed else PLAIN, how, weights, sum(row.bytes for row in rows))
    for part in found.rest:
        yield PartSize(part.what, "/".join(part.dtypes), part.elements, part.bytes)


def stored(row: Row) -> str:
    """How a linear is stored: its GGUF type, else its bits and groups."""
    if row.layout not in ("awq", "gptq", "compressed-tensors", "bitsandbytes", "plain"):
        return row.layout
    if row.layout == "plain" or row.bits is None:
        return "?" if row.bits is None else f"{row.bits} bit"
    group = {None: "", -1: ", row"}.get(row.group_size, f", group {row.group_size}")
    return f"{row.bits} bit{group}"
