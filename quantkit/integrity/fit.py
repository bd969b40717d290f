"""How well a dequantized linear follows the weight it should hold, in units that do not depend on the layer.

For a target ``T`` [out, in] and a dequantized weight ``D = (code - zero) * step`` on groups of input channels:

* the residual in steps, ``(D - T) / step``: median of its magnitude, and signed mean;
* the cosine between ``T`` and ``D`` of every row: wrong rows, orders, layers;
* slope ``<T, D> / <D, D>`` and signed mean residual of every group, over codes that are not at an end of the grid
  (those may be clipped): a wrong scale, a wrong zero point;
* slope ``<T, D> / <T, T>`` of every input channel: a column scale that nothing undoes.

The limits below were set on 33 good variants of tiny: round to nearest and AWQ, with and without the error-feeding
solver, groups of 32, 64, 128 and the whole row, with and without zero points, kept layers, one to twelve calibration
samples, three dtypes. Each says the worst value of those, and what the faintest fault of its kind gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.grid import QuantizedWeight

MEDIAN = 0.8  # steps; good: 0.41 at most; weights that are not these: above 1.5
BIAS = 0.3  # steps, over a linear; good: 0.013 at most; zero points off by one: 1
COSINE = 0.75  # of a row; good: 0.93 at least; another row: below 0.3
SLOPE, SHIFT = 0.22, 0.6  # of a group: the slope's distance from 1 and the shift in steps, if they explain enough:
SLOPE_GAIN, SLOPE_GAIN_CODES = 0.2, 64.0  # energy explained / left: 0.2 + 64 / codes; good: 0.73 of that at most
SHIFT_GAIN = 1.3  # the same for the shift; good: 0.88 at most; a zero point off by one: 2.8 in the mean
SLOPES = 0.15  # median of the slopes' distances from 1, over a linear; good: 0.07 at most
CHANNELS = 0.1  # root mean square of the log slopes of the input channels; good: 0.06 at most; a scale left: 0.3
CHANNEL = 0.45  # log slope of one input channel; good: 0.29 at most
_SAMPLE = 1 << 20  # elements that a median looks at
_ENERGY = 2.0  # mean square of code - zero from which on a group's slope tells something
_CHANNEL_ENERGY = 9.0  # mean square, in steps, from which on an input channel's slope does


@dataclass(frozen=True)
class Fit:
    """median, bias: of the residual, in steps. cosine: [out]. slope, shift: [out, groups], 1 and 0 where a group is too
    faint to tell; slope_gain, shift_gain: the residual's energy that each explains, as a multiple of the rest (for
    slopes: and of what few codes explain by chance). channels: [in], telling: [in], False where a channel is lost."""

    median: float
    bias: float
    cosine: Tensor
    slope: Tensor
    shift: Tensor
    slope_gain: Tensor
    shift_gain: Tensor
    channels: Tensor
    telling: Tensor

    @property
    def bad_rows(self) -> Tensor:
        return self.cosine < COSINE

    @property
    def bad_slopes(self) -> Tensor:
        return ((self.slope - 1).abs() > SLOPE) & (self.slope_gain > 1)

    @property
    def bad_shifts(self) -> Tensor:
        return (self.shift.abs() > SHIFT) & (self.shift_gain > SHIFT_GAIN)

    @property
    def healthy(self) -> bool:
        """Whether these are the target's weights on a grid of their own; the input channels' slopes do not count."""
        bad = bool(self.bad_rows.any()) or bool(self.bad_slopes.any()) or bool(self.bad_shifts.any())
        slopes = float((self.slope - 1).abs().median())
        return not bad and self.median < MEDIAN and abs(self.bias) < BIAS and slopes < SLOPES


def measure(weight: QuantizedWeight, target: Tensor) -> Fit:
    """Compare ``weight`` with ``target`` float32 [out, in]."""
    out, groups = weight.scales.shape
    codes = weight.codes.view(out, groups, -1)
    inside = ((codes > 0) & (codes < weight.spec.max_code)).float()
    steps = weight.scales.float().unsqueeze(-1)
    wanted = target.reshape(out, groups, -1).float() / torch.where(steps == 0, 1e-12, steps)  # in steps
    found = codes.float() - weight.zeros.float().unsqueeze(-1)
    residual = found - wanted
    count, left = inside.sum(-1), (residual.square() * inside).sum(-1)
    energy, both = (found.square() * inside).sum(-1), (found * wanted * inside).sum(-1)
    telling = energy > _ENERGY * count.clamp(min=8)
    slope = torch.where(telling, both / energy.clamp(min=1e-9), 1.0)
    shift = torch.where(count >= 8, (residual * inside).sum(-1) / count.clamp(min=1), 0.0)
    by_slope, by_shift = energy * (slope - 1).square(), count * shift.square()
    slope_gain = by_slope / (left - by_slope).clamp(min=1e-9) / (SLOPE_GAIN + SLOPE_GAIN_CODES / count.clamp(min=8))
    shift_gain = by_shift / (left - by_shift).clamp(min=1e-9)
    sample = residual.flatten()[:: max(1, residual.numel() // _SAMPLE)]
    median, bias = float(sample.abs().median()), float(residual.mean())
    del residual
    cosine = row_cosine((found * steps).view(out, -1), target)
    return Fit(median, bias, cosine, slope, shift, slope_gain, shift_gain, *_channels(found, wanted, steps))


def _channels(found: Tensor, wanted: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Slope of every input channel over all rows, [in], and whether it tells: its weights, stored or wanted, are
    well above the steps."""
    squares = steps.square()
    dot = (found * wanted * squares).sum(0).flatten()
    energy = (wanted.square() * squares).sum(0).flatten()
    step_energy = squares.sum(0).expand(found.shape[1], found.shape[2]).flatten()
    slope = torch.where(energy > 0, dot / energy.clamp(min=1e-30), 1.0)
    stored = (found.square() * squares).sum(0).flatten()
    return slope, torch.maximum(energy, stored) > _CHANNEL_ENERGY * step_energy


def row_cosine(found: Tensor, wanted: Tensor) -> Tensor:
    """Cosine between the rows of two matrices [out, in]; 1 where both rows are zero."""
    both = (found * wanted).sum(1)
    norms = (found.square().sum(1) * wanted.square().sum(1)).sqrt()
    none = (found.square().sum(1) == 0) & (wanted.square().sum(1) == 0)
    return torch.where(none, 1.0, both / norms.clamp(min=1e-30))


def carries_scale(fit: Fit) -> bool:
    """Whether the input channels carry a scale beside the one that is undone."""
    logs = fit.channels[fit.telling].clamp(min=0.01).log()
    return bool(len(logs)) and (float(logs.square().mean().sqrt()) > CHANNELS or bool((logs.abs() > CHANNEL).any()))
