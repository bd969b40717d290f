"""Benchmarks: tables of the published shape, built here, load in every local form and are totalled by hand."""

import base64
import builtins
import io
import re

import pytest
from chats import picture
from PIL import Image

from quantkit.errors import QuantkitError
from quantkit.verify.benchmarks import aggregate, is_benchmark, load_benchmark, parse_name
from quantkit.verify.scoring import score

datasets = pytest.importorskip("datasets", reason="benchmarks are read through the package datasets")


def png(width: int = 64, height: int = 48, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (width % 256, 80, 20)).save(stream, kind)
    return stream.getvalue()


PICTURE, JPEG = png(), png(kind="JPEG")


def cell(data: bytes) -> dict:
    return {"bytes": data, "path": None}


def mmbench(index: int, answer: str = "B", options: tuple[str, ...] = ("red", "blue", "green", "grey")) -> dict:
    texts = {letter: options[n] if n < len(options) else "nan" for n, letter in enumerate("ABCD")}
    fixed = {"category": "attribute", "source": "x", "L2-category": "finegrained", "comment": "nan", "split": "dev"}
    return {"index": str(index), "question": "What colour?", "hint": "nan", "answer": answer, **texts, **fixed} | {
        "image": cell(PICTURE)
    }


def ocrbench(kind: str, answers: list[str], dataset: str = "IIIT5K") -> dict:
    return {"dataset": dataset, "question": "what is written?", "question_type": kind, "answer": answers} | {
        "image": cell(JPEG)
    }


def hallusion(category: str, set_id: int, figure: int, question: int, answer: str, pictured: bool = True) -> dict:
    return {
        "category": category, "subcategory": "chart", "visual_input": "1", "set_id": str(set_id),
        "figure_id": str(figure), "sample_note": "", "question_id": str(question), "question": "Is it larger?",
        "gt_answer_details": "", "gt_answer": answer, "filename": "x.png", "image": cell(PICTURE) if pictured else None,
    }  # fmt: skip


def mmmu(
    identity: str, question: str, options: str, answer: str, kind: str = "multiple-choice", pictures: int = 2
) -> dict:
    images = {f"image_{n}": cell(png(16 + n)) if n <= pictures else None for n in range(1, 8)}
    return {"id": identity, "question": question, "options": options, "explanation": "", "img_type": "['Plots']"} | {
        **images, "answer": answer, "topic_difficulty": "Easy", "question_type": kind, "subfield": "x",
    }  # fmt: skip


def refcoco(identity: str, expressions: list[str], box: list[float]) -> dict:
    return {"question_id": identity, "image": cell(png(200, 100)), "question": "?", "answer": expressions} | {
        "segmentation": [0.0], "bbox": box, "iscrowd": 0, "file_name": "x.jpg",
    }  # fmt: skip


def video(identity: str, duration: str, answer: str = "A") -> dict:
    return {
        "video_id": identity, "duration": duration, "domain": "Knowledge", "sub_category": "Law", "url": "",
        "videoID": f"v{identity}", "question_id": f"{identity}-1", "task_type": "Counting Problem",
        "question": "How many?", "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."], "answer": answer,
    }  # fmt: skip


TABLES = {
    "MMBench": [mmbench(7), mmbench(1_000_007, "A")],
    "OCRBench": [ocrbench("Doc-oriented VQA", ["Total", "the total"])],
    "HallusionBench": [hallusion("VD", 0, 1, 0, "1")],
    "MMMU": [mmmu("validation_Math_1", "See <image 1>. Which?", "['one', 'two']", "B")],
    "RefCOCO": [refcoco("q1", ["left man", "man in red"], [20.0, 10.0, 60.0, 50.0])],
}


def table(rows: list[dict]):
    made = datasets.Dataset.from_list(rows)
    for column in made.column_names:
        if column == "image" or re.fullmatch(r"image_\d", column):
            made = made.cast_column(column, datasets.Image())
    return made


