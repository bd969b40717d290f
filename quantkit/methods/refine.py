"""Grids for a solver that feeds errors forward, and the descent from its answer.

*Grid.* Plain rounding wants the range that lowers ``sum_j H_jj e_j^2``; under GPTQ an error in column ``j`` costs only
its conditional variance ``1 / U_jj^2`` (``methods/solver.py``). `find_grid` picks for each group of each row, among
shrunk ranges, the one that lowers ``sum_j e_j^2 / U_jj^2`` of the nearest codes.

*Descent.* From GPTQ's codes on, the exact loss ``tr((W' - W) H (W' - W)^T)`` of each row falls by turns:

1. the scale of each group by least squares with the codes fixed, rounded to the format's numbers, taken where the loss
   falls: for errors E and the group's ``B = codes - zero``, ``ds = -<E H, B> / <B H, B>``;
2. each code in turn by coordinate descent: the best real value of column ``j`` with all others fixed is
   ``W'_j - (E H)_j / H_jj``, and on an even grid the best code is the nearest to it.

Both steps are exact in one variable, so no row rises. Columns go in panels: inside one, rank-one updates; the rest of
``E H`` follows in one product a panel. Coordinate descent on codes after GPTQ is known from QuantEase
(arXiv:2309.01885) and CDQuant (arXiv:2406.17542); here it alternates with the scales.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from quantkit.grid import (
    LARGEST_SCALE,
    SCALE_DTYPE,
    SMALLEST_SCALE,
    EvenLattice,
    GridSpec,
    QuantizedWeight,
    Range,
    full_range,
    grid_of,
)
from quantkit.methods.solver import Factor, Lattice, best_rows, solve

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55)
ENDS = (0.85, 0.9, 0.95, 1.05)  # of one end alone, beside the best of the above
ROUNDS = 2
SWEEPS = 2
LEAST_GAIN = 0.002  # of the loss; a round that gains less is the last
_PANEL = 64
_PIECE = 1 << 18  # elements of a weight that are looked at together: they stay in the cache


def find_grid(weight: Tensor, costs: Tensor, spec: GridSpec) -> tuple[Tensor, Tensor]:
    """Scales float16 and zeros uint8, [out, groups], that lower ``sum_j costs_j e_j^2`` of the nearest codes.

    weight float32 [out, in]; costs float32 [in]. No group's sum is above that of its full range.
    """
    rows = max(1, _PIECE // weight.shape[1])
    parts = [_find_grid(piece, costs, spec) for piece in weight.split(rows)]
    return torch.cat([scales for scales, _ in parts]), torch.cat([zeros for _, zeros in parts])


def _find_grid(weight: Tensor, costs: Tensor, spec: GridSpec) -> tuple[Tensor, Tensor]:
    size = spec.group_of(weight.shape[1])
    grouped, costs = weight.reshape(weight.shape[0], -1, size), costs.view(-1, size)
    full = full_range(weight, spec)
    best: Tensor | None = None
    for shrink in SHRINKS:
        span = full.shrink(shrink, shrink)
        scales, zeros = grid_of(span, spec)
        lost = _nearest_loss(grouped, costs, scales, zeros, spec)
        if best is None:
            best, low, high, chosen = lost, span.low, span.high, (scales, zeros)
            continue
        better = lost < best
        best = torch.minimum(lost, best)
        low, high = torch.where(better, span.low, low), torch.where(better, span.high, high)
        chosen = (torch.where(better, scales, chosen[0]), torch.where(better, zeros, chosen[1]))
    assert best is not None
    for span in _one_end(Range(low, high), full, spec):
        scales, zeros = grid_of(span, spec)
        lost = _nearest_loss(grouped, costs, scales, zeros, spec)
        better = lost < best
        best = torch.minimum(lost, best)
        chosen = (torch.where(better, scales, chosen[0]), torch.where(better, zeros, chosen[1]))
    return chosen


def _one_end(span: Range, full: Range, spec: GridSpec) -> Iterable[Range]:
    if spec.symmetric:
        return
    for step in ENDS:
        yield Range(torch.maximum(span.low * step, full.low), span.high)
        yield Range(span.low, torch.minimum(span.high * step, full.high))


def _nearest_loss(grouped: Tensor, costs: Tensor, scales: Tensor, zeros: Tensor, spec: GridSpec) -> Tensor:
    """``sum_j costs_j e_j^2`` of the nearest codes: [out, groups, size] and costs [groups, size] -> [out, groups]."""
    scale, zero = scales.float().unsqueeze(-1), zeros.float().unsqueeze(-1)
    codes = torch.div(grouped, scale).round_().clamp_(-zero, spec.max_code - zero)
    return torch.einsum("rgs,gs->rg", codes.mul_(scale).sub_(grouped).square_(), costs)


def refine(weight: Tensor, gram: Tensor, factor: Factor, spec: GridSpec) -> QuantizedWeight:
    """GPTQ on the grid of `find_grid`, then the descent; no row's loss is above GPTQ's or the nearest codes'.

    weight float32 [out, in], gram float32 [in, in].
    """
    start = solve(weight, gram, factor, *find_grid(weight, factor.costs, spec), spec)
    return descend(weight, gram, start)


def descend(weight: Tensor, gram: Tensor, start: QuantizedWeight) -> QuantizedWeight:
    """Scales and codes by turns from ``start``; no row's loss is above its start."""
    spec = start.spec
    codes, scales, zeros = start.codes.float(), start.scales.float(), start.zeros.float()
    last = float("inf")
    for _ in range(ROUNDS):
        error = _dequantize(codes, scales, zeros).sub_(weight)
        product = error @ gram
        scales = _fit_scales(codes, scales, zeros, gram, error, product)
        codes = descend_codes(weight, codes, gram, error, product, EvenLattice(scales, zeros, spec, weight.shape[1]))
        now = float((error * product).sum())
        if now > last * (1 - LEAST_GAIN):
            break
        last = now
    found = QuantizedWeight(codes.to(torch.uint8), scales.to(SCALE_DTYPE), start.zeros, spec)
    return best_rows(weight, gram, [start, found])


