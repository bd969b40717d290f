"""What a run will do, from headers and config.json alone: no weight is loaded, no model is built.

The plan is what ``--dry-run`` prints and what the run follows, so the two cannot differ.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quantkit.errors import QuantkitError
from quantkit.formats import FORMATS
from quantkit.grid import GridSpec
from quantkit.model import (
    EMBEDDING,
    HEAD,
    UNQUANTIZED_MODULES,
    VISION_PREFIXES,
    ModelMap,
    build_map,
    select_kept,
    sglang_names,
)
from quantkit.recipe import SAMPLES, QuantizeOptions, WriteOptions

if TYPE_CHECKING:
    from quantkit.checkpoint import Checkpoint

_SAFETENSORS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I64": 8, "U8": 1, "I8": 1}
_PROCESS_BYTES = 900_000_000  # interpreter, torch and transformers once imported, as measured


@dataclass(frozen=True)
class Plan:
    """spec: the grid of most linears. quantized: full names of the linears to quantize with (out, in). grids: the grid
    of each. kept: those that --keep leaves alone.

    specs: every tensor of the output, {name: (safetensors dtype, shape)}, in the order they will lie in the file.
    """

    map: ModelMap
    spec: GridSpec
    format: str
    dtype: str
    quantized: dict[str, tuple[int, int]]
    grids: dict[str, GridSpec]
    kept: set[str]
    kept_along: dict[str, str]
    specs: dict[str, tuple[str, list[int]]]
    bytes_before: int
    memory: dict[str, int] = field(default_factory=dict)

    @property
    def bytes_after(self) -> int:
        return sum(_size(*spec) for spec in self.specs.values())

    @property
    def peak_memory(self) -> int:
        """Estimated peak in bytes: the process and the largest phase."""
        return _PROCESS_BYTES + max(self.memory.values())

    def stored_dtype(self, name: str) -> str:
        """torch's name of the dtype that an unquantized tensor is stored in."""
        return next(word for word, spelled in _SAFETENSORS.items() if spelled == self.specs[name][0])

    def skipped_modules(self) -> list[str]:
        """Names for a runtime's skip list: what the model map leaves alone, and what --keep does."""
        return [*UNQUANTIZED_MODULES, *sorted(self.kept), *sorted(sglang_names(self.kept))]


def make_plan(checkpoint: Checkpoint, options: QuantizeOptions) -> Plan:
    """Check the options against the checkpoint and lay out the output.

    Raises QuantkitError for another architecture, an already quantized model, a tensor that is missing or misshaped, a
    grid that the format or a layer cannot hold, or a --keep pattern that matches nothing.
    """
    layout = FORMATS[options.layout]
    model_map = source_map(checkpoint)
    spec = GridSpec(options.bits, options.group_size, options.fixed_zero, layout.LEAST_ZERO)
    layout.check_spec(spec)
    kept, along = select_kept(model_map, options.keep)
    quantized = {name: shape for name, shape in model_map.linears().items() if name not in kept}
    if not quantized:
        raise QuantkitError("--keep leaves no linear to quantize; drop a pattern")
    grids = dict.fromkeys(quantized, spec)
    for name, shape in quantized.items():
        layout.check_linear(name, *shape, grids[name])
    dtype = plain_dtype(checkpoint, options)
    specs = lay_out(
        checkpoint,
        model_map,
        quantized,
        lambda name, out, inputs: layout.tensor_specs(name, out, inputs, grids[name], dtype),
        options,
    )
    memory = _memory(checkpoint, model_map, dtype, options)
    return Plan(
        model_map, spec, options.layout, dtype, quantized, grids, kept, along, specs, checkpoint.total_bytes, memory
    )


def source_map(checkpoint: Checkpoint) -> ModelMap:
    """The model map of a checkpoint that is to be quantized; raises for what is quantized already or misshaped."""
    model_map = build_map(checkpoint.config, checkpoint.name)
    if checkpoint.is_quantized:
        raise QuantkitError(
            f"{checkpoint.name}: already quantized ({checkpoint.quantization_method}); start from the BF16 checkpoint"
        )
    for name, shape in model_map.linears().items():
        found = checkpoint.shape(name + ".weight")
        if tuple(found) != shape:
            raise QuantkitError(
                f"{checkpoint.name}: {name}.weight has shape {list(found)}, config.json implies {list(shape)}"
            )
    return model_map


def lay_out(
    checkpoint: Checkpoint,
    model_map: ModelMap,
    quantized: Mapping[str, tuple[int, int]],
    packed: Callable[[str, int, int], Mapping[str, tuple[str, list[int]]]],
    options: WriteOptions,
) -> dict[str, tuple[str, list[int]]]:
    """Every tensor of the output, in the source's order. ``packed(name, out, in)``: those of a quantized linear."""
    dtype = _SAFETENSORS[plain_dtype(checkpoint, options)]
    specs: dict[str, tuple[str, list[int]]] = {}
    for name in checkpoint.tensor_names:
        linear = name.removesuffix(".weight")
        if linear in quantized:
            specs |= packed(linear, *quantized[linear])
        elif name != HEAD or not model_map.tied:
            stored = checkpoint.dtype(name) if options.dtype == "auto" else dtype
            specs[name] = (stored, list(checkpoint.shape(name)))
    return specs


def plain_dtype(checkpoint: Checkpoint, options: WriteOptions) -> str:
    """torch's name of the dtype of what stays unquantized: the one asked for, or the source's."""
    if options.dtype != "auto":
        return options.dtype
    source = checkpoint.dtype(EMBEDDING)
    return next(name for name, spelled in _SAFETENSORS.items() if spelled == source)


def _memory(checkpoint: Checkpoint, model_map: ModelMap, dtype: str, options: QuantizeOptions) -> dict[str, int]:
    """Estimated bytes of each phase, beside the process itself."""
    item = _BYTES[_SAFETENSORS[dtype]]
    tokens = min((options.samples or SAMPLES) * min(options.max_tokens, 512), options.token_budget or sys.maxsize)
    hidden = tokens * model_map.hidden_size * item
    vision = sum(
        item * _count(checkpoint.shape(name))
        for name in checkpoint.tensor_names
        if name.startswith(VISION_PREFIXES) or name == EMBEDDING
    )
    blocks = []
    for block in model_map.blocks:
        weights = sum(block.out_features[name] * block.group_of(name).in_features for name in block.linears())
        grams = sum(group.in_features**2 for group in block.groups)
        largest = max(block.out_features[name] * block.group_of(name).in_features for name in block.linears())
        # the layer itself, its weights in float32 twice (before and after folding), two modalities' Gram matrices and
        # their sum, and the search's working copies of the largest linear
        blocks.append(weights * (item + 8) + grams * 12 + largest * 24)
    return {"vision tower and embedding": vision + hidden, "one layer and its statistics": max(blocks) + hidden}


def _size(dtype: str, shape: list[int]) -> int:
    return _BYTES[dtype] * _count(shape)


def _count(shape: tuple[int, ...] | list[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
