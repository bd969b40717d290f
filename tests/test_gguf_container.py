"""The GGUF container against the `gguf` package and llama.cpp, both ways, and against damaged and hostile files."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import gguf_judge
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit.errors import QuantkitError
from quantkit.formats.gguf import container, reader
from quantkit.formats.gguf.container import (
    ALIGNMENT,
    KINDS,
    GgufWriter,
    TensorInfo,
    Value,
    cut,
    plan_files,
)
from quantkit.formats.gguf.reader import GgufFile
from quantkit.formats.gguf.types import BY_NUMBER, TYPES
from quantkit.output import atomic_output

METADATA: dict[str, Any] = {
    "general.architecture": "qwen35",
    "general.name": "größe 模型",
    "plain.whole": 7,
    "plain.float": 1e-6,
    "plain.bool": False,
    "plain.wholes": [11, 11, 10, 0],
    "plain.floats": [0.5, 0.25],
    "plain.bools": [True, False],
    "plain.texts": ["a", "", "Ġb"],
    "kind.uint8": Value("uint8", 255),
    "kind.int8": Value("int8", -128),
    "kind.uint16": Value("uint16", 65535),
    "kind.int16": Value("int16", -32768),
    "kind.int32": Value("int32", -(2**31)),
    "kind.uint64": Value("uint64", 2**64 - 1),
    "kind.int64": Value("int64", -(2**63)),
    "kind.float64": Value("float64", 0.1),
    "kinds.uint8": Value("uint8", [1, 2]),
    "kinds.uint64": Value("uint64", [2**63]),
    "none": Value("string", []),
}


def some_tensors() -> dict[TensorInfo, bytes]:
    """A tensor of every type that is written, several shapes, sizes that need padding and none."""
    random = np.random.default_rng(0)
    infos = [TensorInfo(f"t.{kind.name}", (3, 2 * kind.block), kind) for kind in TYPES.values()]
    infos += [TensorInfo("n" * 63, (5,), TYPES["F32"]), TensorInfo("v.four", (2, 3, 2, 4), TYPES["F16"])]
    infos += [TensorInfo("x.int", (3,), BY_NUMBER[26])]
    return {info: random.bytes(info.nbytes) for info in infos}


def write(
    folder: Path, metadata: dict[str, Any], tensors: dict[TensorInfo, bytes], limit: int | None = None
) -> list[Path]:
    with GgufWriter(folder, plan_files("m.gguf", metadata, list(tensors), limit)) as writer:
        for info, data in tensors.items():
            writer.add(info.name, data)
        return [folder / name for name in writer.finish()]


# ---- bytes --------------------------------------------------------------------------------------------------------

BYTES = (
    b"GGUF" + bytes.fromhex("03000000 0200000000000000 0300000000000000")
    + bytes.fromhex("0100000000000000") + b"a" + bytes.fromhex("04000000 07000000")
    + bytes.fromhex("0100000000000000") + b"b" + bytes.fromhex("08000000 0300000000000000") + "né".encode()
    + bytes.fromhex("0100000000000000") + b"c" + bytes.fromhex("09000000 05000000 0200000000000000 ffffffff 02000000")
    + bytes.fromhex("0100000000000000") + b"x" + bytes.fromhex("01000000 0300000000000000 01000000 0000000000000000")
    + bytes.fromhex("0100000000000000") + b"y"
    + bytes.fromhex("02000000 2000000000000000 0100000000000000 08000000 2000000000000000")
)  # fmt: skip
X, Y = bytes(range(1, 7)), bytes(range(100, 134))
WHOLE = BYTES + bytes(-len(BYTES) % 32) + X + bytes(26) + Y + bytes(30)


def test_the_file_to_the_byte(tmp_path: Path) -> None:
    metadata = {"a": 7, "b": "né", "c": [-1, 2]}
    tensors = {TensorInfo("x", (3,), TYPES["F16"]): X, TensorInfo("y", (1, 32), TYPES["Q8_0"]): Y}
    (path,) = write(tmp_path, metadata, tensors)
    assert path.name == "m.gguf"
    assert path.read_bytes() == WHOLE
    file = GgufFile(path)
    assert file.metadata == {"a": Value("uint32", 7), "b": Value("string", "né"), "c": Value("int32", [-1, 2])}
    assert [(info.shape, info.type.name) for info in file.tensors.values()] == [((3,), "F16"), ((1, 32), "Q8_0")]
    assert (file.raw("x").tobytes(), file.raw("y").tobytes()) == (X, Y)
    assert file.raw("x").dtype == np.uint8 and not file.raw("x").flags.writeable


# ---- the gguf package ---------------------------------------------------------------------------------------------


def check_with_reader(path: Path, metadata: dict[str, Any], tensors: dict[TensorInfo, bytes]) -> None:
    """The `gguf` package finds these keys with their kinds, and these tensors with their bytes, and no more."""
    reader = gguf.GGUFReader(path)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(fields) == list(metadata)
    for key, value in metadata.items():
        value = Value.of(value)
        kinds = [kind.name.lower() for kind in fields[key].types]
        if isinstance(value.value, list):
            assert kinds == (["array", value.kind] if value.value else ["array"])
        else:
            assert kinds == [value.kind]
        found = fields[key].contents() if value.value != [] else []
        assert found == (pytest.approx(value.value, rel=1e-6) if "float" in value.kind else value.value)
    assert [tensor.name for tensor in reader.tensors] == [info.name for info in tensors]
    for tensor, (info, data) in zip(reader.tensors, tensors.items(), strict=True):
        assert tensor.tensor_type.name == info.type.name
        assert tensor.shape.tolist() == list(info.shape[::-1])
        assert tensor.data.tobytes() == data
        assert tensor.data_offset % ALIGNMENT == 0


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    tensors = some_tensors()
    (path,) = write(tmp_path, METADATA, tensors)
    check_with_reader(path, METADATA, tensors)
    assert path.stat().st_size % ALIGNMENT == 0


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    tensors = some_tensors()
    file = GgufFile(*write(tmp_path, METADATA, tensors))
    assert list(file.metadata) == list(METADATA)
    for key, value in METADATA.items():
        value, found = Value.of(value), file.metadata[key]
        assert found.kind == value.kind
        assert type(found.value) is type(value.value)
        assert found.value == (pytest.approx(value.value, rel=1e-6) if "float" in value.kind else value.value)
    for info, data in tensors.items():
        assert file.raw(info.name).tobytes() == data
        assert (file.tensors[info.name].shape, file.tensors[info.name].type) == (info.shape, info.type)


@pytest.mark.parametrize("limit", [0, 3000])
def test_what_the_package_writes_is_read(tmp_path: Path, limit: int) -> None:
    writer = gguf.GGUFWriter(tmp_path / "p.gguf", "qwen35", split_max_size=limit)
    kinds = {
        "uint8": 1,
        "int8": -1,
        "uint16": 2,
        "int16": -2,
        "uint32": 3,
        "int32": -3,
        "float32": 0.5,
        "uint64": 2**40,
    }
    kinds |= {"int64": -(2**40), "float64": 0.1, "bool": True, "string": "né"}
    assert kinds.keys() == KINDS.keys()
    for kind, value in kinds.items():
        getattr(writer, f"add_{kind}")(f"k.{kind}", value)
    writer.add_array("a.texts", ["a", "né"])
    writer.add_array("a.wholes", [1, -2])
    writer.add_array("a.floats", [0.5])
    arrays = {f"t{n}": np.random.default_rng(n).standard_normal((n + 1, 32)).astype("f4") for n in range(8)}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    quantized = gguf.quants.quantize(arrays["t7"], gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    paths = sorted(tmp_path.glob("*.gguf"))
    assert (len(paths) > 1) == (limit > 0)
    file = GgufFile(paths[0])
    assert file.files == paths
    assert file.metadata["general.architecture"] == Value("string", "qwen35")
    assert {kind: file.metadata[f"k.{kind}"] for kind in kinds} == {kind: Value(kind, kinds[kind]) for kind in kinds}
    assert file.metadata["a.texts"] == Value("string", ["a", "né"])
    assert file.metadata["a.wholes"] == Value("int32", [1, -2])
    assert file.metadata["a.floats"] == Value("float32", [0.5])
    assert list(file.tensors) == [*arrays, "q"]
    for name, array in arrays.items():
        assert file.tensors[name].shape == array.shape
        assert file.raw(name).tobytes() == array.tobytes()
    assert (file.tensors["q"].shape, file.tensors["q"].type.name) == (arrays["t7"].shape, "Q8_0")
    assert file.raw("q").tobytes() == quantized.tobytes()


def test_plain_values_have_the_kinds_of_the_packages_writer() -> None:
    for value in ([1, 2], [0.5], [True], ["a"], 0.5, True, "a"):
        item = value[0] if isinstance(value, list) else value
        assert Value.of(value).kind == gguf.GGUFValueType.get_type(item).name.lower()
    assert Value.of(3).kind == "uint32"
    for value in ([], [1, "a"], [1, True], None, {"a": 1}, [[1]]):
        with pytest.raises(ValueError, match="no kind follows"):
            Value.of(value)


# ---- splits -------------------------------------------------------------------------------------------------------


def test_a_split_set_as_others_read_it(tmp_path: Path) -> None:
    tensors = some_tensors()
    limit = 4000
    paths = write(tmp_path, METADATA, tensors, limit)
    count = len(paths)
    assert count > 2
    assert [path.name for path in paths] == [f"m-{n + 1:05d}-of-{count:05d}.gguf" for n in range(count)]
    left = list(tensors)
    for number, path in enumerate(paths):
        keys = {
            "split.no": Value("uint16", number),
            "split.count": Value("uint16", count),
            "split.tensors.count": Value("int32", len(tensors)),
        }
        mine = [left.pop(0) for _ in gguf.GGUFReader(path).tensors]
        check_with_reader(path, METADATA | keys if number == 0 else keys, {info: tensors[info] for info in mine})
        assert path.stat().st_size <= limit
    file = GgufFile(paths[0])
    assert file.files == paths
    assert file.metadata.keys() == METADATA.keys() | {"split.no", "split.count", "split.tensors.count"}
    assert {name: file.raw(name).tobytes() for name in file.tensors} == {i.name: data for i, data in tensors.items()}


def test_one_file_where_one_is_enough(tmp_path: Path) -> None:
    tensors = some_tensors()
    (whole,) = plan_files("m.gguf", METADATA, list(tensors))
    assert plan_files("m.gguf", METADATA, list(tensors), whole.nbytes) == [whole]
    assert len(plan_files("m.gguf", METADATA, list(tensors), whole.nbytes - 1)) == 2
    (path,) = write(tmp_path, METADATA, tensors, whole.nbytes)
    assert path.stat().st_size == whole.nbytes
    assert "split.count" not in GgufFile(path).metadata


def test_a_tensor_larger_than_the_limit_has_a_file_of_its_own() -> None:
    assert cut([1, 50, 1, 1], 10) == [[0], [1], [2, 3]]
    assert cut([4, 4, 4], 8) == [[0, 1], [2]]
    assert cut([4, 4, 4], 8, first=1) == [[0], [1, 2]]
    assert cut([4, 4, 4], 8, first=100, others=1) == [[0], [1], [2]]
    big = TensorInfo("big", (100_000,), TYPES["F32"])
    files = plan_files(
        "m.gguf", {}, [TensorInfo("a", (1,), TYPES["F32"]), big, TensorInfo("b", (1,), TYPES["F32"])], 5000
    )
    assert [[info.name for info in file.tensors] for file in files] == [["a"], ["big"], ["b"]]
    one = plan_files("m.gguf", {}, [big], 5000)
    assert [file.name for file in one] == ["m.gguf"]


def test_too_many_files_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert container.MAX_FILES == 2**16 - 1
    monkeypatch.setattr(container, "MAX_FILES", 3)
    tensors = [TensorInfo(f"{number}", (1,), TYPES["F32"]) for number in range(4)]
    assert len(plan_files("m.gguf", {}, tensors[:3], 1)) == 3
    with pytest.raises(QuantkitError, match="--split-max-size 1: makes 4 files, a set holds at most 3"):
        plan_files("m.gguf", {}, tensors, 1)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 100), min_size=1, max_size=30), st.integers(1, 120), st.integers(0, 40), st.integers(0, 9)
)
def test_cuts_keep_the_order_and_the_limit(sizes: list[int], limit: int, first: int, others: int) -> None:
    groups = cut(sizes, limit, first, others)
    assert [index for group in groups for index in group] == list(range(len(sizes)))
    for number, group in enumerate(groups):
        own = others if number else first
        assert len(group) == 1 or own + sum(sizes[index] for index in group) <= limit
    for number, (group, following) in enumerate(pairwise(groups)):
        own = others if number else first
        assert own + sum(sizes[index] for index in group) + sizes[following[0]] > limit  # none is cut too early


def split_set(folder: Path) -> list[Path]:
    return write(folder, METADATA, some_tensors(), 4000)


def test_faulty_sets_are_refused(tmp_path: Path) -> None:
    paths = split_set(tmp_path)
    count = len(paths)
    with pytest.raises(QuantkitError, match=rf"00002-of-.*: file 2 of {count} of a split set; give the first"):
        GgufFile(paths[1])
    renamed = paths[0].rename(tmp_path / "other.gguf")
    with pytest.raises(
        QuantkitError, match=rf"other.gguf: the first of {count} files; its name must end in -00001-of-"
    ):
        GgufFile(renamed)
    renamed.rename(paths[0])
    kept = paths[2].read_bytes()
    paths[2].unlink()
    with pytest.raises(QuantkitError, match=r"m-00003-of-.*: is missing, file 3 of .*; download it too"):
        GgufFile(paths[0])
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(QuantkitError, match=r"m-00003-of-.*: says split.no 1 of \d+, its name 2 of"):
        GgufFile(paths[0])
    paths[2].write_bytes(kept)
    keys = [key(b"split.no", 2, b"\2\0"), key(b"split.count", 2, struct.pack("<H", count))]
    for name, said in ((b"t.F32", "tensor t.F32 is in an earlier file too"), (b"new", "split.tensors.count says")):
        paths[2].write_bytes(image(keys, [entry(name, (1,), 0, 0)]))
        with pytest.raises(QuantkitError, match=said):
            GgufFile(paths[0])


RUNTIME = """
import json, os, sys, xllamacpp
for path in sys.argv[1:]:
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.verbosity = path, 64, 1, False, -1
    params.n_gpu_layers, params.cpuparams.n_threads, params.cpuparams_batch.n_threads = 0, 1, 1
    server = xllamacpp.Server(params)
    answer = server.handle_completions({"prompt": [5, 6, 7, 8], "max_tokens": 8, "temperature": 0})
    print("ANSWER", json.dumps(answer["choices"][0]["text"]), flush=True)
