"""Mixes of sources: the same whatever the workers, kept on disk, apart from the evaluation set."""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chats import chat, image_part, picture, text_part, user, write_mixed, write_rows
from PIL import Image
from processes import serving

from quantkit.calibration import (
    Mix,
    MixOptions,
    PrepareOptions,
    Sample,
    build,
    fingerprint,
    load_conversations,
    pixels,
    prepare,
)
from quantkit.calibration import cache as cache_room
from quantkit.calibration.images import Access
from quantkit.calibration.mix import check_overlap, evaluation_set
from quantkit.calibration.prepare import load_processor
from quantkit.calibration.sampling import Reservoir, Stratum
from quantkit.errors import QuantkitError

TINY = Path(__file__).parent.parent / "quantkit" / "data" / "tiny"
SOME = PrepareOptions(samples=12, downsample_mode="both")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("mixed") / "set")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = [{"id": f"t{n}", "messages": chat(text_part(f"Count to {n}."), answer="1 " * n)} for n in range(1, 30)]
    return write_rows(tmp_path / "texts.jsonl", rows)


def same(first: Mix, second: Mix) -> bool:
    tensors = [
        torch.equal(left.inputs[name], right.inputs[name])
        for left, right in zip(first.samples, second.samples, strict=True)
        for name in left.inputs
    ]
    plain = ("id", "modality", "language", "downsample_mode", "prompt_length", "sizes", "source")
    fields = [[getattr(one, name) for name in plain] for one in first.samples]
    return all(tensors) and fields == [[getattr(one, name) for name in plain] for one in second.samples]


def test_workers_change_nothing(mixed: Path, texts: Path) -> None:
    specs = [str(mixed), f"{texts},weight=2"]
    found = [build(specs, TINY, SOME, MixOptions(workers=workers)) for workers in (1, 2, 7)]
    assert same(found[0], found[1]) and same(found[0], found[2])
    assert len({mix.fingerprint for mix in found}) == 1
    assert [(count.source, count.rows, count.samples) for count in found[0].counts] == [
        ("set", 48, 4),
        ("texts.jsonl", 29, 8),
    ]
    assert found[0].conversations is not None and not found[0].cached


def test_a_mix_holds_what_prepare_makes(mixed: Path) -> None:
    mix = build([str(mixed)], TINY, PrepareOptions(samples=48), MixOptions())
    samples = prepare(load_conversations(mixed), load_processor(TINY), PrepareOptions())
    assert mix.fingerprint == fingerprint(samples) == fingerprint(mix.samples)
    assert all(torch.equal(a.vision_mask, b.vision_mask) for a, b in zip(mix.samples, samples, strict=True))


def test_samples_live_as_long_as_they_are_held(mixed: Path) -> None:
    samples = build([str(mixed)], TINY, PrepareOptions(samples=4), MixOptions()).samples
    folders = {sample.inputs.path.parent for sample in samples}  # type: ignore[attr-defined]
    assert all(sample.inputs["input_ids"].numel() for sample in samples) and all(folder.exists() for folder in folders)
    assert [list(sample.inputs.values()) for sample in samples]
    del samples
    assert not any(folder.exists() for folder in folders)


def test_the_token_budget_is_kept(mixed: Path) -> None:
    for budget in (300, 1000):
        mix = build([str(mixed)], TINY, PrepareOptions(token_budget=budget), MixOptions())
        tokens = sum(sample.input_ids.numel() for sample in mix.samples)
        assert budget - 120 < tokens <= budget
        assert mix.counts[0].tokens == tokens
    shares = {m: sum(s.input_ids.numel() for s in mix.samples if s.modality == m) / tokens for m in ("text", "video")}
    assert abs(shares["text"] - 1 / 2) < 0.1 and abs(shares["video"] - 1 / 8) < 0.1
    with pytest.raises(QuantkitError, match="fits a budget of 5 tokens"):
        build([str(mixed)], TINY, PrepareOptions(token_budget=5), MixOptions())


