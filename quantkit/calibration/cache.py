"""Prepared samples on disk, so that a second run starts at once and no run holds every picture in memory.

    CACHE/prepared/KEY/00000.safetensors ...   the inputs of one sample; pictures as codes (see pixels)
    CACHE/prepared/KEY/samples.json            the rest, each sample's digest, SHA-256 of each picture's source file

KEY is a SHA-256 over the sources' contents, every option, the processor's and tokenizer's files and the versions of the
libraries that make the pictures. A folder takes its name only when it is complete. What does not agree with its hashes,
or was made of pictures that have changed since, is made anew. A mix that bad rows were left out of is not kept: nothing
would tell that they have been mended.
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from quantkit.calibration import pixels
from quantkit.calibration.images import Decoder
from quantkit.calibration.prepare import Sample, packed_sample, sample_digest
from quantkit.calibration.shelf import PARTIAL
from quantkit.errors import QuantkitError

log = logging.getLogger(__name__)

FOLDER = "prepared"
INDEX = "samples.json"
VERSION = 4
LIMIT = 10_000_000_000  # bytes of all entries together; the least recently used ones go first
PLAIN_ENTRY = ("fingerprint", "items", "pictures", "counts", "read", "too_long")
# fields of a sample as they are
PLAIN = ("id", "modality", "language", "downsample_mode", "prompt_length", "source", "shortened")


@dataclass
class Entry:
    """What an entry says beside the inputs; `samples` and `files` go together, one file a sample."""

    fingerprint: str
    items: list[str]
    pictures: list[str]
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
            palette = name + pixels.PALETTE
            return pixels.unpack(
                file.get_tensor(name), file.get_tensor(palette) if palette in set(file.keys()) else None
            )

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Store:
    """Takes the samples of one run; `finish` gives them back backed by their files.

    With a cache folder the files stay there under `key`; without one they live in a temporary folder as long as the
    samples do. A full disk or a folder that cannot be written costs the cache, not the run: samples that cannot be
    written stay in memory.
    """

    def __init__(self, cache: Path | None, key: str) -> None:
        self.target = None if cache is None else cache / FOLDER / key
        kept = None
        if self.target is not None:
            parent = self.target.parent
            try:
                parent.mkdir(parents=True, exist_ok=True)
                _sweep(parent)
                kept = _temporary(parent)
            except OSError as error:
                self._give_up(error)
        try:
            self._kept = kept or _temporary(None)
        except OSError as error:
            raise QuantkitError(f"no temporary folder can be made ({error.strerror or error}); set TMPDIR") from error
        self.folder = Path(self._kept.name)
        self.rows: dict[str, dict[str, Any]] = {}  # by file

    def add(self, sample: Sample) -> tuple[Sample, str]:
        """Write the sample's inputs; returns it backed by the file, and its digest."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        name = f"{len(self.rows):05d}.safetensors"
        packed = packed_sample(sample)
        digest = sample_digest(sample, packed)
        path = self.folder / name
        try:
            save_file(packed, path)
        except (OSError, SafetensorError) as error:
            path.unlink(missing_ok=True)
            self._give_up(error)
            return replace(sample, messages=[]), digest
        self.rows[name] = {"file": name, "digest": digest, **_row(sample)}
        return _backed(sample, path, self._kept), digest

    def finish(self, entry: Entry) -> Entry:
        """Give the entry its name in the cache; its samples are those that were added, in any order."""
        if self.target is None:
            return entry
        names = [sample.inputs.path.name for sample in entry.samples if isinstance(sample.inputs, StoredInputs)]
        rows = [self.rows[name] for name in names]
        content = {"version": VERSION, **{name: getattr(entry, name) for name in PLAIN_ENTRY}, "samples": rows}
        try:
            (self.folder / INDEX).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(self.target, ignore_errors=True)
            os.rename(self.folder, self.target)
        except OSError as error:
            self._give_up(error)
            return entry
        samples = [_backed(sample, self.target / name) for sample, name in zip(entry.samples, names, strict=True)]
        _make_room(self.target)
        return replace(entry, samples=samples)

    def _give_up(self, error: Exception) -> None:
        """Keep nothing in the cache; told once."""
        if self.target is not None:
            place, said = self.target.parent.parent, getattr(error, "strerror", None) or error
            log.warning("%s: prepared samples are not cached (%s)", place, said)
        self.target = None


def _temporary(parent: Path | None) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix=PARTIAL, dir=parent, ignore_cleanup_errors=True)


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
    try:
        with safe_open(path, framework="pt") as file:
            packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    sample = Sample(
        inputs=StoredInputs(path, tuple(row["inputs"]), packed["input_ids"]),
        vision_mask=packed["vision_mask"],
        sizes=tuple((int(width), int(height)) for width, height in row["sizes"]),
        **{name: row[name] for name in PLAIN},
    )
    if sample_digest(sample, packed) != row["digest"]:
        raise ValueError(f"{path.name} is not what was written")
    return sample


def _backed(sample: Sample, path: Path, keep: Any = None) -> Sample:
    """The sample with its inputs in a file, and without the messages, which may hold its pictures."""
    stored = StoredInputs(path, tuple(sample.inputs), sample.input_ids, keep)
    return replace(sample, inputs=stored, messages=[])


def _sweep(parent: Path) -> None:
    """Remove what killed runs left behind, once it is a day old."""
    for folder in parent.glob(PARTIAL + "*"):
        if folder.stat().st_mtime < time.time() - 86_400:
            shutil.rmtree(folder, ignore_errors=True)


def _make_room(newest: Path) -> None:
    """Remove the entries used longest ago beyond `LIMIT`; what another run removes at the same time is passed over."""
    entries = []
    for folder in newest.parent.iterdir():
        index = folder / INDEX
        try:
            if folder != newest and index.is_file():
                size = sum(file.stat().st_size for file in folder.iterdir())
                entries.append((index.stat().st_mtime, size, folder))
        except FileNotFoundError:
            continue
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
