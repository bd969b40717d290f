"""The model map: what feeds what in MiniCPM-V 4.6, as data.

Class ``MiniCPMV4_6ForConditionalGeneration`` of transformers: a SigLIP2 vision tower, a merger, and a Qwen3.5 hybrid
language model whose blocks are either ``linear_attention`` (Gated DeltaNet) or ``full_attention``. The map lists, for
each block of the language model, the groups of linears that read one input, what feeds that input, and what kind of
feeder it is. A method asks nothing else of the model; it never looks at a module.

A scale ``s`` on the input channels of a group (``W -> W * s`` on the columns) is undone in the feeder:

* ``one_plus_weight``: ``Qwen3_5RMSNorm`` computes ``norm(x) * (1 + w)``, hence ``w -> (1 + w) / s - 1``;
* ``weight``: ``Qwen3_5RMSNormGated`` computes ``w * norm(x) * silu(z)``, hence ``w -> w / s``;
* ``rows``: a linear whose outputs reach the group only through products, hence its rows are divided by ``s``.

Where one feeder channel reaches several input channels (a KV head serves several query heads; the weight of
``linear_attn.norm`` serves every head) those channels share one scale; ``Feeder.index`` says which.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from quantkit.errors import QuantkitError

ARCHITECTURE = "MiniCPMV4_6ForConditionalGeneration"
MODEL_TYPE = "minicpmv4_6"
LANGUAGE_PREFIX = "model.language_model."
LAYERS_PREFIX = LANGUAGE_PREFIX + "layers."
VISION_PREFIXES = ("model.vision_tower.", "model.merger.")
EMBEDDING = LANGUAGE_PREFIX + "embed_tokens.weight"
HEAD = "lm_head.weight"

FeederKind = Literal["one_plus_weight", "weight", "rows"]

# The exact class of each norm decides how a scale folds into it; any other class is an error, never a guess.
NORM_KINDS: dict[str, FeederKind] = {"Qwen3_5RMSNorm": "one_plus_weight", "Qwen3_5RMSNormGated": "weight"}

# vLLM and SGLang load each of these sets as one fused linear, by this name: quantized alike, or left alone together.
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "linear_attn.in_proj_qkvz": ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z"),
    "linear_attn.in_proj_ba": ("linear_attn.in_proj_b", "linear_attn.in_proj_a"),
}
FUSED_SETS = tuple(FUSED.values())

# Modules outside the map, in the spelling that Transformers (regular expression up to a module boundary, or suffix) and
# vLLM (prefix of its own names, then substring) both understand. The trailing dots are what vLLM's mapping needs.
# `vpm.` and `resampler.` are SGLang's own names, which it looks up as substrings without mapping the list;
# `vit_merger.` is vLLM's, for layouts whose patterns it does not map.
UNQUANTIZED_MODULES = (
    "model.vision_tower.vit_merger.",
    "model.vision_tower.",
    "model.merger.",
    "vpm.",
    "vit_merger.",
    "resampler.",
    "in_proj_a",
    "in_proj_b",
    "lm_head",
)


@dataclass(frozen=True)
class Feeder:
    """What produces the input of a group.

    kind: how a scale is undone in it. module: name of the norm or linear inside the block. channels: its number of
    scalable channels. index: for each input channel of the group, the feeder channel it comes from; ``None`` is the
    identity.
    """

    kind: FeederKind
    module: str
    channels: int
    index: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Group:
    """Linears that read one input. ``linears`` are quantizable; ``passengers`` stay unquantized and take the scale."""

    name: str
    linears: tuple[str, ...]
    passengers: tuple[str, ...]
    feeder: Feeder
    in_features: int


@dataclass(frozen=True)
class Block:
    """One layer of the language model: ``prefix`` ends in a dot, all names in ``groups`` are relative to it."""

    index: int
    prefix: str
    kind: Literal["linear_attention", "full_attention"]
    groups: tuple[Group, ...]
    out_features: Mapping[str, int]

    def linears(self) -> tuple[str, ...]:
        return tuple(linear for group in self.groups for linear in group.linears)

    def group_of(self, linear: str) -> Group:
        return next(group for group in self.groups if linear in group.linears)


@dataclass(frozen=True)
class ModelMap:
    """The language model's blocks, in order, and the sizes that the other rooms ask for."""

    blocks: tuple[Block, ...]
    hidden_size: int
    vocab_size: int
    tied: bool

    def linears(self) -> dict[str, tuple[int, int]]:
        """Full names of all quantizable linears, in order, with ``(out_features, in_features)``."""
        return {
            block.prefix + linear: (block.out_features[linear], group.in_features)
            for block in self.blocks
            for group in block.groups
            for linear in group.linears
        }


