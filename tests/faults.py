"""Planted faults: each damages one thing in a folder with a good variant, and says which check must see it

A fault is a function of the folder (a copy that it may change) and of the source's folder. After each, SHA256SUMS is
brought up to date, as in a file that was made wrong; only a fault that came later leaves it as it was. The variant must
be AutoAWQ's layout with a scale folded into every kind of feeder (`quantkit awq` on tiny or larger).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantkit.formats import awq as layout
from quantkit.formats.words import pack_rows, unpack_rows
from quantkit.grid import GridSpec, full_range, grid_of, round_to_grid
from quantkit.tensorfile import CHECKSUM_FILE, write_checksums

WEIGHTS = "model.safetensors"
LAYERS = "model.language_model.layers."
LINEAR, FULL = LAYERS + "1.", LAYERS + "3."  # a layer of each kind
QKV, GATE = LINEAR + "linear_attn.in_proj_qkv", LINEAR + "mlp.gate_proj"

Damage = Callable[[Path, Path], None]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Fault:
    """name: for people. check: the check that must report it as an error. word: part of its place or text.

    engine: "files" where reading the files shows it; "forward" where only a forward pass does. keeps_sums: SHA256SUMS
    stays as it was.
    """

    name: str
    damage: Damage
    check: str
    word: str
    engine: str = "files"
    keeps_sums: bool = False

    def plant(self, folder: Path, source: Path) -> None:
        """Damage ``folder``, a copy of a good variant of ``source``."""
        self.damage(folder, source)
        if not self.keeps_sums and (folder / CHECKSUM_FILE).exists():
            write_checksums(folder, [WEIGHTS])


FAULTS: list[Fault] = []


def fault(name: str, check: str, word: str, **more: Any) -> Callable[[Damage], Damage]:
    """Enter the function into the table."""

    def enter(damage: Damage) -> Damage:
        FAULTS.append(Fault(name, damage, check, word, **more))
        return damage

    return enter


# ---- helpers ------------------------------------------------------------------------------------------------------


class Weights:
    """``with Weights(folder) as tensors``: the tensors as a dict, written back at the end."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / WEIGHTS
        self.tensors: Tensors = {}

    def __enter__(self) -> Tensors:
        # a copy: the file must not be mapped while it is rewritten
        self.tensors = {name: tensor.clone() for name, tensor in load_file(self.path).items()}
        return self.tensors

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            save_file(
                {name: tensor.contiguous() for name, tensor in self.tensors.items()},
                self.path,
                metadata={"format": "pt"},
            )


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def source_tensor(source: Path, name: str) -> Tensor:
    return load_file(source / WEIGHTS)[name].float()


