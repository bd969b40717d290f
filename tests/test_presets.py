"""Data sets of the hub: presets read copies of their published shape, streaming asks for what is named, errors told.

Nothing here reaches the hub: the copies are built with `datasets`, and `load_dataset` is replaced where it is called.
"""

import base64
import io
import logging
from pathlib import Path

import pytest
from chats import chat, text_part, user
from PIL import Image

from quantkit.calibration import hub
from quantkit.calibration.presets import DOCUMENT, PRESETS, join_lines, preset_names, preset_of
from quantkit.calibration.rows import RawRow
from quantkit.calibration.sources import parse_source
from quantkit.errors import QuantkitError

datasets = pytest.importorskip("datasets")
from datasets import Features, Value  # noqa: E402

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def listed(feature):
    return datasets.List(feature) if hasattr(datasets, "List") else [feature]


def noise(color: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(stream, "PNG")
    return stream.getvalue()


def shown(color: str) -> dict:
    return {"type": "image", "image": "data:image/png;base64," + base64.b64encode(noise(color)).decode()}


def picture_of(color: str) -> dict:
    return {"bytes": noise(color), "path": None}


PAIRS = listed({"user": Value("string"), "assistant": Value("string"), "source": Value("string")})
TEXTS = [{"user": "Red?", "assistant": "Yes.", "source": "s"}, {"user": "Blue?", "assistant": "No.", "source": "s"}]
TURNS = [
    user(shown("red"), shown("blue"), text_part("Red?")),
    *[{"role": "assistant", "content": [text_part("Yes.")]}, user(text_part("Blue?"))],
    {"role": "assistant", "content": [text_part("No.")]},
]
STRINGS = {
    name: Value("string")
    for name in ["ds_name", "question", "chosen", "rejected", "origin_dataset", "origin_split", "idx"]
}
TWO = [picture_of("red"), picture_of("blue")]
# as each is published: the features, a row, its messages
SHAPES = {
    "openbmb/RLAIF-V-Dataset": (
        {**STRINGS, "image": datasets.Image()},
        {**dict.fromkeys(STRINGS, "x"), "question": "Q?", "chosen": "Good.", "rejected": "Bad.",
         "image": picture_of("red")},
        chat(shown("red"), text_part("Q?"), answer="Good."),
    ),
    "lmms-lab/flickr30k": (
        {"image": datasets.Image(), "caption": listed(Value("string")), "sentids": listed(Value("string")),
         "img_id": Value("string"), "filename": Value("string")},
        {"image": picture_of("red"), "caption": ["One.", "Two."], "sentids": ["0", "1"], "img_id": "0",
         "filename": "0.jpg"},
        chat(shown("red"), text_part("Describe the image."), answer="One."),
    ),
    "HuggingFaceM4/the_cauldron": (
        {"images": listed(datasets.Image()), "texts": PAIRS}, {"images": TWO, "texts": TEXTS}, TURNS,
    ),
    "HuggingFaceM4/FineVision": (
        {"images": listed(datasets.Image()), "texts": PAIRS, "relevance_min": Value("int64")},
        {"images": TWO, "texts": TEXTS, "relevance_min": 3},
        TURNS,
    ),
    "mit-han-lab/pile-val-backup": (
        {"text": Value("string"), "meta": {"pile_set_name": Value("string")}},
        {"text": "A story.\n", "meta": {"pile_set_name": "x"}},
        [user(text_part("A story.\n"))],
    ),
    "Salesforce/wikitext": (
        {"text": Value("string")},
        {"text": " A line . \n"},
        [user(text_part("A line ."))],
    ),
}  # fmt: skip


def table_of(name: str) -> datasets.Dataset:
    features, row, _ = SHAPES[name]
    return datasets.Dataset.from_list([row], features=Features(features))


@pytest.fixture
def streamed(monkeypatch):
    """Answers `load_dataset` with the published shapes, and records what it was asked for."""
    asked: list[tuple] = []

    def load_dataset(path, name=None, **options):
        asked.append((path, name, options))
        return table_of(path).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "commit_of", lambda table: COMMIT)
    return asked


