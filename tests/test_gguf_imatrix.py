"""Importance matrices made byte by byte here, both forms; damaged ones, another model's, and what is written.

That llama-imatrix's files are read, and that llama-quantize reads ours, was checked with llama.cpp's own tools by hand:
the file written from what was read of llama-imatrix's was the same to the byte.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit.errors import QuantkitError
from quantkit.gguf import imatrix
from quantkit.gguf.imatrix import Imatrix, check, read_imatrix, write_imatrix

DOWN, UP = "blk.0.ffn_down.weight", "blk.0.ffn_up.weight"
SUMS = {DOWN: [6.0, 0.0, 3.0], UP: [1.0, 8.0]}


# ---- the two forms, by hand ---------------------------------------------------------------------------------------


def text(data: str | bytes) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return struct.pack("<Q", len(data)) + data


KEYS = {
    "general.type": struct.pack("<I", 8) + text("imatrix"),
    "imatrix.datasets": struct.pack("<IIQ", 9, 8, 1) + text("wiki.txt"),
    "imatrix.chunk_count": struct.pack("<II", 4, 2),
    "imatrix.chunk_size": struct.pack("<II", 4, 5),
}
# name -> sizes innermost first, ggml type, bytes
Entries = dict[str, tuple[tuple[int, ...], int, bytes]]
ENTRIES: Entries = {
    f"{DOWN}.in_sum2": ((3,), 0, struct.pack("<3f", *SUMS[DOWN])),
    f"{DOWN}.counts": ((1,), 0, struct.pack("<f", 3)),
    f"{UP}.in_sum2": ((2,), 0, struct.pack("<2f", *SUMS[UP])),
    f"{UP}.counts": ((1,), 0, struct.pack("<f", 4)),
}


def new_form(keys: dict[str, bytes] = KEYS, entries: Entries = ENTRIES) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(keys))
    head += b"".join(text(key) + value for key, value in keys.items())
    data = b""
    for name, (sizes, kind, values) in entries.items():
        head += text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, len(data))
        data += values + bytes(-len(values) % 32)
    return head + bytes(-len(head) % 32) + data


def old_text(data: bytes) -> bytes:
    return struct.pack("<i", len(data)) + data


def old_entry(name: bytes, chunks: int, values: list[float], size: int | None = None) -> bytes:
    size = len(values) if size is None else size
    return old_text(name) + struct.pack(f"<ii{len(values)}f", chunks, size, *values)


OLD_ENTRIES = old_entry(DOWN.encode(), 2, [4.0, 0.0, 2.0]) + old_entry(UP.encode(), 4, [1.0, 8.0])
OLD = struct.pack("<i", 2) + OLD_ENTRIES
OLD_TAIL = struct.pack("<i", 7) + old_text(b"wiki.txt")


def read(folder: Path, data: bytes) -> Imatrix:
    (folder / "m").write_bytes(data)
    return read_imatrix(folder / "m")


def test_the_gguf_form(tmp_path: Path) -> None:
    found = read(tmp_path, new_form())
    assert {name: sums.tolist() for name, sums in found.sums.items()} == SUMS
    assert found.counts == {DOWN: 3, UP: 4}
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("wiki.txt",), 2, 5)
    assert found.mean_squares(DOWN).tolist() == [2.0, 0.0, 1.0]
    assert found.mean_squares(UP).dtype == torch.float32
    assert found.source == str(tmp_path / "m")


def test_a_row_of_its_own_axis_is_a_row(tmp_path: Path) -> None:
    entries = dict(ENTRIES) | {f"{DOWN}.in_sum2": ((3, 1), 0, struct.pack("<3f", *SUMS[DOWN]))}
    entries |= {f"{DOWN}.counts": ((1, 1), 0, struct.pack("<f", 3)), "other": ((1,), 1, bytes(2))}
    assert read(tmp_path, new_form(entries=entries)).mean_squares(DOWN).tolist() == [2.0, 0.0, 1.0]


def test_the_older_form(tmp_path: Path) -> None:
    found = read(tmp_path, OLD + OLD_TAIL)
    assert {name: found.mean_squares(name).tolist() for name in found.sums} == {DOWN: [2.0, 0.0, 1.0], UP: [0.25, 2.0]}
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("wiki.txt",), 7, 0)
    assert read(tmp_path, OLD).datasets == ()
    assert read(tmp_path, OLD + struct.pack("<i", 7)).chunk_count == 7
    assert read(tmp_path, OLD + struct.pack("<ii", 7, 0)).datasets == ()


def test_means_are_those_of_llama_cpp_to_the_bit() -> None:
    """It divides float32 by float32."""
    sums = np.random.default_rng(0).random(1000, np.float32) * 1e6
    found = Imatrix({"a": torch.from_numpy(sums)}, {"a": 30_011}).mean_squares("a").numpy()
    assert np.array_equal(found, sums / np.float32(30_011))


# ---- damage -------------------------------------------------------------------------------------------------------


def changed(name: str, sizes: tuple[int, ...], values: list[float]) -> bytes:
    return new_form(entries=ENTRIES | {name: (sizes, 0, struct.pack(f"<{len(values)}f", *values))})


def without(name: str) -> bytes:
    return new_form(entries={key: value for key, value in ENTRIES.items() if key != name})


NAN, INF = float("nan"), float("inf")
FAULTY: dict[str, tuple[bytes, str]] = {
    "a model": (new_form(KEYS | {"general.type": struct.pack("<I", 8) + text("model")}), "general.type says 'model'"),
    "no type": (new_form({key: value for key, value in KEYS.items() if key != "general.type"}), "says 'nothing'"),
    "no data sets": (
        new_form({key: KEYS[key] for key in KEYS if "datasets" not in key}),
        "imatrix.datasets is missing",
    ),
    "a data set": (
        new_form(KEYS | {"imatrix.datasets": KEYS["general.type"]}),
        "imatrix.datasets is missing or no list",
    ),
    "no chunk count": (
        new_form({key: KEYS[key] for key in KEYS if "count" not in key}),
        "imatrix.chunk_count is missing",
    ),
    "chunk size a text": (new_form(KEYS | {"imatrix.chunk_size": KEYS["general.type"]}), "chunk_size is missing or no"),
    "no entry": (new_form(entries={}), "holds no entry"),
    "no counts": (without(f"{UP}.counts"), rf"{UP}\.in_sum2 has no counts"),
    "no sums": (without(f"{DOWN}.in_sum2"), rf"{DOWN}\.counts has no sums"),
    "experts": (changed(f"{UP}.in_sum2", (1, 2), [1, 2]), r"in_sum2 has the shape \(2, 1\), several rows.*has none"),
    "experts' counts": (
        changed(f"{UP}.counts", (2,), [1, 2]),
        f"{UP} has 2 counts, as for experts; this model has none",
    ),
    "experts' counts in rows": (changed(f"{UP}.counts", (1, 2), [1, 2]), "counts has the shape .*this model has none"),
    "no count": (changed(f"{UP}.counts", (0,), []), f"{UP} has 0 counts"),
    "count 0": (changed(f"{UP}.counts", (1,), [0]), f"{UP} counts 0 tokens"),
    "count below 0": (changed(f"{UP}.counts", (1,), [-4]), f"{UP} counts -4 tokens"),
    "count NaN": (changed(f"{UP}.counts", (1,), [NAN]), f"{UP} counts nan tokens"),
    "count infinite": (changed(f"{UP}.counts", (1,), [INF]), f"{UP} counts inf tokens"),
    "sum NaN": (changed(f"{DOWN}.in_sum2", (3,), [1, NAN, 1]), f"{DOWN} holds values that are not finite"),
    "sum infinite": (changed(f"{DOWN}.in_sum2", (3,), [1, INF, 1]), f"{DOWN} holds values that are not finite"),
    "sum below 0": (changed(f"{DOWN}.in_sum2", (3,), [1, -1e-9, 1]), f"{DOWN} holds sums of squares below zero"),
    "no values": (changed(f"{DOWN}.in_sum2", (0,), []), f"{DOWN} has no values"),
    "float16": (new_form(entries=ENTRIES | {f"{UP}.counts": ((1,), 1, bytes(2))}), "counts is F16, not F32"),
    "truncated": (new_form()[:-32], "truncated"),
    "old, empty": (b"", "the count of entries would end at byte 4, the file at 0"),
    "old, no entry": (struct.pack("<i", 0), "holds no entry"),
    "old, entries below 0": (struct.pack("<i", -1) + OLD_ENTRIES, "the count of entries is -1"),
    "old, more entries": (struct.pack("<i", 3) + OLD_ENTRIES, "the length of a name would end"),
    "old, 2^31 entries": (struct.pack("<i", 2**31 - 1) + OLD_ENTRIES, "the length of a name would end"),
    "old, a long name": (struct.pack("<ii", 1, 2**31 - 1), "a name would end at byte 2147483655"),
    "old, name below 0": (struct.pack("<ii", 1, -5), "the length of a name is -5"),
    "old, no name": (struct.pack("<i", 1) + old_entry(b"", 1, [1.0]), "a tensor is called ''"),
    "old, binary name": (struct.pack("<i", 1) + old_entry(b"a\n", 1, [1.0]), r"a tensor is called 'a\\n'"),
    "old, no UTF-8": (struct.pack("<i", 1) + old_entry(b"\xff", 1, [1.0]), "a name is no UTF-8"),
    "old, twice": (struct.pack("<i", 2) + old_entry(b"a", 1, [1.0]) * 2, "a is there twice"),
    "old, no chunk": (struct.pack("<i", 1) + old_entry(b"a", 0, [1.0]), "a counts no chunk"),
    "old, chunks below 0": (struct.pack("<i", 1) + old_entry(b"a", -1, [1.0]), "the chunks of a is -1"),
    "old, many values": (struct.pack("<i", 1) + old_entry(b"a", 1, [1.0], 2**31 - 1), "the values of a would end"),
    "old, no values": (struct.pack("<i", 1) + old_entry(b"a", 1, []), "a has no values"),
    "old, NaN": (struct.pack("<i", 1) + old_entry(b"a", 1, [NAN]), "a holds values that are not finite"),
    "old, below 0": (struct.pack("<i", 1) + old_entry(b"a", 1, [-1.0]), "a holds sums of squares below zero"),
    "old, cut in the tail": (OLD + OLD_TAIL[:-1], "the data set's name would end"),
    "old, more": (OLD + OLD_TAIL + b"x", "1 bytes follow its end"),
    "a safetensors file": (struct.pack("<Q", 99) + b'{"a": {}}'.ljust(99), "no importance matrix"),
    "some text": (b"name = value\n" * 50, "no importance matrix"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    data, said = FAULTY[name]
    with pytest.raises(QuantkitError, match=said) as caught:
        read(tmp_path, data)
    assert str(caught.value).startswith(f"{tmp_path / 'm'}: ")
    assert ";" in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(QuantkitError, match="is no file; give an importance matrix"):
            read_imatrix(path)
    monkeypatch.setattr(imatrix, "MAX_OLD_BYTES", len(OLD))
    assert read(tmp_path, OLD).sums
    with pytest.raises(QuantkitError, match="too large for an importance matrix"):
        read(tmp_path, OLD + OLD_TAIL)


@settings(
    max_examples=int(os.environ.get("QUANTKIT_FUZZ", "300")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damage_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    image = bytearray(data.draw(st.sampled_from([new_form(), OLD, OLD + OLD_TAIL])))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(image) - 1))
        word = data.draw(
            st.sampled_from([b"", b"\0", b"\xff", b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0" * 8, b"\0\0\x80\x7f"])
        )
        image[place : place + len(word)] = word
        if not word:
            del image[place + data.draw(st.integers(0, 8)) :]
            break
    try:
        found = read(tmp_path, bytes(image))
    except QuantkitError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    for name in found.sums:
        assert bool((found.mean_squares(name) >= 0).all())


# ---- whose it is --------------------------------------------------------------------------------------------------


def matrix(blocks: int, hidden: int, feed_forward: int, *more: str) -> Imatrix:
    widths = {f"blk.{number}.ffn_up.weight": hidden for number in range(blocks)}
    widths |= {f"blk.{number}.ffn_down.weight": feed_forward for number in range(blocks)}
    widths |= dict.fromkeys(more, hidden)
    sums = {name: torch.ones(width) for name, width in widths.items()}
    return Imatrix(sums, dict.fromkeys(sums, 1), source="some.gguf")


def widths(found: Imatrix) -> dict[str, int]:
    return {name: len(sums) for name, sums in found.sums.items()}


def test_a_matrix_of_this_model() -> None:
    expected = widths(matrix(2, 8, 16)) | {"token_embd.weight": 8, "output.weight": 8}
    assert check(matrix(2, 8, 16, "blk.0.attn_norm.weight"), expected) == ["token_embd.weight", "output.weight"]
    assert check(matrix(2, 8, 16, "output.weight", "blk.9.nextn.weight"), expected) == ["token_embd.weight"]


def test_a_matrix_of_another_model_says_whose() -> None:
    expected = widths(matrix(2, 8, 16))
    with pytest.raises(QuantkitError) as wider:
        check(matrix(3, 12, 16), expected)
    assert str(wider.value) == (
        "some.gguf: blk.0.ffn_up.weight has 12 values, this model's takes 8; it seems to be of a model with 3 layers, "
        "hidden size 12, feed-forward 16, this one has 2 layers, hidden size 8, feed-forward 16; give one of this "
        "model, or leave --imatrix out"
    )
    with pytest.raises(
        QuantkitError, match=r"has no entry for blk\.1\.ffn_up\.weight; it seems to be of a model with 1 l"
    ):
        check(matrix(1, 8, 16), expected)
    with pytest.raises(QuantkitError, match=r"no entry for blk\.1\.attn_q\.weight; it is incomplete"):
        check(matrix(2, 8, 16), expected | {"blk.1.attn_q.weight": 8})
    with pytest.raises(
        QuantkitError, match=r"no entry for blk\.0\.ffn_up\.weight; it seems to be of a model with 0 layers,"
    ):
        check(Imatrix({"v.blk.0.ffn_up.weight": torch.ones(8)}, {"v.blk.0.ffn_up.weight": 1}), expected)
    with pytest.raises(QuantkitError, match=r"output\.weight has 9 values, this model's takes 8"):
        check(Imatrix({"output.weight": torch.ones(9)}, {"output.weight": 1}), {"output.weight": 8})


# ---- writing ------------------------------------------------------------------------------------------------------


def test_written_as_by_hand(tmp_path: Path) -> None:
    sums = {name: torch.tensor(SUMS[name]) for name in (UP, DOWN)}  # the file is sorted
    path = tmp_path / "new.gguf"
    path.write_bytes(b"older")
    write_imatrix(path, Imatrix(sums, {DOWN: 3, UP: 4}, ("wiki.txt",), 2, 5))
    assert path.read_bytes() == new_form()
    assert os.listdir(tmp_path) == ["new.gguf"]


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    sums = {"a": torch.rand(5, dtype=torch.float64), "b": torch.rand(2, 3).T[0]}  # another dtype; not contiguous
    write_imatrix(tmp_path / "m", Imatrix(sums, {"a": 7, "b": 2}))
    reader = gguf.GGUFReader(tmp_path / "m")
    assert reader.fields["general.type"].contents() == "imatrix"
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    assert list(found) == ["a.in_sum2", "a.counts", "b.in_sum2", "b.counts"]
    for name in sums:
        assert np.array_equal(found[f"{name}.in_sum2"], sums[name].float().numpy())
    assert (found["a.counts"].tolist(), found["b.counts"].tolist()) == ([7], [2])
    again = read_imatrix(tmp_path / "m")
    assert again.datasets == () and torch.equal(again.sums["b"], sums["b"])


def test_what_is_no_matrix_is_not_written(tmp_path: Path) -> None:
    for sums, counts in (({}, {}), ({"a": torch.ones(2)}, {}), ({"a": torch.ones(2, 2)}, {"a": 1})):
        with pytest.raises(ValueError, match="an importance matrix has"):
            write_imatrix(tmp_path / "m", Imatrix(sums, counts))
    assert os.listdir(tmp_path) == []


def test_a_disk_that_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Imatrix({"a": torch.ones(2)}, {"a": 1})
    with pytest.raises(QuantkitError, match=r"nowhere/m: cannot be written \(No such file"):
        write_imatrix(tmp_path / "nowhere" / "m", found)
    (tmp_path / "m").write_text("older")
    calls, pwrite = iter(range(9)), os.pwrite

    def fails_later(*call: Any) -> int:
        if next(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(*call)

    monkeypatch.setattr(os, "pwrite", fails_later)
    with pytest.raises(QuantkitError, match=r"m: cannot be written \(No space left on device\); choose another place"):
        write_imatrix(tmp_path / "m", found)
    assert os.listdir(tmp_path) == ["m"] and (tmp_path / "m").read_text() == "older"
