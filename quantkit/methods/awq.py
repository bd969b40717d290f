"""AWQ: activation-aware weight quantization (Lin et al., arXiv:2306.00978), searched on Gram matrices.

1. *Scales.* Input channels that carry large activations are multiplied by ``s`` before rounding and divided in the
   feeder. Candidates are AWQ's own family, ``s = x^a / w^(1 - a)`` and ``s = x^a`` (x: root mean square of the
   channel, w: its relative weight magnitude); the best is then refined by gradient descent on the *expected* loss of
   rounding, ``sum_rg (step_rg)^2 / 12 * sum_j c_j / s_j^2``, smooth in ``log s``. What rounds afterwards decides what a
   squared error in column ``j`` costs, and by what a candidate is judged (`Judge`):

   * nearest codes: ``c_j = H_jj``; judged by the exact loss ``tr((W' - W) H (W' - W)^T)`` of all linears that share the
     input;
   * GPTQ and what follows it: ``c_j = 1 / U_jj^2``, the conditional variance (``methods/solver.py``), since later
     columns answer for the rest; judged by ``sum_j c_j e_j^2`` of the nearest codes.

   The best is kept only if it is below the loss of ``s = 1``.
2. *Clip*, for nearest codes. Each group of each row may cover less than its whole range. A sweep over the groups picks
   the shrink that lowers the exact loss most, given what the other groups of that row have become: block coordinate
   descent, so the loss never rises. (For GPTQ see ``methods/refine.py``.)

Departures from the paper: the loss is for all tokens instead of a few batches; the refinement of the scales; what the
solver will do counts; the clip sees the correlations between groups; and every feeder of the architecture takes part
(``quantkit.model``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from quantkit.fold import expand, pool
from quantkit.grid import GridSpec, Range, fake_quantize, full_range
from quantkit.methods.loss import loss, product_dtype
from quantkit.methods.solver import Factor
from quantkit.model import Feeder

RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)
SHRINKS = (0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 0.65, 0.6)
MAX_SCALE = 64.0  # keeps the feeder's rows and norms well inside float16
_SEARCH_ROWS = 512  # rows of a linear that the scale search looks at; the decision at the end is on all rows
_REFINE_STEPS = 45


@dataclass(frozen=True)
class ScaleSearch:
    """Outcome for one group.

    scale: float32 [feeder channels], or None where no scale lowers the loss. loss_before, loss_after: ``tr(E H E^T)``
    summed over the linears, without and with it. origin: the candidate it came from.
    """

    scale: Tensor | None
    loss_before: float
    loss_after: float
    origin: str


class Judge(Protocol):
    """What the search asks of the solver that will round. costs: float32 [in], of a squared error in each column."""

    costs: Tensor

    def loss(self, weights: Sequence[Tensor], columns: Tensor | None, spec: GridSpec, *, quick: bool) -> float:
        """The loss of ``weights`` with their columns scaled by ``columns`` [in]; quick: good enough to rank by."""
        ...


class NearestJudge:
    """For nearest codes: the exact loss on the Gram matrix, float32 [in, in]."""

    def __init__(self, gram: Tensor) -> None:
        self.costs = gram.diagonal().clamp(min=0)
        self._gram, self._quick = gram, gram.to(product_dtype(gram))

    def loss(self, weights: Sequence[Tensor], columns: Tensor | None, spec: GridSpec, *, quick: bool) -> float:
        """Exact; for ranking in the dtype that `product_dtype` names."""
        gram, total = self._quick if quick else self._gram, 0.0
        for error in _errors(weights, columns, spec):
            total += loss(error.to(gram.dtype), gram)
        return total


class FeedbackJudge:
    """For a solver that feeds errors forward: the conditional variances of ``factor``."""

    def __init__(self, factor: Factor) -> None:
        self.costs = factor.costs

    def loss(self, weights: Sequence[Tensor], columns: Tensor | None, spec: GridSpec, *, quick: bool) -> float:
        """What the nearest codes lose once later columns have answered."""
        del quick
        return sum(float((error.square_() @ self.costs).double().sum()) for error in _errors(weights, columns, spec))


def find_scale(
    weights: Sequence[Tensor], gram: Tensor, feeder: Feeder, spec: GridSpec, judge: Judge | None = None
) -> ScaleSearch:
    """Search the scale of one group.

    weights: float32 [out, in] each, the linears that share the input; gram float32 [in, in]; judge: of the solver that
    will round (nearest codes, where none is given). The result's scale has one value a channel of ``feeder``.
    """
    judge = judge or NearestJudge(gram)
    sampled = [_some_rows(weight) for weight in weights]
    best, best_loss, origin = None, judge.loss(sampled, None, spec, quick=True), "none"
    activities = {"x": gram.diagonal().clamp(min=0)}
    if not torch.equal(judge.costs, activities["x"]):
        activities["c"] = judge.costs
    candidates = (
        found for name, activity in activities.items() for found in _candidates(weights, activity, feeder, name)
    )
    for name, scale in candidates:
        value = judge.loss(sampled, expand(scale, feeder), spec, quick=True)
        if value < best_loss:
            best, best_loss, origin = scale, value, name
    for scale in _refine(sampled, judge.costs, feeder, spec, best):
        value = judge.loss(sampled, expand(scale, feeder), spec, quick=True)
        if value < best_loss:
            best, best_loss, origin = scale, value, "refined"
    before = judge.loss(weights, None, spec, quick=False)
    after = before if best is None else judge.loss(weights, expand(best, feeder), spec, quick=False)
    if best is None or not after < before:
        return ScaleSearch(None, before, before, "none")
    return ScaleSearch(best, before, after, origin)


def find_clip(weight: Tensor, gram: Tensor, spec: GridSpec, sweeps: int = 2) -> Range:
    """The range of every group that lowers the exact loss of its row; never above the loss of the full range."""
    size = spec.group_of(weight.shape[1])
    span = full_range(weight, spec)
    low, high = span.low.clone(), span.high.clone()
    error = fake_quantize(weight, span, spec) - weight
    product = error @ gram
    for sweep in range(sweeps):
        for group in range(weight.shape[1] // size):
            part = slice(group * size, (group + 1) * size)
            now = Range(low[:, group : group + 1], high[:, group : group + 1])
            full = Range(span.low[:, group : group + 1], span.high[:, group : group + 1])
            own = gram[part, part]
            cross = product[:, part] - error[:, part] @ own
            chosen, new_error = _best_shrink(weight[:, part], error[:, part], own, cross, now, full, spec, sweep)
            product.addmm_(new_error - error[:, part], gram[part])
            error[:, part] = new_error
            low[:, group : group + 1], high[:, group : group + 1] = chosen.low, chosen.high
    return Range(low, high)


def _best_shrink(
    weight: Tensor, error: Tensor, own: Tensor, cross: Tensor, now: Range, full: Range, spec: GridSpec, sweep: int
) -> tuple[Range, Tensor]:
    """The best range of one group [out, size] with the errors of the others fixed, and the error it leaves."""
    best_low, best_high, best_error = now.low.clone(), now.high.clone(), error.clone()
    best = _partial_loss(error, own, cross)
    for span in _shrinks(now, full, spec, sweep):
        trial = fake_quantize(weight.contiguous(), span, spec) - weight
        value = _partial_loss(trial, own, cross)
        better = value < best
        best = torch.where(better, value, best)
        mask = better.unsqueeze(1)
        best_low = torch.where(mask, span.low, best_low)
        best_high = torch.where(mask, span.high, best_high)
        best_error = torch.where(mask, trial, best_error)
    return Range(best_low, best_high), best_error


def _shrinks(now: Range, full: Range, spec: GridSpec, sweep: int) -> Iterable[Range]:
    """First both ends of the full range together, then each end of the present range alone."""
    if sweep == 0 or spec.symmetric:
        yield from (full.shrink(shrink, shrink) for shrink in SHRINKS)
        return
    for step in (0.9, 0.95, 1.05):
        yield Range(torch.maximum(now.low * step, full.low), now.high)
        yield Range(now.low, torch.minimum(now.high * step, full.high))


def _partial_loss(error: Tensor, own: Tensor, cross: Tensor) -> Tensor:
    return ((error @ own).add_(cross, alpha=2) * error).sum(1)


def _errors(weights: Sequence[Tensor], columns: Tensor | None, spec: GridSpec) -> Iterable[Tensor]:
    """Errors [out, in] of the nearest codes of each weight with its columns scaled, in the weight's own units."""
    for weight in weights:
        scaled = weight if columns is None else weight * columns
        error = fake_quantize(scaled, full_range(scaled, spec), spec).sub_(scaled)
        yield error if columns is None else error.div_(columns)


