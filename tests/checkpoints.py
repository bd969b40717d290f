"""Small checkpoint folders for tests: valid in form, not a model."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

EMBEDDING = "model.language_model.embed_tokens.weight"
CONFIG = {"model_type": "minicpmv4_6", "tie_word_embeddings": True, "text_config": {"vocab_size": 8}}


def some_tensors(seed: int = 0) -> dict[str, Tensor]:
    """A few named tensors of the dtypes that a source may have."""
    generator = torch.Generator().manual_seed(seed)
    return {
        EMBEDDING: torch.randn(8, 6, generator=generator).bfloat16(),
        "model.language_model.layers.0.mlp.up_proj.weight": torch.randn(5, 6, generator=generator).bfloat16(),
        "model.language_model.layers.1.mlp.up_proj.weight": torch.randn(5, 6, generator=generator).half(),
        "model.language_model.layers.0.linear_attn.A_log": torch.randn(3, generator=generator),
    }


def write_side_files(folder: Path, config: dict[str, object] | None = None) -> None:
    """The files that every checkpoint needs beside its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "generation_config.json"):
        (folder / name).write_text(json.dumps({"file": name}))
    (folder / "chat_template.jinja").write_text("{{ messages }}\n")


def write_checkpoint(
    folder: Path,
    tensors: dict[str, Tensor] | None = None,
    config: dict[str, object] | None = None,
    shards: int = 1,
) -> Path:
    """A whole folder, its weights written by the safetensors library; more than one shard come with an index."""
    write_side_files(folder, config)
    tensors = some_tensors() if tensors is None else tensors
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names, weight_map = list(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, weight_map)
    return folder


def read_index(folder: Path) -> dict[str, str]:
    """The index's weight map."""
    return dict(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"])


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    """An index with this weight map."""
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def raw_file(path: Path, header: object, data: bytes = b"") -> None:
    """A safetensors file with this header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