def repack(tensors: Tensors, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Change the rows of a packed linear: ``change`` gets codes, zeros and scales, each with outputs first."""
    codes = change(layout.unpack_words(tensors[f"{name}.qweight"]).T)
    zeros = change(layout.unpack_words(tensors[f"{name}.qzeros"]).T)
    tensors[f"{name}.qweight"] = layout.pack_words(codes.T)
    tensors[f"{name}.qzeros"] = layout.pack_words(zeros.T)
    tensors[f"{name}.scales"] = change(tensors[f"{name}.scales"].T).T.contiguous()


def rounded(name: str, weight: Tensor, group_size: int) -> Tensors:
    """The three tensors of ``weight`` rounded to nearest."""
    spec = GridSpec(4, group_size)
    return layout.pack(name, round_to_grid(weight, *grid_of(full_range(weight, spec), spec), spec))


def group_size_of(folder: Path) -> int:
    return int(config_of(folder)["quantization_config"]["group_size"])


# ---- packed tensors -----------------------------------------------------------------------------------------------


@fault("nibbles in natural order", "weights", "nibble order")
def nibble_order(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        for name in [name for name in tensors if name.endswith((".qweight", ".qzeros"))]:
            codes = layout.unpack_words(tensors[name]).view(tensors[name].shape[0], -1, layout.PACK)
            words = torch.zeros(codes.shape[:2], dtype=torch.int32)
            for position in range(layout.PACK):
                words |= codes[:, :, position].to(torch.int32) << (layout.BITS * position)
            tensors[name] = words


@fault("zero points off by one", "weights", "zero points are off by +1")
def zero_off_by_one(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        for name in [name for name in tensors if name.endswith(".qzeros")]:
            tensors[name] = layout.pack_words((layout.unpack_words(tensors[name]) + 1).clamp(max=15))


@fault("one zero point off by one", "weights", "zero points are wrong")
def one_zero_off(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        zeros = layout.unpack_words(tensors[f"{GATE}.qzeros"])
        zeros[0, 5] += 1 if zeros[0, 5] < 8 else -1
        zeros[0, 6] += 2 if zeros[0, 6] < 8 else -2
        tensors[f"{GATE}.qzeros"] = layout.pack_words(zeros)


@fault("zero points in another nibble order", "weights", "zero points do not belong")
def zeros_permuted(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        zeros = layout.unpack_words(tensors[f"{GATE}.qzeros"])
        order = torch.tensor(layout.ORDER)
        tensors[f"{GATE}.qzeros"] = layout.pack_words(zeros.view(len(zeros), -1, 8)[:, :, order].view(len(zeros), -1))


@fault("scales transposed, in the right shape", "weights", "scales are transposed")
def scales_transposed(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        scales = tensors[f"{QKV}.scales"]
        tensors[f"{QKV}.scales"] = scales.T.contiguous().view(scales.shape)


@fault("scales transposed, in the other shape", "accounting", "scales are transposed")
def scales_transposed_shape(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors[f"{QKV}.scales"] = tensors[f"{QKV}.scales"].T


@fault("scales shifted by a group", "weights", "scales are shifted")
def scales_shifted(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        name = f"{LINEAR}mlp.down_proj.scales"
        tensors[name] = tensors[name].roll(1, 0)


@fault("one scale with its top mantissa bit flipped", "weights", "scales are wrong")
def scale_bit(folder: Path, source: Path) -> None:
    _flip(folder, 1 << 9)


@fault("one scale with an exponent bit flipped", "weights", "scales are wrong")
def scale_exponent_bit(folder: Path, source: Path) -> None:
    _flip(folder, 1 << 10)


@fault("one scale with its lowest bit flipped", "scales", "flipped bit")
def scale_low_bit(folder: Path, source: Path) -> None:
    _flip(folder, 1)


@fault("one scale with its sign flipped", "scales", "not positive")
def scale_sign_bit(folder: Path, source: Path) -> None:
    _flip(folder, -(1 << 15))


@fault("one bit flipped later", "checksums", "damaged or changed", keeps_sums=True)
def bit_flipped_later(folder: Path, source: Path) -> None:
    path = folder / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def _flip(folder: Path, bit: int) -> None:
    """Flip a bit of one scale: of a group of ordinary size."""
    with Weights(folder) as tensors:
        bits = tensors[f"{GATE}.scales"].view(torch.int16)
        bits[0, 7] ^= bit


@fault("a scale that is NaN", "finite", "NaN")
def nan_scale(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors[f"{GATE}.scales"][0, 3] = torch.nan


@fault("a scale that is zero", "scales", "not positive")
def zero_scale(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors[f"{GATE}.scales"][0, 3] = 0


@fault("a subnormal scale", "scales", "subnormal")
def subnormal_scale(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors[f"{GATE}.scales"][0, 3] = 2.0**-16


@fault("an absurd scale", "scales", "beside a median")
def absurd_scale(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors[f"{GATE}.scales"][0, 3] = 2.0**11


@fault("a linear never written", "weights", "initial value")
def packed_zeros(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors[f"{GATE}.qweight"].zero_()


@fault("a linear at its random initial value", "weights", "initial value")
def random_linear(folder: Path, source: Path) -> None:
    name = f"{LINEAR}mlp.down_proj"
    weight = 0.02 * torch.randn(
        source_tensor(source, f"{name}.weight").shape, generator=torch.Generator().manual_seed(0)
    )
    with Weights(folder) as tensors:
        tensors |= rounded(name, weight, group_size_of(folder))


@fault("a linear of another layer", "weights", "layer 2")
def other_layer(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        for suffix in layout.SUFFIXES:
            tensors[f"{GATE}.{suffix}"] = tensors[f"{LAYERS}2.mlp.gate_proj.{suffix}"].clone()


@fault("query and gate halves swapped", "weights", "query and gate")
def query_and_gate(folder: Path, source: Path) -> None:
    heads = config_of(folder)["text_config"]["num_attention_heads"]

    def swap(rows: Tensor) -> Tensor:
        return rows.reshape(heads, 2, -1, rows.shape[1]).flip(1).reshape(rows.shape)

    with Weights(folder) as tensors:
        repack(tensors, f"{FULL}self_attn.q_proj", swap)


@fault("two rows exchanged", "weights", "in the wrong place")
def two_rows(folder: Path, source: Path) -> None:
    def exchange(rows: Tensor) -> Tensor:
        return torch.cat([rows[:3], rows[70:71], rows[4:70], rows[3:4], rows[71:]])

    with Weights(folder) as tensors:
        repack(tensors, GATE, exchange)


@fault("two query heads exchanged", "weights", "heads are permuted")
def query_heads(folder: Path, source: Path) -> None:
    heads = config_of(folder)["text_config"]["num_attention_heads"]
    order = torch.arange(heads)
    order[:2] = torch.tensor([1, 0])
    with Weights(folder) as tensors:
        repack(
            tensors,
            f"{FULL}self_attn.q_proj",
            lambda rows: rows.reshape(heads, -1, rows.shape[1])[order].reshape(rows.shape),
        )


@fault("two heads of the output projection exchanged", "weights", "heads are permuted")
def output_heads(folder: Path, source: Path) -> None:
    text, name = config_of(folder)["text_config"], f"{FULL}self_attn.o_proj"
    size = text["head_dim"]
    with Weights(folder) as tensors:
        # heads that share a KV head have the same scale
        codes = layout.unpack(*(tensors[f"{name}.{suffix}"] for suffix in layout.SUFFIXES), 4, group_size_of(folder))
        weight = codes.dequantize()
        weight = torch.cat([weight[:, size : 2 * size], weight[:, :size], weight[:, 2 * size :]], 1)
        tensors |= rounded(name, weight, group_size_of(folder))


# ---- folds --------------------------------------------------------------------------------------------------------


def _restore(folder: Path, source: Path, name: str) -> None:
    """Put the source's own tensor back."""
    with Weights(folder) as tensors:
        assert not torch.equal(tensors[name].float(), source_tensor(source, name)), f"{name} carries no scale"
        tensors[name] = source_tensor(source, name).to(tensors[name].dtype)


@fault("a norm of the kind `1 + w` not compensated", "weights", "norm is not compensated")
def norm_one_plus(folder: Path, source: Path) -> None:
    _restore(folder, source, f"{LINEAR}input_layernorm.weight")


@fault("a norm before the MLP not compensated", "weights", "norm is not compensated")
def norm_mlp(folder: Path, source: Path) -> None:
    _restore(folder, source, f"{FULL}post_attention_layernorm.weight")


@fault("a norm of the kind `w` not compensated", "weights", "norm is not compensated")
def norm_gated(folder: Path, source: Path) -> None:
    _restore(folder, source, f"{LINEAR}linear_attn.norm.weight")


@fault("a norm `1 + w` folded as `w`", "weights", "folded as if it multiplied by weight")
def norm_of_other_kind(folder: Path, source: Path) -> None:
    name = f"{LINEAR}input_layernorm.weight"
    before = source_tensor(source, name)
    with Weights(folder) as tensors:
        scale = (1 + before) / (1 + tensors[name].float())
        tensors[name] = (before / scale).to(tensors[name].dtype)


@fault("a norm at its initial value", "weights", "initial value")
def norm_initial(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors[f"{LINEAR}post_attention_layernorm.weight"].zero_()


@fault("one channel of a norm wrong", "weights", "input_layernorm")
def norm_channel(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        weight = tensors[f"{LINEAR}input_layernorm.weight"]
        largest = (1 + weight.float()).abs().argmax()
        weight[largest] = 2 * (1 + weight[largest]) - 1


@fault("in_proj_a not scaled with its group", "weights", "not scaled with its group")
def passenger_a(folder: Path, source: Path) -> None:
    _restore(folder, source, f"{LINEAR}linear_attn.in_proj_a.weight")


@fault("in_proj_b not scaled with its group", "weights", "not scaled with its group")
def passenger_b(folder: Path, source: Path) -> None:
    _restore(folder, source, f"{LINEAR}linear_attn.in_proj_b.weight")


@fault("one quantized linear not scaled with its group", "weights", "not scaled with its group")
def linear_not_scaled(folder: Path, source: Path) -> None:
    name = f"{LINEAR}linear_attn.in_proj_z"
    with Weights(folder) as tensors:
        tensors |= rounded(name, source_tensor(source, f"{name}.weight"), group_size_of(folder))


def _undo_rows(folder: Path, source: Path, feeder: str, norm: str, fed: str) -> None:
    """Scale the feeder's columns as its norm says, but leave its rows as they were."""
    made = json.loads((folder / "quantkit.json").read_text(encoding="utf-8"))
    scaled = {row["name"]: row["scaled_by"] for row in made["layers"]}
    assert scaled[fed] not in ("", "none"), f"{fed} carries no scale"
    with Weights(folder) as tensors:
        before = source_tensor(source, f"{norm}.weight")
        scale = (1 + before) / (1 + tensors[f"{norm}.weight"].float())
        tensors |= rounded(feeder, source_tensor(source, f"{feeder}.weight") * scale, group_size_of(folder))


@fault("rows of up_proj not compensated", "weights", "feeder rows are not compensated")
def feeder_up(folder: Path, source: Path) -> None:
    _undo_rows(folder, source, f"{LINEAR}mlp.up_proj", f"{LINEAR}post_attention_layernorm", f"{LINEAR}mlp.down_proj")


@fault("rows of v_proj not compensated", "weights", "feeder rows are not compensated")
def feeder_v(folder: Path, source: Path) -> None:
    _undo_rows(folder, source, f"{FULL}self_attn.v_proj", f"{FULL}input_layernorm", f"{FULL}self_attn.o_proj")


# ---- tensors that should be as they were --------------------------------------------------------------------------


@fault("a missing tensor", "accounting", "missing")
def missing_tensor(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        del tensors[f"{LINEAR}linear_attn.dt_bias"]


@fault("a missing part of a packed linear", "accounting", "do not belong together")
def missing_zeros(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        del tensors[f"{GATE}.qzeros"]


@fault("an extra tensor", "accounting", "extra")
def extra_tensor(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors["model.language_model.layers.9.mlp.gate_proj.weight"] = torch.ones(8, 8, dtype=torch.bfloat16)


@fault("a linear stored twice", "accounting", "twice")
def stored_twice(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors[f"{GATE}.weight"] = source_tensor(source, f"{GATE}.weight").bfloat16()


@fault("a linear of the vision tower in 4 bits", "accounting", "vision side is quantized")
def vision_in_four_bits(folder: Path, source: Path) -> None:
    name = "model.vision_tower.encoder.layers.0.self_attn.q_proj"
    with Weights(folder) as tensors:
        tensors |= rounded(name, tensors.pop(f"{name}.weight").float(), group_size_of(folder))


@fault("the whole vision tower in 4 bits and in the config", "accounting", "vision side is quantized")
def vision_tower_in_four_bits(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        for name in [name.removesuffix(".weight") for name in tensors if name.startswith("model.vision_tower.encoder")]:
            weight = tensors.get(f"{name}.weight")
            if weight is not None and weight.dim() == 2 and weight.shape[1] % 128 == 0:
                tensors |= rounded(name, tensors.pop(f"{name}.weight").float(), group_size_of(folder))
    edit_json(folder / "config.json", _forget_vision)


def _forget_vision(config: dict[str, Any]) -> None:
    skip = config["quantization_config"]["modules_to_not_convert"]
    config["quantization_config"]["modules_to_not_convert"] = [name for name in skip if "vision" not in name]


@fault("A_log at its initial value", "copies", "initial value")
def initial_value(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors[f"{LINEAR}linear_attn.A_log"].zero_()


@fault("one value of the merger changed", "copies", "differs from the source")
def merger_value(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors["model.merger.mlp.0.linear_1.weight"][3, 4] += 0.5


@fault("vision layers exchanged", "copies", "differs from the source")
def vision_layers(folder: Path, source: Path) -> None:
    one, other = (f"model.vision_tower.encoder.layers.{layer}.mlp.fc1.weight" for layer in (0, 1))
    with Weights(folder) as tensors:
        tensors[one], tensors[other] = tensors[other], tensors[one]


@fault("q_norm folded like the norms that may be", "copies", "q_norm")
def head_norm(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors[f"{FULL}self_attn.q_norm.weight"] *= 0.5


@fault("an overflow written as float16", "finite", "infinity")
def overflow(folder: Path, source: Path) -> None:
    name = "model.vision_tower.post_layernorm.weight"
    with Weights(folder) as tensors:
        tensors[name][0] = 1e5
        tensors[name] = tensors[name].half()


@fault("float16 named for values beyond its range", "finite", "overflows float16")
def float16_named(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors["model.vision_tower.post_layernorm.weight"][0] = 1e5
    edit_json(folder / "config.json", lambda config: config.update(dtype="float16"))


@fault("the embedding untied", "tied", "tied in the source")
def untied(folder: Path, source: Path) -> None:
    edit_json(folder / "config.json", lambda config: config.update(tie_word_embeddings=False))


@fault("a tied head that differs", "tied", "differs from the embedding")
def tied_head(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"] * 1.5


# ---- config.json --------------------------------------------------------------------------------------------------


def _config(field: str, value: Any) -> Damage:
    """Set a field, given by its path; ``None`` removes it."""

    def change(config: dict[str, Any]) -> None:
        *place, last = field.split(".")
        for name in place:
            config = config[name]
        assert last in config and config[last] != value, field
        if value is None:
            del config[last]
        else:
            config[last] = value

    return lambda folder, source: edit_json(folder / "config.json", change)


def _skip_list(change: Callable[[list[str]], list[str]]) -> Damage:
    def edit(config: dict[str, Any]) -> None:
        quantization = config["quantization_config"]
        quantization["modules_to_not_convert"] = change(quantization["modules_to_not_convert"])

    return lambda folder, source: edit_json(folder / "config.json", edit)


def _by_pattern(skip: list[str]) -> list[str]:
    """Patterns do for Transformers; vLLM knows only parts of names."""
    return ["model.(vision_tower|merger)" if "model." in name else name for name in skip if name != "vit_merger."]


_QUANT = "quantization_config."
FAULTS += [
    Fault("group_size wrong in the config", _config(_QUANT + "group_size", 32), "config", "group_size"),
    Fault("bits wrong in the config", _config(_QUANT + "bits", 8), "config", "bits"),
    Fault("version wrong in the config", _config(_QUANT + "version", "gemv"), "config", "version"),
    Fault("zero_point missing in the config", _config(_QUANT + "zero_point", None), "config", "zero_point"),
    Fault("zero_point false in the config", _config(_QUANT + "zero_point", False), "scales", "zero_point is false"),
    Fault("another method in the config", _config(_QUANT + "quant_method", "gptq"), "config", "quant_method"),
    Fault("no quantization_config", _config("quantization_config", None), "config", "quantization_config"),
    Fault(
        "no modules_to_not_convert", _config(_QUANT + "modules_to_not_convert", None), "skip list", "Transformers"
    ),
    Fault("an empty skip list breaks vLLM", _skip_list(lambda skip: []), "skip list", "for plain by"),
    Fault(
        "in_proj_a not in the skip list", _skip_list(lambda skip: [name for name in skip if name != "in_proj_a"]),
        "skip list", "in_proj_a",
    ),
    Fault(
        "vLLM's spelling missing", _skip_list(_by_pattern),
        "skip list", "vLLM",
    ),
    Fault(
        "a quantized linear in the skip list", _skip_list(lambda skip: [*skip, f"{LAYERS}2.mlp.down_proj"]),
        "skip list", "down_proj",
    ),
    Fault("half a fused pair in the skip list", _skip_list(lambda skip: [*skip, f"{GATE}"]), "skip list", "refuses"),
    Fault("rope_theta changed", _config("text_config.rope_parameters.rope_theta", 10000), "config", "rope_theta"),
    Fault(
        "partial_rotary_factor changed", _config("text_config.rope_parameters.partial_rotary_factor", 1.0),
        "config", "partial_rotary_factor",
    ),
    Fault("rms_norm_eps changed", _config("text_config.rms_norm_eps", 1e-5), "config", "rms_norm_eps"),
    Fault("image token off by one", _config("image_token_id", 1009), "config", "image_token_id"),
    Fault("downsample mode changed", _config("downsample_mode", "4x"), "config", "downsample_mode"),
    Fault("insert_layer_id changed", _config("insert_layer_id", 2), "config", "insert_layer_id"),
    Fault("a field lost", _config("text_config.layer_types", None), "config", "layer_types"),
]  # fmt: skip


# ---- side files ---------------------------------------------------------------------------------------------------


def _file(name: str, change: Callable[[dict[str, Any]], None]) -> Damage:
    return lambda folder, source: edit_json(folder / name, change)


@fault("another chat template", "side files", "chat_template.jinja")
def chat_template(folder: Path, source: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text(encoding="utf-8").replace("assistant", "Assistant"), encoding="utf-8")


@fault("no generation config", "side files", "generation_config.json")
def no_generation_config(folder: Path, source: Path) -> None:
    (folder / "generation_config.json").unlink()


@fault("tokenizer truncation left on", "side files", "truncation is on")
def truncation(folder: Path, source: Path) -> None:
    content = {"direction": "Right", "max_length": 2048, "strategy": "LongestFirst", "stride": 0}
    edit_json(folder / "tokenizer.json", lambda tokenizer: tokenizer.update(truncation=content))


@fault("tokenizer padding left on", "side files", "padding is on")
def padding(folder: Path, source: Path) -> None:
    content = {"strategy": "BatchLongest", "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    edit_json(folder / "tokenizer.json", lambda tokenizer: tokenizer.update(padding=content))


FAULTS += [
    Fault(
        "image normalisation of another model",
        _file("preprocessor_config.json", lambda content: content.update(image_mean=[0.485, 0.456, 0.406])),
        "side files", "image_mean",
    ),
    Fault(
        "image tokens off by one: the slices' resolution",
        _file("processor_config.json", lambda content: content["image_processor"].update(scale_resolution=126)),
        "side files", "scale_resolution",
    ),
    Fault(
        "fewer slices a picture",
        _file("preprocessor_config.json", lambda content: content.update(max_slice_nums=1)),
        "side files", "max_slice_nums",
    ),
    Fault(
        "fewer frames a video",
        _file("video_preprocessor_config.json", lambda content: content.update(max_num_frames=1)),
        "side files", "max_num_frames",
    ),
    Fault(
        "stop ids changed",
        _file("generation_config.json", lambda content: content.update(eos_token_id=[1005])),
        "side files", "eos_token_id",
    ),
    Fault(
        "a special token renumbered",
        _file("tokenizer.json", lambda content: content["added_tokens"][0].update(special=False)),
        "side files", "added_tokens[0].special",
    ),
]  # fmt: skip


# ---- other layouts ------------------------------------------------------------------------------------------------

# name of a variant in tests/test_integrity.py -> the faults that are planted in it
LAYOUT_FAULTS: dict[str, list[Fault]] = {}
GPTQ, GPTQ_FIXED, GPTQ_THREE, GPTQ_TWO = "gptq, zero points", "gptq", "gptq, 3 bits", "gptq, 2 bits"
COMPRESSED, COMPRESSED_FIXED = "compressed-tensors", "compressed-tensors, symmetric"


def plant_in(variant: str, name: str, check: str, word: str) -> Callable[[Damage], Damage]:
    """Enter the function into the table of ``variant``."""

    def enter(damage: Damage) -> Damage:
        LAYOUT_FAULTS.setdefault(variant, []).append(Fault(name, damage, check, word))
        return damage

    return enter


def _each(folder: Path, suffix: str, change: Callable[[Tensor], Tensor]) -> None:
    with Weights(folder) as tensors:
        for name in [name for name in tensors if name.endswith(suffix)]:
            tensors[name] = change(tensors[name])


@plant_in(GPTQ, "version 2 labelled 1", "weights", "zero points are off by +1")
def version_2(folder: Path, source: Path) -> None:
    def one_more(words: Tensor) -> Tensor:
        return pack_rows((unpack_rows(words, 4) + 1).clamp(max=15), 4)

    _each(folder, ".qzeros", one_more)


@plant_in(GPTQ_FIXED, "version 2 labelled 1, symmetric", "scales", "zero points are not 8 (one is 9)")
@plant_in(GPTQ_FIXED, "version 2 labelled 1, symmetric: the weights", "weights", "zero points are off by +1")
def version_2_fixed(folder: Path, source: Path) -> None:
    version_2(folder, source)


@plant_in(GPTQ_THREE, "version 2 labelled 1, 3 bits", "weights", "zero points")
def version_2_three(folder: Path, source: Path) -> None:
    _each(folder, ".qzeros", lambda words: pack_rows((unpack_rows(words, 3) + 1).clamp(max=7), 3))


@plant_in(GPTQ_THREE, "bits of 3-bit words in the other order", "weights", "linear_attn.in_proj_qkv")
def bit_order(folder: Path, source: Path) -> None:
    def other_end(words: Tensor) -> Tensor:
        found = torch.zeros_like(words)
        for bit in range(32):
            found |= ((words >> bit) & 1) << (31 - bit)
        return found

    _each(folder, ".qweight", other_end)


@plant_in(GPTQ_THREE, "10 codes of 3 bits a word", "weights", "mlp.gate_proj")
def ten_a_word(folder: Path, source: Path) -> None:
    """The codes that a packer writes which starts every word anew: ten in each, two bits lost."""

    def anew(words: Tensor) -> Tensor:
        codes = unpack_rows(words.T.contiguous(), 3).to(torch.int32)
        found = torch.zeros(codes.shape[0], words.shape[0], dtype=torch.int32)
        for place in range(10):
            column = codes[:, place::10]
            width = min(column.shape[1], found.shape[1])
            found[:, :width] |= column[:, :width] << (3 * place)
        return found.T.contiguous()

    _each(folder, ".qweight", anew)


@plant_in(GPTQ, "groups transposed, in the right shape", "weights", "scales are transposed")
@plant_in(GPTQ_THREE, "groups transposed, in the right shape, 3 bits", "weights", "scales")
def groups_transposed(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        scales = tensors[f"{QKV}.scales"]
        tensors[f"{QKV}.scales"] = scales.T.contiguous().view(scales.shape)


@plant_in(GPTQ, "g_idx shuffled", "scales", "mlp.gate_proj.g_idx: channels are not in the order")
def g_idx_shuffled(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        order = tensors[f"{GATE}.g_idx"]
        tensors[f"{GATE}.g_idx"] = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(0))]


@plant_in(GPTQ, "g_idx all zero", "scales", "does not give every group")
def g_idx_zero(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors[f"{GATE}.g_idx"].zero_()


@plant_in(GPTQ, "g_idx too short", "accounting", "do not belong together")
def g_idx_short(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors[f"{GATE}.g_idx"] = tensors[f"{GATE}.g_idx"][:-1]


@plant_in(GPTQ, "scales of another layer", "weights", "scales do not belong")
@plant_in(GPTQ_THREE, "scales of another layer, 3 bits", "weights", "scales do not belong")
@plant_in(GPTQ_TWO, "scales of another layer, 2 bits", "weights", "scales do not belong")
def scales_of_another_layer(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors[f"{GATE}.scales"] = tensors[f"{LAYERS}2.mlp.gate_proj.scales"].clone()


@plant_in(COMPRESSED, "scales of another layer, compressed-tensors", "weights", "scales do not belong")
def compressed_scales(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors[f"{GATE}.weight_scale"] = tensors[f"{LAYERS}2.mlp.gate_proj.weight_scale"].clone()


@plant_in(COMPRESSED_FIXED, "the sign's offset forgotten", "weights", "linear_attn.in_proj_qkv")
def sign_offset(folder: Path, source: Path) -> None:
    """code - 8 in two's complement, as the format's own numbers are before it packs them."""
    _each(folder, ".weight_packed", lambda words: pack_rows((unpack_rows(words, 4) + 8) % 16, 4))


@plant_in(COMPRESSED, "zero points off by one, compressed-tensors", "weights", "zero points are off by +1")
def compressed_zeros(folder: Path, source: Path) -> None:
    def one_more(words: Tensor) -> Tensor:
        zeros = (unpack_rows(words.T.contiguous(), 4) + 1).clamp(max=15)
        return pack_rows(zeros, 4).T.contiguous()

    _each(folder, ".weight_zero_point", one_more)


@plant_in(COMPRESSED, "zero points of too few groups", "accounting", "do not belong together")
def compressed_zeros_cut(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        tensors[f"{GATE}.weight_zero_point"] = tensors[f"{GATE}.weight_zero_point"][:-1]


@plant_in(COMPRESSED, "a linear of another layer, compressed-tensors", "weights", "layer 2")
def compressed_layer(folder: Path, source: Path) -> None:
    with Weights(folder) as tensors:
        for suffix in ("weight_packed", "weight_scale", "weight_zero_point"):
            tensors[f"{GATE}.{suffix}"] = tensors[f"{LAYERS}2.mlp.gate_proj.{suffix}"].clone()


def _quantization(change: Callable[[dict[str, Any]], None]) -> Damage:
    return lambda folder, source: edit_json(
        folder / "config.json", lambda config: change(config["quantization_config"])
    )


def _weights_of(**changes: Any) -> Damage:
    return _quantization(lambda config: config["config_groups"]["group_0"]["weights"].update(changes))


def _keep_only(word: str) -> Damage:
    """Forget every entry of ``ignore`` with this word."""
    return _quantization(lambda config: config.update(ignore=[one for one in config["ignore"] if word not in one]))


def _dynamic(pattern: str, **changes: Any) -> Damage:
    return _quantization(lambda config: config.update(dynamic=config["dynamic"] | {pattern: changes}))


for _variant, _entries in {
    GPTQ: [
        Fault("other bits in dynamic", _dynamic(r"+:.*1\.mlp\.down_proj$", bits=8), "config", "bits is 8"),
        Fault("other groups in dynamic", _dynamic(r"+:.*1\.mlp\.down_proj$", group_size=32), "config", "group_size"),
        Fault("sym of a file with zero points", _quantization(lambda c: c.update(sym=True)), "scales", "sym is true"),
        Fault("desc_act missing", _quantization(lambda c: c.pop("desc_act")), "config", "desc_act"),
        Fault("a quantized linear left out", _dynamic(r"-:.*2\.mlp\.down_proj", bits=4), "skip list", "down_proj"),
        Fault("no pattern in dynamic", _dynamic("+:(", bits=4), "config", "no regular expression"),
    ],
    COMPRESSED: [
        Fault("num_bits wrong", _weights_of(num_bits=8), "config", "bits is 8"),
        Fault("group_size wrong, compressed-tensors", _weights_of(group_size=32), "config", "group_size is 32"),
        Fault("symmetric wrong", _weights_of(symmetric=True), "config", "symmetric is True"),
        Fault("vision forgotten in ignore", _keep_only("vision_tower"), "skip list", "Transformers"),
    ],
    COMPRESSED_FIXED: [Fault("asymmetric named", _weights_of(symmetric=False), "config", "symmetric is False")],
}.items():
    LAYOUT_FAULTS.setdefault(_variant, []).extend(_entries)
