"""llama.cpp's importance matrix: for each tensor, how large the values are that its columns meet.

A tensor's entry is the sum over tokens of the squared inputs of its columns, which is the diagonal of the Gram matrix
``X^T X``, and the count of tokens; what quantization weighs by is their quotient. Files, as llama-imatrix
(https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix) writes and llama-quantize reads them::

    GGUF    general.type "imatrix"; imatrix.datasets [text], imatrix.chunk_count, imatrix.chunk_size (tokens)
            NAME.in_sum2 float32 [in], NAME.counts float32 [1]
    older   int32 entries, then each: text NAME, int32 chunks, int32 in, float32 [in] (mean square times chunks);
            int32 chunk count, text dataset (both may be missing); a text is an int32 count of bytes and UTF-8

NAME is a tensor's name in the model's GGUF file. Both forms are read; the first is written. llama.cpp's tools see text
only and accept a damaged matrix or one of another model half-way; here either is an error.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from quantkit.errors import QuantkitError
from quantkit.formats.gguf.container import MAGIC, GgufWriter, TensorInfo, Value, plan_files
from quantkit.formats.gguf.reader import GgufFile
from quantkit.formats.gguf.types import TYPES
from quantkit.output import atomic_file

# llama-imatrix has no entry for these: the first is looked up, not multiplied, the second asks for --process-output
MAY_BE_MISSING = ("token_embd.weight", "output.weight")
MAX_OLD_BYTES = 1 << 30
_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNKS, _SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_AGAIN = "download or gather it again"


@dataclass(frozen=True)
class Imatrix:
    """sums: {name: float32 [in]}, of squared inputs; counts: {name: tokens in the sum (older files: chunks)}.

    chunk_size: tokens of a chunk, 0 where the file does not say; source: what messages call it.
    """

    sums: dict[str, Tensor]
    counts: dict[str, int]
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = 0
    source: str = "importance matrix"

    def mean_squares(self, name: str) -> Tensor:
        """float32 [in]; KeyError if there is no entry."""
        return self.sums[name] / torch.tensor(self.counts[name], dtype=torch.float32)


def check(imatrix: Imatrix, expected: Mapping[str, int]) -> list[str]:
    """Return the tensors of ``expected`` ({name: in}) that may lack an entry and do; other entries are ignored.

    Raises QuantkitError for the first one that has no entry or one of another width, with the model it seems to be of.
    """
    missing = []
    for name, width in expected.items():
        if name in imatrix.sums:
            found = len(imatrix.sums[name])
            if found != width:
                _refuse(imatrix, expected, f"{name} has {found} values, this model's takes {width}")
        elif name in MAY_BE_MISSING:
            missing.append(name)
        else:
            _refuse(imatrix, expected, f"has no entry for {name}")
    return missing


def _refuse(imatrix: Imatrix, expected: Mapping[str, int], what: str) -> None:
    theirs = _looks({name: len(sums) for name, sums in imatrix.sums.items()})
    ours = _looks(expected)
    whose = "it is incomplete" if theirs == ours else f"it seems to be of a model with {theirs}, this one has {ours}"
    raise QuantkitError(f"{imatrix.source}: {what}; {whose}; give one of this model, or leave --imatrix out")


def _looks(widths: Mapping[str, int]) -> str:
    """A model in words, from the widths of its tensors."""
    layers = {name: width for name, width in widths.items() if re.match(r"blk\.\d+\.", name)}
    blocks = len({name.split(".")[1] for name in layers})
    sizes = [
        f"{what} {next(width for name, width in layers.items() if name.endswith(end))}"
        for what, end in (("hidden size", ".ffn_up.weight"), ("feed-forward", ".ffn_down.weight"))
        if any(name.endswith(end) for name in layers)
    ]
    return ", ".join([f"{blocks} layers", *sizes])


# ---- writing ------------------------------------------------------------------------------------------------------


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write llama.cpp's GGUF form, complete or not at all; a file of that name is replaced.

    Raises QuantkitError if the file cannot be written, ValueError for an empty or misshapen matrix.
    """
    if not imatrix.sums or imatrix.sums.keys() != imatrix.counts.keys():
        raise ValueError("an importance matrix has as many sums as counts, and at least one")
    if any(sums.dim() != 1 for sums in imatrix.sums.values()):
        raise ValueError("an importance matrix has one number a column")
    metadata = {
        "general.type": "imatrix",
        _DATASETS: Value("string", list(imatrix.datasets)),
        _CHUNKS: imatrix.chunk_count,
        _SIZE: imatrix.chunk_size,
    }
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name in sorted(imatrix.sums):
        arrays[name + _SUMS] = imatrix.sums[name].detach().cpu().numpy().astype("<f4", copy=False)
        arrays[name + _COUNTS] = np.array([imatrix.counts[name]], "<f4")
    tensors = [TensorInfo(name, array.shape, TYPES["F32"]) for name, array in arrays.items()]
    try:
        with atomic_file(path) as partial:
            partial.unlink(missing_ok=True)  # left by a process of this number that was killed
            with GgufWriter(partial.parent, plan_files(partial.name, metadata, tensors)) as writer:
                for name, array in arrays.items():
                    writer.add(name, np.ascontiguousarray(array).view(np.uint8))
                writer.finish()
    except OSError as error:
        raise QuantkitError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


# ---- reading ------------------------------------------------------------------------------------------------------


def read_imatrix(path: str | Path) -> Imatrix:
    """Read either form; QuantkitError for a file that is none, damaged, of a mixture of experts, or has bad values."""
    path = Path(path)
    try:
        if not path.is_file():
            raise QuantkitError(f"{path}: is no file; give an importance matrix (imatrix.gguf)")
        with path.open("rb") as file:
            found = file.read(4)
            if found == MAGIC:
                return _read_gguf(path)
            if path.stat().st_size > MAX_OLD_BYTES:
                raise QuantkitError(f"{path}: too large for an importance matrix; give another file")
            return _Old(path, found + file.read()).read()
    except OSError as error:
        raise QuantkitError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from error


