"""Variants of the bundled model, made here without the quantizer: plain rounding of every language-model MLP."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

import quantkit
from quantkit.formats import Contents, awq
from quantkit.grid import GridSpec, full_range, grid_of, round_to_grid
from quantkit.model import LAYERS_PREFIX, UNQUANTIZED_MODULES, sglang_names

TINY = Path(quantkit.__file__).parent / "data" / "tiny"
SPEC = GridSpec(bits=4, group_size=64)
LINEAR = "model.language_model.layers.0.mlp.down_proj"
LAYERS = json.loads((TINY / "config.json").read_text())["text_config"]["layer_types"]
_KEPT = [
    f"model.language_model.layers.{number}.{linear}"
    for number, kind in enumerate(LAYERS)
    for linear in (
        ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.out_proj")
        if kind == "linear_attention"
        else tuple(f"self_attn.{letter}_proj" for letter in "qkvo")
    )
]
_SKIPPED = [*UNQUANTIZED_MODULES, *_KEPT, *sglang_names(_KEPT)]
AWQ_CONFIG = {"quantization_config": awq.quantization_config(Contents(SPEC, {}, _SKIPPED, LAYERS_PREFIX, "test"))}

Tensors = dict[str, Tensor]


def variant(folder: Path, change: Callable[[Tensors], object] | None = None, config: dict | None = None) -> Path:
    """A copy of tiny, its tensors passed through `change(dict)`, its config updated."""
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("SHA256SUMS", "README*"))
    tensors = load_file(folder / "model.safetensors")
    if change:
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def quantize(tensors: Tensors) -> Tensors:
    """Round every language-model MLP to nearest, in place of its weight; returns what the integers stand for."""
    meant = {}
    for name in [n for n in tensors if ".language_model.layers." in n and ".mlp." in n]:
        linear = name.removesuffix(".weight")
        weight = tensors.pop(name).float()
        packed = round_to_grid(weight, *grid_of(full_range(weight, SPEC), SPEC), SPEC)
        meant[name] = packed.dequantize()
        tensors.update(awq.pack(linear, packed))
    return meant


def state_answers(folder: Path, answer: Callable[[int, str], str] | None = None) -> Path:
    """A copy of a data folder beside it whose rows state their last assistant text as the answer."""
    target = folder.with_name(folder.name + "-asked")
    shutil.copytree(folder, target)
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        text = row["messages"][-1]["content"][0]["text"]
        row["answer"] = answer(number, text) if answer else text
    (target / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return target
