"""What a conversation is, whatever file it came in: hashes that tell whether two sets share items.

pictures   SHA-256 of each picture's decoded RGB pixels and size, or of a video file's bytes, first 16 hex digits
item       SHA-256 over roles, texts and pictures of the messages: of all of them in a chat of text alone, where many
           share a prompt ("Please go on."); of those before the last answer where there are pictures
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from quantkit.calibration.conversations import Conversation
from quantkit.calibration.images import Decoder

DIGITS = 16


@dataclass(frozen=True)
class Identity:
    """Hashes of one conversation."""

    item: str
    pictures: tuple[str, ...]


def identify(conversation: Conversation, decoder: Decoder | None = None) -> Identity:
    """The hashes of a conversation; decodes its pictures, or takes them from a decoder that has done so.

    Raises `QuantkitError` where one cannot be decoded.
    """
    decoder = decoder or Decoder(conversation.source)
    messages = conversation.messages
    if conversation.modality != "text" and len(messages) > 1 and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    digest, pictures = hashlib.sha256(), []
    for message in messages:
        digest.update(f"\n{message['role']}:".encode())
        for part in message["content"]:
            if part["type"] == "text":
                digest.update(json.dumps(part["text"]).encode())
                continue
            for picture in _hash_part(decoder, part):
                pictures.append(picture)
                digest.update(f"[{picture}]".encode())
    return Identity(digest.hexdigest()[:DIGITS], tuple(pictures))


def _hash_part(decoder: Decoder, part: dict[str, Any]) -> list[str]:
    """Of an image or of each listed frame the hash of its pixels; of a video file that of its bytes."""
    if part["type"] == "image":
        return [_hash_picture(decoder, part["image"])]
    if isinstance(part["video"], str):
        return [decoder.digest(part["video"], "video")[:DIGITS]]
    return [_hash_picture(decoder, frame) for frame in part["video"]]


def _hash_picture(decoder: Decoder, reference: str) -> str:
    picture = decoder.image(reference)
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()[:DIGITS]


def shared(conversations: Iterable[Conversation], items: Iterable[str], pictures: Iterable[str]) -> list[str]:
    """Ids of the conversations that another set holds: the same prompt, or one of the same pictures."""
    known, seen = set(items), set(pictures)
    found = []
    for conversation in conversations:
        identity = identify(conversation)
        if identity.item in known or seen.intersection(identity.pictures):
            found.append(conversation.id)
    return found
