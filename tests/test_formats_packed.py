"""GPTQ's and compressed-tensors' layouts: exact words of small packs, round trips, and what the authors' code makes."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import QuantkitError
from quantkit.formats import FORMATS, Contents, compressed_tensors, gptq
from quantkit.formats.words import pack_rows, unpack_rows
from quantkit.grid import GridSpec, QuantizedWeight

PREFIX = "model.language_model.layers."


def _random(seed: int, spec: GridSpec, out: int = 64, inputs: int = 96) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    groups, top = inputs // spec.group_of(inputs), spec.max_code + 1
    zeros = torch.randint(spec.least_zero, top, (out, groups), generator=generator, dtype=torch.uint8)
    if spec.symmetric:
        zeros = torch.full_like(zeros, 2 ** (spec.bits - 1))
    return QuantizedWeight(
        torch.randint(0, top, (out, inputs), generator=generator, dtype=torch.uint8),
        (torch.rand(out, groups, generator=generator) + 0.01).bfloat16().half(),
        zeros,
        spec,
    )


def _words(codes: list[int], bits: int) -> list[str]:
    packed = pack_rows(torch.tensor([codes], dtype=torch.uint8), bits)
    return [f"{int(word) & 0xFFFFFFFF:08x}" for word in packed[0]]


def test_words_by_hand() -> None:
    assert _words(list(range(8)), 4) == ["76543210"]
    assert _words([1, 2, 3, 0] * 4, 2) == ["39393939"]
    assert _words([1, 2, 3, 255], 8) == ["ff030201"]
    # 3 bits: code 10 has two bits in the first word and one in the second, code 21 one in the second, two in the third
    codes = [0] * 32
    codes[10], codes[21], codes[31] = 0b101, 0b011, 0b100
    assert _words(codes, 3) == ["40000000", "80000001", "80000001"]


@given(st.integers(0, 2**31), st.sampled_from([2, 3, 4, 8]), st.sampled_from([32, 64, 96]))
@settings(max_examples=40, deadline=None)
def test_words_are_those_of_compressed_tensors(seed: int, bits: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (5, count), generator=generator, dtype=torch.uint8)
    packed = pack_rows(codes, bits)
    theirs = pack_to_int32((codes.int() - 2 ** (bits - 1)).to(torch.int8), bits)
    assert torch.equal(packed, theirs)
    assert torch.equal(unpack_rows(packed, bits), codes)


@pytest.mark.parametrize("layout", ["gptq", "compressed-tensors"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_round_trip(layout: str, symmetric: bool, group: int, bits: int) -> None:
    module = FORMATS[layout]
    weight = _random(bits, GridSpec(bits, group, symmetric, module.LEAST_ZERO))
    packed = module.pack("x", weight, "bfloat16")
    spelled = {torch.int32: "I32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
    specs = module.tensor_specs("x", 64, 96, weight.spec, "bfloat16")
    assert {name: (spelled[t.dtype], list(t.shape)) for name, t in packed.items()} == specs
    assert all(tensor.is_contiguous() for tensor in packed.values())
    config = module.quantization_config(Contents(weight.spec, {f"{PREFIX}0.x": weight.spec}, [], PREFIX, "test"))
    back = module.read(packed.__getitem__, "x", weight.spec, config)
    assert torch.equal(back.codes, weight.codes)
    assert torch.equal(back.zeros, weight.zeros)
    assert torch.equal(back.scales, weight.scales)
    assert torch.equal(module.dequantize(packed.__getitem__, "x", weight.spec, config), weight.dequantize())


def test_gptq_stores_zero_points_less_one() -> None:
    weight = _random(0, GridSpec(4, 32, True, 1))
    qzeros = gptq.pack("x", weight)["x.qzeros"]
    assert {f"{int(word) & 0xFFFFFFFF:08x}" for word in qzeros.flatten()} == {"77777777"}
    plain = {"checkpoint_format": "gptq_v2"}  # zero points as they are
    assert (gptq.read(gptq.pack("x", weight).__getitem__, "x", weight.spec, plain).zeros == 7).all()
    with pytest.raises(ValueError, match="a zero point of 0"):
        gptq.pack("x", QuantizedWeight(weight.codes, weight.scales, weight.zeros * 0, weight.spec))


def test_gptq_reads_channels_ordered_by_activation() -> None:
    weight = _random(0, GridSpec(4, 32, False, 1))
    tensors = gptq.pack("x", weight)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    tensors["x.g_idx"] = tensors["x.g_idx"][order]
    with pytest.raises(QuantkitError, match="ordered by activation"):
        gptq.read(tensors.__getitem__, "x", weight.spec, {})
    groups = order // 32
    expected = (weight.codes.float() - weight.zeros.float()[:, groups]) * weight.scales.float()[:, groups]
    assert torch.equal(gptq.dequantize(tensors.__getitem__, "x", weight.spec, {}), expected)


@pytest.mark.parametrize(
    ("module", "spec", "words"),
    [
        (gptq, GridSpec(5), "2, 3, 4 or 8 bits"),
        (compressed_tensors, GridSpec(6), "2, 3, 4 or 8 bits"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(module, spec: GridSpec, words: str) -> None:
    with pytest.raises(QuantkitError, match=words):
        module.check_spec(spec)
    with pytest.raises(QuantkitError, match=r"a\.b: 12 outputs are no multiple of 32"):
        module.check_linear("a.b", 12, 128, GridSpec())
    with pytest.raises(QuantkitError, match=r"--group-size 96 does not divide the 128 input channels of a\.b"):
        module.check_linear("a.b", 32, 128, GridSpec(4, 96))


def test_configs_name_every_linear_and_every_width() -> None:
    spec = GridSpec(4, 128, True, 1)
    grids = {f"{PREFIX}{layer}.mlp.{name}": GridSpec(8 if layer else 4, 128, True, 1)
             for layer in range(2) for name in ("gate_proj", "up_proj")}  # fmt: skip
    fused = {name: name.rpartition(".")[0] + ".gate_up_proj" for name in grids}
    contents = Contents(spec, grids, ["model.merger."], PREFIX, "test", fused=fused)
    config = gptq.quantization_config(contents)
    assert config["modules_in_block_to_quantize"] == [list(grids)]
    rules = {pattern: rule for pattern, rule in config["dynamic"].items() if pattern.startswith("+:")}
    names = ("gate_proj", "gate_up_proj", "up_proj")  # vLLM looks the fused linear up under its own name
    assert rules == {rf"+:.*\.1\.mlp\.{name}$": {"bits": 8} for name in names}
    assert gptq.other_files(contents) == {"quantize_config.json": config}
    groups = compressed_tensors.quantization_config(contents)["config_groups"]
    assert [group["weights"]["num_bits"] for group in groups.values()] == [4, 8]
    assert groups["group_1"]["targets"] == [r"re:.*layers\.(1)\.mlp\.gate_proj$", r"re:.*layers\.(1)\.mlp\.up_proj$"]
