"""Over-long conversations made shorter, at boundaries that leave every picture whole.

In this order: the longest beginning that ends after an answer; of its first turn, clips with fewer frames (spread
evenly, as the processor itself thins long videos); of a plain text, its beginning up to a paragraph, sentence or word.
A conversation whose row states the expected answer is never cut: the question would no longer fit the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from quantkit.calibration.conversations import Conversation, modality_of

MOST_FRAMES = 1024  # where to begin halving the frames of a clip


@dataclass(frozen=True)
class Cut:
    """A conversation, shortened or not, and the most frames of each of its clips (None: as the options say)."""

    conversation: Conversation
    frames: int | None = None


def longest_fit(whole: Conversation, fits: Callable[[Cut], bool], max_frames: int | None = None) -> Cut | None:
    """The longest cut of `whole` for which `fits` is true, or None; asks for about log2 of the possible cuts.

    `fits` is asked for the whole first. It must be monotone: what is shorter fits where the longer does.
    `max_frames`: the most frames that a clip has before any cut, where that is known.
    """
    if fits(Cut(whole)):
        return Cut(whole)
    if whole.answer is not None:
        return None
    ends = _ends(whole.messages)
    found = _largest(len(ends), lambda count: fits(Cut(_until(whole, ends[count - 1]))))
    if found:
        return Cut(_until(whole, ends[found - 1]))
    first = _until(whole, ends[0]) if ends else whole
    if first.modality == "video":
        most = min(max_frames or MOST_FRAMES, _frames(first) or MOST_FRAMES)
        found = _largest(most - 1, lambda count: fits(Cut(_thinned(first, count), count)))
        return Cut(_thinned(first, found), found) if found else None
    if first.document:
        text = first.messages[0]["content"][0]["text"]
        found = _largest(len(text) - 1, lambda count: fits(Cut(_with_text(first, text[:count]))))
        shorter = text[: _boundary(text, found)].rstrip() if found else ""
        return Cut(_with_text(first, shorter)) if shorter else None
    return None


def _ends(messages: list[dict[str, Any]]) -> list[int]:
    """Where a conversation may end early: after each answer that is not the last message."""
    return [
        end for end in range(2, len(messages)) if messages[end - 1]["role"] == "assistant" and _closed(messages, end)
    ]


def _closed(messages: list[dict[str, Any]], end: int) -> bool:
    """Whether no tool's reply to the message before `end` is still to come."""
    return messages[end]["role"] != "tool"


def _until(conversation: Conversation, end: int) -> Conversation:
    messages = conversation.messages[:end]
    return replace(conversation, messages=messages, modality=modality_of(messages))


def _frames(conversation: Conversation) -> int | None:
    """The frames of the longest clip, None where the processor's rule decides on those of one."""
    counts = []
    for message in conversation.messages:
        for part in message["content"]:
            if part["type"] == "video":
                if isinstance(part["video"], str) or part.get("fps"):
                    return None
                counts.append(len(part["video"]))
    return max(counts)


def _thinned(conversation: Conversation, count: int) -> Conversation:
    """With at most so many frames of each clip that is a plain list; of files the processor's rule takes fewer."""

    def thin(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] != "video" or isinstance(part["video"], str) or part.get("fps") or len(part["video"]) <= count:
            return part
        last = len(part["video"]) - 1
        places = [round(place * last / max(count - 1, 1)) for place in range(count)]
        return {**part, "video": [part["video"][place] for place in places]}

    messages = [{**one, "content": [thin(part) for part in one["content"]]} for one in conversation.messages]
    return replace(conversation, messages=messages)


def _with_text(conversation: Conversation, text: str) -> Conversation:
    message = conversation.messages[0]
    return replace(conversation, messages=[{**message, "content": [{"type": "text", "text": text}]}])


def _boundary(text: str, end: int) -> int:
    """The last paragraph, sentence or word boundary before `end`, if one lies in its last half; else `end`."""
    for mark in ("\n\n", "\n", ". ", "。", " "):
        place = text.rfind(mark, end // 2, end)
        if place > 0:
            return place + len(mark.rstrip())
    return end


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest count from 1 to `most` that fits, 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
