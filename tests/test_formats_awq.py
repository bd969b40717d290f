"""AutoAWQ's gemm layout: exact bytes of small packs, round trips, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import QuantkitError
from quantkit.formats import Contents, awq
from quantkit.grid import GridSpec, QuantizedWeight


def test_one_word_by_hand() -> None:
    # outputs 0..7 with codes 0..7 lie in nibbles in the order 0 2 4 6 1 3 5 7, lowest first
    word = awq.pack_words(torch.arange(8, dtype=torch.uint8).unsqueeze(0))
    assert word.dtype == torch.int32 and word.shape == (1, 1)
    assert f"{int(word) & 0xFFFFFFFF:08x}" == "75316420"


def test_the_top_nibble_becomes_the_sign() -> None:
    word = awq.pack_words(torch.tensor([[0, 0, 0, 0, 0, 0, 0, 15]], dtype=torch.uint8))
    assert int(word) == -(2**28)
    assert awq.unpack_words(word).tolist() == [[0, 0, 0, 0, 0, 0, 0, 15]]


def _random(seed: int, out: int, inputs: int, size: int) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    groups = inputs // size
    return QuantizedWeight(
        torch.randint(0, 16, (out, inputs), generator=generator, dtype=torch.uint8),
        torch.rand(out, groups, generator=generator).half() + 0.01,
        torch.randint(0, 16, (out, groups), generator=generator, dtype=torch.uint8),
        GridSpec(4, size),
    )


@given(st.integers(0, 2**31), st.sampled_from([8, 24, 64]), st.sampled_from([(64, 32), (64, 64), (96, 32)]))
@settings(max_examples=40, deadline=None)
def test_round_trip(seed: int, out: int, shape: tuple[int, int]) -> None:
    weight = _random(seed, out, *shape)
    packed = awq.pack("x", weight)
    specs = awq.tensor_specs("x", out, shape[0], weight.spec)
    spelled = {torch.int32: "I32", torch.float16: "F16"}
    assert {name: (spelled[t.dtype], list(t.shape)) for name, t in packed.items()} == specs
    assert all(tensor.is_contiguous() for tensor in packed.values())
    back = awq.unpack(packed["x.qweight"], packed["x.qzeros"], packed["x.scales"], 4, shape[1])
    assert torch.equal(back.codes, weight.codes)
    assert torch.equal(back.zeros, weight.zeros)
    assert torch.equal(back.scales, weight.scales)
    assert torch.equal(back.dequantize(), weight.dequantize())


def test_what_the_layout_cannot_hold_is_refused() -> None:
    with pytest.raises(QuantkitError, match="holds 4 bits only"):
        awq.check_spec(GridSpec(3))
    with pytest.raises(QuantkitError, match=r"a\.b: 12 outputs are no multiple of 8"):
        awq.check_linear("a.b", 12, 128, GridSpec())
    with pytest.raises(QuantkitError, match=r"--group-size 96 does not divide the 128 input channels of a\.b"):
        awq.check_linear("a.b", 16, 128, GridSpec(4, 96))
    weight = awq.pack("x", _random(0, 8, 64, 32))
    with pytest.raises(QuantkitError, match="do not belong together at group size 64"):
        awq.unpack(weight["x.qweight"], weight["x.qzeros"], weight["x.scales"], 4, 64)
    with pytest.raises(QuantkitError, match="version is 'marlin'"):
        awq.spec_of({"version": "marlin"})


def test_config_reads_back() -> None:
    config = awq.quantization_config(Contents(GridSpec(4, 64), {}, ["lm_head"], "model.layers.", "test"))
    assert awq.spec_of(config) == GridSpec(4, 64)
    assert config["quant_method"] == "awq" and config["version"] == "gemm" and config["zero_point"] is True
