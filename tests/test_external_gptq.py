"""Our GPTQ and compressed-tensors files as Transformers loads them, by optimum, gptqmodel and compressed-tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_external_awq import distance, logits

from quantkit.quantize import quantize
from quantkit.recipe import QuantizeOptions
from quantkit.verify import load_dequantized, load_transformers

VARIANTS = {
    "gptq, 4 bits": {"method": "gptq"},
    "gptq, 4 bits, zero points": {"method": "gptq", "symmetric": False, "group_size": 64},
    "gptq, 3 bits": {"method": "gptq", "bits": 3},
    "gptq, 2 bits": {"method": "gptq", "bits": 2, "group_size": 64},
    "gptq, 8 bits, a layer kept": {"method": "gptq", "bits": 8, "keep": ("layers.1.mlp.down_proj",)},
    "compressed-tensors": {"method_format": "compressed-tensors"},
    "compressed-tensors, 8 bits, layers kept": {"method_format": "compressed-tensors", "bits": 8, "keep": ("o_proj",)},
    "compressed-tensors, mixed": {"method": "gptq", "budget": "5bpw", "budget_bits": "2,3,4,8,16"},
}


@pytest.fixture(scope="module")
def variant(
    random_checkpoint: Path, small_calibration: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of a variant by name, from one set of statistics."""
    folder = tmp_path_factory.mktemp("packed")
    base = QuantizeOptions(model=str(random_checkpoint), calib=str(small_calibration), solver="gptq")
    quantize(replace(base, out=folder / "first", save_stats=folder / "stats"))

    def make(name: str) -> Path:
        out = folder / name.replace(" ", "_").replace(",", "")
        if not out.exists():
            quantize(replace(base, out=out, stats=folder / "stats", **VARIANTS[name]))
        return out

    return make


@pytest.mark.parametrize("name", VARIANTS)
def test_transformers_loads_it(
    name: str, variant: Callable[[str], Path], random_checkpoint: Path, small_calibration: Path
) -> None:
    folder = variant(name)
    found = logits(load_transformers(folder, "bfloat16"), folder, small_calibration)
    exact = logits(load_dequantized(folder, "float32"), folder, small_calibration)
    noise = distance(logits(load_dequantized(folder, "bfloat16"), folder, small_calibration), exact)
    assert distance(found, exact) < 2 * noise
    # the comparison would see another weight: the source's logits lie outside, but for 8 bits
    if "8 bits" not in name:
        source = logits(load_dequantized(random_checkpoint), folder, small_calibration)
        assert distance(source, exact) > 2 * noise
