"""bitsandbytes' layouts, NF4 and FP4 in blocks, INT8 in rows: ``quant_method: bitsandbytes`` of Transformers.

Nothing is rounded here: `bitsandbytes.functional.quantize_4bit` and `bitsandbytes.nn.Int8Params` choose the codes, and
`dequantize_4bit` and `int8_vectorwise_dequant` undo them. For a linear ``NAME`` with weight [out, in] and n = out * in,
in blocks of b weights (QLoRA, arXiv:2305.14314; the blocks run over the flattened weight):

    NAME.weight                   uint8   [n / 2, 1]     two codes a byte, the first in the high half
    NAME.weight.absmax            uint8   [n / b]        largest magnitudes of blocks; float32 unless double quantized
    NAME.weight.quant_map         float32 [16]           what the codes stand for
    NAME.weight.nested_absmax     float32 [n / b / 256]  double quantization: scales of the scales, rounded up
    NAME.weight.nested_quant_map  float32 [256]
    NAME.weight.quant_state.bitsandbytes__nf4 (or fp4)   uint8, JSON: shape, dtype, block size, mean of absmax

and in 8 bits (LLM.int8(), arXiv:2208.07339):

    NAME.weight                   int8    [out, in]      w = code * SCB / 127
    NAME.SCB                      float32 [out]          largest magnitude of a row
    NAME.weight_format            uint8   []             0: row by row

The JSON holds a number as it is printed, so its length is known only after rounding. Unlike the layouts of ``FORMATS``
these hold no integer grid that a method could fill: bitsandbytes rounds as it packs.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantkit.errors import QuantkitError

NAME = "bitsandbytes"
STATE = "quant_state.bitsandbytes__"
FOUR_BITS = ("nf4", "fp4")
INT8 = "int8"
MULTIPLE = 32  # of outputs: what bitsandbytes' kernel for CPUs with AVX512-BF16 takes
_NESTED_BLOCK = 256
_STATE_BYTES = {True: 170, False: 83}  # of the JSON, with double quantization or without, give or take a few


@dataclass(frozen=True)
class BnbSpec:
    """kind: nf4, fp4 or int8. double_quant, block_size, compute_dtype: of the 4-bit kinds."""

    kind: str = "nf4"
    double_quant: bool = True
    block_size: int = 64
    compute_dtype: str = "bfloat16"


def check_package() -> None:
    """Raise, one line, if bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise QuantkitError("the package bitsandbytes is missing: run pip install 'quantkit[bnb]'")


def check_linear(name: str, out_features: int, in_features: int, spec: BnbSpec) -> None:
    """Raise unless every kernel of bitsandbytes can run the linear ``name``."""
    if spec.kind == INT8:
        return
    if out_features % MULTIPLE:
        raise QuantkitError(f"{name}: {out_features} outputs are no multiple of {MULTIPLE}; keep it with --keep {name}")
    if in_features % spec.block_size:
        raise QuantkitError(
            f"--block-size {spec.block_size} does not divide the {in_features} input channels of {name}; choose one "
            f"that does or keep it with --keep {name}"
        )


