"""Every tensor of a checkpoint as a row: its name there, its name in a GGUF file, what happens to its values between.

llama.cpp knows the language model as arch `qwen35` and the vision tower with its mergers as projector `minicpmv4_6`;
the names are theirs (`gguf-py/gguf/constants.py`, `src/models/qwen35.cpp`, `tools/mtmd/clip-impl.h` of llama.cpp).
Shapes are written as in torch, outermost axis first; a GGUF file lists them the other way round.

What is changed on the way:

* a norm `Qwen3_5RMSNorm` multiplies by `1 + weight`, llama.cpp by `weight`;
* `A_log` becomes the decay itself, `-exp(A_log)`;
* linear attention's value heads lie with their key head in the checkpoint; llama.cpp repeats keys by tiling, so there
  head `v` belongs to key head `v mod keys`. Rows, channels and `ssm_out`'s input columns are put in that order; what
  was measured at those columns must follow (`input_order`). Where there are as many key heads, nothing moves;
* `conv1d` loses its axis of length one.

The query's rows keep their order (each head's query, then its gate): llama.cpp splits them as Transformers does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantkit.checkpoint import Checkpoint
from quantkit.errors import QuantkitError
from quantkit.formats.gguf.types import TYPES
from quantkit.model import HEAD, LANGUAGE_PREFIX, build_map

MTP_PREFIXES = ("mtp.", "model.mtp.")
MMPROJ_TYPES = ("F32", "F16", "BF16", "Q8_0")
MODES = ("16x", "4x")
_AGAIN = "download or copy the checkpoint again"


# ---- what happens to a tensor ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heads:
    """Linear attention's heads: how many, and their widths."""

    keys: int
    values: int
    key_dim: int
    value_dim: int

    @classmethod
    def of(cls, config: Mapping[str, Any], name: str = "config.json") -> Heads:
        """From a parsed config.json, whose fields `build_map` checks."""
        build_map(config, name)
        fields = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
        heads = cls(*(config["text_config"][f"linear_{field}"] for field in fields))
        if heads.values % heads.keys:
            raise QuantkitError(
                f"{name}: text_config.linear_num_value_heads ({heads.values}) is no multiple of "
                f"linear_num_key_heads ({heads.keys})"
            )
        return heads

    def tiled(self, tensor: Tensor, dim: int = 0, width: int | None = None) -> Tensor:
        """Value heads from [key head, its values] to [value of each key head, key head] along `dim`."""
        width = self.value_dim if width is None else width
        split = tensor.unflatten(dim, (self.keys, self.values // self.keys, width))
        return split.transpose(dim, dim + 1).flatten(dim, dim + 2)

    def tiled_tail(self, tensor: Tensor) -> Tensor:
        """The value rows of [q, k, v] rows; queries and keys stay."""
        start = 2 * self.keys * self.key_dim
        return torch.cat([tensor[:start], self.tiled(tensor[start:])])


Transform = Callable[[Tensor, Heads], Tensor]


def keep(tensor: Tensor, heads: Heads) -> Tensor:
    return tensor


def plus_one(tensor: Tensor, heads: Heads) -> Tensor:
    return tensor + 1


def decay(tensor: Tensor, heads: Heads) -> Tensor:
    return heads.tiled(-tensor.exp(), width=1)


def per_head(tensor: Tensor, heads: Heads) -> Tensor:
    return heads.tiled(tensor, width=1)


def value_rows(tensor: Tensor, heads: Heads) -> Tensor:
    return heads.tiled(tensor)


def value_tail(tensor: Tensor, heads: Heads) -> Tensor:
    return heads.tiled_tail(tensor)


def value_columns(tensor: Tensor, heads: Heads) -> Tensor:
    return heads.tiled(tensor, dim=1)


def convolution(tensor: Tensor, heads: Heads) -> Tensor:
    """[channels, 1, kernel] to [channels, kernel]."""
    return heads.tiled_tail(tensor.squeeze(1))


# ---- the table ------------------------------------------------------------------------------------------------------

# Name after `model.language_model.`, `{n}` a layer -> name in the file, transform.
TEXT: dict[str, tuple[str, Transform]] = {
    "embed_tokens.weight": ("token_embd.weight", keep),
    "norm.weight": ("output_norm.weight", plus_one),
    "layers.{n}.input_layernorm.weight": ("blk.{n}.attn_norm.weight", plus_one),
    "layers.{n}.post_attention_layernorm.weight": ("blk.{n}.post_attention_norm.weight", plus_one),
    "layers.{n}.self_attn.q_proj.weight": ("blk.{n}.attn_q.weight", keep),
    "layers.{n}.self_attn.k_proj.weight": ("blk.{n}.attn_k.weight", keep),
    "layers.{n}.self_attn.v_proj.weight": ("blk.{n}.attn_v.weight", keep),
    "layers.{n}.self_attn.o_proj.weight": ("blk.{n}.attn_output.weight", keep),
    "layers.{n}.self_attn.q_norm.weight": ("blk.{n}.attn_q_norm.weight", plus_one),
    "layers.{n}.self_attn.k_norm.weight": ("blk.{n}.attn_k_norm.weight", plus_one),
    "layers.{n}.linear_attn.in_proj_qkv.weight": ("blk.{n}.attn_qkv.weight", value_tail),
    "layers.{n}.linear_attn.in_proj_z.weight": ("blk.{n}.attn_gate.weight", value_rows),
    "layers.{n}.linear_attn.in_proj_a.weight": ("blk.{n}.ssm_alpha.weight", per_head),
    "layers.{n}.linear_attn.in_proj_b.weight": ("blk.{n}.ssm_beta.weight", per_head),
    "layers.{n}.linear_attn.A_log": ("blk.{n}.ssm_a", decay),
    "layers.{n}.linear_attn.dt_bias": ("blk.{n}.ssm_dt.bias", per_head),
    "layers.{n}.linear_attn.conv1d.weight": ("blk.{n}.ssm_conv1d.weight", convolution),
    "layers.{n}.linear_attn.norm.weight": ("blk.{n}.ssm_norm.weight", keep),  # Qwen3_5RMSNormGated: no offset
    "layers.{n}.linear_attn.out_proj.weight": ("blk.{n}.ssm_out.weight", value_columns),
    "layers.{n}.mlp.gate_proj.weight": ("blk.{n}.ffn_gate.weight", keep),
    "layers.{n}.mlp.up_proj.weight": ("blk.{n}.ffn_up.weight", keep),
    "layers.{n}.mlp.down_proj.weight": ("blk.{n}.ffn_down.weight", keep),
}

# Module after `model.`, `{n}` a layer -> module in the file; `.weight` and `.bias` follow, values stay.
VISION: dict[str, str] = {
    "vision_tower.embeddings.patch_embedding": "v.patch_embd",
    "vision_tower.embeddings.position_embedding": "v.position_embd",
    "vision_tower.encoder.layers.{n}.layer_norm1": "v.blk.{n}.ln1",
    "vision_tower.encoder.layers.{n}.layer_norm2": "v.blk.{n}.ln2",
    "vision_tower.encoder.layers.{n}.self_attn.q_proj": "v.blk.{n}.attn_q",
    "vision_tower.encoder.layers.{n}.self_attn.k_proj": "v.blk.{n}.attn_k",
    "vision_tower.encoder.layers.{n}.self_attn.v_proj": "v.blk.{n}.attn_v",
    "vision_tower.encoder.layers.{n}.self_attn.out_proj": "v.blk.{n}.attn_out",
    "vision_tower.encoder.layers.{n}.mlp.fc1": "v.blk.{n}.ffn_up",
    "vision_tower.encoder.layers.{n}.mlp.fc2": "v.blk.{n}.ffn_down",
    "vision_tower.post_layernorm": "v.post_ln",
    "vision_tower.vit_merger.layer_norm1": "v.vit_merger.ln1",
    "vision_tower.vit_merger.self_attn.q_proj": "v.vit_merger.attn_q",
    "vision_tower.vit_merger.self_attn.k_proj": "v.vit_merger.attn_k",
    "vision_tower.vit_merger.self_attn.v_proj": "v.vit_merger.attn_v",
    "vision_tower.vit_merger.self_attn.out_proj": "v.vit_merger.attn_out",
    "vision_tower.vit_merger.pre_norm": "v.vit_merger.ds_ln",
    "vision_tower.vit_merger.linear_1": "v.vit_merger.ds_ffn_up",
    "vision_tower.vit_merger.linear_2": "v.vit_merger.ds_ffn_down",
    "merger.mlp.0.pre_norm": "mm.input_norm",
    "merger.mlp.0.linear_1": "mm.up",
    "merger.mlp.0.linear_2": "mm.down",
}
_NO_BIAS = ("vision_tower.embeddings.position_embedding",)
_MERGER_16X = "v.vit_merger."  # not in a file for 4x


@dataclass(frozen=True)
class Conversion:
    """One tensor. source, name: in the checkpoint, in the file. shape: in the file, outermost axis first.

    transform: takes the tensor in float32 and the heads.
    """

    source: str
    name: str
    shape: tuple[int, ...]
    transform: Transform


def text_tensors(checkpoint: Checkpoint) -> list[Conversion]:
    """All tensors of the text file, in llama.cpp's order (those outside the layers, then layer by layer, by name).

    A head that is tied to the embedding is left out even where it is stored, as Transformers does not read it.
    Raises QuantkitError naming a tensor that is missing, that belongs to no part of the model, or of another shape than
    config.json says.
    """
    _check(checkpoint)
    rows = _text_rows(checkpoint.config, str(checkpoint.path))
    found = [_conversion(checkpoint, source, *row) for source, row in rows.items()]
    return sorted(found, key=lambda row: llamacpp_order(row.name))


def vision_tensors(checkpoint: Checkpoint, mode: str = "16x") -> list[Conversion]:
    """All tensors of the mmproj file for one downsample mode, "16x" or "4x", in the order of the data; raises as
    `text_tensors`."""
    if mode not in MODES:
        raise QuantkitError(f"no downsample mode {mode!r}; choose {' or '.join(MODES)}")
    _check(checkpoint)
    rows = _vision_rows(checkpoint.config, str(checkpoint.path))
    return [
        _conversion(checkpoint, source, name, keep)
        for source, name in rows.items()
        if mode == "16x" or not name.startswith(_MERGER_16X)
    ]


def input_order(source: str, heads: Heads) -> Tensor | None:
    """Where each input channel of a converted linear comes from, int64 [in_features]; None where none has moved.

    source: the linear's name in the checkpoint, with `.weight` or without. `converted[:, j] = original[:, order[j]]`,
    and so for whatever was measured at its input.
    """
    name = source.removesuffix(".weight").removeprefix(LANGUAGE_PREFIX)
    row = TEXT.get(_of_any_layer(name) + ".weight")
    if row is None or row[1] is not value_columns or heads.values == heads.keys:
        return None
    return heads.tiled(torch.arange(heads.values * heads.value_dim))


def llamacpp_order(name: str) -> tuple[int, str]:
    """A key that sorts a text file's tensors as llama.cpp goes through them, on which its mixtures depend."""
    layer = re.match(r"blk\.(\d+)\.", name)
    return int(layer[1]) if layer else -1, name


# ---- types ----------------------------------------------------------------------------------------------------------


def keeps_float32(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor stays F32 in every file: llama.cpp's operations read norms, biases, the convolution and the
    position table so."""
    return (
        len(shape) <= 1
        or name.endswith("_norm.weight")
        or not name.endswith(".weight")
        or ".ssm_conv1d." in name
        or ".position_embd." in name
    )


def vision_type(name: str, shape: tuple[int, ...], file_type: str) -> str:
    """The type of one tensor of an mmproj file "F32", "F16", "BF16" or "Q8_0", as llama.cpp's converter chooses.

    The patch embedding is a convolution, read as F16 or F32 only; rows that no block of Q8_0 divides are F16.
    """
    if file_type not in MMPROJ_TYPES:
        raise QuantkitError(f"an mmproj file cannot be {file_type}; choose one of {', '.join(MMPROJ_TYPES)}")
    if keeps_float32(name, shape):
        return "F32"
    if ".patch_embd." in name:
        return "F16" if file_type == "F16" else "F32"
    return file_type if TYPES[file_type].fits(shape[-1]) else "F16"


# ---- the checkpoint -------------------------------------------------------------------------------------------------


def _text_rows(config: Mapping[str, Any], where: str) -> dict[str, tuple[str, Transform]]:
    """Name in the checkpoint -> row, for all that the config says there is."""
    model = build_map(config, where)
    rows = {LANGUAGE_PREFIX + source: row for source, row in TEXT.items() if "{n}" not in source}
    for block in model.blocks:
        other = "self_attn." if block.kind == "linear_attention" else "linear_attn."
        for source, (name, transform) in TEXT.items():
            if "{n}" in source and other not in source:
                place = str(block.index)
                rows[LANGUAGE_PREFIX + source.replace("{n}", place)] = (name.replace("{n}", place), transform)
    if not model.tied:
        rows[HEAD] = ("output.weight", keep)
    return rows


def _vision_rows(config: Mapping[str, Any], where: str) -> dict[str, str]:
    layers = (config.get("vision_config") or {}).get("num_hidden_layers")
    if not isinstance(layers, int) or layers <= 0:
        raise QuantkitError(f"{where}: vision_config.num_hidden_layers in config.json is {layers!r}")
    rows = {}
    for source, name in VISION.items():
        for place in range(layers) if "{n}" in source else [0]:
            for part in ("weight",) if source in _NO_BIAS else ("weight", "bias"):
                rows[f"model.{source.replace('{n}', str(place))}.{part}"] = f"{name.replace('{n}', str(place))}.{part}"
    return rows


def _check(checkpoint: Checkpoint) -> None:
    """Every tensor of both files is there, and nothing but them, a tied head and MTP layers, which no file takes."""
    where = str(checkpoint.path)
    model = build_map(checkpoint.config, where)
    expected = [*_text_rows(checkpoint.config, where), *_vision_rows(checkpoint.config, where)]
    left_out = [name for name in checkpoint.tensor_names if name.startswith(MTP_PREFIXES)]
    if model.tied and HEAD in checkpoint:
        left_out.append(HEAD)
    checkpoint.check_names(expected + left_out)
    shapes = {f"{name}.weight": shape for name, shape in model.linears().items()}
    for block in model.blocks:
        for group in block.groups:
            for name in group.passengers:
                shapes[f"{block.prefix}{name}.weight"] = (block.out_features[name], group.in_features)
    shapes[LANGUAGE_PREFIX + "embed_tokens.weight"] = (model.vocab_size, model.hidden_size)
    _check_shapes(checkpoint, shapes.items())


def _check_shapes(checkpoint: Checkpoint, expected: Iterable[tuple[str, tuple[int, int]]]) -> None:
    for name, shape in expected:
        if checkpoint.shape(name) != shape:
            raise QuantkitError(
                f"{checkpoint.info(name).file}: tensor {name} has the shape {list(checkpoint.shape(name))}; by "
                f"config.json it is {list(shape)}: weights and config.json belong to different models; {_AGAIN}"
            )


def _conversion(checkpoint: Checkpoint, source: str, name: str, transform: Transform) -> Conversion:
    shape = checkpoint.shape(source)
    if transform is convolution:
        shape = (shape[0], shape[-1])
    return Conversion(source, name, shape, transform)


def _of_any_layer(name: str) -> str:
    return re.sub(r"^layers\.\d+\.", "layers.{n}.", name)
