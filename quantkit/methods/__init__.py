"""The methods, one a file. An entry of ``METHODS`` is all a new one needs.

Quantizing a group of linears that share an input takes two steps, both pure functions: ``find_scale`` looks at all of
them and finds a scale to fold into what feeds them; ``round`` turns one weight into integers on a grid. What a method
is made of is data: whether it looks at statistics, whether it scales, and which range plain rounding takes. The solver
(``SOLVERS``) is chosen apart from the method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from quantkit.grid import GridSpec, QuantizedWeight, Range, grid_of, round_to_grid
from quantkit.methods import awq, rtn
from quantkit.methods.awq import FeedbackJudge, ScaleSearch
from quantkit.methods.refine import find_grid, refine
from quantkit.methods.solver import DAMPING, Factor, factorise, solve
from quantkit.model import Feeder

SOLVERS = ("rtn", "gptq", "refine")


@dataclass(frozen=True)
class Rounding:
    """How to round. solver: one of ``SOLVERS``; act_order, damping: of GPTQ's factor (``methods/solver.py``)."""

    solver: str = "refine"
    act_order: bool = True
    damping: float = DAMPING

    def factor(self, gram: Tensor) -> Factor | None:
        """The factor that the solver needs, None for nearest codes."""
        return None if self.solver == "rtn" else factorise(gram, self.damping, self.act_order)


@dataclass(frozen=True)
class Method:
    """One algorithm. find_range: what plain rounding covers; scales: it folds scales into feeders; needs_data: it looks
    at the statistics."""

    find_range: Callable[[Tensor, Tensor, GridSpec], Range]
    scales: bool = True
    needs_data: bool = True

    def find_scale(
        self, weights: Sequence[Tensor], gram: Tensor, feeder: Feeder, spec: GridSpec, factor: Factor | None
    ) -> ScaleSearch:
        """The scale of a group for the solver that ``factor`` belongs to (None: nearest codes)."""
        return awq.find_scale(weights, gram, feeder, spec, FeedbackJudge(factor) if factor else None)

    def quantize(
        self,
        weight: Tensor,
        gram: Tensor,
        spec: GridSpec,
        rounding: Rounding | None = None,
        factor: Factor | None = None,
    ) -> QuantizedWeight:
        """``weight`` float32 [out, in] for inputs with Gram matrix ``gram`` [in, in] -> integers on a grid.

        rounding: nearest codes where none is given; factor: its factor of ``gram``, where the caller has it already.
        """
        if rounding is None or rounding.solver == "rtn":
            scales, zeros = grid_of(self.find_range(weight, gram, spec), spec)
            return round_to_grid(weight, scales, zeros, spec)
        factor = factor or factorise(gram, rounding.damping, rounding.act_order)
        if rounding.solver == "gptq":
            return solve(weight, gram, factor, *find_grid(weight, factor.costs, spec), spec)
        return refine(weight, gram, factor, spec)


METHODS: dict[str, Method] = {
    "awq": Method(awq.find_clip),
    "gptq": Method(rtn.find_range),
    "rtn": Method(rtn.find_range, scales=False, needs_data=False),
}
