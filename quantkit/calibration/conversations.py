"""Reading conversations: the bundled sets, a folder with a manifest, a folder of images, a JSON or JSONL file of chats.

Every source becomes a list of `Conversation`, its messages in one normal form:

    {"role": "user", "content": [{"type": "image", "image": "/abs/x.png"}, {"type": "text", "text": "..."},
                                 {"type": "video", "video": ["/abs/f0.png", ...]}]}

Understood per row: `messages` (or `conversations`, or the bare list), content as a string or as parts, Hugging Face
parts (`image` / `url` / `path`), OpenAI parts (`image_url`), a part without a source that takes the next of the row's
`images` or `videos`. An image is a path relative to the file's folder (never outside it) or a base64 data URI. Pictures
are decoded later, by `prepare`, and only those that are used. Each fault is one `QuantkitError` naming file and row.

A row may say how its answer is judged: `answer` (one text, or a list of all that count as right), `metric` (one of
`METRICS`), `choices` (letter -> text, or a list, lettered A, B, ...) and `tags` (texts to group its score by).
"""

from __future__ import annotations

import json
import logging
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError

log = logging.getLogger(__name__)

MODALITIES = ("text", "image", "images", "video")
ROLES = ("system", "user", "assistant", "tool")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# how an answer is judged; the rules themselves are in quantkit.verify.scoring
METRICS = ("exact", "anls", "relaxed", "choice", "yesno", "contains", "formula", "open", "iou")
MANIFEST = "manifest.jsonl"
DESCRIBE = "Describe the image."
_PACKAGE = Path(__file__).resolve().parent.parent
_MESSAGE_EXTRAS = ("tool_calls", "tool_call_id", "name", "reasoning_content")


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


def load_conversations(source: str | Path) -> list[Conversation]:
    """Read every conversation of a source, in its order.

    `source`: "bundled" (the calibration set), "heldout" (the test set, disjoint from it), a folder with
    `manifest.jsonl`, a folder of images (each gets the prompt "Describe the image."), or a `.json` / `.jsonl` file.
    Raises `QuantkitError`.
    """
    path = _locate(source)
    if path.is_dir():
        manifest = path / MANIFEST
        conversations = _read_file(manifest) if manifest.is_file() else _read_image_folder(path)
    else:
        conversations = _read_file(path)
    _check_unique(conversations)
    log.info("%s: %d conversations", source, len(conversations))
    return conversations


def modality_of(messages: list[dict[str, Any]]) -> str:
    """The modality of messages in the normal form, one of `MODALITIES`: any video, several images, one image, text."""
    kinds = [part["type"] for message in messages for part in message["content"]]
    if "video" in kinds:
        return "video"
    return ("text", "image", "images")[min(kinds.count("image"), 2)]


def _locate(source: str | Path) -> Path:
    if str(source) == "bundled":
        candidates = [_PACKAGE / "_calibration", _PACKAGE.parent / "calibration"]  # installed wheel, then repository
    elif str(source) == "heldout":
        candidates = [_PACKAGE / "data" / "heldout"]
    else:
        path = Path(source).expanduser()
        if not path.exists():
            raise QuantkitError(f"data '{source}' does not exist: give 'bundled', a folder or a .json/.jsonl file")
        return path
    for candidate in candidates:
        if (candidate / MANIFEST).is_file():
            return candidate
    raise QuantkitError(f"the data set '{source}' is missing from this installation of quantkit: install it again")


def _read_image_folder(folder: Path) -> list[Conversation]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    if not files:
        raise QuantkitError(f"{folder}: holds neither {MANIFEST} nor any image ({', '.join(IMAGE_SUFFIXES)})")
    return [
        Conversation(
            id=file.name,
            modality="image",
            language="en",
            messages=[
                {
                    "role": "user",
                    "content": [{"type": "image", "image": str(file.resolve())}, {"type": "text", "text": DESCRIBE}],
                }
            ],
            answer=None,
            source=str(file),
        )
        for file in files
    ]


