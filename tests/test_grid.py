"""Grids: exact small cases, properties for random ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import QuantkitError
from quantkit.grid import GridSpec, fake_quantize, full_range, grid_of, round_to_grid


def test_asymmetric_grid_by_hand() -> None:
    weight = torch.tensor([[-1.0, 0.0, 0.5, 2.75]])
    spec = GridSpec(4, 4)
    scales, zeros = grid_of(full_range(weight, spec), spec)
    assert scales.tolist() == [[0.25]] and zeros.tolist() == [[4]]
    quantized = round_to_grid(weight, scales, zeros, spec)
    assert quantized.codes.tolist() == [[0, 4, 6, 15]]
    assert quantized.dequantize().tolist() == weight.tolist()


def test_symmetric_grid_by_hand() -> None:
    weight = torch.tensor([[-4.0, 0.0, 1.0, 3.0]])
    spec = GridSpec(4, 4, symmetric=True)
    scales, zeros = grid_of(full_range(weight, spec), spec)
    assert scales.tolist() == [[0.5]] and zeros.tolist() == [[8]]
    assert round_to_grid(weight, scales, zeros, spec).codes.tolist() == [[0, 8, 10, 14]]


def test_range_always_holds_zero() -> None:
    weight = torch.tensor([[3.0, 4.0], [-4.0, -3.0]])
    quantized = round_to_grid(weight, *grid_of(full_range(weight, GridSpec(4, 2)), GridSpec(4, 2)), GridSpec(4, 2))
    assert quantized.zeros.tolist() == [[0], [15]]


@given(
    st.integers(0, 2**31), st.sampled_from([2, 3, 4, 8]), st.sampled_from([16, 32, -1]), st.booleans(),
    st.floats(-4, 4),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_error_is_at_most_half_a_step_and_scales_fit_both_half_formats(
    seed: int, bits: int, group_size: int, symmetric: bool, magnitude: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 64, generator=generator) * 10**magnitude
    spec = GridSpec(bits, group_size, symmetric)
    span = full_range(weight, spec)
    scales, zeros = grid_of(span, spec)
    assert torch.equal(scales.bfloat16().half(), scales)
    quantized = round_to_grid(weight, scales, zeros, spec)
    assert quantized.codes.max() <= spec.max_code and quantized.zeros.max() <= spec.max_code
    error = (quantized.dequantize() - weight).abs().view(5, scales.shape[1], -1)
    # half a step, and at the ends what rounding the scale (2^-8) and the zero point (half a step) cut off
    assert (error <= scales.float().unsqueeze(-1) * (1.001 + spec.max_code / 256)).all()
    assert torch.allclose(fake_quantize(weight, span, spec), quantized.dequantize(), rtol=0, atol=0)


def test_zero_group_stays_zero() -> None:
    weight = torch.zeros(2, 32)
    spec = GridSpec(4, 32)
    quantized = round_to_grid(weight, *grid_of(full_range(weight, spec), spec), spec)
    assert (quantized.dequantize() == 0).all() and torch.isfinite(quantized.scales).all()


def test_bad_grids_are_refused() -> None:
    with pytest.raises(QuantkitError, match="--bits 1 is outside 2 to 8"):
        GridSpec(1)
    with pytest.raises(QuantkitError, match="--group-size 0"):
        GridSpec(4, 0)
    with pytest.raises(QuantkitError, match="100 does not divide 256"):
        GridSpec(4, 100).group_of(256)
    with pytest.raises(QuantkitError, match="overflows the float16 scale"):
        grid_of(full_range(torch.full((1, 4), 1e7), GridSpec(4, 4)), GridSpec(4, 4))
