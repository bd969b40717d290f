"""Statistics on disk: one pass through the model serves any number of variants.

A folder with ``config.json`` (the key below, and what the numbers are) and safetensors shards with, for every block,
group and modality, ``gram`` (the upper triangle with the diagonal, row by row, float32), ``abs_sum`` (float32 [in]) and
``counts`` (float32 [2]: tokens, largest |x|). The key refuses a file of another model, dtype or calibration set.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from quantkit.errors import QuantkitError
from quantkit.model import Block, ModelMap
from quantkit.output import ShardWriter, atomic_output
from quantkit.statistics import MODALITIES, BlockStatistics, InputStatistics, ModalityStatistics
from quantkit.tensorfile import verify_checksums

KIND = "quantkit statistics"
VERSION = 1


@dataclass(frozen=True)
class Key:
    """What statistics are statistics of: fingerprints of the model and of the samples, dtype of the pass."""

    model: str
    data: str
    dtype: str


def record(
    folder: Path, overwrite: bool, key: Key, model_map: ModelMap, statistics: Iterator[BlockStatistics]
) -> Iterator[BlockStatistics]:
    """Pass ``statistics`` on and write them to ``folder``, which is there only once all blocks are in it."""
    with atomic_output(folder, overwrite) as partial:
        with ShardWriter(partial, _specs(model_map)) as writer:
            for found in statistics:
                for name, tensor in _flatten(found).items():
                    writer.add(name, tensor)
                yield found
            writer.finish()
        content = {"kind": KIND, "version": VERSION, "key": asdict(key)}
        (partial / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read(folder: Path, key: Key, model_map: ModelMap, device: str = "cpu") -> Iterator[BlockStatistics]:
    """The statistics in ``folder`` on ``device``, a block at a time.

    Raises QuantkitError unless they are those of ``key``, and for a file that is missing or damaged.
    """
    from safetensors import SafetensorError

    check_key(folder, key)
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    verify_checksums(folder, [*shards, "model.safetensors.index.json"] if len(shards) > 1 else shards)
    try:
        yield from _read(folder, model_map, device)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise QuantkitError(f"--stats {folder}: missing or damaged ({error}); gather them again") from error


def _read(folder: Path, model_map: ModelMap, device: str) -> Iterator[BlockStatistics]:
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"] if index.exists() else {}
    for block in model_map.blocks:
        inputs = {}
        for group in block.groups:
            parts = {}
            for modality in MODALITIES:
                prefix = f"{block.index}.{group.name}.{modality}."
                with safe_open(folder / where.get(prefix + "gram", "model.safetensors"), framework="pt") as file:
                    upper, abs_sum, counts = (file.get_tensor(prefix + name) for name in ("gram", "abs_sum", "counts"))
                gram = _square(upper, group.in_features).to(device)
                sums = abs_sum.double().to(device)
                parts[modality] = ModalityStatistics(gram, sums, int(counts[0]), float(counts[1]))
            inputs[group.name] = InputStatistics(parts)
        yield BlockStatistics(block.index, inputs)


def check_key(folder: Path, key: Key) -> None:
    """Raise QuantkitError unless ``folder`` holds statistics of ``key``."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QuantkitError(f"--stats {folder}: no statistics folder of quantkit (config.json: {error})") from error
    if not isinstance(content, dict) or content.get("kind") != KIND or content.get("version") != VERSION:
        raise QuantkitError(f"--stats {folder}: config.json does not describe statistics of this version of quantkit")
    for name, what in (("model", "another model"), ("data", "another calibration set"), ("dtype", "another dtype")):
        if content.get("key", {}).get(name) != getattr(key, name):
            raise QuantkitError(
                f"--stats {folder}: these statistics are of {what}; gather them again with --save-stats"
            )


def _flatten(found: BlockStatistics) -> dict[str, Tensor]:
    tensors = {}
    for group, inputs in found.inputs.items():
        for modality, part in inputs.by_modality.items():
            prefix = f"{found.index}.{group}.{modality}."
            tensors[prefix + "gram"] = part.gram[_upper(part.gram.shape[0])].cpu()
            tensors[prefix + "abs_sum"] = part.abs_sum.float().cpu()
            tensors[prefix + "counts"] = torch.tensor([part.tokens, part.abs_max], dtype=torch.float32)
    return tensors


def _specs(model_map: ModelMap) -> dict[str, tuple[torch.dtype | str, tuple[int, ...]]]:
    specs: dict[str, tuple[torch.dtype | str, tuple[int, ...]]] = {}
    for block in model_map.blocks:
        for name, size in _inputs(block):
            specs[f"{name}.gram"] = ("F32", (size * (size + 1) // 2,))
            specs[f"{name}.abs_sum"] = ("F32", (size,))
            specs[f"{name}.counts"] = ("F32", (2,))
    return specs


def _inputs(block: Block) -> Iterator[tuple[str, int]]:
    for group in block.groups:
        for modality in MODALITIES:
            yield f"{block.index}.{group.name}.{modality}", group.in_features


def _upper(size: int) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool).triu_()


def _square(upper: Tensor, size: int) -> Tensor:
    gram = torch.zeros(size, size)
    gram[_upper(size)] = upper
    return gram + gram.triu(1).T
