"""Rounding on a given grid: nearest code by code, or with the error of each column fed into the columns that follow.

``feedback`` is GPTQ's solver (Frantar et al., arXiv:2210.17323) on a fixed grid. Columns are taken in the order of
their importance ``H_ii``, largest first (act-order; groups stay where they are: inference is not concerned). With
``U`` the upper Cholesky factor of the inverse of the damped ``H``, rounding column ``i`` with error ``e`` moves the
columns ``j`` that follow by ``-e U_ij / U_ii``, the least-squares answer to that error. Rows that end above plain
rounding's exact loss (possible: the solver is greedy, and ``H`` is damped) take plain rounding.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from quantkit.errors import QuantkitError
from quantkit.grid import GridSpec, QuantizedWeight, round_to_grid
from quantkit.methods.loss import row_losses

log = logging.getLogger(__name__)

DAMPING = 0.01  # of the mean of H's diagonal, GPTQ's own default
_BLOCK = 128  # columns rounded one by one before the rest of the matrix is brought up to date in one product


def nearest(weight: Tensor, gram: Tensor, scales: Tensor, zeros: Tensor, spec: GridSpec) -> QuantizedWeight:
    """The nearest codes of ``weight`` float32 [out, in] on the grid; ``gram`` is not looked at."""
    del gram
    return round_to_grid(weight, scales, zeros, spec)


def feedback(weight: Tensor, gram: Tensor, scales: Tensor, zeros: Tensor, spec: GridSpec) -> QuantizedWeight:
    """Codes of ``weight`` float32 [out, in] on the grid, chosen column by column for inputs with Gram matrix ``gram``.

    scales float16, zeros uint8, both [out, groups]. No row's loss is above that of the nearest codes.
    """
    plain = round_to_grid(weight, scales, zeros, spec)
    order = gram.diagonal().argsort(descending=True, stable=True)
    factor = inverse_factor(gram[order][:, order])
    size = weight.shape[1] // scales.shape[1]
    codes = _solve(weight[:, order], factor, scales.float()[:, order // size], zeros.float()[:, order // size], spec)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    solved = QuantizedWeight(codes[:, back].to(torch.uint8), scales, zeros, spec)
    losses = [row_losses(found.dequantize() - weight, gram) for found in (plain, solved)]
    better = (losses[1] < losses[0]).unsqueeze(1)
    return QuantizedWeight(torch.where(better, solved.codes, plain.codes), scales, zeros, spec)


def inverse_factor(gram: Tensor) -> Tensor:
    """Upper triangular U with ``U^T U = (gram + d I)^-1``; the damping d grows tenfold while Cholesky fails."""
    diagonal = gram.diagonal().clamp(min=0)
    mean = float(diagonal.mean())
    damping = DAMPING
    if not torch.isfinite(gram).all():
        raise QuantkitError("a Gram matrix holds NaN or Inf; gather the statistics again")
    while True:
        damped = gram.clone()
        # a channel that carries nothing gets a diagonal of its own: any code serves there
        damped.diagonal().add_(damping * mean if mean > 0 else 1.0)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return upper
        damping *= 10
        log.warning("the Gram matrix is not positive definite; damping raised to %g of its mean diagonal", damping)


def _solve(weight: Tensor, factor: Tensor, scales: Tensor, zeros: Tensor, spec: GridSpec) -> Tensor:
    """Codes float32 [out, in] of columns in the solver's order; scales and zeros are one value a column, [out, in]."""
    # columns become rows, so that each step works on neighbouring memory
    rest, scale, zero = weight.T.contiguous(), scales.T.contiguous(), zeros.T.contiguous()
    codes = torch.empty_like(rest)
    for start in range(0, len(rest), _BLOCK):
        stop = min(start + _BLOCK, len(rest))
        errors = torch.empty_like(rest[start:stop])
        for column in range(start, stop):
            value = rest[column]
            code = torch.div(value, scale[column]).round_().add_(zero[column]).clamp_(0, spec.max_code)
            codes[column] = code
            error = (value - (code - zero[column]) * scale[column]) / factor[column, column]
            errors[column - start] = error
            rest[column + 1 : stop].addr_(factor[column, column + 1 : stop], error, alpha=-1)
        rest[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return codes.T.contiguous()


SOLVERS = {"rtn": nearest, "gptq": feedback}
