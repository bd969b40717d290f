"""Round to nearest: every group covers its whole range, every weight goes to the nearest code. The honest baseline."""

from __future__ import annotations

from torch import Tensor

from quantkit.grid import GridSpec, Range, full_range


def find_range(weight: Tensor, gram: Tensor, spec: GridSpec) -> Range:
    """The whole range of ``weight`` float32 [out, in]; ``gram`` is not looked at."""
    del gram
    return full_range(weight, spec)
