"""Intervals and tests: percentile bootstrap over items, and McNemar's exact test.

Tokens of one item are not independent, so whole items are drawn (cluster bootstrap; Davison and Hinkley, 1997,
chapter 3.8). McNemar, 1947: under no difference, the items that only one model answers right are fair coin tosses.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, comb

import numpy as np
from numpy.typing import NDArray

from quantkit.verify.report import Interval

Floats = NDArray[np.float64]
DRAWS = 1000
QUANTILE_DRAWS = 300
LEVEL = 0.95


def draws(items: int, count: int = DRAWS, seed: int = 0) -> Floats:
    """How often each item is drawn, [count, items]: each row sums to `items`."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(items, np.full(items, 1 / items), size=count).astype(np.float64)


def mean_interval(sums: Floats, counts: Floats, transform: Callable[[Floats], Floats] | None = None) -> Interval:
    """Interval of sum(sums) / sum(counts) over items, each [items]; `transform` is monotone, applied to every draw."""
    weights = draws(len(sums))
    total = weights @ counts
    means = (weights @ sums)[total > 0] / total[total > 0]
    value = np.asarray([sums.sum() / counts.sum()])
    ends = value + _student(sums, counts, float(value[0]))
    if transform is not None:
        means, value, ends = transform(means), transform(value), transform(ends)
    found = _interval(float(value[0]), means)
    low, high = float(ends.min()), float(ends.max())
    return Interval(value=found.value, low=min(low, found.low), high=max(high, found.high))


def _student(sums: Floats, counts: Floats, ratio: float) -> Floats:
    """[-h, h], Student's half width for a ratio of sums: drawing again from few items makes too little of the spread.

    The residuals' standard error (Cochran, 1977, chapter 6.3) times a quantile of t, expanded around the normal's.
    """
    n = len(sums)
    if n < 2:
        return np.zeros(2)
    z, v = 1.959964, n - 1
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    error = np.sqrt(np.square(sums - ratio * counts).sum() * n / (n - 1)) / counts.sum()
    return np.asarray([-t * error, t * error])


def quantile_interval(values: Floats, owners: NDArray[np.int64], q: float, items: int) -> Interval:
    """Interval of the q-quantile of token values [P]; owners [P]: the item of each token, below `items`.

    Only the upper tail is sorted: with q of 0.99, a draw whose quantile lies below the 90th percentile of the whole is
    as good as impossible, and would be counted at its edge.
    """
    value = float(np.quantile(values, q))
    tail = np.argsort(-values, kind="stable")[: ceil(min(1.0, 10 * (1 - q)) * len(values))]
    ordered, whose = values[tail], owners[tail]
    weights = draws(items, QUANTILE_DRAWS)
    total = weights @ np.bincount(owners, minlength=items).astype(np.float64)
    above = np.cumsum(weights[:, whose], axis=1)  # [draws, tail tokens], descending values
    place = (above < (1 - q) * total[:, None]).sum(1).clip(max=len(ordered) - 1)
    return _interval(value, ordered[place])


def _interval(value: float, found: Floats) -> Interval:
    if not len(found):
        return Interval(value=value, low=value, high=value)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value=value, low=float(min(low, value)), high=float(max(high, value)))


def wilson_floor(interval: Interval, items: int) -> Interval:
    """A share's interval widened to Wilson's (1927), which knows that 100 % of 10 items is not 100 % of all."""
    z = 1.959964
    p, n = interval.value, items
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(value=p, low=max(0.0, min(low, interval.low)), high=min(1.0, max(high, interval.high)))


def mcnemar(only_reference: int, only_candidate: int) -> float:
    """Two-sided exact p-value that items right in one model only fall as unevenly as this by chance."""
    n, k = only_reference + only_candidate, min(only_reference, only_candidate)
    if not n:
        return 1.0
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)
