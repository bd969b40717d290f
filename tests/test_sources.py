"""Sources: the grammar of --calib, files and folders of every kind as a stream, faults told and passed over."""

import csv
import io
import json
import logging
import resource
import shutil
import time
from pathlib import Path

import pytest
from chats import chat, image_part, picture, text_part, user, write_rows

from quantkit.calibration import load_conversations, readers
from quantkit.calibration.folders import files_below
from quantkit.calibration.sources import Source, parse_source
from quantkit.errors import QuantkitError

pq = pytest.importorskip("pyarrow.parquet")
import pyarrow as pa  # noqa: E402

USER = {"role": "user", "content": "Hi"}


def fault(source: str | Path, match: str) -> str:
    with pytest.raises(QuantkitError, match=match) as error:
        list(parse_source(str(source)))
    assert "\n" not in str(error.value)
    return str(error.value)


def texts(source: str | Path) -> list[str]:
    return [c.messages[0]["content"][-1]["text"] for c in parse_source(str(source))]


def skipped(source: str | Path) -> tuple[list[str], list[str]]:
    """The ids that are left, and what was told of the others."""
    told: list[str] = []
    ids = [c.id for c in parse_source(str(source)).rows(on_bad=lambda error: told.append(str(error)))]
    return ids, told


def asks(path: Path, *questions: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"question": list(questions)}), path)
        return path
    return write_rows(path, [{"question": question} for question in questions])


# ---- the grammar ----


def test_names_and_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asks(tmp_path / "a.jsonl", "1", "2", "3")
    source = parse_source("a.jsonl, weight=0.5,limit=2")
    assert (source.name, source.weight, source.limit) == ("a.jsonl", 0.5, 2)
    assert [c.id for c in source] == ["a.jsonl:1", "a.jsonl:2"]
    assert parse_source("./a.jsonl").weight == 1.0
    assert parse_source(f"{tmp_path}/a.jsonl,question=question,id=").columns == {"question": "question", "id": ""}
    assert str(tmp_path) not in parse_source(f"{tmp_path}/a.jsonl").name
    assert parse_source(".").name == tmp_path.name


