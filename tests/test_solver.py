"""GPTQ against a naive float64 version that inverts H anew for every column, and what follows GPTQ."""

import pytest
import torch

from quantkit.errors import QuantkitError
from quantkit.grid import EvenLattice, GridSpec, QuantizedWeight, full_range, grid_of, round_to_grid
from quantkit.methods import METHODS, SOLVERS, Rounding
from quantkit.methods.loss import row_losses
from quantkit.methods.refine import descend, find_grid
from quantkit.methods.solver import DAMPING, factorise, feedback, solve

SPECS = [GridSpec(4, 32), GridSpec(3, 96), GridSpec(2, 32), GridSpec(4, 16, symmetric=True), GridSpec(8, 48)]


def _problem(inputs: int = 96, outputs: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(500, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    return torch.randn(outputs, inputs, generator=generator), rows.T @ rows


def _naive(weight: torch.Tensor, gram: torch.Tensor, spec: GridSpec, act_order: bool) -> torch.Tensor:
    """Dequantized result, float64: after each column, the others move to the least-squares optimum."""
    scales, zeros = grid_of(full_range(weight, spec), spec)
    size = spec.group_of(weight.shape[1])
    order = gram.diagonal().argsort(descending=True, stable=True).tolist() if act_order else list(range(len(gram)))
    damped = gram.double() + DAMPING * gram.double().diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    rest, result = weight.double().clone(), torch.zeros(weight.shape, dtype=torch.float64)
    for step, column in enumerate(order):
        scale, zero = scales[:, column // size].double(), zeros[:, column // size].double()
        code = ((rest[:, column] / scale).round() + zero).clamp(0, spec.max_code)
        result[:, column] = (code - zero) * scale
        later = order[step + 1 :]
        if later:
            remaining = torch.tensor(order[step:])
            inverse = torch.linalg.inv(damped[remaining][:, remaining])
            error = (rest[:, column] - result[:, column]) / inverse[0, 0]
            rest[:, later] -= error.unsqueeze(1) * inverse[0, 1:]
    return result


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("shrinkage", [0.0, 0.1])
def test_the_factor_is_of_what_it_says_it_has_seen(shrinkage: float, act_order: bool) -> None:
    _, gram = _problem()
    factor = factorise(gram, act_order=act_order, shrinkage=shrinkage)
    seen = factor.seen(gram).double()
    expected = gram.double() * (1 - shrinkage)
    expected.diagonal().copy_(gram.double().diagonal() + DAMPING * gram.double().diagonal().mean())
    assert torch.allclose(seen, expected, rtol=1e-5, atol=1e-5 * float(gram.abs().max()))
    rows = torch.randn(5, len(gram), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(factor.solve(rows).double() @ seen, rows.double(), atol=2e-3)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("spec", SPECS)
def test_feedback_is_gptq(spec: GridSpec, act_order: bool) -> None:
    """To 1e-6, in the oracle's own precision; in float32 a value on the edge between two codes may fall to either."""
    weight, gram = _problem()
    scales, zeros = grid_of(full_range(weight, spec), spec)
    naive = _naive(weight, gram, spec, act_order)
    lattice = EvenLattice(scales, zeros, spec, weight.shape[1])
    exact = _dequantized(feedback(weight.double(), factorise(gram.double(), act_order=act_order), lattice),
                         scales, zeros, spec)  # fmt: skip
    assert (exact - naive).abs().max() < 1e-6
    single = _dequantized(feedback(weight, factorise(gram, act_order=act_order), lattice), scales, zeros, spec)
    assert ((single - naive).abs().amax(1) < 1e-6).float().mean() >= 0.8


def _dequantized(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, spec: GridSpec) -> torch.Tensor:
    return QuantizedWeight(codes, scales, zeros, spec).dequantize().double()


@pytest.mark.parametrize("spec", SPECS)
def test_no_row_ends_above_its_start(spec: GridSpec) -> None:
    """Nearest codes, GPTQ, the descent: each at or below the one before it, in exact loss in float64."""
    for seed in range(4):
        weight, gram = _problem(seed=seed)
        gain = torch.rand(96, generator=torch.Generator().manual_seed(seed)) + 0.1
        gram = gram * gain.outer(gain)
        factor = factorise(gram)
        scales, zeros = find_grid(weight, factor.costs, spec)
        plain = round_to_grid(weight, scales, zeros, spec)
        solved = solve(weight, gram, factor, scales, zeros, spec)
        refined = descend(weight, gram, solved)
        before, middle, after = (
            row_losses(found.dequantize().double() - weight, gram.double()) for found in (plain, solved, refined)
        )
        assert (middle <= before * (1 + 1e-5)).all()
        assert (after <= middle * (1 + 1e-5)).all()
        assert middle.sum() < 0.9 * before.sum() and after.sum() < middle.sum()


def test_the_descent_ends_where_no_code_alone_helps() -> None:
    weight, gram = _problem(inputs=32, outputs=6)
    spec = GridSpec(3, 16)
    found = solve(weight, gram, factorise(gram), *grid_of(full_range(weight, spec), spec), spec)
    for _ in range(20):
        found = descend(weight, gram, found)
    base = row_losses(found.dequantize().double() - weight, gram.double())
    for column in range(32):
        for step in (-1, 1):
            codes = found.codes.int()
            codes[:, column] = (codes[:, column] + step).clamp(0, spec.max_code)
            other = QuantizedWeight(codes.to(torch.uint8), found.scales, found.zeros, spec)
            assert (row_losses(other.dequantize().double() - weight, gram.double()) >= base * (1 - 1e-5)).all()


def test_the_grid_is_the_best_of_its_candidates() -> None:
    weight, gram = _problem()
    costs = factorise(gram).costs
    for spec in SPECS:
        found = find_grid(weight, costs, spec)
        lost = [
            (round_to_grid(weight, *grid, spec).dequantize() - weight).square() @ costs
            for grid in (found, grid_of(full_range(weight, spec), spec))
        ]
        assert (lost[0] <= lost[1] * (1 + 1e-5)).all()
        assert torch.equal(found[0].bfloat16().half(), found[0])


def test_refine_scales_are_numbers_of_the_format() -> None:
    weight, gram = _problem()
    for spec in SPECS:
        found = METHODS["gptq"].quantize(weight, gram, spec, Rounding("refine"))
        assert torch.equal(found.scales.bfloat16().half(), found.scales)
        assert int(found.codes.max()) <= spec.max_code
        if spec.symmetric:
            assert (found.zeros == 2 ** (spec.bits - 1)).all()


def test_zero_points_stay_where_the_layout_can_hold_them() -> None:
    weight = torch.rand(8, 64) + 0.5  # all positive: the zero point would be 0
    gram = torch.eye(64)
    for solver in SOLVERS:
        for least in (0, 1):
            found = METHODS["gptq"].quantize(weight, gram, GridSpec(3, 32, least_zero=least), Rounding(solver))
            assert int(found.zeros.min()) == least


def test_singular_and_empty_statistics_are_damped() -> None:
    for gram in (torch.zeros(32, 32), torch.ones(32, 32), torch.diag(torch.arange(32.0))):
        factor = factorise(gram)
        assert torch.isfinite(factor.upper).all() and factor.damping == DAMPING
        found = METHODS["gptq"].quantize(torch.randn(4, 32), gram, GridSpec(4, 16), Rounding("refine"))
        assert torch.isfinite(found.dequantize()).all()
    indefinite = torch.eye(32)
    indefinite[0, 1] = indefinite[1, 0] = 1.5
    raised = factorise(indefinite)
    assert torch.isfinite(raised.upper).all() and raised.damping == pytest.approx(1.0)


def test_what_is_no_gram_matrix_is_refused() -> None:
    for value in (float("nan"), float("inf")):
        gram = torch.eye(8)
        gram[2, 3] = value
        with pytest.raises(QuantkitError, match="holds NaN or Inf"):
            factorise(gram)


def test_dead_channels_keep_the_nearest_code() -> None:
    weight, gram = _problem()
    dead = torch.tensor([3, 40, 41])
    gram[dead], gram[:, dead] = 0, 0
    spec = GridSpec(4, 32)
    factor = factorise(gram)
    found = METHODS["gptq"].quantize(weight, gram, spec, Rounding("gptq"), factor)
    plain = round_to_grid(weight, found.scales, found.zeros, spec)
    assert torch.equal(found.codes[:, dead], plain.codes[:, dead])


def test_factor_is_of_the_damped_inverse() -> None:
    _, gram = _problem(inputs=40)
    factor = factorise(gram)
    upper = factor.upper.double()
    damped = gram.double() + DAMPING * gram.double().diagonal().mean() * torch.eye(40, dtype=torch.float64)
    damped = damped[factor.order][:, factor.order]
    assert torch.allclose(upper.T @ upper @ damped, torch.eye(40, dtype=torch.float64), atol=1e-3)
    # the last column of the order has nothing behind it that could answer: it costs its conditional variance
    assert float(factor.costs[factor.order[0]]) == pytest.approx(float(1 / torch.linalg.inv(damped)[0, 0]), rel=1e-3)
