"""Metrics between two models' next-token distributions; pure functions.

KL(ref || cand) = sum_v p_ref(v) (log p_ref(v) - log p_cand(v)), in nats a token, from logits in float32.

Of an engine that gives its largest log-probabilities only, everything else is one event: by the data-processing
inequality that KL is a lower bound, and `coverage` says how much of the reference's mass was compared token by token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quantkit.verify.intervals import mean_interval, quantile_interval, wilson_floor
from quantkit.verify.report import Histogram, Interval, TokenSummary

REST_FLOOR = 1e-6  # of a probability left over from a sum of float32 ones
EDGES = [-8 + 0.25 * step for step in range(41)]  # log10 of nats, -8 ... 2
TOP = 5
FEW_ITEMS = 30


@dataclass(frozen=True)
class TokenMetrics:
    """One value a scored position, each [P] float32 except `agree` (bool)."""

    kl: Tensor  # nats
    agree: Tensor  # same first choice
    top5: Tensor  # share of the reference's first five among the candidate's
    nll_reference: Tensor  # -log p of the token that follows, nats
    nll_candidate: Tensor  # NaN where the engine does not say
    logit_square: Tensor  # mean square difference of centred logits; NaN without logits
    coverage: Tensor  # reference mass on tokens that were compared one by one

    def __getitem__(self, mask: Tensor) -> TokenMetrics:
        return TokenMetrics(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))

    def split(self, lengths: Sequence[int]) -> list[TokenMetrics]:
        columns = [getattr(self, name).split(list(lengths)) for name in self.__dataclass_fields__]
        return [TokenMetrics(*parts) for parts in zip(*columns, strict=True)]

    def cpu(self) -> TokenMetrics:
        return TokenMetrics(*(getattr(self, name).cpu() for name in self.__dataclass_fields__))

    @staticmethod
    def cat(parts: Sequence[TokenMetrics]) -> TokenMetrics:
        names = TokenMetrics.__dataclass_fields__
        return TokenMetrics(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def token_metrics(reference: Tensor, candidate: Tensor, targets: Tensor) -> TokenMetrics:
    """Compare logits [P, V] position by position; `targets` [P] are the tokens that follow.

    Float32 at least, whatever comes in. KL is clamped at zero, below which only rounding can bring it.
    """
    reference, candidate = (
        logits.to(torch.promote_types(logits.dtype, torch.float32)) for logits in (reference, candidate)
    )
    shift = (candidate - reference).nan_to_num_(nan=0.0)
    logit_square = shift.var(-1, correction=0)  # the mean is the centring
    p, q = reference.log_softmax(-1), candidate.log_softmax(-1)
    mass = p.exp()
    # where p_ref is zero, 0 * inf must count as the limit, 0; anything else that is not a number is a ruined model
    kl = torch.where(mass > 0, mass * (p - q), 0.0).sum(-1).nan_to_num_(nan=math.inf, posinf=math.inf)
    best, others = p.topk(min(TOP, p.shape[-1])).indices, q.topk(min(TOP, q.shape[-1])).indices
    return TokenMetrics(
        kl=kl.clamp_(min=0),
        agree=p.argmax(-1) == q.argmax(-1),
        top5=(best[:, :, None] == others[:, None, :]).any(-1).float().mean(-1),
        nll_reference=-p.gather(-1, targets[:, None])[:, 0],
        nll_candidate=-q.gather(-1, targets[:, None])[:, 0].nan_to_num(nan=-math.inf, neginf=-math.inf),
        logit_square=logit_square,
        coverage=torch.ones_like(kl),
    )


def topk_metrics(reference: Tensor, ids: Tensor, logp: Tensor, target_logp: Tensor, targets: Tensor) -> TokenMetrics:
    """Compare logits [R, V] with an engine's largest log-probabilities: ids, logp [R, K]; target_logp, targets [R].

    ids of -1 stand for nothing. See the module for what the KL then means.
    """
    p = reference.float().log_softmax(-1)
    known = ids >= 0
    safe = ids.clamp_min(0)
    p_known = p.gather(-1, safe).masked_fill(~known, -math.inf)
    q_known = logp.float().masked_fill(~known, -math.inf)
    terms = torch.where(known, p_known.exp() * (p_known - q_known), 0.0).nan_to_num(nan=0.0, posinf=math.inf)
    covered = p_known.exp().sum(-1)
    p_rest = (1 - covered).clamp_min(0)
    q_rest = (1 - q_known.exp().sum(-1)).clamp_min(REST_FLOOR)
    rest = torch.where(p_rest > REST_FLOOR, p_rest * (p_rest.clamp_min(REST_FLOOR) / q_rest).log(), 0.0)
    order = q_known.argsort(-1, descending=True)
    first = ids.gather(-1, order)[:, :TOP]  # -1, which is no token, comes last
    best = p.topk(min(TOP, p.shape[-1])).indices
    hit = safe == targets[:, None]
    found = torch.where(hit & known, q_known, -math.inf).amax(-1)
    nll = torch.where(target_logp.isnan(), torch.where(found.isinf(), math.nan, -found), -target_logp.float())
    return TokenMetrics(
        kl=(terms.sum(-1) + rest).clamp_min(0),
        agree=p.argmax(-1) == first[:, 0],
        top5=(best[:, :, None] == first[:, None, :]).any(-1).float().mean(-1),
        nll_reference=-p.gather(-1, targets[:, None])[:, 0],
        nll_candidate=nll,
        logit_square=torch.full_like(covered, math.nan),
        coverage=covered.clamp(max=1.0),
    )


def summarize(metrics: TokenMetrics, owners: Tensor) -> TokenSummary | None:
    """Figures over scored positions; `owners` int64 [P], the item of each. None without positions."""
    if not metrics.kl.numel():
        return None
    whose = np.unique(owners.numpy(), return_inverse=True)[1].reshape(-1).astype(np.int64)
    items = int(whose.max()) + 1
    kl = metrics.kl.double().numpy()
    finite = np.isfinite(kl)
    if not finite.all():  # a ruined model; capped far above anything that is not
        kl = np.where(finite, kl, 1e4)
    ones = np.bincount(whose, minlength=items).astype(np.float64)

    def per_item(values: Tensor) -> np.ndarray:
        return np.bincount(whose, weights=values.double().numpy(), minlength=items)

    told = ~metrics.nll_candidate.isnan()
    gain = torch.where(told, metrics.nll_candidate - metrics.nll_reference, 0.0).clamp(max=1e4)
    dp = ((-metrics.nll_candidate).exp() - (-metrics.nll_reference).exp())[told]
    counted = per_item(told)
    logits = float(metrics.logit_square.double().mean())
    return TokenSummary(
        tokens=len(kl),
        kl_mean=_positive(mean_interval(np.bincount(whose, weights=kl, minlength=items).astype(np.float64), ones)),
        **{f"kl_{name}": float(np.quantile(kl, q)) for name, q in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95))},
        kl_p99=quantile_interval(kl, whose, 0.99, items),
        kl_p999=float(np.quantile(kl, 0.999)),
        kl_max=float(kl.max()),
        top1=_share(mean_interval(per_item(metrics.agree), ones), items),
        top5=float(metrics.top5.double().mean()),
        rms_dp=float(dp.double().square().mean().sqrt()) if dp.numel() else None,
        perplexity_reference=perplexity(metrics.nll_reference[told] if dp.numel() else metrics.nll_reference),
        perplexity_candidate=perplexity(metrics.nll_candidate[told]) if dp.numel() else None,
        perplexity_ratio=mean_interval(per_item(gain), np.maximum(counted, 1e-12), lambda x: np.exp(np.minimum(x, 700)))
        if dp.numel()
        else None,
        logit_rms=math.sqrt(logits) if math.isfinite(logits) else None,
        coverage=float(metrics.coverage.double().mean()),
    )


def _positive(found: Interval) -> Interval:
    return Interval(value=found.value, low=max(0.0, found.low), high=found.high)


def _share(found: Interval, items: int) -> Interval:
    """A share's interval inside [0, 1]; of few items at least Wilson's, as if each were one draw."""
    if items < FEW_ITEMS:
        found = wilson_floor(found, items)
    return Interval(value=found.value, low=max(0.0, found.low), high=min(1.0, found.high))


def histogram(parts: dict[str, Tensor]) -> Histogram:
    """Counts of KL values a modality; values beyond the edges fall into the first and the last bin.

    `counts` have one entry less than `edges`.
    """
    counts = {}
    for name, kl in parts.items():
        logs = np.log10(np.clip(kl.double().numpy(), 10 ** EDGES[0], 10 ** EDGES[-1]))
        counts[name] = np.histogram(logs, bins=EDGES)[0].tolist()
    return Histogram(edges=EDGES, counts=counts)


def perplexity(nll: Tensor) -> float:
    """exp of the mean surprise [P] in nats; a ruined model's is capped at e^700, the end of float64."""
    return math.exp(min(float(nll.double().mean()), 700.0)) if nll.numel() else math.nan
