"""Mixed types for a size: which linears get which type, by what each choice would lose.

The unit of choice is the linears that read one input. What a unit loses at a type is foretold in nats a prediction from
its Gram matrix and the Fisher diagonal of its outputs (`quantkit.sensitivity`), with error feedback and without the
descent after it, which takes most of the time: for comparing, not for foretelling the total. Then the knapsack of
`quantkit.budget`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantkit.blockgrid import GRIDS
from quantkit.budget import Choice, allocate
from quantkit.errors import QuantkitError
from quantkit.formats.gguf.types import TYPES
from quantkit.gather import Data, Progress, Statistics
from quantkit.gguf.mixture import shorter, type_name
from quantkit.gguf.names import Conversion
from quantkit.gguf.plan import GgufPlan, fixed_names, pass_dtype
from quantkit.methods.blockfit import fit
from quantkit.methods.blockrefine import SHRINKAGE, BlockLattice
from quantkit.methods.loss import row_losses
from quantkit.methods.solver import factorise, feedback
from quantkit.model import Block, Group
from quantkit.recipe import parse_budget
from quantkit.sensitivity import output_sensitivity

if TYPE_CHECKING:
    from quantkit.checkpoint import Checkpoint
    from quantkit.recipe import GgufOptions
    from quantkit.statistics import InputStatistics

TYPES_BY_DEFAULT = ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")


@dataclass(frozen=True)
class Spent:
    """asked: as written; types: of the linears that were free, by GGUF name; bits_per_weight: of these; expected_loss:
    nats a prediction, if losses add up."""

    asked: str
    types: dict[str, str]
    bits_per_weight: float
    expected_loss: float


@dataclass(frozen=True)
class _Unit:
    """Linears that read one input and are free: name inside the block and row of the file."""

    block: Block
    group: Group
    rows: dict[str, Conversion]


def check_budget(plan: GgufPlan, options: GgufOptions) -> None:
    """Raise QuantkitError for a budget that no choice of types meets, or that leaves nothing to choose."""
    _Room(plan, options)


def spend(checkpoint: Checkpoint, plan: GgufPlan, options: GgufOptions, data: Data, progress: Progress) -> Spent:
    """Measure what every unit would lose at every type, and choose within the budget."""
    room = _Room(plan, options)
    dtype = pass_dtype(checkpoint, options)
    sensitivity = output_sensitivity(
        checkpoint, plan.map, data.samples, device=options.device, seed=options.seed, progress=progress,
        dtype=getattr(torch, dtype),
    )  # fmt: skip
    units = {unit.block.prefix + unit.group.name: unit for unit in room.units}
    choices: dict[str, list[Choice]] = {}
    source = Statistics(checkpoint, plan.map, data, options, dtype, progress)
    for block, found in zip(plan.map.blocks, source, strict=True):
        assert found is not None
        for group in block.groups:
            unit = units.get(block.prefix + group.name)
            if unit is None:
                continue
            weights = {
                name: checkpoint.load(row.source, check_finite=True).to(options.device, torch.float32)
                for name, row in unit.rows.items()
            }
            pulls = {name: sensitivity[block.prefix + name] for name in unit.rows}
            losses = _losses(weights, pulls, found.inputs[group.name], room.kinds_of(unit), options)
            choices[block.prefix + group.name] = [
                Choice(number, room.bytes_of(unit, kind), loss) for number, (kind, loss) in enumerate(losses.items())
            ]
        progress("losses", block.index + 1, len(plan.map.blocks))
    taken = allocate(choices, room.bytes)
    types = {
        row.name: room.kinds_of(units[name])[choice.width]
        for name, choice in taken.items()
        for row in units[name].rows.values()
    }
    size = sum(choice.bytes for choice in taken.values())
    return Spent(room.asked, types, 8 * size / room.weights, sum(choice.loss for choice in taken.values()))


def _losses(
    weights: Mapping[str, Tensor],
    pulls: Mapping[str, Tensor],
    inputs: InputStatistics,
    kinds: list[str],
    options: GgufOptions,
) -> dict[str, float]:
    """Nats a prediction that the unit loses, by type."""
    gram = inputs.gram
    factor = factorise(gram, options.damping, options.act_order, SHRINKAGE)
    losses = {}
    for kind in kinds:
        total = 0.0
        for name, weight in weights.items():
            start = fit(weight, GRIDS[kind], factor.costs)
            found = replace(start, codes=feedback(weight, factor, BlockLattice(start)))
            lost = row_losses(found.dequantize() - weight, gram).double()
            total += float((lost * pulls[name].to(lost.device)).sum())
        losses[kind] = total / max(1, inputs.tokens)
    return losses


class _Room:
    """What a budget leaves for the linears that are free, and what they take at each type."""

    def __init__(self, plan: GgufPlan, options: GgufOptions) -> None:
        assert options.budget is not None
        self.asked = options.budget
        self.kinds = _kinds(options)
        variant = plan.texts[0]
        fixed = fixed_names(variant, options)
        rows = {row.source: row for row in variant.tensors}
        self.units = list(_units(plan, rows, fixed))
        free = [row for unit in self.units for row in unit.rows.values()]
        if not free:
            raise QuantkitError("--budget: --tensor-type and --preset leave no linear to choose for; leave one out")
        self.weights = sum(row.shape[0] * row.shape[1] for row in free)
        bits, total = parse_budget(options.budget)
        rest = variant.nbytes - sum(_bytes(row, variant.types[row.name]) for row in free)
        self.bytes = int(bits * self.weights / 8) if bits is not None else (total or 0) - rest
        self._check(rest, bits is not None)

    def kinds_of(self, unit: _Unit) -> list[str]:
        """The types that the unit's rows can take, smallest first; a shorter block where one does not divide them."""
        width = unit.group.in_features
        found = dict.fromkeys(shorter(kind, width) for kind in self.kinds)
        return sorted((kind for kind in found if kind in GRIDS), key=lambda kind: TYPES[kind].bits) or ["Q8_0"]

    def bytes_of(self, unit: _Unit, kind: str) -> int:
        return sum(_bytes(row, kind) for row in unit.rows.values())

    def _check(self, rest: int, in_bits: bool) -> None:
        sizes = [[self.bytes_of(unit, kind) for kind in self.kinds_of(unit)] for unit in self.units]
        least, most = sum(map(min, sizes)), sum(map(max, sizes))

        def spelled(size: int) -> str:
            return f"{8 * size / self.weights:.2f}bpw" if in_bits else f"{(size + rest) / 1e6:.2f}MB"

        if self.bytes < least:
            raise QuantkitError(
                f"--budget {self.asked}: all linears at the smallest types take {spelled(least)} already; allow more, "
                "or smaller types (--budget-types)"
            )
        if self.bytes >= most:
            raise QuantkitError(
                f"--budget {self.asked}: all linears at the largest types take {spelled(most)}; there is nothing "
                "to choose"
            )


def _kinds(options: GgufOptions) -> list[str]:
    if options.budget_types is None:
        named = list(TYPES_BY_DEFAULT)
    else:
        named = [type_name(part.strip(), "--budget-types") for part in options.budget_types.split(",")]
    found = sorted(dict.fromkeys(named), key=lambda kind: TYPES[kind].bits)
    floats = [kind for kind in found if kind not in GRIDS]
    if floats or len(found) < 2:
        raise QuantkitError(f"--budget-types {options.budget_types}: name two or more of {', '.join(GRIDS)}")
    return found


def _units(plan: GgufPlan, rows: Mapping[str, Conversion], fixed: set[str]) -> Iterator[_Unit]:
    for block in plan.map.blocks:
        for group in block.groups:
            named = {name: rows[f"{block.prefix}{name}.weight"] for name in group.linears}
            free = {name: row for name, row in named.items() if row.name not in fixed}
            if free:
                yield _Unit(block, group, free)


def _bytes(row: Conversion, kind: str) -> int:
    return row.shape[0] * TYPES[kind].row_bytes(row.shape[1])
