"""What a conversation is, whatever file it came in: hashes that tell whether two sets share items.

pictures   SHA-256 of each picture's decoded RGB pixels and size, or of a video file's bytes, first 16 hex digits
item       SHA-256 over roles, texts and pictures of the messages: of all of them in a chat of text alone, where many
           share a prompt ("Please go on."); of those before the last answer where there are pictures
answered   of a text chat that states its answers apart from its messages: the same with each of them as the last turn

White space counts as one space wherever it is, and not at all at the ends of a text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from quantkit.calibration.conversations import Conversation
from quantkit.calibration.images import Access, Decoder

DIGITS = 16


@dataclass(frozen=True)
class Identity:
    """Hashes of one conversation."""

    item: str
    pictures: tuple[str, ...]
    answered: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every hash that the conversation is known by."""
        return (self.item, *self.answered)


def identify(conversation: Conversation, decoder: Decoder | None = None) -> Identity:
    """The hashes of a conversation; decodes its pictures, or takes them from a decoder that has done so.

    Raises `QuantkitError` where one cannot be decoded.
    """
    decoder = decoder or Decoder(conversation.source)
    messages, last = conversation.messages, None
    if len(messages) > 1 and messages[-1]["role"] == "assistant":
        *messages, last = messages
    digest, pictures = hashlib.sha256(), []
    for message in messages:
        pictures += _add(digest, message, decoder)
    if conversation.modality != "text":
        return Identity(_name(digest), tuple(pictures))
    answered = []
    for text in conversation.accepted:
        whole = digest.copy()
        _add(whole, {"role": "assistant", "content": [{"type": "text", "text": text}]}, decoder)
        answered.append(_name(whole))
    if last is not None:
        _add(digest, last, decoder)
    return Identity(_name(digest), (), tuple(answered))


def _add(digest: hashlib._Hash, message: dict[str, Any], decoder: Decoder) -> list[str]:
    """Add one message to a hash; returns the hashes of its pictures."""
    pictures = []
    digest.update(f"\n{message['role']}:".encode())
    for part in message["content"]:
        if part["type"] == "text":
            digest.update(json.dumps(" ".join(part["text"].split())).encode())
            continue
        for picture in _hash_part(decoder, part):
            pictures.append(picture)
            digest.update(f"[{picture}]".encode())
    return pictures


def _name(digest: hashlib._Hash) -> str:
    return digest.hexdigest()[:DIGITS]


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


def shared(
    conversations: Iterable[Conversation], items: Iterable[str], pictures: Iterable[str], access: Access | None = None
) -> list[str]:
    """Ids of the conversations that another set holds: the same chat or prompt, or one of the same pictures.

    Raises `QuantkitError` where a picture of one cannot be decoded, or `access` does not allow it.
    """
    known, seen = set(items), set(pictures)
    found = []
    for conversation in conversations:
        identity = identify(conversation, Decoder(conversation.source, access))
        if not (known.isdisjoint(identity.names) and seen.isdisjoint(identity.pictures)):
            found.append(conversation.id)
    return found
