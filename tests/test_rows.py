"""Rows of every form that people write become the same conversation, and any other value a fault of one line."""

import base64
import io
import json
from pathlib import Path

import pytest
from chats import chat, image_part, picture, text_part, user
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.calibration.conversations import MODALITIES, ROLES, Conversation
from quantkit.calibration.references import mime_of
from quantkit.calibration.rows import COLUMNS, RawRow, read_row
from quantkit.errors import QuantkitError

ANSWER = {"role": "assistant", "content": "It is blue."}
USER = {"role": "user", "content": "Hi"}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("x.png", "y.png", "sub/z.png"):
        picture(tmp_path / name, seed=len(name))
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(16))
    return tmp_path


def read(value, folder: Path | None = None, columns: dict | None = None) -> Conversation:
    return read_row(RawRow("rows.jsonl:7", "rows.jsonl:7", value, folder and folder.resolve()), columns)


def fault(value, folder: Path | None = None, columns: dict | None = None) -> str:
    with pytest.raises(QuantkitError, match=r"^rows.jsonl:7: ") as error:
        read(value, folder, columns)
    assert "\n" not in str(error.value)
    return str(error.value)


def content(row, folder=None, columns=None) -> list[dict]:
    return read(row, folder, columns).messages[0]["content"]


# ---- forms ----


def test_every_form_of_one_question_about_a_picture_is_the_same(folder):
    expected = chat(image_part(str(folder / "x.png")), text_part("Colour?"))
    pairs = [{"user": "Colour?", "assistant": "It is blue.", "source": "made"}]
    llava = [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": "It is blue."}]
    roles = [{"role": "user", "content": "<image>\nColour?"}, ANSWER]
    parts = [
        image_part("x.png"),
        {"type": "image", "path": "x.png"},
        {"type": "image", "url": "x.png"},
        {"type": "image_url", "image_url": {"url": "x.png", "detail": "high"}},
        {"type": "input_image", "image_url": "x.png"},
        {"type": "image", "image": {"bytes": None, "path": "x.png"}},
        {"image": "x.png"},
        {"type": "image", "image": f"file://{folder}/x.png", "text": None},
    ]
    forms = [{"messages": [user(part, {"type": "input_text", "text": "Colour?"}), ANSWER]} for part in parts] + [
        {"messages": json.dumps([user(image_part("x.png"), "Colour?"), ANSWER])},
        {"conversations": llava, "image": "x.png"},
        {"conversations": llava, "images": ["x.png"]},
        {"messages": roles, "images": ["x.png"], "videos": []},
        {"messages": [user({"type": "image"}, "Colour?"), ANSWER], "images": [{"path": "x.png", "bytes": None}]},
        {"texts": pairs, "images": ["x.png"]},
        {"question": "Colour?", "answer": "It is blue.", "image": "x.png"},
        {"prompt": "<image>Colour?", "answer": ["It is blue.", "blue"], "images": '["x.png"]'},
    ]
    for row in forms:
        assert read(row, folder).messages == expected, row
        assert read(row, folder).modality == "image"


def test_texts_and_pictures_keep_their_order(folder):
    x, z = image_part(str(folder / "x.png")), image_part(str(folder / "sub" / "z.png"))
    row = {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "First <image>\nthen\n<image>"},
            {"from": "gpt", "value": "As in <image>."},
        ],
        "images": ["x.png", "sub/z.png"],
    }
    conversation = read(row, folder)
    assert conversation.messages[1]["content"] == [text_part("First "), x, text_part("then"), z]
    assert conversation.messages[2]["content"] == [text_part("As in <image>.")]  # an answer shows no pictures
    assert conversation.modality == "images"
    pairs = {
        "texts": [{"user": "A?", "assistant": "a"}, {"user": "B?", "assistant": "b"}],
        "images": ["x.png", "sub/z.png"],
    }
    first, _, second, _ = read(pairs, folder).messages
    assert (first["content"], second["content"]) == ([x, z, text_part("A?")], [text_part("B?")])
    later = {"texts": [{"user": "A?", "assistant": "a"}, {"user": "<image>B?", "assistant": "b"}], "images": ["x.png"]}
    assert read(later, folder).messages[2]["content"] == [x, text_part("B?")]


