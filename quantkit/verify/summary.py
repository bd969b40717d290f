"""From what two engines observed to the figures of one `EngineResult`."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantkit.calibration.conversations import MODALITIES, Conversation
from quantkit.verify import generation, layers
from quantkit.verify.benchmarks import aggregate
from quantkit.verify.compare import compare
from quantkit.verify.intervals import mcnemar, mean_interval
from quantkit.verify.metrics import TokenMetrics, histogram, summarize
from quantkit.verify.report import Accuracy, EngineResult, Group, Histogram, Interval, Item, McNemar
from quantkit.verify.scoring import score
from quantkit.verify.task import Answer, Observed, Task, TopK
from quantkit.verify.thumbnails import thumbnails

RIGHT = 0.5  # a score from here on counts as right in McNemar's test
WORST = 12  # items shown with their pictures
PROMPT_CHARACTERS = 1500


@dataclass(frozen=True)
class Compared:
    """Everything that is known of one item."""

    index: int
    conversation: Conversation
    metrics: TokenMetrics | None
    answer_mask: Tensor | None  # bool [R], which of the metrics' positions are the answer's
    answers: tuple[Answer, Answer] | None  # reference, candidate
    scores: tuple[float, float] | None


def summarize_engine(
    name: str, task: Task, reference: Observed, candidate: Observed, device: str, benchmark: str | None = None
) -> EngineResult:
    """All figures of one engine. `benchmark`: the name whose own total scores are wanted."""
    compared = _compare_items(task, reference, candidate, device)
    reasons = Counter(candidate.left_out.values())
    return EngineResult(
        name=name,
        status="ran",
        kernel=candidate.kernel,
        versions=candidate.versions,
        exact=not any(isinstance(p, TopK) for p in candidate.predictions),
        left_out=dict(reasons),
        groups=_groups(task, compared),
        benchmark=_benchmark(benchmark, compared),
        layers=layers.errors(reference.layers, candidate.layers),
        histogram=_histogram(task, compared),
        items=_items(task, compared),
    )


def _compare_items(task: Task, reference: Observed, candidate: Observed, device: str) -> list[Compared]:
    found = compare(reference, candidate, task.places, device)
    result = []
    for index, conversation in enumerate(task.conversations):
        metrics, rows = found[index] or (None, None)
        mask = task.places[index].answer[rows] if rows is not None else None
        first, second = reference.answers[index], candidate.answers[index]
        answers = (first, second) if first is not None and second is not None else None
        result.append(Compared(index, conversation, metrics, mask, answers, _scores(conversation, answers)))
    return result


def _scores(conversation: Conversation, answers: tuple[Answer, Answer] | None) -> tuple[float, float] | None:
    if answers is None or conversation.answer is None:
        return None
    accepted = conversation.accepted or (conversation.answer,)
    first, second = (
        score(conversation.metric or "exact", answer.text, accepted, conversation.choices) for answer in answers
    )
    return first, second


# ---- groups ----------------------------------------------------------------------------------------------------------


def _groups(task: Task, compared: list[Compared]) -> list[Group]:
    samples = task.samples
    kinds = {
        "modality": [m for m in MODALITIES if any(s.modality == m for s in samples)],
        "mode": sorted({s.downsample_mode for s in samples}),
        "language": sorted({s.language for s in samples}),
    }
    key = {"modality": "modality", "mode": "downsample_mode", "language": "language"}
    groups = [_group("all", "all", compared)]
    for by, values in kinds.items():
        for value in values:
            members = [one for one in compared if getattr(samples[one.index], key[by]) == value]
            groups.append(_group(by, value, members))
    return groups


def _group(by: str, value: str, members: list[Compared]) -> Group:
    told = [one for one in members if one.metrics is not None]
    summaries = {}
    for positions in ("answer", "prompt", "text"):
        parts, owners = [], []
        for number, one in enumerate(told):
            assert one.metrics is not None and one.answer_mask is not None
            mask = {"answer": one.answer_mask, "prompt": ~one.answer_mask}.get(positions)
            part = one.metrics if mask is None else one.metrics[mask]
            parts.append(part)
            owners.append(torch.full((part.kl.numel(),), number))
        summaries[positions] = summarize(TokenMetrics.cat(parts), torch.cat(owners)) if parts else None
    return Group(
        by=by,  # type: ignore[arg-type]
        value=value,
        items=len(members),
        ran=sum(one.metrics is not None or one.answers is not None for one in members),
        **summaries,
        accuracy=_accuracy(members),
        generation=generation.compare([one.answers for one in members if one.answers is not None]),
    )


def _accuracy(members: list[Compared]) -> Accuracy | None:
    scored = [one for one in members if one.scores is not None]
    if not scored:
        return None
    pairs = np.asarray([one.scores for one in scored], dtype=np.float64)  # [items, 2]
    right = pairs >= RIGHT
    worse, better = int((right[:, 0] & ~right[:, 1]).sum()), int((~right[:, 0] & right[:, 1]).sum())
    difference = mean_interval(pairs[:, 1] - pairs[:, 0], np.ones(len(scored)))
    if np.isin(pairs, (0.0, 1.0)).all():
        difference = _widened(difference, worse, better, len(scored))
    return Accuracy(
        items=len(scored),
        metrics=dict(Counter(one.conversation.metric or "exact" for one in scored)),
        reference=float(pairs[:, 0].mean()),
        candidate=float(pairs[:, 1].mean()),
        difference=difference,
        mcnemar=McNemar(only_reference=worse, only_candidate=better, p_value=mcnemar(worse, better)),
    )


def _widened(drawn: Interval, worse: int, better: int, items: int) -> Interval:
    """At least the interval of Agresti and Min (2005): drawing from items that all agree would give zero width."""
    n = items + 2
    centre = (better - worse) / n
    half = 1.959964 * math.sqrt(max(0.0, (worse + better + 1) - (better - worse) ** 2 / n)) / n
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return Interval(value=drawn.value, low=min(drawn.low, low), high=max(drawn.high, high))


def _benchmark(name: str | None, compared: list[Compared]) -> dict[str, dict[str, float]]:
    scored = [(one.conversation, one.scores) for one in compared if one.scores is not None]
    if name is None or not scored:
        return {}
    totals = {
        side: aggregate(name, [(conversation, scores[place]) for conversation, scores in scored])
        for place, side in enumerate(("reference", "candidate"))
    }
    return {
        total: {side: totals[side][total] for side in ("reference", "candidate")}
        for total in totals["reference"]
        if total in totals["candidate"]
    }


def _histogram(task: Task, compared: list[Compared]) -> Histogram | None:
    parts: dict[str, list[Tensor]] = {}
    for one in compared:
        if one.metrics is not None:
            parts.setdefault(task.samples[one.index].modality, []).append(one.metrics.kl)
    return histogram({m: torch.cat(parts[m]) for m in MODALITIES if m in parts}) if parts else None


# ---- items -----------------------------------------------------------------------------------------------------------


def _items(task: Task, compared: list[Compared]) -> list[Item]:
    items = [_item(task, one) for one in compared]
    ranked = sorted(range(len(items)), key=lambda i: items[i].severity(), reverse=True)
    for index in ranked[:WORST]:
        items[index].pictures = thumbnails(compared[index].conversation)
    return items


def _item(task: Task, one: Compared) -> Item:
    sample, conversation = task.samples[one.index], one.conversation
    first, second = one.answers or (None, None)
    place = generation.diverged_at(first, second) if first and second else None
    kl = one.metrics.kl.double() if one.metrics is not None else torch.empty(0)
    answer = kl[one.answer_mask] if one.answer_mask is not None else kl
    scores = one.scores or (None, None)
    return Item(
        id=sample.id,
        modality=sample.modality,
        mode=sample.downsample_mode,
        language=sample.language,
        prompt=_prompt(conversation),
        answer=conversation.answer,
        metric=(conversation.metric or "exact") if conversation.answer is not None else None,
        reference_text=first.text if first else None,
        candidate_text=second.text if second else None,
        reference_score=scores[0],
        candidate_score=scores[1],
        diverged_at=place,
        diverged_at_char=_character(task, first, second, place),
        tokens=kl.numel(),
        kl_mean=_finite(kl.mean()) if kl.numel() else None,
        kl_max=_finite(kl.max()) if kl.numel() else None,
        kl_answer_mean=_finite(answer.mean()) if answer.numel() else None,
    )


def _finite(value: Tensor) -> float:
    return min(float(value), 1e4)


def _character(task: Task, reference: Answer | None, candidate: Answer | None, place: int | None) -> int | None:
    """Where the texts part: two tokens that differ may begin with the same characters."""
    if reference is None or candidate is None or candidate.tokens is None or place is None:
        return None
    head = task.processor.tokenizer.decode(candidate.tokens[:place], skip_special_tokens=True)
    whole = task.processor.tokenizer.decode(candidate.tokens, skip_special_tokens=True)
    start = max(0, len(head) - (len(whole) - len(whole.lstrip())))
    pairs = zip(reference.text, candidate.text, strict=False)
    shared = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(reference.text), len(candidate.text)))
    return max(start, shared)


def _prompt(conversation: Conversation) -> str:
    """The messages before the last answer, as a reader wants them."""
    messages = conversation.messages
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    lines = []
    for message in messages:
        words = [f"[{part['type']}]" if part["type"] != "text" else part["text"] for part in message["content"]]
        words += [f"[calls {_call(call)}]" for call in message.get("tool_calls") or []]
        text = " ".join(words)
        lines.append(text if message["role"] == "user" and len(messages) == 1 else f"{message['role']}: {text}")
    return "\n".join(lines)[:PROMPT_CHARACTERS]


def _call(call: dict[str, Any]) -> str:
    function = call.get("function", call)
    return f"{function.get('name')} {json.dumps(function.get('arguments'), ensure_ascii=False)}"
