"""One tensor of a GGUF file: float values to the bytes of a type, by the solver that was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.blockgrid import GRIDS
from quantkit.errors import QuantkitError
from quantkit.formats.gguf.blocks import pack
from quantkit.methods.blockfit import fit, one_thread_each
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


def encode(name: str, weight: Tensor, kind: str, known: Knowledge | None = None) -> Encoded:
    """``weight`` [rows, width] in the type ``kind``; QuantkitError, the tensor named, for what does not fit F16."""
    if kind in _FLOATS:
        return Encoded(_floats(name, weight, kind))
    grid = GRIDS[kind]
    if known is None or known.gram is None or known.factor is None:
        with one_thread_each() as workers:
            blocks = fit(weight, grid, None if known is None else known.costs, workers)
    else:
        blocks = refine_blocks(weight.float(), known.gram, known.factor, grid)
    if not (blocks.d.isfinite().all() and (blocks.dmin is None or blocks.dmin.isfinite().all())):
        raise QuantkitError(
            f"{name}: its values overflow the float16 scales of {kind}; keep it: --tensor-type {name}=F32"
        )
    error = float("nan")
    if known is not None and known.gram is not None:
        error = relative_error(blocks.dequantize(), weight.float(), known.gram)
    return Encoded(pack(blocks).cpu(), error)


def _floats(name: str, weight: Tensor, kind: str) -> Tensor:
    stored = weight.to(_FLOATS[kind])
    if kind == "F16" and not torch.isfinite(stored).all():
        raise QuantkitError(f"{name}: its values overflow float16; use BF16 or F32 (--tensor-type {name}=BF16)")
    return stored.flatten().view(torch.uint8).cpu()
