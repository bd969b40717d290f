"""Packed linears as integers and as weights, in whichever of the known layouts they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from quantkit.checkpoint import Checkpoint
from quantkit.errors import QuantkitError
from quantkit.formats import FORMATS
from quantkit.grid import GridSpec, QuantizedWeight
from quantkit.integrity.subject import Linear, quantization_of


def readable(linear: Linear) -> bool:
    """Whether quantkit knows this layout's integers; of compressed-tensors' kinds, the words of packed ones alone."""
    packed = linear.layout != "compressed-tensors" or f"{linear.name}.weight_packed" in linear.tensors
    return linear.layout in FORMATS and packed


def in_order(checkpoint: Checkpoint, linear: Linear) -> bool:
    """Whether a linear's groups are of neighbouring input channels, and not of any (GPTQ's g_idx)."""
    name = f"{linear.name}.g_idx"
    if linear.layout != "gptq" or name not in linear.tensors:
        return True
    return bool((checkpoint.load(name).diff() >= 0).all())


def read_linear(checkpoint: Checkpoint, linear: Linear) -> QuantizedWeight:
    """The integers and scales of a packed linear. Raises QuantkitError, the linear named, if its tensors do not fit."""
    layout, config = FORMATS[linear.layout], _config(checkpoint, linear)
    weight: QuantizedWeight = layout.read(checkpoint.load, linear.name, _spec(linear), config)
    if weight.zeros.shape != weight.scales.shape:
        raise QuantkitError(f"{linear.name}: its zero points and scales do not belong together")
    return weight


def dequantize_linear(checkpoint: Checkpoint, linear: Linear) -> Tensor:
    """The weight that a packed linear stands for, float32 [out, in]. Raises as `read_linear` does."""

    def load(name: str) -> Tensor:
        return checkpoint.load(name, check_finite=True)

    try:
        config = _config(checkpoint, linear)
        return FORMATS[linear.layout].dequantize(load, linear.name, _spec(linear), config)
    except QuantkitError as error:
        words = str(error)
        raise QuantkitError(words if linear.name in words else f"{linear.name}: {words}") from error


def _config(checkpoint: Checkpoint, linear: Linear) -> Mapping[str, Any]:
    """The quantization_config; of compressed-tensors, what the tensors say of zero points (`config` compares both)."""
    if linear.layout == "compressed-tensors":
        symmetric = f"{linear.name}.weight_zero_point" not in linear.tensors
        return {"config_groups": {"group": {"weights": {"symmetric": symmetric}}}}
    return quantization_of(checkpoint.config)


def _spec(linear: Linear) -> GridSpec:
    if linear.bits is None or linear.group_size is None:
        raise QuantkitError(f"{linear.name}: its packed tensors do not belong together")
    return GridSpec(linear.bits, linear.group_size)
