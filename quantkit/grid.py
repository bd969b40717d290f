"""Integer grids: scale, zero point, rounding, and ``QuantizedWeight``, the one thing that methods hand to formats.

A row of a weight is cut into groups of ``group_size`` input channels. Each group has one scale and one zero point,

    w ~ (code - zero) * scale,        0 <= code, zero < 2^bits,

so the grid always holds zero exactly. ``symmetric`` fixes the zero point to ``2^(bits - 1)``. Scales are rounded
*before* codes are chosen, to numbers that bfloat16 and (normal) float16 both hold: formats store float16, and vLLM
rounds what it reads to bfloat16 when the model runs in it; so every runtime sees the grid that the search chose. This
is the uniform affine quantizer of Jacob et al. (arXiv:1712.05877) with the range of AWQ (arXiv:2306.00978).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.errors import QuantkitError

SCALE_DTYPE = torch.float16
LARGEST_SCALE = 65280.0  # largest number of bfloat16 that float16 holds
SMALLEST_SCALE = float(torch.finfo(SCALE_DTYPE).tiny)  # smallest normal float16, 6.1e-5


@dataclass(frozen=True)
class GridSpec:
    """bits a code (2 to 8), input channels a group (-1: the whole row), symmetric or with a zero point; least_zero: the
    smallest zero point that the file can hold (GPTQ's layout: 1)."""

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    least_zero: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise QuantkitError(f"--bits {self.bits} is outside 2 to 8")
        if self.group_size != -1 and self.group_size < 1:
            raise QuantkitError(f"--group-size {self.group_size} is neither -1 (the whole row) nor positive")

    @property
    def max_code(self) -> int:
        return 2**self.bits - 1

    def group_of(self, in_features: int) -> int:
        """The group size for a row of ``in_features``; raises if it does not divide it."""
        size = in_features if self.group_size == -1 else self.group_size
        if in_features % size:
            raise QuantkitError(f"--group-size {size} does not divide {in_features} input channels")
        return size

    def check_row(self, name: str, in_features: int) -> None:
        """Raise unless groups divide the rows of the linear ``name``."""
        if self.group_size != -1 and in_features % self.group_size:
            raise QuantkitError(
                f"--group-size {self.group_size} does not divide the {in_features} input channels of {name}; "
                f"choose one that does (-1: the whole row) or keep it with --keep {name}"
            )


@dataclass(frozen=True)
class QuantizedWeight:
    """codes uint8 [out, in]; scales float16 [out, groups]; zeros uint8 [out, groups]."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    spec: GridSpec

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight these integers stand for, [out, in], computed in float32."""
        out, groups = self.scales.shape
        codes = self.codes.view(out, groups, -1).float()
        weight = (codes - self.zeros.float().unsqueeze(-1)) * self.scales.float().unsqueeze(-1)
        return weight.view(out, -1).to(dtype)

    def where(self, better: Tensor, other: QuantizedWeight) -> QuantizedWeight:
        """The other's rows where ``better`` bool [out]."""
        rows = better.unsqueeze(1)
        return QuantizedWeight(
            torch.where(rows, other.codes, self.codes),
            torch.where(rows, other.scales, self.scales),
            torch.where(rows, other.zeros, self.zeros),
            self.spec,
        )


class EvenLattice:
    """The values of a grid over rows of ``width``, for solvers that take one column at a time: scales and zeros
    [out, groups]."""

    def __init__(self, scales: Tensor, zeros: Tensor, spec: GridSpec, width: int) -> None:
        self._size = spec.group_of(width)
        self._scales, self._zeros = scales.float().T.contiguous(), zeros.float().T.contiguous()
        self._spec = spec

    def nearest(self, column: int, values: Tensor) -> tuple[Tensor, Tensor]:
        """The codes nearest to ``values`` [out] of a column, and what they stand for, both float [out]."""
        group = column // self._size
        scale, zero = self._scales[group], self._zeros[group]
        code = torch.div(values, scale).round_().add_(zero).clamp_(0, self._spec.max_code)
        return code, (code - zero).mul_(scale)


@dataclass(frozen=True)
class Range:
    """The span each group covers: ``low <= 0 <= high``, float32 [out, groups]."""

    low: Tensor
    high: Tensor

    def shrink(self, low: float | Tensor, high: float | Tensor) -> Range:
        return Range(self.low * low, self.high * high)


def full_range(weight: Tensor, spec: GridSpec) -> Range:
    """The span of every group of ``weight`` [out, in], widened to hold zero."""
    grouped = weight.view(weight.shape[0], -1, spec.group_of(weight.shape[1]))
    return Range(grouped.amin(-1).clamp(max=0).float(), grouped.amax(-1).clamp(min=0).float())


def grid_of(span: Range, spec: GridSpec) -> tuple[Tensor, Tensor]:
    """Scales float16 [out, groups] and zeros uint8 [out, groups] that cover ``span``.

    A group that spans nothing gets the smallest normal scale. Raises QuantkitError if a scale overflows float16.
    """
    if spec.symmetric:
        half = 2 ** (spec.bits - 1)
        # codes reach from -half to half - 1: the wider side decides
        scales = torch.maximum(-span.low / half, span.high / (half - 1))
    else:
        scales = (span.high - span.low) / spec.max_code
    stored = scales.clamp(min=SMALLEST_SCALE).to(torch.bfloat16).to(SCALE_DTYPE)
    if not torch.isfinite(stored).all():
        raise QuantkitError("a weight's range overflows the float16 scale of the format; keep that layer with --keep")
    if spec.symmetric:
        return stored, torch.full(stored.shape, 2 ** (spec.bits - 1), dtype=torch.uint8, device=stored.device)
    zeros = (-span.low / stored.float()).round_().clamp_(spec.least_zero, spec.max_code)
    return stored, zeros.to(torch.uint8)


def round_to_grid(weight: Tensor, scales: Tensor, zeros: Tensor, spec: GridSpec) -> QuantizedWeight:
    """The nearest codes of ``weight`` [out, in] on the given grid."""
    grouped = weight.float().view(*scales.shape, -1)
    codes = torch.div(grouped, scales.float().unsqueeze(-1)).round_().add_(zeros.float().unsqueeze(-1))
    codes = codes.clamp_(0, spec.max_code).to(torch.uint8).view(weight.shape)
    return QuantizedWeight(codes, scales, zeros, spec)


def fake_quantize(weight: Tensor, span: Range, spec: GridSpec) -> Tensor:
    """``weight`` [out, in] after a trip over the grid that covers ``span``, float32: what a search evaluates."""
    scales, zeros = grid_of(span, spec)
    scale, zero = scales.float().unsqueeze(-1), zeros.float().unsqueeze(-1)
    codes = torch.div(weight.view(*scales.shape, -1), scale).round_().add_(zero).clamp_(0, spec.max_code)
    return codes.sub_(zero).mul_(scale).view(weight.shape)
