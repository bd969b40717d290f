"""A variant's folder as a card and a publication see it: what kind it is, its weight files, its fingerprints now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.checkpoint import INDEX, Checkpoint, open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.tensorfile import sha256_of, strict_json
from quantkit.verify.ggufset import file_fingerprint, is_vision, text_parts

if TYPE_CHECKING:
    from quantkit.verify.report import Model

PROVENANCE = "quantkit.json"


@dataclass(frozen=True)
class Variant:
    """checkpoint: None for GGUF files. texts: every GGUF text model by its first file's name, with all its parts.

    record: quantkit.json.
    """

    path: Path
    checkpoint: Checkpoint | None
    texts: dict[str, list[Path]] = field(default_factory=dict)
    visions: list[Path] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def is_gguf(self) -> bool:
        return self.checkpoint is None

    @property
    def method(self) -> str:
        """The layout that readers know it by: awq, gptq, compressed-tensors, bitsandbytes, gguf."""
        return "gguf" if self.checkpoint is None else str(self.checkpoint.quantization_method)

    @cached_property
    def weights(self) -> list[Path]:
        """Every weight file, in the order of the names."""
        if self.checkpoint is not None:
            return sorted({self.checkpoint.info(name).file for name in self.checkpoint.tensor_names})
        return sorted([part for parts in self.texts.values() for part in parts] + self.visions)

    @property
    def index(self) -> Path | None:
        """The index of the shards, where there is one."""
        path = self.path / INDEX
        return path if self.checkpoint is not None and path.is_file() else None

    def covered(self, model: Model) -> list[Path]:
        """The weight files that a report's candidate is, as they are now; none where it is something else."""
        if self.checkpoint is not None:
            return self.weights if model.fingerprint == self._fingerprint else []
        named = (model.quantization or {}).get("files")
        names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
        known = {file.name: file for file in self.weights}
        files = [known[name] for name in names if name in known]
        same = bool(files) and len(files) == len(names) and self._of(files) == model.fingerprint
        return files if same else []

    def knows(self, fingerprint: str) -> bool:
        """Whether a fingerprint is that of the files as they are now: of all, or of a text model with or without a
        vision file."""
        return fingerprint in self._fingerprints

    @property
    def fingerprint(self) -> str:
        """Of all weight files together."""
        return self._fingerprint if self.checkpoint is not None else self._of(self.weights)

    @cached_property
    def _fingerprint(self) -> str:
        assert self.checkpoint is not None
        return self.checkpoint.fingerprint()

    @cached_property
    def _fingerprints(self) -> set[str]:
        if self.checkpoint is not None:
            return {self._fingerprint}
        sets = [self.weights]
        for parts in self.texts.values():
            sets += [parts[:1], parts, *([*parts, vision] for vision in self.visions)]
        return {self._of(files) for files in sets}

    def _of(self, files: Sequence[Path]) -> str:
        """The fingerprint of some of the files; each is read once."""
        return file_fingerprint(files, self._digests.__getitem__)

    @cached_property
    def _digests(self) -> dict[Path, str]:
        return {file: sha256_of(file) for file in self.weights}


def open_variant(folder: str | Path) -> Variant:
    """Read what a folder holds, weights' headers alone; QuantkitError where it is no variant."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        what = "a file; give the folder that holds it" if path.is_file() else "no such folder"
        raise QuantkitError(f"{path}: {what}")
    path = path.resolve()
    files = sorted(path.glob("*.gguf"))
    if files and not (path / "config.json").exists():
        return _gguf(path, files)
    checkpoint = open_checkpoint(path, verify_checksums=False)
    if not checkpoint.is_quantized:
        raise QuantkitError(f"{path}: is not quantized; give the folder of a variant")
    return Variant(path, checkpoint, record=read_record(path))


def _gguf(path: Path, files: list[Path]) -> Variant:
    texts: dict[str, list[Path]] = {}
    for file in files:
        if not is_vision(file):
            parts = text_parts(file)
            texts.setdefault(parts[0].name, parts)
    if not texts:
        raise QuantkitError(f"{path}: holds no text model, only {files[0].name}")
    return Variant(path, None, texts, [file for file in files if is_vision(file)], read_record(path))


def read_record(path: Path) -> dict[str, Any]:
    """quantkit.json of a folder; {} where there is none, QuantkitError for a damaged one."""
    file = path / PROVENANCE
    if not file.is_file():
        return {}
    try:
        value = strict_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise QuantkitError(f"{file}: no valid JSON ({' '.join(str(error).split())}); delete it or mend it") from error
    if not isinstance(value, dict):
        raise QuantkitError(f"{file}: holds no JSON object; delete it or mend it")
    return value


def part(record: dict[str, Any], *names: str) -> dict[str, Any]:
    """A mapping inside a record, {} where there is none."""
    value: Any = record
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def read_json(path: Path) -> Any:
    """A JSON file that another command wrote; QuantkitError where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QuantkitError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise QuantkitError(f"{path}: no valid JSON ({' '.join(str(error).split())}); write it again") from error