def _read_file(path: Path) -> list[Conversation]:
    if path.suffix.lower() not in (".json", ".jsonl"):
        raise QuantkitError(f"{path}: cannot read this kind of file; calibration data is .jsonl, .json or a folder")
    rows = _json_rows(path) if path.suffix.lower() == ".json" else _jsonl_rows(path)
    conversations = [_Row(row, f"{path}:{number}", path.parent.resolve()).conversation() for number, row in rows]
    if not conversations:
        raise QuantkitError(f"{path}: no conversation in this file")
    return conversations


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if line.strip():
            yield number, _parse_json(line, f"{path}:{number}")


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    document = _parse_json(_read_text(path), str(path))
    if isinstance(document, dict):
        document = document.get("data", [document])
    if not isinstance(document, list):
        raise QuantkitError(f"{path}: expected a list of conversations, found {type(document).__name__}")
    yield from enumerate(document, start=1)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise QuantkitError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except OSError as error:
        raise QuantkitError(f"{path}: cannot be read ({error.strerror})") from error


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise QuantkitError(f"{where}: not valid JSON ({error})") from error


def _check_unique(conversations: list[Conversation]) -> None:
    seen: dict[str, str] = {}
    for conversation in conversations:
        first = seen.setdefault(conversation.id, conversation.source)
        if first != conversation.source:
            raise QuantkitError(f"{conversation.source}: id '{conversation.id}' is already used at {first}")


