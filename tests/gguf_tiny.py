"""GGUF files of a MiniCPM-V 4.6 checkpoint, as llama.cpp reads them: the text model, and the mmproj with its vision.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little endian). llama.cpp knows the text
model as arch `qwen35` and the vision tower with its mergers as projector `minicpmv4_6`. Every tensor of the checkpoint
is one row of `TEXT` or `VISION`: its name there, its name in the file, what happens to its values. Unquantized types
only.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

ALIGNMENT = 32
TYPES = {"f32": (0, torch.float32), "f16": (1, torch.float16), "bf16": (30, torch.bfloat16)}
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32}  # general.file_type
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # tokenizer.ggml.token_type
# the pattern that splits text before merging -> llama.cpp's name for it
PRE_TOKENIZERS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen35",
}


# ---- what happens to a tensor ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heads:
    """Linear attention's heads: value heads of one key head lie together in the checkpoint, apart in GGUF."""

    keys: int
    values: int
    key_dim: int
    value_dim: int

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
    """Qwen3_5RMSNorm multiplies by 1 + weight, llama.cpp by the weight."""
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


# Name after `model.language_model.`, `{n}` a layer -> name in the file, transform. The query's rows keep their order
# (each head's query, then its gate): llama.cpp splits them as Transformers does.
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

# Module after `model.` -> module in the file; `.weight` and `.bias` follow, values stay.
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

FULL_PRECISION = ("ssm_conv1d", "position_embd")  # and all with one axis; llama.cpp's operations ask for float32


# ---- the two files --------------------------------------------------------------------------------------------------


def write_text(model: Path, path: Path, type_name: str = "f16", change: dict[str, Transform] | None = None) -> Path:
    """The text model of a checkpoint folder. `change`: other transforms, by name in the table (to plant faults)."""
    config = json.loads((model / "config.json").read_text())["text_config"]
    heads = _heads(config)
    table = {f"model.language_model.{name}": row for name, row in TEXT.items()}
    for name, transform in (change or {}).items():
        row = table[f"model.language_model.{name}"]
        table[f"model.language_model.{name}"] = (row[0], transform)
    tensors = [
        Entry.of(name, transform(tensor, heads), type_name)
        for name, transform, tensor in _renamed(model, table, "model.language_model.")
    ]
    metadata = text_metadata(config, type_name) | tokenizer_metadata(model, config["vocab_size"])
    return write_gguf(path, metadata, tensors)


def write_mmproj(model: Path, path: Path, type_name: str = "f16", mode: str = "16x") -> Path:
    """The vision tower and mergers of a checkpoint folder, for one downsample mode."""
    config = json.loads((model / "config.json").read_text())
    processor = json.loads((model / "preprocessor_config.json").read_text())
    table = {
        f"model.{source}.{part}": (f"{name}.{part}", keep)
        for source, name in VISION.items()
        for part in ("weight", "bias")
    }
    tensors = [
        Entry.of(name, tensor, type_name)
        for name, _, tensor in _renamed(model, table, ("model.vision_tower.", "model.merger."))
        if mode == "16x" or ".vit_merger." not in name
    ]
    return write_gguf(path, vision_metadata(config, processor, type_name, mode), tensors)


def text_metadata(config: dict[str, Any], type_name: str) -> dict[str, Any]:
    """Keys of arch `qwen35`. The MTP layer that the config announces is never stored, so it is not announced here."""
    rope = config["rope_parameters"]
    sizes = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": int(config["head_dim"] * rope["partial_rotary_factor"]),
        "rope.dimension_sections": Int32s([*rope["mrope_section"], 0]),
        "full_attention_interval": config["full_attention_interval"],
        "ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "ssm.state_size": config["linear_key_head_dim"],
        "ssm.group_count": config["linear_num_key_heads"],
        "ssm.time_step_rank": config["linear_num_value_heads"],
        "ssm.inner_size": config["linear_num_value_heads"] * config["linear_value_head_dim"],
        "vocab_size": config["vocab_size"],
    }
    return {
        "general.architecture": "qwen35",
        "general.type": "model",
        "general.name": "tiny",
        "general.file_type": FILE_TYPES[type_name],
        **{f"qwen35.{key}": value for key, value in sizes.items()},
    }


