"""What one conversation is, wherever it came from: a `Conversation`, its messages in one normal form.

    {"role": "user", "content": [{"type": "image", "image": REF}, {"type": "text", "text": "..."},
                                 {"type": "video", "video": [REF, ...]}, {"type": "video", "video": REF}]}

REF is a text: the absolute path of a file, a "data:...;base64,..." URI, an "http(s)://..." URL, or "skimage:NAME", a
picture of scikit-image's own package data. A video is a list of frames (with "fps", frames a second, where the row
states it) or one file. Nothing is decoded or fetched here: `rows` makes conversations, `images` decodes those used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MODALITIES = ("text", "image", "images", "video")
ROLES = ("system", "user", "assistant", "tool")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".gif")
# how an answer is judged; the rules themselves are in quantkit.verify.scoring
METRICS = ("exact", "anls", "relaxed", "choice", "yesno", "contains", "formula", "open", "iou")


@dataclass(frozen=True)
class Conversation:
    """One chat in the normal form above; `source` is "file:row" for messages about it."""

    id: str
    modality: str  # one of MODALITIES
    language: str  # "en", "zh", ...
    messages: list[dict[str, Any]]
    answer: str | None  # the expected last answer, where the row states one
    source: str
    tools: list[dict[str, Any]] | None = field(default=None)
    accepted: tuple[str, ...] = ()  # every answer that counts as right, `answer` first
    metric: str | None = None  # one of METRICS
    choices: dict[str, str] | None = None  # letter -> text, with metric "choice"
    tags: dict[str, str] = field(default_factory=dict)  # what to group scores by
    document: bool = False  # plain text without turns: one user message, which may be cut anywhere


def modality_of(messages: list[dict[str, Any]]) -> str:
    """The modality of messages in the normal form, one of `MODALITIES`: any video, several images, one image, text."""
    kinds = [part["type"] for message in messages for part in message["content"]]
    if "video" in kinds:
        return "video"
    return ("text", "image", "images")[min(kinds.count("image"), 2)]
