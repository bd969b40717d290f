"""AutoAWQ's "gemm" layout (W4A16): what Transformers and vLLM read as ``quant_method: awq, version: gemm``.

Bit layout, for a linear with weight [out, in] and groups of g input channels:

    qweight  int32   [in, out / 8]      eight codes of neighbouring outputs a word
    qzeros   int32   [in / g, out / 8]  the zero points, packed alike
    scales   float16 [in / g, out]      w = (code - zero) * scale

Nibble i (bits 4i .. 4i + 3) of a word holds output ``8 * word + ORDER[i]``, ORDER = 0 2 4 6 1 3 5 7, the order in which
AWQ's first kernel unpacked pairs of half-words. A symmetric grid is written with its constant zero point 8, which every
reader takes; the config says ``zero_point: true`` in both cases, as the readers without zero points disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from quantkit.errors import QuantkitError
from quantkit.formats.contents import Contents
from quantkit.grid import GridSpec, QuantizedWeight

NAME = "awq"
BITS = 4
PACK = 32 // BITS
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
SUFFIXES = ("qweight", "qzeros", "scales")
LEAST_ZERO = 0


def check_spec(spec: GridSpec) -> None:
    """Raise unless this layout can hold ``spec``."""
    if spec.bits != BITS:
        raise QuantkitError(
            f"--bits {spec.bits}: AutoAWQ's gemm layout holds 4 bits only; leave --bits at 4, or choose --method-format"
        )


def check_linear(name: str, out_features: int, in_features: int, spec: GridSpec) -> None:
    """Raise unless the linear ``name`` fits: outputs in words of eight, groups that divide the row."""
    if out_features % PACK:
        raise QuantkitError(f"{name}: {out_features} outputs are no multiple of {PACK}; keep it with --keep {name}")
    spec.check_row(name, in_features)


def tensor_specs(
    name: str, out_features: int, in_features: int, spec: GridSpec, dtype: str = "bfloat16"
) -> dict[str, tuple[str, list[int]]]:
    """Names, safetensors dtypes and shapes that ``pack`` yields for the linear ``name``; ``dtype`` changes nothing."""
    del dtype
    groups = in_features // spec.group_of(in_features)
    return {
        f"{name}.qweight": ("I32", [in_features, out_features // PACK]),
        f"{name}.qzeros": ("I32", [groups, out_features // PACK]),
        f"{name}.scales": ("F16", [groups, out_features]),
    }


def pack(name: str, weight: QuantizedWeight, dtype: str = "bfloat16") -> dict[str, Tensor]:
    """The three tensors of the linear ``name``; integers are packed, nothing is rounded."""
    del dtype
    return {
        f"{name}.qweight": pack_words(weight.codes.T),
        f"{name}.qzeros": pack_words(weight.zeros.T),
        f"{name}.scales": weight.scales.T.contiguous(),
    }


def unpack(qweight: Tensor, qzeros: Tensor, scales: Tensor, bits: int, group_size: int) -> QuantizedWeight:
    """The integers and scales in three tensors of this layout.

    qweight int32 [in, out/8], qzeros int32 [groups, out/8], scales float16 [groups, out]. Raises QuantkitError if the
    shapes do not belong together.
    """
    spec = GridSpec(bits, group_size)
    check_spec(spec)
    rows, out = qweight.shape[0], qweight.shape[1] * PACK
    groups = rows // spec.group_of(rows)
    if qzeros.shape != (groups, out // PACK) or scales.shape != (groups, out):
        raise QuantkitError(
            f"qweight {list(qweight.shape)}, qzeros {list(qzeros.shape)} and scales {list(scales.shape)} "
            f"do not belong together at group size {group_size}"
        )
    codes, zeros = unpack_words(qweight).T.contiguous(), unpack_words(qzeros).T.contiguous()
    return QuantizedWeight(codes, scales.T.contiguous(), zeros, spec)


def read(load: Callable[[str], Tensor], name: str, spec: GridSpec, config: Mapping[str, Any]) -> QuantizedWeight:
    """The integers and scales of the linear ``name``; ``load`` gives a tensor by its full name."""
    del config
    qweight, qzeros, scales = (load(f"{name}.{suffix}") for suffix in SUFFIXES)
    return unpack(qweight, qzeros, scales, spec.bits, spec.group_size)


def dequantize(load: Callable[[str], Tensor], name: str, spec: GridSpec, config: Mapping[str, Any]) -> Tensor:
    """The weight of the linear ``name``, float32 [out, in]."""
    return read(load, name, spec, config).dequantize()


def pack_words(values: Tensor) -> Tensor:
    """uint8 [rows, out] with values below 16 -> int32 [rows, out / 8]."""
    nibbles = values.reshape(values.shape[0], -1, PACK).to(torch.int32)
    words = torch.zeros(nibbles.shape[:2], dtype=torch.int32, device=values.device)
    for position, source in enumerate(ORDER):
        words |= nibbles[:, :, source] << (BITS * position)
    return words


def unpack_words(words: Tensor) -> Tensor:
    """int32 [rows, out / 8] -> uint8 [rows, out]."""
    nibbles = torch.empty(*words.shape, PACK, dtype=torch.uint8, device=words.device)
    for position, source in enumerate(ORDER):
        nibbles[:, :, source] = ((words >> (BITS * position)) & (2**BITS - 1)).to(torch.uint8)
    return nibbles.view(words.shape[0], -1)


def quantization_config(contents: Contents) -> dict[str, Any]:
    """The ``quantization_config`` of config.json."""
    return {
        "quant_method": NAME,
        "version": "gemm",
        "bits": contents.spec.bits,
        "group_size": contents.spec.group_size,
        "zero_point": True,
        "modules_to_not_convert": list(contents.skipped),
    }


def other_files(contents: Contents) -> dict[str, dict[str, Any]]:
    """None beside config.json."""
    del contents
    return {}


def quantized_names(tensor_names: Iterable[str]) -> list[str]:
    """The linears of a checkpoint that are stored in this layout."""
    return [name.removesuffix(".qweight") for name in tensor_names if name.endswith(".qweight")]


def spec_of(config: Mapping[str, Any]) -> GridSpec:
    """The grid that a ``quantization_config`` of this layout names; raises QuantkitError for another layout."""
    version = str(config.get("version", config.get("format", "gemm"))).lower()
    if version != "gemm":
        raise QuantkitError(f"quantization_config.version is {version!r}; quantkit reads AutoAWQ's gemm layout")
    bits = config.get("bits", config.get("w_bit", BITS))
    group_size = config.get("group_size", config.get("q_group_size", 128))
    if not isinstance(bits, int) or not isinstance(group_size, int):
        raise QuantkitError("quantization_config.bits or group_size in config.json is not an integer")
    return GridSpec(bits, group_size)