def test_there_is_a_shape_for_each_preset():
    assert {preset.id for preset in PRESETS} == set(SHAPES)
    assert len(set(preset_names())) == len(preset_names())


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_preset_streams_what_it_names(preset, streamed):
    for name in (preset.name, preset.id, preset.id.lower(), preset.id.split("/")[1], *preset.aliases):
        (conversation,) = parse_source(name)
        assert conversation.messages == SHAPES[preset.id][2]
        assert conversation.document == (set(preset.columns) == {"text"})
        assert streamed.pop() == (
            preset.id, preset.config, {"split": preset.split, "revision": COMMIT, "streaming": True},
        )  # fmt: skip
    source = parse_source(preset.name)
    assert source.name == ":".join(filter(None, (preset.id, preset.config, preset.split)))
    assert conversation.source == f"{source.name}:1"
    assert source.limit == preset.limit


@pytest.mark.parametrize(
    ("preset", "form"),
    [(preset, form) for preset in PRESETS for form in ("parquet", "saved", "saved splits")]
    + [(preset, "jsonl") for preset in PRESETS if "text" in preset.columns],  # pictures are no JSON
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_preset_reads_a_local_copy(tmp_path, preset, form, monkeypatch):
    monkeypatch.setattr(hub, "commit_of", lambda table: pytest.fail("the hub is asked about a local copy"))
    table = table_of(preset.id)
    if form == "parquet":
        (tmp_path / (preset.config or "data")).mkdir()
        table.to_parquet(tmp_path / (preset.config or "data") / f"{preset.split}-00000-of-00001.parquet")
    elif form == "saved":
        table.save_to_disk(tmp_path)
    elif form == "saved splits":
        datasets.DatasetDict({preset.split: table, "other": table.select([])}).save_to_disk(tmp_path)
    else:
        table.to_json(tmp_path / f"{preset.split}.jsonl")
    files = sorted(tmp_path.rglob("*"))
    source = parse_source(f"{preset.id},path={tmp_path}")
    (conversation,) = source
    assert sorted(tmp_path.rglob("*")) == files  # no copy is written beside it
    assert conversation.messages == SHAPES[preset.id][2]
    assert str(tmp_path) in conversation.source
    assert len(source.key()) == 64 and source.name.startswith(preset.id)


def test_every_default_can_be_overridden(streamed):
    text = "the_cauldron,config=docvqa,split=test,revision=v2,limit=7,weight=3,messages=texts,images="
    source = parse_source(text)
    assert (source.name, source.limit, source.weight) == ("HuggingFaceM4/the_cauldron:docvqa:test", 7, 3)
    assert source.columns == {"messages": "texts", "images": ""}
    (conversation,) = source
    assert conversation.messages[0]["content"] == [text_part("Red?")]
    assert streamed[0] == (
        "HuggingFaceM4/the_cauldron",
        "docvqa",
        {"split": "test", "revision": COMMIT, "streaming": True},
    )


def test_any_other_data_set_with_a_mapping(monkeypatch, streamed):
    table = datasets.Dataset.from_list([{"ask": "Q?", "reply": "A."}] * 2)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table.to_iterable_dataset())
    source = parse_source("someone/chats,question=ask,answer=reply")
    assert [c.messages for c in source] == [chat(text_part("Q?"), answer="A.")] * 2
    assert [c.id for c in source] == ["someone/chats:train:1", "someone/chats:train:2"]
    assert source.limit is None
    with pytest.raises(QuantkitError, match=r"someone/chats:train: column 'rply'.* \(did you mean 'reply'\?\)"):
        list(parse_source("someone/chats,question=ask,answer=rply"))
    with pytest.raises(QuantkitError, match=r"none of the columns ask, reply is known"):
        list(parse_source("someone/chats"))


def test_pictures_and_videos_are_left_as_bytes(monkeypatch, streamed):
    """Decoding would need Pillow's and a video library's time for rows that are never used."""
    features = Features({"image": datasets.Image(), "inner": listed({"pictures": listed(datasets.Image())})})
    row = {"image": {"bytes": b"no picture", "path": None}, "inner": [{"pictures": [{"bytes": b"none", "path": None}]}]}
    table = datasets.Dataset.from_list([row], features=features)
    for loaded in (table, table.to_iterable_dataset()):
        plain = hub._undecoded(datasets, loaded)
        assert list(plain) == [row]


