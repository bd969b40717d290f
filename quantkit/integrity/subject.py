"""What a checkpoint stores, read from headers: which linears are packed, in which layout, of what shape.

A linear is recognised by the suffixes of its tensors; bits and group size follow from their shapes alone, so that the
config can be held against them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from quantkit.checkpoint import Checkpoint
from quantkit.errors import QuantkitError
from quantkit.model import HEAD, LANGUAGE_PREFIX, VISION_PREFIXES, ModelMap, build_map

Layout = Literal["plain", "awq", "gptq", "compressed-tensors", "bitsandbytes", "unknown"]

# what marks a packed linear, and the other tensors that belong to it
_MARKS: dict[str, tuple[str, ...]] = {
    "qweight": ("qzeros", "scales", "g_idx"),
    "weight_packed": ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
    "weight_scale": ("weight", "weight_zero_point", "weight_shape", "weight_g_idx", "input_scale"),
}
_BITSANDBYTES = ".weight.quant_state.bitsandbytes__"
_BITSANDBYTES_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_INT8_SCALES, _INT8_FORMAT = "SCB", "weight_format"


@dataclass(frozen=True)
class Linear:
    """One linear as stored. bits, group_size: as the shapes imply, None where they do not tell; -1: the whole row."""

    name: str
    layout: Layout
    tensors: tuple[str, ...]
    out_features: int
    in_features: int
    bits: int | None = None
    group_size: int | None = None

    @property
    def packed(self) -> bool:
        return self.layout != "plain"

    @property
    def scales(self) -> str | None:
        """Name of the tensor with the scales."""
        wanted = (f"{self.name}.scales", f"{self.name}.weight_scale")
        return next((name for name in self.tensors if name in wanted), None)


@dataclass
class Subject:
    """The checkpoint under test, and the source it was made from (None: only what needs no source is checked)."""

    candidate: Checkpoint
    reference: Checkpoint | None

    @cached_property
    def map(self) -> ModelMap | None:
        """The model map, from the reference's config where there is one; None for another architecture."""
        source = self.reference or self.candidate
        try:
            return build_map(source.config, source.name)
        except QuantkitError:
            return None

    @cached_property
    def linears(self) -> dict[str, Linear]:
        """Every linear of the candidate by its module name, packed or plain."""
        return find_linears(self.candidate)

    @cached_property
    def packed(self) -> dict[str, Linear]:
        return {name: linear for name, linear in self.linears.items() if linear.packed}

    @property
    def quantization(self) -> Mapping[str, Any]:
        """The candidate's quantization_config, empty if it has none."""
        return quantization_of(self.candidate.config)


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The quantization_config of a parsed config.json, at either of the two places where readers look for it."""
    text = config.get("text_config")
    for place in (config, text if isinstance(text, Mapping) else {}):
        for key in ("quantization_config", "compression_config"):
            if isinstance(place.get(key), Mapping):
                return dict(place[key])
    return {}


def find_linears(checkpoint: Checkpoint) -> dict[str, Linear]:
    """Every linear of a checkpoint: packed ones by their suffixes, plain ones by a weight of two dimensions."""
    names = set(checkpoint.tensor_names)
    found: dict[str, Linear] = {}
    for tensor in checkpoint.tensor_names:
        module, _, suffix = tensor.rpartition(".")
        if _BITSANDBYTES in tensor:
            found[tensor.split(_BITSANDBYTES)[0]] = _bitsandbytes(checkpoint, tensor.split(_BITSANDBYTES)[0], names)
        elif suffix == _INT8_SCALES and f"{module}.weight" in names:
            found[module] = _int8(checkpoint, module, names)
        elif suffix in _MARKS and module not in found:
            parts = tuple(f"{module}.{part}" for part in (suffix, *_MARKS[suffix]) if f"{module}.{part}" in names)
            found[module] = _packed(checkpoint, module, suffix, parts)
    for tensor in checkpoint.tensor_names:
        module = tensor.removesuffix(".weight")
        if module != tensor and module not in found and _is_linear(module, checkpoint.shape(tensor)):
            out, inputs = checkpoint.shape(tensor)
            found[module] = Linear(module, "plain", (tensor,), out, inputs)
    return found


def _is_linear(module: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and "embed" not in module.rpartition(".")[2] and "embeddings" not in module


def _packed(checkpoint: Checkpoint, module: str, mark: str, parts: tuple[str, ...]) -> Linear:
    shapes = {part.rpartition(".")[2]: checkpoint.shape(part) for part in parts}
    if mark == "qweight":
        return _qweight(module, parts, shapes)
    packed, scale = shapes.get(mark, ()), shapes.get("weight_scale", ())
    if mark == "weight_packed" and len(packed) == 2 and len(scale) == 2:
        # the true shape is a tensor of its own; words of 32 bits hold a row's neighbouring inputs
        out, words = packed
        inputs = _true_inputs(checkpoint, module, parts) or words * 8
        packed_bits = 32 * words // inputs if inputs and 32 * words % inputs == 0 else None
        return Linear(module, "compressed-tensors", parts, out, inputs, packed_bits, _group(inputs, scale[1]))
    if "weight" in shapes and len(shapes["weight"]) == 2:
        out, inputs = shapes["weight"]
        bits = 8 if checkpoint.info(f"{module}.weight").dtype in ("I8", "F8_E4M3", "F8_E5M2") else None
        return Linear(module, "compressed-tensors", parts, out, inputs, bits, None)
    return Linear(module, "unknown", parts, 0, 0)


def _qweight(module: str, parts: tuple[str, ...], shapes: dict[str, tuple[int, ...]]) -> Linear:
    """AutoAWQ packs neighbouring outputs into a word, GPTQ neighbouring inputs: the scales' columns tell which."""
    qweight, scales = shapes["qweight"], shapes.get("scales", ())
    if len(qweight) != 2 or len(scales) != 2 or not all((*qweight, *scales)):
        return Linear(module, "unknown", parts, 0, 0)
    groups, out = scales
    if qweight[1] == out:
        qzeros = shapes.get("qzeros", ())
        bits = 32 * qzeros[1] // out if len(qzeros) == 2 and qzeros[1] else 4
        width = qweight[0] * 32 // bits if bits else 0
        return Linear(module, "gptq", parts, out, width, bits, _group(width, groups))
    if out % qweight[1] == 0:
        pack = out // qweight[1]
        own = 32 // pack if pack and 32 % pack == 0 else None
        return Linear(module, "awq", parts, out, qweight[0], own, _group(qweight[0], groups))
    return Linear(module, "unknown", parts, 0, 0)


