"""The methods, one a file. An entry of ``METHODS`` is all a new one needs.

A method has three steps, each a pure function: ``find_scale`` (where it has one) looks at all linears of a group and
finds a scale to fold into what feeds them; ``find_range`` chooses what each group of a row covers; a solver rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from quantkit.grid import GridSpec, QuantizedWeight, Range, grid_of
from quantkit.methods import awq, rtn
from quantkit.methods.awq import ScaleSearch
from quantkit.methods.solver import SOLVERS
from quantkit.model import Feeder


@dataclass(frozen=True)
class Method:
    """One algorithm. ``needs_data``: it looks at the statistics."""

    find_range: Callable[[Tensor, Tensor, GridSpec], Range]
    find_scale: Callable[[Sequence[Tensor], Tensor, Feeder, GridSpec], ScaleSearch] | None = None
    needs_data: bool = True

    def quantize(self, weight: Tensor, gram: Tensor, spec: GridSpec, solver: str = "rtn") -> QuantizedWeight:
        """``weight`` float32 [out, in] for inputs with Gram matrix ``gram`` [in, in] -> integers on a grid."""
        scales, zeros = grid_of(self.find_range(weight, gram, spec), spec)
        return SOLVERS[solver](weight, gram, scales, zeros, spec)


METHODS: dict[str, Method] = {
    "awq": Method(awq.find_clip, awq.find_scale),
    "rtn": Method(rtn.find_range, needs_data=False),
}
