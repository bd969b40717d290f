"""What a format's configuration says of the whole file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quantkit.grid import GridSpec


@dataclass(frozen=True)
class Contents:
    """spec: the grid of most linears; grids: of every quantized one, by full name; skipped: module names and prefixes
    that stay as they are; blocks: the prefix of the blocks that are quantized, ends in a dot; fused: of linears that
    runtimes load as one, the full name of the one."""

    spec: GridSpec
    grids: Mapping[str, GridSpec]
    skipped: Sequence[str]
    blocks: str
    version: str
    damping: float = 0.01
    fused: Mapping[str, str] = field(default_factory=dict)