def check_architecture(config: Mapping[str, Any], name: str) -> None:
    """Raise if ``config`` (a parsed config.json) is not of the one supported architecture."""
    architectures = config.get("architectures") or []
    if config.get("model_type") == MODEL_TYPE and (not architectures or ARCHITECTURE in architectures):
        return
    found = ", ".join(architectures) or config.get("model_type") or "none named"
    raise QuantkitError(
        f"{name}: config.json names the architecture {found}; supported: {ARCHITECTURE} (model_type {MODEL_TYPE})"
    )


def build_map(config: Mapping[str, Any], name: str = "config.json") -> ModelMap:
    """The model map of a parsed ``config.json``.

    Raises QuantkitError for another architecture, a missing field (named), or an unknown layer type.
    """
    check_architecture(config, name)
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        raise QuantkitError(f"{name}: config.json has no text_config; take the file from the original checkpoint")
    sizes = _Sizes(text, name)
    blocks = tuple(_block(index, kind, sizes) for index, kind in enumerate(_layer_types(text, sizes, name)))
    tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    return ModelMap(blocks, sizes.hidden_size, sizes.vocab_size, tied)


class _Sizes:
    """The integer fields of text_config that the map needs, each checked once."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    vocab_size: int

    def __init__(self, text: Mapping[str, Any], name: str) -> None:
        for field in _Sizes.__annotations__:
            value = text.get(field)
            if not isinstance(value, int) or value <= 0:
                raise QuantkitError(f"{name}: text_config.{field} in config.json is {value!r}, not a positive integer")
            setattr(self, field, value)


def _layer_types(text: Mapping[str, Any], sizes: _Sizes, name: str) -> list[str]:
    kinds = text.get("layer_types")
    if kinds is None:
        interval = text.get("full_attention_interval", 4)
        layers = range(1, sizes.num_hidden_layers + 1)
        return ["linear_attention" if layer % interval else "full_attention" for layer in layers]
    if len(kinds) != sizes.num_hidden_layers:
        raise QuantkitError(
            f"{name}: text_config.layer_types has {len(kinds)} entries for {sizes.num_hidden_layers} layers"
        )
    unknown = sorted(set(kinds) - {"linear_attention", "full_attention"})
    if unknown:
        raise QuantkitError(f"{name}: text_config.layer_types holds {unknown[0]!r}, a kind quantkit does not know")
    return list(kinds)


def _block(index: int, kind: str, sizes: _Sizes) -> Block:
    hidden, inter = sizes.hidden_size, sizes.intermediate_size
    mixer = _delta_net_groups(sizes) if kind == "linear_attention" else _attention_groups(sizes)
    after_norm = Feeder("one_plus_weight", "post_attention_layernorm", hidden)
    mlp = (
        Group("mlp_in", ("mlp.gate_proj", "mlp.up_proj"), (), after_norm, hidden),
        Group("mlp_out", ("mlp.down_proj",), (), Feeder("rows", "mlp.up_proj", inter), inter),
    )
    out = {"mlp.gate_proj": inter, "mlp.up_proj": inter, "mlp.down_proj": hidden}
    if kind == "linear_attention":
        value_dim = sizes.linear_num_value_heads * sizes.linear_value_head_dim
        key_dim = sizes.linear_num_key_heads * sizes.linear_key_head_dim
        out |= {
            "linear_attn.in_proj_qkv": 2 * key_dim + value_dim,
            "linear_attn.in_proj_z": value_dim,
            "linear_attn.in_proj_b": sizes.linear_num_value_heads,
            "linear_attn.in_proj_a": sizes.linear_num_value_heads,
            "linear_attn.out_proj": hidden,
        }
        return Block(index, f"{LAYERS_PREFIX}{index}.", "linear_attention", (*mixer, *mlp), out)
    out |= {
        # query and gate of each head lie side by side in q_proj
        "self_attn.q_proj": 2 * sizes.num_attention_heads * sizes.head_dim,
        "self_attn.k_proj": sizes.num_key_value_heads * sizes.head_dim,
        "self_attn.v_proj": sizes.num_key_value_heads * sizes.head_dim,
        "self_attn.o_proj": hidden,
    }
    return Block(index, f"{LAYERS_PREFIX}{index}.", "full_attention", (*mixer, *mlp), out)


def _delta_net_groups(sizes: _Sizes) -> tuple[Group, Group]:
    heads, dim = sizes.linear_num_value_heads, sizes.linear_value_head_dim
    return (
        Group(
            "mixer_in",
            ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z"),
            ("linear_attn.in_proj_b", "linear_attn.in_proj_a"),
            Feeder("one_plus_weight", "input_layernorm", sizes.hidden_size),
            sizes.hidden_size,
        ),
        Group(
            "mixer_out",
            ("linear_attn.out_proj",),
            (),
            Feeder("weight", "linear_attn.norm", dim, tuple(range(dim)) * heads),
            heads * dim,
        ),
    )


def _attention_groups(sizes: _Sizes) -> tuple[Group, Group]:
    heads, kv_heads, dim = sizes.num_attention_heads, sizes.num_key_value_heads, sizes.head_dim
    repeats = heads // kv_heads
    index = tuple((head // repeats) * dim + channel for head in range(heads) for channel in range(dim))
    return (
        Group(
            "mixer_in",
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            (),
            Feeder("one_plus_weight", "input_layernorm", sizes.hidden_size),
            sizes.hidden_size,
        ),
        Group(
            "mixer_out",
            ("self_attn.o_proj",),
            (),
            Feeder("rows", "self_attn.v_proj", kv_heads * dim, index),
            heads * dim,
        ),
    )


def select_kept(model: ModelMap, patterns: Sequence[str]) -> tuple[set[str], dict[str, str]]:
    """The linears that ``--keep`` leaves unquantized.

    A pattern is a part of the full name and may hold ``*``, ``?`` and ``[...]`` as in a shell. Linears that a runtime
    fuses with a kept one are kept with it. Returns the full names, and for each one that came along, the name it is
    fused with.
    Raises QuantkitError for a pattern that matches no quantizable linear.
    """
    names = list(model.linears())
    kept: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if fnmatch.fnmatchcase(name, f"*{pattern}*")}
        if not found:
            raise QuantkitError(
                f"--keep {pattern!r} matches no quantizable linear{_nearest(pattern, names)}; names look like "
                f"{names[0]} (see --dry-run)"
            )
        kept |= found
    along: dict[str, str] = {}
    for name in sorted(kept):
        prefix, linear = split_name(name)
        for fused in FUSED_SETS:
            if linear in fused:
                along |= {prefix + other: name for other in fused if prefix + other not in kept}
    return kept | set(along), along


def _nearest(pattern: str, names: Sequence[str]) -> str:
    parts = {"layers." + name.removeprefix(LAYERS_PREFIX) for name in names}
    parts |= {".".join(name.split(".")[-count:]) for name in names for count in (1, 2)}
    close = get_close_matches(pattern.strip("*."), sorted(parts), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def sglang_names(kept: Iterable[str]) -> set[str]:
    """What SGLang calls the modules that hold these linears: its AWQ skip list knows no other spelling."""
    return {fused_name(name).replace(LANGUAGE_PREFIX, "llm.", 1) for name in kept}


def fused_name(name: str) -> str:
    """The full name of what a linear is fused into; its own, where it stays by itself."""
    prefix, linear = split_name(name)
    return prefix + next((whole for whole, parts in FUSED.items() if linear in parts), linear)


def split_name(name: str) -> tuple[str, str]:
    """``model.language_model.layers.3.mlp.up_proj`` -> its block's prefix and the name inside the block."""
    layer, _, rest = name.removeprefix(LAYERS_PREFIX).partition(".")
    return f"{LAYERS_PREFIX}{layer}.", rest