@pytest.mark.parametrize(("budget", "least"), [(1000, 800), (200, 100)])
def test_what_does_not_fit_the_budget_is_passed_over(budget: int, least: int) -> None:
    """Of the bundled set, whose conversations are longer than these budgets for the most part."""
    mixes = [
        build(["bundled"], TINY, PrepareOptions(token_budget=budget), MixOptions(workers=workers)) for workers in (1, 4)
    ]
    assert least < mixes[0].counts[0].tokens <= budget
    assert mixes[0].fingerprint == mixes[1].fingerprint


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """160 texts and 40 pictures; of each kind one in eight is short."""
    picture(tmp_path / "a.png", size=(64, 64))
    rows = []
    for number in range(200):
        parts = [text_part(f"{number} " + ("word " * 90 if number // 5 % 8 else ""))]
        rows.append({"id": f"s{number}", "messages": chat(*([image_part("a.png")] if number % 5 == 0 else []), *parts)})
    return write_rows(tmp_path / "sparse.jsonl", rows)


def test_too_long_ones_are_replaced_as_long_as_there_are_any(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.calibration.mix.SPARE", 2)
    short = {f"s{number}" for number in range(200) if number // 5 % 8 == 0}
    options = PrepareOptions(samples=20, max_tokens=80)
    mixes = [build([str(sparse)], TINY, options, MixOptions(workers=workers)) for workers in (1, 5)]
    assert len(mixes[0].samples) == 20 and {sample.id for sample in mixes[0].samples} <= short
    assert [sample.modality for sample in mixes[0].samples].count("image") == 4  # the share is kept
    assert mixes[0].fingerprint == mixes[1].fingerprint
    every = build([str(sparse)], TINY, replace(options, samples=100), MixOptions())
    assert {sample.id for sample in every.samples} == short
    with pytest.raises(QuantkitError, match="none of 200 conversations fits 9 tokens"):
        build([str(sparse)], TINY, replace(options, max_tokens=9), MixOptions())


def test_bad_ones_are_replaced_too_and_counted_once(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.calibration.mix.SPARE", 2)
    rows = [json.loads(line) for line in sparse.read_text().splitlines()]
    for row in rows[:150]:
        row["messages"] = chat(image_part("broken.png"), text_part("?")) if row["id"] != "s77" else []
    (sparse.parent / "broken.png").write_bytes(b"no picture")
    mix = build([str(write_rows(sparse, rows))], TINY, PrepareOptions(samples=50), MixOptions(skip_bad=True))
    assert {sample.id for sample in mix.samples} == {f"s{number}" for number in range(150, 200)}
    assert len(mix.skipped) == len(set(mix.skipped)) == 150


def test_sources_share_tokens_under_a_budget_and_conversations_without(tmp_path: Path) -> None:
    for name, length in (("short", 10), ("long", 200)):
        rows = [{"messages": chat(text_part(f"{n} " + "word " * length))} for n in range(100)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    specs = [str(tmp_path / "short.jsonl"), f"{tmp_path / 'long.jsonl'},weight=2"]
    short, long = build(specs, TINY, PrepareOptions(token_budget=6000), MixOptions()).counts
    assert 0.4 < short.tokens / long.tokens < 0.6 and short.samples > 3 * long.samples
    short, long = build(specs, TINY, PrepareOptions(samples=12), MixOptions()).counts
    assert (short.samples, long.samples) == (4, 8)


STREAM = """
import re, sys
from pathlib import Path
from quantkit.calibration import MixOptions, PrepareOptions, build
mix = build([sys.argv[1]], Path(sys.argv[2]), PrepareOptions(samples=16), MixOptions())
# the peak of this program alone: ru_maxrss counts the process that started it as well
peak = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
print(mix.counts[0].rows, len(mix.samples), peak[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_hundred_thousand_rows_stay_under_one_and_a_half_gigabytes(tmp_path: Path) -> None:
    row = json.dumps({"messages": chat(text_part("NUMBER " + "word " * 300))})  # 150 MB, 300 MB as objects
    with (tmp_path / "rows.jsonl").open("w") as file:
        for number in range(100_000):
            file.write(row.replace("NUMBER", str(number)) + "\n")
    command = [sys.executable, "-c", STREAM, str(tmp_path / "rows.jsonl"), str(TINY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, samples, peak = map(int, done.stdout.split())
    assert (rows, samples) == (100_000, 16) and peak * 1024 < 1.5e9


PICTURES = """
import re, sys
from pathlib import Path
from quantkit.calibration import MixOptions, PrepareOptions, build

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

options = PrepareOptions(token_budget=60_000)
build([sys.argv[1] + ",limit=8"], Path(sys.argv[2]), options, MixOptions())
before = peak()
mix = build([sys.argv[1]], Path(sys.argv[2]), options, MixOptions())
print(len(mix.samples), sum(len(one.messages) for one in mix.conversations), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_pictures_that_rows_hold_do_not_fill_the_memory(tmp_path: Path) -> None:
    """400 rows of a megabyte each, all of which are candidates and taken; on disk they are packed."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(stream, "JPEG")
    image = {"bytes": stream.getvalue() + bytes(1_000_000), "path": None}
    schema = pyarrow.schema([
        ("id", pyarrow.string()), ("question", pyarrow.string()),
        ("image", pyarrow.struct([("bytes", pyarrow.large_binary()), ("path", pyarrow.string())])),
    ])  # fmt: skip
    with parquet.ParquetWriter(tmp_path / "rows.parquet", schema, compression="zstd", use_dictionary=False) as writer:
        for start in range(0, 400, 20):
            rows = [{"id": str(n), "question": f"{n}?", "image": image} for n in range(start, start + 20)]
            writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=schema))
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-c", PICTURES, str(tmp_path / "rows.parquet"), str(TINY)]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    samples, messages, more = map(int, done.stdout.split())
    assert (samples, messages) == (400, 400) and more * 1024 < 250e6
    assert not list((tmp_path / "temporary").iterdir())


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_a_second_run_comes_from_the_cache(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = MixOptions(cache=tmp_path)
    first = build([str(mixed)], TINY, SOME, how)
    monkeypatch.setattr("quantkit.calibration.mix.load_processor", None)  # a second run needs none
    second = build([str(mixed)], TINY, SOME, replace(how, workers=3))
    assert second.cached and not first.cached and same(first, second)
    assert (second.fingerprint, second.items, second.pictures) == (first.fingerprint, first.items, first.pictures)
    assert (second.counts, second.skipped) == (first.counts, first.skipped)
    assert [path.name for path in (tmp_path / "prepared").iterdir() if path.name.startswith("partial")] == []


def test_pictures_are_kept_as_codes(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "a.png", size=(400, 300))
    mix = build([str(tmp_path / "set")], TINY, PrepareOptions(), MixOptions(cache=tmp_path / "cache"))
    pixels = mix.samples[0].inputs["pixel_values"]
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    assert pixels.dtype == torch.float32 and file.stat().st_size < pixels.numel() * 1.3
    (plain,) = prepare(load_conversations(tmp_path / "set"), load_processor(TINY), PrepareOptions())
    assert torch.equal(pixels, plain.inputs["pixel_values"])


@pytest.mark.parametrize("values", [
    torch.linspace(-1, 1, 257), torch.randn(100), torch.full((3, 2), 0.25), torch.tensor([0.0, 7.0, 5.0]),
    torch.tensor([float("nan"), 1.0]), torch.tensor([0.0, -0.0, 1.0]),
])  # fmt: skip
def test_codes_give_back_the_very_bits(values: torch.Tensor) -> None:
    packed = pixels.pack({"pixel_values": values})
    back = pixels.unpack(packed["pixel_values"], packed.get("pixel_values.palette"))
    assert torch.equal(back.view(torch.int32), values.view(torch.int32))


@pytest.mark.parametrize("made", [
    lambda x: (x * (1 / 255) - 0.5) / 0.5, lambda x: (x - 127.5) / 127.5, lambda x: (x / 255 - 0.48) / 0.27,
    lambda x: x / 255,
])  # fmt: skip
def test_pixels_take_a_byte_each(made: Callable[[torch.Tensor], torch.Tensor]) -> None:
    values = made(torch.randint(0, 256, (3, 70_001), generator=torch.Generator().manual_seed(0)).float())
    packed = pixels.pack({"pixel_values": values, "pixel_mask": torch.ones(2, dtype=torch.bool)})
    assert packed["pixel_values"].dtype == torch.uint8
    assert torch.equal(pixels.unpack(packed["pixel_values"], packed["pixel_values.palette"]), values)
    values[2, 70_000] += 1e-6  # the last one is none of the 256
    assert list(pixels.pack({"pixel_values": values})) == ["pixel_values"]


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"samples": 11}, {"max_tokens": 2047}, {"downsample_mode": "16x"}, {"max_slice_nums": 2},
    {"use_image_id": False}, {"max_num_frames": 2}, {"stack_frames": 2}, {"enable_thinking": True},
    {"token_budget": 900},
])  # fmt: skip
def test_every_option_is_part_of_the_key(mixed: Path, tmp_path: Path, change: dict) -> None:
    build([str(mixed)], TINY, SOME, MixOptions(cache=tmp_path))
    assert not build([str(mixed)], TINY, replace(SOME, **change), MixOptions(cache=tmp_path)).cached
    assert build([str(mixed)], TINY, SOME, MixOptions(cache=tmp_path)).cached


def test_changed_sources_pictures_and_processors_are_prepared_again(mixed: Path, tmp_path: Path) -> None:
    data, model, how = tmp_path / "set", tmp_path / "model", MixOptions(cache=tmp_path / "cache")
    shutil.copytree(mixed, data)
    shutil.copytree(TINY, model, ignore=shutil.ignore_patterns("*.safetensors"))

    def cached() -> bool:
        return build([str(data)], model, SOME, how).cached

    assert [cached(), cached()] == [False, True]
    picture(data / "images" / "0.png", seed=77, size=(64, 64))
    assert [cached(), cached()] == [False, True]
    rows = (data / "manifest.jsonl").read_text()
    (data / "manifest.jsonl").write_text(rows.replace("number 1?", "number 1 ?"))
    assert [cached(), cached()] == [False, True]
    settings = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").write_text(json.dumps(settings | {"max_slice_nums": 3}))
    assert [cached(), cached()] == [False, True]
    (model / "config.json").write_text("{}")  # the model's own part decides no sample
    assert cached()
    assert not build([f"{data},weight=2"], model, SOME, how).cached


@pytest.mark.parametrize("damage", ["flip", "cut", "index", "missing", "version"])
def test_a_damaged_entry_is_made_anew(mixed: Path, tmp_path: Path, damage: str) -> None:
    how = MixOptions(cache=tmp_path)
    first = build([str(mixed)], TINY, SOME, how)
    (index,) = tmp_path.rglob("samples.json")
    file = sorted(index.parent.glob("*.safetensors"))[3]
    if damage == "flip":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing":
        file.unlink()
    elif damage == "index":
        index.write_text(index.read_text()[:-40])
    else:
        index.write_text(json.dumps(json.loads(index.read_text()) | {"version": 0}))
    again = build([str(mixed)], TINY, SOME, how)
    assert not again.cached and same(first, again)
    assert build([str(mixed)], TINY, SOME, how).cached


def test_a_cache_that_cannot_be_written_costs_only_the_cache(mixed: Path, tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("")
    mix = build([str(mixed)], TINY, SOME, MixOptions(cache=tmp_path / "file"))
    assert len(mix.samples) == 12 and fingerprint(mix.samples) == mix.fingerprint
    assert "not cached" in caplog.text


def test_a_full_disk_costs_only_the_cache(mixed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A limit on the size of files stands for a disk without room: writes fail beyond it."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        mix = build([str(mixed)], TINY, SOME, MixOptions(cache=tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert fingerprint(mix.samples) == mix.fingerprint == build([str(mixed)], TINY, SOME, MixOptions()).fingerprint
    assert caplog.text.count("not cached") == 1 and not list(tmp_path.rglob("samples.json"))
    assert not build([str(mixed)], TINY, SOME, MixOptions(cache=tmp_path)).cached


def test_a_cache_folder_that_cannot_be_written_to(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = tempfile.TemporaryDirectory

    def refusing(*arguments: object, dir: Path | None = None, **named: object) -> object:
        if dir is not None and dir.is_relative_to(tmp_path):
            raise PermissionError(13, "Permission denied")
        return make(*arguments, dir=dir, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refusing)
    assert len(build([str(mixed)], TINY, SOME, MixOptions(cache=tmp_path)).samples) == 12


def test_the_oldest_entries_make_room(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = MixOptions(cache=tmp_path)

    def made(seed: int) -> bool:
        return build([str(mixed)], TINY, replace(SOME, seed=seed), how).cached

    made(0)
    size = sum(file.stat().st_size for file in tmp_path.rglob("*.*"))
    monkeypatch.setattr(cache_room, "LIMIT", 2.5 * size)
    assert [made(1), made(0), made(2)] == [False, True, False]
    assert [made(2), made(0), made(1)] == [True, True, False]


# ---- bad rows, overlap -----------------------------------------------------------------------------------------------


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = [{"id": str(n), "messages": chat(text_part(f"Row {n}."))} for n in range(1, 9)]
    rows[2]["messages"] = chat(image_part("broken.png"), text_part("?"))
    rows[5]["messages"] = chat(image_part("absent.png"), text_part("?"))
    rows[6] = {"id": "7", "messages": [{"role": "assistant", "content": "Nobody asked."}]}
    return write_rows(tmp_path / "rows.jsonl", rows)


def test_the_first_bad_row_stops_the_run(faulty: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantkitError, match=r"rows.jsonl:\d.*png"):
        build([str(faulty)], TINY, PrepareOptions(), MixOptions(cache=tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_bad_rows_are_left_out_and_counted_until_they_are_mended(faulty: Path, tmp_path: Path) -> None:
    how = MixOptions(cache=tmp_path / "cache", skip_bad=True)
    for _ in range(2):
        mix = build([str(faulty)], TINY, PrepareOptions(), how)
        assert [sample.id for sample in mix.samples] == ["1", "2", "4", "5", "8"] and not mix.cached
        found = sorted(line.partition("rows.jsonl:")[2][:1] for line in mix.skipped)
        assert found == ["3", "6", "7"] and mix.counts[0].samples == 5
    picture(tmp_path / "broken.png")
    picture(tmp_path / "absent.png")
    mended = build([str(faulty)], TINY, PrepareOptions(), how)
    assert [sample.id for sample in mended.samples] == ["1", "2", "3", "4", "5", "6", "8"] and len(mended.skipped) == 1


def test_without_bad_rows_leaving_them_out_is_cached(mixed: Path, tmp_path: Path) -> None:
    how = MixOptions(cache=tmp_path, skip_bad=True)
    assert [build([str(mixed)], TINY, SOME, how).cached for _ in range(2)] == [False, True]
    assert build([str(mixed)], TINY, SOME, replace(how, skip_bad=False)).cached


def test_what_reads_pictures_and_clips_is_part_of_the_key(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = MixOptions(cache=tmp_path)
    build([str(mixed)], TINY, SOME, how)
    assert not build([str(mixed)], TINY, SOME, replace(how, access=Access(private_urls=True))).cached
    assert build([str(mixed)], TINY, SOME, how).cached
    monkeypatch.setattr("quantkit.calibration.video.version", lambda: "another decoder", raising=False)
    assert not build([str(mixed)], TINY, SOME, how).cached


def test_where_every_row_is_bad_that_is_said(tmp_path: Path) -> None:
    rows = [{"id": str(n), "messages": chat(image_part("absent.png"), text_part("?"))} for n in range(3)]
    (tmp_path / "absent.png").write_bytes(b"no picture")
    with pytest.raises(QuantkitError, match="none of 3 conversations is good; mend them or give other data"):
        build([str(write_rows(tmp_path / "rows.jsonl", rows))], TINY, SOME, MixOptions(skip_bad=True))


def test_a_mix_names_each_source_once_and_at_least_one(texts: Path) -> None:
    with pytest.raises(QuantkitError, match="named twice"):
        build([str(texts), f"{texts},weight=2"], TINY, SOME, MixOptions())
    with pytest.raises(QuantkitError, match="names no source"):
        build([], TINY, SOME, MixOptions())


def test_sources_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    files = []
    for place, word in (("one", "red"), ("two", "blue")):
        (tmp_path / place / "deep").mkdir(parents=True)
        rows = [{"id": f"{number}", "messages": chat(text_part(f"{word} {number}"))} for number in range(3)]
        files.append(str(write_rows(tmp_path / place / "deep" / "rows.jsonl", rows)))
    mix = build(files, TINY, PrepareOptions(), MixOptions())
    assert [count.source for count in mix.counts] == ["one/deep/rows.jsonl", "two/deep/rows.jsonl"]
    assert [count.samples for count in mix.counts] == [3, 3]


def test_of_a_stream_only_what_may_be_taken_is_kept(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []

    class Watched(Reservoir):
        def sorted(self) -> list[Stratum]:
            kept.extend(len(stratum.kept) for stratum in self.strata.values())
            return super().sorted()

    monkeypatch.setattr("quantkit.calibration.mix.Reservoir", Watched)
    monkeypatch.setattr("quantkit.calibration.mix.SPARE", 1)
    build([str(texts)], TINY, PrepareOptions(samples=4), MixOptions())
    build([str(texts)], TINY, PrepareOptions(token_budget=100), MixOptions())
    build([str(texts)], TINY, PrepareOptions(), MixOptions())
    assert kept[:2] == [5, 4] and kept[2] > 5


@pytest.mark.parametrize("reversed_", [False, True])
def test_the_mode_is_the_conversations_own(mixed: Path, tmp_path: Path, reversed_: bool) -> None:
    """In whatever order and beside whatever else a conversation comes; about half of a set has either mode."""
    both = PrepareOptions(downsample_mode="both")
    modes = {sample.id: sample.downsample_mode for sample in build([str(mixed)], TINY, both, MixOptions()).samples}
    assert 0.25 < list(modes.values()).count("4x") / 48 < 0.75
    rows = (mixed / "manifest.jsonl").read_text().splitlines()[:: -3 if reversed_ else 2]
    shutil.copytree(mixed / "images", tmp_path / "images")
    some = write_rows(tmp_path / "rows.jsonl", [json.loads(row) for row in rows])
    for sample in build([str(some)], TINY, replace(both, seed=4, samples=11), MixOptions()).samples:
        assert sample.downsample_mode == modes[sample.id]


def test_a_benchmark_is_no_evaluation_set_here(mixed: Path) -> None:
    for name in ("MMBench", "mmmu:dev"):
        words = f"^--eval-data: data .{name}. does not exist.*a benchmark.s name is not taken here: give "
        with pytest.raises(QuantkitError, match=words):
            evaluation_set(name)
    with pytest.raises(QuantkitError, match=r"^--eval-data: data 'nowhere' does not exist"):
        evaluation_set("nowhere")


def test_private_urls_reach_the_evaluation_set(mixed: Path, tmp_path: Path) -> None:
    picture(tmp_path / "other.png", seed=3, size=(80, 64))  # the pixels of images/3.png
    mix = build([str(mixed)], TINY, PrepareOptions(), MixOptions())
    with serving(tmp_path) as url:
        rows = [{"id": "seen", "messages": chat(image_part(f"{url}/other.png"), text_part("Another?"))}]
        evaluation = str(write_rows(tmp_path / "eval.jsonl", rows))
        with pytest.raises(QuantkitError, match="refused"):
            check_overlap(mix, evaluation, [])
        with pytest.raises(QuantkitError, match=r"shares 1 items .*\(seen\)"):
            check_overlap(mix, evaluation, [], Access(private_urls=True))


def test_what_is_measured_on_must_not_be_calibrated_on(mixed: Path, tmp_path: Path) -> None:
    mix = build([str(mixed)], TINY, PrepareOptions(), MixOptions())
    picture(tmp_path / "other.png", seed=3, size=(80, 64))  # the pixels of images/3.png, by another name
    rows = [
        {"id": "new", "messages": chat(text_part("What is number 1000?"))},
        {"id": "seen", "messages": chat(image_part("other.png"), text_part("Quite another question?"))},
        {"id": "asked", "messages": chat(text_part("What is number 0?"), answer="Number 0.")},
    ]
    evaluation = write_rows(tmp_path / "eval.jsonl", rows)
    with pytest.raises(QuantkitError, match=r"shares 2 items with --eval-data .*\(seen, asked\).*--allow-overlap"):
        check_overlap(mix, str(evaluation), [str(mixed)])
    check_overlap(mix, str(write_rows(tmp_path / "fine.jsonl", rows[:1])), [str(mixed)])


# ---- knobs -----------------------------------------------------------------------------------------------------------


def knobs(folder: Path, row: dict, **options) -> Sample:
    rows = load_conversations(write_rows(folder / "knobs.jsonl", [row]))
    return prepare(rows, load_processor(TINY), PrepareOptions(**options))[0]


def test_image_ids_thinking_and_tools_reach_the_prompt(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    processor = load_processor(TINY)
    row = {"messages": chat(image_part("a.png"), text_part("What?"))}
    shown = {
        flag: processor.tokenizer.decode(knobs(tmp_path, row, use_image_id=flag).input_ids[0]) for flag in (True, False)
    }
    assert "<image_id>" in shown[True] and "<image_id>" not in shown[False]
    tools = [{"type": "function", "function": {"name": "look_up", "description": "Looks up.", "parameters": {}}}]
    assert "look_up" in processor.tokenizer.decode(knobs(tmp_path, row | {"tools": tools}).input_ids[0])


@pytest.mark.parametrize(("asked", "reasoning", "expected"), [
    (None, None, "<think>\n\n</think>\n\nBlue."), (None, "Look.", "<think>\nLook.\n</think>\n\nBlue."),
    (False, "Look.", "<think>\n\n</think>\n\nBlue."), (True, "Look.", "<think>\nLook.\n</think>\n\nBlue."),
    (True, None, "<think>\n\n</think>\n\nBlue."),
])  # fmt: skip
def test_thinking(tmp_path: Path, asked: bool | None, reasoning: str | None, expected: str) -> None:
    answer = {"role": "assistant", "content": "Blue."} | ({"reasoning_content": reasoning} if reasoning else {})
    sample = knobs(tmp_path, {"messages": [user(text_part("Which?")), answer]}, enable_thinking=asked)
    tokenizer = load_processor(TINY).tokenizer
    assert tokenizer.decode(sample.input_ids[0]).endswith(f"<|im_start|>assistant\n{expected}<|im_end|>\n")
    prompt = tokenizer.decode(sample.input_ids[0, : sample.prompt_length])
    thinks = asked if asked is not None else bool(reasoning)
    ending = "<think>\n" if thinks else "<think>\n\n</think>\n\n"
    assert f"<|im_start|>assistant\n{ending}".startswith(prompt[prompt.rindex("<|im_start|>") :])
    assert prompt.endswith("<think>") or prompt.endswith(ending)


def test_an_unanswered_question_ends_as_inference_would_prompt(tmp_path: Path) -> None:
    tokenizer = load_processor(TINY).tokenizer
    for asked, ending in ((None, "<think>\n\n</think>\n\n"), (True, "<think>\n")):
        sample = knobs(tmp_path, {"messages": [user(text_part("Which?"))]}, enable_thinking=asked)
        assert tokenizer.decode(sample.input_ids[0]).endswith("<|im_start|>assistant\n" + ending)
