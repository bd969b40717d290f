"""Rounding to ggml's grids: against ggml itself, and where values are strange."""

from __future__ import annotations

import ggml
import pytest
import torch

from quantkit.blockgrid import GRIDS
from quantkit.formats.gguf.blocks import pack, unpack
from quantkit.methods.blockfit import fit, one_thread_each


def weights(kind: str, rows: int = 64, width: int = 512) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(rows, width, generator=generator) * 0.02
    if kind == "heavy":  # tails as trained weights have them
        normal = normal / torch.rand(rows, width, generator=generator).clamp(min=0.05).sqrt()
    return normal


def importance(width: int = 512) -> torch.Tensor:
    return torch.rand(width, generator=torch.Generator().manual_seed(1)) ** 3 + 0.01


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("name", GRIDS)
def test_no_less_exact_than_ggml(name: str, kind: str) -> None:
    weight = weights(kind)
    ours = (fit(weight, GRIDS[name]).dequantize() - weight).square().mean()
    theirs = (ggml.quantize(weight, name) - weight).square().mean()
    assert ours <= theirs


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("name", GRIDS)
def test_no_less_exact_than_ggml_by_importance(name: str, kind: str) -> None:
    weight, costs = weights(kind), importance()
    ours = ((fit(weight, GRIDS[name], costs).dequantize() - weight).square() @ costs).sum()
    theirs = ((ggml.quantize(weight, name, costs) - weight).square() @ costs).sum()
    assert ours <= theirs


@pytest.mark.parametrize("name", GRIDS)
def test_costs_are_what_is_lowered(name: str) -> None:
    weight, costs = weights("normal"), importance()
    weighted, plain = (((fit(weight, GRIDS[name], given).dequantize() - weight).square() @ costs).sum()
                       for given in (costs, None))  # fmt: skip
    assert weighted < plain


@pytest.mark.parametrize("name", GRIDS)
def test_every_code_is_the_nearest_on_its_grid(name: str) -> None:
    """Of all the codes that a value could take with its run's step and offset, none is nearer."""
    weight = weights("heavy", rows=4)
    blocks = fit(weight, GRIDS[name])
    error = (blocks.dequantize() - weight).abs()
    for code in range(GRIDS[name].least, GRIDS[name].top + 1):
        other = type(blocks)(
            blocks.grid, torch.full_like(blocks.codes, code), blocks.d, blocks.scales, blocks.dmin, blocks.mins
        )
        assert ((other.dequantize() - weight).abs() >= error - 1e-6).all()


@pytest.mark.parametrize("name", GRIDS)
def test_strange_values(name: str) -> None:
    """Zeros stay zero; constants, one large value, tiny and huge numbers come back finite and near."""
    width = 256
    rows = torch.zeros(7, width)
    rows[1] = 0.5
    rows[2] = -0.5
    rows[3, 17] = 1.0
    rows[4] = torch.linspace(-1e-9, 1e-9, width)
    rows[5] = torch.linspace(-1e4, 1e4, width)
    rows[6, :16] = torch.linspace(0.1, 1.0, 16)
    found = unpack(pack(fit(rows, GRIDS[name])), name).dequantize()
    assert torch.isfinite(found).all()
    assert (found[0] == 0).all()
    spread = {"Q2_K": 0.4, "Q3_K": 0.2}.get(name, 0.12)
    for row in (1, 2, 3, 5, 6):
        assert (found[row] - rows[row]).norm() <= spread * rows[row].norm()
    assert (found[4] - rows[4]).abs().max() <= 1e-7  # below what float16 scales resolve


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q5_1"])
def test_threads_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.methods.blockfit._PIECE", 2048)
    weight = weights("normal")
    threads = torch.get_num_threads()
    alone = pack(fit(weight, GRIDS[name]))
    with one_thread_each():
        assert torch.get_num_threads() == 1
        assert torch.equal(pack(fit(weight, GRIDS[name], workers=3)), alone)
    assert torch.get_num_threads() == threads


def test_rows_do_not_depend_on_their_neighbours() -> None:
    weight = weights("normal")
    whole, half = fit(weight, GRIDS["Q4_K"]), fit(weight[32:], GRIDS["Q4_K"])
    assert torch.equal(pack(whole)[32:], pack(half))


@pytest.mark.parametrize("name", ["Q4_K", "Q5_1", "IQ4_XS", "Q6_K"])
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_only_the_proportions_of_costs_count(name: str, factor: float) -> None:
    weight, costs = weights("normal"), importance()
    plain, scaled = (fit(weight, GRIDS[name], given).dequantize() for given in (costs, costs * factor))
    assert (plain - scaled).norm() <= 0.01 * plain.norm()


def test_weights_that_no_float16_end_reaches_are_refused() -> None:
    from quantkit.errors import QuantkitError
    from quantkit.gguf.encode import encode

    for kind in ("Q4_0", "Q4_K", "Q8_0", "Q5_1"):
        with pytest.raises(QuantkitError, match="overflow the float16 scales"):
            encode("x", weights("normal") * 1e12, kind)