os._exit(0)
"""


@gguf_judge.runtime
def test_llama_cpp_reads_one_file_and_a_set_alike(tmp_path: Path) -> None:
    first = gguf_judge.write(tmp_path / "out", mmproj_type="none") / "tiny-F16.gguf"
    source = GgufFile(first)
    tensors = {info: source.raw(name).tobytes() for name, info in source.tensors.items()}
    (whole,) = write(tmp_path, source.metadata, tensors)
    assert GgufFile(whole).metadata == source.metadata
    splits = write(tmp_path, source.metadata, tensors, 2_000_000)
    assert len(splits) > 2
    command = [sys.executable, "-c", RUNTIME, *map(str, (first, whole, splits[0]))]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    answers = [json.loads(line.split(" ", 1)[1]) for line in output.splitlines() if line.startswith("ANSWER")]
    assert len(answers) == 3 and len(answers[0]) > 0 and len(set(answers)) == 1


# ---- writing ------------------------------------------------------------------------------------------------------


def test_pieces_of_any_kind_in_any_order(tmp_path: Path) -> None:
    tensors = some_tensors()
    (expected,) = write(tmp_path, METADATA, tensors)
    (tmp_path / "again").mkdir()
    with GgufWriter(tmp_path / "again", plan_files("m.gguf", METADATA, list(tensors))) as writer:
        for part in range(4):  # a quarter of every tensor at a time, last tensor first
            for info, data in reversed(tensors.items()):
                cuts = [len(data) * quarter // 4 for quarter in range(5)]
                piece = data[cuts[part] : cuts[part + 1]]
                array = np.frombuffer(piece, np.uint8)
                kinds = [piece, memoryview(piece), array, torch.tensor(array), bytearray(piece)]
                kinds.append(np.stack([array, array], 1)[:, 0])  # not contiguous
                writer.add(info.name, kinds[part if len(data) % 2 else part + 2])
        (name,) = writer.finish()
    assert (tmp_path / "again" / name).read_bytes() == expected.read_bytes()


def test_every_tensor_gets_exactly_its_bytes(tmp_path: Path) -> None:
    info = TensorInfo("a", (4,), TYPES["F32"])
    with GgufWriter(tmp_path, plan_files("m.gguf", {}, [info])) as writer:
        with pytest.raises(ValueError, match="tensor b was not declared"):
            writer.add("b", b"")
        with pytest.raises(ValueError, match="tensor a: pieces are bytes"):
            writer.add("a", np.zeros(4, np.float32))
        with pytest.raises(ValueError, match="tensor a: pieces are bytes"):
            writer.add("a", torch.zeros(4, dtype=torch.int8))
        writer.add("a", bytes(15))
        with pytest.raises(ValueError, match="tensor a takes 16 bytes, 17 were given"):
            writer.add("a", bytes(2))
        with pytest.raises(ValueError, match="tensor a takes 16 bytes, 15 were given"):
            writer.finish()
        writer.add("a", b"x")
        assert writer.finish() == ["m.gguf"]
    with pytest.raises(FileExistsError):
        GgufWriter(tmp_path, plan_files("m.gguf", {}, [info]))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ([TensorInfo("a", (1,), TYPES["F32"])] * 2, "two tensors would be called a"),
        ([TensorInfo("é" * 32, (1,), TYPES["F32"])], "1 to 63 bytes"),
        ([TensorInfo("", (1,), TYPES["F32"])], "1 to 63 bytes"),
        ([TensorInfo("a", (1,) * 5, TYPES["F32"])], "5 axes"),
        ([TensorInfo("a", (), TYPES["F32"])], "0 axes"),
        ([TensorInfo("a", (256, 33), TYPES["Q8_0"])], "Q8_0 cannot hold rows of 33"),
    ],
)
def test_what_ggml_cannot_hold_is_not_planned(tensors: list[TensorInfo], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan_files("m.gguf", {}, tensors)


@pytest.mark.parametrize(
    "value",
    [
        -1, 2**32, Value("uint16", 65536), Value("uint32", 0.5), Value("uint32", True), Value("int32", [1, "a"]),
        Value("string", 1), Value("string", ["a", 1]), Value("bool", 1), Value("float32", 1e39), Value("int8", [200]),
    ],
)  # fmt: skip
def test_values_that_their_kind_cannot_hold(value: Any) -> None:
    with pytest.raises(ValueError, match=r"key some\.key: "):
        plan_files("m.gguf", {"some.key": value}, [])


def test_keys_that_are_not_the_callers() -> None:
    for metadata in ({"": 1}, {"split.no": 1}, {"general.alignment": 64}):
        with pytest.raises(ValueError, match=r"is empty|^split\.|is always 32"):
            plan_files("m.gguf", metadata, [])
    assert plan_files("m.gguf", {"general.alignment": 32}, [])


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, calls, pwrite = some_tensors(), iter(range(100)), os.pwrite

    def fails_later(*call: Any) -> int:
        if next(calls) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(*call)

    monkeypatch.setattr(os, "pwrite", fails_later)
    with (
        pytest.raises(QuantkitError, match=r"out: the disk is full \(No space left"),
        atomic_output(tmp_path / "out") as to,
    ):
        write(to, METADATA, tensors)
    assert os.listdir(tmp_path) == []


# ---- damaged and hostile files ------------------------------------------------------------------------------------


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def entry(name: bytes, sizes: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def image(
    keys: list[bytes],
    entries: list[bytes],
    data: bytes = bytes(64),
    version: int = 3,
    alignment: int = 32,
    **counts: int,
) -> bytes:
    """A file from its parts; counts: others than the true ones."""
    head = struct.pack("<QQ", counts.get("n_tensors", len(entries)), counts.get("n_keys", len(keys)))
    head = b"GGUF" + struct.pack("<I", version) + head + b"".join(keys + entries)
    return head + bytes(-len(head) % alignment) + data


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


GOOD = image([key(b"k", 4, bytes(4))], [entry(b"a", (8,), 0, 0), entry(b"b", (8,), 0, 32)])
F32_A, ONE = entry(b"a", (8,), 0, 0), key(b"k", 4, bytes(4))
HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "truncated, 0 bytes found"),
    "half a header": (GOOD[:20], "truncated, 20 bytes found"),
    "another magic": (b"GGML" + GOOD[4:], "no GGUF file, it begins with b'GGML'"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "version 1": (image([], [], version=1), "GGUF version 1, quantkit reads 2 and 3"),
    "version 4": (image([], [], version=4), "GGUF version 4"),
    "big endian": (image([], [], version=3 << 24), "big-endian"),
    "2^60 keys": (image([ONE], [], n_keys=1 << 60), "1152921504606846976 keys would end"),
    "2^60 tensors": (image([], [F32_A], n_tensors=1 << 60), "1152921504606846976 tensors would end"),
    "more keys": (image([ONE], [], b"", n_keys=2), "a key is empty"),
    "a long key": (image([struct.pack("<Q", 1 << 63)], [], bytes(99)), "a key would end"),
    "a long text": (image([key(b"k", 8, struct.pack("<Q", 1 << 63))], []), "key k would end"),
    "2^60 numbers": (image([key(b"k", 9, array(10, 1 << 60))], []), "key k would end"),
    "2^60 texts": (image([key(b"k", 9, array(8, 1 << 60))], []), "key k would end"),
    "a long text of many": (image([key(b"k", 9, array(8, 2, text(b"a") + b"\xff" * 8))], []), "key k would end"),
    "a text where the file ends": (image([key(b"k", 9, array(8, 2, text(b"a" * 39)))], [], b""), "key k would end"),
    "arrays of arrays": (image([key(b"k", 9, array(9, 1, array(4, 0)))], []), "an array of arrays"),
    "an unknown kind": (image([key(b"k", 13, bytes(8))], []), "key k: unknown kind 13"),
    "an array of unknown": (image([key(b"k", 9, array(99, 1))], []), "key k: unknown kind 99"),
    "no UTF-8": (image([key(b"k", 8, text(b"\xff"))], []), "key k: a text is no UTF-8"),
    "a key of no UTF-8": (image([key(b"\xff", 8, text(b""))], []), "a key: a text is no UTF-8"),
    "an empty key": (image([key(b"", 4, bytes(4))], []), "a key is empty"),
    "a key twice": (image([ONE, ONE], []), "key k is there twice"),
    "a key of two lines": (image([key(b"a\nb", 13, b"")], []), r"key 'a\\nb': unknown kind"),
    "alignment 0": (image([key(b"general.alignment", 4, bytes(4))], []), "general.alignment 0 is no power"),
    "alignment 48": (image([key(b"general.alignment", 4, b"0\0\0\0")], []), "general.alignment 48 is no"),
    "alignment a text": (image([key(b"general.alignment", 8, text(b"32"))], []), "general.alignment '32' is"),
    "alignments": (image([key(b"general.alignment", 9, array(4, 1, b" \0\0\0"))], []), r"general.alignment \[32\]"),
    "a name of 64 bytes": (image([], [entry(b"n" * 64, (8,), 0, 0)]), "a name has 1 to 63 printable bytes"),
    "a name of two lines": (image([], [entry(b"a\nb", (8,), 0, 0)]), r"tensor 'a\\nb': a name has 1 to 63"),
    "no name": (image([], [entry(b"", (8,), 0, 0)]), "a name has 1 to 63 printable bytes"),
    "five axes": (image([], [entry(b"a", (1,) * 5, 0, 0)]), "tensor a: 5 axes"),
    "2^32 - 1 axes": (image([], [text(b"a") + b"\xff" * 4]), "tensor a: 4294967295 axes"),
    "overflow to 0": (image([], [entry(b"a", (1 << 32, 1 << 32), 0, 0)]), "is not believable"),
    "overflow to 4": (image([], [entry(b"a", ((1 << 62) + 1, 4), 0, 0)]), "is not believable"),
    "a size of 2^63": (image([], [entry(b"a", (1 << 63,), 0, 0)]), "is not believable"),
    "hidden by a 0": (image([], [entry(b"a", (0, 1 << 62, 4), 0, 0)]), "is not believable"),
    "an unknown type": (image([], [entry(b"a", (8,), 4, 0)]), "tensor a: unknown type 4"),
    "no whole blocks": (image([], [entry(b"a", (48, 2), 8, 0)]), r"Q8_0 cannot hold the shape \(2, 48\)"),
    "not aligned": (image([], [entry(b"a", (4,), 0, 4)]), "no multiple of 32"),
    "beyond the file": (image([], [entry(b"a", (8,), 0, 64)]), "ends at byte .*: truncated"),
    "far beyond": (image([], [entry(b"a", (8,), 0, (1 << 64) - 32)]), "ends at byte .*: truncated"),
    "a byte short": (GOOD[:-1], "tensor b: ends at byte .*: truncated"),
    "overlap": (image([], [F32_A, entry(b"b", (9,), 0, 0)]), "tensor b: overlaps"),
    "overlap, other order": (image([], [entry(b"a", (1,), 0, 32), entry(b"b", (9,), 0, 0)]), "tensor a: overlaps"),
    "a tensor twice": (image([], [F32_A, entry(b"a", (8,), 0, 32)]), "tensor a is there twice"),
    "a split's count": (image([key(b"split.count", 8, text(b"2"))], []), "split.count is no whole number"),
    "splits": (image([key(b"split.count", 10, b"\xff" * 8)], []), "split.count 18446744073709551615 is not"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_at_once(tmp_path: Path, name: str) -> None:
    data, said = HOSTILE[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    started = time.perf_counter()
    try:
        with pytest.raises(QuantkitError, match=said) as caught:
            GgufFile(path)
        assert time.perf_counter() - started < 1
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ")
    assert ";" in str(caught.value) and "\n" not in str(caught.value)


def test_a_good_file_of_every_permitted_oddness(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    odd = [entry(b"scalar", (), 0, 0), entry(b"late", (2,), 0, 64), entry(b"empty", (0, 5), 0, 64)]
    for version, alignment in ((2, 8), (3, 64)):
        keys = [key(b"general.alignment", 4, struct.pack("<I", alignment)), key(b"k", 9, array(7, 2, b"\x02\0"))]
        data = bytes(range(72))
        path.write_bytes(image(keys, odd, data, alignment=alignment, version=version))
        file = GgufFile(path)
        assert file.metadata["k"] == Value("bool", [True, False])
        assert [(info.shape, info.nbytes) for info in file.tensors.values()] == [((), 4), ((2,), 8), ((5, 0), 0)]
        assert [file.raw(name).tobytes() for name in file.tensors] == [data[:4], data[64:], b""]


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, said in ((tmp_path, "is no file"), (tmp_path / "fifo", "is no file"), (tmp_path / "x", "cannot be read")):
        with pytest.raises(QuantkitError, match=said):
            GgufFile(path)


def test_keys_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_HEADER_BYTES", 64)
    (tmp_path / "m.gguf").write_bytes(image([key(b"k", 8, text(bytes(50)))], []))
    with pytest.raises(QuantkitError, match="key k: the keys take over 64 bytes"):
        GgufFile(tmp_path / "m.gguf")


def test_a_large_vocabulary_is_read_in_a_second(tmp_path: Path) -> None:
    tokens = [f"Ġtoken{number}" for number in range(248_094)]
    merges = [f"Ġtok en{number}" for number in range(247_587)]
    kinds = Value("int32", [1] * len(tokens))
    metadata = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.merges": merges}
    (path,) = write(tmp_path, metadata, {})
    started = time.process_time()
    file = GgufFile(path)
    assert time.process_time() - started < 1
    assert {name: value.value for name, value in file.metadata.items()} == metadata | {
        "tokenizer.ggml.token_type": kinds.value
    }


def read_or_refuse(path: Path) -> None:
    """Everything is readable, or one line says why not; nothing else is raised."""
    try:
        file = GgufFile(path)
    except QuantkitError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000  # noqa: PT017
        return
    for name, info in file.tensors.items():
        assert file.raw(name).nbytes == info.nbytes


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good file with bytes changed, words replaced by telling ones, or parts cut out."""
    data = bytearray(draw(st.sampled_from([WHOLE, GOOD, SEED])))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(["byte", "word", "long", "cut", "end"]))
        if kind == "byte":
            data[place] = draw(st.integers(0, 255))
        elif kind == "word":
            data[place : place + 4] = struct.pack(
                "<I", draw(st.sampled_from([0, 1, 2, 8, 9, 12, 99, 2**31, 2**32 - 1]))
            )
        elif kind == "long":
            huge = draw(st.sampled_from([0, 1, 3, 64, 2**31, 2**32, 2**60, 2**63, 2**64 - 1, 2**64 - 32]))
            data[place : place + 8] = struct.pack("<Q", huge)
        elif kind == "cut":
            del data[place : place + draw(st.integers(1, 9))]
        else:
            del data[place:]
        if not data:
            break
    return bytes(data)


SEED = b"".join(
    [
        b"GGUF", struct.pack("<IQQ", 3, 3, 5), key(b"general.alignment", 4, b" \0\0\0"),
        key(b"split.count", 2, b"\1\0"),
        key(b"t", 9, array(8, 3, text(b"a") + text("né".encode()) + text(b""))), key(b"f", 9, array(6, 2, bytes(8))),
        key(b"d", 12, bytes(8)), entry(b"one", (32, 2), 8, 0), entry(b"two", (2, 1, 2), 1, 96), entry(b"x", (), 0, 128),
    ]
)  # fmt: skip
SEED += bytes(-len(SEED) % 32 + 160)


def test_what_is_damaged_below_is_good(tmp_path: Path) -> None:
    for data in (WHOLE, GOOD, SEED):
        (tmp_path / "m.gguf").write_bytes(data)
        assert GgufFile(tmp_path / "m.gguf").tensors


@settings(
    max_examples=int(os.environ.get("QUANTKIT_FUZZ", "400")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=damaged())
def test_damage_is_refused_or_harmless(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m-00001-of-00002.gguf"
    path.write_bytes(data)
    read_or_refuse(path)