def tensor_specs(name: str, out_features: int, in_features: int, spec: BnbSpec) -> dict[str, tuple[str, list[int]]]:
    """Names, safetensors dtypes and shapes that ``pack`` yields for the linear ``name``.

    The length of a 4-bit kind's quant state is an estimate.
    """
    if spec.kind == INT8:
        return {
            f"{name}.weight": ("I8", [out_features, in_features]),
            f"{name}.SCB": ("F32", [out_features]),
            f"{name}.weight_format": ("U8", []),
        }
    count = out_features * in_features
    blocks = math.ceil(count / spec.block_size)
    specs: dict[str, tuple[str, list[int]]] = {
        f"{name}.weight": ("U8", [count // 2, 1]),
        f"{name}.weight.absmax": ("U8" if spec.double_quant else "F32", [blocks]),
        f"{name}.weight.quant_map": ("F32", [16]),
    }
    if spec.double_quant:
        specs[f"{name}.weight.nested_absmax"] = ("F32", [math.ceil(blocks / _NESTED_BLOCK)])
        specs[f"{name}.weight.nested_quant_map"] = ("F32", [256])
    specs[f"{name}.weight.{STATE}{spec.kind}"] = ("U8", [_STATE_BYTES[spec.double_quant]])
    return specs


def pack(name: str, weight: Tensor, spec: BnbSpec, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of the linear ``name``, on the CPU, rounded by bitsandbytes on ``device``. weight: [out, in].

    The weight's dtype is what the 4-bit kinds give back. Raises if bitsandbytes refuses, or if values overflow float16,
    in which it rounds to 8 bits.
    """
    import bitsandbytes

    if spec.kind == INT8:
        packed: Any = bitsandbytes.nn.Int8Params(weight.cpu(), requires_grad=False)
        packed = packed.to(device)
        scale = packed.SCB.cpu()
        if not torch.isfinite(scale).all():
            raise QuantkitError(f"{name}: its values overflow float16, which int8 needs; keep it with --keep {name}")
        form = torch.tensor(0, dtype=torch.uint8)
        return {f"{name}.weight": packed.data.cpu(), f"{name}.SCB": scale, f"{name}.weight_format": form}
    try:
        codes, state = bitsandbytes.functional.quantize_4bit(
            weight.to(device).contiguous(),
            blocksize=spec.block_size,
            compress_statistics=spec.double_quant,
            quant_type=spec.kind,
        )
    except (ValueError, AssertionError, RuntimeError) as error:
        raise QuantkitError(f"{name}: bitsandbytes {bitsandbytes.__version__} cannot pack it ({error})") from error
    rest = {f"{name}.weight.{part}": tensor.cpu() for part, tensor in state.as_dict(packed=True).items()}
    return {f"{name}.weight": codes.cpu(), **rest}


def dequantize(load: Callable[[str], Tensor], name: str, tensors: Sequence[str]) -> Tensor:
    """The weight of the linear ``name``, float32 [out, in], through bitsandbytes' own functions.

    tensors: names of all that is stored of it. Raises QuantkitError if they do not belong together.
    """
    from bitsandbytes.functional import QuantState, dequantize_4bit, int8_vectorwise_dequant

    codes = load(f"{name}.weight")
    if f"{name}.SCB" in tensors:
        scale = load(f"{name}.SCB")
        if codes.ndim != 2 or scale.shape != codes.shape[:1]:
            raise QuantkitError(
                f"{name}: weight {list(codes.shape)} and SCB {list(scale.shape)} do not belong together"
            )
        rows: Tensor = int8_vectorwise_dequant(codes, scale)
        return rows.float()
    prefix = f"{name}.weight."
    parts = {tensor.removeprefix(prefix): load(tensor) for tensor in tensors if tensor.startswith(prefix)}
    shape, block = shape_and_block(name, next((part for key, part in parts.items() if key.startswith(STATE)), None))
    _check_sizes(name, codes, parts, math.prod(shape), block)
    try:
        state = QuantState.from_dict(parts, device=torch.device("cpu"))
        weight: Tensor = dequantize_4bit(codes, state)
    except (ValueError, KeyError, AttributeError, AssertionError, RuntimeError) as error:
        raise QuantkitError(f"{name}: bitsandbytes cannot unpack it ({error})") from error
    return weight.float()


def shape_and_block(name: str, state: Tensor | None) -> tuple[tuple[int, int], int]:
    """(out, in) and the block size that a quant state of a 4-bit linear tells; needs no bitsandbytes."""
    try:
        found = json.loads(bytes(state.tolist())) if state is not None else {}
        out, inputs = (int(length) for length in found["shape"])
        return (out, inputs), int(found["blocksize"])
    except (ValueError, KeyError, TypeError) as error:
        raise QuantkitError(f"{name}: its quant state holds no shape and block size") from error


def _check_sizes(name: str, codes: Tensor, parts: Mapping[str, Tensor], count: int, block: int) -> None:
    """Raise unless the tensors are as long as the state says: the kernels do not look."""
    blocks = math.ceil(count / block) if block > 0 else 0
    absmax, nested = parts.get("absmax"), parts.get("nested_absmax")
    whole = absmax is not None and absmax.numel() == blocks and codes.nbytes == math.ceil(count / 2)
    if nested is not None:
        whole = whole and nested.numel() == math.ceil(blocks / _NESTED_BLOCK)
    if not whole or parts.get("quant_map", codes).numel() != 16:
        found = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in {"weight": codes, **parts}.items())
        raise QuantkitError(f"{name}: {found} do not belong together")


def skip_names(names: Sequence[str]) -> list[str]:
    """A skip list as this method's readers match it: whole components of a name, hence no dot at the end.

    ``in_proj_ba`` is what SGLang and vLLM call the module that holds ``in_proj_b`` and ``in_proj_a``.
    """
    return list(dict.fromkeys([*(name.rstrip(".") for name in names), "in_proj_ba"]))


def quantization_config(spec: BnbSpec, skipped: Sequence[str]) -> dict[str, Any]:
    """The ``quantization_config`` of config.json as Transformers' `BitsAndBytesConfig` writes it."""
    from transformers import BitsAndBytesConfig

    if spec.kind == INT8:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip_names(skipped))
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            llm_int8_skip_modules=skip_names(skipped),
            bnb_4bit_quant_type=spec.kind,
            bnb_4bit_use_double_quant=spec.double_quant,
            bnb_4bit_compute_dtype=spec.compute_dtype,
        )
    found = dict(sorted(config.to_dict().items()))
    return found | {"quant_method": NAME}
