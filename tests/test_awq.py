"""AWQ's search against a naive float64 oracle, and its promises: never above its start, never above rounding."""

import pytest
import torch

from quantkit.fold import expand
from quantkit.grid import EvenLattice, GridSpec, QuantizedWeight, fake_quantize, full_range, grid_of
from quantkit.methods import METHODS, SOLVERS, Rounding, awq
from quantkit.methods.awq import FeedbackJudge
from quantkit.methods.loss import loss, relative_error, row_losses
from quantkit.methods.solver import factorise, feedback
from quantkit.model import Feeder


def _problem(outputs: int = 48, inputs: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Correlated inputs of which a few channels are thirty times the others, weights, and the Gram matrix."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(400, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    gain = torch.ones(inputs)
    gain[::17] = 30
    rows = rows * gain
    weight = torch.randn(outputs, inputs, generator=generator) / gain.sqrt()
    return weight, rows, rows.T @ rows


def test_loss_is_the_squared_output_error() -> None:
    weight, rows, gram = _problem()
    error = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    naive = (rows.double() @ error.double().T).square().sum(0)
    assert torch.allclose(row_losses(error, gram).double(), naive, rtol=1e-4)
    assert loss(error, gram) == pytest.approx(float(naive.sum()), rel=1e-5)
    assert relative_error(weight * 1.1, weight, gram) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("symmetric", [False, True])
def test_clip_search_agrees_with_a_naive_float64_descent(symmetric: bool) -> None:
    weight, _, gram = _problem(outputs=6)
    spec = GridSpec(3, 16, symmetric)
    found = awq.find_clip(weight, gram, spec, sweeps=1)
    # oracle: the same choices, each by the loss of the whole row in float64
    full = full_range(weight, spec)
    for row in range(weight.shape[0]):
        low, high = full.low[row].clone(), full.high[row].clone()
        for group in range(4):
            best = None
            for shrink in (1.0, *awq.SHRINKS):
                trial_low, trial_high = low.clone(), high.clone()
                trial_low[group], trial_high[group] = full.low[row, group] * shrink, full.high[row, group] * shrink
                span = type(full)(trial_low.unsqueeze(0), trial_high.unsqueeze(0))
                error = (fake_quantize(weight[row : row + 1], span, spec) - weight[row : row + 1]).double()
                value = float((error @ gram.double() * error).sum())
                if best is None or value < best[0] * (1 - 1e-9):
                    best = (value, trial_low, trial_high)
            assert best is not None
            low, high = best[1], best[2]
        assert torch.allclose(found.low[row], low, rtol=1e-6)
        assert torch.allclose(found.high[row], high, rtol=1e-6)


def test_clip_never_ends_above_rounding() -> None:
    for seed in range(5):
        weight, _, gram = _problem(seed=seed)
        for spec in (GridSpec(4, 32), GridSpec(3, 16), GridSpec(4, -1, symmetric=True)):
            rounded = METHODS["rtn"].quantize(weight, gram, spec).dequantize()
            clipped = METHODS["awq"].quantize(weight, gram, spec).dequantize()
            before, after = row_losses(rounded - weight, gram), row_losses(clipped - weight, gram)
            assert (after <= before * (1 + 1e-4)).all()
            assert after.sum() < 0.95 * before.sum()


def test_scale_search_finds_the_outliers_and_reports_the_exact_losses() -> None:
    weight, rows, gram = _problem()
    spec = GridSpec(4, 32)
    feeder = Feeder("one_plus_weight", "norm", 64)
    found = awq.find_scale([weight[:16], weight[16:]], gram, feeder, spec)
    assert found.scale is not None and found.scale[::17].min() > found.scale.median()

    def naive(scale: torch.Tensor) -> float:
        scaled = weight * scale
        error = fake_quantize(scaled, full_range(scaled, spec), spec) / scale - weight
        return float((rows.double() @ error.double().T).square().sum())

    assert found.loss_before == pytest.approx(naive(torch.ones(64)), rel=1e-4)
    assert found.loss_after == pytest.approx(naive(found.scale), rel=1e-4)
    assert found.loss_after < 0.7 * found.loss_before


def test_shared_channels_get_one_scale() -> None:
    weight, _, gram = _problem()
    feeder = Feeder("weight", "linear_attn.norm", 32, tuple(range(32)) * 2)
    found = awq.find_scale([weight], gram, feeder, GridSpec(4, 32))
    assert found.scale is not None and found.scale.shape == (32,)
    assert expand(found.scale, feeder).shape == (64,)


def test_a_scale_that_lowers_nothing_is_not_kept() -> None:
    # every weight on the grid already: no scale can lower a loss of zero
    spec = GridSpec(4, 16)
    weight = torch.randint(0, 16, (32, 64), generator=torch.Generator().manual_seed(0)).float() - 8
    weight[:, ::16], weight[:, 1::16] = -8, 7
    scales, _ = grid_of(full_range(weight, spec), spec)
    assert (scales == 1).all()
    found = awq.find_scale([weight], torch.eye(64), Feeder("rows", "up", 64), spec)
    assert found.scale is None and found.loss_before == found.loss_after == 0 and found.origin == "none"


def test_inputs_are_not_changed() -> None:
    weight, _, gram = _problem()
    copies = weight.clone(), gram.clone()
    for method in METHODS.values():
        for solver in SOLVERS:
            rounding = Rounding(solver)
            method.quantize(weight, gram, GridSpec(4, 32), rounding)
            method.find_scale([weight], gram, Feeder("rows", "up", 64), GridSpec(4, 32), rounding.factor(gram))
    assert torch.equal(weight, copies[0]) and torch.equal(gram, copies[1])


def test_dead_channels_and_singular_gram_are_no_obstacle() -> None:
    weight, rows, _ = _problem()
    rows[:, 5] = 0
    rows = rows[:3]  # rank 3
    gram = rows.T @ rows
    found = awq.find_scale([weight], gram, Feeder("rows", "up", 64), GridSpec(4, 32))
    assert found.scale is None or torch.isfinite(found.scale).all()
    assert torch.isfinite(METHODS["awq"].quantize(weight, gram, GridSpec(4, 32)).dequantize()).all()


def test_a_solver_that_feeds_errors_forward_has_scales_of_its_own() -> None:
    """Its judge counts what later columns cannot answer; after GPTQ that scale loses less than the exact loss's own."""
    weight, _, gram = _problem(outputs=256)
    spec, feeder = GridSpec(4, 32), Feeder("one_plus_weight", "norm", 64)
    factor = factorise(gram)
    found = awq.find_scale([weight], gram, feeder, spec, FeedbackJudge(factor))
    exact = awq.find_scale([weight], gram, feeder, spec)
    assert found.scale is not None and exact.scale is not None

    def solved(scale: torch.Tensor) -> float:
        scaled = weight * scale
        grid = grid_of(full_range(scaled, spec), spec)
        codes = feedback(scaled, factor.scaled(scale), EvenLattice(*grid, spec, scaled.shape[1]))
        result = QuantizedWeight(codes, *grid, spec).dequantize() / scale
        return loss(result - weight, gram)

    losses = {name: solved(scale) for name, scale in
              (("none", torch.ones(64)), ("own", found.scale), ("exact", exact.scale))}  # fmt: skip
    assert losses["own"] < losses["exact"] < losses["none"]


def test_the_factor_of_scaled_inputs_needs_no_decomposition() -> None:
    _, _, gram = _problem()
    scale = torch.rand(64, generator=torch.Generator().manual_seed(1)) + 0.5
    scaled = factorise(gram).scaled(scale)
    damped = gram.double() + 0.01 * gram.double().diagonal().mean() * torch.eye(64, dtype=torch.float64)
    expected = (damped / scale.double().outer(scale.double()))[scaled.order][:, scaled.order]
    upper = scaled.upper.double()
    assert torch.allclose(upper.T @ upper @ expected, torch.eye(64, dtype=torch.float64), atol=1e-3)
