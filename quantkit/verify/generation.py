"""Free-running answers compared: where they part, and whether one of them degenerates.

Teacher-forced logits look at one step each; a recurrent state that drifts shows only when a model runs on its own
words. Pure functions over token ids.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from quantkit.verify.intervals import mean_interval, wilson_floor
from quantkit.verify.report import Generation
from quantkit.verify.task import Answer

LONGEST_PERIOD = 16
REPEATS = 3
SHORTEST_LOOP = 12  # tokens


def same(reference: Answer, candidate: Answer) -> bool:
    """The same tokens, or the same text where an engine gives no ids."""
    if reference.tokens is None or candidate.tokens is None:
        return reference.text == candidate.text
    return reference.tokens == candidate.tokens


def diverged_at(reference: Answer, candidate: Answer) -> int | None:
    """Index of the first token that differs (the shorter one's end counts); None if none does or ids are unknown."""
    if reference.tokens is None or candidate.tokens is None or reference.tokens == candidate.tokens:
        return None
    pairs = zip(reference.tokens, candidate.tokens, strict=False)
    shorter = min(len(reference.tokens), len(candidate.tokens))
    return next((place for place, (first, second) in enumerate(pairs) if first != second), shorter)


def is_loop(tokens: Sequence[int]) -> bool:
    """Whether an answer ends by repeating itself: some period of at most 16 tokens, three times, over 12 tokens."""
    for period in range(1, LONGEST_PERIOD + 1):
        needed = max(REPEATS * period, SHORTEST_LOOP)
        if len(tokens) < needed:
            break
        tail = tokens[-needed:]
        if all(tail[place] == tail[place - period] for place in range(period, needed)):
            return True
    return False


def compare(pairs: Sequence[tuple[Answer, Answer]]) -> Generation | None:
    """Figures over (reference, candidate) answers; None without any."""
    if not pairs:
        return None
    equal = np.asarray([float(same(*pair)) for pair in pairs])
    places = sorted(place for pair in pairs if (place := diverged_at(*pair)) is not None)

    def count(side: int, test: object) -> int:
        return sum(bool(test(pair[side])) for pair in pairs)  # type: ignore[operator]

    def loops(answer: Answer) -> bool:
        return is_loop(answer.tokens or [])

    def empty(answer: Answer) -> bool:
        return not answer.text.strip()

    def unfinished(answer: Answer) -> bool:
        return not answer.finished

    return Generation(
        items=len(pairs),
        same=wilson_floor(mean_interval(equal, np.ones_like(equal)), len(pairs)),
        diverged_at_median=float(statistics.median(places)) if places else None,
        diverged_at_p10=float(np.quantile(places, 0.1)) if places else None,
        loops_reference=count(0, loops),
        loops_candidate=count(1, loops),
        empty_reference=count(0, empty),
        empty_candidate=count(1, empty),
        unfinished_reference=count(0, unfinished),
        unfinished_candidate=count(1, unfinished),
    )
