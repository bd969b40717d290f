"""Mixed precision: which linears get how many bits, for a size and by what each choice loses.

The unit of choice is a set of linears that read one input: runtimes fuse most of them and want them alike. Every unit
has a size and a loss at each width; wanted is the least sum of losses within a size: a multiple-choice knapsack, small
enough to be solved exactly by dynamic programming over the sizes (a hundred units, five widths).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.recipe import parse_budget

_STEPS = 20_000


@dataclass(frozen=True)
class Allowance:
    """What a budget leaves for the linears. asked: as written; bytes: that they may take; sizes: bytes of each linear
    at each width; weights: their number."""

    asked: str
    bytes: int
    sizes: Mapping[str, Mapping[int, int]]
    weights: int

    def of(self, chosen: Mapping[str, int]) -> int:
        """Bytes of the linears at the widths that were ``chosen`` for each."""
        return sum(self.sizes[name][width] for name, width in chosen.items())

    def bits_per_weight(self, size: int) -> float:
        """Bits a weight if the linears take ``size`` bytes."""
        return 8 * size / self.weights


@dataclass(frozen=True)
class Choice:
    """A width for one unit: bytes, and what is lost with it (any unit of loss that adds up)."""

    width: int
    bytes: int
    loss: float


def allowance(asked: str, sizes: Mapping[str, Mapping[int, int]], weights: int, rest: int) -> Allowance:
    """The budget ``asked`` for linears of these sizes, beside ``rest`` bytes of other tensors.

    Raises QuantkitError for one that no choice of widths meets, or that leaves nothing to choose.
    """
    bits, total = parse_budget(asked)
    room = int(bits * weights / 8) if bits is not None else (total or 0) - rest
    found = Allowance(asked, room, sizes, weights)
    least, most = (sum(pick(by_width.values()) for by_width in sizes.values()) for pick in (min, max))
    widths = sorted({width for by_width in sizes.values() for width in by_width})

    def spelled(size: int) -> str:
        return f"{found.bits_per_weight(size):.2f}bpw" if bits is not None else f"{(size + rest) / 1e6:.1f}MB"

    if room < least:
        raise QuantkitError(
            f"--budget {asked}: all linears at {widths[0]} bits take {spelled(least)} already; "
            f"allow more, or fewer bits (--budget-bits)"
        )
    if room >= most:
        raise QuantkitError(
            f"--budget {asked}: all linears at {widths[-1]} bits take {spelled(most)}; there is nothing to choose"
        )
    return found


def allocate(units: Mapping[str, list[Choice]], room: int) -> dict[str, Choice]:
    """A choice a unit, within ``room`` bytes in all, with the least sum of losses.

    Exact where all sizes are multiples of a byte count that goes into ``room`` no more than `_STEPS` times, as those of
    real shapes are; else sizes are rounded up to such steps. Raises ValueError where even the smallest choices take
    more.
    """
    import numpy as np

    step = max(math.gcd(*(choice.bytes for choices in units.values() for choice in choices)), -(-room // _STEPS))
    # least[c]: the least loss of the units so far within c steps
    least = np.zeros(room // step + 1)
    taken: list[Any] = []
    for choices in units.values():
        options = np.full((len(choices), len(least)), np.inf)
        for row, choice in zip(options, choices, strict=True):
            size = -(-choice.bytes // step)
            row[size:] = least[: max(0, len(least) - size)] + choice.loss
        taken.append(options.argmin(0))
        least = options.min(0)
    if not np.isfinite(least[-1]):
        raise ValueError("the smallest choices take more than there is room for")
    found, left = {}, len(least) - 1
    for (name, choices), best in zip(list(units.items())[::-1], taken[::-1], strict=True):
        found[name] = choices[int(best[left])]
        left -= -(-found[name].bytes // step)
    return {name: found[name] for name in units}