def _read_gguf(path: Path) -> Imatrix:
    file = GgufFile(path)
    kind = file.metadata.get("general.type", Value("string", "nothing")).value
    if kind != "imatrix":
        raise QuantkitError(f"{path}: general.type says {kind!r:.40}, not 'imatrix'; give an importance matrix")
    datasets = file.metadata.get(_DATASETS)
    if datasets is None or datasets.kind != "string" or not isinstance(datasets.value, list):
        raise QuantkitError(f"{path}: {_DATASETS} is missing or no list of texts; {_AGAIN}")
    chunk_count, chunk_size = (_count_key(path, file, key) for key in (_CHUNKS, _SIZE))
    names = [name.removesuffix(_SUMS) for name in file.tensors if name.endswith(_SUMS)]
    alone = next((n for n in file.tensors if n.endswith(_COUNTS) and n.removesuffix(_COUNTS) not in set(names)), None)
    if alone is not None:
        raise QuantkitError(f"{path}: {alone} has no sums ({_SUMS}) beside it; {_AGAIN}")
    sums, counts = {}, {}
    for name in names:
        if name + _COUNTS not in file.tensors:
            raise QuantkitError(f"{path}: {name}{_SUMS} has no counts ({_COUNTS}) beside it; {_AGAIN}")
        counts[name] = _one_count(path, name, _floats(path, file, name + _COUNTS))
        sums[name] = _checked(path, name, _floats(path, file, name + _SUMS))
    _check_any(path, sums)
    return Imatrix(sums, counts, tuple(datasets.value), chunk_count, chunk_size, str(path))


def _count_key(path: Path, file: GgufFile, key: str) -> int:
    found = file.metadata.get(key)
    if found is None or found.kind != "uint32" or isinstance(found.value, list):
        raise QuantkitError(f"{path}: {key} is missing or no uint32; {_AGAIN}")
    return int(found.value)


def _floats(path: Path, file: GgufFile, name: str) -> np.ndarray[Any, Any]:
    info = file.tensors[name]
    if info.type.name != "F32":
        raise QuantkitError(f"{path}: {name} is {info.type.name}, not F32; {_AGAIN}")
    if any(size != 1 for size in info.shape[:-1]):
        raise QuantkitError(
            f"{path}: {name} has the shape {info.shape}, several rows, as for experts; this model has none"
        )
    return file.raw(name).view("<f4").astype(np.float32)


def _one_count(path: Path, name: str, found: np.ndarray[Any, Any]) -> int:
    if len(found) != 1:
        raise QuantkitError(f"{path}: {name} has {len(found)} counts, as for experts; this model has none")
    value = float(found[0])
    if not 0.5 < value < 2**63:  # nor if it is no number
        raise QuantkitError(f"{path}: {name} counts {value:g} tokens; {_AGAIN}")
    return round(value)


def _checked(path: Path, name: str, found: np.ndarray[Any, Any]) -> Tensor:
    if not len(found):
        raise QuantkitError(f"{path}: {name} has no values; {_AGAIN}")
    if not np.isfinite(found).all():
        raise QuantkitError(f"{path}: {name} holds values that are not finite; {_AGAIN}")
    if (found < 0).any():
        raise QuantkitError(f"{path}: {name} holds sums of squares below zero; {_AGAIN}")
    return torch.from_numpy(found)


def _check_any(path: Path, sums: Mapping[str, Tensor]) -> None:
    if not sums:
        raise QuantkitError(f"{path}: holds no entry; {_AGAIN}")


class _Old:
    """Reads the older form, which has neither a magic nor a version."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data, self.position = path, data, 0

    def read(self) -> Imatrix:
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for _ in range(self._number("the count of entries")):
            name = self._text("a name")
            if not name or not name.isprintable():
                self._fail(f"a tensor is called {name!r:.80}")
            if name in sums:
                self._fail(f"{name} is there twice")
            counts[name] = self._number(f"the chunks of {name}")
            if not counts[name]:
                self._fail(f"{name} counts no chunk")
            width = self._number(f"the size of {name}")
            found = np.frombuffer(self._take(4 * width, f"the values of {name}"), "<f4").astype(np.float32)
            sums[name] = _checked(self.path, name, found)
        _check_any(self.path, sums)
        chunk_count = 0
        datasets: tuple[str, ...] = ()
        if self.position < len(self.data):
            chunk_count = self._number("the count of chunks")
        if self.position < len(self.data):
            datasets = tuple(filter(None, [self._text("the data set's name")]))
        if self.position < len(self.data):
            self._fail(f"{len(self.data) - self.position} bytes follow its end")
        return Imatrix(sums, counts, datasets, chunk_count, 0, str(self.path))

    def _take(self, count: int, what: str) -> bytes:
        if self.position + count > len(self.data):
            self._fail(f"{what} would end at byte {self.position + count}, the file at {len(self.data)}")
        self.position += count
        return self.data[self.position - count : self.position]

    def _number(self, what: str) -> int:
        (found,) = struct.unpack("<i", self._take(4, what))
        if found < 0:
            self._fail(f"{what} is {found}")
        return int(found)

    def _text(self, what: str) -> str:
        try:
            return self._take(self._number(f"the length of {what}"), what).decode()
        except UnicodeDecodeError:
            self._fail(f"{what} is no UTF-8")

    def _fail(self, what: str) -> NoReturn:
        raise QuantkitError(f"{self.path}: no importance matrix, or a truncated one ({what}); {_AGAIN}")
