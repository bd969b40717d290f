"""Prepared samples on disk, so that a second run starts at once and no run holds every picture in memory.

    CACHE/prepared/KEY/00000.safetensors ...   the inputs of one sample; pictures as codes where that is exact
    CACHE/prepared/KEY/samples.json            the rest, SHA-256 of each file, and of each picture's source file

KEY is a SHA-256 over the sources' contents, every option, the processor's and tokenizer's files and the versions of the
libraries that make the pictures. A folder takes its name only when it is complete. What does not agree with its hashes,
or was made of pictures that have changed since, is made anew.

Pictures: the processor computes ``(x / 255 - mean) / std`` from integers x, so a tensor of pixels has at most 256
values (one mean and std for all channels, as SigLIP has). `_encode` stores the codes (uint8) and the values ("palette",
float32 [256]) wherever decoding gives the same bits, a fourth of the size; otherwise the tensor itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantkit.calibration.images import Decoder
from quantkit.calibration.prepare import Sample
from quantkit.errors import QuantkitError

log = logging.getLogger(__name__)

FOLDER = "prepared"
INDEX = "samples.json"
VERSION = 2
LIMIT = 10_000_000_000  # bytes of all entries together; the least recently used ones go first
CODES = 256
PLAIN_ENTRY = ("fingerprint", "items", "pictures", "skipped", "counts", "read", "too_long")
# fields of a sample as they are
PLAIN = ("id", "modality", "language", "downsample_mode", "prompt_length", "source", "shortened")


@dataclass
class Entry:
    """What an entry says beside the inputs; `samples` and `files` go together, one file a sample."""

    fingerprint: str
    items: list[str]
    pictures: list[str]
    skipped: list[str]
    counts: list[dict[str, Any]]
    samples: list[Sample]
    read: dict[str, list[str]] = field(default_factory=dict)  # files of pictures -> kind, SHA-256
    too_long: int = 0  # conversations left out because no cut of them fits


class StoredInputs(Mapping[str, Tensor]):
    """The inputs of a sample in a file: token ids stay in memory, the rest is read at each look."""

    def __init__(self, path: Path, names: tuple[str, ...], input_ids: Tensor, keep: Any = None) -> None:
        self.path, self.names, self.input_ids = path, names, input_ids
        self._keep = keep  # a temporary folder lives as long as any of its samples

    def __getitem__(self, name: str) -> Tensor:
        if name == "input_ids":
            return self.input_ids
        if name not in self.names:
            raise KeyError(name)
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            return _decode(file.get_tensor(name), file.get_tensor(f"{name}.palette") if name in _pixels(file) else None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _pixels(file: Any) -> set[str]:
    return {key.removesuffix(".palette") for key in file.keys() if key.endswith(".palette")}  # noqa: SIM118


class Store:
    """Takes the samples of one run; `finish` gives them back backed by their files.

    With a cache folder the files stay there under `key`; without one they live in a temporary folder as long as the
    samples do. A full disk or a folder that cannot be written costs the cache, not the run.
    """

    def __init__(self, cache: Path | None, key: str) -> None:
        self.target = None if cache is None else cache / FOLDER / key
        parent = None
        if self.target is not None:
            try:
                self.target.parent.mkdir(parents=True, exist_ok=True)
                parent = self.target.parent
                _sweep(parent)
            except OSError as error:
                log.warning("%s: prepared samples are not cached (%s)", cache, error.strerror)
                self.target = None
        self._kept = tempfile.TemporaryDirectory(prefix="partial-", dir=parent, ignore_cleanup_errors=True)
        self.folder = Path(self._kept.name)
        self.rows: list[dict[str, Any]] = []

    def add(self, sample: Sample) -> Sample:
        """Write the sample's inputs; returns it backed by the file."""
        from safetensors.torch import save_file

        name = f"{len(self.rows):05d}.safetensors"
        tensors: dict[str, Tensor] = {"vision_mask": sample.vision_mask}
        for key, tensor in sample.inputs.items():
            tensors |= _encode(key, tensor)
        path = self.folder / name
        save_file(tensors, path)
        self.rows.append({"file": name, "sha256": _sha256(path), **_row(sample)})
        return _backed(sample, path, self._kept)

    def finish(self, entry: Entry, order: list[int]) -> Entry:
        """Give the entry its name in the cache; `order`: the samples added, as they are to be listed."""
        if self.target is None:
            return entry
        rows = [self.rows[index] for index in order]
        content = {"version": VERSION, **{name: getattr(entry, name) for name in PLAIN_ENTRY}, "samples": rows}
        try:
            (self.folder / INDEX).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(self.target, ignore_errors=True)
            os.rename(self.folder, self.target)
        except OSError as error:
            log.warning("%s: prepared samples are not cached (%s)", self.target, error.strerror)
            return entry
        samples = [_backed(sample, self.target / row["file"]) for sample, row in zip(entry.samples, rows, strict=True)]
        _make_room(self.target)
        return Entry(**{**vars(entry), "samples": samples})


