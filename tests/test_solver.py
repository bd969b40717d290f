"""GPTQ's solver against a naive float64 version that inverts H anew for every column."""

import pytest
import torch

from quantkit.grid import GridSpec, full_range, grid_of
from quantkit.methods.loss import row_losses
from quantkit.methods.solver import DAMPING, SOLVERS, feedback, inverse_factor, nearest


def _problem(inputs: int = 96, outputs: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(500, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    return torch.randn(outputs, inputs, generator=generator), rows.T @ rows


def _naive(weight: torch.Tensor, gram: torch.Tensor, spec: GridSpec) -> torch.Tensor:
    """Dequantized result, float64: after each column, the others move to the least-squares optimum."""
    scales, zeros = grid_of(full_range(weight, spec), spec)
    size = spec.group_of(weight.shape[1])
    order = gram.diagonal().argsort(descending=True, stable=True).tolist()
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


@pytest.mark.parametrize("spec", [GridSpec(4, 32), GridSpec(3, 96), GridSpec(4, 16, symmetric=True)])
def test_feedback_is_gptq(spec: GridSpec) -> None:
    weight, gram = _problem()
    scales, zeros = grid_of(full_range(weight, spec), spec)
    found = feedback(weight, gram, scales, zeros, spec).dequantize().double()
    naive = _naive(weight, gram, spec)
    plain = nearest(weight, gram, scales, zeros, spec).dequantize().double()
    kept = row_losses((naive - weight).float(), gram) < row_losses((plain - weight).float(), gram)
    expected = torch.where(kept.unsqueeze(1), naive, plain)
    # a value on the edge between two codes may fall to either side in float32
    same = (found - expected).abs().amax(1) < 1e-6
    assert same.float().mean() >= 0.9
    losses = [float(row_losses((value - weight).float(), gram).sum()) for value in (found, expected, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] < 0.7 * losses[2]


def test_no_row_ends_above_plain_rounding() -> None:
    for seed in range(6):
        weight, gram = _problem(inputs=64, seed=seed)
        gram = gram * torch.rand(64, generator=torch.Generator().manual_seed(seed)).outer(torch.ones(64)).sqrt()
        gram = (gram + gram.T) / 2
        spec = GridSpec(2, 32)
        scales, zeros = grid_of(full_range(weight, spec), spec)
        losses = [
            row_losses(solve(weight, gram, scales, zeros, spec).dequantize() - weight, gram)
            for solve in (SOLVERS["rtn"], SOLVERS["gptq"])
        ]
        assert (losses[1] <= losses[0]).all()


def test_singular_and_empty_statistics_are_damped(caplog: pytest.LogCaptureFixture) -> None:
    for gram in (torch.zeros(32, 32), torch.ones(32, 32), torch.diag(torch.arange(32.0))):
        upper = inverse_factor(gram)
        assert torch.isfinite(upper).all()
    indefinite = torch.eye(32)
    indefinite[0, 1] = indefinite[1, 0] = 1.5
    assert torch.isfinite(inverse_factor(indefinite)).all()
    assert "damping raised" in caplog.text


def test_factor_is_of_the_damped_inverse() -> None:
    _, gram = _problem(inputs=40)
    upper = inverse_factor(gram).double()
    damped = gram.double() + DAMPING * gram.double().diagonal().mean() * torch.eye(40, dtype=torch.float64)
    assert torch.allclose(upper.T @ upper @ damped, torch.eye(40, dtype=torch.float64), atol=1e-3)
