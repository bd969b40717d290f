"""The loss that every search in quantkit minimises, exact for any number of calibration tokens.

For a linear with inputs X [tokens, in] and Gram matrix H = X^T X, a candidate W' in place of W changes the outputs by

    ||X (W' - W)^T||^2 = tr((W' - W) H (W' - W)^T).
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGE = 1024  # input channels from which products are taken in bfloat16


def row_losses(error: Tensor, gram: Tensor) -> Tensor:
    """The loss of each output row: ``error`` [out, in], ``gram`` [in, in] of one dtype -> float32 [out]."""
    return (error @ gram).mul_(error).float().sum(1)


def loss(error: Tensor, gram: Tensor) -> float:
    """``tr(E H E^T)`` for ``error`` [out, in] and ``gram`` [in, in]."""
    return float(row_losses(error, gram).double().sum())


def product_dtype(gram: Tensor) -> torch.dtype:
    """The dtype to *rank* candidates in: bfloat16 for large ``gram``, which takes a quarter of the time on a CPU.

    Where inputs are strongly correlated a loss may cancel below what bfloat16 resolves; decisions and reported figures
    are therefore taken in float32.
    """
    return torch.bfloat16 if gram.shape[0] >= _LARGE else torch.float32


def relative_error(candidate: Tensor, weight: Tensor, gram: Tensor) -> float:
    """Share of the output's energy that ``candidate`` in place of ``weight`` (float32 [out, in]) puts in error."""
    energy = loss(weight, gram)
    return loss(candidate - weight, gram) / energy if energy > 0 else 0.0
