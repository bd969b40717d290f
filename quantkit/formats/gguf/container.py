"""The GGUF container: metadata with types, tensors of any ggml type, one file or a set of splits.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little endian; version 2 is read too)::

    magic "GGUF", uint32 version, uint64 tensors, uint64 keys
    keys      text, uint32 kind, value          an array: uint32 kind of its items, uint64 count, items
    tensors   text, uint32 axes, uint64 sizes innermost first, uint32 type, uint64 offset from the start of the data
    data      each tensor's bytes, padded to `ALIGNMENT`, in the order above; the data starts aligned as well

A text is a uint64 count of bytes and UTF-8. A split set is files NAME-00001-of-00003.gguf; each holds ``split.no``,
``split.count`` and ``split.tensors.count``, the first holds all other keys.

It differs from the `gguf` package in that no tensor is ever held: all are declared first and then written in pieces, in
any order. `reader` reads what this writes.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.errors import QuantkitError
from quantkit.formats.gguf.types import TensorType

if TYPE_CHECKING:
    import torch

    Bytes = bytes | bytearray | memoryview | np.ndarray[Any, Any] | torch.Tensor

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
MAX_NAME_BYTES, MAX_AXES, MAX_FILES = 63, 4, 65535  # ggml's; split.count is a uint16
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
ALIGNMENT_KEY = "general.alignment"

# kind -> number in the file, struct's letter
KINDS = {
    "uint8": (0, "B"), "int8": (1, "b"), "uint16": (2, "H"), "int16": (3, "h"), "uint32": (4, "I"), "int32": (5, "i"),
    "float32": (6, "f"), "bool": (7, "?"), "string": (8, ""), "uint64": (10, "Q"), "int64": (11, "q"),
    "float64": (12, "d"),
}  # fmt: skip
ARRAY = 9
FIXED = struct.Struct("<4sIQQ")
LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Value:
    """A metadata value: ``kind`` is a key of `KINDS`, of an array (``value`` is a list) that of its items."""

    kind: str
    value: Any

    @classmethod
    def of(cls, value: object) -> Value:
        """A plain Python value in the kind that llama.cpp's converter gives it.

        int: uint32, items of a list of them int32; float: float32; bool; str. ValueError where a kind must be said.
        """
        if isinstance(value, Value):
            return value
        found = {type(item) for item in value} if isinstance(value, list) else {type(value)}
        kinds = {bool: "bool", int: "int32" if isinstance(value, list) else "uint32", float: "float32", str: "string"}
        if len(found) != 1 or not found <= set(kinds):
            raise ValueError(f"no kind follows from {value!r:.80}; say it: Value(kind, value)")
        return cls(kinds[found.pop()], value)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor: ``shape`` as in torch, outermost first; ``start``, its first byte counted from that of ``file``."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    file: Path | None = None
    start: int = 0

    @property
    def nbytes(self) -> int:
        width = self.shape[-1] if self.shape else 1
        return math.prod(self.shape[:-1]) * self.type.row_bytes(width)


def aligned(position: int, alignment: int = ALIGNMENT) -> int:
    return -(-position // alignment) * alignment


# ---- planning -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FilePlan:
    """A file to be written: its name, everything before the data, its tensors with their places, its size."""

    name: str
    header: bytes
    tensors: tuple[TensorInfo, ...]
    nbytes: int


def plan_files(
    name: str, metadata: Mapping[str, object], tensors: Sequence[TensorInfo], max_file_bytes: int | None = None
) -> list[FilePlan]:
    """Lay out ``name`` (NAME.gguf), or its splits where one file would take more than ``max_file_bytes``.

    metadata: `Value`s, or plain values as `Value.of` takes them. Tensors are written in their order; files are cut by
    their whole size, header included, and only one tensor that is too large makes a file larger. ValueError for a name
    that is taken, too long or empty, a row that its type's blocks do not divide, or a value that its kind cannot hold.
    """
    _check_declared(metadata, tensors)
    keys = _encode(metadata)
    others = FIXED.size + len(_encode(_split_values(0, 1, 1)))
    sizes = [len(_entry(info, 0)) + aligned(info.nbytes) for info in tensors]
    whole = _layout(name, keys, len(metadata), tensors)
    if max_file_bytes is None or whole.nbytes <= max_file_bytes:
        return [whole]
    groups = cut(sizes, max_file_bytes - ALIGNMENT, others + len(keys), others)  # a header is padded
    if len(groups) == 1:
        return [whole]
    if len(groups) > MAX_FILES:
        raise QuantkitError(
            f"--split-max-size {max_file_bytes}: makes {len(groups)} files, a set holds at most {MAX_FILES}; raise it"
        )
    plans = []
    for number, group in enumerate(groups):
        own = _split_values(number, len(groups), len(tensors))
        values = {**metadata, **own} if number == 0 else own
        file = split_name(name, number, len(groups))
        plans.append(_layout(file, _encode(values), len(values), [tensors[index] for index in group]))
    return plans


def cut(sizes: Sequence[int], limit: int, first: int = 0, others: int = 0) -> list[list[int]]:
    """Cut indices, in order, into groups of at most ``limit``, where a group costs ``first`` or ``others`` by itself.

    A size that does not fit into a group of its own gets one all the same.
    """
    groups: list[list[int]] = [[]]
    used = first
    for index, size in enumerate(sizes):
        if groups[-1] and used + size > limit:
            groups.append([])
            used = others
        groups[-1].append(index)
        used += size
    return groups


def split_name(name: str, number: int, count: int) -> str:
    """The name of a split, ``number`` counted from 0, as llama.cpp builds it."""
    return f"{name.removesuffix('.gguf')}-{number + 1:05d}-of-{count:05d}.gguf"


def _split_values(number: int, count: int, tensors: int) -> dict[str, Value]:
    kinds = ("uint16", "uint16", "int32")
    return {
        key: Value(kind, value) for key, kind, value in zip(SPLIT_KEYS, kinds, (number, count, tensors), strict=True)
    }


def _check_declared(metadata: Mapping[str, object], tensors: Sequence[TensorInfo]) -> None:
    if not all(metadata):
        raise ValueError("a key is empty")
    if metadata.keys() & set(SPLIT_KEYS):
        raise ValueError("split.* is not metadata of the caller's")
    if ALIGNMENT_KEY in metadata and Value.of(metadata[ALIGNMENT_KEY]) != Value("uint32", ALIGNMENT):
        raise ValueError(f"{ALIGNMENT_KEY} is always {ALIGNMENT} (uint32)")
    seen = set()
    for info in tensors:
        if info.name in seen:
            raise ValueError(f"two tensors would be called {info.name}")
        seen.add(info.name)
        if not 0 < len(info.name.encode()) <= MAX_NAME_BYTES:
            raise ValueError(f"tensor {info.name}: ggml's names have 1 to {MAX_NAME_BYTES} bytes")
        if not 0 < len(info.shape) <= MAX_AXES:
            raise ValueError(f"tensor {info.name}: has {len(info.shape)} axes, ggml's have 1 to {MAX_AXES}")
        if not info.type.fits(info.shape[-1]):
            raise ValueError(f"tensor {info.name}: {info.type.name} cannot hold rows of {info.shape[-1]}")


def _layout(name: str, keys: bytes, count: int, tensors: Sequence[TensorInfo]) -> FilePlan:
    entries, offsets, offset = bytearray(), [], 0
    for info in tensors:
        entries += _entry(info, offset)
        offsets.append(offset)
        offset = aligned(offset + info.nbytes)
    header = FIXED.pack(MAGIC, VERSION, len(tensors), count) + keys + bytes(entries)
    header += bytes(-len(header) % ALIGNMENT)
    placed = [replace(info, start=len(header) + place) for info, place in zip(tensors, offsets, strict=True)]
    return FilePlan(name, header, tuple(placed), len(header) + offset)


def _entry(info: TensorInfo, offset: int) -> bytes:
    sizes = info.shape[::-1]
    return _text(info.name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, info.type.number, offset)


def _encode(metadata: Mapping[str, object]) -> bytes:
    return b"".join(_text(key) + _encode_value(key, Value.of(value)) for key, value in metadata.items())


def _encode_value(key: str, found: Value) -> bytes:
    """The number of a value's kind, then the value."""
    number, letter = KINDS[found.kind]
    is_list = isinstance(found.value, list)
    items = found.value if is_list else [found.value]
    expected = str if found.kind == "string" else (int, float, np.number)
    if not all(isinstance(item, expected) and isinstance(item, bool) == (found.kind == "bool") for item in items):
        raise ValueError(f"key {key}: not of kind {found.kind}: {found.value!r:.80}")
    try:
        body = struct.pack(f"<{len(items)}{letter}", *items) if letter else b"".join(map(_text, items))
    except (struct.error, OverflowError) as error:
        raise ValueError(f"key {key}: {found.value!r:.80} is no {found.kind} ({error})") from error
    head = struct.pack("<IIQ", ARRAY, number, len(items)) if is_list else struct.pack("<I", number)
    return head + body


