"""What `quantkit gguf` will write, from headers, config.json and the tokenizer alone: no weight is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from quantkit.errors import QuantkitError
from quantkit.formats.gguf.container import FilePlan, TensorInfo, plan_files
from quantkit.formats.gguf.types import FILE_TYPES, TYPES
from quantkit.gguf.metadata import model_name, text_metadata, vision_metadata
from quantkit.gguf.mixture import PRESETS, Mixture, parse_override, tensor_types, type_name
from quantkit.gguf.names import Conversion, Heads, text_tensors, vision_tensors, vision_type
from quantkit.gguf.tokenizer import tokenizer_metadata
from quantkit.model import ModelMap
from quantkit.plan import plain_dtype, source_map

if TYPE_CHECKING:
    from quantkit.checkpoint import Checkpoint
    from quantkit.recipe import GgufOptions, StatisticsOptions

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Variant:
    """One text model or mmproj to write. kind: a file type; types: by tensor of the file; files: one, or its splits."""

    kind: str
    tensors: tuple[Conversion, ...]
    types: Mapping[str, str]
    files: tuple[FilePlan, ...]

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def quantizes(self) -> bool:
        """Whether it holds integers."""
        return bool(set(self.types.values()) - set(FLOATS))

    @property
    def bits_per_weight(self) -> float:
        """Of all tensors, the file's metadata left out."""
        values = sum(prod(row.shape) for row in self.tensors)
        return 8 * sum(info.nbytes for file in self.files for info in file.tensors) / values


@dataclass(frozen=True)
class GgufPlan:
    """texts, visions: what to write; quantizes: whether any text model holds integers."""

    map: ModelMap
    heads: Heads
    texts: tuple[Variant, ...]
    visions: tuple[Variant, ...]
    bytes_before: int

    @property
    def variants(self) -> tuple[Variant, ...]:
        return self.texts + self.visions

    @property
    def nbytes(self) -> int:
        return sum(variant.nbytes for variant in self.variants)

    @property
    def quantizes(self) -> bool:
        return any(variant.quantizes for variant in self.texts)


def plan_gguf(checkpoint: Checkpoint, options: GgufOptions, chosen: Mapping[str, str] | None = None) -> GgufPlan:
    """Check the options against the checkpoint and lay out every file. chosen: types by tensor, where a budget decided.

    Raises QuantkitError for another architecture, an already quantized model, a tokenizer that llama.cpp does not know,
    a type that does not exist or that a tensor cannot take, and a pattern that matches nothing.
    """
    model_map = source_map(checkpoint)
    name = options.name or model_name(checkpoint)
    texts = tuple(_text(checkpoint, model_map, options, name, kind, chosen or {}) for kind in file_types(options))
    modes = ("16x", "4x") if options.downsample_mode == "both" else (options.downsample_mode,)
    visions = () if options.mmproj_type == "none" else tuple(_vision(checkpoint, options, name, mode) for mode in modes)
    heads = Heads.of(checkpoint.config, checkpoint.name)
    return GgufPlan(model_map, heads, texts, visions, checkpoint.total_bytes)


def file_types(options: GgufOptions) -> tuple[str, ...]:
    """Every type that was asked for, once, in upper case."""
    kinds = tuple(dict.fromkeys(kind.upper() for kind in options.type))
    for kind in kinds:
        if kind not in FILE_TYPES:
            raise QuantkitError(f"--type {kind}: quantkit writes no such file; choose one of {', '.join(FILE_TYPES)}")
    if not kinds:
        raise QuantkitError("--type: name at least one, such as Q4_K_M")
    if options.budget is not None and (len(kinds) > 1 or kinds[0] in FLOATS):
        raise QuantkitError("--budget: fills one file, whose --type says what all else in it is; name one, not a float")
    return kinds


def pass_dtype(checkpoint: Checkpoint, options: StatisticsOptions) -> str:
    """What the model is run in for calibration: its own dtype, or bfloat16's range in place of float16's."""
    dtype = plain_dtype(checkpoint, options)
    return "bfloat16" if dtype == "float16" else dtype


def fixed_names(variant: Variant, options: GgufOptions) -> set[str]:
    """The tensors whose type was asked for, or is a preset's."""
    patterns = [parse_override(text)[0] for text in options.tensor_type]
    raised = PRESETS[options.preset] if options.preset else ()
    return {
        row.name
        for row in variant.tensors
        if row.name.endswith(raised) or any(re.search(pattern, row.name, re.IGNORECASE) for pattern in patterns)
    }


def _text(
    checkpoint: Checkpoint,
    model_map: ModelMap,
    options: GgufOptions,
    name: str,
    kind: str,
    chosen: Mapping[str, str],
) -> Variant:
    tensors = tuple(text_tensors(checkpoint))
    mixture = _mixture(checkpoint, model_map, options, kind)
    types = {**tensor_types([(row.name, row.shape) for row in tensors], mixture), **chosen}
    parameters = sum(prod(row.shape) for row in tensors)
    metadata = text_metadata(checkpoint, kind, parameters) | tokenizer_metadata(checkpoint)
    budget = f"-{options.budget}" if options.budget else ""
    return _variant(f"{name}-{kind}{budget}.gguf", kind, tensors, types, metadata, options.split_bytes)


def _mixture(checkpoint: Checkpoint, model_map: ModelMap, options: GgufOptions, kind: str) -> Mixture:
    text = checkpoint.config["text_config"]
    return Mixture(
        file_type=kind,
        layers=len(model_map.blocks),
        gqa=text["num_attention_heads"] // text["num_key_value_heads"],
        has_imatrix=options.imatrix is not None or options.solver != "rtn",
        mixture=options.mixture,
        preset=options.preset,
        overrides=tuple(parse_override(text) for text in options.tensor_type),
        token_embedding=_type(options.token_embedding_type, "--token-embedding-type"),
        output=_type(options.output_type, "--output-type"),
    )


def _type(text: str | None, option: str) -> str | None:
    return None if text is None else type_name(text, option)


def _vision(checkpoint: Checkpoint, options: GgufOptions, name: str, mode: str) -> Variant:
    kind = options.mmproj_type.upper()
    tensors = tuple(vision_tensors(checkpoint, mode))
    types = {row.name: vision_type(row.name, row.shape, kind) for row in tensors}
    parameters = sum(prod(row.shape) for row in tensors)
    metadata = vision_metadata(checkpoint, kind, parameters, mode)
    # 16x is what the model is published in; a 4x file says so. llama.cpp reads no split mmproj
    return _variant(f"mmproj-{name}{'' if mode == '16x' else '-4x'}-{kind}.gguf", kind, tensors, types, metadata, None)


def _variant(
    file: str,
    kind: str,
    tensors: tuple[Conversion, ...],
    types: Mapping[str, str],
    metadata: Mapping[str, object],
    limit: int | None,
) -> Variant:
    infos = [TensorInfo(row.name, row.shape, TYPES[types[row.name]]) for row in tensors]
    return Variant(kind, tensors, types, tuple(plan_files(file, metadata, infos, limit)))
