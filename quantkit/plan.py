"""What a run will do, from headers and config.json alone: no weight is loaded, no model is built.

The plan is what ``--dry-run`` prints and what the run follows, so the two cannot differ.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from quantkit.budget import Allowance, allowance
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
from quantkit.recipe import KEPT_BITS, SAMPLES, QuantizeOptions, WriteOptions

if TYPE_CHECKING:
    from quantkit.checkpoint import Checkpoint

_SAFETENSORS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I64": 8, "U8": 1, "I8": 1}
_PROCESS_BYTES = 900_000_000  # interpreter, torch and transformers once imported, as measured


@dataclass(frozen=True)
class Plan:
    """spec: the grid of most linears. quantized: full names of the linears to quantize with (out, in). grids: the grid
    of each. kept: those that stay as they are, by --keep or by choice of the budget.

    specs: every tensor of the output, {name: (safetensors dtype, shape)}, in the order they will lie in the file.
    allowance: where a budget chooses the bits, what it leaves for the linears.
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
    allowance: Allowance | None = None

    @property
    def bytes_after(self) -> int:
        return _total(self.specs)

    @property
    def peak_memory(self) -> int:
        """Estimated peak in bytes: the process and the largest phase."""
        return _PROCESS_BYTES + max(self.memory.values())

    def spec_of(self, bits: int) -> GridSpec:
        """The grid of a linear of ``bits``; all else is as in the grid of most linears."""
        return replace(self.spec, bits=bits)

    def stored_dtype(self, name: str) -> str:
        """torch's name of the dtype that an unquantized tensor is stored in."""
        return next(word for word, spelled in _SAFETENSORS.items() if spelled == self.specs[name][0])

    def skipped_modules(self) -> list[str]:
        """Names for a runtime's skip list: what the model map leaves alone, and what --keep does."""
        return [*UNQUANTIZED_MODULES, *sorted(self.kept), *sorted(sglang_names(self.kept))]


def make_plan(checkpoint: Checkpoint, options: QuantizeOptions, chosen: Mapping[str, int] | None = None) -> Plan:
    """Check the options against the checkpoint and lay out the output.

    chosen: the bits of each linear, where a budget has decided (``KEPT_BITS``: it stays as it is); before that, all of
    them stand at the fewest bits. Raises QuantkitError for another architecture, an already quantized model, a tensor
    that is missing or misshaped, a grid that the format or a layer cannot hold, a budget that cannot be met, or a
    --keep pattern that matches nothing.
    """
    layout = FORMATS[options.layout]
    model_map = source_map(checkpoint)
    specs_by_width = _grids_by_width(options)
    kept, along = select_kept(model_map, options.keep)
    linears = {name: shape for name, shape in model_map.linears().items() if name not in kept}
    if not linears:
        raise QuantkitError("--keep leaves no linear to quantize; drop a pattern")
    for name, shape in linears.items():
        for spec in specs_by_width.values():
            layout.check_linear(name, *shape, spec)
    fewest = min(specs_by_width)
    widths = {name: (chosen or {}).get(name, fewest) for name in linears}
    kept |= {name for name, bits in widths.items() if bits == KEPT_BITS}
    quantized = {name: shape for name, shape in linears.items() if name not in kept}
    grids = {name: specs_by_width[widths[name]] for name in quantized}
    dtype = plain_dtype(checkpoint, options)

    def packed(name: str, bits: int) -> dict[str, tuple[str, list[int]]]:
        found: dict[str, tuple[str, list[int]]] = layout.tensor_specs(name, *linears[name], specs_by_width[bits], dtype)
        return found

    specs = lay_out(checkpoint, model_map, quantized, lambda name, _out, _in: packed(name, widths[name]), options)
    room = None
    if options.budget is not None:
        sizes = {
            name: {
                bits: _linear_bytes(checkpoint, name, dtype, options)
                if bits == KEPT_BITS
                else _total(packed(name, bits))
                for bits in options.widths
            }
            for name in linears
        }
        rest = _total(specs) - sum(sizes[name][widths[name]] for name in linears)
        room = allowance(options.budget, sizes, sum(out * inputs for out, inputs in linears.values()), rest)
    return Plan(
        map=model_map,
        spec=_commonest(grids) or specs_by_width[fewest],
        format=options.layout,
        dtype=dtype,
        quantized=quantized,
        grids=grids,
        kept=kept,
        kept_along=along,
        specs=specs,
        bytes_before=checkpoint.total_bytes,
        memory=_memory(checkpoint, model_map, dtype, options),
        allowance=room,
    )


def _grids_by_width(options: QuantizeOptions) -> dict[int, GridSpec]:
    """The grid of each width that a linear may get."""
    layout, found = FORMATS[options.layout], {}
    try:
        for bits in options.widths:
            if bits != KEPT_BITS:
                found[bits] = GridSpec(bits, options.group_size, options.fixed_zero, layout.LEAST_ZERO)
                layout.check_spec(found[bits])
    except QuantkitError as error:
        asked = "--bits" if options.budget is None else "--budget-bits"
        raise QuantkitError(str(error).replace("--bits", asked, 1)) from error
    return found


def _commonest(grids: Mapping[str, GridSpec]) -> GridSpec | None:
    """The grid of most linears; of the fewest bits where two are as common."""
    counts = Counter(grids.values())
    return min(counts, key=lambda spec: (-counts[spec], spec.bits), default=None)


def _linear_bytes(checkpoint: Checkpoint, name: str, dtype: str, options: WriteOptions) -> int:
    """Bytes of a linear that stays as it is."""
    stored = checkpoint.dtype(name + ".weight") if options.dtype == "auto" else _SAFETENSORS[dtype]
    return _size(stored, list(checkpoint.shape(name + ".weight")))


def _total(specs: Mapping[str, tuple[str, list[int]]]) -> int:
    return sum(_size(*spec) for spec in specs.values())


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
    phases = {"vision tower and embedding": vision + hidden, "one layer and its statistics": max(blocks) + hidden}
    head = model_map.hidden_size * model_map.vocab_size * item
    logits = 700_000_000 if model_map.vocab_size > 32768 else 50_000_000  # pieces of them, in float32
    if options.budget is not None:
        # every block's input and one gradient of a few conversations (quantkit/sensitivity.py)
        states = min(tokens, 32 * min(options.max_tokens, 512)) * model_map.hidden_size * item
        phases["sensitivity"] = states * (len(model_map.blocks) + 2) + head + logits
    if options.tune:
        codes = sum(out * inputs for out, inputs in model_map.linears().values())
        # two copies of the codes, a running mean of the gradient of each
        phases["tuning"] = 6 * codes + 3 * hidden + head + logits + max(blocks)
    return phases


def _size(dtype: str, shape: list[int]) -> int:
    return _BYTES[dtype] * _count(shape)


def _count(shape: tuple[int, ...] | list[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