def load(cache: Path, key: str) -> Entry | None:
    """The entry of `key`, or None where there is none that is whole and still true."""
    folder = cache / FOLDER / key
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            return None
        for reference, (kind, digest) in content["read"].items():
            if Decoder(str(folder)).digest(reference, kind) != digest:
                log.info("%s has changed since its samples were prepared", reference)
                return None
        samples = [_read_sample(folder, row) for row in content["samples"]]
        os.utime(folder / INDEX)
        named = {name: content[name] for name in PLAIN_ENTRY}
        return Entry(samples=samples, **named)
    except (FileNotFoundError, QuantkitError):  # no such entry, or a picture of it is gone
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: damaged, prepared again (%s)", folder, error)
        return None


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 by name of the files that make a processor and tokenizer: all but the weights and the model's config."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".txt", ".model") and not path.name.endswith(".index.json"):
            if path.name in ("config.json", "generation_config.json", "quantkit.json", "report.json"):
                continue
            found[path.name] = _sha256(path)
    return found


def _row(sample: Sample) -> dict[str, Any]:
    row = {name: getattr(sample, name) for name in PLAIN}
    return row | {"inputs": list(sample.inputs), "sizes": sample.sizes}


def _read_sample(folder: Path, row: dict[str, Any]) -> Sample:
    from safetensors import SafetensorError, safe_open

    path = folder / Path(row["file"]).name
    if _sha256(path) != row["sha256"]:
        raise ValueError(f"{path.name} is not what was written")
    try:
        with safe_open(path, framework="pt") as file:
            ids, vision = file.get_tensor("input_ids"), file.get_tensor("vision_mask")
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return Sample(
        inputs=StoredInputs(path, tuple(row["inputs"]), ids),
        vision_mask=vision,
        sizes=tuple((int(width), int(height)) for width, height in row["sizes"]),
        **{name: row[name] for name in PLAIN},
    )


def _backed(sample: Sample, path: Path, keep: Any = None) -> Sample:
    stored = StoredInputs(path, tuple(sample.inputs), sample.input_ids, keep)
    return Sample(**{**vars(sample), "inputs": stored})


def _encode(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The tensor under its name, or its codes with their palette where that gives back the same bits."""
    plain = {name: tensor.contiguous()}
    if not name.startswith("pixel") or tensor.dtype != torch.float32 or not tensor.numel():
        return plain
    low, high = tensor.aminmax()
    for bottom, top in ((-1.0, 1.0), (float(low), float(high))):
        scale = (CODES - 1) / (top - bottom) if top > bottom else 0.0
        codes = ((tensor - bottom) * scale).round_().clamp_(0, CODES - 1).to(torch.uint8)
        palette = torch.zeros(CODES)
        palette[codes.flatten().long()] = tensor.flatten()
        if torch.equal(palette[codes.int()], tensor):
            return {name: codes, f"{name}.palette": palette}
    return plain


def _decode(tensor: Tensor, palette: Tensor | None) -> Tensor:
    return tensor if palette is None else palette[tensor.int()]


def _sweep(parent: Path) -> None:
    """Remove what killed runs left behind, once it is a day old."""
    for folder in parent.glob("partial-*"):
        if folder.stat().st_mtime < time.time() - 86_400:
            shutil.rmtree(folder, ignore_errors=True)


def _make_room(newest: Path) -> None:
    entries = []
    for folder in newest.parent.iterdir():
        index = folder / INDEX
        if folder != newest and index.is_file():
            size = sum(file.stat().st_size for file in folder.iterdir())
            entries.append((index.stat().st_mtime, size, folder))
    left = LIMIT - sum(file.stat().st_size for file in newest.iterdir())
    for _, size, folder in sorted(entries, reverse=True):
        left -= size
        if left < 0:
            shutil.rmtree(folder, ignore_errors=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