def test_files_beside_a_streamed_table_are_fetched_and_no_others(monkeypatch):
    import huggingface_hub

    fetched: list[str] = []

    class Files:
        def cat_file(self, path):
            fetched.append(path)
            return noise("red")

    monkeypatch.setattr(huggingface_hub, "HfFileSystem", Files)
    own, other = "hf://datasets/a/b@x/1.png", "hf://datasets/c/private@x/1.png"
    row = {"images": [{"bytes": None, "path": own}], "image": {"bytes": None, "path": other}, "text": own}
    found = hub._fetched(row, "hf://datasets/a/b@")
    assert found["images"] == [{"bytes": noise("red"), "path": own}]
    assert found["image"] == row["image"] and found["text"] == own
    assert fetched == [own]


# ---- errors ----


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ValueError("BuilderConfig 'docvq' not found. Available: ['ai2d', 'docvqa']"),
            r"no config 'docvq' \(did you mean 'docvqa'\?\); it has ai2d, docvqa",
        ),
        (
            ValueError("Bad split: tran. Available splits: ['train', 'test']"),
            r"no split 'tran' \(did you mean 'train'\?\)",
        ),
        (ConnectionError("Couldn't reach\nthe hub"), "the hub cannot be read .*Couldn't reach.*path=FOLDER"),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist"), "not on the hub, not public"),
        (RuntimeError("Dataset scripts are no longer supported"), "scripts are no longer supported"),
        (ValueError("Compression type zstd not supported"), r"compressed with zstd: pip install 'quantkit\[data\]'"),
        (TimeoutError("slow"), "TimeoutError: slow"),
    ],
)  # fmt: skip
def test_what_the_hub_says_becomes_one_line(monkeypatch, streamed, error, message):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(QuantkitError, match=message) as raised:
        list(parse_source("the_cauldron,config=docvq,split=tran"))
    assert "\n" not in str(raised.value) and str(raised.value).startswith("HuggingFaceM4/the_cauldron")


def test_a_config_must_be_chosen(monkeypatch, streamed):
    def load_dataset(*_, **__):
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']\nExample")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(QuantkitError, match=r"someone/sets: choose a config, as config=a; it has a, b"):
        list(parse_source("someone/sets"))


def test_the_libraries_own_words_are_understood(tmp_path, monkeypatch):
    """The messages that are searched for names are those of the installed `datasets`."""
    for config in ("ai2d", "docvqa"):
        (tmp_path / config).mkdir()
        datasets.Dataset.from_list([{"question": "Q?"}]).to_parquet(tmp_path / config / "train-00000-of-00001.parquet")
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*\n"
        for name in ("ai2d", "docvqa")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    monkeypatch.setattr(hub, "commit_of", lambda table: None)
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda path, name=None, **options: load(str(tmp_path), name, **{**options, "revision": None}),
    )
    (conversation,) = parse_source("someone/sets,config=ai2d")
    assert conversation.id == "someone/sets:ai2d:train:1"
    for text, message in [
        ("someone/sets", "choose a config, as config=ai2d; it has ai2d, docvqa"),
        ("someone/sets,config=docvq", r"no config 'docvq' \(did you mean 'docvqa'\?\); it has ai2d, docvqa"),
        ("someone/sets,config=ai2d,split=tran", r"no split 'tran' \(did you mean 'train'\?\); it has train"),
    ]:
        with pytest.raises(QuantkitError, match=message):
            list(parse_source(text))


def test_an_error_in_the_stream_names_the_row(monkeypatch, streamed):
    def rows():
        yield {"question": "Q?"}
        raise OSError("connection lost")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(rows))
    stream = iter(parse_source("someone/sets"))
    assert next(stream).id == "someone/sets:train:1"
    with pytest.raises(QuantkitError, match=r"connection lost.*after row 1"):
        next(stream)