class _Row:
    """One row on its way to a `Conversation`; holds what its error messages and its image look-ups need."""

    def __init__(self, row: Any, where: str, folder: Path) -> None:
        self.row = {"messages": row} if isinstance(row, list) else row
        self.where = where
        self.folder = folder
        if not isinstance(self.row, dict):
            raise self.fault(f"expected an object with 'messages', found {type(row).__name__}")
        self.pending = {kind: list(self.row.get(f"{kind}s") or []) for kind in ("image", "video")}

    def fault(self, message: str) -> QuantkitError:
        return QuantkitError(f"{self.where}: {message}")

    def conversation(self) -> Conversation:
        raw = self.row.get("messages", self.row.get("conversations"))
        if not isinstance(raw, list) or not raw:
            raise self.fault("'messages' is missing or empty")
        messages = [self.message(message) for message in raw]
        if not any(message["role"] == "user" for message in messages):
            raise self.fault("no message of role 'user'")
        for kind, left in self.pending.items():
            if left:
                raise self.fault(f"{len(left)} of the row's {kind}s are used by no message; add a part for each")
        accepted, choices = self.accepted(), self.choices()
        return Conversation(
            id=str(self.row.get("id", Path(self.where).name)),
            modality=self.modality(messages),
            language=str(self.row.get("language", "en")),
            messages=messages,
            answer=accepted[0] if accepted else None,
            source=self.where,
            tools=self.row.get("tools"),
            accepted=accepted,
            metric=self.metric(accepted, choices),
            choices=choices,
            tags=self.tags(),
        )

    def accepted(self) -> tuple[str, ...]:
        answer = self.row.get("answer")
        answers = answer if isinstance(answer, list) else [] if answer is None else [answer]
        if answer == []:
            raise self.fault("'answer' is an empty list; give at least one answer, or leave the key out")
        for one in answers:
            if not isinstance(one, str):
                raise self.fault(f"'answer' must be text or a list of texts, found {type(one).__name__}")
        return tuple(answers)

    def choices(self) -> dict[str, str] | None:
        """The row's options by letter, as they are written there."""
        choices = self.row.get("choices")
        if choices is None:
            return None
        if isinstance(choices, list):
            if len(choices) > len(string.ascii_uppercase):
                raise self.fault(f"'choices' lists {len(choices)} options; there are letters for 26")
            choices = dict(zip(string.ascii_uppercase, choices, strict=False))
        if not isinstance(choices, dict) or len(choices) < 2:
            raise self.fault("'choices' must be a list or an object (letter -> text) of at least two options")
        for letter, text in choices.items():
            if len(letter) != 1 or letter not in string.ascii_uppercase:
                raise self.fault(f"'choices': an option is named by a letter from A to Z, not '{letter}'")
            if not isinstance(text, str):
                raise self.fault(f"'choices': option {letter} must be text, found {type(text).__name__}")
        return dict(choices)

    def metric(self, accepted: tuple[str, ...], choices: dict[str, str] | None) -> str | None:
        metric = self.row.get("metric")
        if metric is None:
            return None
        if metric not in METRICS:
            raise self.fault(f"unknown metric '{metric}'; known: {', '.join(METRICS)}")
        if not accepted:
            raise self.fault(f"metric '{metric}' needs an 'answer' to judge by")
        if metric == "choice":
            if choices is None:
                raise self.fault("metric 'choice' needs 'choices', the options that the letters stand for")
            for answer in accepted:
                if answer not in choices and answer not in choices.values():
                    raise self.fault(f"'answer' '{answer[:40]}' is neither a letter nor a text of 'choices'")
        return str(metric)

    def tags(self) -> dict[str, str]:
        tags = self.row.get("tags", {})
        if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
            raise self.fault("'tags' must be an object of texts")
        return dict(tags)

    def modality(self, messages: list[dict[str, Any]]) -> str:
        found = modality_of(messages)
        stated = self.row.get("modality", found)
        if stated != found:
            raise self.fault(f"'modality' says '{stated}', but the pictures in the messages make it '{found}'")
        return found

    def message(self, message: Any) -> dict[str, Any]:
        if not isinstance(message, dict):
            raise self.fault(f"a message must be an object with 'role' and 'content', found {type(message).__name__}")
        role = message.get("role")
        if role not in ROLES:
            raise self.fault(f"unknown role '{role}'; known: {', '.join(ROLES)}")
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            content = ""
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise self.fault(f"the content of a '{role}' message must be text or a list of parts")
        extras = {key: message[key] for key in _MESSAGE_EXTRAS if key in message}
        return {"role": role, "content": [self.part(part) for part in content], **extras}

    def part(self, part: Any) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise self.fault("a text part has no 'text'")
            return {"type": "text", "text": part["text"]}
        if kind in ("image", "image_url"):
            return {"type": "image", "image": self.image(self.reference(part, "image"))}
        if kind == "video":
            return {"type": "video", "video": self.frames(self.reference(part, "video"))}
        raise self.fault(f"unknown content part {str(part)[:60]!r}; known types: text, image, image_url, video")

    def reference(self, part: dict[str, Any], kind: str) -> Any:
        """What the part points to: its own field, or the next unused entry of the row's `images` / `videos`."""
        for key in (kind, "image_url", "url", "path"):
            value = part.get(key)
            if value is not None:
                return value.get("url") if isinstance(value, dict) else value
        if not self.pending[kind]:
            raise self.fault(f"more {kind} parts than {kind}s: the row's '{kind}s' has no entry left for this one")
        return self.pending[kind].pop(0)

    def image(self, value: Any) -> str:
        """An absolute path inside the data folder, or the data URI itself."""
        if not isinstance(value, str) or not value:
            raise self.fault(f"an image must be a path or a data URI, found {type(value).__name__}")
        if value.startswith("data:"):
            return value
        if "://" in value:
            raise self.fault(f"image '{value[:80]}' is a URL; download it beside the file and give its path")
        path = (self.folder / value).resolve()
        if not path.is_relative_to(self.folder):
            raise self.fault(f"image '{value}' lies outside the data folder {self.folder}")
        if not path.is_file():
            raise self.fault(f"image '{value}' does not exist")
        return str(path)

    def frames(self, value: Any) -> list[str]:
        if not isinstance(value, list):
            raise self.fault("a video must be a list of frame images; extract the frames of a video file first")
        if not value:
            raise self.fault("a video has no frames")
        return [self.image(frame) for frame in value]
