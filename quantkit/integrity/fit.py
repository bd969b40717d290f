"""How well a dequantized linear follows the weight it should hold, in units that do not depend on the layer.

For a target ``T`` [out, in] and a dequantized weight ``D = (code - zero) * step`` on groups of input channels:

* the residual in steps, ``(D - T) / step``: median of its magnitude, and signed mean;
* the cosine between ``T`` and ``D`` of every row: wrong rows, orders, layers;
* slope ``<T, D> / <D, D>`` and signed mean residual of every group, over codes that are not at an end of the grid
  (those may be clipped): a wrong scale, a wrong zero point;
* slope ``<T, D> / <T, T>`` of every input channel: a column scale that nothing undoes.

* the scatter of log stored / implied scales over that of the implied ones: scales of something else.

The limits were set on 155 good variants of tiny and 14 of two other shapes: AWQ's, GPTQ's and compressed-tensors'
layouts; 2, 3, 4 and 8 bits; rounded to nearest, GPTQ and refine; groups of 32, 64, 128 and the whole row; with and
without zero points, AWQ scales and kept layers. Worst values of those, and the faintest fault where it is known:

=================  ======  ======  ======  ======  =====================================================
bits                    2       3       4       8  fault
=================  ======  ======  ======  ======  =====================================================
cosine of a row      0.35    0.75    0.87    1.00  another row: under 0.3 (of 256 inputs)
median cosine        0.70    0.93    0.97    1.00  another layer, wrong order: under 0.3
slope_gain           0.78    1.04    0.73    0.00  a scale twice what it was: above 5
shift_gain           2.44    0.69    0.88    0.30  a zero point off by one: 2.8 in the mean at 4 bits
spread               1.15    0.45    0.24    0.01  scales of another place: 1.04 and more, 1.3 in the mean
channels, rms         1.3    0.14    0.12    0.01  a scale left: 0.16 and more
channel               4.0    0.85    0.48    0.05  one channel twice what it was: 0.69
shared, rms           1.3    0.11    0.05    0.00  a weak scale left by a norm: 0.09
undone, rms          0.10    0.04    0.03    0.00  rows that are not compensated: 0.056 of a weak scale, else 0.4
undone_channel       0.42    0.17    0.14    0.01
undone_median        0.40    0.09    0.05    0.00
=================  ======  ======  ======  ======  =====================================================

So at 2 bits a scale that a norm does not undo cannot be told from rounding, and is not looked for; nor is one of a
single channel at 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.grid import QuantizedWeight

MEDIAN = 0.8  # steps; good: 0.45 at most; weights that are not these: above 1.5
BIAS = 0.3  # steps, over a linear; good: 0.076 at most; zero points off by one: 1
SLOPE = 0.22  # of a group: the slope's distance from 1, if it explains enough:
SLOPE_GAIN, SLOPE_GAIN_CODES = 0.2, 64.0  # energy explained / left: 0.2 + 64 / codes
SLOPES = 0.15  # median of the slopes' distances from 1, over a linear; good: 0.083 at most


@dataclass(frozen=True)
class Limits:
    """What a good linear of so many bits stays within; the coarser the grid, the more rounding alone does.

    cosine: least of a row; typical: least median over the rows. slope_gain: most that a group's wrong slope explains,
    in the units above. shift, shift_gain: the same of a group's shift, in steps and as a multiple of what is left.
    spread: most that scales scatter about those that the codes imply, as a share of how these scatter. channel_energy:
    mean square, in steps, from which on an input channel's slope tells; channels, channel: root mean square and
    largest of their logs; shared: the former, where all linears of a group exceed it; undone, undone_channel,
    undone_median: root mean square, largest and median of a scale between two linears times its inverse.
    """

    cosine: float
    typical: float
    slope_gain: float
    shift: float
    shift_gain: float
    spread: float
    channel_energy: float
    channels: float
    channel: float
    shared: float
    undone: float
    undone_channel: float
    undone_median: float


_FINE = Limits(0.75, 0.9, 1.0, 0.6, 1.3, 0.7, 9.0, 0.15, 0.6, 0.08, 0.045, 0.3, 0.15)
_THREE = Limits(0.6, 0.8, 2.0, 0.7, 2.0, 0.8, 2.0, 0.2, 1.5, 0.15, 0.12, 0.4, 0.3)
_TWO = Limits(0.25, 0.5, 2.0, 0.8, 4.0, 1.3, 1.0, math.inf, math.inf, math.inf, 0.25, 0.9, math.inf)


def limits(bits: int) -> Limits:
    """The limits for codes of ``bits`` bits."""
    return {2: _TWO, 3: _THREE}.get(bits, _FINE)


_SAMPLE = 1 << 20  # elements that a median looks at
_ENERGY = 2.0  # mean square of code - zero from which on a group's slope tells something
_SCATTER = 0.03  # median distance of the implied scales' logs from their median, from which on their spread tells
_COARSE = 0.8  # median cosine of rows of 2 bits up to which scales are a range's and no fit
_GROUPS = 32  # groups of a linear that a spread needs


@dataclass(frozen=True)
class Fit:
    """median, bias: of the residual, in steps. cosine: [out]. slope, shift: [out, groups], 1 and 0 where a group is too
    faint to tell; slope_gain, shift_gain: the residual's energy that each explains, as a multiple of the rest (for
    slopes: and of what few codes explain by chance). channels: [in], telling: [in], False where a channel is lost.
    spread: how far scales scatter about the implied ones, as a share of how these scatter; 0 where nothing tells."""

    bits: int
    median: float
    bias: float
    cosine: Tensor
    slope: Tensor
    shift: Tensor
    slope_gain: Tensor
    shift_gain: Tensor
    channels: Tensor
    telling: Tensor
    spread: float

    @property
    def limits(self) -> Limits:
        return limits(self.bits)

    @property
    def bad_rows(self) -> Tensor:
        return self.cosine < self.limits.cosine

    @property
    def bad_slopes(self) -> Tensor:
        return ((self.slope - 1).abs() > SLOPE) & (self.slope_gain > self.limits.slope_gain)

    @property
    def bad_shifts(self) -> Tensor:
        return (self.shift.abs() > self.limits.shift) & (self.shift_gain > self.limits.shift_gain)

    @property
    def healthy(self) -> bool:
        """Whether these are the target's weights on a grid of their own; the input channels' slopes do not count."""
        bad = bool(self.bad_rows.any()) or bool(self.bad_slopes.any()) or bool(self.bad_shifts.any())
        slopes = float((self.slope - 1).abs().median())
        typical = float(self.cosine.median()) > self.limits.typical and self.spread < self.limits.spread
        return not bad and typical and self.median < MEDIAN and abs(self.bias) < BIAS and slopes < SLOPES


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
    least = limits(weight.spec.bits).channel_energy
    channels, telling = _channels(found, wanted, steps, least)
    return Fit(
        weight.spec.bits, median, bias, cosine, slope, shift, slope_gain, shift_gain, channels, telling,
        _spread(weight, target, float(cosine.median())),
    )  # fmt: skip


def implied_grid(weight: QuantizedWeight, target: Tensor) -> tuple[Tensor, Tensor]:
    """The line ``target = scale * (code - zero)`` of least squares for every group, both [out, groups]."""
    out, groups = weight.scales.shape
    codes, wanted = weight.codes.view(out, groups, -1).float(), target.reshape(out, groups, -1)
    centred = codes - codes.mean(-1, keepdim=True)
    scales = (centred * wanted).sum(-1) / centred.square().sum(-1).clamp(min=1e-9)
    zeros = codes.mean(-1) - wanted.mean(-1) / torch.where(scales == 0, 1e-12, scales)
    return scales, zeros


def _spread(weight: QuantizedWeight, target: Tensor, cosine: float) -> float:
    """Median distances from the median: of log stored / implied scales, over that of log implied scales."""
    implied, stored = implied_grid(weight, target)[0].flatten(), weight.scales.float().flatten()
    known = (implied > 0) & (stored > 0)
    if int(known.sum()) < _GROUPS or (weight.spec.bits == 2 and cosine < _COARSE):
        return 0.0
    logs = implied[known].log()
    around, within = _scatter(stored[known].log() - logs), _scatter(logs)
    return around / within if within > _SCATTER else 0.0


def _scatter(values: Tensor) -> float:
    return float((values - values.median()).abs().median())


def _channels(found: Tensor, wanted: Tensor, steps: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Slope of every input channel over all rows, [in], and whether it tells: its weights, stored or wanted, are
    well above the steps."""
    squares = steps.square()
    dot = (found * wanted * squares).sum(0).flatten()
    energy = (wanted.square() * squares).sum(0).flatten()
    step_energy = squares.sum(0).expand(found.shape[1], found.shape[2]).flatten()
    slope = torch.where(energy > 0, dot / energy.clamp(min=1e-30), 1.0)
    stored = (found.square() * squares).sum(0).flatten()
    return slope, torch.maximum(energy, stored) > least * step_energy


def row_cosine(found: Tensor, wanted: Tensor) -> Tensor:
    """Cosine between the rows of two matrices [out, in]; 1 where both rows are zero."""
    both = (found * wanted).sum(1)
    norms = (found.square().sum(1) * wanted.square().sum(1)).sqrt()
    none = (found.square().sum(1) == 0) & (wanted.square().sum(1) == 0)
    return torch.where(none, 1.0, both / norms.clamp(min=1e-30))


def carries_scale(fit: Fit) -> bool:
    """Whether the input channels carry a scale beside the one that is undone."""
    logs = _channel_logs(fit)
    return _root_mean_square(logs) > fit.limits.channels or bool((logs.abs() > fit.limits.channel).any())


def leans_to_scale(fit: Fit) -> bool:
    """Whether the input channels may carry one: too little to say of one linear, enough if its whole group does."""
    return _root_mean_square(_channel_logs(fit)) > fit.limits.shared


def _channel_logs(fit: Fit) -> Tensor:
    logs = fit.channels[fit.telling].clamp(min=0.01).log()
    # clipping and shrinking alone move all channels of a coarse grid
    return logs - logs.median() if fit.bits < 4 and len(logs) else logs


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt()) if len(values) else 0.0
