"""`quantkit calib`: what it shows of a mix, the file that it builds, the rows that it refuses."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import chat, image_part, picture, text_part, user, write_mixed, write_rows
from PIL import Image
from processes import refused, serving

from quantkit.calibration import PrepareOptions, build, build_from, load_conversations, load_processor
from quantkit.calibration.check import _Run, mismatch
from quantkit.calibration.describe import describe, slices_of
from quantkit.calibration.images import Decoder
from quantkit.errors import QuantkitError
from quantkit.recipe import CalibrationOptions

Run = Callable[..., tuple[int, str, str]]
USER = {"role": "user", "content": "Hi"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return write_mixed(tmp_path / "mixed", 16)


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """An evaluation set that shares nothing with the other data of these tests, and is read at once."""
    return write_rows(tmp_path / "apart.jsonl", [{"messages": [user("An evaluation item.")]}])


def _figures(run: Run, path: Path, *arguments: object) -> dict[str, Any]:
    code, _, err = run("calib", "inspect", *arguments, "--json", path)
    assert code == 0, err
    return json.loads(path.read_text(encoding="utf-8"))


# ---- inspect


def test_inspect_shows_the_mix_that_awq_takes(
    run: Run, random_checkpoint: Path, mixed: Path, apart: Path, tmp_path: Path
) -> None:
    flags = ["--samples", 9, "--max-tokens", 300, "--seed", 3, "--downsample-mode", "both", "--cache", tmp_path / "c"]
    flags = ["--model", random_checkpoint, "--eval-data", apart, *flags]
    code, out, _ = run("calib", "inspect", mixed, *flags)
    options = CalibrationOptions(
        model=str(random_checkpoint), calib=(str(mixed),), samples=9, max_tokens=300, seed=3, downsample_mode="both",
        eval_data=str(apart), no_cache=True,
    )  # fmt: skip
    mix = build_from(options, random_checkpoint)
    assert code == 0 and f"fingerprint {mix.fingerprint} (prepared now)" in out
    assert f"nothing of --eval-data {apart} is in it" in out
    found = _figures(run, tmp_path / "f.json", mixed, *flags)
    assert found["cached"] and found["fingerprint"] == mix.fingerprint
    cached = build_from(replace(options, no_cache=False, cache=tmp_path / "c"), random_checkpoint)
    assert cached.cached and cached.fingerprint == mix.fingerprint  # the same entry serves both


def test_figures_against_a_count_by_hand(random_checkpoint: Path, mixed: Path, tmp_path: Path) -> None:
    """Tokens by looking at each id, slices by asking the processor for its grids."""
    picture(tmp_path / "wide/a.png", size=(900, 300))
    picture(tmp_path / "wide/b.png", size=(40, 300))
    options = PrepareOptions(samples=None, max_slice_nums=4)
    mix = build([str(mixed), str(tmp_path / "wide")], random_checkpoint, options)
    processor = load_processor(random_checkpoint)
    marks = {processor.image_token_id, processor.video_token_id}
    found = describe(mix)
    for one in found.groups:
        own = [s for s in mix.samples if s.modality == one.modality and (str(tmp_path / "wide") in s.source) ==
               (one.source == "wide")]  # fmt: skip
        ids = [s.input_ids[0].tolist() for s in own]
        assert one.samples == len(own) > 0
        assert one.vision_tokens == sum(token in marks for row in ids for token in row)
        assert one.tokens == sum(map(len, ids)) and one.longest == max(map(len, ids))
        assert one.answer_tokens == sum(len(row) - s.prompt_length for row, s in zip(ids, own, strict=True))
    assert found.total.samples == sum(one.samples for one in found.groups) == len(mix.samples) == 18
    expected = []
    for conversation in mix.conversations or []:
        decoder = Decoder(conversation.source)
        parts = [part for one in conversation.messages for part in one["content"] if part["type"] == "image"]
        pictures = [decoder.image(part["image"]) for part in parts]
        if pictures:
            grids = processor.image_processor(pictures, max_slice_nums=4)["grids"]
            expected += [int(rows) * int(columns) for rows, columns in grids]
    assert [count for sample in mix.samples for count in slices_of(sample)] == expected
    assert found.pictures.slices == sum(expected) > 0 and found.pictures.sliced == sum(n > 0 for n in expected)
    assert found.pictures.images == len(expected) and found.pictures.clips == 2
    assert found.pictures.largest == (900, 300)
    assert sum(bucket.count for bucket in found.pictures.shapes) == len(expected) + 2
    assert next(b.label for b in found.pictures.shapes if b.count) == "taller than 1:4"
    assert sum(bucket.count for bucket in found.texts) == 18


def test_slices_of_images_beside_a_clip(random_checkpoint: Path, tmp_path: Path) -> None:
    picture(tmp_path / "wide.png", size=(900, 300))
    frames = [picture(tmp_path / f"f{n}.png", seed=n) for n in range(3)]
    clip = {"type": "video", "video": [Path(frame).name for frame in frames]}
    rows = [{"messages": chat(clip, image_part("wide.png"), text_part("Compare."))}]
    mix = build([str(write_rows(tmp_path / "r.jsonl", rows))], random_checkpoint, PrepareOptions(max_slice_nums=4))
    assert len(slices_of(mix.samples[0])) == 1 and slices_of(mix.samples[0])[0] > 1
    assert describe(mix).pictures.clips == 1


def test_left_out_and_shortened_rows_are_told(run: Run, random_checkpoint: Path, apart: Path, tmp_path: Path) -> None:
    long = [*chat(text_part("Short?")), *chat(text_part("word " * 200))]
    rows = [
        {"messages": chat(text_part("What?"))}, {"messages": [user("")], "answer": 5}, {"messages": long},
        {"messages": [user("word " * 300)]},
    ]  # fmt: skip
    path = write_rows(tmp_path / "r.jsonl", rows)
    flags = [path, "--model", random_checkpoint, "--eval-data", apart, "--max-tokens", 80]
    refused(run("calib", "inspect", *flags), f"{path}:2", "'answer'")
    for _ in range(2):  # prepared, then from the cache
        code, out, _ = run("calib", "inspect", *flags, "--skip-bad")
        assert code == 0 and "left out 1 bad rows" in out and "1 shortened, 1 left out" in out
        assert "(prepared now)" in out  # nothing would tell that the bad row was mended
    write_rows(path, [rows[0], *rows[2:]])
    for _ in range(2):  # prepared, then from the cache
        code, out, _ = run("calib", "inspect", *flags)
        assert code == 0 and "1 shortened, 1 left out" in out
    assert "(from the cache)" in out


def test_inspect_reports_an_overlap_and_build_refuses_it(
    run: Run, random_checkpoint: Path, mixed: Path, tmp_path: Path
) -> None:
    flags = [mixed, "--model", random_checkpoint, "--eval-data", mixed, "--samples", 3]
    code, out, _ = run("calib", "inspect", *flags)
    assert code == 0 and "overlap: shares" in out and "--allow-overlap" in out
    target = tmp_path / "mix.parquet"
    refused(run("calib", "build", *flags, "--out", target), "--allow-overlap")
    assert not target.exists()
    assert run("calib", "build", *flags, "--out", target, "--allow-overlap")[0] == 0 and target.exists()


def test_sources_as_arguments_and_by_flag_are_all_read(
    run: Run, random_checkpoint: Path, apart: Path, tmp_path: Path
) -> None:
    names = []
    for name in "abc":
        names.append(write_rows(tmp_path / f"{name}.jsonl", [{"messages": chat(text_part(f"What is {name}?"))}]))
    flags = ["--model", random_checkpoint, "--eval-data", apart]

    def sources(*arguments: object) -> list[str]:
        return [one["source"] for one in _figures(run, tmp_path / "f.json", *arguments, *flags)["sources"]]

    assert sources(names[0], names[1]) == ["a.jsonl", "b.jsonl"]
    assert sources("--calib", names[2], names[0]) == ["a.jsonl", "c.jsonl"]
    assert sources(names[0], "--calib", "bundled", "--samples", 3) == ["a.jsonl", "bundled"]


def test_no_path_of_this_machine_is_written(
    run: Run, random_checkpoint: Path, mixed: Path, apart: Path, tmp_path: Path
) -> None:
    flags = [mixed, "--model", random_checkpoint, "--eval-data", apart, "--samples", 4]
    assert run("calib", "inspect", *flags, "--json", tmp_path / "m.json", "--html", tmp_path / "m.html")[0] == 0
    assert run("calib", "build", *flags, "--out", tmp_path / "m.parquet")[0] == 0
    for name in ("m.json", "m.html", "m.parquet"):
        assert str(tmp_path).encode() not in (tmp_path / name).read_bytes(), name


# ---- build


def _one_of_each(folder: Path) -> Path:
    """Rows of every kind that a file has to keep."""
    first, second = (Path(picture(folder / f"{n}.png", seed=n)).name for n in range(2))
    pixels = io.BytesIO()
    Image.new("RGB", (70, 50), "teal").save(pixels, "JPEG")
    inline = "data:image/jpeg;base64," + base64.b64encode(pixels.getvalue()).decode()
    frames = [first, second, first, second]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}]}
    reply = {"role": "tool", "content": "2", "name": "add"}
    thinking = {"role": "assistant", "content": "Blue.", "reasoning_content": "It looks blue."}
    rows = [
        {"id": "same", "messages": chat(image_part(first), text_part("Is <image> a tag?")), "license": "CC0"},
        {"messages": chat(image_part(inline), image_part(second), text_part("Both?")), "answer": ["Yes", "yes"]},
        {"messages": chat({"type": "video", "video": frames}, text_part("Which?")), "language": "zh"},
        {"messages": chat({"type": "video", "video": frames, "fps": 2}, image_part(first), text_part("And?"))},
        {"messages": chat({"type": "video", "video": frames[:2]}, {"type": "video", "video": frames[2:]})},
        {"messages": [user("1 + 1?"), call, reply, {"role": "assistant", "content": "2"}], "tools": TOOLS},
        {"messages": [user("What colour?"), thinking], "credit": "A. Painter"},
        {"messages": [user("Pick."), {"role": "assistant", "content": "B"}], "answer": "B", "metric": "choice",
         "choices": ["red", "blue"], "tags": {"task": "pick"}},
        {"text": "A document. " * 30},
    ]  # fmt: skip
    return write_rows(folder / "rows.jsonl", rows)


def test_a_built_file_gives_the_same_samples(run: Run, random_checkpoint: Path, apart: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    first = _one_of_each(tmp_path / "one")
    second = write_rows(tmp_path / "two.jsonl", [{"id": "same", "messages": chat(text_part("Another."))}])
    target = tmp_path / "mix.parquet"
    flags = ["--model", random_checkpoint, "--eval-data", apart, "--max-tokens", 400]
    code, out, err = run("calib", "build", first, f"{second},weight=2", *flags, "--out", target)
    assert code == 0, err
    again = _figures(run, tmp_path / "f.json", "--calib", target, "--samples", 10, *flags)
    assert f"fingerprint {again['fingerprint']}" in out and "10 conversations" in out
    assert f"next: quantkit awq --calib {target} --samples 10 --model {random_checkpoint} --max-tokens 400" in out

    before = [*load_conversations(first), *load_conversations(second)]
    after = load_conversations(target)
    assert [one.id for one in after] == [*(one.id for one in before[:9]), "two.jsonl/same"]
    for one, other in zip(before, after, strict=True):
        assert (one.modality, one.language, one.tools, one.answer, one.accepted, one.metric, one.choices, one.tags) == (
            other.modality, other.language, other.tools, other.answer, other.accepted, other.metric, other.choices,
            other.tags,
        )  # fmt: skip
        assert one.document == other.document
        assert _with_bytes(one) == _with_bytes(other)  # not encoded again
    table = parquet.read_table(target).to_pylist()
    assert [row["licence"] for row in table][:2] == ["CC0", None] and table[6]["credit"] == "A. Painter"
    assert [row["source"] for row in table] == [*["rows.jsonl"] * 9, "two.jsonl"]
    assert table[0]["images"] == [{"bytes": (tmp_path / "one/0.png").read_bytes(), "path": "0.png"}]
    assert len(table[3]["frames"]) == 4 and table[4]["frames"] is None


def _with_bytes(conversation: Any) -> list[Any]:
    decoder = Decoder(conversation.source)

    def part(one: dict[str, Any]) -> Any:
        if one["type"] == "text":
            return one
        if one["type"] == "image":
            return decoder.read(one["image"])
        return one.get("fps"), [decoder.read(frame) for frame in one["video"]]

    return [{**one, "content": [part(p) for p in one["content"]]} for one in conversation.messages]


def test_a_clip_file_is_kept_as_it_is(random_checkpoint: Path, tmp_path: Path) -> None:
    from quantkit.calibration.export import write_parquet
    from quantkit.calibration.originals import originals
    from quantkit.calibration.sources import parse_source

    pytest.importorskip("av")
    colours = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green", "blue", "white")]
    colours[0].save(tmp_path / "clip.gif", save_all=True, append_images=colours[1:], duration=500)
    rows = [{"messages": chat({"type": "video", "video": "clip.gif"}, text_part("What changes?"))}]
    source = str(write_rows(tmp_path / "r.jsonl", rows))
    mix = build([source], random_checkpoint, PrepareOptions())
    target = tmp_path / "mix.parquet"
    assert write_parquet(originals(mix, [parse_source(source)]), target, {}) == 1
    assert build([str(target)], random_checkpoint, PrepareOptions()).fingerprint == mix.fingerprint
    kept = load_conversations(target)[0].messages[0]["content"][0]["video"]
    assert base64.b64decode(kept.partition(",")[2]) == (tmp_path / "clip.gif").read_bytes()


def test_a_mix_from_the_cache_builds_the_same_file(
    run: Run, random_checkpoint: Path, mixed: Path, apart: Path, tmp_path: Path
) -> None:
    flags = [mixed, "--model", random_checkpoint, "--eval-data", apart, "--samples", 5, "--cache", tmp_path / "cache"]
    for name in ("a.parquet", "b.parquet"):
        assert run("calib", "build", *flags, "--out", tmp_path / name)[0] == 0
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_mix_kept_before_its_folder_moved(
    run: Run, random_checkpoint: Path, mixed: Path, apart: Path, tmp_path: Path
) -> None:
    """The cache knows contents; a row lies elsewhere now."""
    flags = ["--model", random_checkpoint, "--eval-data", apart, "--samples", 5, "--cache", tmp_path / "cache"]
    assert run("calib", "inspect", mixed, *flags)[0] == 0
    shutil.copytree(mixed, tmp_path / "new/mixed")
    (mixed / "manifest.jsonl").unlink()
    target = tmp_path / "mix.parquet"
    assert "(from the cache)" in run("calib", "inspect", tmp_path / "new/mixed", *flags)[1]
    for bad in ("", "{no row\n"):  # the second time with a bad row beside the others
        with open(tmp_path / "new/mixed/manifest.jsonl", "a") as file:
            file.write(bad)
        code, out, err = run(
            "calib", "build", tmp_path / "new/mixed", *flags, "--out", target, "--overwrite", "--skip-bad"
        )
        assert code == 0, err
        again = _figures(run, tmp_path / "f.json", target, *flags)
        assert f"fingerprint {again['fingerprint']}" in out and len(load_conversations(target)) == 5


def test_both_modes_come_back_from_a_file(
    run: Run, random_checkpoint: Path, mixed: Path, apart: Path, tmp_path: Path
) -> None:
    flags = ["--model", random_checkpoint, "--eval-data", apart, "--samples", 11, "--downsample-mode", "both"]
    code, out, err = run("calib", "build", mixed, *flags, "--seed", 4, "--out", tmp_path / "mix.parquet")
    assert code == 0, err
    again = _figures(run, tmp_path / "f.json", tmp_path / "mix.parquet", *flags)
    assert f"fingerprint {again['fingerprint']}" in out
    assert {one["label"] for one in again["modes"]} == {"16x", "4x"}


def test_row_groups_are_bounded(
    run: Run, random_checkpoint: Path, mixed: Path, apart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow import parquet

    flags = [mixed, "--model", random_checkpoint, "--eval-data", apart, "--samples", 16]
    monkeypatch.setattr("quantkit.calibration.export.GROUP_ROWS", 7)
    assert run("calib", "build", *flags, "--out", tmp_path / "rows.parquet")[0] == 0
    monkeypatch.setattr("quantkit.calibration.export.GROUP_BYTES", 1)
    assert run("calib", "build", *flags, "--out", tmp_path / "bytes.parquet")[0] == 0
    for name, expected in (("rows", [7, 7, 2]), ("bytes", [1] * 16)):
        file = parquet.ParquetFile(tmp_path / f"{name}.parquet").metadata
        assert [file.row_group(index).num_rows for index in range(file.num_row_groups)] == expected


def test_targets_that_are_refused(run: Run, random_checkpoint: Path, mixed: Path, apart: Path, tmp_path: Path) -> None:
    flags = [mixed, "--model", random_checkpoint, "--eval-data", apart, "--samples", 2]
    target = tmp_path / "mix.parquet"
    target.write_bytes(b"precious")
    refused(run("calib", "build", *flags, "--out", target), str(target), "--overwrite")
    assert target.read_bytes() == b"precious"
    refused(run("calib", "build", *flags, "--out", tmp_path / "mix.csv"), "must end in .parquet")
    refused(run("calib", "build", *flags, "--out", tmp_path / "no/mix.parquet"), "does not exist")
    assert run("calib", "build", *flags, "--out", target, "--overwrite")[0] == 0
    assert target.read_bytes()[:4] == b"PAR1"


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_build_that_stops_leaves_nothing(
    run: Run, random_checkpoint: Path, mixed: Path, apart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    stop: BaseException,
) -> None:  # fmt: skip
    """After the first row group has been written."""
    from pyarrow import parquet

    written = []
    write = parquet.ParquetWriter.write_batch

    def failing(self: Any, *arguments: Any, **named: Any) -> None:
        if written:
            raise stop
        written.append(list(target.parent.glob(".*partial*")))
        write(self, *arguments, **named)

    target = tmp_path / "out/mix.parquet"
    target.parent.mkdir()
    target.write_bytes(b"precious")
    monkeypatch.setattr("quantkit.calibration.export.GROUP_ROWS", 2)
    monkeypatch.setattr(parquet.ParquetWriter, "write_batch", failing)
    flags = [mixed, "--model", random_checkpoint, "--eval-data", apart, "--samples", 6, "--overwrite"]
    result = run("calib", "build", *flags, "--out", target)
    assert written and written[0], result
    if isinstance(stop, OSError):
        refused(result, str(target), "No space left")
    else:
        assert result[0] == 130 and "interrupted" in result[2]
    assert [path.name for path in target.parent.iterdir()] == ["mix.parquet"]
    assert target.read_bytes() == b"precious"


def test_without_pyarrow(
    run: Run, random_checkpoint: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(run("calib", "build", mixed, "--model", random_checkpoint, "--out", tmp_path / "m.parquet"),
            "pip install 'quantkit[data]'")  # fmt: skip


# ---- check


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """Rows 2, 3, 5 and 6 of seven are bad, each in another phase of their way."""
    picture(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    rows = [
        {"messages": chat(image_part("good.png"), text_part("First?"))},
        {"messages": chat(image_part("bad.png"), text_part("Second?"))},
        {"messages": [{"role": "assistant", "content": "No question."}]},
        {"messages": chat(text_part("Fourth?"))},
        {"messages": chat(image_part("gone.png"), text_part("Fifth?"))},
        {"messages": chat(image_part("good.png"), text_part("Sixth?"), {"type": "image"})},
        {"messages": chat(image_part("good.png"), text_part("Seventh?"))},
    ]
    return write_rows(tmp_path / "rows.jsonl", rows)


@pytest.mark.parametrize("process", [True, False])
def test_check_lists_every_bad_row_in_order(
    run: Run, random_checkpoint: Path, faulty: Path, apart: Path, process: bool
) -> None:
    flags = [faulty, "--model", random_checkpoint, "--eval-data", apart, *([] if process else ["--no-process"])]
    code, out, _ = run("calib", "check", *flags)
    lines = out.splitlines()
    expected = [("2", "bad.png"), ("3", "role 'user'"), ("5", "gone.png"), ("6", "more image parts")]
    assert code == 2
    for line, (row, words) in zip(lines, expected, strict=False):
        assert line.startswith(f"{faulty}:{row}: ") and words in line
    assert len([line for line in lines if line.startswith(str(faulty))]) == 4
    assert lines[-1].startswith("7 rows: 3 good, 4 bad; ") and lines[-1].endswith(" seconds")
    code, other, _ = run("calib", "check", *flags, "--skip-bad")
    assert code == 0 and other.splitlines()[:4] == lines[:4]
    assert "4 of 7 rows are bad and would be left out" in other


def test_private_urls_reach_the_evaluation_set(run: Run, random_checkpoint: Path, mixed: Path, tmp_path: Path) -> None:
    picture(tmp_path / "served/other.png", seed=3, size=(80, 64))  # the pixels of images/3.png
    with serving(tmp_path / "served") as url:
        rows = [{"id": "seen", "messages": chat(image_part(f"{url}/other.png"), text_part("Another?"))}]
        flags = [mixed, "--model", random_checkpoint, "--eval-data", write_rows(tmp_path / "eval.jsonl", rows)]
        for command in ("inspect", "check"):
            refused(run("calib", command, *flags), "is refused")
            code, out, err = run("calib", command, *flags, "--private-urls")
            assert code == 0 and "overlap: shares" in out, err
        out = tmp_path / "mix.parquet"
        refused(run("calib", "build", *flags, "--private-urls", "--out", out), "shares 1 items", "(seen)")


def test_no_row_ends_a_check(run: Run, random_checkpoint: Path, apart: Path, tmp_path: Path) -> None:
    """What the chat template refuses, a rate at which a clip lasts for years, names that are not UTF-8."""
    pictures = [Path(picture(tmp_path / f"{n}.png", seed=n)).name for n in range(2)]
    system = {"role": "system", "content": "Be brief."}
    rows = [
        {"messages": [*chat(text_part("One?")), system, *chat(text_part("Two?"))]},
        {"messages": [user({"type": "video", "video": pictures, "fps": 1e-9}, text_part("What moves?"))]},
        {"messages": [USER], "language": "\ud800"},
        {"messages": [USER], "tags": {"kind": "\udfff"}},
        {"messages": chat(text_part("Good?"))},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))  # escapes as they are
    expected = ["A system message must come first", "a video of 2 frames lasts", "half a surrogate", "half a surrogate"]
    flags = [path, "--model", random_checkpoint, "--eval-data", apart]
    for more, code in (([], 2), (["--skip-bad"], 0)):
        found, out, err = run("calib", "check", *flags, *more)
        assert found == code and "5 rows: 1 good, 4 bad" in out, err
        for number, (line, words) in enumerate(zip(out.splitlines(), expected, strict=False), start=1):
            assert line.startswith(f"{path}:{number}: ") and words in line
    code, out, err = run("calib", "inspect", *flags, "--skip-bad")
    assert code == 0 and "left out 4 bad rows" in out, err


def test_a_file_whose_name_is_not_utf8(run: Run, random_checkpoint: Path, apart: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    picture(folder / "good.png")
    try:
        shutil.copy(folder / "good.png", os.fsencode(folder) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes no such name")
    flags = [folder, "--model", random_checkpoint, "--eval-data", apart]
    code, out, err = run("calib", "check", *flags)
    assert code == 2 and "2 rows: 1 good, 1 bad" in out, err
    assert out.startswith(f"{folder}/caf\\udce9.png: ") and "rename the file" in out
    code, out, err = run("calib", "inspect", *flags, "--skip-bad")
    assert code == 0 and "left out 1 bad rows" in out, err
    refused(run("calib", "inspect", *flags), "caf\\udce9.png", "rename the file")
    table = Path(os.fsdecode(os.fsencode(tmp_path) + b"/t\xe9.jsonl"))
    write_rows(table, [{"messages": chat(text_part("In a table?"))}])
    code, out, err = run("calib", "inspect", table, *flags[1:])
    assert code == 0 and "t\\udce9.jsonl" in out, err


def test_words_between_colons_are_no_pictures(run: Run, random_checkpoint: Path, apart: Path, tmp_path: Path) -> None:
    flags = ["--model", random_checkpoint, "--eval-data", apart]
    refused(run("calib", "inspect", tmp_path / "set:train:x", *flags), "set:train:x")
    folder = tmp_path / "a:train:b"
    picture(folder / "good.png")
    assert "a:train:b" in run("calib", "inspect", folder, *flags)[1]


def test_good_rows_are_zero(run: Run, random_checkpoint: Path, mixed: Path, apart: Path) -> None:
    code, out, _ = run("calib", "check", mixed, "--model", random_checkpoint, "--eval-data", apart)
    assert code == 0 and "16 rows: 16 good, 0 bad" in out and "would be left out" not in out


def test_rows_that_only_the_processor_refuses(
    run: Run, random_checkpoint: Path, mixed: Path, apart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.calibration.prepare import Preparer

    process = Preparer._process

    def refusing(self: Any, cut: Any, ready: Any, mode: str) -> Any:
        if cut.conversation.id == "m-003":
            raise ValueError("a fault of its own")
        sample = process(self, cut, ready, mode)
        if cut.conversation.id == "m-001":  # one placeholder fewer than features
            at = int(sample.vision_mask.nonzero()[0])
            sample.vision_mask[at] = False
        return sample

    monkeypatch.setattr(Preparer, "_process", refusing)
    flags = [mixed, "--model", random_checkpoint, "--eval-data", apart]
    code, out, _ = run("calib", "check", *flags)
    assert code == 2 and "refuses this row (a fault of its own)" in out.splitlines()[1]
    assert "placeholders in 1 runs for" in out.splitlines()[0]
    assert run("calib", "check", *flags, "--no-process")[0] == 0


def test_placeholders_must_match_features(random_checkpoint: Path, mixed: Path) -> None:
    for mode in ("16x", "4x"):
        mix = build([str(mixed)], random_checkpoint, PrepareOptions(downsample_mode=mode))
        assert [mismatch(sample) for sample in mix.samples] == [None] * 16
        sample = next(one for one in mix.samples if one.modality == "images")
        mask = sample.vision_mask.clone()
        mask[int(mask.nonzero()[-1])] = False
        assert "placeholders" in str(mismatch(replace(sample, vision_mask=mask)))
        inputs = dict(sample.inputs)
        inputs["pixel_values"] = inputs["pixel_values"][..., :-14]
        assert "patches" in str(mismatch(replace(sample, inputs=inputs)))
        assert "placeholders" in str(mismatch(replace(sample, vision_mask=torch.zeros_like(mask))))


def test_repeated_rows_overlap_and_lengths_are_told(run: Run, random_checkpoint: Path, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", seed=1)
    picture(tmp_path / "b.png", seed=2)
    rows = [{"id": name, "messages": chat(image_part(image), text_part(question))} for name, image, question in (
        ("r0", "a.png", "What?"), ("r1", "a.png", "What?"), ("r2", "a.png", "Else?"), ("r3", "b.png", "What?"),
    )]  # fmt: skip
    rows.append({"id": "r4", "messages": [user("word " * 300)]})
    rows.append({"id": "r5", "messages": [*chat(text_part("Short?")), *chat(text_part("word " * 300))]})
    path = write_rows(tmp_path / "rows.jsonl", rows)
    other = write_rows(tmp_path / "eval.jsonl", [{"messages": chat(image_part("b.png"), text_part("Asked anew?"))}])
    flags = [path, "--model", random_checkpoint, "--eval-data", other, "--max-tokens", 200]
    code, out, _ = run("calib", "check", *flags)
    assert code == 0
    assert "repeated: 1 rows say and show what an earlier one does, 2 pictures are in an earlier row too" in out
    assert f"overlap: shares 1 items with --eval-data {other} ({path}:4)" in out
    assert "longer than 200 tokens: 1 would be shortened, 1 left out" in out


def test_a_source_that_cannot_be_read_is_an_error_before_any_row(
    run: Run, random_checkpoint: Path, faulty: Path, apart: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    (tmp_path / "table.csv").write_text("x,y\n1,2\n")
    for name, words in (("broken.parquet", "not a readable Parquet"), ("table.csv", "none of the columns")):
        result = run("calib", "check", faulty, tmp_path / name, "--model", random_checkpoint, "--eval-data", apart)
        refused(result, name, words)
        assert str(faulty) not in result[1]
    refused(run("calib", "check", tmp_path / "nowhere.jsonl"), "nowhere.jsonl", "does not exist")


def test_no_more_than_a_few_rows_are_held() -> None:
    """100,000 rows: what is read and decoded beyond the row at hand stays within the window."""
    read = 0

    class Endless:
        def rows(self, on_bad: Callable[[QuantkitError], None]) -> Any:
            nonlocal read
            template = load_conversations(path)[0]
            for number in range(3000):
                read += 1
                if number % 5 == 0:
                    on_bad(QuantkitError(f"rows:{number}: bad"))
                else:
                    yield replace(template, source=f"rows:{number}")

    import tempfile

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        path = write_rows(Path(folder) / "r.jsonl", [{"messages": chat(text_part("What?"))}])
        faults: list[str] = []
        run = _Run(None, None, None)
        for taken, entry in enumerate(run.decoded_ahead([Endless()], pool, 4)):  # type: ignore[list-item]
            assert read <= taken + 4 + 2
            run.take(entry, lambda error: faults.append(str(error)))
    assert run.tally.rows == 3000 and run.tally.bad == len(faults) == 600
    assert faults == [f"rows:{number}: bad" for number in range(0, 3000, 5)]


# ---- the rest


@pytest.mark.parametrize(("command", "words"), [("", "inspect"), ("check", "--no-process")])
def test_help_imports_nothing_heavy(command: str, words: str) -> None:
    """pydantic is left out: typer imports it by itself for any command below the first."""
    code = (
        f"import sys\nsys.argv = ['quantkit', 'calib', *'{command}'.split(), '--help']\nfrom quantkit.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'numpy', 'PIL', 'pyarrow'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in result.stdout and words in result.stdout


def test_flags_without_meaning_for_a_command_are_refused(run: Run) -> None:
    for command, flag in (("check", "--token-budget"), ("check", "--cache"), ("inspect", "--allow-overlap")):
        code, _, err = run("calib", command, flag, "7")
        assert code == 2 and flag in err


def test_truncation_leaves_no_trace_in_the_side_files(
    run: Run, random_checkpoint: Path, apart: Path, tmp_path: Path
) -> None:
    """Calibration that has to shorten, in both modes, and a tokenizer that comes with truncation and padding set."""
    from quantkit.calibration.prepare import Preparer
    from quantkit.checkpoint import open_checkpoint

    rows = [{"messages": [*chat(text_part("Short?")), *chat(text_part("word " * 200))]}, {"text": "word " * 300}]
    path = write_rows(tmp_path / "r.jsonl", rows)
    flags = ["--max-tokens", 60, "--downsample-mode", "both", "--solver", "rtn", "--eval-data", apart]
    out = tmp_path / "out"
    code, _, err = run("awq", "--model", random_checkpoint, "--calib", path, *flags, "--out", out)
    assert code == 0, err
    source = open_checkpoint(random_checkpoint)
    names = {file.name for file in source.side_files()}
    assert {"tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"} <= names
    for file in source.side_files():
        assert (out / file.relative_to(source.path)).read_bytes() == file.read_bytes(), file.name

    processor = load_processor(random_checkpoint)
    backend = processor.tokenizer.backend_tokenizer
    backend.enable_truncation(max_length=77)
    backend.enable_padding(length=99)
    before = backend.to_str()
    preparer = Preparer(processor, PrepareOptions(max_tokens=60))
    for conversation in load_conversations(path):
        sample = preparer.build(conversation, preparer.decode(conversation), "4x")
        assert sample is not None and sample.shortened and sample.input_ids.numel() <= 60
    assert backend.to_str() == before
