"""The loss that every search in quantkit minimises, exact for any number of calibration tokens.

For a linear with inputs X [tokens, in] and Gram matrix H = X^T X, a candidate W' in place of W changes the outputs by

    ||X (W' - W)^T||^2 = tr((W' - W) H (W' - W)^T).
"""

from __future__ import annotations

from torch import Tensor


def row_losses(error: Tensor, gram: Tensor) -> Tensor:
    """The loss of each output row: ``error`` [out, in], ``gram`` [in, in] of one dtype -> float32 [out]."""
    return (error @ gram).mul_(error).float().sum(1)


def loss(error: Tensor, gram: Tensor) -> float:
    """``tr(E H E^T)`` for ``error`` [out, in] and ``gram`` [in, in]."""
    return float(row_losses(error, gram).double().sum())
