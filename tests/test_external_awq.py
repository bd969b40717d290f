"""Our AWQ files in the hands of others: Transformers with gptqmodel's kernels, and two readers of the format.

The kernels of gptqmodel differ in what they round. In float32, those that it chooses on the CPU dequantize by
`(code - zero) * scale` in float16 and multiply in float32, so our weights are rounded to float16 for that comparison.
For groups of a whole row its own choice stops in inference mode (`expect qGroupSize to be 32, 64, 128 or 256`); the
backend `torch_awq` runs them, and multiplies in float16 where the model is float32.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantkit.calibration import PrepareOptions, load_conversations, load_processor, prepare
from quantkit.checkpoint import open_checkpoint
from quantkit.formats import awq
from quantkit.quantize import quantize
from quantkit.recipe import QuantizeOptions
from quantkit.verify import load_dequantized, load_transformers

# method, group size, symmetric
VARIANTS = {
    "awq-128": ("awq", 128, False),
    "rtn-32": ("rtn", 32, False),
    "rtn-64-symmetric": ("rtn", 64, True),
    "rtn-row": ("rtn", -1, False),
}
FLOAT32_KERNELS = {"TorchCpuAvx512AwqLinear", "TorchAtenAwqLinear"}  # with AVX512-BF16 and a compiler, and without


@pytest.fixture(scope="session")
def variant(
    random_checkpoint: Path, small_calibration: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of a variant by name, quantized once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            method, group_size, symmetric = VARIANTS[name]
            made[name] = tmp_path_factory.mktemp("awq") / name
            options = QuantizeOptions(
                method=method,
                model=str(random_checkpoint),
                out=made[name],
                group_size=group_size,
                symmetric=symmetric,
                calib=str(small_calibration),
            )
            quantize(options)
        return made[name]

    return make


def load_theirs(folder: Path, dtype: str) -> Any:
    """The folder as Transformers loads it; groups of a whole row with the backend that can."""
    if awq.spec_of(open_checkpoint(folder).config["quantization_config"]).group_size != -1:
        return load_transformers(folder, dtype)
    from transformers import AutoModelForImageTextToText, AwqConfig

    backend = AwqConfig(backend="torch_awq")
    return AutoModelForImageTextToText.from_pretrained(
        folder, dtype=getattr(torch, dtype), quantization_config=backend, local_files_only=True
    ).eval()


def logits(model: Any, folder: Path, data: Path) -> Tensor:
    """Float32 logits of two questions with pictures and one without, [tokens, vocabulary]."""
    samples = prepare(load_conversations(data)[:3], load_processor(folder), PrepareOptions())
    assert {sample.modality for sample in samples} == {"image", "images", "text"}
    rows = []
    for sample in samples:
        inputs = {
            name: value.to(model.dtype) if value.is_floating_point() else value for name, value in sample.inputs.items()
        }
        with torch.inference_mode():
            rows.append(model(**inputs, downsample_mode=sample.downsample_mode).logits[0].float())
    return torch.cat(rows)


def distance(found: Tensor, expected: Tensor) -> float:
    """Size of the difference relative to what is expected."""
    return ((found - expected).norm() / expected.norm()).item()


def kernel_of(model: Any) -> str:
    kernels = {type(module).__name__ for module in model.modules() if hasattr(module, "qweight")}
    assert len(kernels) == 1, kernels
    return kernels.pop()


@pytest.mark.parametrize("name", VARIANTS)
def test_transformers_float32(
    name: str, variant: Callable[[str], Path], random_checkpoint: Path, small_calibration: Path
) -> None:
    folder = variant(name)
    theirs = load_theirs(folder, "float32")
    found = logits(theirs, folder, small_calibration)
    exact = kernel_of(theirs) in FLOAT32_KERNELS
    ours = load_dequantized(folder, "float32")
    if exact:
        for linear in awq.quantized_names(open_checkpoint(folder).tensor_names):
            weight = ours.get_submodule(linear).weight
            weight.data = weight.data.half().float()
    expected = logits(ours, folder, small_calibration)
    assert distance(found, expected) < (1e-5 if exact else 2e-2)
    # the comparison sees quantization itself: the source's logits are far outside of the tolerance
    assert distance(logits(load_dequantized(random_checkpoint), folder, small_calibration), expected) > 5e-2


@pytest.mark.parametrize("name", VARIANTS)
def test_transformers_bfloat16(name: str, variant: Callable[[str], Path], small_calibration: Path) -> None:
    folder = variant(name)
    found = logits(load_theirs(folder, "bfloat16"), folder, small_calibration)
    expected = logits(load_dequantized(folder, "bfloat16"), folder, small_calibration)
    exact = logits(load_dequantized(folder, "float32"), folder, small_calibration)
    noise = distance(expected, exact)  # what bfloat16 alone does to this model
    assert distance(found, exact) < 2 * noise
    assert noise < 3e-2


def test_kernels_are_used(variant: Callable[[str], Path]) -> None:
    """Every linear that we packed runs packed, and nothing else does."""
    folder = variant("awq-128")
    model = load_transformers(folder, "bfloat16")
    packed = {name for name, module in model.named_modules() if hasattr(module, "qweight")}
    assert packed == set(awq.quantized_names(open_checkpoint(folder).tensor_names))


@pytest.mark.parametrize("reader", ["gptqmodel", "compressed-tensors"])
@pytest.mark.parametrize("name", VARIANTS)
def test_readers_see_the_same_integers(name: str, reader: str, variant: Callable[[str], Path]) -> None:
    from runtime_unpackers import READERS, packed_weights

    group_size = VARIANTS[name][1]
    seen = 0
    for _, packed in packed_weights(variant(name)):
        codes, zeros, scales = READERS[reader](packed, bits=4)
        ours = awq.unpack(*packed, 4, group_size)
        assert torch.equal(codes.to(torch.uint8), ours.codes)
        assert torch.equal(zeros.to(torch.uint8), ours.zeros)
        assert torch.equal(scales, ours.scales)
        seen += 1
    assert seen == 25  # 3 x (qkv, z, out) + (q, k, v, o) + 4 x (gate, up, down)


def test_gptqmodel_dequantizes_the_same_weight(variant: Callable[[str], Path]) -> None:
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
    from runtime_unpackers import packed_weights

    for _, (qweight, qzeros, scales) in packed_weights(variant("awq-128")):
        theirs = dequantize_gemm(qweight=qweight, qzeros=qzeros, scales=scales, bits=4, group_size=128)
        assert torch.equal(theirs, awq.unpack(qweight, qzeros, scales, 4, 128).dequantize().T.half())


def test_check_of_unpackers_finds_a_wrong_nibble(variant: Callable[[str], Path], tmp_path: Path) -> None:
    """One flipped bit changes one hash, in both readers."""
    import runtime_unpackers
    from runtime_unpackers import packed_weights

    folder = tmp_path / "flipped"
    shutil.copytree(variant("rtn-32"), folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.language_model.layers.0.mlp.gate_proj"
    tensors[f"{name}.qweight"][3, 5] ^= 1 << 13
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for unpack in runtime_unpackers.READERS.values():
        before, after = (
            {linear: runtime_unpackers.digest(*unpack(packed, 4)) for linear, packed in packed_weights(place)}
            for place in (variant("rtn-32"), folder)
        )
        assert [linear for linear in before if before[linear] != after[linear]] == [name]
