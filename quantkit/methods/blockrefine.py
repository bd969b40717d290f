"""ggml's block grids under the whole Gram matrix: error feedback, then descent on everything that a block stores.

llama.cpp's quantizer rounds each value by itself, weighted by ``H_jj``. Here the same bytes are chosen for the loss
``tr((W' - W) H (W' - W)^T)``, H damped and shrunk towards its diagonal as the factor has it (`Factor.seen`):

1. steps and offsets by `blockfit.fit` with the conditional variances ``1 / U_jj^2`` as costs (`solver.Factor.costs`),
   since an error in column ``j`` costs only what later columns cannot answer;
2. GPTQ's feedback on that lattice;
3. by turns, each exact in one variable, so that no row rises: every integer scale and min (for a run with levels ``B``
   and ``d B`` the change of one unit, the best integer is the nearest to the real optimum, the loss being a parabola),
   every float16 ``d`` and ``dmin`` (real optimum, rounded, taken where the loss falls), every code (`refine`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from quantkit.blockgrid import HALF_MAX, BlockGrid, Blocks, levels_of
from quantkit.methods.blockfit import fit, level_table, look_up
from quantkit.methods.refine import descend_codes
from quantkit.methods.solver import Factor, best_rows, feedback

ROUNDS = 3
LEAST_GAIN = 0.002  # of the loss; a round that gains less is the last
SHRINKAGE = 0.1  # of what columns have in common: with so few tokens a part of it is chance, and codes would follow it
_TINY = torch.finfo(torch.float32).tiny


class BlockLattice:
    """The values that ``blocks`` can take with its steps and offsets as they are, column by column."""

    def __init__(self, blocks: Blocks) -> None:
        self._grid = blocks.grid
        steps, offsets = blocks.steps(), blocks.offsets()
        self._steps = steps.T.contiguous()
        self._inverse = torch.where(self._steps == 0, 0.0, self._steps.reciprocal())
        self._offsets = None if offsets is None else offsets.T.contiguous()
        self._table = None if self._grid.levels is None else level_table(self._grid.levels, steps.device)
        self._levels = (
            None if self._grid.levels is None else torch.tensor(self._grid.levels, device=steps.device).float()
        )

    def nearest(self, column: int, values: Tensor) -> tuple[Tensor, Tensor]:
        """The codes nearest to ``values`` [out] of a column, and what they stand for, both float [out]."""
        run, grid = column // self._grid.run, self._grid
        step = self._steps[run]
        offset = None if self._offsets is None else self._offsets[run]
        wanted = (values if offset is None else values + offset) * self._inverse[run]
        if self._table is not None and self._levels is not None:
            code = look_up(wanted, self._table, self._levels)
            level = self._levels[code.long()].mul_(step)
        else:
            code = wanted.round_().add_(grid.centre).clamp_(grid.least, grid.top)
            level = (code - grid.centre).mul_(step)
        return code, level if offset is None else level.sub_(offset)


def refine_blocks(weight: Tensor, gram: Tensor, factor: Factor, grid: BlockGrid) -> Blocks:
    """``weight`` float32 [out, in] as integers of ``grid`` for inputs with Gram matrix ``gram`` [in, in].

    No row's loss, under H as the factor has it, is above that of the nearest codes weighted by ``diag(H)``.
    """
    plain = fit(weight, grid, gram.diagonal())
    start = fit(weight, grid, factor.costs)
    solved = replace(start, codes=feedback(weight, factor, BlockLattice(start)))
    seen = factor.seen(gram)
    return descend_blocks(weight, seen, best_rows(weight, seen, [plain, start, solved]))


def descend_blocks(weight: Tensor, gram: Tensor, start: Blocks) -> Blocks:
    """Scales, ends and codes by turns from ``start``; no row's loss is above its start."""
    work = _Work(weight, gram, start)
    last = work.lost()
    for _ in range(ROUNDS):
        work.fit_runs()
        work.fit_ends()
        work.fit_codes()
        now = work.lost()
        if now > last * (1 - LEAST_GAIN):
            break
        last = now
    return best_rows(weight, gram, [start, work.blocks()])


