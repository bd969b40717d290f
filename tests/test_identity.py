"""Whether two sets share items: the same picture in another file, the same chat answered otherwise; leaks are named."""

import json
import shutil
from pathlib import Path

import pytest
from chats import chat, image_part, picture, text_part, user, write_mixed, write_rows
from PIL import Image
from variants import AWQ_CONFIG, TINY, quantize, variant

import quantkit.verify
from quantkit.calibration import load_conversations
from quantkit.calibration.identity import identify, shared
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.verify import Gate
from quantkit.verify.report import Report
from quantkit.verify.run import _overlap
from quantkit.verify.task import Target, Task


def load(folder: Path, *rows: object):
    folder.mkdir(exist_ok=True)
    return load_conversations(write_rows(folder / "rows.jsonl", list(rows)))


def video_part(*names: str) -> dict:
    return {"type": "video", "video": list(names)}


@pytest.fixture
def pictures(tmp_path) -> Path:
    """a.png, the same pixels in two other forms, and b.png, c.png."""
    for seed, name in enumerate("abc"):
        picture(tmp_path / f"{name}.png", seed)
    with Image.open(tmp_path / "a.png") as opened:
        opened.save(tmp_path / "a.bmp")
        opened.convert("RGBA").save(tmp_path / "other.png", compress_level=1)
        opened.resize((48, 64)).save(tmp_path / "small.png")
        reshaped = Image.frombytes("RGB", (48, 64), opened.tobytes())
        reshaped.save(tmp_path / "reshaped.png")
    return tmp_path


def test_the_same_pixels_are_the_same_picture(pictures):
    question = text_part("What is it?")
    rows = [chat(image_part(name), question) for name in ("a.png", "a.bmp", "other.png", "b.png", "reshaped.png")]
    found = [identify(conversation) for conversation in load(pictures, *rows)]
    assert found[0] == found[1] == found[2]
    assert len({identity.pictures for identity in found}) == 3, "the same bytes in another size are another picture"
    assert all(len(identity.item) == len(identity.pictures[0]) == 16 for identity in found)


def test_what_an_item_is(pictures):
    """With pictures the answer does not count; a chat of text alone is compared whole, as many share a prompt."""
    question = text_part("What is it?")
    base, answered, unanswered, asked, order, role, parts = (
        identify(conversation).item
        for conversation in load(
            pictures,
            chat(image_part("a.png"), question),
            chat(image_part("a.png"), question, answer="Something else."),
            [user(image_part("a.png"), question)],
            chat(image_part("a.png"), text_part("What is it")),
            chat(question, image_part("a.png")),
            [{"role": "system", "content": "What is it?"}, *chat(image_part("a.png"), question)],
            chat(image_part("a.png"), text_part("What "), text_part("is it?")),
        )
    )
    assert base == answered == unanswered
    assert len({base, asked, order, role, parts}) == 5
    first, second = load(pictures, chat(question), chat(question, answer="Other."))
    assert identify(first).item != identify(second).item


def test_white_space_makes_no_other_item(pictures):
    rows = load(
        pictures,
        chat(text_part("Hello there?"), answer="Hi."),
        chat(text_part(" Hello\n\tthere? "), answer="Hi.\n"),
        chat(text_part("Hellothere?"), answer="Hi."),
    )
    first, spaced, joined = (identify(conversation).item for conversation in rows)
    assert first == spaced != joined


def test_an_answer_stated_apart_counts_as_the_last_turn(pictures):
    """A chat of text is known with its prompt and any answer that counts as right, on either side."""
    prompt = [user(text_part("What is 2 + 2?"))]
    turn, apart, other, asked = load(
        pictures,
        {"id": "turn", "messages": chat(text_part("What is 2 + 2?"), answer="4")},
        {"id": "apart", "messages": prompt, "answer": ["four", " 4"]},
        {"id": "other", "messages": prompt, "answer": "5"},
        {"id": "asked", "messages": prompt},
    )
    names = {one.id: identify(one).names for one in (turn, apart, other, asked)}
    assert names["turn"][0] in names["apart"] and names["turn"][0] not in names["other"]
    assert names["asked"] == (names["apart"][0],) and len(names["apart"]) == 3
    assert shared([apart, other], names["turn"], []) == ["apart"]
    assert shared([turn, other], names["apart"], []) == ["turn", "other"]  # the last: the same prompt, no turn after it
    rest = chat(image_part("a.png"), text_part("What?"))[:1]
    (shown,) = load(pictures, {"messages": rest, "answer": "A."})
    assert identify(shown).answered == ()  # with pictures the answer does not count


def test_frames_and_several_pictures_count_one_by_one(pictures):
    rows = load(
        pictures,
        chat(image_part("a.png"), image_part("b.png"), text_part("?")),
        chat(image_part("b.png"), image_part("a.png"), text_part("?")),
        chat(video_part("a.png", "b.png"), text_part("?")),
    )
    found = [identify(conversation) for conversation in rows]
    assert {frozenset(identity.pictures) for identity in found} == {frozenset(found[0].pictures)}
    assert found[0].pictures == found[1].pictures[::-1]
    assert found[0].item != found[1].item


