"""compressed-tensors' ``pack-quantized`` layout (W4A16 and other widths), vLLM's own; Transformers reads it as well.

For a linear with weight [out, in] and groups of g input channels, with b bits a code:

    weight_packed      int32  [out, in * b / 32]      codes of neighbouring inputs in a word (``formats/words.py``)
    weight_scale       float  [out, in / g]           in the dtype of the model; w = (code - zero) * scale
    weight_zero_point  int32  [out * b / 32, in / g]  zero points, neighbouring outputs in a word; not if symmetric
    weight_shape       int64  [2]                     out, in

The format's own numbers are signed, ``code - 2^(b - 1)``, and the packer adds that again: the words hold our codes. Its
configuration lists grids by target; targets here are full names, so a file may mix bits and leave single layers alone.
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
from quantkit.grid import SCALE_DTYPE, GridSpec, QuantizedWeight

NAME = "compressed-tensors"
SUFFIXES = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
BITS = (2, 3, 4, 8)
LEAST_ZERO = 0
MULTIPLE = 32
_DTYPES = {"bfloat16": ("BF16", torch.bfloat16), "float16": ("F16", torch.float16), "float32": ("F32", torch.float32)}


def check_spec(spec: GridSpec) -> None:
    """Raise unless this layout can hold ``spec``."""
    if spec.bits not in BITS:
        raise QuantkitError(f"--bits {spec.bits}: quantkit writes 2, 3, 4 or 8 bits as compressed-tensors")


def check_linear(name: str, out_features: int, in_features: int, spec: GridSpec) -> None:
    """Raise unless the linear ``name`` fits: whole words, groups that divide the row."""
    for count, what in ((out_features, "outputs"), (in_features, "input channels")):
        if count % MULTIPLE:
            raise QuantkitError(f"{name}: {count} {what} are no multiple of {MULTIPLE}; keep it with --keep {name}")
    spec.check_row(name, in_features)


def tensor_specs(
    name: str, out_features: int, in_features: int, spec: GridSpec, dtype: str = "bfloat16"
) -> dict[str, tuple[str, list[int]]]:
    """Names, safetensors dtypes and shapes that ``pack`` yields for the linear ``name`` in a model of ``dtype``."""
    groups = in_features // spec.group_of(in_features)
    specs: dict[str, tuple[str, list[int]]] = {
        f"{name}.weight_packed": ("I32", [out_features, in_features * spec.bits // WORD]),
        f"{name}.weight_scale": (_DTYPES[dtype][0], [out_features, groups]),
        f"{name}.weight_shape": ("I64", [2]),
    }
    if not spec.symmetric:
        specs[f"{name}.weight_zero_point"] = ("I32", [out_features * spec.bits // WORD, groups])
    return specs


def pack(name: str, weight: QuantizedWeight, dtype: str = "bfloat16") -> dict[str, Tensor]:
    """The tensors of the linear ``name``; integers are packed, nothing is rounded (our scales fit each dtype)."""
    bits = weight.spec.bits
    packed = {
        f"{name}.weight_packed": pack_rows(weight.codes, bits),
        f"{name}.weight_scale": weight.scales.to(_DTYPES[dtype][1]),
        f"{name}.weight_shape": torch.tensor(weight.codes.shape, dtype=torch.int64),
    }
    if not weight.spec.symmetric:
        packed[f"{name}.weight_zero_point"] = pack_rows(weight.zeros.T.contiguous(), bits).T.contiguous()
    return packed


def read(load: Callable[[str], Tensor], name: str, spec: GridSpec, config: Mapping[str, Any]) -> QuantizedWeight:
    """The integers and scales of the linear ``name``; ``load`` gives a tensor by its full name.

    Raises QuantkitError if the tensors do not belong together. Scales of other tools may be no float16 numbers: they
    are kept as they are.
    """
    check_spec(spec)
    words, scales = load(f"{name}.weight_packed"), load(f"{name}.weight_scale")
    out, inputs = (int(count) for count in load(f"{name}.weight_shape"))
    groups = inputs // spec.group_of(inputs)
    if words.shape != (out, -(-inputs * spec.bits // WORD)) or scales.shape != (out, groups):
        raise QuantkitError(
            f"weight_packed {list(words.shape)} and weight_scale {list(scales.shape)} do not belong together at "
            f"{spec.bits} bits and group size {spec.group_size} of a weight {[out, inputs]}"
        )
    if inputs % MULTIPLE or out % MULTIPLE:
        raise QuantkitError(
            f"{name}: rows of {inputs} or columns of {out}, no multiple of {MULTIPLE}, are not read here"
        )
    codes = unpack_rows(words, spec.bits)
    half = 2 ** (spec.bits - 1)
    zeros = torch.full(scales.shape, half, dtype=torch.uint8)
    if not is_symmetric(config):
        zeros = unpack_rows(load(f"{name}.weight_zero_point").T.contiguous(), spec.bits).T.contiguous()
    exact = scales.to(SCALE_DTYPE)
    return QuantizedWeight(codes, exact if torch.equal(exact.float(), scales.float()) else scales, zeros, spec)


def dequantize(load: Callable[[str], Tensor], name: str, spec: GridSpec, config: Mapping[str, Any]) -> Tensor:
    """The weight of the linear ``name``, float32 [out, in]."""
    return read(load, name, spec, config).dequantize()


def is_symmetric(config: Mapping[str, Any]) -> bool:
    """Whether the grids of a ``quantization_config`` have no zero points; groups that differ in it are an error."""
    found = {bool(group["weights"].get("symmetric", True)) for group in config["config_groups"].values()}
    if len(found) != 1:
        raise QuantkitError("quantization_config.config_groups mixes symmetric and asymmetric grids")
    return found.pop()


def quantization_config(contents: Contents) -> dict[str, Any]:
    """The ``quantization_config`` of config.json: a group a width."""
    groups: dict[str, dict[str, Any]] = {}
    for bits in sorted({spec.bits for spec in contents.grids.values()}):
        names = [name for name, spec in contents.grids.items() if spec.bits == bits]
        groups[f"group_{len(groups)}"] = _group(contents.grids[names[0]], _targets(names, contents.blocks))
    return {
        "quant_method": NAME,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": [_ignored(part) for part in contents.skipped],
        "config_groups": groups,
    }


def _targets(names: list[str], blocks: str) -> list[str]:
    """One pattern a kind of linear, that any runtime's prefix may stand before: ``layers.(0|1|2).mlp.up_proj``."""
    layers: dict[str, list[str]] = {}
    stem = blocks.rstrip(".").rpartition(".")[2]
    for name in names:
        layer, _, linear = name.removeprefix(blocks).partition(".")
        layers.setdefault(linear, []).append(layer)
    return [rf"re:.*{stem}\.({'|'.join(where)})\.{re.escape(linear)}$" for linear, where in layers.items()]


def _ignored(part: str) -> str:
    """An entry of ``ignore`` for a module name or prefix of it."""
    return f"re:.*{re.escape(part)}.*"


def _group(spec: GridSpec, targets: list[str]) -> dict[str, Any]:
    whole = spec.group_size == -1
    return {
        "targets": targets,
        "format": "pack-quantized",
        "input_activations": None,
        "output_activations": None,
        "weights": {
            "num_bits": spec.bits,
            "type": "int",
            "symmetric": spec.symmetric,
            "strategy": "channel" if whole else "group",
            "group_size": None if whole else spec.group_size,
            "dynamic": False,
            "actorder": None,
            "block_structure": None,
            "observer": None,
            "observer_kwargs": {},
        },
    }


def other_files(contents: Contents) -> dict[str, dict[str, Any]]:
    """None beside config.json."""
    del contents
    return {}