class _Work:
    """One weight on its way down. error: W' - W; product: error @ gram; both float32 [out, in]."""

    def __init__(self, weight: Tensor, gram: Tensor, start: Blocks) -> None:
        self.weight, self.gram, self.start, self.grid = weight, gram, start, start.grid
        self.codes, self.d = start.codes.float(), start.d.float()
        self.scales = None if start.scales is None else start.scales.float()
        self.dmin = None if start.dmin is None else start.dmin.float()
        self.mins = None if start.mins is None else start.mins.float()
        self.error = start.dequantize().sub_(weight)
        self.product = self.error @ gram

    def lost(self) -> float:
        return float((self.error * self.product).sum())

    def blocks(self) -> Blocks:
        return Blocks(
            self.grid, self.codes.to(torch.uint8), self.d.to(torch.float16),
            None if self.scales is None else self.scales.to(torch.int16),
            None if self.dmin is None else self.dmin.to(torch.float16),
            None if self.mins is None else self.mins.to(torch.uint8),
        )  # fmt: skip

    def fit_runs(self) -> None:
        """Every integer scale and min, run after run."""
        if self.grid.scales is None or self.scales is None:
            return
        per_block, size = self.grid.block // self.grid.run, self.grid.run
        for run in range(self.scales.shape[1]):
            part, block = slice(run * size, (run + 1) * size), run // per_block
            unit = levels_of(self.codes[:, part], self.grid) * self.d[:, block : block + 1]
            least, most = self.grid.scales
            self.scales[:, run] = self._integer(self.scales[:, run], unit, part, least, most)
            if self.mins is not None and self.dmin is not None:
                unit = -self.dmin[:, block : block + 1].expand(-1, size)
                self.mins[:, run] = self._integer(self.mins[:, run], unit, part, 0, self.grid.mins)

    def fit_ends(self) -> None:
        """Every d and dmin, block after block."""
        size = self.grid.block
        per_block = size // self.grid.run
        for block in range(self.d.shape[1]):
            part, runs = slice(block * size, (block + 1) * size), slice(block * per_block, (block + 1) * per_block)
            unit = levels_of(self.codes[:, part], self.grid)
            if self.scales is not None:
                unit = unit * self.scales[:, runs].repeat_interleave(self.grid.run, 1)
            self.d[:, block] = self._half(self.d[:, block], unit, part)
            if self.dmin is not None:
                ones = (
                    torch.ones_like(unit)
                    if self.mins is None
                    else self.mins[:, runs].repeat_interleave(self.grid.run, 1)
                )
                self.dmin[:, block] = self._half(self.dmin[:, block], -ones, part)

    def fit_codes(self) -> None:
        lattice = BlockLattice(self.blocks())
        self.codes = descend_codes(self.weight, self.codes, self.gram, self.error, self.product, lattice)

    def _parabola(self, unit: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Slope (half) and curve, [out], of the loss along ``unit`` [out, columns]."""
        return (self.product[:, part] * unit).sum(1), ((unit @ self.gram[part, part]) * unit).sum(1)

    def _integer(self, now: Tensor, unit: Tensor, part: slice, least: int, most: int) -> Tensor:
        slope, curve = self._parabola(unit, part)
        # where nothing depends on it, it stays
        best = torch.where(curve > 0, (now - slope / curve.clamp(min=_TINY)).round_().clamp_(least, most), now)
        return self._take(now, best, unit, part, slope, curve)

    def _half(self, now: Tensor, unit: Tensor, part: slice) -> Tensor:
        slope, curve = self._parabola(unit, part)
        best = (now - slope / curve.clamp(min=_TINY)).clamp_(-HALF_MAX, HALF_MAX).to(torch.float16).float()
        return self._take(now, torch.where(curve > 0, best, now), unit, part, slope, curve)

    def _take(self, now: Tensor, best: Tensor, unit: Tensor, part: slice, slope: Tensor, curve: Tensor) -> Tensor:
        """``best`` where the loss falls by it; brings error and product up to date."""
        move = best - now
        move = torch.where(2 * move * slope + move.square() * curve < 0, move, 0.0)
        step = unit * move.unsqueeze(1)
        self.error[:, part] += step
        self.product.addmm_(step, self.gram[part])
        return now + move
