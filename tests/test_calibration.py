"""Calibration: rows are read or refused as stated, samples are what inference sees, the tokenizer stays as it is."""

import base64
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from chats import chat, image_part, picture, text_part, user, write_mixed, write_rows
from jinja2 import TemplateError
from PIL import Image

import quantkit
from quantkit.calibration import PrepareOptions, fingerprint, load_conversations, load_processor, prepare
from quantkit.calibration.conversations import MODALITIES
from quantkit.errors import QuantkitError

TINY = Path(quantkit.__file__).parent / "data" / "tiny"


@pytest.fixture(scope="module")
def processor():
    return load_processor(TINY)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("mixed"))


# ---- reading ----


def test_manifest_folder_keeps_order_and_fields(mixed):
    conversations = load_conversations(mixed)
    assert [c.id for c in conversations] == [f"m-{n:03}" for n in range(48)]
    assert [sum(c.modality == m for c in conversations) for m in MODALITIES] == [24, 12, 6, 6]
    assert conversations[1].source == f"{mixed / 'manifest.jsonl'}:2"
    assert conversations[1].messages[0]["content"][0] == {"type": "image", "image": str(mixed / "images" / "1.png")}
    assert conversations[0].answer is None


def test_folder_of_images_gets_the_stock_prompt(tmp_path):
    for name in ("b.png", "d.PNG", "a.jpg", "c.bmp"):  # in an order that no file system lists them in
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    conversations = load_conversations(tmp_path)
    assert [c.id for c in conversations] == ["a.jpg", "b.png", "c.bmp", "d.PNG"]
    assert conversations[0].messages == [
        {"role": "user", "content": [image_part(str(tmp_path / "a.jpg")), text_part("Describe the image.")]}
    ]


def test_the_forms_of_a_row_all_mean_the_same(tmp_path):
    picture(tmp_path / "x.png")
    answer = {"role": "assistant", "content": "It is blue."}
    forms = [
        {"messages": chat(image_part("x.png"), text_part("Colour?"))},
        {"messages": [user({"type": "image", "path": "x.png"}, text_part("Colour?")), answer]},
        {"messages": [user({"type": "image_url", "image_url": {"url": "x.png"}}, "Colour?"), answer]},
        {"conversations": [user({"type": "image"}, text_part("Colour?")), answer], "images": ["x.png"]},
        chat(image_part("x.png"), text_part("Colour?")),
    ]
    conversations = load_conversations(write_rows(tmp_path / "rows.jsonl", forms))
    assert len(conversations) == 5
    assert all(c.messages == conversations[0].messages and c.modality == "image" for c in conversations)
    (tmp_path / "rows.json").write_text(json.dumps(forms))
    assert [c.messages for c in load_conversations(tmp_path / "rows.json")] == [c.messages for c in conversations]


def test_data_uri_and_file_give_the_same_pixels(tmp_path, processor):
    uri = "data:image/png;base64," + base64.b64encode(Path(picture(tmp_path / "x.png")).read_bytes()).decode()
    rows = [chat(image_part("x.png"), text_part("Hi")), chat(image_part(uri), text_part("Hi"))]
    first, second = prepare(load_conversations(write_rows(tmp_path / "r.jsonl", rows)), processor, PrepareOptions())
    assert fingerprint([first]) == fingerprint([second])


