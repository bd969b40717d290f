"""Conversations as servers take them."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

from quantkit.calibration import Conversation
from quantkit.calibration.images import Decoder

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def openai_messages(conversation: Conversation, answered: bool, video_processor: Any = None) -> list[dict[str, Any]]:
    """Messages of OpenAI's chat API; without `answered`, those before the last answer. Pictures are data URIs in PNG.

    A video is its frames in one `video_url`, by vLLM's convention `data:video/jpeg;base64,FRAME,FRAME`; what a frame
    is, vLLM tells by its first bytes, so PNG stays PNG. `video_processor`: the checkpoint's, by whose rule the frames
    of a video file are taken.
    """
    decoder = Decoder(conversation.source)

    def part(entry: dict[str, Any]) -> dict[str, Any]:
        if entry["type"] == "image":
            uri = f"data:image/png;base64,{_png(decoder.image(entry['image']))}"
            return {"type": "image_url", "image_url": {"url": uri}}
        if entry["type"] == "video":
            frames = ",".join(map(_png, decoder.frames(entry, video_processor)))
            return {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}}
        return dict(entry)

    messages = []
    for message in conversation.messages if answered else _prompt(conversation):
        parts = [part(entry) for entry in message["content"]]
        only_text = all(entry["type"] == "text" for entry in parts) and len(parts) <= 1
        content: Any = "".join(entry["text"] for entry in parts) if only_text else parts
        calls = {"tool_calls": [_call(call) for call in message["tool_calls"]]} if message.get("tool_calls") else {}
        messages.append({**message, "content": content, **calls})
    return messages


def ollama_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Messages of Ollama's own API, those before the last answer: a message's text, and its pictures beside it."""
    decoder = Decoder(conversation.source)
    messages = []
    for message in _prompt(conversation):
        parts = message["content"]
        images = [_png(decoder.image(part["image"])) for part in parts if part["type"] == "image"]
        entry = {**message, "content": "".join(part["text"] for part in parts if part["type"] == "text")}
        messages.append(entry | ({"images": images} if images else {}))
    return messages


def text_before_picture(messages: list[dict[str, Any]]) -> bool:
    """Whether any message has text before one of its pictures."""
    for message in messages:
        kinds = [part["type"] for part in message["content"]]
        if "text" in kinds and any(kind != "text" for kind in kinds[kinds.index("text") :]):
            return True
    return False


def longest_video(messages: list[dict[str, Any]]) -> int:
    """Frames of the longest video in messages as `openai_messages` makes them, 0 where there is none."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    return max((part["video_url"]["url"].count(",") for part in parts if part["type"] == "video_url"), default=0)


def _prompt(conversation: Conversation) -> list[dict[str, Any]]:
    messages = conversation.messages
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _png(picture: Picture) -> str:
    file = io.BytesIO()
    picture.save(file, format="PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as JSON text, as OpenAI's API wants them."""
    function = dict(call.get("function", call))
    arguments = function.get("arguments", {})
    function["arguments"] = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": str(call.get("id", "call_0")), "type": "function", "function": function}
