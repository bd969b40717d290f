"""Packed linears as integers and as weights, in whichever of the known layouts they are stored."""

from __future__ import annotations

from torch import Tensor

from quantkit.checkpoint import Checkpoint
from quantkit.errors import QuantkitError
from quantkit.formats import FORMATS
from quantkit.grid import GridSpec, QuantizedWeight
from quantkit.integrity.subject import Linear, quantization_of


def readable(linear: Linear) -> bool:
    """Whether quantkit knows this layout's integers."""
    return linear.layout in FORMATS


def read_linear(checkpoint: Checkpoint, linear: Linear) -> QuantizedWeight:
    """The integers and scales of a packed linear. Raises QuantkitError, the linear named, if its tensors do not fit."""
    return FORMATS[linear.layout].read(checkpoint.load, linear.name, _spec(linear), quantization_of(checkpoint.config))  # type: ignore[no-any-return]


def dequantize_linear(checkpoint: Checkpoint, linear: Linear) -> Tensor:
    """The weight that a packed linear stands for, float32 [out, in]. Raises as `read_linear` does."""

    def load(name: str) -> Tensor:
        return checkpoint.load(name, check_finite=True)

    try:
        config = quantization_of(checkpoint.config)
        return FORMATS[linear.layout].dequantize(load, linear.name, _spec(linear), config)  # type: ignore[no-any-return]
    except QuantkitError as error:
        words = str(error)
        raise QuantkitError(words if linear.name in words else f"{linear.name}: {words}") from error


def _spec(linear: Linear) -> GridSpec:
    if linear.bits is None or linear.group_size is None:
        raise QuantkitError(f"{linear.name}: its packed tensors do not belong together")
    return GridSpec(linear.bits, linear.group_size)