def _candidates(weights: Sequence[Tensor], activity: Tensor, feeder: Feeder, sign: str) -> Iterable[tuple[str, Tensor]]:
    """AWQ's family for ``activity`` [in], mean squares of the channels or what stands for them; with names."""
    activation = pool(activity, feeder, "mean").sqrt()
    magnitude = torch.cat([weight.abs() for weight in weights]).mean(0)
    magnitude = pool(magnitude, feeder, "mean").clamp(min=1e-8)
    for ratio in RATIOS:
        power = activation.clamp(min=1e-8).pow(ratio)
        yield f"{sign}^{ratio}", _normalised(power)
        yield f"{sign}^{ratio}/w^{1 - ratio:.1f}", _normalised(power / magnitude.pow(1 - ratio))
        yield f"({sign}/w)^{ratio / 2}", _normalised((activation.clamp(min=1e-8) / magnitude).pow(ratio / 2))


def _normalised(scale: Tensor) -> Tensor:
    """Median 1, clamped to [1 / MAX_SCALE, MAX_SCALE]."""
    log = scale.log()
    log = torch.where(torch.isfinite(log), log, 0.0)
    return (log - log.median()).exp().clamp(1 / MAX_SCALE, MAX_SCALE)


def _refine(
    weights: Sequence[Tensor], costs: Tensor, feeder: Feeder, spec: GridSpec, start: Tensor | None
) -> Iterable[Tensor]:
    """Descend on the expected loss of rounding from ``start``; yields the scale a few times on the way."""
    log_scale = torch.zeros(feeder.channels, device=costs.device) if start is None else start.log()
    log_scale = log_scale.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([log_scale], lr=0.05)
    with torch.enable_grad():
        for step in range(_REFINE_STEPS):
            optimizer.zero_grad()
            columns = expand(log_scale.exp(), feeder)
            _expected_loss(weights, costs, columns, spec).log().backward()
            optimizer.step()
            if step % 15 == 14:
                yield _normalised(log_scale.detach().exp())


def _expected_loss(weights: Sequence[Tensor], costs: Tensor, scale: Tensor, spec: GridSpec) -> Tensor:
    """Mean of the loss if rounding errors were uniform in their step and independent."""
    size = spec.group_of(len(scale))
    noise = (costs / scale.square()).view(-1, size).sum(1)
    total = torch.zeros((), device=scale.device)
    for weight in weights:
        grouped = (weight * scale).view(weight.shape[0], -1, size)
        if spec.symmetric:
            step = grouped.abs().amax(-1) * 2 / spec.max_code
        else:
            step = (grouped.amax(-1).clamp(min=0) - grouped.amin(-1).clamp(max=0)) / spec.max_code
        total = total + (step.square() * noise).sum() / 12
    return total + torch.finfo(torch.float32).tiny


def _some_rows(weight: Tensor) -> Tensor:
    return weight[:: max(1, weight.shape[0] // _SEARCH_ROWS)]