def test_placeholders_are_text_where_no_picture_is_listed():
    html = "How do I use <video> and <image> in a page?"
    assert content({"messages": [{"role": "user", "content": html}]}) == [text_part(html)]
    assert content({"question": html, "answer": "So."}) == [text_part(html)]
    assert "more video parts than videos" in fault({"conversations": [{"from": "human", "value": "<video> Why?"}]})


def test_a_placeholder_of_a_kind_that_is_not_listed_is_text(folder):
    x, text = image_part(str(folder / "x.png")), text_part("Is <video> a tag?")
    assert content({"texts": [{"user": text["text"], "assistant": "Yes."}], "images": ["x.png"]}, folder) == [x, text]
    assert content({"question": text["text"], "image": "x.png"}, folder) == [x, text]
    mixed = {"messages": [{"role": "user", "content": "<image>" + text["text"]}], "images": ["x.png"]}
    assert content(mixed, folder) == [x, text]


@pytest.mark.parametrize("listed", [0, 1, 3])
@pytest.mark.parametrize("form", ["llava", "role", "bare"])
def test_pictures_and_placeholders_must_match(folder, form, listed):
    text = "<image><image> Which?"
    turn = {
        "llava": {"from": "human", "value": text},
        "role": {"role": "user", "content": text},
        "bare": user({"type": "image"}, {"type": "image"}, "Which?"),
    }[form]
    row = {"messages": [turn], "images": ["x.png"] * listed}
    if form == "role" and not listed:
        assert content(row, folder) == [text_part(text)]
        return
    expected = "1 of the row's images are used by no message" if listed == 3 else "more image parts than images"
    assert expected in fault(row, folder)


def test_the_kinds_of_references(folder):
    png = (folder / "x.png").read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    bare = base64.b64encode(png).decode()
    url = "https://example.org/a%20b.png?x=1"
    for value, expected in [
        (uri, uri), ("DATA" + uri[4:], uri), (bare, uri), (png, uri), (bytearray(png), uri),
        ({"bytes": png, "path": "x"}, uri),
        ({"base64": bare}, uri), (url, url), ({"url": url}, url), ("HTTP://example.org", "HTTP://example.org"),
        ("skimage:astronaut.png", "skimage:astronaut.png"), ("./sub/../x.png", str(folder / "x.png")),
        (str(folder / "x.png"), str(folder / "x.png")),
    ]:  # fmt: skip
        assert content({"image": value, "question": "?"}, folder)[0] == image_part(expected), value
    clip = (folder / "clip.mp4").read_bytes()
    video = "data:video/mp4;base64," + base64.b64encode(clip).decode()
    frames = [str(folder / "x.png"), url]
    for value, expected in [
        ("clip.mp4", str(folder / "clip.mp4")), ({"bytes": clip, "path": None}, video), (["x.png", url], frames),
        ('["x.png", "' + url + '"]', frames), ("https://example.org/c.mp4", "https://example.org/c.mp4"),
    ]:  # fmt: skip
        conversation = read({"video": value, "question": "?"}, folder)
        assert (conversation.modality, conversation.messages[0]["content"][0]["video"]) == ("video", expected)
    assert content({"frames": ["x.png", "y.png"], "answer": "Noise."}, folder) == [
        {"type": "video", "video": [str(folder / "x.png"), str(folder / "y.png")]},
        text_part("Describe the video."),
    ]


