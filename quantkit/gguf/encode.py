"""One tensor of a GGUF file: float values to the bytes of a type, by the solver that was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.blockgrid import GRIDS, HALF_MAX, Blocks
from quantkit.checkpoint import is_finite
from quantkit.errors import QuantkitError
from quantkit.formats.gguf.blocks import pack
from quantkit.methods.blockfit import fit_pieces, one_thread_each
from quantkit.methods.blockrefine import refine_blocks
from quantkit.methods.loss import relative_error
from quantkit.methods.solver import Factor

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Knowledge:
    """What is known of a linear's input, in the order of the file's columns: costs float32 [in], of a squared error in
    each column; gram, factor: the whole matrix, for `refine`."""

    costs: Tensor
    gram: Tensor | None = None
    factor: Factor | None = None


@dataclass(frozen=True)
class Encoded:
    """data: uint8 [rows, row bytes]; error: share of the output's energy, NaN where it is not known."""

    data: Tensor
    error: float = float("nan")


def encode(name: str, weight: Tensor, kind: str, known: Knowledge | None = None, workers: int = 1) -> Encoded:
    """``weight`` [rows, width] in the type ``kind``, by ``workers`` threads where rows are rounded one by one.

    Raises QuantkitError, the tensor named, for what does not fit float16.
    """
    if kind in _FLOATS:
        return Encoded(_floats(name, weight, kind))
    grid = GRIDS[kind]
    if known is None or known.gram is None or known.factor is None:
        with one_thread_each():
            costs = None if known is None else known.costs
            pieces = fit_pieces(weight, grid, lambda blocks: _packed(name, blocks), costs, workers)
            return Encoded(torch.cat(pieces))
    blocks = refine_blocks(weight.float(), known.gram, known.factor, grid)
    return Encoded(_packed(name, blocks), relative_error(blocks.dequantize(), weight.float(), known.gram))


def _packed(name: str, blocks: Blocks) -> Tensor:
    ends = [end for end in (blocks.d, blocks.dmin) if end is not None]
    if not all(float(end.abs().max()) < HALF_MAX for end in ends):  # the solvers stop there; NaN is no less either
        raise QuantkitError(
            f"{name}: its values overflow the float16 scales of {blocks.grid.name}; keep it: --tensor-type {name}=F32"
        )
    return pack(blocks).cpu()


def _floats(name: str, weight: Tensor, kind: str) -> Tensor:
    stored = weight.to(_FLOATS[kind])
    if kind == "F16" and not is_finite(stored):
        raise QuantkitError(f"{name}: its values overflow float16; use BF16 or F32 (--tensor-type {name}=BF16)")
    return stored.flatten().view(torch.uint8).cpu()
