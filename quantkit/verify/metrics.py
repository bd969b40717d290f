"""Metrics between two models' next-token distributions; pure functions.

KL(ref || cand) = sum_v p_ref(v) (log p_ref(v) - log p_cand(v)), in nats a token, from logits in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class TokenMetrics:
    """One value a scored position, each [P]: KL in nats (float32), top-1 agreement (bool), both models' surprise."""

    kl: Tensor
    agree: Tensor
    nll_reference: Tensor  # -log p of the token that follows, in nats
    nll_candidate: Tensor

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
    reference = reference.to(torch.promote_types(reference.dtype, torch.float32)).log_softmax(-1)
    candidate = candidate.to(torch.promote_types(candidate.dtype, torch.float32)).log_softmax(-1)
    # where p_ref underflows to zero, 0 * inf must count as the limit, 0
    kl = (reference.exp() * (reference - candidate)).nan_to_num_(nan=0.0, posinf=math.inf).sum(-1)
    return TokenMetrics(
        kl=kl.clamp_(min=0),
        agree=reference.argmax(-1) == candidate.argmax(-1),
        nll_reference=-reference.gather(-1, targets[:, None])[:, 0],
        nll_candidate=-candidate.gather(-1, targets[:, None])[:, 0],
    )


def summarize(metrics: TokenMetrics) -> dict[str, float | int] | None:
    """Mean, quantiles and maximum of the KL, share of agreeing top-1 tokens, both perplexities; None without tokens."""
    if not metrics.kl.numel():
        return None
    kl = metrics.kl.double()
    return {
        "tokens": kl.numel(),
        "kl_mean": float(kl.mean()),
        **{f"kl_{name}": quantile(kl, q) for name, q in QUANTILES.items()},
        "kl_max": float(kl.max()),
        "top1_agreement": float(metrics.agree.double().mean()),
        "perplexity_reference": perplexity(metrics.nll_reference),
        "perplexity_candidate": perplexity(metrics.nll_candidate),
    }


def perplexity(nll: Tensor) -> float:
    """exp of the mean surprise [P] in nats; a ruined model's is capped at e^700, the end of float64."""
    return math.exp(min(float(nll.double().mean()), 700.0))


def quantile(values: Tensor, q: float) -> float:
    """The q-quantile of [P] values, linear between neighbours (torch.quantile refuses more than 16 million)."""
    ordered = values.sort().values
    place = q * (ordered.numel() - 1)
    low = int(place)
    high = min(low + 1, ordered.numel() - 1)
    return float(ordered[low] + (ordered[high] - ordered[low]) * (place - low))


def exact_match(text: str, answer: str) -> bool:
    """Whether a model's text is the expected answer, white space at both ends aside."""
    return text.strip() == answer.strip()
