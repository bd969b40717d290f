"""The GGUF container: metadata with types, tensors of any ggml type, one file or a set of splits.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little endian; version 2 is read too)::

    magic "GGUF", uint32 version, uint64 tensors, uint64 keys
    keys      text, uint32 kind, value          an array: uint32 kind of its items, uint64 count, items
    tensors   text, uint32 axes, uint64 sizes innermost first, uint32 type, uint64 offset from the start of the data
    data      each tensor's bytes, padded to `ALIGNMENT`, in the order above; the data starts aligned as well

A text is a uint64 count of bytes and UTF-8. A split set is files NAME-00001-of-00003.gguf; each holds ``split.no``,
``split.count`` and ``split.tensors.count``, the first holds all other keys.

It differs from the `gguf` package in that no tensor is ever held: all are declared first and then written in pieces, in
any order; and in that a damaged or hostile file is a QuantkitError of one line, before anything large is allocated.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from quantkit.errors import QuantkitError
from quantkit.formats.gguf.types import BY_NUMBER, TensorType

if TYPE_CHECKING:
    import torch

    Bytes = bytes | bytearray | memoryview | np.ndarray[Any, Any] | torch.Tensor

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
MAX_NAME_BYTES, MAX_AXES, MAX_FILES = 63, 4, 65535  # ggml's; split.count is a uint16
MAX_HEADER_BYTES = 100_000_000  # ten times what the largest vocabulary takes
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
_ALIGNMENT_KEY = "general.alignment"

# kind -> number in the file, struct's letter
KINDS = {
    "uint8": (0, "B"), "int8": (1, "b"), "uint16": (2, "H"), "int16": (3, "h"), "uint32": (4, "I"), "int32": (5, "i"),
    "float32": (6, "f"), "bool": (7, "?"), "string": (8, ""), "uint64": (10, "Q"), "int64": (11, "q"),
    "float64": (12, "d"),
}  # fmt: skip
_ARRAY = 9
_KIND_OF = {number: kind for kind, (number, _) in KINDS.items()}
_WHOLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
_FIXED = struct.Struct("<4sIQQ")
_LENGTH = struct.Struct("<Q")
_AGAIN = "download or copy the file again"


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


def _aligned(position: int, alignment: int = ALIGNMENT) -> int:
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
    others = _FIXED.size + len(_encode(_split_values(0, 1, 1)))
    sizes = [len(_entry(info, 0)) + _aligned(info.nbytes) for info in tensors]
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
    if _ALIGNMENT_KEY in metadata and Value.of(metadata[_ALIGNMENT_KEY]) != Value("uint32", ALIGNMENT):
        raise ValueError(f"{_ALIGNMENT_KEY} is always {ALIGNMENT} (uint32)")
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
        offset = _aligned(offset + info.nbytes)
    header = _FIXED.pack(MAGIC, VERSION, len(tensors), count) + keys + bytes(entries)
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
    head = struct.pack("<IIQ", _ARRAY, number, len(items)) if is_list else struct.pack("<I", number)
    return head + body


def _text(text: str) -> bytes:
    data = text.encode()
    return _LENGTH.pack(len(data)) + data


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


# ---- reading ------------------------------------------------------------------------------------------------------


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
    start = _aligned(cursor.position, alignment)
    tensors = {name: replace(info, start=start + info.start) for name, info in tensors.items()}
    _check_places(path, tensors.values(), alignment, len(data))
    return metadata, tensors, data


def _map(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise QuantkitError(f"{path}: is no file; give a .gguf file")
        if status.st_size < _FIXED.size:
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
    found = metadata.get(_ALIGNMENT_KEY, Value("uint32", ALIGNMENT))
    value = found.value
    if found.kind != "uint32" or isinstance(value, list) or value == 0 or value & (value - 1):
        raise QuantkitError(f"{path}: {_ALIGNMENT_KEY} {value!r:.40} is no power of two (uint32); {_AGAIN}")
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
        self.position = _FIXED.size
        return _FIXED.unpack_from(self.view)

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
        view, end, position, length_at = self.view, self.end, self.position, _LENGTH.unpack_from
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
        if number != _ARRAY:
            kind = self._kind(number, what)
            return Value(kind, self._items(kind, 1, what)[0])
        number, count = (*self.numbers("I", 1, what), *self.numbers("Q", 1, what))
        if number == _ARRAY:
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