def _text(text: str) -> bytes:
    data = text.encode()
    return LENGTH.pack(len(data)) + data


# ---- writing ------------------------------------------------------------------------------------------------------


class GgufWriter:
    """Write planned files, holding no tensor: `add` pieces, tensors in any order, then `finish`.

    Use as a context manager inside `output.atomic_output`, which turns a full disk into one line and removes what was
    begun. One file is open at a time.
    """

    def __init__(self, folder: Path, files: Sequence[FilePlan]) -> None:
        """Create the files (none may be there) with their headers, at their full length."""
        self._folder = folder
        self._names = [file.name for file in files]
        self._places = {info.name: (file.name, info) for file in files for info in file.tensors}
        self._written = dict.fromkeys(self._places, 0)
        self._open_name: str | None = None
        self._handle = -1
        for file in files:
            handle = os.open(folder / file.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                _write_at(handle, memoryview(file.header), 0)
                os.ftruncate(handle, file.nbytes)  # the padding between tensors is never written, so it is zero
            finally:
                os.close(handle)

    def add(self, name: str, piece: Bytes) -> None:
        """Write the next bytes of a tensor (a uint8 tensor or array, or bytes).

        ValueError if the tensor is not declared, the piece is not bytes, or it goes beyond the tensor's end.
        """
        if name not in self._places:
            raise ValueError(f"tensor {name} was not declared")
        file, info = self._places[name]
        data, done = _as_bytes(name, piece), self._written[name]
        if done + len(data) > info.nbytes:
            raise ValueError(f"tensor {name} takes {info.nbytes} bytes, {done + len(data)} were given")
        _write_at(self._handle_of(file), data, info.start + done)
        self._written[name] = done + len(data)

    def finish(self) -> list[str]:
        """Close, and return the files' names; ValueError if a tensor did not get all its bytes."""
        self.close()
        for name, (_, info) in self._places.items():
            if self._written[name] != info.nbytes:
                raise ValueError(f"tensor {name} takes {info.nbytes} bytes, {self._written[name]} were given")
        return list(self._names)

    def _handle_of(self, file: str) -> int:
        if file != self._open_name:
            self.close()
            self._handle = os.open(self._folder / file, os.O_WRONLY)
            self._open_name = file
        return self._handle

    def close(self) -> None:
        """Close the file that is open, finished or not."""
        if self._open_name is not None:
            self._open_name = None
            os.close(self._handle)

    def __enter__(self) -> GgufWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_bytes(name: str, piece: Bytes) -> memoryview:
    """The piece as flat bytes, without a copy if it is contiguous and on the CPU."""
    if not isinstance(piece, (bytes, bytearray, memoryview, np.ndarray)):
        piece = piece.detach().cpu().numpy()
    view = np.ascontiguousarray(piece).data if isinstance(piece, np.ndarray) else memoryview(piece)
    if view.format != "B":
        raise ValueError(f"tensor {name}: pieces are bytes (uint8), not of the format {view.format}")
    return view.cast("B") if view.nbytes else memoryview(b"")


def _write_at(handle: int, data: memoryview, offset: int) -> None:
    while data:  # one call writes at most 2 GiB, and less on a disk that fills up
        count = os.pwrite(handle, data, offset)
        data, offset = data[count:], offset + count
