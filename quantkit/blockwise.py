"""One block of the language model: scales, folds, targets, rounding. Files and where statistics come from stay outside.

Where the statistics were gathered behind quantized blocks, the inputs ``x~`` of this one are not those ``x`` of the
float model. A linear then should answer ``W x`` when it is asked ``x~``; the least-squares answer to that is the target

    W* = W + W D (H + d I)^-1,        D = sum (x - x~) x~^T,  H = sum x~ x~^T,

which is rounded in place of ``W`` (GPTAQ, arXiv:2504.02692, and Qronos, arXiv:2505.11695, correct the drift as well).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantkit.errors import QuantkitError
from quantkit.fold import fold
from quantkit.grid import GridSpec, QuantizedWeight
from quantkit.methods import METHODS, Factor, Rounding
from quantkit.methods.loss import relative_error

if TYPE_CHECKING:
    from quantkit.model import Block, Group
    from quantkit.plan import Plan
    from quantkit.recipe import QuantizeOptions
    from quantkit.statistics import BlockStatistics

LEAST_TOKENS = 32  # under which a Gram matrix says nothing


@dataclass(frozen=True)
class LayerRow:
    """One quantized linear in the final table. error: share of the output's energy, NaN without statistics; notes:
    where the rounding fell back from what was asked for, and why."""

    name: str
    bits: int
    error: float
    scaled_by: str
    tokens: int
    notes: tuple[str, ...] = ()


@dataclass
class QuantizedBlock:
    """weights: the quantized linears; plain: every other tensor of the block, float32; by their names inside it."""

    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    plain: dict[str, Tensor] = field(default_factory=dict)
    rows: list[LayerRow] = field(default_factory=list)

    def state(self) -> dict[str, Tensor]:
        """What a runtime computes with, by parameter name inside the block, float32."""
        return {f"{name}.weight": weight.dequantize() for name, weight in self.weights.items()} | self.plain


def quantize_block(
    tensors: dict[str, Tensor],
    block: Block,
    statistics: BlockStatistics | None,
    plan: Plan,
    options: QuantizeOptions,
) -> QuantizedBlock:
    """Quantize one block. tensors: all of its tensors, float32, by name inside the block; they are not changed.

    Raises QuantkitError, the input named, for statistics that are no Gram matrix.
    """
    return _Work(dict(tensors), block, statistics, plan, options).run()


class _Work:
    """The steps of one block, and what they know of each group of linears that share an input."""

    def __init__(
        self,
        tensors: dict[str, Tensor],
        block: Block,
        statistics: BlockStatistics | None,
        plan: Plan,
        options: QuantizeOptions,
    ) -> None:
        self.tensors, self.block, self.statistics, self.plan, self.options = tensors, block, statistics, plan, options
        self.method = METHODS[options.method]
        self.roundings: dict[str, Rounding] = {}
        self.notes: dict[str, list[str]] = {group.name: [] for group in block.groups}
        self.scaled_by: dict[str, str] = {}
        self.columns: dict[str, Tensor] = {}

    def run(self) -> QuantizedBlock:
        done = QuantizedBlock()
        if self.statistics is not None:
            self._scale(dict(self.tensors))
        for group in self.block.groups:
            if self.statistics is None:
                self._round_blindly(group, done)
            else:
                self._round(group, done)
        done.plain = self.tensors
        return done

    def linears(self, group: Group) -> list[str]:
        """The group's linears that are to be quantized."""
        return [name for name in group.linears if self.block.prefix + name in self.plan.quantized]

    # ---- scales ----

    def _scale(self, originals: dict[str, Tensor]) -> None:
        """Find each group's scale on the original weights, and fold it."""
        assert self.statistics is not None
        wanted = Rounding(self.options.solver, self.options.act_order, self.options.damping)
        for group in self.block.groups:
            names = self.linears(group)
            if not names:
                continue
            inputs = self.statistics.inputs[group.name]
            self.roundings[group.name] = self._rounding(group, inputs.tokens, wanted)
            if not (self.method.scales and self.options.scales) or self._feeder_is_kept(group):
                continue
            factor = self._factor(group, inputs.gram)
            weights = [originals[name + ".weight"] for name in names]
            spec = self.plan.grids[self.block.prefix + names[0]]
            search = self.method.find_scale(weights, inputs.gram, group.feeder, spec, factor)
            self.scaled_by[group.name] = search.origin
            if search.scale is not None:
                self.columns[group.name] = fold(self.tensors, group, search.scale, self._norm_dtype(group))

    def _rounding(self, group: Group, tokens: int, wanted: Rounding) -> Rounding:
        """Under LEAST_TOKENS tokens the linears of an input are rounded to nearest; under one a channel it is noted."""
        if tokens < LEAST_TOKENS and wanted.solver != "rtn":
            self.notes[group.name].append(f"{tokens} calibration tokens, {LEAST_TOKENS} needed: rounded to nearest")
            return replace(wanted, solver="rtn")
        if tokens < group.in_features:
            self.notes[group.name].append(f"{tokens} calibration tokens for {group.in_features} channels: few")
        return wanted

    def _feeder_is_kept(self, group: Group) -> bool:
        """A linear that stays as it is takes no scale of another group into its rows either."""
        return group.feeder.kind == "rows" and self.block.prefix + group.feeder.module in self.plan.kept

    def _norm_dtype(self, group: Group) -> torch.dtype:
        name = self.plan.dtype
        if group.feeder.kind != "rows":
            name = self.plan.stored_dtype(f"{self.block.prefix}{group.feeder.module}.weight")
        dtype: torch.dtype = getattr(torch, name)
        return dtype

    # ---- rounding ----

    def _round(self, group: Group, done: QuantizedBlock) -> None:
        assert self.statistics is not None
        names, inputs = self.linears(group), self.statistics.inputs[group.name]
        if not names:
            return
        gram, drift = inputs.gram, inputs.drift
        if group.name in self.columns:  # H_ij / (s_i s_j); the order of importance is another one now
            scale = self.columns[group.name]
            gram = gram / scale.unsqueeze(0) / scale.unsqueeze(1)
            drift = None if drift is None else drift / scale.unsqueeze(0) / scale.unsqueeze(1)
        rounding = self.roundings[group.name]
        factor = self._factor(group, gram)
        for name in names:
            weight = self.tensors.pop(name + ".weight")
            if drift is not None and factor is not None:
                weight = weight + factor.solve(weight @ drift)
            found = self.method.quantize(weight, gram, self._spec(name), rounding, factor)
            self._add(done, group, name, found, relative_error(found.dequantize(), weight, gram), inputs.tokens)

    def _round_blindly(self, group: Group, done: QuantizedBlock) -> None:
        for name in self.linears(group):
            weight = self.tensors.pop(name + ".weight")
            found = self.method.quantize(weight, torch.empty(0, 0), self._spec(name))
            self._add(done, group, name, found, float("nan"), 0)

    def _spec(self, name: str) -> GridSpec:
        return self.plan.grids[self.block.prefix + name]

    def _add(
        self, done: QuantizedBlock, group: Group, name: str, found: QuantizedWeight, error: float, tokens: int
    ) -> None:
        done.weights[name] = found
        notes = tuple(dict.fromkeys(self.notes[group.name]))
        scaled_by = self.scaled_by.get(group.name, "")
        done.rows.append(LayerRow(self.block.prefix + name, found.spec.bits, error, scaled_by, tokens, notes))

    def _factor(self, group: Group, gram: Tensor) -> Factor | None:
        """The solver's factor of ``gram``; an error names the input, a damping that had to be raised is noted."""
        rounding = self.roundings[group.name]
        try:
            factor = rounding.factor(gram)
        except QuantkitError as error:
            raise QuantkitError(f"{self.block.prefix}{group.linears[0]}: its input: {error}") from error
        if factor is not None and factor.damping > rounding.damping:
            self.notes[group.name].append(f"Gram matrix not positive definite: damping raised to {factor.damping:g}")
        return factor
