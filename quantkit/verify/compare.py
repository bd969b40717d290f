"""Reference against candidate: the metrics of every scored position, a bounded number of logits at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quantkit.errors import QuantkitError
from quantkit.verify.metrics import TokenMetrics, token_metrics, topk_metrics
from quantkit.verify.task import Observed, Scored, States, TopK

LOGIT_ELEMENTS = 1 << 24  # of one model's logits at a time: 64 MiB in float32, and some eight times that in all


@torch.inference_mode()
def compare_states(
    reference: Tensor, candidate: Tensor, head: Tensor, other: Tensor, places: Sequence[Scored], device: str = "cpu"
) -> TokenMetrics:
    """Two models' final hidden states [P, hidden] with their heads [V, hidden]; P runs over all `places`."""
    head, other = head.to(device), other.to(device)
    targets = torch.cat([place.targets for place in places])
    parts = []
    for rows in torch.arange(len(targets)).split(max(1, LOGIT_ELEMENTS // head.shape[0])):
        first, second = logits(reference[rows].to(device), head), logits(candidate[rows].to(device), other)
        parts.append(token_metrics(first, second, targets[rows].to(device)).cpu())
    return TokenMetrics.cat(parts)


def logits(state: Tensor, head: Tensor, rows: int = 1 << 14) -> Tensor:
    """state [P, hidden] times head [V, hidden] in float32, [P, V]; the head is widened a few rows at a time."""
    parts = [state.float() @ part.float().T for part in head.split(rows)]
    return torch.cat(parts, dim=-1)


@torch.inference_mode()
def compare(
    reference: Observed, candidate: Observed, places: Sequence[Scored], device: str = "cpu"
) -> list[tuple[TokenMetrics, Tensor] | None]:
    """For each item the metrics and, int64 [R], which of its scored positions they stand for; None without any."""
    if reference.head is None:
        raise ValueError("a reference without an output head")
    result: list[tuple[TokenMetrics, Tensor] | None] = [None] * len(places)
    whole = [i for i, prediction in enumerate(candidate.predictions) if isinstance(prediction, States)]
    if whole and candidate.head is not None:
        first, second = (torch.cat([_states(one, i) for i in whole]) for one in (reference, candidate))
        taken = [places[i] for i in whole]
        metrics_of_all = compare_states(first, second, reference.head, candidate.head, taken, device)
        found = metrics_of_all.split([place.positions.numel() for place in taken])
        for index, metrics in zip(whole, found, strict=True):
            result[index] = metrics, torch.arange(places[index].positions.numel())
    head = reference.head.to(device)
    for index, prediction in enumerate(candidate.predictions):
        if isinstance(prediction, TopK) and prediction.rows.numel():
            result[index] = _compare_topk(_states(reference, index), prediction, places[index], head, device)
    return result


def _compare_topk(states: Tensor, found: TopK, place: Scored, head: Tensor, device: str) -> tuple[TokenMetrics, Tensor]:
    parts = []
    for part in torch.arange(found.rows.numel()).split(max(1, LOGIT_ELEMENTS // head.shape[0])):
        rows = found.rows[part]
        expected = logits(states[rows].to(device), head)
        given = (found.ids[part], found.logp[part], found.target_logp[part], place.targets[rows])
        parts.append(topk_metrics(expected, *(tensor.to(device) for tensor in given)).cpu())
    return TokenMetrics.cat(parts), found.rows


def _states(observed: Observed, index: int) -> Tensor:
    prediction = observed.predictions[index]
    if not isinstance(prediction, States):
        raise QuantkitError("the reference gave no states")
    return prediction.states
