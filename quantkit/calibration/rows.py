"""One raw row of any table, made into a `Conversation`.

A row is one of these, in this order of precedence (a column that the mapping names comes first):

    messages   `messages` or `conversations` (a list, or JSON text), or `texts` ([{"user", "assistant"}])
    question   `question` or `prompt`, and `answer`; with pictures alone the question is "Describe the image."
    text       a document without turns; beside pictures it is their caption

Pictures are listed in `image` / `images`, `video` / `videos` and `frames` (the frames of one video); what no message
mentions is a fault in the first form, and comes before the question in the second.

A row may say how its answer is judged: `answer` (one text, or a list of all that count as right), `metric` (one of
`METRICS`), `choices` (letter -> text, or a list, lettered A, B, ...) and `tags` (texts to group its score by). A column
of answers without a metric, as data sets for training have them, is what the assistant says and nothing more.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.calibration.conversations import METRICS, Conversation, modality_of
from quantkit.calibration.messages import Messages, json_text, shown
from quantkit.calibration.references import References
from quantkit.errors import QuantkitError

DESCRIBE = "Describe the image."
DESCRIBE_VIDEO = "Describe the video."
# what a mapping may name a column for
FIELDS = (
    *("messages", "image", "images", "video", "videos", "frames"),
    *("question", "answer", "text", "tools", "id", "language"),
)
# columns that are read as they are called, beside FIELDS; the others of a table are left alone
COLUMNS = (*FIELDS, "conversations", "texts", "prompt", "file_name", "modality", "metric", "choices", "tags")
_FORMS = {"messages": ("messages", "conversations", "texts"), "question": ("question", "prompt"), "text": ("text",)}


@dataclass(frozen=True)
class RawRow:
    """One row as its file has it, not yet understood; or the fault that kept it from being read."""

    where: str  # "file:row", for messages
    id: str  # its id, where it states none
    value: Any
    folder: Path | None = None  # its paths lead from here and must stay inside; None: no paths
    fault: QuantkitError | None = None


def read_row(raw: RawRow, columns: Mapping[str, str] | None = None) -> Conversation:
    """The conversation that a row holds; `columns` maps fields to the names they have in it, "" to none.

    Raises `QuantkitError` naming file and row, whatever the row is.
    """
    if raw.fault is not None:
        raise raw.fault
    try:
        return _Row(raw, columns or {}).conversation()
    except RecursionError as error:
        raise QuantkitError(f"{raw.where}: nested too deeply to be a conversation") from error


class _Row:
    """One row on its way to a `Conversation`."""

    def __init__(self, raw: RawRow, columns: Mapping[str, str]) -> None:
        self.where, self.raw = raw.where, raw
        row = {"messages": raw.value} if isinstance(raw.value, list) else raw.value
        if not isinstance(row, dict):
            raise self.fault(f"expected an object with 'messages', found {type(raw.value).__name__}")
        self.row = self.mapped(row, columns)
        self.reader = Messages(raw.where, References(raw.where, raw.folder), self.pending())
        # ours to judge: a foreign table's `tags` or `choices` mean something else
        self.judged = self.row.get("metric") is not None or (self.has("messages") and not columns)

    def fault(self, message: str) -> QuantkitError:
        return QuantkitError(f"{self.where}: {message}")

    def mapped(self, row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
        """The row's own columns with the mapped ones in place; a mapped form keeps the others out."""
        taken = {name: column for name, column in columns.items() if column}
        for name, column in taken.items():
            if column not in row:
                has = ", ".join(map(shown, list(row)[:12]))
                raise self.fault(f"column '{column}', to be read as '{name}', is missing; the row has {has}")
        hidden = {key for name in columns for key in _FORMS.get(name, (name,))}
        if any(form in taken for form in _FORMS):
            hidden.update(key for keys in _FORMS.values() for key in keys)
        return {
            **{key: value for key, value in row.items() if key not in hidden},
            **{name: row[column] for name, column in taken.items()},
        }

    def conversation(self) -> Conversation:
        answered = self.accepted()
        messages, document = self.messages(answered)
        judged = answered if self.judged else ()
        choices = self.choices() if self.judged else None
        return Conversation(
            id=self.id(),
            modality=self.modality(messages) if self.judged else modality_of(messages),
            language=self.language(),
            messages=messages,
            answer=judged[0] if judged else None,
            source=self.where,
            tools=self.tools(),
            accepted=judged,
            metric=self.metric(judged, choices),
            choices=choices,
            tags=self.tags() if self.judged else {},
            document=document,
        )

    # ---- messages ----

    def has(self, form: str) -> bool:
        return any(self.row.get(key) is not None for key in _FORMS[form])

    def form(self, form: str) -> tuple[str, Any]:
        """The column that gives this form, and what it holds."""
        return next((key, self.row[key]) for key in _FORMS[form] if self.row.get(key) is not None)

    def messages(self, answered: tuple[str, ...]) -> tuple[list[dict[str, Any]], bool]:
        """The row's messages in the normal form, and whether they are a document."""
        reader = self.reader
        pictures = any(reader.pending.values())
        if self.has("messages"):
            key, turns = self.form("messages")
            turns = self.parsed(key, turns)
            if isinstance(turns, (str, dict)) and turns:
                raise self.fault(f"'{key}' must be a list of messages, found {shown(turns)}")
            if not isinstance(turns, list) or not turns:
                raise self.fault(f"'{key}' is missing or empty")
            return reader.read(turns), False
        if self.has("question") or (pictures and (answered or not self.has("text"))):
            return self.asked(answered), False
        if self.has("text"):
            text = self.row["text"]
            if not isinstance(text, str) or not text.strip():
                raise self.fault(f"'text' must be text that is not empty, found {shown(text)}")
            if pictures:
                return self.asked((text,)), False
            return [{"role": "user", "content": [reader.text_part(text)]}], True
        names = ", ".join(map(shown, list(self.row)[:12]))
        hint = f"; the row has {names}: name the columns to read, as question=COLUMN,answer=COLUMN" if names else ""
        raise self.fault(f"'messages' is missing or empty{hint}")

    def asked(self, answered: tuple[str, ...]) -> list[dict[str, Any]]:
        """A question about the row's pictures, and the first answer to it."""
        reader = self.reader
        question = self.form("question")[1] if self.has("question") else None
        if question is not None and (not isinstance(question, str) or not question.strip()):
            raise self.fault(f"the question must be text that is not empty, found {shown(question)}")
        if question is None:
            question = DESCRIBE_VIDEO if reader.pending["video"] else DESCRIBE
        placed = reader.placeholders(question, False)
        first: list[dict[str, Any]] = (
            [] if placed else [{"type": kind} for kind in reader.pending for _ in reader.pending[kind]]
        )
        content = question if placed else first + [{"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        if answered:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answered[0]}]})
        return reader.read(messages)

    def pending(self) -> dict[str, list[Any]]:
        """What the row lists beside its messages: {"video": [...], "image": [...]}."""
        row = self.row
        image = row.get("image") if row.get("image") is not None else row.get("file_name")
        images = image if isinstance(image, list) else [] if image is None else [image]
        videos = [] if row.get("video") is None else [self.clip(row["video"])]
        if row.get("frames") is not None:
            videos.append(self.list_of("frames"))
        return {"video": videos + self.list_of("videos"), "image": images + self.list_of("images")}

    def clip(self, value: Any) -> Any:
        """What the column `video` holds: a list of frames that is kept as JSON text, or else as it is, as a path may
        begin with a bracket too."""
        try:
            return self.parsed("video", value)
        except QuantkitError:
            return value

    def list_of(self, key: str) -> list[Any]:
        value = self.parsed(key, self.row.get(key))
        if value is None:
            return []
        if not isinstance(value, (list, tuple)):
            raise self.fault(f"'{key}' must be a list, found {type(value).__name__}")
        return list(value)

    def parsed(self, key: str, value: Any) -> Any:
        """A list or object that a table keeps as JSON text; other texts as they are."""
        if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise self.fault(f"'{key}' is not valid JSON ({error})") from error

    # ---- the rest ----

    def id(self) -> str:
        stated = self.row.get("id")
        if stated is None or stated == "":
            return self.reader.unicode(self.raw.id)
        if isinstance(stated, bool) or not isinstance(stated, (str, int)):
            raise self.fault(f"'id' must be text or a number, found {type(stated).__name__}")
        return self.reader.unicode(str(stated))

    def language(self) -> str:
        stated = self.row.get("language")
        if stated is None or stated == "":
            return "en"
        if not isinstance(stated, str):
            raise self.fault(f"'language' must be text, found {type(stated).__name__}")
        return self.reader.unicode(stated)

    def tools(self) -> list[dict[str, Any]] | None:
        tools = self.parsed("tools", self.row.get("tools"))
        if tools is None or tools == [] or tools == "":
            return None
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise self.fault("'tools' must be a list of objects")
        self.reader.unicode(json_text(tools, self.where))
        return tools

    def accepted(self) -> tuple[str, ...]:
        answer = self.row.get("answer")
        answers = answer if isinstance(answer, list) else [] if answer is None else [answer]
        if answer == []:
            raise self.fault("'answer' is an empty list; give at least one answer, or leave the key out")
        for one in answers:
            if not isinstance(one, str):
                raise self.fault(f"'answer' must be text or a list of texts, found {type(one).__name__}")
        return tuple(map(self.reader.unicode, answers))

    def choices(self) -> dict[str, str] | None:
        """The row's options by letter, as they are written there."""
        choices = self.parsed("choices", self.row.get("choices"))
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
                raise self.fault(f"'choices': an option is named by a letter from A to Z, not {shown(letter)}")
            if not isinstance(text, str):
                raise self.fault(f"'choices': option {letter} must be text, found {type(text).__name__}")
            self.reader.unicode(text)
        return dict(choices)

    def metric(self, accepted: tuple[str, ...], choices: dict[str, str] | None) -> str | None:
        metric = self.row.get("metric")
        if metric is None:
            return None
        if metric not in METRICS:
            raise self.fault(f"unknown metric {shown(metric)}; known: {', '.join(METRICS)}")
        if not accepted:
            raise self.fault(f"metric '{metric}' needs an 'answer' to judge by")
        if metric == "choice":
            if choices is None:
                raise self.fault("metric 'choice' needs 'choices', the options that the letters stand for")
            for answer in accepted:
                if answer not in choices and answer not in choices.values():
                    raise self.fault(f"'answer' {shown(answer)} is neither a letter nor a text of 'choices'")
        return str(metric)

    def tags(self) -> dict[str, str]:
        tags = self.parsed("tags", self.row.get("tags"))
        if tags is None:
            return {}
        if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
            raise self.fault("'tags' must be an object of texts")
        for text in (*tags, *tags.values()):
            self.reader.unicode(text)
        return dict(tags)

    def modality(self, messages: list[dict[str, Any]]) -> str:
        found = modality_of(messages)
        stated = self.row.get("modality")
        if stated is not None and stated != found:
            raise self.fault(f"'modality' says {shown(stated)}, but the pictures in the messages make it '{found}'")
        return found
