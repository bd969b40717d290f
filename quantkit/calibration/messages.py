"""The messages of one row in the normal form, whichever form they came in.

    OpenAI        {"role", "content": text or parts of type text, image_url, input_text, input_image, video_url},
                  `tool_calls` with their arguments as JSON text or object
    Hugging Face  parts of type image and video with `image`, `video`, `url`, `path`, `base64` or bytes; a part
                  without a source takes the next of the row's pictures
    LLaVA         {"from": "human" | "gpt", "value": "<image> What is this?"}
    pairs         [{"user": ..., "assistant": ...}, ...] (the_cauldron, FineVision)

`<image>` and `<video>` in a message's text stand for the row's pictures in LLaVA's form and wherever the row lists any;
they and the bare parts must use up exactly what the row lists. Elsewhere they are text, as in a chat about HTML.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from quantkit.calibration.conversations import ROLES
from quantkit.calibration.references import References
from quantkit.errors import QuantkitError

PLACEHOLDER = re.compile(r"<(image|video)>")
# names of other formats for ROLES
ROLE_NAMES = {
    **{role: role for role in ROLES},
    **{"human": "user", "gpt": "assistant", "model": "assistant", "developer": "system"},
    **{"observation": "tool", "function": "tool"},
}
TEXT_TYPES = ("text", "input_text", "output_text")
IMAGE_TYPES = ("image", "image_url", "input_image")
VIDEO_TYPES = ("video", "video_url", "input_video")
SOURCE_KEYS = ("image_url", "video_url", "url", "path", "base64", "bytes")


class Messages:
    """Reads the messages of one row; `pending` holds what the row lists as "image" and "video" and nothing used yet."""

    def __init__(self, where: str, references: References, pending: dict[str, list[Any]]) -> None:
        self.where = where
        self.references = references
        self.pending = pending
        self.listed = {kind: len(left) for kind, left in pending.items()}

    def fault(self, message: str) -> QuantkitError:
        return QuantkitError(f"{self.where}: {message}")

    def read(self, raw: list[Any]) -> list[dict[str, Any]]:
        """All messages; raises `QuantkitError` for an unknown role, no user's turn, pictures too many or too few."""
        pairs = [turn for turn in raw if isinstance(turn, dict) and "user" in turn and "assistant" in turn]
        messages = self.pairs(pairs) if raw and len(pairs) == len(raw) else [self.message(turn) for turn in raw]
        if not any(message["role"] == "user" for message in messages):
            raise self.fault("no message of role 'user'")
        for kind, left in self.pending.items():
            if left:
                raise self.fault(
                    f"{len(left)} of the row's {kind}s are used by no message; add a part or <{kind}> for each"
                )
        return messages

    def pairs(self, pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """[{"user", "assistant"}, ...]; without any placeholder the row's pictures come before the first question."""
        for pair in pairs:
            for role in ("user", "assistant"):
                if not isinstance(pair[role], str):
                    raise self.fault(f"the '{role}' of a turn must be text, found {type(pair[role]).__name__}")
        if any(self.placeholders(pair["user"], False) for pair in pairs):
            first: list[dict[str, Any]] = []
        else:
            first = list(self.rest())
        messages = []
        for number, pair in enumerate(pairs):
            question = (first if number == 0 else []) + self.text(pair["user"], False)
            messages += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": [self.text_part(pair["assistant"])]},
            ]
        return messages

    def rest(self) -> Iterator[dict[str, Any]]:
        """Parts for all that the row lists and no message has used."""
        for kind in ("video", "image"):
            while self.pending[kind]:
                yield self.media(kind, self.pending[kind].pop(0))

    def message(self, message: Any) -> dict[str, Any]:
        if not isinstance(message, dict):
            raise self.fault(f"a message must be an object with 'role' and 'content', found {type(message).__name__}")
        llava = "role" not in message and "from" in message
        name = message.get("from" if llava else "role")
        role = ROLE_NAMES.get(name) if isinstance(name, str) else None
        if role is None:
            raise self.fault(f"unknown role {shown(name)}; known: {', '.join(ROLES)}")
        extras = self.extras(message)
        content = message.get("value" if llava else "content")
        if content is None and extras.get("tool_calls"):
            content = ""
        if isinstance(content, str):
            parts = self.text(content, llava) if role == "user" else [self.text_part(content)]
        elif isinstance(content, list):
            parts = [self.part(part) for part in content]
        else:
            raise self.fault(f"the content of a '{role}' message must be text or a list of parts")
        return {"role": role, "content": parts, **extras}

    def extras(self, message: dict[str, Any]) -> dict[str, Any]:
        """Tool calls, and the texts that a message may carry beside its content."""
        found: dict[str, Any] = {}
        for key in ("tool_call_id", "name", "reasoning_content"):
            value = message.get(key)
            if value is None:
                continue
            if not isinstance(value, str):
                raise self.fault(f"'{key}' of a message must be text, found {type(value).__name__}")
            found[key] = self.unicode(value)
        calls = message.get("tool_calls")
        if calls is not None:
            if not isinstance(calls, list):
                raise self.fault(f"'tool_calls' must be a list, found {type(calls).__name__}")
            if calls:
                found["tool_calls"] = [self.tool_call(call) for call in calls]
        return found

    def tool_call(self, call: Any) -> dict[str, Any]:
        """One call, its arguments an object: chat templates take no JSON text for it."""
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise self.fault("a tool call must be an object with a function's 'name' and 'arguments'")
        name, arguments = function["name"], function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments) if arguments.strip() else {}
            except (ValueError, RecursionError) as error:
                raise self.fault(f"the arguments of the call of {shown(name)} are not valid JSON ({error})") from error
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            raise self.fault(
                f"the arguments of the call of {shown(name)} must be an object, found {type(arguments).__name__}"
            )
        self.unicode(json_text([name, arguments], self.where))
        stated = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        return {**stated, "type": "function", "function": {"name": name, "arguments": arguments}}

    def part(self, part: Any) -> dict[str, Any]:
        if isinstance(part, str):
            return self.text_part(part)
        if not isinstance(part, dict):
            raise self.fault(f"unknown content part {shown(part)}; known types: text, image, image_url, video")
        kind = part.get("type") or _kind_by_key(part)
        if kind in TEXT_TYPES:
            if not isinstance(part.get("text"), str):
                raise self.fault("a text part has no 'text'")
            return self.text_part(part["text"])
        if kind in IMAGE_TYPES:
            return self.media("image", self.reference(part, "image"))
        if kind in VIDEO_TYPES:
            return self.media("video", self.reference(part, "video"), part.get("fps"))
        raise self.fault(f"unknown content part {shown(part)}; known types: text, image, image_url, video")

    def media(self, kind: str, value: Any, fps: Any = None) -> dict[str, Any]:
        if kind == "image":
            return {"type": "image", "image": self.references.image(value)}
        video = self.references.video(value)
        if fps is None or isinstance(video, str):  # of a file, the processor chooses the frames
            return {"type": "video", "video": video}
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < math.inf:
            raise self.fault(f"'fps' of a video must be a number above 0, not {shown(fps)}")
        return {"type": "video", "video": video, "fps": float(fps)}

    def reference(self, part: dict[str, Any], kind: str) -> Any:
        """What the part points to: its own field, or the next unused entry of the row's pictures."""
        for key in (kind, *SOURCE_KEYS):
            if part.get(key) is not None:
                return part[key]
        return self.next(kind)

    def next(self, kind: str) -> Any:
        if not self.pending[kind]:
            raise self.fault(
                f"more {kind} parts than {kind}s: the row lists {self.listed[kind]}, one for each is needed"
            )
        return self.pending[kind].pop(0)

    def placeholders(self, text: str, llava: bool) -> list[str]:
        """The kinds that placeholders in this text stand for, in order."""
        return [kind for kind in PLACEHOLDER.findall(text) if llava or self.listed[kind]]

    def text(self, text: str, llava: bool) -> list[dict[str, Any]]:
        """The parts of a text with placeholders; a line break between a placeholder and the text goes with it."""
        if not self.placeholders(text, llava):
            return [self.text_part(text)]
        parts: list[dict[str, Any]] = []
        pieces = PLACEHOLDER.split(text)  # text, kind, text, kind, ..., text
        written = pieces[0]
        for kind, after in zip(pieces[1::2], pieces[2::2], strict=True):
            if not (llava or self.listed[kind]):
                written += f"<{kind}>{after}"
                continue
            written = written.removesuffix("\n")
            parts += [self.text_part(written)] if written else []
            parts.append(self.media(kind, self.next(kind)))
            written = after.removeprefix("\n")
        return parts + ([self.text_part(written)] if written else [])

    def text_part(self, text: str) -> dict[str, Any]:
        return {"type": "text", "text": self.unicode(text)}

    def unicode(self, text: str) -> str:
        """The text, if it can be written as UTF-8: JSON can spell half a surrogate pair, which no tokenizer takes."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self.fault(
                f"a text holds half a surrogate pair (character {error.start}); mend the escape"
            ) from error
        return text


def _kind_by_key(part: dict[str, Any]) -> Any:
    """The type of a part that states none: the one of text, image, video that it has."""
    found = [key for key in ("text", "image", "image_url", "video", "video_url") if part.get(key) is not None]
    return found[0] if len(found) == 1 else None


def shown(value: Any) -> str:
    """A value, shortened, as it may stand in a one-line message."""
    if isinstance(value, str):
        return f"'{value[:40]}'" if value.isprintable() else ascii(value[:40])
    return ascii(value)[:60]


def json_text(value: Any, where: str) -> str:
    """The value as JSON; raises `QuantkitError` for one that is none (bytes of a table, nested beyond reason)."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise QuantkitError(f"{where}: tools and their calls must be plain JSON ({error})") from error
