"""ggml's blocks against the readers and writers of the `gguf` package: bit for bit, on random bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from quantkit.blockgrid import GRIDS
from quantkit.formats.gguf import types
from quantkit.formats.gguf.blocks import pack, unpack


def random_rows(name: str, rows: int = 7, blocks: int = 3, seed: int = 0) -> torch.Tensor:
    """Rows of random bytes whose float16 numbers are finite."""
    kind = types.TYPES[name]
    data = torch.randint(
        0, 256, (rows, blocks * kind.nbytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    found = unpack(data, name)
    halves = [found.d] if found.dmin is None else [found.d, found.dmin]
    good = torch.stack([half.isfinite().all(1) for half in halves]).all(0)
    return data[good]


def test_numbers_and_sizes_are_ggmls():
    for kind in types.BY_NUMBER.values():
        theirs = GGMLQuantizationType(kind.number)
        assert theirs.name == kind.name
        assert GGML_QUANT_SIZES[theirs] == (kind.block, kind.nbytes)


def test_file_types_are_llama_cpps():
    for name, number in types.FILE_TYPES.items():
        theirs = gguf.LlamaFileType(number).name
        assert theirs.removeprefix("ALL_").removeprefix("MOSTLY_") in (
            name,
            name.removesuffix("_M") if name == "Q2_K" else name,
        )


@pytest.mark.parametrize("name", GRIDS)
def test_values_are_those_of_the_packages_reader(name):
    data = random_rows(name, rows=40)
    assert len(data) > 10
    theirs = gguf.quants.dequantize(data.numpy(), GGMLQuantizationType[name])
    np.testing.assert_array_equal(unpack(data, name).dequantize().numpy(), theirs)


@pytest.mark.parametrize("name", GRIDS)
def test_packing_what_was_unpacked_gives_the_bytes_back(name):
    data = random_rows(name, rows=40, seed=1)
    again = pack(unpack(data, name))
    if name in ("Q4_1", "Q5_1"):  # the sign of a zero is not kept
        assert (again != data).float().mean() < 0.001
    else:
        assert torch.equal(again, data)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_the_packages_own_bytes_survive_a_round_trip(name):
    weight = np.random.default_rng(0).normal(size=(16, 256)).astype(np.float32)
    data = torch.from_numpy(gguf.quants.quantize(weight, GGMLQuantizationType[name]))
    assert torch.equal(pack(unpack(data, name)), data)


def test_sequential_codes_of_q4_k_land_where_the_header_says():
    data = torch.zeros(1, 144, dtype=torch.uint8)
    data[0, 16:] = torch.arange(128)
    codes = unpack(data, "Q4_K").codes[0]
    # of the first 64 values, value l is the low half of byte l and value l + 32 its high half
    assert codes[:32].tolist() == [n & 15 for n in range(32)]
    assert codes[32:64].tolist() == [n >> 4 for n in range(32)]
    assert codes[64:96].tolist() == [(n + 32) & 15 for n in range(32)]
