"""Rounding to ggml's block grids without feedback: the least weighted squared error, run by run, then block by block.

For a type of `blockgrid` and costs ``w_j`` of an error in column ``j`` (ones, or ``H_jj``: the importance
matrix), `fit` lowers ``sum_j w_j (W'_j - W_j)^2`` of each row:

1. each run gets a real step (and offset): of several trial grids the one whose codes, with step and offset refitted by
   least squares, lose least;
2. the steps of a block become integers times one float16 ``d``, the offsets likewise: of several ``d`` the one that
   moves the fitted steps least, weighted by what a move costs;
3. the codes nearest to the values on that grid; where costs differ, steps and offsets once more by least squares with
   these codes, and step 2 after it, kept where the block's error falls.

Trial grids and the least-squares fit are ggml's ``make_qx_quants`` and ``make_qkx2_quants`` in spirit; the search of
step 2 and step 3 are not in ggml, whose ``d`` is the largest step over the largest integer.

Everything works on [run, runs of a piece], so that sums over a run add neighbouring memory, in pieces that stay in
the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from quantkit.blockgrid import HALF_MAX, BlockGrid, Blocks, levels_of

_PIECE = 1 << 18  # values that are looked at together
_LEAST_COST = 1e-6  # of the mean
_TINY = torch.finfo(torch.float32).tiny
# a trial grid spans this many codes more or fewer than there are
_TRIALS_OFFSET = (-1.0, -0.6, -0.2, 0.2, 0.6)
_TRIALS_CENTRED = (-0.9, -0.6, -0.3, 0.0, 0.3, 0.6)
_TRIALS_COSTS = tuple(0.1 * step for step in range(-16, 10))  # of both, where costs differ
_ENDS = 12  # trial values of d
_ROUNDS = 3  # of step 3's refit, where costs differ; without costs it gains half a percent for a third of the time

T = TypeVar("T")


def fit(weight: Tensor, grid: BlockGrid, costs: Tensor | None = None, workers: int = 1) -> Blocks:
    """``weight`` [rows, width] of any float dtype as integers of ``grid``; costs float32 [width], None: all alike.

    workers: threads that share the rows; more than one serves where torch itself runs on one (`one_thread_each`).
    """
    return join(fit_pieces(weight, grid, lambda blocks: blocks, costs, workers))


def fit_pieces(
    weight: Tensor, grid: BlockGrid, finish: Callable[[Blocks], T], costs: Tensor | None = None, workers: int = 1
) -> list[T]:
    """As `fit`, a few rows at a time: what ``finish`` makes of each piece's blocks, in order, by the same workers."""
    if costs is not None:
        # a channel that carried nothing is rounded all the same; only proportions count, and these never overflow
        mean = costs.double().mean()
        costs = (costs.double() / mean).float().clamp(min=_LEAST_COST) if mean > 0 else torch.ones_like(costs)
    pieces = weight.split(max(1, _PIECE // weight.shape[1]))
    if workers == 1 or len(pieces) == 1:
        return [finish(_fit(piece.float(), grid, costs)) for piece in pieces]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda piece: finish(_fit(piece.float(), grid, costs)), pieces))


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Inside, torch runs every operation on one thread, so that workers can fill the machine.

    Operations on a piece are too short to be shared: split among threads, most of the time goes into waiting.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def join(parts: list[Blocks]) -> Blocks:
    """Rows one after the other."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]

    def whole(name: str) -> Tensor | None:
        return None if getattr(first, name) is None else torch.cat([getattr(part, name) for part in parts])

    codes, d = whole("codes"), whole("d")
    assert codes is not None and d is not None
    return Blocks(first.grid, codes, d, whole("scales"), whole("dmin"), whole("mins"))


@dataclass(frozen=True)
class _Runs:
    """steps, offsets: real numbers by run, float32 [runs]; weights of a change of the step, of both, of the offset."""

    steps: Tensor
    offsets: Tensor | None
    curve: Tensor
    cross: Tensor | None = None
    flat: Tensor | None = None


def _fit(weight: Tensor, grid: BlockGrid, costs: Tensor | None) -> Blocks:
    rows, width = weight.shape
    values = weight.reshape(-1, grid.run).T.contiguous()  # [run, runs]
    weights = None
    if costs is not None:
        weights = costs.view(-1, grid.run).T.repeat(1, rows)
    runs = _fit_offset(values, weights, grid) if grid.has_offset else _fit_centred(values, weights, grid)
    best = _Fitted(*_to_integers(runs, grid))
    codes, lost = _nearest(values, weights, best, grid)
    for _ in range(0 if costs is None else _ROUNDS):
        found = _Fitted(*_to_integers(_runs_of(values, weights, codes, grid), grid))
        found_codes, found_lost = _nearest(values, weights, found, grid)
        better = found_lost < lost
        lost, best = torch.where(better, found_lost, lost), best.where(better, found)
        codes = torch.where(better.repeat_interleave(grid.block // grid.run), found_codes, codes)
    d, scales, dmin, mins = best.d, best.scales, best.dmin, best.mins
    return Blocks(
        grid,
        codes.to(torch.uint8).T.reshape(rows, width),
        d.view(rows, -1),
        None if scales is None else scales.to(torch.int16).view(rows, -1),
        None if dmin is None else dmin.view(rows, -1),
        None if mins is None else mins.to(torch.uint8).view(rows, -1),
    )


# ---- 1. a run by itself ---------------------------------------------------------------------------------------------


def _fit_offset(values: Tensor, weights: Tensor | None, grid: BlockGrid) -> _Runs:
    """Steps and offsets (``value = step * code - offset``; offset >= 0 unless the type leaves it free)."""
    low, high = values.amin(0), values.amax(0)
    if not grid.free_offset:
        low, high = low.clamp(max=0), high.clamp(min=0)
    span = torch.maximum(high - low, 1e-6 * torch.maximum(-low, high)).clamp(min=1e-30)  # a constant has no span
    weighted = values if weights is None else values * weights
    total = torch.full_like(low, grid.run) if weights is None else weights.sum(0)
    sum_x = weighted.sum(0)
    best = torch.full_like(low, -torch.inf)
    chosen = [torch.zeros_like(low) for _ in range(5)]
    codes, spare = torch.empty_like(values), torch.empty_like(values)
    for trial in _TRIALS_OFFSET if weights is None else _TRIALS_COSTS:
        inverse = (grid.top + trial) / span
        torch.mul(values, inverse, out=codes)
        codes.sub_(low * inverse).round_().clamp_(0, grid.top)
        sum_qx = torch.mul(codes, weighted, out=spare).sum(0)
        if weights is None:
            sum_q, sum_qq = codes.sum(0), torch.mul(codes, codes, out=spare).sum(0)
        else:
            torch.mul(codes, weights, out=spare)
            sum_q, sum_qq = spare.sum(0), spare.mul_(codes).sum(0)
        steps, offsets = _least_squares(sum_qq, sum_q, total, sum_qx, sum_x, grid.free_offset)
        # how much of sum(w x^2) the fit explains
        gain = steps * (2 * sum_qx - steps * sum_qq + 2 * offsets * sum_q) - offsets * (2 * sum_x + offsets * total)
        better = gain > best
        best = torch.where(better, gain, best)
        for place, new in enumerate((steps, offsets, sum_qq, sum_q, total)):
            chosen[place] = torch.where(better, new, chosen[place])
    return _Runs(*chosen)


def _least_squares(
    sum_qq: Tensor, sum_q: Tensor, total: Tensor, sum_qx: Tensor, sum_x: Tensor, free: bool
) -> tuple[Tensor, Tensor]:
    """Step and offset that lower ``sum w (x - step q + offset)^2``; the offset not below 0 unless ``free``."""
    determinant = total * sum_qq - sum_q * sum_q
    sound = determinant > 1e-6 * total * sum_qq
    determinant = torch.where(sound, determinant, 1.0)
    steps = (total * sum_qx - sum_q * sum_x) / determinant
    offsets = (sum_q * sum_qx - sum_qq * sum_x) / determinant
    # codes that are all alike say nothing of the step: the offset alone
    steps, offsets = torch.where(sound, steps, 0.0), torch.where(sound, offsets, -sum_x / total.clamp(min=_TINY))
    if free:
        return steps, offsets
    negative = offsets < 0
    return torch.where(negative, sum_qx / sum_qq.clamp(min=_TINY), steps), offsets.clamp(min=0)


def _fit_centred(values: Tensor, weights: Tensor | None, grid: BlockGrid) -> _Runs:
    """Steps, of either sign: the value of largest magnitude lies at the end that reaches further."""
    place = values.abs().argmax(0, keepdim=True)
    extreme = values.gather(0, place).squeeze(0)
    safe = torch.where(extreme.abs() < 1e-30, 1.0, extreme)
    weighted = values if weights is None else values * weights
    best = torch.full_like(extreme, -1.0)
    steps, curve = torch.zeros_like(extreme), torch.zeros_like(extreme)
    low, high = _ends_of(grid)
    spare = torch.empty_like(values)
    for inverse in _centred_trials(safe, grid, _TRIALS_CENTRED if weights is None else _TRIALS_COSTS):
        levels = _levels_near(values * inverse, grid, low, high)
        sum_lx = torch.mul(levels, weighted, out=spare).sum(0)
        torch.mul(levels, levels, out=spare)
        sum_ll = (spare if weights is None else spare.mul_(weights)).sum(0).clamp(min=_TINY)
        gain = sum_lx * sum_lx / sum_ll
        better = gain > best
        best = torch.where(better, gain, best)
        steps = torch.where(better, sum_lx / sum_ll, steps)
        curve = torch.where(better, sum_ll, curve)
    return _Runs(torch.where(extreme.abs() < 1e-30, 0.0, steps), None, curve)


def _centred_trials(extreme: Tensor, grid: BlockGrid, spans: tuple[float, ...]) -> list[Tensor]:
    """Inverse steps that bring the extreme value near one end or, where codes are few, the other."""
    low, high = _ends_of(grid)
    unit = 1.0 if grid.levels is None else 8.0
    return [(end + unit * span) / extreme for end in ((low, high) if grid.top <= 15 else (low,)) for span in spans]


def _ends_of(grid: BlockGrid) -> tuple[float, float]:
    if grid.levels is not None:
        return float(grid.levels[0]), float(grid.levels[-1])
    return float(grid.least - grid.centre), float(grid.top - grid.centre)


def _levels_near(wanted: Tensor, grid: BlockGrid, low: float, high: float) -> Tensor:
    """The level nearest to each value; writes to ``wanted``."""
    if grid.levels is None:
        return wanted.round_().clamp_(low, high)
    levels = torch.tensor(grid.levels, dtype=torch.float32, device=wanted.device)
    return look_up(wanted, levels[level_table(grid.levels, wanted.device).long()], levels)


def level_table(levels: tuple[int, ...], device: torch.device) -> Tensor:
    """Which code is nearest, float32, for each cell of half a unit from the first level on: levels are integers, so the
    bounds between them lie at halves."""
    table = torch.tensor(levels, dtype=torch.float32, device=device)
    middles = (torch.arange(2 * (levels[-1] - levels[0]) + 1, device=device) + 2 * levels[0] + 0.5) / 2
    return torch.bucketize(middles, (table[1:] + table[:-1]) / 2).float()


def look_up(wanted: Tensor, table: Tensor, levels: Tensor) -> Tensor:
    """The entry of ``table`` (as `level_table` has them) for each value; writes to ``wanted``."""
    first = float(levels[0])
    cell = wanted.sub_(first).mul_(2).floor_().clamp_(0, len(table) - 1).to(torch.int32)
    return table.index_select(0, cell.flatten()).view(wanted.shape)


# ---- 2. integers of a block -----------------------------------------------------------------------------------------


def _to_integers(runs: _Runs, grid: BlockGrid) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """d float16 [blocks], scales [blocks, runs], dmin, mins likewise; None for what the type has not."""
    if grid.scales is None:
        return _half(runs.steps), None, None if runs.offsets is None else _half(runs.offsets), None
    per_block = grid.block // grid.run
    steps, curve = runs.steps.view(-1, per_block), runs.curve.view(-1, per_block)
    d, scales = _best_end(steps, curve, *grid.scales)
    if runs.offsets is None:
        return d, scales, None, None
    assert runs.cross is not None and runs.flat is not None
    # what rounding has moved the step by, the offset makes good
    moved = d.float().unsqueeze(1) * scales - steps
    flat, cross = runs.flat.view(-1, per_block), runs.cross.view(-1, per_block)
    offsets = (runs.offsets.view(-1, per_block) + moved * cross / flat.clamp(min=_TINY)).clamp(min=0)
    dmin, mins = _best_end(offsets, flat, 0, grid.mins)
    return d, scales, dmin, mins


def _best_end(wanted: Tensor, costs: Tensor, least: int, most: int) -> tuple[Tensor, Tensor]:
    """float16 ``d`` [blocks] and integers [blocks, runs] whose products are nearest to ``wanted``, by ``costs``."""
    extreme = wanted.gather(1, wanted.abs().argmax(1, keepdim=True))  # [blocks, 1]
    reach = -least if least < 0 else most
    trials = torch.arange(_ENDS, dtype=wanted.dtype, device=wanted.device) * (0.5 * max(1, reach // 32))
    divisors = (reach - trials[trials < reach]) * (-1 if least < 0 else 1)
    # least squares of d for the integers of each trial, then the integers for that d: [trials, blocks, runs]
    found = (wanted * _nonzero(extreme).reciprocal() * divisors.view(-1, 1, 1)).round_().clamp_(least, most)
    weighted = costs * found
    ends = _half((weighted * wanted).sum(2) / (weighted * found).sum(2).clamp(min=_TINY)).float().unsqueeze(2)
    found = (wanted / _nonzero(ends)).round_().clamp_(least, most)
    lost = (found * ends).sub_(wanted).square_().mul_(costs).sum(2)
    best = lost.argmin(0).view(1, -1, 1)
    integers = found.gather(0, best.expand(1, *wanted.shape)).squeeze(0)
    return ends.gather(0, best).flatten().to(torch.float16), integers


def _nonzero(values: Tensor) -> Tensor:
    return torch.where(values == 0, 1.0, values)


def _half(values: Tensor) -> Tensor:
    return values.clamp(-HALF_MAX, HALF_MAX).to(torch.float16)


# ---- 3. codes, and the grid once more -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fitted:
    """d, dmin float16 [blocks]; scales, mins float32 [blocks, runs]; None for what the type has not."""

    d: Tensor
    scales: Tensor | None
    dmin: Tensor | None
    mins: Tensor | None

    def steps(self) -> Tensor:
        """float32 [runs]."""
        return _spread(self.d, self.scales)

    def offsets(self) -> Tensor | None:
        return None if self.dmin is None else _spread(self.dmin, self.mins)

    def where(self, better: Tensor, other: _Fitted) -> _Fitted:
        """The other's blocks where ``better`` [blocks]."""

        def chosen(mine: Tensor | None, new: Tensor | None) -> Tensor | None:
            if mine is None or new is None:
                return None
            return torch.where(better.view(-1, *[1] * (mine.dim() - 1)), new, mine)

        d = chosen(self.d, other.d)
        assert d is not None
        return _Fitted(
            d, chosen(self.scales, other.scales), chosen(self.dmin, other.dmin), chosen(self.mins, other.mins)
        )


