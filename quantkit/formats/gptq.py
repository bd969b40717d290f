"""GPTQ's layout, version 1: what optimum (Transformers), gptqmodel, vLLM and SGLang read as ``quant_method: gptq``.

For a linear with weight [out, in] and groups of g input channels, with b bits a code:

    qweight  int32   [in * b / 32, out]      codes of neighbouring inputs in a word (``formats/words.py``)
    qzeros   int32   [in / g, out * b / 32]  zero points less one, neighbouring outputs in a word
    scales   float16 [in / g, out]           w = (code - zero) * scale
    g_idx    int32   [in]                    the group of each input channel, here i // g

Version 1 stores ``zero - 1``; readers add one back to the packed words, so a zero point of 0 would carry into its
neighbour and is never written (`LEAST_ZERO`). Files of others may say ``checkpoint_format: gptq_v2`` (zero points as
they are) or order their channels by activation (``g_idx`` not sorted); both are read, neither is written.

Who takes what (vLLM 0.32, gptqmodel 7.7, optimum 2.3): vLLM symmetric grids of 4 and 8 bits alone, gptqmodel all of
them, Transformers (optimum) one width a file: rules for single linears (``dynamic``) do not reach it. The parts
that stay as they are are named three times: ``modules_in_block_to_quantize`` (full names, in a list of lists) for
optimum and vLLM, ``dynamic`` with ``-:`` for SGLang and gptqmodel's own loader.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from quantkit.errors import QuantkitError
from quantkit.formats.contents import Contents
from quantkit.formats.words import WORD, pack_rows, unpack_rows
from quantkit.grid import GridSpec, QuantizedWeight

NAME = "gptq"
SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
BITS = (2, 3, 4, 8)
LEAST_ZERO = 1
MULTIPLE = 32  # of inputs and outputs, that every reader takes


def check_spec(spec: GridSpec) -> None:
    """Raise unless this layout can hold ``spec``."""
    if spec.bits not in BITS:
        raise QuantkitError(f"--bits {spec.bits}: GPTQ's layout holds 2, 3, 4 or 8 bits")


def check_linear(name: str, out_features: int, in_features: int, spec: GridSpec) -> None:
    """Raise unless the linear ``name`` fits: whole words, groups that divide the row."""
    for count, what in ((out_features, "outputs"), (in_features, "input channels")):
        if count % MULTIPLE:
            raise QuantkitError(f"{name}: {count} {what} are no multiple of {MULTIPLE}; keep it with --keep {name}")
    spec.check_row(name, in_features)


def tensor_specs(
    name: str, out_features: int, in_features: int, spec: GridSpec, dtype: str = "bfloat16"
) -> dict[str, tuple[str, list[int]]]:
    """Names, safetensors dtypes and shapes that ``pack`` yields for the linear ``name``; ``dtype`` changes nothing."""
    del dtype
    groups = in_features // spec.group_of(in_features)
    return {
        f"{name}.qweight": ("I32", [in_features * spec.bits // WORD, out_features]),
        f"{name}.qzeros": ("I32", [groups, out_features * spec.bits // WORD]),
        f"{name}.scales": ("F16", [groups, out_features]),
        f"{name}.g_idx": ("I32", [in_features]),
    }


def pack(name: str, weight: QuantizedWeight, dtype: str = "bfloat16") -> dict[str, Tensor]:
    """The four tensors of the linear ``name``; integers are packed, nothing is rounded. Zero points are 1 or more."""
    del dtype
    if int(weight.zeros.min()) < LEAST_ZERO:
        raise ValueError(f"{name}: a zero point of 0, which version 1 of this layout cannot hold")
    bits, inputs = weight.spec.bits, weight.codes.shape[1]
    return {
        f"{name}.qweight": pack_rows(weight.codes, bits).T.contiguous(),
        f"{name}.qzeros": pack_rows((weight.zeros - 1).T.contiguous(), bits),
        f"{name}.scales": weight.scales.T.contiguous(),
        f"{name}.g_idx": torch.arange(inputs, dtype=torch.int32) // weight.spec.group_of(inputs),
    }


def read(load: Callable[[str], Tensor], name: str, spec: GridSpec, config: Mapping[str, Any]) -> QuantizedWeight:
    """The integers and scales of the linear ``name``; ``load`` gives a tensor by its full name.

    config: the ``quantization_config``. Raises QuantkitError if the tensors do not belong together, or if the channels
    are ordered by activation (then only `dequantize` can read them).
    """
    codes, zeros, scales, groups = _tensors(load, name, spec, config)
    size = spec.group_of(codes.shape[1])
    if not torch.equal(groups, torch.arange(len(groups)) // size):
        raise QuantkitError(f"{name}: its channels are ordered by activation (g_idx)")
    return QuantizedWeight(codes, scales, zeros, spec)


def dequantize(load: Callable[[str], Tensor], name: str, spec: GridSpec, config: Mapping[str, Any]) -> Tensor:
    """The weight of the linear ``name``, float32 [out, in], whatever the order of its channels."""
    codes, zeros, scales, groups = _tensors(load, name, spec, config)
    return (codes.float() - zeros.float()[:, groups]) * scales.float()[:, groups]


def _tensors(
    load: Callable[[str], Tensor], name: str, spec: GridSpec, config: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes [out, in], zero points and scales [out, groups], the group of each channel int64 [in]."""
    check_spec(spec)
    qweight, qzeros, scales, g_idx = (load(f"{name}.{suffix}") for suffix in SUFFIXES)
    inputs, out = qweight.shape[0] * WORD // spec.bits, qweight.shape[1]
    groups = inputs // spec.group_of(inputs)
    shapes = (tuple(qzeros.shape), tuple(scales.shape), tuple(g_idx.shape))
    if shapes != ((groups, out * spec.bits // WORD), (groups, out), (inputs,)):
        raise QuantkitError(
            f"qweight {list(qweight.shape)}, qzeros {list(qzeros.shape)}, scales {list(scales.shape)} and g_idx "
            f"{list(g_idx.shape)} do not belong together at {spec.bits} bits and group size {spec.group_size}"
        )
    codes = unpack_rows(qweight.T.contiguous(), spec.bits)
    zeros = unpack_rows(qzeros, spec.bits).T.contiguous()
    if str(config.get("checkpoint_format", config.get("format", NAME))) != "gptq_v2":
        zeros += 1  # of 8 bits, 255 comes round to 0: symmetric grids of 8 bits have 128
    return codes, zeros, scales.T.contiguous(), g_idx.to(torch.int64)


def quantization_config(contents: Contents) -> dict[str, Any]:
    """The ``quantization_config`` of config.json, and all of quantize_config.json."""
    left_alone: dict[str, dict[str, int]] = {rf"-:.*{re.escape(part)}": {} for part in contents.skipped}
    other = {
        rf"+:.*\.{re.escape(spelled.removeprefix(contents.blocks))}$": {"bits": spec.bits}
        for name, spec in contents.grids.items()
        if spec.bits != contents.spec.bits
        # vLLM and SGLang ask for the rule of the linear that they fuse, under its own name
        for spelled in dict.fromkeys((name, contents.fused.get(name, name)))
    }
    return {
        "quant_method": NAME,
        "checkpoint_format": NAME,
        "bits": contents.spec.bits,
        "group_size": contents.spec.group_size,
        "sym": contents.spec.symmetric,
        "desc_act": False,
        "static_groups": True,
        "true_sequential": False,
        "damp_percent": contents.damping,
        "lm_head": False,
        "block_name_to_quantize": contents.blocks.rstrip("."),
        "modules_in_block_to_quantize": [list(contents.grids)],
        "dynamic": left_alone | other,
        "meta": {"quantizer": [f"quantkit:{contents.version}"]},
    }


def other_files(contents: Contents) -> dict[str, dict[str, Any]]:
    """quantize_config.json, where AutoGPTQ and gptqmodel look."""
    return {"quantize_config.json": quantization_config(contents)}
