"""Mixed precision: which linears get how many bits, for a size and by what each choice loses.

The unit of choice is a set of linears that read one input: runtimes fuse most of them and want them alike. Every unit
has a size and a loss at each width; wanted is the least sum of losses within a size. That is a multiple-choice
knapsack. Solved by marginal gain: on the lower convex hull of each unit's (size, loss) points, the step with the
largest loss avoided a byte goes first. What the last steps leave over then goes to the best single steps that still
fit. The sum is optimal up to what one unit's step can change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from quantkit.errors import QuantkitError
from quantkit.recipe import parse_budget


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
    """A choice a unit, within ``room`` bytes in all, with the least sum of losses up to one unit's step.

    Raises ValueError where even the smallest choices take more.
    """
    hulls = {name: _hull(choices) for name, choices in units.items()}
    taken = {name: hull[0] for name, hull in hulls.items()}
    left = room - sum(choice.bytes for choice in taken.values())
    if left < 0:
        raise ValueError("the smallest choices take more than there is room for")
    steps = [
        (-(low.loss - high.loss) / (high.bytes - low.bytes), name, place, high)
        for name, hull in hulls.items()
        for place, (low, high) in enumerate(pairwise(hull))
    ]
    stuck: set[str] = set()
    for _, name, _, high in sorted(steps, key=lambda step: step[:3]):
        more = high.bytes - taken[name].bytes
        if name in stuck or more > left:
            stuck.add(name)  # the steps of a hull are taken in order, or not at all
            continue
        taken[name], left = high, left - more
    return _fill(units, taken, left)


def _hull(choices: list[Choice]) -> list[Choice]:
    """The lower convex hull, by size: every step avoids less loss a byte than the one before it."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda one: (one.bytes, one.loss)):
        if hull and choice.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _gain(low: Choice, high: Choice) -> float:
    return (low.loss - high.loss) / (high.bytes - low.bytes)


def _fill(units: Mapping[str, list[Choice]], taken: dict[str, Choice], left: int) -> dict[str, Choice]:
    """Spend what is left on the single changes that avoid the most loss and fit, off the hulls too."""
    while True:
        better = [
            (taken[name].loss - choice.loss, name, choice)
            for name, choices in units.items()
            for choice in choices
            if choice.loss < taken[name].loss and choice.bytes - taken[name].bytes <= left
        ]
        if not better:
            return taken
        _, name, choice = max(better, key=lambda one: (one[0], one[1]))
        left -= choice.bytes - taken[name].bytes
        taken[name] = choice