def test_a_name_that_exists_is_a_path_commas_and_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asks(tmp_path / "a,weight=2.jsonl", "comma")
    asks(tmp_path / "HuggingFaceM4" / "the_cauldron" / "rows.jsonl", "folder")
    assert texts("a,weight=2.jsonl") == ["comma"]
    assert parse_source("a,weight=2.jsonl,weight=3").weight == 3
    assert texts("HuggingFaceM4/the_cauldron") == ["folder"]
    assert parse_source("HuggingFaceM4/FineVision").path is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bundeld", "did you mean 'bundled'?"),
        ("wikitxt", "did you mean 'wikitext'"),
        ("bundled,wieght=2", "unknown key 'wieght' (did you mean 'weight'?)"),
        ("bundled,weight", "expected KEY=VALUE after the comma, found 'weight'"),
        ("bundled,", "expected KEY=VALUE after the comma, found ''"),
        ("bundled,weight=", "'weight' has no value"),
        ("bundled,weight=0", "weight must be a number above 0, not '0'"),
        ("bundled,weight=nan", "weight must be a number above 0"),
        ("bundled,weight=x", "weight must be a number above 0"),
        ("bundled,limit=0", "limit must be a whole number above 0"),
        ("bundled,limit=1.5", "limit must be a whole number above 0"),
        ("bundled,limit=²", "limit must be a whole number above 0"),
        ("bundled,limit=2,limit=3", "'limit' is given twice"),
        ("bundled,revision=main", "'revision' is for a data set on the hub"),
        ("bundled,split=train", "no config and no split"),
        ("rows.jsonl", "data 'rows.jsonl' does not exist"),
        ("quantkit/rows.jsonl", "does not exist"),
        ("a/b/c", "does not exist"),
        ("./wikitext", "does not exist"),
        ("~nobody-here/x", "does not exist"),
        ("a\0b", "does not exist"),
        ("", "data '' does not exist"),
        ("wikitext,path=nowhere", "path 'nowhere' does not exist"),
    ],
)
def test_bad_names_and_options(text, message):
    with pytest.raises(QuantkitError) as error:
        list(parse_source(text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_options_that_a_file_does_not_have(tmp_path):
    path = asks(tmp_path / "a.jsonl", "1")
    for key in ("config", "split"):
        fault(f"{path},{key}=x", "this is one file")


def test_shipped_sets(tmp_path, monkeypatch, caplog):
    for name in ("bundled", "heldout"):
        first = next(iter(parse_source(name)))
        assert first.id and parse_source(name).name == name
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "heldout" / "a.png")
    with caplog.at_level(logging.WARNING):
        assert next(iter(parse_source("heldout"))).id != "a.png"
    assert "write ./heldout" in caplog.text
    assert [c.id for c in parse_source("heldout/")] == [c.id for c in parse_source("./heldout")] == ["a.png"]
    assert [c.id for c in load_conversations(Path("heldout"))] == ["a.png"]  # a path is a path where it exists
    with pytest.raises(QuantkitError, match="does not exist"):
        load_conversations(Path("wikitext/x"))


def test_photos_are_scikit_images_own(tmp_path, monkeypatch):
    from quantkit.calibration import sources

    row = {"id": "p", "messages": chat(image_part("skimage:astronaut.png"), text_part("Who?"))}
    (tmp_path / "photos").mkdir()
    write_rows(tmp_path / "photos" / "manifest.jsonl", [row])
    monkeypatch.setitem(sources.SHIPPED, "photos", (tmp_path / "none", tmp_path / "photos"))
    (conversation,) = parse_source("photos")
    assert conversation.messages[0]["content"][0] == image_part("skimage:astronaut.png")
    monkeypatch.setitem(sources.SHIPPED, "photos", (tmp_path / "none",))
    fault("photos", "missing from this installation")


# ---- files ----


def rows_of_all_kinds(folder: Path) -> list[dict]:
    picture(folder / "x.png")
    return [
        {"id": "a", "messages": json.dumps(chat(image_part("x.png"), text_part("Colour?")), ensure_ascii=False)},
        {"id": "b", "messages": json.dumps([{"role": "user", "content": "行\u2028次,\n\"'\t"}], ensure_ascii=False)},
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv"])
def test_the_same_rows_in_every_kind_of_file(tmp_path, suffix):
    rows = rows_of_all_kinds(tmp_path)
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix in (".csv", ".tsv"):
        with open(path, "w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.DictWriter(stream, ["id", "messages", "tools"], delimiter="," if suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
    else:
        path.write_bytes(b"\xef\xbb\xbf" + write_rows(path, rows).read_bytes().replace(b"\n", b"\r\n"))
    first, second = parse_source(str(path))
    assert (first.id, second.id) == ("a", "b")
    assert first.messages == chat(image_part(str(tmp_path / "x.png")), text_part("Colour?"))
    assert second.messages == [user(text_part("行\u2028次,\n\"'\t"))]
    assert first.source == f"{path}:{2 if suffix in ('.csv', '.tsv') else 1}"


def test_typed_columns_of_parquet(tmp_path):
    png = Path(picture(tmp_path / "x.png")).read_bytes()
    parts = pa.struct({"type": pa.string(), "text": pa.string(), "image": pa.string()})
    message = pa.struct({"role": pa.string(), "content": pa.list_(parts), "tool_calls": pa.list_(pa.string())})
    table = pa.table(
        {
            "messages": pa.array(
                [[user({"type": "image", "text": None, "image": None}, {"type": "text", "text": "Q", "image": None})]],
                pa.list_(message),
            ),
            "images": pa.array([[{"bytes": png, "path": "x.png"}]]),
            "noise": pa.array([b"never read"]),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    (conversation,) = parse_source(str(tmp_path / "t.parquet"))
    image, text = conversation.messages[0]["content"]
    assert image["image"].startswith("data:image/png;base64,") and text == text_part("Q")
    assert set(conversation.messages[0]) == {"role", "content"}


def test_json_is_a_list_or_an_object_of_one(tmp_path):
    path = tmp_path / "rows.json"
    rows = [{"question": str(number), "pad": "x" * 999} for number in range(3000)]  # longer than a piece
    for document in (rows, {"data": rows}):
        path.write_text(json.dumps(document))
        assert texts(path) == [row["question"] for row in rows]
    path.write_text(json.dumps(rows[0]))
    assert texts(path) == ["0"]
    for text, message in [
        ("", "not valid JSON"),
        ("3", "expected a list of conversations, found int"),
        ('[{"question": "1"} {"question": "2"}]', "',' is missing after element 1"),
        ('[{"question": "1"},', "not valid JSON"),
        ('[{"question": "1"}', "',' is missing after element 1"),
        ('[{"question": "1"}] x', "more follows the end"),
        ('{"question": "1"}\n{"question": "2"}', "is it JSONL"),
        ('[{"question": nul}]', "not valid JSON"),
        ("[]", "no conversation"),
        ("[" * 100000, "not valid JSON"),
    ]:
        path.write_text(text)
        fault(path, message)
    path.write_bytes(b'[{"question": "\xe9"}]')
    fault(path, "not UTF-8")


def test_json_is_the_same_however_its_bytes_arrive(tmp_path):
    class Drip:
        def __init__(self, content: bytes) -> None:
            self.stream = io.BytesIO(content)

        def read(self, size: int) -> bytes:
            return self.stream.read(1)

    values = [12345, {"a": "行次"}, [1.5, None], "x", -7]
    file = readers.File(tmp_path / "x.json", "x.json", "x.json", tmp_path)
    text = readers._Text(file, Drip(json.dumps(values, ensure_ascii=False, indent=1).encode() + b"\n"))
    assert text.skip_space() == "["
    assert [row.value for row in readers._elements(file, text)] == values


def test_a_bad_line_is_told_and_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_ROW", 2000)
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"messages": [USER]}).encode()
    lines = [good, b'{"question": "\xe9"}', b"", b"{", b'"' + b"x" * 3000 + b'"', b"[" * 1500, b"{}", good]
    path.write_bytes(b"\n".join(lines))
    ids, told = skipped(path)
    assert ids == ["rows.jsonl:1", "rows.jsonl:8"]
    expected = {
        2: "not UTF-8 (byte 14",
        4: "not valid JSON",
        5: "longer than",
        6: "not valid JSON",
        7: "missing or empty",
    }
    for (number, message), text in zip(expected.items(), told, strict=True):
        assert text.startswith(f"{path}:{number}: ") and message in text and "\n" not in text
    fault(path, "rows.jsonl:2: not UTF-8")


def test_a_bad_record_of_csv_is_told_and_passed_over(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbfquestion,answer\na,b\na,b,c\n\n\xe9,b\n"two\nlines",b\n"a"x,b\n,b\nz,\n')
    ids, told = skipped(path)
    assert ids == ["rows.csv:2", "rows.csv:6", "rows.csv:10"]
    expected = {3: "3 fields, the header names 2", 5: "not UTF-8 (column 'question')", 8: "not valid CSV", 9: "empty"}
    for (number, message), text in zip(expected.items(), told, strict=True):
        assert text.startswith(f"{path}:{number}: ") and message in text


def test_a_long_field_of_csv_is_read(tmp_path):
    (tmp_path / "rows.csv").write_text("question\n" + "x" * 500_000 + "\n")
    assert len(texts(tmp_path / "rows.csv")[0]) == 500_000


def test_duplicate_ids_are_told(tmp_path):
    rows = [{"id": name, "messages": [USER]} for name in ("a", "b", "a", "rows.jsonl:2", "b")]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    ids, told = skipped(path)
    assert ids == ["a", "b", "rows.jsonl:2"]
    assert f"{path}:3: id 'a' is already used at {path}:1" in told[0] and f"at {path}:2" in told[1]
    assert [c.id for c in parse_source(f"{path},id=")] == [f"rows.jsonl:{n}" for n in range(1, 6)]


def test_files_that_cannot_be_read_raise_in_any_case(tmp_path):
    bad = tmp_path / "bad.parquet"
    for content, name, message in [
        (b"", "e.jsonl", "no conversation in this file"),
        (b"PAR1 no", "bad.parquet", "not a readable Parquet file"),
        ("x".encode("utf-16"), "u.jsonl", "not UTF-8 but UTF-16"),
        (b"x", "x.txt", "cannot read this kind of file"),
        (b"a,a\n1,2\n", "t.csv", "two columns are called 'a'"),
        (b"foo,bar\n1,2\n", "c.csv", "none of the columns foo, bar is known"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(QuantkitError, match=message):
            skipped(tmp_path / name)
    (tmp_path / "d.csv").write_text("ask,replies\n1,2\n")
    with pytest.raises(QuantkitError, match=r"column 'reply'.* is missing \(did you mean 'replies'"):
        skipped(f"{tmp_path}/d.csv,question=ask,answer=reply")
    pq.write_table(pa.table({"foo": [1]}), bad)
    fault(bad, "none of the columns foo is known")
    fault(f"{bad},question=fo", "did you mean 'foo'")


# ---- folders ----


def test_a_folder_of_pictures_and_videos_is_searched_in_order(tmp_path):
    for name in ("b.png", "a/z.jpg", "a/k.PNG", "c/d/e.webp", ".hidden/x.png", "._b.png"):
        picture(tmp_path / name.replace(".PNG", ".png"))
    (tmp_path / "a" / "k.png").rename(tmp_path / "a" / "k.PNG")
    (tmp_path / "b.mp4").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    conversations = list(parse_source(str(tmp_path)))
    assert [c.id for c in conversations] == ["a/k.PNG", "a/z.jpg", "b.mp4", "b.png", "c/d/e.webp"]
    assert conversations[2].messages == [
        user({"type": "video", "video": str(tmp_path / "b.mp4")}, text_part("Describe the video."))
    ]
    assert conversations[3].messages == [user(image_part(str(tmp_path / "b.png")), text_part("Describe the image."))]
    assert [c.source for c in conversations][3] == str(tmp_path / "b.png")


def test_links_in_a_folder_of_pictures(tmp_path):
    picture(tmp_path / "secret.png")
    picture(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "out.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data" / "up").symlink_to(tmp_path)
    ids, told = skipped(tmp_path / "data")
    assert ids == ["a.png"]
    assert len(told) == 1 and "out.png" in told[0] and "outside the data folder" in told[0]


def test_a_folder_is_bounded(tmp_path, monkeypatch):
    from quantkit.calibration import folders

    for number in range(5):
        picture(tmp_path / f"{number}.png")
    monkeypatch.setattr(folders, "MAX_FILES", 4)
    fault(tmp_path, "more than 4 files")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_tables_of_a_folder_by_config_and_split(tmp_path, suffix):
    for config in ("docvqa", "ai2d"):
        for shard in (1, 0):
            asks(tmp_path / config / f"train-0000{shard}-of-00002{suffix}", f"{config} {shard}")
        asks(tmp_path / config / f"test{suffix}", f"{config} test")
    asks(tmp_path / "README.csv", "no table beside others")
    assert texts(f"{tmp_path},config=ai2d") == ["ai2d 0", "ai2d 1"]
    assert texts(f"{tmp_path},config=docvqa,split=test") == ["docvqa test"]
    assert texts(f"{tmp_path}") == ["ai2d 0", "ai2d 1", "docvqa 0", "docvqa 1"]
    ids = [c.id for c in parse_source(f"{tmp_path},config=ai2d")]
    assert ids == [f"ai2d/train-0000{shard}-of-00002{suffix}:1" for shard in (0, 1)]
    fault(f"{tmp_path},config=docvq", r"no config 'docvq' \(did you mean 'docvqa'\?\); it has ai2d, docvqa")
    fault(f"{tmp_path},split=tset", r"no split 'tset' \(did you mean 'test'\?\); it has test, train")
    assert parse_source(f"{tmp_path},config=ai2d,split=test").name == f"{tmp_path.name}:ai2d:test"


def test_a_folder_of_one_split_and_of_splits_without_train(tmp_path):
    asks(tmp_path / "one" / "0000.parquet", "a")
    assert texts(tmp_path / "one") == ["a"]
    asks(tmp_path / "two" / "test" / "0.parquet", "t")
    assert texts(tmp_path / "two") == ["t"]
    asks(tmp_path / "two" / "dev.parquet", "d")
    fault(tmp_path / "two", "has the splits dev, test; choose one")


def test_a_manifest_is_all_that_counts(tmp_path):
    picture(tmp_path / "x.png")
    asks(tmp_path / "rows.jsonl", "no")
    write_rows(tmp_path / "manifest.jsonl", [{"messages": [USER]}])
    assert [c.id for c in parse_source(str(tmp_path))] == ["manifest.jsonl:1"]


def test_pictures_with_metadata_are_captioned(tmp_path):
    picture(tmp_path / "train" / "x.png")
    write_rows(tmp_path / "train" / "metadata.jsonl", [{"file_name": "x.png", "text": "Noise."}])
    (conversation,) = parse_source(str(tmp_path))
    assert conversation.messages == chat(
        image_part(str(tmp_path / "train" / "x.png")), text_part("Describe the image."), answer="Noise."
    )


# ---- what decides the rows ----


def test_the_key_follows_bytes_and_options_not_places(tmp_path):
    a = asks(tmp_path / "a" / "rows.jsonl", "1", "2")
    b = asks(tmp_path / "b" / "rows.jsonl", "1", "2")
    key = parse_source(str(a)).key()
    assert len(key) == 64 and key == parse_source(str(b)).key() == parse_source(f"{a},weight=3").key()
    keys = {key, parse_source(f"{a},limit=1").key(), parse_source(f"{a},question=question").key()}
    asks(b, "1", "3")
    assert len(keys | {parse_source(str(b)).key()}) == 4


def test_the_key_of_folders(tmp_path):
    picture(tmp_path / "x" / "a.png")
    (tmp_path / "x" / "notes.txt").write_text("not read")
    keys = [parse_source(str(tmp_path / "x")).key()]
    (tmp_path / "x" / "notes.txt").write_text("still not read")
    assert parse_source(str(tmp_path / "x")).key() == keys[0]
    shutil.copytree(tmp_path / "x", tmp_path / "y")
    assert parse_source(str(tmp_path / "y")).key() == keys[0]
    (tmp_path / "y" / "a.png").rename(tmp_path / "y" / "b.png")
    keys.append(parse_source(str(tmp_path / "y")).key())
    picture(tmp_path / "y" / "b.png", seed=5)
    keys.append(parse_source(str(tmp_path / "y")).key())
    assert len(set(keys)) == 3
    for split in ("train", "test"):
        asks(tmp_path / "t" / f"{split}.parquet", split)
    before = parse_source(str(tmp_path / "t")).key()
    asks(tmp_path / "t" / "test.parquet", "other")
    assert parse_source(str(tmp_path / "t")).key() == before  # the test split is not read
    assert parse_source(f"{tmp_path / 't'},split=test").key() != before


def test_files_below_is_sorted_by_path(tmp_path):
    for name in ("b", "a/c", "a.x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert [path.as_posix() for path in files_below(tmp_path)] == ["a.x", "a/c", "b"]


# ---- size ----


def resident() -> float:
    """Memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def write_many(path: Path, count: int) -> Path:
    filler = "word " * 80
    with open(path, "w") as stream:
        stream.write({".json": "[", ".csv": "id,text\n"}.get(path.suffix, ""))
        for number in range(count):
            row = f'{{"id": "id-{number}", "text": "{number} {filler}"}}'
            if path.suffix == ".csv":
                row = f"id-{number},{number} {filler}"
            stream.write(("," if path.suffix == ".json" and number else "") + row + "\n")
        stream.write("]" if path.suffix == ".json" else "")
    if path.suffix == ".parquet":
        schema = pa.schema({"id": pa.string(), "text": pa.string()})
        with pq.ParquetWriter(path, schema) as writer:
            for first in range(0, count, 10_000):
                ids = [f"id-{number}" for number in range(first, first + 10_000)]
                writer.write_table(pa.table({"id": ids, "text": [f"{name} {filler}" for name in ids]}))
    return path


@pytest.fixture
def plain_arrow_memory():
    """Arrow's own allocator keeps 15 to 60 MiB that it does not use, by what ran before."""
    pool = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    yield
    pa.set_memory_pool(pool)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the process's memory is read from /proc")
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
@pytest.mark.usefixtures("plain_arrow_memory")
def test_100000_rows_are_streamed_in_little_memory(tmp_path, suffix):
    path = write_many(tmp_path / f"rows{suffix}", 100_000)
    list(parse_source(f"{path},limit=500"))
    start, before, most, count = time.perf_counter(), resident(), 0.0, 0
    for count, _ in enumerate(parse_source(str(path)), start=1):
        if count % 1000 == 0:
            most = max(most, resident() - before)
    print(f"{suffix}: {count / (time.perf_counter() - start):.0f} rows/s, {most:.0f} MiB")
    assert count == 100_000
    assert most < 50  # a table of the ids, to find those used twice, is 10 MiB; the rows as objects are 200


def test_a_source_is_read_again_from_the_start(tmp_path):
    source = parse_source(str(asks(tmp_path / "a.jsonl", "1", "2")))
    assert isinstance(source, Source)
    assert [c.id for c in source] == [c.id for c in source.rows()] == ["a.jsonl:1", "a.jsonl:2"]
    begun = iter(source)
    next(begun)
    del begun


def test_reading_stops_with_the_limit(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "1"}\n{\n')
    assert texts(f"{path},limit=1") == ["1"]
