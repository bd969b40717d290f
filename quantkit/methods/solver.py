"""GPTQ: rounding on a given grid, the error of each column fed into the columns that follow.

This is the solver of Frantar et al. (arXiv:2210.17323). Columns are taken in the order of their importance ``H_ii``,
largest first (act-order; groups stay where they are, so inference is not concerned), or from left to right. With ``U``
the upper Cholesky factor of the inverse of the damped ``H``, rounding column ``i`` with error ``e`` moves the columns
``j`` that follow by ``-e U_ij / U_ii``, the least-squares answer to that error. What the row then loses is

    sum_i (error_i / U_ii)^2,

so ``1 / U_ii^2`` is what an error in column ``i`` costs once the later columns have answered it: its *conditional
variance*, by which grids and scales are chosen (``Factor.costs``). Rows that end above plain rounding's exact loss
(possible: the solver is greedy, and ``H`` is damped) take plain rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from quantkit.errors import QuantkitError
from quantkit.grid import EvenLattice, GridSpec, QuantizedWeight, round_to_grid
from quantkit.methods.loss import row_losses

DAMPING = 0.01  # of the mean of H's diagonal, GPTQ's own default
_BLOCK = 64  # columns rounded one by one before the rest of the matrix is brought up to date in one product
_MOST_DAMPING = 1e6

AnyCandidate = TypeVar("AnyCandidate", bound="Candidate")


@dataclass(frozen=True)
class Factor:
    """order int64 [in]: columns as the solver takes them. upper float32 [in, in]: the factor, in that order. damping:
    the share of the mean diagonal that was added; shrinkage: the share of all else that was taken off."""

    order: Tensor
    upper: Tensor
    damping: float
    shrinkage: float = 0.0

    @property
    def costs(self) -> Tensor:
        """What a squared error in each column costs, ``1 / U_ii^2``, float32 [in] in the weight's order."""
        costs = torch.empty_like(self.order, dtype=self.upper.dtype)
        costs[self.order] = self.upper.diagonal().square().reciprocal()
        return costs

    def solve(self, rows: Tensor) -> Tensor:
        """``rows @ (gram + d I)^-1`` for rows [n, in]."""
        solved = torch.empty_like(rows)
        solved[:, self.order] = rows[:, self.order] @ self.upper.T @ self.upper
        return solved

    def scaled(self, columns: Tensor) -> Factor:
        """The factor of the Gram matrix of inputs that were divided by ``columns`` [in], without a decomposition."""
        return replace(self, upper=self.upper * columns[self.order])

    def seen(self, gram: Tensor) -> Tensor:
        """``gram`` as the factor has it, with its shrinkage and damping: where nothing was seen, weights stay."""
        mean = float(gram.diagonal().mean())
        found = _shrunk(gram, self.shrinkage)
        found.diagonal().add_(self.damping * mean if mean > 0 else 1.0)
        return found


def factorise(gram: Tensor, damping: float = DAMPING, act_order: bool = True, shrinkage: float = 0.0) -> Factor:
    """``U`` upper triangular with ``U^T U = (gram + d I)^-1`` in the solver's order; d grows tenfold where it must.

    gram float32 [in, in]; ``shrinkage``: the share of what is off its diagonal that is taken off first. Raises
    QuantkitError if it holds NaN or Inf, or stays indefinite under any damping.
    """
    if not torch.isfinite(gram).all():
        raise QuantkitError("a Gram matrix holds NaN or Inf; gather the statistics again")
    diagonal = gram.diagonal()
    mean = float(diagonal.clamp(min=0).mean())
    places = torch.arange(len(gram), device=gram.device)
    order = diagonal.argsort(descending=True, stable=True) if act_order else places
    ordered = _shrunk(gram[order][:, order], shrinkage)
    while damping < _MOST_DAMPING:
        damped = ordered.clone()
        # a channel that carries nothing gets a diagonal of its own: any code serves there
        damped.diagonal().add_(damping * mean if mean > 0 else 1.0)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return Factor(order, upper, damping, shrinkage)
        damping *= 10
    raise QuantkitError("a Gram matrix is not positive definite under any damping; gather the statistics again")


def _shrunk(gram: Tensor, share: float) -> Tensor:
    """A copy with all that is off the diagonal taken ``share`` smaller."""
    found = gram * (1 - share)
    found.diagonal().copy_(gram.diagonal())
    return found


class Lattice(Protocol):
    """Where a weight may go, column by column."""

    def nearest(self, column: int, values: Tensor) -> tuple[Tensor, Tensor]:
        """The codes nearest to ``values`` [out] of a column, and what they stand for, both float [out]."""


class Candidate(Protocol):
    """A weight in integers, of any kind."""

    def dequantize(self) -> Tensor: ...

    def where(self, better: Tensor, other: Self) -> Self:
        """The other's rows where ``better`` bool [out]."""


def feedback(weight: Tensor, factor: Factor, lattice: Lattice) -> Tensor:
    """GPTQ's codes, uint8 [out, in], of ``weight`` float32 [out, in] on ``lattice``."""
    upper, order = factor.upper, factor.order.tolist()
    # columns become rows, so that each step works on neighbouring memory
    rest = weight.T[factor.order]
    codes = torch.empty_like(rest)
    for start in range(0, len(rest), _BLOCK):
        stop = min(start + _BLOCK, len(rest))
        errors = torch.empty_like(rest[start:stop])
        for column in range(start, stop):
            value = rest[column]
            codes[column], found = lattice.nearest(order[column], value)
            error = (value - found) / upper[column, column]
            errors[column - start] = error
            rest[column + 1 : stop].addr_(upper[column, column + 1 : stop], error, alpha=-1)
        rest[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    result = torch.empty_like(codes, dtype=torch.uint8)
    result[factor.order] = codes.to(torch.uint8)
    return result.T.contiguous()


def best_rows(weight: Tensor, gram: Tensor, candidates: Sequence[AnyCandidate]) -> AnyCandidate:
    """Of several results the one with the least exact loss, row by row; the first where they are equal."""
    best = candidates[0]
    least = row_losses(best.dequantize() - weight, gram)
    for other in candidates[1:]:
        losses = row_losses(other.dequantize() - weight, gram)
        better = losses < least
        least = torch.minimum(losses, least)
        best = best.where(better, other)
    return best


def solve(
    weight: Tensor, gram: Tensor, factor: Factor, scales: Tensor, zeros: Tensor, spec: GridSpec
) -> QuantizedWeight:
    """GPTQ on a fixed grid, scales float16 and zeros uint8 [out, groups]; no row's loss is above that of the nearest
    codes."""
    codes = feedback(weight, factor, EvenLattice(scales, zeros, spec, weight.shape[1]))
    solved = QuantizedWeight(codes, scales, zeros, spec)
    return best_rows(weight, gram, [round_to_grid(weight, scales, zeros, spec), solved])
