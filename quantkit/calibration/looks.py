"""Conversations of a mix as somebody would look at them: small pictures, the first question, the answer, figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantkit.calibration.conversations import Conversation
from quantkit.calibration.images import Access, Decoder
from quantkit.calibration.mix import Mix, Progress
from quantkit.calibration.originals import Original, originals
from quantkit.calibration.sources import Source

if TYPE_CHECKING:
    from PIL.Image import Image

MOST = 240  # conversations
THUMBNAILS = 4  # pictures of a conversation, frames included
SIDE = 144  # pixels of the longer side of a thumbnail
QUALITY = 70  # of JPEG
TEXT = 600  # characters of a question or an answer


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG as a data URI, and the size of what it shows."""

    uri: str
    width: int
    height: int
    frame: bool  # of a clip


@dataclass(frozen=True)
class Look:
    """One conversation; texts are cut to `TEXT` characters and end in an ellipsis then."""

    id: str
    source: str
    modality: str
    mode: str
    language: str
    tokens: int
    vision_tokens: int
    question: str  # the first text of the user
    answer: str  # the first that the assistant gave
    thumbnails: list[Thumbnail]
    more: int  # pictures and frames that have no thumbnail
    turns: int  # messages of the user
    tools: int
    shortened: bool


def looks(
    mix: Mix,
    sources: Sequence[Source],
    access: Access | None = None,
    most: int = MOST,
    progress: Progress | None = None,
) -> Iterator[Look]:
    """Up to `most` conversations, evenly taken over the mix, in its order; one is decoded at a time."""
    count = len(mix.samples)
    wanted = {place * count // most for place in range(most)} if count > most else None
    total = min(count, most)
    for number, original in enumerate(originals(mix, sources, wanted), start=1):
        yield look(original, access)
        if progress is not None:
            progress("thumbnails", number, total)


def look(original: Original, access: Access | None = None) -> Look:
    """One conversation; raises `QuantkitError` where a picture of it cannot be decoded."""
    sample, conversation = original.sample, original.conversation
    thumbnails, more = _thumbnails(conversation, access)
    messages = conversation.messages
    return Look(
        id=conversation.id,
        source=original.source,
        modality=sample.modality,
        mode=sample.downsample_mode,
        language=sample.language,
        tokens=sample.input_ids.numel(),
        vision_tokens=int(sample.vision_mask.sum()),
        question=_shortened(next((text for text in map(_said, messages) if text), "")),
        answer=_shortened(next((text for text in map(_answer, messages) if text), "")),
        thumbnails=thumbnails,
        more=more,
        turns=sum(message["role"] == "user" for message in messages),
        tools=len(conversation.tools or []),
        shortened=sample.shortened,
    )


def _thumbnails(conversation: Conversation, access: Access | None) -> tuple[list[Thumbnail], int]:
    decoder = Decoder(conversation.source, access)
    parts = [part for one in conversation.messages for part in one["content"] if part["type"] != "text"]
    shown: list[tuple[Image, bool]] = []
    more = 0
    for number, part in enumerate(parts):
        room = max(THUMBNAILS - len(shown) - (len(parts) - number - 1), 1)  # one at least for each that follows
        if len(shown) == THUMBNAILS:
            more += 1
        elif part["type"] == "image":
            shown.append((decoder.image(part["image"]), False))
        else:
            frames = decoder.frames(_thinned(part, room), None, room)[:room]
            shown += [(frame, True) for frame in frames]
            more += 0 if isinstance(part["video"], str) else len(part["video"]) - len(frames)
    return [_thumbnail(picture, frame) for picture, frame in shown], more


def _thinned(part: dict[str, Any], count: int) -> dict[str, Any]:
    """A list of frames with `count` of them, evenly taken; a file as it is."""
    frames = part["video"]
    if isinstance(frames, str) or len(frames) <= count:
        return part
    return {"type": "video", "video": [frames[place * len(frames) // count] for place in range(count)]}


def _thumbnail(picture: Image, frame: bool) -> Thumbnail:
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Thumbnail(uri, picture.width, picture.height, frame)


def _said(message: dict[str, Any]) -> str:
    return _texts(message) if message["role"] == "user" else ""


def _answer(message: dict[str, Any]) -> str:
    """The text of an answer; where it only calls tools, the names of these."""
    if message["role"] != "assistant":
        return ""
    calls = ", ".join(call["function"]["name"] for call in message.get("tool_calls", ()))
    return _texts(message) or (f"calls {calls}" if calls else "")


def _texts(message: dict[str, Any]) -> str:
    return "\n".join(part["text"] for part in message["content"] if part["type"] == "text").strip()


def _shortened(text: str) -> str:
    return text if len(text) <= TEXT else text[: TEXT - 1].rstrip() + "…"
