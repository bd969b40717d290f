"""AWQ: activation-aware weight quantization (Lin et al., arXiv:2306.00978), searched on Gram matrices.

1. *Scales.* Input channels that carry large activations are multiplied by ``s`` before rounding and divided in the
   feeder. Candidates are AWQ's own family, ``s = x^a / w^(1 - a)`` and ``s = x^a`` (x: root mean square of the
   channel, w: its relative weight magnitude); the best is then refined by gradient descent on the *expected* loss of
   rounding, ``sum_rg (step_rg)^2 / 12 * sum_j H_jj / s_j^2``, smooth in ``log s``. Every candidate is judged by the
   exact loss ``tr((W' - W) H (W' - W)^T)`` of all linears that share the input; the best is kept only if it is below
   the loss of ``s = 1``.
2. *Clip.* Each group of each row may cover less than its whole range. A sweep over the groups picks the shrink that
   lowers the exact loss most, given what the other groups of that row have become: block coordinate descent, so the
   loss never rises.
3. *Rounding* on the chosen grid (``methods/solver.py``).

Departures from the paper: the loss is exact for all tokens instead of a few batches; the refinement of the scales; the
clip sees the correlations between groups; and every feeder of the architecture takes part (``quantkit.model``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.fold import expand, pool
from quantkit.grid import GridSpec, Range, fake_quantize, full_range
from quantkit.methods.loss import loss, product_dtype
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


def find_scale(weights: Sequence[Tensor], gram: Tensor, feeder: Feeder, spec: GridSpec) -> ScaleSearch:
    """Search the scale of one group.

    weights: float32 [out, in] each, the linears that share the input; gram float32 [in, in]. The result's scale has
    one value a channel of ``feeder``.
    """
    sampled = [_some_rows(weight) for weight in weights]
    quick_gram = gram.to(product_dtype(gram))
    best, best_loss, origin = None, _scaled_loss(sampled, quick_gram, None, spec), "none"
    for name, scale in _candidates(weights, gram, feeder):
        value = _scaled_loss(sampled, quick_gram, expand(scale, feeder), spec)
        if value < best_loss:
            best, best_loss, origin = scale, value, name
    for scale in _refine(sampled, gram, feeder, spec, best):
        value = _scaled_loss(sampled, quick_gram, expand(scale, feeder), spec)
        if value < best_loss:
            best, best_loss, origin = scale, value, "refined"
    before = _scaled_loss(weights, gram, None, spec)
    after = before if best is None else _scaled_loss(weights, gram, expand(best, feeder), spec)
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


def _scaled_loss(weights: Sequence[Tensor], gram: Tensor, scale: Tensor | None, spec: GridSpec) -> float:
    """Exact loss of rounding ``weights`` with their columns scaled by ``scale`` [in]; computed in gram's dtype."""
    total = 0.0
    for weight in weights:
        scaled = weight if scale is None else weight * scale
        error = fake_quantize(scaled, full_range(scaled, spec), spec).sub_(scaled)
        if scale is not None:
            error = error.div_(scale)
        total += loss(error.to(gram.dtype), gram)
    return total


def _candidates(weights: Sequence[Tensor], gram: Tensor, feeder: Feeder) -> Iterable[tuple[str, Tensor]]:
    activation = pool(gram.diagonal().clamp(min=0), feeder, "mean").sqrt()
    magnitude = torch.cat([weight.abs() for weight in weights]).mean(0)
    magnitude = pool(magnitude, feeder, "mean").clamp(min=1e-8)
    for ratio in RATIOS:
        power = activation.clamp(min=1e-8).pow(ratio)
        yield f"x^{ratio}", _normalised(power)
        yield f"x^{ratio}/w^{1 - ratio:.1f}", _normalised(power / magnitude.pow(1 - ratio))
        yield f"(x/w)^{ratio / 2}", _normalised((activation.clamp(min=1e-8) / magnitude).pow(ratio / 2))


def _normalised(scale: Tensor) -> Tensor:
    """Median 1, clamped to [1 / MAX_SCALE, MAX_SCALE]."""
    log = scale.log()
    log = torch.where(torch.isfinite(log), log, 0.0)
    return (log - log.median()).exp().clamp(1 / MAX_SCALE, MAX_SCALE)


def _refine(
    weights: Sequence[Tensor], gram: Tensor, feeder: Feeder, spec: GridSpec, start: Tensor | None
) -> Iterable[Tensor]:
    """Descend on the expected loss of rounding from ``start``; yields the scale a few times on the way."""
    importance = gram.diagonal().clamp(min=0)
    log_scale = torch.zeros(feeder.channels, device=gram.device) if start is None else start.log()
    log_scale = log_scale.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([log_scale], lr=0.05)
    with torch.enable_grad():
        for step in range(_REFINE_STEPS):
            optimizer.zero_grad()
            columns = expand(log_scale.exp(), feeder)
            _expected_loss(weights, importance, columns, spec).log().backward()
            optimizer.step()
            if step % 15 == 14:
                yield _normalised(log_scale.detach().exp())


def _expected_loss(weights: Sequence[Tensor], importance: Tensor, scale: Tensor, spec: GridSpec) -> Tensor:
    """Mean of the loss if rounding errors were uniform in their step and independent."""
    size = spec.group_of(len(scale))
    noise = (importance / scale.square()).view(-1, size).sum(1)
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


__all__ = ["ScaleSearch", "find_clip", "find_scale"]
