"""ggml's block grids: what a type can hold, and ``Blocks``, a weight in its integers; methods hand it to the format.

Every type stands for ``value = step * level(code) - offset`` over a run of ``run`` neighbouring values. Types of two
levels ("K-quants" and IQ4_XS) cut a block of 256 into runs whose step and offset are small integers times two float16
numbers of the block,

    step = d * scale,    offset = dmin * min,

types of one level have ``step = d`` and, Q4_1 and Q5_1, ``offset = -m``. ``level(code)`` is ``code - centre`` or, for
the IQ4 types, an entry of `IQ4_LEVELS`. The types are those of ggml-common.h
(https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h); their bytes are `formats/gguf/blocks.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

HALF_MAX = 65504.0  # of the float16 numbers that blocks hold
IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class BlockGrid:
    """What a type can hold.

    block: values of a block; run: values that share a step; least, top: smallest and largest code; centre: the code
    that stands for zero; scales: least and largest integer scale, None for types of one level; mins: largest integer
    min (0: no offset, or, at one level, with ``free_offset`` any offset); levels: where codes do not count evenly.
    """

    name: str
    block: int
    top: int
    run: int
    centre: int = 0
    scales: tuple[int, int] | None = None
    mins: int = 0
    free_offset: bool = False
    levels: tuple[int, ...] | None = None
    least: int = 0

    @property
    def has_offset(self) -> bool:
        return self.mins > 0 or self.free_offset


_GRIDS = (
    BlockGrid("Q4_0", 32, 15, 32, centre=8),
    BlockGrid("Q4_1", 32, 15, 32, free_offset=True),
    BlockGrid("Q5_0", 32, 31, 32, centre=16),
    BlockGrid("Q5_1", 32, 31, 32, free_offset=True),
    BlockGrid("Q8_0", 32, 255, 32, centre=128, least=1),
    BlockGrid("Q2_K", 256, 3, 16, scales=(0, 15), mins=15),
    BlockGrid("Q3_K", 256, 7, 16, centre=4, scales=(-32, 31)),
    BlockGrid("Q4_K", 256, 15, 32, scales=(0, 63), mins=63),
    BlockGrid("Q5_K", 256, 31, 32, scales=(0, 63), mins=63),
    BlockGrid("Q6_K", 256, 63, 16, centre=32, scales=(-128, 127)),
    BlockGrid("IQ4_NL", 32, 15, 32, levels=IQ4_LEVELS),
    BlockGrid("IQ4_XS", 256, 15, 32, scales=(-32, 31), levels=IQ4_LEVELS),
)
GRIDS = {grid.name: grid for grid in _GRIDS}


@dataclass(frozen=True)
class Blocks:
    """A weight as integers of one type, over rows of ``width`` values.

    codes uint8 [rows, width]; d float16 [rows, blocks]; scales int16 [rows, runs], of two levels; dmin float16
    [rows, blocks], where there is an offset; mins uint8 [rows, runs], of two levels with an offset.
    """

    grid: BlockGrid
    codes: Tensor
    d: Tensor
    scales: Tensor | None = None
    dmin: Tensor | None = None
    mins: Tensor | None = None

    def steps(self) -> Tensor:
        """float32 [rows, runs]."""
        return _spread(self.d, self.scales)

    def offsets(self) -> Tensor | None:
        """What is taken off, float32 [rows, runs]; None for types without."""
        return None if self.dmin is None else _spread(self.dmin, self.mins)

    def dequantize(self) -> Tensor:
        """float32 [rows, width], in the order of operations of ggml's reader."""
        levels = levels_of(self.codes, self.grid)
        steps, offsets = self.steps(), self.offsets()
        grouped = levels.view(*steps.shape, -1) * steps.unsqueeze(-1)
        if offsets is not None:
            grouped -= offsets.unsqueeze(-1)
        return grouped.view(self.codes.shape)

    def where(self, better: Tensor, other: Blocks) -> Blocks:
        """The other's rows where ``better`` bool [rows]."""

        def chosen(mine: Tensor | None, new: Tensor | None) -> Tensor | None:
            return None if mine is None or new is None else torch.where(better.unsqueeze(1), new, mine)

        return Blocks(
            self.grid,
            torch.where(better.unsqueeze(1), other.codes, self.codes),
            torch.where(better.unsqueeze(1), other.d, self.d),
            chosen(self.scales, other.scales),
            chosen(self.dmin, other.dmin),
            chosen(self.mins, other.mins),
        )


def _spread(ends: Tensor, integers: Tensor | None) -> Tensor:
    """A float16 a block times integers a run -> float32 [rows, runs]."""
    if integers is None:
        return ends.float()
    rows, runs = integers.shape
    return (ends.float().unsqueeze(-1) * integers.view(rows, ends.shape[1], -1).float()).view(rows, runs)


def levels_of(codes: Tensor, grid: BlockGrid) -> Tensor:
    """float32, of the codes' shape."""
    if grid.levels is None:
        return codes.float() - grid.centre if grid.centre else codes.float()
    return torch.tensor(grid.levels, dtype=torch.float32, device=codes.device)[codes.long()]
