"""The safetensors container, read and described without loading a weight, and the checksums beside it.

Layout of a file (little endian)::

    8 bytes   length N of the header
    N bytes   JSON, padded with spaces: {"__metadata__": {...}, NAME: {"dtype", "shape", "data_offsets": [begin, end]}}
    the rest  the tensors' bytes; offsets count from here, leave no gap and end at the end of the file

The `safetensors` library reads the same; this module differs in that every fault is found before any work starts and is
reported with the file, what was expected and what to do. It imports neither torch nor safetensors.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError

# safetensors' spelling -> (torch's spelling, bytes an element), in the order in which the library lays a file out
DTYPES: dict[str, tuple[str, int]] = {
    "I64": ("int64", 8),
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "I32": ("int32", 4),
    "BF16": ("bfloat16", 2),
    "F16": ("float16", 2),
    "I16": ("int16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
_RANK = {name: rank for rank, name in enumerate(DTYPES)}
_FROM_TORCH = {torch_name: name for name, (torch_name, _) in DTYPES.items()}

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
CHECKSUM_FILE = "SHA256SUMS"
_AGAIN = "download or copy the file again"
_CHUNK = 1 << 22


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `start` is its first byte counted from the beginning of `file`."""

    name: str
    dtype: str  # safetensors' spelling, a key of DTYPES
    shape: tuple[int, ...]
    file: Path
    start: int
    nbytes: int


def dtype_name(dtype: object) -> str:
    """Return safetensors' spelling of a torch dtype (or of its name); ValueError where the format has none."""
    text = str(dtype).removeprefix("torch.")
    if text in DTYPES:
        return text
    if text not in _FROM_TORCH:
        raise ValueError(f"safetensors files hold no dtype {dtype}; known: {', '.join(DTYPES)}")
    return _FROM_TORCH[text]


def tensor_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Return the bytes that a dense tensor takes."""
    return DTYPES[dtype][1] * math.prod(shape)


def strict_json(data: bytes) -> Any:
    """Parse JSON, refusing an object that names a key twice; ValueError says what is wrong."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{twice} is there twice")
        return found

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return what a safetensors file holds, in the order of the data; the header is checked against the file's size.

    Raises QuantkitError for a truncated file, a damaged header, gaps or overlaps, unknown dtypes, a tensor named twice.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            fits = len(prefix) == 8 and length <= min(size - 8, MAX_HEADER_BYTES)
            raw = file.read(length) if fits else b""
    except OSError as error:
        raise QuantkitError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from error
    if not fits:
        raise QuantkitError(_bad_length(path, prefix, length, size))
    try:
        header = strict_json(raw)
    except ValueError as error:
        raise QuantkitError(f"{path}: the safetensors header is damaged ({_one_line(error)}); {_AGAIN}") from error
    if not isinstance(header, dict):
        raise QuantkitError(f"{path}: the safetensors header is damaged (no JSON object); {_AGAIN}")
    _check_metadata(path, header.pop("__metadata__", None))
    found = [_entry(path, name, value, 8 + length) for name, value in header.items()]
    found.sort(key=lambda info: (info.start, info.nbytes))
    _check_layout(path, found, 8 + length, size)
    return {info.name: info for info in found}


