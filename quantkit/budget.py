"""Mixed precision: which linears get how many bits, for a size and by what each choice loses.

The unit of choice is a set of linears that read one input: runtimes fuse most of them and want them alike. Every unit
has a size and a loss at each width; wanted is the least sum of losses within a size: a multiple-choice knapsack, small
enough to be solved by dynamic programming over the sizes (a hundred units, five widths).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.recipe import parse_budget

_STEPS = 50_000


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
        if bits is not None:  # rounded up, so that what is named can be had
            return f"{math.ceil(100 * found.bits_per_weight(size)) / 100:.2f}bpw"
        return f"{math.ceil((size + rest) / 1e5) / 10:.1f}MB"

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

    What a choice takes beyond its unit's smallest is counted in steps, rounded up: of the largest size that goes into
    all of them, or of a `_STEPS`-th of the room where that is larger; exact in the first case. Raises ValueError where
    even the smallest choices take more, and for a loss that is no number.
    """
    import numpy as np

    smallest = {name: min(choice.bytes for choice in choices) for name, choices in units.items()}
    left = room - sum(smallest.values())
    if left < 0:
        raise ValueError("the smallest choices take more than there is room for")
    if not all(math.isfinite(choice.loss) for choices in units.values() for choice in choices):
        raise ValueError("a loss is no number")
    extra = {name: [choice.bytes - smallest[name] for choice in choices] for name, choices in units.items()}
    step = max(1, math.gcd(*(size for sizes in extra.values() for size in sizes)), -(-left // _STEPS))
    # least[c]: the least loss of the units so far within c steps
    least = np.zeros(left // step + 1)
    taken: list[Any] = []
    for name, choices in units.items():
        options = np.full((len(choices), len(least)), np.inf)
        for row, choice, size in zip(options, choices, extra[name], strict=True):
            steps = -(-size // step)
            row[steps:] = least[: max(0, len(least) - steps)] + choice.loss
        taken.append(options.argmin(0).astype(np.uint8))
        least = options.min(0)
    found, place = {}, len(least) - 1
    for name, best in zip(list(units)[::-1], taken[::-1], strict=True):
        number = int(best[place])
        found[name] = units[name][number]
        place -= -(-extra[name][number] // step)
    return {name: found[name] for name in units}
