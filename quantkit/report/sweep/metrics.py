"""What a sweep is judged by: each figure's name, its axis, and whether less of it is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantkit.report.figures import number, share, signed

if TYPE_CHECKING:
    from quantkit.report.sweep.rows import Estimate, SweepRow


@dataclass(frozen=True)
class Metric:
    """A field of `Figures`. `factor`: what an axis shows of it, per cent for shares; KL has a log axis."""

    key: str
    heading: str
    axis: str
    less: bool
    shown: Callable[[float | None], str]
    factor: float = 1.0

    @property
    def log(self) -> bool:
        return self.factor == 1.0

    def of(self, row: SweepRow, group: str = "all") -> Estimate | None:
        """The row's figure over a group of items, None where it has none that is a number."""
        figures = row.figures.get(group)
        found: Estimate | None = None if figures is None else getattr(figures, self.key)
        known = found is not None and all(map(math.isfinite, (found.value, found.low, found.high)))
        return found if known else None


KL = Metric("kl", "KL mean", "mean KL, nats a token", True, number)
ACCURACY = Metric("accuracy", "accuracy, points", "accuracy against the reference, points", False, signed, 100.0)
KL_TEXT = Metric("kl_text", "KL, all text", "mean KL over all text, nats a token", True, number)
METRICS = (
    KL,
    Metric("kl_p99", "KL p99", "99th percentile of KL, nats", True, number),
    KL_TEXT,
    Metric("top1", "top-1", "top-1 agreement, %", False, share, 100.0),
    ACCURACY,
    Metric("same", "same answers", "greedy answers that stay the same, %", False, share, 100.0),
)


def present(rows: Sequence[SweepRow]) -> list[Metric]:
    """The metrics that any row has."""
    return [metric for metric in METRICS if any(metric.of(row) is not None for row in rows)]
