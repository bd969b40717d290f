"""GGUF files read: keys, tensors and their bytes, of one file or a set of splits; `container` has the format.

A damaged or hostile file is a QuantkitError of one line, before anything large is allocated.
"""

from __future__ import annotations

import math
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from quantkit.errors import QuantkitError
from quantkit.formats.gguf.container import (
    ALIGNMENT,
    ALIGNMENT_KEY,
    ARRAY,
    FIXED,
    KINDS,
    LENGTH,
    MAGIC,
    MAX_AXES,
    MAX_FILES,
    MAX_NAME_BYTES,
    VERSION,
    TensorInfo,
    Value,
    aligned,
    split_name,
)
from quantkit.formats.gguf.types import BY_NUMBER

MAX_HEADER_BYTES = 100_000_000  # ten times what the largest vocabulary takes
_KIND_OF = {number: kind for kind, (number, _) in KINDS.items()}
_WHOLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
_AGAIN = "download or copy the file again"


class GgufFile:
    """A GGUF file, or a whole split set opened by its first file: keys, tensors, and their bytes mapped from the disk.

    A file must stay as it is while it is mapped: one that is cut short then ends the process (SIGBUS).
    ``metadata``: {key: `Value`} (of a set: the first file's); ``tensors``: {name: `TensorInfo`}; ``files``: the paths.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the headers; QuantkitError for anything that is not a complete GGUF file (or set) of version 2 or 3."""
        self.path = Path(path)
        self.metadata, self.tensors, data = _read_file(self.path)
        self.files = [self.path]
        self._maps = {self.path: data}
        for other in _other_splits(self.path, self.metadata):
            self._append(other)
        count = _whole(self.path, self.metadata, "split.tensors.count", len(self.tensors))
        if len(self.files) > 1 and count != len(self.tensors):
            raise QuantkitError(
                f"{self.path}: split.tensors.count says {count} tensors, the files hold {len(self.tensors)}; "
                "download or copy all files again"
            )

    def _append(self, path: Path) -> None:
        metadata, tensors, data = _read_file(path)
        count = _whole(self.path, self.metadata, "split.count", 1)
        found = tuple(_whole(path, metadata, key, -1) for key in ("split.no", "split.count"))
        if found != (len(self.files), count):
            raise QuantkitError(
                f"{path}: says split.no {found[0]} of {found[1]}, its name {len(self.files)} of {count}; "
                "download or copy all files again"
            )
        twice = next((name for name in tensors if name in self.tensors), None)
        if twice is not None:
            raise QuantkitError(f"{path}: tensor {_shown(twice)} is in an earlier file too; take the files of one set")
        self.tensors.update(tensors)
        self.files.append(path)
        self._maps[path] = data

    def raw(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """A tensor's bytes, a read-only view of the file; KeyError if there is none of the name."""
        info = self.tensors[name]
        assert info.file is not None
        return self._maps[info.file][info.start : info.start + info.nbytes]


def _other_splits(path: Path, metadata: Mapping[str, Value]) -> Iterator[Path]:
    """The files after the first of a set; QuantkitError if ``path`` is not the first or misnamed, or one is missing."""
    count = _whole(path, metadata, "split.count", 1)
    if count <= 1:
        return
    number = _whole(path, metadata, "split.no", 0)
    if number != 0:
        raise QuantkitError(f"{path}: file {number + 1} of {count} of a split set; give the first")
    if count > MAX_FILES:
        raise QuantkitError(f"{path}: split.count {count} is not believable; {_AGAIN}")
    end = split_name("", 0, count)
    if not path.name.endswith(end):
        raise QuantkitError(f"{path}: the first of {count} files; its name must end in {end}, as it was published")
    for other in range(1, count):
        found = path.with_name(split_name(path.name.removesuffix(end), other, count))
        if not found.exists():
            raise QuantkitError(f"{found}: is missing, file {other + 1} of {count} of a set; download it too")
        yield found


def _whole(path: Path, metadata: Mapping[str, Value], key: str, default: int) -> int:
    found = metadata.get(key, Value("int64", default))
    if found.kind not in _WHOLE or isinstance(found.value, list):
        raise QuantkitError(f"{path}: {key} is no whole number; {_AGAIN}")
    return int(found.value)


_Read = tuple[dict[str, Value], dict[str, TensorInfo], "np.ndarray[Any, np.dtype[np.uint8]]"]


def _read_file(path: Path) -> _Read:
    data = _map(path)
    cursor = _Cursor(path, data.data)
    magic, version, tensor_count, key_count = cursor.fixed()
    _check_version(path, magic, version)
    cursor.require(key_count * 14, f"{key_count} keys")  # a text of one byte, a kind and a value take that much
    cursor.require(tensor_count * 24, f"{tensor_count} tensors")
    metadata: dict[str, Value] = {}
    for _ in range(key_count):
        key = cursor.text("a key")
        if not key or key in metadata:
            fault = f"key {_shown(key)} is there twice" if key else "a key is empty"
            raise QuantkitError(f"{path}: {fault}; {_AGAIN}")
        metadata[key] = cursor.value(f"key {_shown(key)}")
    alignment = _alignment(path, metadata)
    tensors: dict[str, TensorInfo] = {}
    for _ in range(tensor_count):
        info = cursor.tensor()
        if info.name in tensors:
            raise QuantkitError(f"{path}: tensor {_shown(info.name)} is there twice; {_AGAIN}")
        tensors[info.name] = info
    start = aligned(cursor.position, alignment)
    tensors = {name: replace(info, start=start + info.start) for name, info in tensors.items()}
    _check_places(path, tensors.values(), alignment, len(data))
    return metadata, tensors, data


def _map(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise QuantkitError(f"{path}: is no file; give a .gguf file")
        if status.st_size < FIXED.size:
            raise QuantkitError(f"{path}: truncated, {status.st_size} bytes found, at least 24 expected; {_AGAIN}")
        return np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    except OSError as error:
        raise QuantkitError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from error


def _check_version(path: Path, magic: bytes, version: int) -> None:
    if magic == b"vers":
        raise QuantkitError(f"{path}: a Git LFS pointer, not the model; run `git lfs pull` in its folder")
    if magic != MAGIC:
        raise QuantkitError(f"{path}: no GGUF file, it begins with {magic!r}; give a .gguf file, or {_AGAIN}")
    if version and version & 0xFFFF == 0:
        raise QuantkitError(f"{path}: written for big-endian machines; take the little-endian file")
    if version not in (2, VERSION):
        raise QuantkitError(f"{path}: GGUF version {version}, quantkit reads 2 and 3; convert the model again")


def _alignment(path: Path, metadata: Mapping[str, Value]) -> int:
    found = metadata.get(ALIGNMENT_KEY, Value("uint32", ALIGNMENT))
    value = found.value
    if found.kind != "uint32" or isinstance(value, list) or value == 0 or value & (value - 1):
        raise QuantkitError(f"{path}: {ALIGNMENT_KEY} {value!r:.40} is no power of two (uint32); {_AGAIN}")
    return int(value)


def _check_places(path: Path, tensors: Iterable[TensorInfo], alignment: int, size: int) -> None:
    end = 0
    for info in sorted(tensors, key=lambda info: (info.start, info.nbytes)):
        where = f"{path}: tensor {_shown(info.name)}"
        if info.start % alignment:
            raise QuantkitError(f"{where}: starts at byte {info.start}, no multiple of {alignment}; {_AGAIN}")
        if info.start < end:
            raise QuantkitError(f"{where}: overlaps the tensor before it; {_AGAIN}")
        end = info.start + info.nbytes
        if end > size:
            raise QuantkitError(f"{where}: ends at byte {end}, the file at {size}: truncated; {_AGAIN}")


def _shown(name: str) -> str:
    """A name of a file that may be damaged, on one line."""
    name = name if len(name) <= 80 else name[:77] + "..."
    return name if name.isprintable() else ascii(name)


class _Cursor:
    """Reads a header from its start; whatever goes beyond the file is refused before it is allocated."""

    def __init__(self, path: Path, view: memoryview) -> None:
        self.path, self.view, self.position = path, view, 0
        self.end = min(len(view), MAX_HEADER_BYTES)

    def require(self, count: int, what: str) -> None:
        """Raise QuantkitError unless ``count`` more bytes are there."""
        if self.position + count > self.end:
            self.fail(count, what)

    def fail(self, count: int, what: str) -> NoReturn:
        end = self.position + count
        if end <= len(self.view):
            raise QuantkitError(f"{self.path}: {what}: the keys take over {MAX_HEADER_BYTES} bytes; {_AGAIN}")
        raise QuantkitError(
            f"{self.path}: truncated or damaged, {what} would end at byte {end}, the file ends at {len(self.view)}; "
            f"{_AGAIN}"
        )

    def fixed(self) -> tuple[bytes, int, int, int]:
        self.position = FIXED.size
        return FIXED.unpack_from(self.view)

    def numbers(self, letter: str, count: int, what: str) -> tuple[Any, ...]:
        """``count`` numbers of struct's ``letter``."""
        size = struct.calcsize(f"<{letter}") * count
        self.require(size, what)
        found = struct.unpack_from(f"<{count}{letter}", self.view, self.position)
        self.position += size
        return found

    def text(self, what: str) -> str:
        return self.texts(1, what)[0]

    def texts(self, count: int, what: str) -> list[str]:
        """``count`` texts; the loop is what a vocabulary's time goes into."""
        self.require(8 * count, what)
        view, end, position, length_at = self.view, self.end, self.position, LENGTH.unpack_from
        found = []
        try:
            for _ in range(count):
                start = position + 8
                if start > end:
                    self.fail(start - self.position, what)
                position = start + length_at(view, position)[0]
                if position > end:
                    self.fail(position - self.position, what)
                found.append(str(view[start:position], "utf-8"))
        except UnicodeDecodeError as error:
            raise QuantkitError(f"{self.path}: {what}: a text is no UTF-8; {_AGAIN}") from error
        self.position = position
        return found

    def value(self, what: str) -> Value:
        (number,) = self.numbers("I", 1, what)
        if number != ARRAY:
            kind = self._kind(number, what)
            return Value(kind, self._items(kind, 1, what)[0])
        number, count = (*self.numbers("I", 1, what), *self.numbers("Q", 1, what))
        if number == ARRAY:
            raise QuantkitError(f"{self.path}: {what}: an array of arrays, which no runtime reads; {_AGAIN}")
        kind = self._kind(number, what)
        return Value(kind, self._items(kind, count, what))

    def _kind(self, number: int, what: str) -> str:
        if number not in _KIND_OF:
            raise QuantkitError(f"{self.path}: {what}: unknown kind {number} of value; {_AGAIN}")
        return _KIND_OF[number]

    def _items(self, kind: str, count: int, what: str) -> list[Any]:
        return list(self.numbers(letter, count, what)) if (letter := KINDS[kind][1]) else self.texts(count, what)

    def tensor(self) -> TensorInfo:
        """The next entry of the directory; ``start`` is still counted from the start of the data."""
        name = self.text("a tensor's name")
        what = f"tensor {_shown(name)}"
        if not 0 < len(name.encode()) <= MAX_NAME_BYTES or not name.isprintable():
            raise QuantkitError(f"{self.path}: {what}: a name has 1 to {MAX_NAME_BYTES} printable bytes; {_AGAIN}")
        (axes,) = self.numbers("I", 1, what)
        if axes > MAX_AXES:
            raise QuantkitError(f"{self.path}: {what}: {axes} axes, at most {MAX_AXES} are possible; {_AGAIN}")
        shape = self.numbers("Q", axes, what)[::-1]
        number, offset = (*self.numbers("I", 1, what), *self.numbers("Q", 1, what))
        if number not in BY_NUMBER:
            raise QuantkitError(f"{self.path}: {what}: unknown type {number}; update quantkit, or {_AGAIN}")
        kind = BY_NUMBER[number]
        if not kind.fits(shape[-1] if shape else 1):
            raise QuantkitError(f"{self.path}: {what}: {kind.name} cannot hold the shape {shape}; {_AGAIN}")
        if math.prod(size for size in shape if size) >= 1 << 63:
            raise QuantkitError(f"{self.path}: {what}: the shape {shape} is not believable; {_AGAIN}")
        return TensorInfo(name, shape, kind, self.path, offset)
