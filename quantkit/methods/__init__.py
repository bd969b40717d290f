"""The methods, one a file. An entry of ``METHODS`` is all a new one needs.

``quantize`` is a pure function ``(weight, gram, spec) -> QuantizedWeight``. ``find_scale``, where a method has one,
looks at all linears of a group before, and finds a scale to fold into what feeds them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from quantkit.grid import GridSpec, QuantizedWeight
from quantkit.methods import awq, rtn
from quantkit.methods.awq import ScaleSearch
from quantkit.model import Feeder


@dataclass(frozen=True)
class Method:
    """One algorithm."""

    quantize: Callable[[Tensor, Tensor, GridSpec], QuantizedWeight]
    find_scale: Callable[[Sequence[Tensor], Tensor, Feeder, GridSpec], ScaleSearch] | None = None


METHODS: dict[str, Method] = {
    "awq": Method(awq.quantize, awq.find_scale),
    "rtn": Method(rtn.quantize),
}