def _spread(ends: Tensor, integers: Tensor | None) -> Tensor:
    return ends.float() if integers is None else (ends.float().unsqueeze(1) * integers).flatten()


def _nearest(values: Tensor, weights: Tensor | None, fitted: _Fitted, grid: BlockGrid) -> tuple[Tensor, Tensor]:
    """The codes nearest to ``values`` [run, runs], float32, and what each block loses, float32 [blocks]."""
    steps, offsets = fitted.steps(), fitted.offsets()
    inverse = torch.where(steps == 0, 0.0, 1.0 / _nonzero(steps))
    raised = values if offsets is None else values + offsets
    wanted = raised * inverse
    if grid.levels is None:
        codes = wanted.round_().add_(grid.centre).clamp_(grid.least, grid.top)
    else:
        levels = torch.tensor(grid.levels, dtype=torch.float32, device=wanted.device)
        codes = look_up(wanted, level_table(grid.levels, wanted.device), levels)
    error = levels_of(codes, grid).mul(steps).sub_(raised)
    squares = error.square_() if weights is None else error.square_().mul_(weights)
    return codes, squares.sum(0).view(len(fitted.d), -1).sum(1)


def _runs_of(values: Tensor, weights: Tensor | None, codes: Tensor, grid: BlockGrid) -> _Runs:
    """Steps and offsets of these codes by least squares, run by run."""
    levels = levels_of(codes, grid)
    weighted = levels if weights is None else levels * weights
    sum_ll, sum_lx = (weighted * levels).sum(0), (weighted * values).sum(0)
    if not grid.has_offset:
        return _Runs(sum_lx / sum_ll.clamp(min=_TINY), None, sum_ll)
    sum_l = weighted.sum(0)
    total = torch.full_like(sum_l, grid.run) if weights is None else weights.sum(0)
    sum_x = (values if weights is None else values * weights).sum(0)
    steps, offsets = _least_squares(sum_ll, sum_l, total, sum_lx, sum_x, grid.free_offset)
    return _Runs(steps, offsets, sum_ll, sum_l, total)
