"""Layer errors arranged: a grid of blocks by linears for the language model, strips for vision tower and merger."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quantkit.report.figures import clean, number, signed
from quantkit.report.tables import Cell, Column, Table

if TYPE_CHECKING:
    from quantkit.verify.report import EngineResult, LayerError

LEVELS = 8
WITHIN_BLOCK = re.compile(r"(?:.*\.)?(?:layers|blocks|h)\.\d+\.")


@dataclass(frozen=True)
class Layers:
    """Errors by place. `linears` maps (layer, short name) to its entry; blocks and vision layers are in order.

    `low` and `high` end the colour scale: the language model's smallest and largest error, two decades at most.
    """

    blocks: list[LayerError] = field(default_factory=list)
    linears: dict[tuple[int, str], LayerError] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)  # short names of linears, in the order they turn up
    rows: list[int] = field(default_factory=list)
    vision: list[LayerError] = field(default_factory=list)
    merger: list[LayerError] = field(default_factory=list)
    low: float = 0.0
    high: float = 0.0

    def level(self, error: float) -> int:
        """Its step on the colour scale, 0 to 7, logarithmic between the smallest and the largest error."""
        return level(error, self.low, self.high)


def level(error: float, low: float, high: float) -> int:
    """An error's step on a logarithmic colour scale from `low` to `high`, 0 to 7."""
    if error <= low or high <= low or not math.isfinite(error):
        return 0 if error <= low else LEVELS - 1
    place = math.log(error / low) / math.log(high / low)
    return min(int(place * LEVELS), LEVELS - 1)


def arrange(engine: EngineResult) -> Layers | None:
    """The engine's layer errors arranged; None without any."""
    if not engine.layers:
        return None
    scale = [e.error for e in engine.layers if e.kind in ("block", "linear")] or [e.error for e in engine.layers]
    high = max(scale, default=0.0)
    low = max(min((error for error in scale if error > 0), default=0.0), high / 100)
    linears = {(entry.layer, short(entry.name)): entry for entry in engine.layers if _in_grid(entry)}
    blocks = sorted((e for e in engine.layers if e.kind == "block" and e.layer is not None), key=lambda e: e.layer or 0)
    return Layers(
        blocks=blocks,
        linears={(row or 0, name): entry for (row, name), entry in linears.items()},
        names=list(dict.fromkeys(name for _, name in linears)),
        rows=sorted({row or 0 for row, _ in linears} | {entry.layer or 0 for entry in blocks}),
        vision=[entry for entry in engine.layers if entry.kind == "vision"],
        merger=[e for e in engine.layers if e.kind == "merger" or (e.kind in ("block", "linear") and e.layer is None)],
        low=low,
        high=high,
    )


def _in_grid(entry: LayerError) -> bool:
    return entry.kind == "linear" and entry.layer is not None


def short(name: str) -> str:
    """A linear's name within its block: `self_attn.q_proj`."""
    return clean(WITHIN_BLOCK.sub("", name))


def grid(layers: Layers) -> Table:
    """Rows are blocks, columns the block itself, its growth, and its linears; per cent of the output's norm."""
    columns = [Column("layer", False), Column("block"), Column("growth", title="error − error of the block before")]
    last = [name.rpartition(".")[2] for name in layers.names]
    columns += [
        Column(end if last.count(end) == 1 else name, title=name) for end, name in zip(last, layers.names, strict=True)
    ]
    blocks = {entry.layer: entry for entry in layers.blocks}
    rows = []
    for row in layers.rows:
        block = blocks.get(row)
        growth = "" if block is None or block.growth is None else signed(block.growth)
        cells = [Cell(str(row)), _cell(layers, block), Cell(growth)]
        rows.append(cells + [_cell(layers, layers.linears.get((row, name))) for name in layers.names])
    caption = "Relative output error of the language model's blocks and linears, per cent"
    return Table(caption, columns, [(None, rows)] if rows else [])


def _cell(layers: Layers, entry: LayerError | None) -> Cell:
    if entry is None:
        return Cell("", tone="none")
    return Cell(percent(entry.error), tone=f"q{layers.level(entry.error)}")


def strip(caption: str, layers: Layers, entries: list[LayerError]) -> Table:
    """Vision or merger modules, one a row."""
    rows = [[Cell(clean(e.name), foreign=True), _cell(layers, e)] for e in entries]
    return Table(caption, [Column("module", False), Column("error, %")], [(None, rows)] if rows else [])


def percent(error: float) -> str:
    """An error in per cent, without the sign."""
    value = 100 * error
    return number(value) if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def largest(layers: Layers) -> str:
    """A sentence on where the error is largest and where it grows most."""
    parts = []
    if layers.linears:
        (row, name), worst = max(layers.linears.items(), key=lambda pair: pair[1].error)
        parts.append(f"largest linear error {percent(worst.error)} % at layer {row}, {name}")
    grown = [entry for entry in layers.blocks if entry.growth is not None]
    if grown:
        most = max(grown, key=lambda entry: entry.growth or 0.0)
        parts.append(f"largest growth {signed(most.growth)} points in block {most.layer}")
    if layers.blocks:
        parts.append(f"last block {percent(layers.blocks[-1].error)} %")
    return ("; ".join(parts) + ".").capitalize() if parts else ""