def vision_metadata(config: dict[str, Any], processor: dict[str, Any], type_name: str, mode: str) -> dict[str, Any]:
    """Keys of arch `clip`. `image_size` is the side of a slice in pixels, not the position table's."""
    vision = config["vision_config"]
    sizes = {
        "image_size": processor["scale_resolution"],
        "patch_size": vision["patch_size"],
        "embedding_length": vision["hidden_size"],
        "feed_forward_length": vision["intermediate_size"],
        "block_count": vision["num_hidden_layers"],
        "attention.head_count": vision["num_attention_heads"],
        "attention.layer_norm_epsilon": float(vision["layer_norm_eps"]),
        "projection_dim": config["text_config"]["hidden_size"],
        "image_mean": [float(value) for value in processor["image_mean"]],
        "image_std": [float(value) for value in processor["image_std"]],
        "projector.scale_factor": {"16x": 4, "4x": 2}[mode],  # merged patches along an edge
        "wa_layer_indexes": Int32s([config["insert_layer_id"]]),  # vit_merger follows this layer
    }
    return {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.name": "tiny",
        "general.file_type": FILE_TYPES[type_name],
        "clip.has_vision_encoder": True,
        "clip.projector_type": "minicpmv4_6",
        "clip.use_gelu": True,  # the tower's tanh form; the last merger's exact form is built in
        **{f"clip.vision.{key}": value for key, value in sizes.items()},
    }


def tokenizer_metadata(model: Path, size: int) -> dict[str, Any]:
    """Byte-level BPE of tokenizer.json: `size` tokens (unused ids filled), merges, special ids, chat template."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokens = [f"[PAD{number}]" for number in range(size)]
    kinds = [UNUSED] * size
    for token, number in tokenizer["model"]["vocab"].items():
        tokens[number], kinds[number] = token, NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    named = json.loads((model / "tokenizer_config.json").read_text())
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    values = {
        "model": "gpt2",
        "pre": _pre_tokenizer(tokenizer["pre_tokenizer"]),
        "tokens": tokens,
        "token_type": Int32s(kinds),
        "merges": merges,
        "eos_token_id": tokens.index(named["eos_token"]),
        "padding_token_id": tokens.index(named["pad_token"]),
        "add_bos_token": False,
    }
    template = (model / "chat_template.jinja").read_text()
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()} | {"tokenizer.chat_template": template}


def _pre_tokenizer(settings: dict[str, Any]) -> str:
    patterns = [part["pattern"]["Regex"] for part in settings["pretokenizers"] if part["type"] == "Split"]
    if len(patterns) != 1 or patterns[0] not in PRE_TOKENIZERS:
        raise ValueError(f"unknown pre-tokenizer pattern {patterns}")
    return PRE_TOKENIZERS[patterns[0]]


def _heads(config: dict[str, Any]) -> Heads:
    names = ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
    return Heads(*(config[name] for name in names))


def _renamed(
    model: Path, table: dict[str, tuple[str, Transform]], prefixes: str | tuple[str, ...]
) -> Iterator[tuple[str, Transform, Tensor]]:
    """Every tensor under `prefixes`, in float32, with its row of the table; one without a row raises `KeyError`."""
    with safe_open(model / "model.safetensors", framework="pt") as file:
        for source in sorted(file.keys()):
            if not source.startswith(prefixes):
                continue
            layer = re.search(r"\.layers\.(\d+)\.", source)
            name, transform = table[re.sub(r"\.layers\.\d+\.", ".layers.{n}.", source)]
            yield name.replace("{n}", layer[1] if layer else ""), transform, file.get_tensor(source).float()


# ---- the container --------------------------------------------------------------------------------------------------


class Int32s(list):  # type: ignore[type-arg]
    """An array to be written as int32; lists of int are written so too, the class says that it matters."""


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: its type's number and its bytes. `shape` as in torch, outermost first."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    data: bytes

    @classmethod
    def of(cls, name: str, tensor: Tensor, type_name: str) -> Entry:
        if tensor.dim() == 1 or any(part in name for part in FULL_PRECISION):
            type_name = "f32"
        type_id, dtype = TYPES[type_name]
        data = tensor.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()
        return cls(name, tuple(tensor.shape), type_id, data)


def write_gguf(path: Path, metadata: dict[str, Any], tensors: list[Entry]) -> Path:
    """Header, metadata, the tensors' directory, then their bytes, each aligned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_string(key) + _typed(value))
        offset = 0
        for tensor in tensors:
            shape = tensor.shape[::-1]  # innermost first
            file.write(_string(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
            file.write(struct.pack("<IQ", tensor.type_id, offset))
            offset += -(-len(tensor.data) // ALIGNMENT) * ALIGNMENT
        for tensor in tensors:
            file.write(bytes(-file.tell() % ALIGNMENT) + tensor.data)
        file.write(bytes(-file.tell() % ALIGNMENT))
    return path


def _typed(value: Any) -> bytes:
    """The number of a value's type, then the value."""
    if isinstance(value, list):
        kind = _kind(value[0])
        return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(_plain(item, kind) for item in value)
    kind = 4 if isinstance(value, int) and not isinstance(value, bool) else _kind(value)  # sizes: uint32
    return struct.pack("<I", kind) + _plain(value, kind)


def _kind(value: Any) -> int:
    return {int: 5, float: 6, bool: 7, str: 8}[type(value)]


def _plain(value: Any, kind: int) -> bytes:
    return _string(value) if kind == 8 else struct.pack({4: "<I", 5: "<i", 6: "<f", 7: "<?"}[kind], value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
