"""Over-long conversations: where they may be cut, and that placeholders and visual features always match."""

from pathlib import Path

import pytest
import torch
from chats import chat, image_part, picture, text_part, user, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit.calibration import PrepareOptions, load_conversations, load_processor, prepare
from quantkit.calibration.conversations import Conversation
from quantkit.calibration.cuts import Cut, longest_fit
from quantkit.errors import QuantkitError

TINY = Path(__file__).parent.parent / "quantkit" / "data" / "tiny"
DIVISOR = {"16x": 16, "4x": 4}


@pytest.fixture(scope="module")
def processor():
    return load_processor(TINY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate([(64, 64), (300, 40), (40, 300), (400, 400), (8, 8)]):
        picture(folder / f"{number}.png", number, size)
    return folder


def words(messages: list[dict]) -> Conversation:
    return Conversation("c", "text", "en", messages, None, "rows:1")


def size(cut: Cut) -> int:
    return sum(len(p.get("text", "")) for m in cut.conversation.messages for p in m["content"])


def test_the_longest_beginning_that_ends_after_an_answer() -> None:
    messages = [one for _ in range(20) for one in chat(text_part("12345"), answer="67890")]
    asked = []

    def fits(cut: Cut) -> bool:
        asked.append(cut)
        return size(cut) <= 74

    cut = longest_fit(words(messages), fits)
    assert cut is not None and len(cut.conversation.messages) == 14 and size(cut) == 70
    assert len(asked) <= 7  # of twenty possible ends


def test_no_cut_between_a_tool_call_and_its_reply() -> None:
    call = {"role": "assistant", "content": [text_part("call")], "tool_calls": [{}]}
    messages = [
        user(text_part("q")),
        call,
        {"role": "tool", "content": [text_part("reply")]},
        *chat(text_part("x" * 50)),
    ]
    ends = []
    longest_fit(words(messages), lambda cut: ends.append(len(cut.conversation.messages)) or False)
    assert 2 not in ends and set(ends) == {5}


def test_a_stated_answer_forbids_cuts() -> None:
    row = Conversation("c", "text", "en", chat(text_part("a")) * 4, "It is blue.", "rows:1")
    assert longest_fit(row, lambda cut: len(cut.conversation.messages) < 4) is None


@pytest.mark.parametrize(("text", "limit", "expected"), [
    ("one two three four", 12, "one two"),
    ("One. Two two two. Three", 20, "One. Two two two."),
    ("First part\n\nsecond part, which is long", 22, "First part"),
    ("一二三四。五六七八。九十", 9, "一二三四。"),
    ("unbroken" * 4, 10, "unbrokenun"),
])  # fmt: skip
def test_a_plain_text_is_cut_at_a_boundary(text: str, limit: int, expected: str) -> None:
    row = Conversation("c", "text", "en", [user(text_part(text))], None, "rows:1", document=True)
    cut = longest_fit(row, lambda cut: size(cut) <= limit)
    assert cut is not None and cut.conversation.messages[0]["content"][0]["text"] == expected
    assert row.messages[0]["content"][0]["text"] == text


def test_a_long_message_that_is_no_document_is_left_out() -> None:
    assert longest_fit(words(chat(text_part("x" * 100))), lambda cut: size(cut) < 50) is None


def test_clips_lose_frames_evenly(folder: Path, processor) -> None:
    frames = [str(folder / "0.png"), *[str(folder / "copy.png")] * 18, str(folder / "last.png")]
    for name in ("copy", "last"):
        picture(folder / f"{name}.png", 9, (64, 64))
    rows = [{"messages": chat({"type": "video", "video": frames}, text_part("What?"))}]
    conversations = load_conversations(write_rows(folder / "clip.jsonl", rows))
    (whole,) = prepare(conversations, processor, PrepareOptions())
    a_frame = whole.inputs["target_sizes_videos"].shape[0] // 20
    (cut,) = prepare(conversations, processor, PrepareOptions(max_tokens=whole.input_ids.shape[1] * 2 // 3))
    assert 8 <= cut.inputs["target_sizes_videos"].shape[0] // a_frame < 14
    kept = cut.messages[0]["content"][0]["video"]
    assert len(kept) == cut.inputs["target_sizes_videos"].shape[0] // a_frame
    assert (kept[0], kept[-1]) == (frames[0], frames[-1])
    assert cut.prompt_length < cut.input_ids.shape[1]


WORDS = st.sampled_from(["ab ", "图", "\n", "<image>", "<|image_pad|>", "<|im_end|>", "</think>"])
PICTURES = st.lists(st.integers(0, 4), max_size=3)


@st.composite
def conversations(draw) -> list[dict]:
    """A chat of up to four turns with pictures and clips anywhere in the user's messages, answered or not."""
    messages: list[dict] = []
    for _ in range(draw(st.integers(1, 4))):
        parts: list[dict] = [image_part(f"{number}.png") for number in draw(PICTURES)]
        if draw(st.booleans()):
            parts.append({"type": "video", "video": [f"{draw(st.integers(0, 4))}.png"] * draw(st.integers(1, 9))})
        parts.insert(draw(st.integers(0, len(parts))), text_part("".join(draw(st.lists(WORDS, max_size=6))) + "?"))
        messages += chat(*parts, answer=draw(st.sampled_from(["Yes.", "The <image> shows 红色.", "word " * 60])))
    return messages[: len(messages) - draw(st.integers(0, 1))]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(messages=conversations(), limit=st.integers(20, 700), mode=st.sampled_from(["16x", "4x"]))
def test_placeholders_always_match_visual_features(folder: Path, processor, messages, limit, mode) -> None:
    rows = load_conversations(write_rows(folder / "random.jsonl", [{"messages": messages}]))
    try:
        (sample,) = prepare(rows, processor, PrepareOptions(max_tokens=limit, downsample_mode=mode))
    except QuantkitError as error:
        if "no calibration tokens" in str(error) or "refuses this row" in str(error):
            return
        raise
    assert sample.input_ids.shape[1] <= limit
    ids = sample.input_ids[0]
    for name, token in (("target_sizes", processor.image_token_id), ("target_sizes_videos", processor.video_token_id)):
        features = int(sample.inputs[name].prod(-1).sum()) // DIVISOR[mode] if name in sample.inputs else 0
        assert int((ids == token).sum()) == features
    patches = {"pixel_values": "target_sizes", "pixel_values_videos": "target_sizes_videos"}
    for pixels, sizes in patches.items():
        if pixels in sample.inputs:
            patch = processor.image_processor.patch_size
            assert sample.inputs[pixels].shape[-1] == int(sample.inputs[sizes].prod(-1).sum()) * patch
    assert len(sample.messages) == len(messages) or sample.messages[-1]["role"] == "assistant"
    assert torch.equal(
        sample.vision_mask, torch.isin(ids, torch.tensor([processor.image_token_id, processor.video_token_id]))
    )