def test_a_videos_rate_belongs_to_its_frames(folder):
    part = {"type": "video", "video": ["x.png", "y.png"], "fps": 2}
    assert content({"messages": [user(part)]}, folder)[0]["fps"] == 2.0
    assert "fps" not in content({"messages": [user({**part, "video": "clip.mp4"})]}, folder)[0]
    for bad in (0, -1, "2", True, float("nan"), float("inf")):
        assert "'fps' of a video" in fault({"messages": [user({**part, "fps": bad})]}, folder)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("../secret.png", "outside the data folder"),
        ("/etc/hostname", "outside the data folder"),
        ("sub/../../secret.png", "outside the data folder"),
        ("file:///etc/hostname", "outside the data folder"),
        ("none.png", "'none.png' does not exist"),
        ("sub", "'sub' does not exist"),
        ("a\0b.png", "is no usable path"),
        ("x" * 300 + ".png", "is no usable path"),
        ("\ud800.png", "no usable path"),
        ("ring.png", "no usable path"),
        ("ftp://example.org/x.png", "only http and https"),
        ("https://", "no valid URL"),
        ("https://example.org:x/", "no valid URL"),
        ("http://[::1/x.png", "no valid URL"),
        ("http://exa mple.org/x.png", "no valid URL"),
        ("skimage:../../x.png", "no picture of scikit-image"),
        ("data:image/png,abc", "must be base64"),
        ("", "found an empty text"),
        (b"", "has no bytes"),
        ({}, "found dict"),
        ({"bytes": None, "path": None}, "found dict"),
        (3, "found int"),
    ],
)
def test_a_bad_reference_is_told(folder, value, message):
    picture(folder.parent / "secret.png")
    (folder / "ring.png").symlink_to(folder / "ring.png")
    assert message in fault({"messages": [user({"type": "image", "image": value})]}, folder)


def test_a_hub_row_names_no_file_of_this_machine(folder):
    assert "cannot name a file of this machine" in fault({"image": str(folder / "x.png"), "question": "?"}, None)


def test_a_link_may_lead_within_the_folder_and_not_out(folder):
    (folder / "inside.png").symlink_to(folder / "sub" / "z.png")
    assert content({"image": "inside.png"}, folder)[0] == image_part(str(folder / "sub" / "z.png"))
    (folder / "out").symlink_to(folder.parent)
    picture(folder.parent / "secret.png")
    assert "outside" in fault({"image": "out/secret.png"}, folder)


def test_a_text_is_a_document_and_beside_pictures_their_caption(folder):
    document = read({"text": "A long story.\n\nThe end."})
    assert document.document and document.modality == "text"
    assert document.messages == [user(text_part("A long story.\n\nThe end."))]
    caption = read({"text": "Noise.", "file_name": "x.png"}, folder)
    assert not caption.document
    assert caption.messages == chat(
        image_part(str(folder / "x.png")), text_part("Describe the image."), answer="Noise."
    )
    assert "must be text that is not empty" in fault({"text": " \n"})
    assert "must be text that is not empty, found 3" in fault({"text": 3})