def _bad_length(path: Path, prefix: bytes, length: int, size: int) -> str:
    if prefix == b"version ":
        return f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` in its folder"
    if len(prefix) < 8:
        return f"{path}: truncated, {size} bytes found, at least 8 expected; {_AGAIN}"
    if length > MAX_HEADER_BYTES:
        return f"{path}: no safetensors file, or a damaged one: a header of {length} bytes is announced; {_AGAIN}"
    return f"{path}: truncated, {size} bytes found, the header alone needs {8 + length}; {_AGAIN}"


def _check_metadata(path: Path, metadata: object) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise QuantkitError(f"{path}: the safetensors header is damaged (__metadata__ holds no texts); {_AGAIN}")
    if metadata.get("format", "pt") != "pt":
        raise QuantkitError(
            f"{path}: the header says format {metadata['format']!r}, quantkit reads PyTorch's ('pt'); "
            "take the checkpoint in PyTorch's layout"
        )


def _entry(path: Path, name: str, value: object, data_start: int) -> TensorInfo:
    where = f"{path}: tensor {name}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise QuantkitError(f"{where}: the header entry is damaged; {_AGAIN}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise QuantkitError(f"{where}: unknown dtype {dtype!r}, known are {', '.join(DTYPES)}; {_AGAIN}")
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise QuantkitError(f"{where}: the header entry is damaged (shape {shape}, offsets {offsets}); {_AGAIN}")
    begin, end = offsets
    expected = tensor_bytes(dtype, shape)
    if end - begin != expected:
        raise QuantkitError(
            f"{where}: {dtype} {shape} takes {expected} bytes, the header gives {end - begin}; {_AGAIN}"
        )
    return TensorInfo(name, dtype, tuple(shape), path, data_start + begin, expected)


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_layout(path: Path, found: list[TensorInfo], data_start: int, size: int) -> None:
    position = data_start
    for info in found:
        if info.start != position:
            fault = "a gap" if info.start > position else "an overlap"
            raise QuantkitError(f"{path}: the safetensors header is damaged ({fault} before {info.name}); {_AGAIN}")
        position += info.nbytes
    if size < position:
        raise QuantkitError(f"{path}: truncated, {size} bytes found, {position} expected; {_AGAIN}")
    if size > position:
        raise QuantkitError(f"{path}: {size} bytes found, the header describes {position}; {_AGAIN}")


def build_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, dict[str, int]]:
    """Return a file's first bytes and each tensor's position in the file, for `{name: (dtype, shape)}`.

    The order is the safetensors library's: wide dtypes first (this keeps all aligned), then by name.
    """
    order = sorted(tensors, key=lambda name: (_RANK[tensors[name][0]], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets, position = {}, 0
    for name in order:
        dtype, shape = tensors[name]
        end = position + tensor_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        offsets[name], position = position, end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    first = len(text).to_bytes(8, "little") + text
    return first, {name: len(first) + offset for name, offset in offsets.items()}


# ---- checksums ----------------------------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex (about a second a gigabyte)."""
    return _digest(path, hashlib.sha256())


def git_blob_sha1_of(path: Path) -> str:
    """Return git's object id of a file, by which the hub's cache names files that are not in LFS."""
    return _digest(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False))


def _digest(path: Path, digest: Any) -> str:
    buffer = bytearray(_CHUNK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return str(digest.hexdigest())


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write SHA256SUMS for these files of a folder, in the form that `sha256sum -c` reads."""
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in sorted(names)]
    (folder / CHECKSUM_FILE).write_text("".join(lines), encoding="utf-8")


def verify_checksums(folder: Path, names: Iterable[str]) -> list[str]:
    """Compare files of a folder with SHA256SUMS or with the hub cache's own names; return those that had a checksum.

    In the hub's cache a file is a link to `blobs/ID`, and ID is the SHA-256 (LFS files) or git's object id (others).
    Raises QuantkitError for the first file that differs.
    """
    listed = _read_checksums(folder / CHECKSUM_FILE)
    checked = []
    for name in names:
        path = folder / name
        expected, source = listed.get(name), CHECKSUM_FILE
        target = path.resolve()
        if expected is None and path.is_symlink() and target.parent.name == "blobs":
            expected, source = target.name, "the hub's checksum"
        if expected is None or not re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", expected):
            continue
        found = sha256_of(path) if len(expected) == 64 else git_blob_sha1_of(path)
        if found != expected:
            raise QuantkitError(f"{path}: damaged or changed, its bytes do not match {source}; {_AGAIN}")
        checked.append(name)
    return checked


def listed_checksums(folder: Path) -> dict[str, str]:
    """Return what a folder's SHA256SUMS lists, by file name; nothing where there is none."""
    return _read_checksums(folder / CHECKSUM_FILE)


def _read_checksums(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        if match:
            found[match[2].removeprefix("./")] = match[1].lower()
        elif line.strip():
            raise QuantkitError(f"{path}: line {number} is no checksum line; {_AGAIN}, or delete it")
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