def test_offline_is_one_line(monkeypatch):
    """No network here: the libraries' own error, whatever it is."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(QuantkitError, match="path=FOLDER") as error:
        list(parse_source("the_cauldron"))
    assert "\n" not in str(error.value)


def test_a_missing_library_names_the_extra(monkeypatch, tmp_path):
    import sys

    datasets.Dataset.from_list([{"question": "Q?"}]).save_to_disk(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr(hub, "commit_of", lambda table: None)
    for text in ("wikitext", str(tmp_path)):
        with pytest.raises(QuantkitError, match=r"pip install 'quantkit\[data\]'"):
            list(parse_source(text))


def test_saved_folders_and_their_faults(tmp_path):
    table = datasets.Dataset.from_list([{"question": "Q?"}])
    datasets.DatasetDict({"validation": table, "test": table}).save_to_disk(tmp_path / "two")
    assert [c.id for c in parse_source(f"{tmp_path}/two,split=test")] == ["two:test:1"]
    with pytest.raises(QuantkitError, match="several splits, choose one; it has validation, test"):
        list(parse_source(f"{tmp_path}/two"))
    with pytest.raises(QuantkitError, match=r"no split 'tset' \(did you mean 'test'\?\)"):
        list(parse_source(f"{tmp_path}/two,split=tset"))
    table.save_to_disk(tmp_path / "cut")
    (tmp_path / "cut" / "data-00000-of-00001.arrow").write_bytes(b"cut")
    with pytest.raises(QuantkitError, match="cannot be read as a data set saved by"):
        list(parse_source(f"{tmp_path}/cut"))


# ---- what decides the rows ----


def test_the_key_of_a_hub_set_is_its_commit_and_options(monkeypatch, caplog):
    asked = []

    class Api:
        def dataset_info(self, repo_id, revision=None, timeout=None):
            asked.append((repo_id, revision))
            if revision == "gone":
                raise ConnectionError("offline")
            return type("Info", (), {"sha": COMMIT if revision is None else "f" * 40})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    source = parse_source("the_cauldron")
    assert source.key() == source.key() == parse_source("HuggingFaceM4/the_cauldron,weight=2").key()
    assert asked == [("HuggingFaceM4/the_cauldron", None)] * 2  # once for each source
    keys = {source.key()}
    for option in ("config=docvqa", "split=test", "revision=v2", "limit=7", "images=", "revision=" + "a" * 40):
        keys.add(parse_source(f"the_cauldron,{option}").key())
    assert len(keys) == 7
    assert ("HuggingFaceM4/the_cauldron", "a" * 40) not in asked
    assert parse_source(f"the_cauldron,revision={COMMIT}").key() == source.key()
    with caplog.at_level(logging.WARNING):
        parse_source("the_cauldron,revision=gone").key()
    assert "does not tell its commit" in caplog.text


# ---- wikitext's lines ----


def lines(*texts: str) -> list[str]:
    rows = [RawRow(f"w:{n}", f"w:{n}", {"text": text}) for n, text in enumerate(texts, start=1)]
    return [row.value["text"] for row in join_lines(rows, "text")]


def test_lines_are_joined_to_documents():
    long = "x" * DOCUMENT
    assert lines("", " = A = \n", "", " one \n", " = = S = = \n", " two \n", " = B = \n", " three \n", " ") == [
        "= A =\none\n= = S = =\ntwo",
        "= B =\nthree",
    ]
    assert lines(" = A = ", long, "tail", " = = S = = ", "x") == [f"= A =\n{long}", "tail\n= = S = =\nx"]
    half = "x" * (DOCUMENT // 2)
    assert lines(half, " = = S = = ", "tail") == [half, "= = S = =\ntail"]
    assert lines(half[1:], "a = b", " = = S = = ") == [half[1:] + "\na = b", "= = S = ="]
    assert lines("", " ") == []


def test_joined_lines_keep_places_and_let_faults_through():
    rows = [
        RawRow("w:1", "w:1", {"text": ""}),
        RawRow("w:2", "w:2", {"text": "a"}),
        RawRow("w:3", "w:3", None, None, QuantkitError("w:3: bad")),
        RawRow("w:4", "w:4", {"text": "b"}),
    ]
    assert [(row.where, row.value and row.value["text"]) for row in join_lines(rows, "text")] == [
        ("w:3", None),
        ("w:2", "a\nb"),
    ]


def test_wikitext_documents_from_a_local_copy(tmp_path):
    texts = ["", " = A = \n", *[f" line {number} of the article \n" for number in range(300)], " = B = \n", " end \n"]
    table = datasets.Dataset.from_list([{"text": text} for text in texts])
    table.to_parquet(Path(tmp_path) / "train-00000-of-00001.parquet")
    source = parse_source(f"wikitext,path={tmp_path}")
    documents = [c.messages[0]["content"][0]["text"] for c in source]
    assert [len(text) // 500 for text in documents[:-2]] == [3] * (len(documents) - 2)  # spaces stripped: below 2000
    assert documents[-1] == "= B =\nend"
    assert "\n".join(documents).split("\n") == [text.strip() for text in texts if text.strip()]
    assert len(list(parse_source(f"wikitext,path={tmp_path},limit=2"))) == 2
    assert preset_of("WikiText") is preset_of("Salesforce/wikitext")