USER = {"role": "user", "content": "Hi"}
BAD_ROWS = {
    "not JSON": ("{", "not valid JSON"),
    "not an object": ("3", "expected an object"),
    "no messages": ("{}", "'messages' is missing or empty"),
    "unknown role": (json.dumps({"messages": [{"role": "robot", "content": "x"}]}), "unknown role 'robot'"),
    "no user": (json.dumps({"messages": [{"role": "assistant", "content": "x"}]}), "no message of role 'user'"),
    "content": (json.dumps({"messages": [{"role": "user", "content": 3}]}), "content of a 'user' message"),
    "part": (json.dumps({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}), "unknown content part"),
    "missing image": (json.dumps({"messages": chat(image_part("none.png"))}), "'none.png' does not exist"),
    "outside": (json.dumps({"messages": chat(image_part("../secret.png"))}), "outside the data folder"),
    "absolute": (json.dumps({"messages": chat(image_part("/etc/hostname"))}), "outside the data folder"),
    "url": (json.dumps({"messages": chat(image_part("https:///x.png"))}), "is no valid URL"),
    "scheme": (json.dumps({"messages": chat(image_part("ftp://example.org/x.png"))}), "only http and https"),
    "too few images": (json.dumps({"messages": chat({"type": "image"}), "images": []}), "more image parts than images"),
    "too many images": (json.dumps({"messages": [USER], "images": ["x.png"]}), "1 of the row's images are used by no"),
    "wrong modality": (json.dumps({"messages": [USER], "modality": "video"}), "make it 'text'"),
    "no frames": (json.dumps({"messages": chat({"type": "video", "video": []})}), "a video has no frames"),
    "video file": (json.dumps({"messages": chat({"type": "video", "video": "x.mp4"})}), "'x.mp4' does not exist"),
    "answer": (json.dumps({"messages": [USER], "answer": 3}), "'answer' must be text"),
    "answers": (json.dumps({"messages": [USER], "answer": ["a", 3]}), "'answer' must be text or a list of texts"),
    "no answers": (json.dumps({"messages": [USER], "answer": []}), "'answer' is an empty list"),
    "metric": (
        json.dumps({"messages": [USER], "answer": "a", "metric": "bleu"}),
        "unknown metric 'bleu'; known: exact",
    ),
    "metric alone": (json.dumps({"messages": [USER], "metric": "anls"}), "metric 'anls' needs an 'answer'"),
    "no choices": (json.dumps({"messages": [USER], "answer": "A", "metric": "choice"}), "'choice' needs 'choices'"),
    "one choice": (json.dumps({"messages": [USER], "choices": ["x"]}), "at least two options"),
    "letter": (json.dumps({"messages": [USER], "choices": {"a": "x", "B": "y"}}), "letter from A to Z, not 'a'"),
    "choice text": (json.dumps({"messages": [USER], "choices": {"A": "x", "B": 2}}), "option B must be text"),
    "27 choices": (json.dumps({"messages": [USER], "choices": ["x"] * 27}), "lists 27 options"),
    "not a choice": (
        json.dumps({"messages": [USER], "answer": "C", "metric": "choice", "choices": ["x", "y"]}),
        "'C' is neither a letter nor a text of 'choices'",
    ),
    "tags": (json.dumps({"messages": [USER], "tags": {"level": 3}}), "'tags' must be an object of texts"),
}


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named_with_its_file_and_number(tmp_path, row, message):
    folder = tmp_path / "data"
    folder.mkdir()
    picture(tmp_path / "secret.png")
    good = json.dumps({"id": "good", "messages": [USER]})
    (folder / "rows.jsonl").write_text(f"{good}\n\n{row}\n")
    with pytest.raises(QuantkitError, match=r"rows.jsonl:3: ") as error:
        load_conversations(folder / "rows.jsonl")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_row_says_how_its_answer_is_judged(tmp_path):
    rows = [
        {"messages": [USER]},
        {"messages": [USER], "answer": "blue"},
        {"messages": [USER], "answer": ["blue", "azure"], "metric": "anls", "tags": {"set": "colour"}},
        {"messages": [USER], "answer": "B", "metric": "choice", "choices": ["red", "blue"]},
        {"messages": [USER], "answer": "blue", "metric": "choice", "choices": {"C": "red", "D": "blue"}},
    ]
    plain, stated, several, lettered, named = load_conversations(write_rows(tmp_path / "r.jsonl", rows))
    assert (plain.answer, plain.accepted, plain.metric, plain.choices, plain.tags) == (None, (), None, None, {})
    assert (stated.answer, stated.accepted, stated.metric) == ("blue", ("blue",), None)
    assert (several.answer, several.accepted, several.metric) == ("blue", ("blue", "azure"), "anls")
    assert several.tags == {"set": "colour"}
    assert (lettered.choices, lettered.metric) == ({"A": "red", "B": "blue"}, "choice")
    assert named.choices == {"C": "red", "D": "blue"}


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link.png").symlink_to(picture(tmp_path / "secret.png"))
    with pytest.raises(QuantkitError, match="outside the data folder"):
        load_conversations(write_rows(folder / "rows.jsonl", [chat(image_part("link.png"))]))