def parquet(folder, rows, name="data/test-00000-of-00001.parquet"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    table(rows).to_parquet(path)
    return folder


def pictures_of(conversation):
    parts = conversation.messages[0]["content"]
    uris = [part["image"] for part in parts if part["type"] == "image"]
    return [base64.b64decode(uri.partition(",")[2]) for uri in uris]


def prompt_of(conversation):
    return "\n".join(part["text"] for part in conversation.messages[0]["content"] if part["type"] == "text")


# ---- names ----


def test_names():
    assert [is_benchmark(text) for text in ("mmmu", "OCRBENCH:test", "Video-MME=x", "MMBench2", "bundled")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert parse_name("refcoco:testA=/data/a:b=c") == ("RefCOCO", "testA", "/data/a:b=c")
    assert parse_name("video-mme") == ("Video-MME", None, None)
    with pytest.raises(QuantkitError, match="benchmark 'MME' is unknown; known: MMBench, OCRBench"):
        load_benchmark("MME")


# ---- the forms of a local copy ----


@pytest.mark.parametrize("name", TABLES)
def test_every_local_form_gives_the_same_conversations(tmp_path, name):
    rows = TABLES[name]
    split = {"MMBench": "dev", "HallusionBench": "image", "MMMU": "validation", "RefCOCO": "val"}.get(name, "test")
    table(rows).save_to_disk(tmp_path / "disk")
    datasets.DatasetDict({split: table(rows), "other": table(rows[:1])}).save_to_disk(tmp_path / "dict")
    parquet(tmp_path / "hub", rows, f"data/{split}-00000-of-00001.parquet")
    parquet(tmp_path / "hub", rows[:1], "data/other-00000-of-00001.parquet")
    parquet(tmp_path / "flat[1]", rows, "anything.parquet")
    forms = [load_benchmark(name, tmp_path / form) for form in ("disk", "dict", "hub", "flat[1]")]
    forms.append(load_benchmark(name.upper(), tmp_path / "flat[1]" / "anything.parquet"))
    forms.append(load_benchmark(f"{name.lower()}:{split}={tmp_path / 'hub'}"))
    assert all(form == forms[0] for form in forms)
    assert len(forms[0]) == (2 if name in ("MMBench", "RefCOCO") else 1)
    for conversation in forms[0]:
        assert conversation.source.startswith(f"{name}:{split}:")
        assert conversation.messages[-1]["role"] == "assistant"
        assert conversation.messages[-1]["content"][0]["text"] == conversation.answer == conversation.accepted[0]
        right = score(conversation.metric, conversation.answer, conversation.accepted, conversation.choices)
        assert right == 1


def test_pictures_keep_their_bytes(tmp_path):
    (first,) = load_benchmark("OCRBench", parquet(tmp_path, TABLES["OCRBench"]))
    assert pictures_of(first) == [JPEG]
    assert first.messages[0]["content"][0]["image"].startswith("data:image/jpeg;base64,")


def test_pictures_by_path_lie_in_the_folder(tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for place in (folder / "a.png", tmp_path / "secret.png"):
        place.write_bytes(JPEG)

    def load(path):
        row = ocrbench("x", ["a"]) | {"image": {"bytes": None, "path": path}}
        datasets.Dataset.from_list([row]).to_parquet(folder / "test.parquet")
        return load_benchmark("OCRBench", folder)

    assert pictures_of(load("a.png")[0]) == [JPEG]
    for path in ("../secret.png", str(tmp_path / "secret.png")):
        with pytest.raises(QuantkitError, match="OCRBench:test:1: column 'image' holds no picture"):
            load(path)


def test_shards_in_order_limit_and_joined_splits(tmp_path):
    parquet(tmp_path, [mmbench(1), mmbench(2)], "en/dev-00000-of-00002.parquet")
    parquet(tmp_path, [mmbench(3)], "en/dev-00001-of-00002.parquet")
    parquet(tmp_path, [mmbench(4)], "en/more-00000-of-00001.parquet")
    parquet(tmp_path, [mmbench(9)], "cn/dev-00000-of-00001.parquet")

    def indices(name, **options):
        return [c.tags["index"] for c in load_benchmark(name, tmp_path, **options)]

    assert indices("MMBench") == ["1", "2", "3"]
    assert indices("MMBench", limit=2) == ["1", "2"]
    assert indices("MMBench:dev+more") == ["1", "2", "3", "4"]
    assert indices("MMBench", split="dev+more", limit=3) == ["1", "2", "3"]
    chinese = load_benchmark("MMBench:cn/dev", tmp_path)
    assert (chinese[0].tags["index"], chinese[0].language) == ("9", "zh")
    assert prompt_of(chinese[0]).endswith("请只回答正确选项的字母。")


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    rows = [{key: value for key, value in mmbench(1).items() if key != "A"}]
    parquet(tmp_path / "x", rows, "dev-00000-of-00001.parquet")
    with pytest.raises(QuantkitError, match=r"MMBench: split 'dev' .* column 'A' is missing; the table has index, q"):
        load_benchmark("MMBench", tmp_path / "x")
    with pytest.raises(QuantkitError, match=r"MMBench: .* no split 'test'; it has dev"):
        load_benchmark("MMBench:test", tmp_path / "x")
    datasets.DatasetDict({"dev": table([mmbench(1)])}).save_to_disk(tmp_path / "dict")
    with pytest.raises(QuantkitError, match=r"no split 'test'; it has dev"):
        load_benchmark("MMBench:test", tmp_path / "dict")
    with pytest.raises(QuantkitError, match=r"none does not exist.*give MMBench=FOLDER"):
        load_benchmark("MMBench", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(QuantkitError, match=r"empty holds no table"):
        load_benchmark("MMBench", tmp_path / "empty")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(QuantkitError, match="cannot be read"):
        load_benchmark("MMBench", tmp_path / "bad.parquet")
    with pytest.raises(
        QuantkitError, match=r"lmms-lab/MMBench:en:dev: the hub cannot be read .*give MMBench=FOLDER"
    ) as error:
        load_benchmark("MMBench")  # the tests are offline
    assert "\n" not in str(error.value)
    real = builtins.__import__

    def without(name, *rest):
        if name == "pyarrow":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(QuantkitError, match=r"pip install 'quantkit\[data\]'"):
        load_benchmark("MMBench", tmp_path / "x")


BAD_ROWS = {
    "hidden answer": ("MMBench", mmbench(1, ""), "the answers of this split are not public"),
    "no such option": ("MMBench", mmbench(1, "D", ("red", "blue")), "the answer 'D' is none of the options A, B"),
    "index": ("MMBench", mmbench(1) | {"index": "x1"}, "'index' must be a whole number"),
    "no picture": ("OCRBench", ocrbench("x", ["a"]) | {"image": cell(b"<html>")}, "column 'image' holds no picture"),
    "no answers": ("OCRBench", ocrbench("x", []), "no answer in column 'answer'"),
    "gt": ("HallusionBench", hallusion("VD", 0, 0, 0, "2"), "'gt_answer' must be 0 or 1"),
    "options": ("MMMU", mmmu("validation_Math_1", "x", "['a', ", "A"), "column 'options' is no list"),
    "image 3": ("MMMU", mmmu("validation_Math_1", "<image 3>", "['a', 'b']", "A"), "column 'image_3' holds no pic"),
    "box": ("RefCOCO", refcoco("q", ["x"], [1.0, 2.0, 0.0, 3.0]), r"must be \[left, top, width, height\]"),
    "climbing": ("Video-MME", video("1", "short") | {"videoID": "../x"}, "'videoID' is no file name"),
}


@pytest.mark.parametrize(("name", "row", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named(tmp_path, name, row, message):
    with pytest.raises(QuantkitError, match=rf"{name}:\w+:1: .*{message}"):
        load_benchmark(name, parquet(tmp_path, [row], "rows.parquet"))


# ---- prompts and totals, by hand ----


def scored(conversations, texts):
    return [
        (c, score(c.metric, text, c.accepted, c.choices)) for c, text in zip(conversations, texts, strict=True)
    ]  # fmt: skip


def test_mmbench_counts_rotations(tmp_path):
    rows = [mmbench(1 + 1_000_000 * turn, "ABCD"[turn]) for turn in range(4)]
    rows += [mmbench(2 + 1_000_000 * turn, "ABCD"[turn]) for turn in range(4)]
    rows += [mmbench(3 + 1_000_000 * turn, "AB"[turn], ("yes", "no")) for turn in range(2)]
    rows += [mmbench(4)]  # its rotations are not there
    conversations = load_benchmark("MMBench", parquet(tmp_path, rows, "dev.parquet"))
    assert prompt_of(conversations[0]).splitlines() == [
        "What colour?", "A. red", "B. blue", "C. green", "D. grey", "Answer with the letter of the right option only.",
    ]  # fmt: skip
    assert conversations[8].choices == {"A": "yes", "B": "no"}
    texts = ["A", "(B)", "C.", "The answer is D"] + ["A", "B", "C", "A"] + ["A", "B"] + ["A"]
    totals = aggregate("mmbench", scored(conversations, texts))
    assert totals == {"accuracy": pytest.approx(3 / 4), "circular": pytest.approx(2 / 3)}
    assert aggregate("MMBench", scored(conversations[-1:], ["B"])) == {"accuracy": 1.0}
    assert aggregate("MMBench", []) == {}


def test_mmbench_hints_come_first(tmp_path):
    (one,) = load_benchmark("MMBench", parquet(tmp_path, [mmbench(1) | {"hint": "It is the sky."}], "dev.parquet"))
    assert prompt_of(one).startswith("It is the sky.\nWhat colour?\nA. red")


def test_ocrbench_points(tmp_path):
    rows = [
        ocrbench("Regular Text Recognition", ["CENTRE"]),
        ocrbench("Regular Text Recognition", ["exit"]),
        ocrbench("Handwritten Mathematical Expression Recognition", ["\\frac { a } { B }"], "HME100k"),
    ]
    conversations = load_benchmark("OCRBench", parquet(tmp_path, rows))
    assert [c.metric for c in conversations] == ["contains", "contains", "formula"]
    assert len({c.id for c in conversations}) == 3
    totals = aggregate("OCRBench", scored(conversations, ["It says centre", "enter", "$\\frac{a}{B}$"]))
    assert totals == {
        "points": 2, "items": 3, "points: Regular Text Recognition": 1,
        "points: Handwritten Mathematical Expression Recognition": 1,
    }  # fmt: skip


def test_hallusionbench_groups(tmp_path):
    rows = [
        hallusion("VD", 0, 0, 0, "1"), hallusion("VD", 0, 0, 1, "0"),  # figure 0
        hallusion("VD", 0, 1, 0, "0"), hallusion("VD", 0, 1, 1, "0"),  # figure 1
        hallusion("VS", 0, 0, 0, "1", pictured=False), hallusion("VS", 0, 1, 0, "1"),
    ]  # fmt: skip
    conversations = load_benchmark("HallusionBench", parquet(tmp_path, rows, "image.parquet"))
    assert [c.modality for c in conversations] == ["image"] * 4 + ["text", "image"]
    assert prompt_of(conversations[0]) == "Is it larger?\nAnswer with yes or no only."
    totals = aggregate("HallusionBench", scored(conversations, ["Yes", "No", "Yes.", "Yes", "Yes", "Yes"]))
    # right: 1 1 0 0 1 1; figures VD-0 (1 1), VD-1 (0 0), VS-1 (1); questions VD-0 (1 0), VD-1 (1 0), VS-0 (1 1)
    assert totals == {"aAcc": pytest.approx(4 / 6), "fAcc": pytest.approx(2 / 3), "qAcc": pytest.approx(1 / 3)}


def test_mmmu_interleaves_and_totals_by_discipline(tmp_path):
    rows = [
        mmmu("validation_Math_1", "Compare <image 2> with <image 1>.", "['<image 1>', 'two', 'three']", "A"),
        mmmu("validation_Art_Theory_12", "Who <image 1>?", "['Goya', 'Dürer']", "B"),
        mmmu("validation_Math_3", "How many in <image 1>?", "[]", "['24.32', '24.3']", "open"),
        mmmu("validation_Physics_4", "Name <image 1>", "[]", "newton", "open"),
    ]
    conversations = load_benchmark("MMMU", parquet(tmp_path, rows, "validation.parquet"))
    assert [part["type"] for part in conversations[0].messages[0]["content"]] == [
        "text", "image", "text", "image", "text", "image", "text",
    ]  # fmt: skip
    assert pictures_of(conversations[0]) == [png(18), png(17), png(17)]
    assert conversations[0].modality == "images"
    assert conversations[1].choices == {"A": "Goya", "B": "Dürer"}
    assert (conversations[2].metric, conversations[2].accepted) == ("open", ("24.32", "24.3"))
    totals = aggregate("MMMU", scored(conversations, ["A", "Dürer", "So it is 24.3.", "pascal"]))
    assert totals == {"overall": 0.75, "Art & Design": 1.0, "Science": pytest.approx(2 / 3)}


def test_refcoco_boxes_in_thousandths(tmp_path):
    rows = [refcoco("q1", ["left man", "man in red"], [20.0, 10.0, 60.0, 50.0])]
    conversations = load_benchmark("RefCOCO", parquet(tmp_path, rows, "val.parquet"))
    assert [c.id for c in conversations] == ["RefCOCO-q1-0", "RefCOCO-q1-1"]
    assert "Where in the picture is this: man in red?" in prompt_of(conversations[1])
    # 200 x 100 pixels: left 20 / 200, top 10 / 100, right 80 / 200, bottom 60 / 100
    assert conversations[0].accepted == ("[100, 100, 400, 600]", "[0.1000, 0.1000, 0.4000, 0.6000]")
    assert load_benchmark("RefCOCO", tmp_path, limit=1) == conversations[:1]
    rows = scored(conversations, ["[100, 100, 400, 400]", "[400, 100, 700, 600]"])
    assert aggregate("RefCOCO", rows) == {"acc@0.5": 0.5}
    assert scored(conversations[:1], ["[0.1, 0.1, 0.4, 0.5]"])[0][1] == 1


def test_video_mme_reads_folders_of_frames(tmp_path):
    rows = [video("1", "short"), video("2", "long", "B")]
    parquet(tmp_path, rows, "videomme/test-00000-of-00001.parquet")
    for number in (1, 2, 10):
        picture(tmp_path / "data" / "v1" / f"frame{number}.png")
    picture(tmp_path / "v2" / "a.jpg")
    conversations = load_benchmark("Video-MME", tmp_path)
    frames = conversations[0].messages[0]["content"][0]["video"]
    assert [frame.rpartition("/")[2] for frame in frames] == ["frame1.png", "frame2.png", "frame10.png"]
    assert conversations[0].modality == "video"
    assert conversations[0].choices == {"A": "One.", "B": "Two.", "C": "Three.", "D": "Four."}
    totals = aggregate("Video-MME", scored(conversations, ["A", "A"]))
    assert totals == {"overall": 0.5, "long": 0.0, "short": 1.0}


def test_video_mme_reads_video_files(tmp_path):
    parquet(tmp_path, [video("1", "short")], "videomme/test-00000-of-00001.parquet")
    with pytest.raises(
        QuantkitError, match=r"Video-MME:test:1: no video 'v1': neither .*v1.mp4 nor a folder .*v1 with"
    ):
        load_benchmark("Video-MME", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "v1.mp4").write_bytes(b"x")
    (conversation,) = load_benchmark("Video-MME", tmp_path)
    assert conversation.messages[0]["content"][0] == {"type": "video", "video": str(tmp_path / "data" / "v1.mp4")}