def test_shared_by_prompt_or_by_any_picture(pictures):
    rows = load(
        pictures,
        {"id": "prompt", "messages": chat(text_part("Hello?"), answer="Hi.")},
        {"id": "reordered", "messages": chat(image_part("c.png"), image_part("a.bmp"), text_part("Which?"))},
        {"id": "frame", "messages": chat(video_part("b.png", "a.png"), text_part("What moves?"))},
        {"id": "new picture", "messages": chat(image_part("c.png"), text_part("What is it?"))},
        {"id": "new text", "messages": chat(text_part("Hello there?"), answer="Hi.")},
    )
    other = load(
        pictures / "other",
        chat(text_part("Hello?"), answer="Hi."),
    ) + load(pictures, chat(image_part("a.png"), text_part("What is it?")))
    identities = [identify(conversation) for conversation in other]
    items = [identity.item for identity in identities]
    hashes = [name for identity in identities for name in identity.pictures]
    assert shared(rows, items, hashes) == ["prompt", "reordered", "frame"]
    assert shared(rows, items, []) == ["prompt"]
    assert shared(rows, [], []) == []


def test_a_picture_that_cannot_be_decoded_is_named(pictures):
    (pictures / "a.png").write_bytes(b"no picture")
    (row,) = load(pictures, chat(image_part("a.png"), text_part("?")))
    with pytest.raises(QuantkitError, match=r"rows.jsonl:1: image '.*a.png' cannot be decoded"):
        identify(row)


# ---- in the report ----


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("mixed"), 8)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory) -> Path:
    return variant(tmp_path_factory.mktemp("awq") / "awq", quantize, AWQ_CONFIG)


def calibrated_on(folder: Path, source: Path, conversations: list, **more) -> Path:
    """A copy of the variant that says what it was calibrated on, as `quantize` does."""
    shutil.copytree(source, folder)
    identities = [identify(conversation) for conversation in conversations]
    items = [identity.item for identity in identities]
    pictures = [name for identity in identities for name in identity.pictures]
    said = {"items": items, "pictures": pictures} | more
    provenance = {"calibration": said}
    (folder / "quantkit.json").write_text(json.dumps(provenance))
    return folder


def verify(candidate: Path, data: Path, **options) -> Report:
    return quantkit.verify.verify(TINY, candidate, data, generate=False, noise=False, **options)


def test_a_leak_is_an_error_that_names_the_item(tmp_path, data, quantized):
    rows = {conversation.id: conversation for conversation in load_conversations(data)}
    leaked = calibrated_on(tmp_path / "leaked", quantized, [rows["m-004"]])
    report = verify(leaked, data, gates=(Gate("max_kl", 100.0),))
    assert report.data is not None
    assert (report.data.overlap, report.data.overlapping) == ("found", ["m-004"])
    (alarm,) = report.alarms
    assert (alarm.severity, alarm.check) == ("error", "overlap")
    assert "1 of the items" in alarm.message and "m-004" in alarm.message
    assert report.gates[0].passed and report.verdict.status == "fail"
    assert any("overlap" in line and "m-004" in line for line in report.verdict.lines)
    assert str(data) not in report.to_json(), "no place of this machine"
    picture_only = calibrated_on(tmp_path / "picture", quantized, [rows["m-001"]])
    found = verify(picture_only, data, samples=8)
    # m-001 shows 1.png, alone; m-007 is a clip of 0, 2 and 4, m-003 shows 0 and 3
    assert found.data is not None and found.data.overlapping == ["m-001"]


def test_an_item_that_was_shortened_is_still_known(tmp_path, data, quantized):
    """Calibration records whole chats; an over-long one is cut for verification, but leaked all the same."""
    turns = [chat(text_part(f"Question {n}? " * 5), answer=f"Answer {n}.") for n in range(12)]
    row = {"id": "long", "messages": [message for turn in turns for message in turn]}
    long = load(tmp_path / "long", row)
    leaked = calibrated_on(tmp_path / "leaked", quantized, long)
    report = verify(leaked, tmp_path / "long" / "rows.jsonl", max_tokens=200)
    assert report.data is not None and report.data.overlapping == ["long"]
    assert "Question 0?" in report.engine().items[0].prompt and "Question 11?" not in report.engine().items[0].prompt


@pytest.mark.parametrize(
    "content",
    [
        None,
        "{",
        "[]",
        "{}",
        '{"calibration": {"items": 3}}',
        '{"calibration": null}',
        '{"calibration": {"items": [[]], "pictures": []}}',
    ],
)
def test_a_file_that_does_not_say_leaves_it_unknown(tmp_path, quantized, content):
    shutil.copytree(quantized, tmp_path / "q")
    if content is not None:
        (tmp_path / "q" / "quantkit.json").write_text(content)
    task = Task([], [], [], None, set(), 8, 4)
    assert _overlap(Target(tmp_path / "q", open_checkpoint(tmp_path / "q")), task, []) is None
    assert _overlap(Target(tmp_path / "model.gguf"), task, []) is None


def test_the_report_says_what_it_was_calibrated_on(tmp_path, data, quantized):
    said = {"fingerprint": "f" * 64, "samples": 12, "tokens": 345, "sources": [{"source": "bundled"}, {"source": "x"}]}
    report = verify(calibrated_on(tmp_path / "q", quantized, [], **said), data, quick=True)
    assert report.candidate.calibration is not None
    assert report.candidate.calibration.model_dump() == said | {"sources": ["bundled", "x"]}
    assert report.reference.calibration is None
    odd = calibrated_on(tmp_path / "odd", quantized, [], **said | {"samples": "many"})
    assert verify(odd, data, quick=True).candidate.calibration is None


def test_disjoint_data_says_none(tmp_path, data, quantized):
    other = load(tmp_path, chat(text_part("Something else?")))
    report = verify(calibrated_on(tmp_path / "q", quantized, other), data, samples=4)
    assert report.data is not None and (report.data.overlap, report.data.overlapping) == ("none", [])
    assert report.alarms == []