def test_other_bad_sources(tmp_path):
    with pytest.raises(QuantkitError, match="does not exist"):
        load_conversations(tmp_path / "nowhere")
    with pytest.raises(QuantkitError, match=r"neither manifest.jsonl nor any image"):
        load_conversations(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(QuantkitError, match="cannot read this kind of file"):
        load_conversations(tmp_path / "x.txt")
    (tmp_path / "latin.jsonl").write_bytes(b'{"messages": "\xe9"}')
    with pytest.raises(QuantkitError, match="not UTF-8"):
        load_conversations(tmp_path / "latin.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(QuantkitError, match="no conversation"):
        load_conversations(tmp_path / "empty.jsonl")
    with pytest.raises(QuantkitError, match=r"twice.jsonl:2: id 'a' is already used"):
        load_conversations(write_rows(tmp_path / "twice.jsonl", [{"id": "a", "messages": [USER]}] * 2))


# ---- preparing ----


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_an_unreadable_image_names_file_and_row(tmp_path, processor, content):
    (tmp_path / "bad.png").write_bytes(content)
    conversations = load_conversations(write_rows(tmp_path / "r.jsonl", [chat(image_part("bad.png"), text_part("?"))]))
    with pytest.raises(QuantkitError, match=r"r.jsonl:1: image '.*bad.png' cannot be decoded"):
        prepare(conversations, processor, PrepareOptions())


def test_frames_of_different_size_are_refused(tmp_path, processor):
    picture(tmp_path / "a.png", size=(32, 32))
    picture(tmp_path / "b.png", size=(32, 48))
    rows = [chat({"type": "video", "video": ["a.png", "b.png"]}, text_part("?"))]
    with pytest.raises(QuantkitError, match=r"r.jsonl:1: the frames of a video differ in size"):
        prepare(load_conversations(write_rows(tmp_path / "r.jsonl", rows)), processor, PrepareOptions())


def test_a_placeholder_typed_as_text_is_refused(tmp_path, processor):
    picture(tmp_path / "a.png")
    for parts in ([text_part(f"a {processor.image_token} b")], [image_part("a.png"), text_part(processor.image_token)]):
        conversations = load_conversations(write_rows(tmp_path / "r.jsonl", [chat(*parts)]))
        with pytest.raises(QuantkitError, match=r"r.jsonl:1: "):
            prepare(conversations, processor, PrepareOptions())


@pytest.mark.parametrize("mode", ["16x", "4x"])
@pytest.mark.parametrize("slices", [None, 1, 4])
def test_samples_equal_the_processors_own_output(mixed, processor, mode, slices):
    """The oracle is a plain call of apply_chat_template, and the prompt length is that of a plain prompt."""
    conversations = load_conversations(mixed)
    options = PrepareOptions(downsample_mode=mode, max_slice_nums=slices)
    samples = prepare(conversations, processor, options)
    assert [s.id for s in samples] == [c.id for c in conversations]
    for conversation, sample in list(zip(conversations, samples, strict=True))[:8]:
        whole = oracle(processor, conversation.messages, mode, slices, generation=False)
        prompt = oracle(processor, conversation.messages[:-1], mode, slices, generation=True)
        for name, tensor in sample.inputs.items():
            assert torch.equal(tensor, whole[name]), name
        assert sample.prompt_length == prompt["input_ids"].shape[1] < sample.input_ids.shape[1]
        assert torch.equal(prompt["input_ids"], sample.input_ids[:, : sample.prompt_length])


def oracle(processor, messages, mode, slices, generation):
    opened = []
    for message in messages:
        parts = []
        for part in message["content"]:
            if part["type"] == "image":
                part = {"type": "image", "image": Image.open(part["image"])}
            elif part["type"] == "video":
                part = {"type": "video", "video": np.stack([np.asarray(Image.open(frame)) for frame in part["video"]])}
            parts.append(part)
        opened.append({"role": message["role"], "content": parts})
    kwargs = {"downsample_mode": mode, "do_sample_frames": False}
    if slices:
        kwargs["max_slice_nums"] = slices
    return processor.apply_chat_template(
        opened,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=generation,
        enable_thinking=False,
        processor_kwargs=kwargs,
    )


@pytest.mark.parametrize(("mode", "factor"), [("16x", 16), ("4x", 4)])
def test_placeholders_match_visual_features(mixed, processor, mode, factor):
    for sample in prepare(load_conversations(mixed), processor, PrepareOptions(downsample_mode=mode)):
        sizes = [sample.inputs[k] for k in ("target_sizes", "target_sizes_videos") if k in sample.inputs]
        features = sum(int(size.prod(-1).sum()) for size in sizes) // factor
        assert int(sample.vision_mask.sum()) == features
        assert (features > 0) == (sample.modality != "text")
        assert sample.vision_mask.shape == sample.input_ids[0].shape


def test_a_conversation_without_answer_ends_in_the_generation_prompt(tmp_path, processor):
    picture(tmp_path / "a.png")
    (sample,) = prepare(load_conversations(tmp_path), processor, PrepareOptions())
    messages = load_conversations(tmp_path)[0].messages
    expected = oracle(processor, messages, "16x", None, generation=True)["input_ids"]
    assert torch.equal(sample.input_ids, expected)
    assert sample.prompt_length == expected.shape[1]


def test_no_warnings(mixed, processor, caplog, recwarn, capfd):
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        prepare(load_conversations(mixed), processor, PrepareOptions(downsample_mode="both", max_slice_nums=2))
    assert [record.getMessage() for record in caplog.records] == []
    # transformers 5.23 calls numpy with tensors: a deprecation inside, which Python hides from users
    shown = [str(warning.message) for warning in recwarn if not issubclass(warning.category, DeprecationWarning)]
    assert shown == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("samples", [1, 5, 7, 16, 31, 47])
def test_selection_is_stratified_and_deterministic(mixed, processor, samples):
    conversations = load_conversations(mixed)
    options = PrepareOptions(samples=samples, seed=3)
    chosen = prepare(conversations, processor, options)
    assert len(chosen) == samples
    for modality, share in zip(MODALITIES, (24, 12, 6, 6), strict=True):
        assert abs(sum(s.modality == modality for s in chosen) - samples * share / 48) < 1
    assert fingerprint(chosen) == fingerprint(prepare(conversations, processor, options))


def test_seed_changes_the_selection_and_the_fingerprint(mixed, processor):
    conversations = load_conversations(mixed)
    first, second = (prepare(conversations, processor, PrepareOptions(samples=8, seed=seed)) for seed in (0, 1))
    assert [s.id for s in first] != [s.id for s in second]
    assert fingerprint(first) != fingerprint(second)


def test_both_modes_share_the_samples(mixed, processor):
    samples = prepare(load_conversations(mixed), processor, PrepareOptions(downsample_mode="both"))
    modes = {sample.id: sample.downsample_mode for sample in samples}
    assert 12 < list(modes.values()).count("16x") < 36
    again = prepare(load_conversations(mixed)[5:20], processor, PrepareOptions(downsample_mode="both", seed=9))
    assert all(sample.downsample_mode == modes[sample.id] for sample in again)


def test_fingerprint_sees_every_tensor_and_the_mode(mixed, processor):
    (sample,) = prepare(load_conversations(mixed)[1:2], processor, PrepareOptions())
    before = fingerprint([sample])
    for name, tensor in sample.inputs.items():
        changed = tensor.clone()
        changed.view(-1)[-1] += 1
        inputs = {**sample.inputs, name: changed}
        assert fingerprint([type(sample)(**{**vars(sample), "inputs": inputs})]) != before, name
    assert fingerprint([type(sample)(**{**vars(sample), "downsample_mode": "4x"})]) != before


def test_over_long_conversations_are_shortened_between_messages(tmp_path, processor):
    picture(tmp_path / "a.png")
    turns = []
    for number in range(6):
        turns += chat(image_part("a.png"), text_part(f"Question {number}?"), answer=f"Answer {number}.")
    conversations = load_conversations(write_rows(tmp_path / "r.jsonl", [turns]))
    (whole,) = prepare(conversations, processor, PrepareOptions())
    limit = whole.input_ids.shape[1] - 1
    (cut,) = prepare(conversations, processor, PrepareOptions(max_tokens=limit))
    expected = oracle(processor, conversations[0].messages[:10], "16x", None, False)["input_ids"]
    assert torch.equal(cut.input_ids, expected)
    assert cut.inputs["target_sizes"].shape[0] == whole.inputs["target_sizes"].shape[0] * 5 // 6
    one = oracle(processor, conversations[0].messages[:2], "16x", None, False)["input_ids"].shape[1]
    (least,) = prepare(conversations, processor, PrepareOptions(max_tokens=one))
    assert (least.input_ids.shape[1], least.modality) == (one, "image")
    with pytest.raises(QuantkitError, match="no calibration tokens"):
        prepare(conversations, processor, PrepareOptions(max_tokens=one - 1))


def test_an_over_long_row_gives_its_place_to_another(tmp_path, processor, caplog):
    long, short = "word " * 200, "word"
    rows = [{"id": str(n), "messages": chat(text_part(long if n % 2 else short))} for n in range(8)]
    conversations = load_conversations(write_rows(tmp_path / "r.jsonl", rows))
    with caplog.at_level(logging.WARNING):
        samples = prepare(conversations, processor, PrepareOptions(samples=4, max_tokens=64))
    assert [s.id for s in samples] == ["0", "2", "4", "6"]
    assert "left out" in caplog.text


def test_a_row_with_a_stated_answer_is_never_shortened(tmp_path, processor):
    row = {"messages": chat(text_part("a"), answer="b") + chat(text_part("word " * 200), answer="c"), "answer": "c"}
    conversations = load_conversations(write_rows(tmp_path / "r.jsonl", [row]))
    with pytest.raises(QuantkitError, match="no calibration tokens"):
        prepare(conversations, processor, PrepareOptions(max_tokens=64))


def test_bad_options_and_folders(tmp_path):
    with pytest.raises(QuantkitError, match="downsample mode '8x'"):
        PrepareOptions(downsample_mode="8x")
    with pytest.raises(QuantkitError, match="max_tokens must be at least 1"):
        PrepareOptions(max_tokens=0)
    with pytest.raises(QuantkitError, match="no such checkpoint folder"):
        load_processor(tmp_path / "none")
    with pytest.raises(QuantkitError, match="processor and tokenizer files are missing"):
        load_processor(tmp_path)


def test_a_template_that_breaks_the_prefix_is_refused(mixed):
    processor = load_processor(TINY)
    processor.chat_template = (
        "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{{ p.text }}{% endfor %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}now answer:{% endif %}"
    )
    with pytest.raises(QuantkitError, match=r"manifest.jsonl:1: the chat template renders the prompt differently"):
        prepare(load_conversations(mixed)[:1], processor, PrepareOptions())


@pytest.mark.parametrize(
    "error", [AttributeError("x"), AssertionError(), OverflowError("x"), MemoryError(), TemplateError("x")]
)
def test_whatever_the_processor_says_of_a_row_names_it(mixed, error, monkeypatch):
    processor = load_processor(TINY)

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(processor, "apply_chat_template", refuse)
    with pytest.raises(QuantkitError, match=r"manifest.jsonl:1: the processor refuses this row \("):
        prepare(load_conversations(mixed)[:1], processor, PrepareOptions())


@pytest.mark.parametrize("preset", [False, True])
def test_the_tokenizer_is_left_byte_for_byte_as_it_came(mixed, tmp_path, preset):
    processor = load_processor(TINY)
    if preset:
        processor.tokenizer.backend_tokenizer.enable_truncation(max_length=99)
        processor.tokenizer.backend_tokenizer.enable_padding(length=7)
    processor.save_pretrained(tmp_path / "before")
    prepare(load_conversations(mixed), processor, PrepareOptions(samples=16, downsample_mode="both"))
    processor.save_pretrained(tmp_path / "after")
    before = {file.name: file.read_bytes() for file in (tmp_path / "before").iterdir()}
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "after").iterdir()}
    assert any(name == "tokenizer.json" for name in before)


def test_conversations_are_not_changed(mixed, processor):
    conversations = load_conversations(mixed)
    before = json.dumps([c.messages for c in conversations])
    prepare(conversations, processor, PrepareOptions(samples=8))
    assert json.dumps([c.messages for c in conversations]) == before