def _group(inputs: int, groups: int) -> int | None:
    if groups == 1:
        return -1
    return inputs // groups if groups and inputs % groups == 0 else None


def _true_inputs(checkpoint: Checkpoint, module: str, parts: tuple[str, ...]) -> int | None:
    name = f"{module}.weight_shape"
    if name not in parts or math.prod(checkpoint.shape(name)) != 2:
        return None
    info = checkpoint.info(name)
    if info.dtype != "I64":
        return None
    with info.file.open("rb") as file:
        file.seek(info.start)
        data = file.read(info.nbytes)
    return int(struct.unpack("<2q", data)[1]) if len(data) == info.nbytes else None


def _bitsandbytes(checkpoint: Checkpoint, module: str, names: set[str]) -> Linear:
    from quantkit.formats import bnb  # torch: nothing else here waits for it

    parts = [f"{module}.weight", *(f"{module}.weight.{part}" for part in _BITSANDBYTES_PARTS)]
    states = sorted(name for name in names if name.startswith(module + _BITSANDBYTES))
    found = tuple(part for part in [*parts, *states] if part in names)
    try:
        (out, inputs), block = bnb.shape_and_block(module, checkpoint.load(states[0]))
    except QuantkitError:
        return Linear(module, "bitsandbytes", found, 0, 0, 4)  # nothing can unpack it; whoever tries will say so
    return Linear(module, "bitsandbytes", found, out, inputs, 4, block)


def _int8(checkpoint: Checkpoint, module: str, names: set[str]) -> Linear:
    """LLM.int8() of bitsandbytes: codes as they lie in the weight, a scale a row."""
    parts = (f"{module}.weight", f"{module}.{_INT8_SCALES}", f"{module}.{_INT8_FORMAT}")
    shape = checkpoint.shape(f"{module}.weight")
    out, inputs = shape if len(shape) == 2 else (0, 0)
    return Linear(module, "bitsandbytes", tuple(part for part in parts if part in names), out, inputs, 8, -1)


def is_vision(name: str) -> bool:
    return name.startswith(VISION_PREFIXES)


def is_language(name: str) -> bool:
    return name.startswith(LANGUAGE_PREFIX) or name == HEAD