def test_tool_calls_become_objects_whatever_they_came_as():
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    for value in (
        call,
        {"type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}},
        {"name": "add", "arguments": {"x": 1}},
    ):
        messages = read({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [value]}]}).messages
        assert messages[1] == {"role": "assistant", "content": [text_part("")], "tool_calls": [call]}
    named = {**call, "id": "call_1", "function": {"name": "add", "arguments": ""}}
    (found,) = read({"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [named]}]}).messages[1][
        "tool_calls"
    ]
    assert found == {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": {}}}
    for bad, message in [
        ('{"x": ', "the arguments of the call of 'add' are not valid JSON"),
        ("[1]", "must be an object, found list"),
        (3, "must be an object, found int"),
    ]:
        turn = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": bad}}]}
        assert message in fault({"messages": [USER, turn]})
    for bad in ([3], [{}], [{"function": {"arguments": {}}}], {"name": "add"}, "add"):
        assert "tool" in fault({"messages": [USER, {"role": "assistant", "content": "", "tool_calls": bad}]})


def test_tools_are_a_list_or_json_text_of_one():
    tools = [{"type": "function", "function": {"name": "add"}}]
    assert read({"messages": [USER], "tools": tools}).tools == tools
    assert read({"messages": [USER], "tools": json.dumps(tools)}).tools == tools
    assert read({"messages": [USER], "tools": []}).tools is None
    for bad in ("add", [3], {"a": 1}):
        assert "'tools' must be a list of objects" in fault({"messages": [USER], "tools": bad})
    assert "must be plain JSON" in fault({"messages": [USER], "tools": [{"a": b"x"}]})


def test_other_names_of_roles():
    turns = [{"from": name, "value": name} for name in ("system", "human", "gpt", "observation", "model")]
    assert [m["role"] for m in read(turns).messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert read([{"role": "developer", "content": "x"}, USER]).messages[0]["role"] == "system"
    for bad in ("robot", None, 3, ["user"]):
        assert "unknown role" in fault([{"role": bad, "content": "x"}])
    assert "no message of role 'user'" in fault([{"from": "gpt", "value": "x"}])


# ---- mapping ----


def test_a_mapping_names_the_columns(folder):
    row = {"ask": "Colour?", "reply": "It is blue.", "pic": "x.png", "messages": 3, "key": 12, "lang": "zh"}
    columns = {"question": "ask", "answer": "reply", "image": "pic", "id": "key", "language": "lang"}
    conversation = read(row, folder, columns)
    assert conversation.messages == chat(image_part(str(folder / "x.png")), text_part("Colour?"))
    assert (conversation.id, conversation.language, conversation.answer) == ("12", "zh", None)
    assert "column 'nope', to be read as 'question', is missing" in fault(row, folder, {"question": "nope"})


def test_a_mapped_form_keeps_the_others_out_and_an_empty_name_its_own():
    row = {"messages": [USER], "text": "The document.", "question": "Q?", "id": "a"}
    assert read(row, None, {"text": "text"}).document
    assert content(row, None, {"question": "text"}) == [text_part("The document.")]
    assert content(row, None, {"messages": ""}) == [text_part("Q?")]
    assert read(row, None, {"id": ""}).id == "rows.jsonl:7"


def test_a_foreign_tables_tags_and_choices_are_left_alone():
    row = {"question": "Q?", "answer": "A.", "tags": ["x"], "choices": ["one"], "modality": "vqa"}
    assert read(row).tags == {} and read(row).choices is None and read(row).answer is None
    assert "'choices' must be a list or an object" in fault({**row, "metric": "anls"})
    judged = read({"question": "Q?", "answer": ["A.", "a"], "metric": "anls"})
    assert (judged.answer, judged.accepted, judged.metric) == ("A.", ("A.", "a"), "anls")
    mapped = {"chat": [USER], "tags": 3, "choices": 3}
    assert read(mapped, None, {"messages": "chat"}).tags == {}


# ---- faults ----


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "'messages' is missing or empty"),
        ({"a": 1, "b": 2}, "the row has 'a', 'b': name the columns"),
        ({"messages": []}, "'messages' is missing or empty"),
        ({"messages": "Hi"}, "must be a list of messages"),
        ({"messages": "[1"}, "'messages' is not valid JSON"),
        ({"messages": [USER], "images": 3}, "'images' must be a list, found int"),
        ({"messages": [USER], "images": "[1"}, "'images' is not valid JSON"),
        ({"messages": [USER], "image": "x.png"}, "1 of the row's images are used by no message"),
        ({"messages": [USER], "id": [1]}, "'id' must be text or a number"),
        ({"messages": [USER], "id": True}, "'id' must be text or a number"),
        ({"messages": [USER], "language": 3}, "'language' must be text"),
        ({"messages": [{**USER, "name": 3}]}, "'name' of a message must be text"),
        ({"messages": [user({"type": "text"})]}, "a text part has no 'text'"),
        ({"messages": [user(3)]}, "unknown content part 3"),
        ({"messages": [user({"type": "audio", "audio": "x"})]}, "known types: text, image, image_url, video"),
        ({"messages": [user({"type": ["text"]})]}, "unknown content part"),
        ({"messages": [user("half \ud800 a pair")]}, "half a surrogate pair (character 5)"),
        ({"messages": [user("x")], "id": "\udfff"}, "half a surrogate pair"),
        ({"messages": [user("x")], "answer": "\udfff"}, "half a surrogate pair"),
        ({"messages": [USER], "language": "\ud800"}, "half a surrogate pair"),
        ({"messages": [USER], "tags": {"kind": "\udfff"}}, "half a surrogate pair"),
        ({"messages": [USER], "tags": {"\udfff": "kind"}}, "half a surrogate pair"),
        ({"texts": [{"user": "Q?", "assistant": None}]}, "the 'assistant' of a turn must be text"),
        ({"question": " ", "answer": "A."}, "the question must be text that is not empty"),
        ({"question": ["Q?"]}, "the question must be text"),
        ({"video": [], "question": "?"}, "a video has no frames"),
        ({"videos": [3], "question": "?"}, "a video must be a path, a URL, a data URI or bytes or a list of frames"),
        (None, "expected an object with 'messages', found NoneType"),
        ("x", "found str"),
    ],
)
def test_a_bad_row_is_one_line_with_its_place(row, message):
    assert message in fault(row)