def _dequantize(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    grouped = codes.view(*scales.shape, -1)
    return grouped.sub(zeros.unsqueeze(-1)).mul_(scales.unsqueeze(-1)).view(codes.shape)


def _fit_scales(codes: Tensor, scales: Tensor, zeros: Tensor, gram: Tensor, error: Tensor, product: Tensor) -> Tensor:
    """New scales [out, groups], group after group; brings ``error`` and ``product`` = error @ gram up to date."""
    size, scales = codes.shape[1] // scales.shape[1], scales.clone()
    for group in range(scales.shape[1]):
        part = slice(group * size, (group + 1) * size)
        steps = codes[:, part] - zeros[:, group : group + 1]
        curve = ((steps @ gram[part, part]) * steps).sum(1)
        slope = (product[:, part] * steps).sum(1)
        wanted = scales[:, group] - slope / curve.clamp(min=torch.finfo(curve.dtype).tiny)
        wanted = wanted.clamp(min=SMALLEST_SCALE, max=LARGEST_SCALE).to(torch.bfloat16).float()
        move = wanted - scales[:, group]
        move = torch.where(2 * move * slope + move.square() * curve < 0, move, 0.0)
        scales[:, group] += move
        steps.mul_(move.unsqueeze(1))
        error[:, part] += steps
        product.addmm_(steps, gram[part])
    return scales


def descend_codes(
    weight: Tensor, codes: Tensor, gram: Tensor, error: Tensor, product: Tensor, lattice: Lattice
) -> Tensor:
    """New codes float32 [out, in], column after column; brings ``error`` and ``product`` = error @ gram up to date."""
    codes = codes.clone()
    curves = gram.diagonal()
    telling = (curves > 0).tolist()  # a channel that carries nothing keeps its code
    for _ in range(SWEEPS):
        for start in range(0, weight.shape[1], _PANEL):
            part = slice(start, min(start + _PANEL, weight.shape[1]))
            own = gram[part, part]
            # columns become rows, so that each step works on neighbouring memory
            pull, found, target = (value[:, part].T.contiguous() for value in (product, error, weight))
            before, chosen = found.clone(), codes[:, part].T.contiguous()
            for column in range(len(found)):
                if not telling[start + column]:
                    continue
                wanted = found[column] - pull[column] / curves[start + column] + target[column]
                chosen[column], level = lattice.nearest(start + column, wanted)
                new = level.sub_(target[column])
                pull.addr_(own[column], new - found[column])
                found[column] = new
            moved = found.sub(before).T
            error[:, part] = found.T
            product.addmm_(moved, gram[part])
            codes[:, part] = chosen.T
    return codes
