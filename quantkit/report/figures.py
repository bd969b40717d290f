"""Figures as text, the same in every page: three significant digits, shares in per cent, decimal units of size.

A minus is a true minus sign (U+2212), so columns line up; exponents stay in `1.8e-05` form, which can be copied.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from quantkit.verify.report import EngineResult, Group, NoiseRow, Report, TokenSummary


class Ends(Protocol):
    """A figure between two ends."""

    @property
    def value(self) -> float: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


MISSING = "–"
BY = {"all": "All items", "modality": "By modality", "mode": "By compression mode", "language": "By language"}
POSITIONS = {"answer": "answer tokens", "prompt": "prompt tokens", "text": "all text tokens"}
# all but what XML 1.0 may hold; HTML has no use for the rest either
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def clean(value: Any) -> str:
    """Any value as text that may stand in HTML and XML: no control characters, no lone surrogates."""
    return FORBIDDEN.sub("\ufffd", str(value).replace("\r\n", "\n").replace("\r", "\n"))


def number(value: float | None) -> str:
    """Three significant digits: 0.00183, 12.4, 1830, 1.83e-05."""
    if value is None:
        return MISSING
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-4 or size >= 1e6:
        shown = f"{value:.2e}"
    else:
        shown = f"{value:.{max(2 - math.floor(math.log10(size)), 0)}f}"
    return shown.replace("-", "\u2212") if value < 0 and "e" not in shown else shown


def share(value: float | None) -> str:
    """A share of one in per cent."""
    return MISSING if value is None else f"{100 * value:.2f} %".replace("-", "\u2212")


def signed(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    if value is None:
        return MISSING
    shown = f"{100 * value:+.2f}"
    return "0.00" if shown in ("+0.00", "-0.00") else shown.replace("-", "\u2212")


def count(value: int | None) -> str:
    """A whole number, thousands apart by a thin space."""
    return MISSING if value is None else f"{value:,}".replace(",", "\u202f")


def size(value: int | None) -> str:
    """Bytes in the decimal unit that suits."""
    if value is None:
        return MISSING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.{2 if unit == 'GB' else 1}f} {unit}"
    return f"{value} B"


def bits(value: float | None) -> str:
    """Bits a weight."""
    return MISSING if value is None else f"{value:.2f}"


def p_value(value: float) -> str:
    """A test's p."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def span(interval: Ends, shown: Any = number) -> str | None:
    """A figure's ends as text; None where it is a single point."""
    if interval.low == interval.value == interval.high:
        return None
    return f"{shown(interval.low)} to {shown(interval.high)}"


def ratio(value: float, other: float) -> str:
    """`value / other` as a multiple, "–" where there is nothing to divide by."""
    return MISSING if not other else f"{number(value / other)} ×"


def plain(value: Any) -> str:
    """An option or a version as one line of text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain(entry)}" for key, entry in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(entry) for entry in value) or "none"
    return str(value)


def ran(report: Report) -> list[EngineResult]:
    """The engines that ran, in the report's order; the first is the one that headline figures speak of."""
    return [engine for engine in report.engines if engine.status == "ran"]


def overall(engine: EngineResult) -> Group | None:
    """The group of all items."""
    return next((group for group in engine.groups if group.by == "all"), None)


def positions(engine: EngineResult) -> str:
    """Where the headline figures are taken: the answers' tokens if there are any, else all text tokens."""
    groups = engine.groups
    return next((name for name in ("answer", "text", "prompt") if any(getattr(g, name) for g in groups)), "answer")


def summary(group: Group | None, where: str) -> TokenSummary | None:
    """A group's figures at some positions."""
    return None if group is None else getattr(group, where)


def ordered(engine: EngineResult) -> list[tuple[str, list[Group]]]:
    """Groups under their headings: all, then by modality, mode and language, each in the report's order."""
    kinds = [(title, [group for group in engine.groups if group.by == by]) for by, title in BY.items()]
    return [(title, groups) for title, groups in kinds if groups]


def floors(report: Report, where: str) -> list[NoiseRow]:
    """The reference's noise floors at the positions that figures are taken at."""
    return [row for row in report.noise_floor if (row.positions == "answer") == (where == "answer")]


def floor_of(report: Report, where: str) -> NoiseRow | None:
    """The largest of them."""
    return max(floors(report, where), key=lambda row: row.kl_mean, default=None)