def test_a_path_of_a_video_may_look_like_json(folder):
    (folder / "clip.mp4").rename(folder / "[2024] cat.mp4")
    part = content({"video": "[2024] cat.mp4", "question": "?"}, folder)[0]
    assert part == {"type": "video", "video": str(folder / "[2024] cat.mp4")}
    assert content({"video": '["x.png", "y.png"]', "question": "?"}, folder)[0]["video"] == [
        str(folder / "x.png"),
        str(folder / "y.png"),
    ]
    assert "'[\"x.png\"' does not exist" in fault({"video": '["x.png"', "question": "?"}, folder)


def test_a_name_that_is_not_utf8_is_told_by_its_escape(folder):
    row = RawRow("rows:7", "b\udce9.png", {"messages": [USER]}, folder)
    with pytest.raises(QuantkitError, match=r"^rows:7: a text holds half a surrogate pair"):
        read_row(row)
    assert "'b\\udce9.png' is no usable path (not UTF-8; rename the file)" in fault(
        {"messages": [user({"type": "image", "image": "b\udce9.png"})]}, folder
    )


def test_a_video_must_be_a_video_file(folder):
    (folder / "notes.txt").write_text("x")
    assert "is no video file" in fault({"video": "notes.txt", "question": "?"}, folder)


KEYS = """
    role content from value type text image video fps url path bytes base64 tool_calls function name arguments image_url
    user assistant reasoning_content
"""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["<image>", "<video>", "data:image/png;base64,xx", "http://x", "[", "{}", "x.png", *ROLES]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            KEYS.split(),
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
ROWS = JSON | st.dictionaries(st.sampled_from(COLUMNS), JSON, max_size=5)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(ROLES) | JSON, "content": st.lists(JSON, max_size=3) | st.text(max_size=9) | JSON},
        optional={"tool_calls": JSON, "name": JSON},
    ),
    max_size=3,
)


@settings(max_examples=400, deadline=None)
@given(ROWS | TURNS | st.fixed_dictionaries({"messages": TURNS, "images": st.lists(JSON, max_size=2)}))
def test_any_value_is_a_conversation_or_a_fault_of_one_line(value):
    try:
        conversation = read(value, Path(__file__).parent)
    except QuantkitError as error:
        told = str(error)
    else:
        told = ""
    if told:
        assert told.startswith("rows.jsonl:7: ") and "\n" not in told
        return
    assert conversation.modality in MODALITIES
    assert any(message["role"] == "user" for message in conversation.messages)
    json.dumps([conversation.messages, conversation.tools], ensure_ascii=False).encode()


def test_values_nested_beyond_reason():
    deep: object = "x"
    for _ in range(5000):
        deep = [deep]
    assert "rows.jsonl:7" in fault({"messages": [user(deep)]})
    call = {"name": "f", "arguments": {"x": deep}}
    assert "rows.jsonl:7" in fault({"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]})


def test_kinds_by_first_bytes():
    from PIL import Image

    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        stream = io.BytesIO()
        Image.new("RGB", (3, 2)).save(stream, kind)
        assert mime_of(stream.getvalue()) == f"image/{kind.lower()}"
    assert mime_of(b"\0\0\0\x18ftypqt  ") == "video/quicktime"
    assert mime_of(b"\x1aE\xdf\xa3" + bytes(9)) == "video/x-matroska"
    assert mime_of(b"RIFF\0\0\0\0AVI LIST") == "video/x-msvideo"
    assert mime_of(b"") is None and mime_of(b"hello world") is None
