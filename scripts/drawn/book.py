"""From drafts to rows of the manifest: questions kept, pictures placed in messages, ids, files, counts."""

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tinytext

from drawn.base import Draft, Draw, Fonts

Row = dict[str, Any]
MORE_TURNS = 0.28  # part of the conversations about pictures that have two to four questions
SYSTEM = (
    (
        "You answer questions about pictures. Say only what can be seen.",
        "You are a careful assistant. Be exact with figures and names.",
    ),
    ("你根据图片回答问题，只说看得见的内容。", "你是一位细心的助手，数字和名称要准确。"),
)
TRIES = 2000  # a text has to hash into the calibration split, which holds a tenth of all


@dataclass
class Book:
    """Rows of the manifest and the files they name."""

    rows: list[Row] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def add(self, name: str, draft: Draft, draw: Draw) -> None:
        """Add one conversation with its pictures."""
        names = [f"images/{name}-{i}.{picture.suffix}" for i, picture in enumerate(draft.pictures)]
        self.files.update((path, picture.encode()) for path, picture in zip(names, draft.pictures, strict=True))
        kinds = ("text", "image", "images")
        row: Row = {
            "id": name,
            "modality": "video" if draft.clip else kinds[min(len(names), 2)],
            "language": draw.language,
            "task": draft.task,
            "messages": named(draft.messages, names) or messages_of(draft, draw, names),
        }
        self.rows.append(row | {k: v for k, v in (("tools", draft.tools), ("sources", draft.sources)) if v})

    def write(self, folder: Path) -> None:
        """Write manifest and pictures; a picture that no row names any more is removed."""
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for old in (folder / "images").iterdir():
            if f"images/{old.name}" not in self.files:
                old.unlink()
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows]
        (folder / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")


def named(messages: list[Row], names: list[str]) -> list[Row]:
    """Messages whose image parts name their picture by its number, with its path instead."""
    for message in messages:
        for piece in message["content"] or []:
            if piece["type"] == "image":
                piece["image"] = names[piece["image"]]
    return messages


def part(text: str) -> dict[str, Any]:
    """A text part."""
    return {"type": "text", "text": text}


def messages_of(draft: Draft, draw: Draw, names: list[str]) -> list[Row]:
    """Messages of a conversation about pictures: they stand before or after the first question, or between labels."""
    turns = draft.turns if draft.all_turns else kept(draft.turns, draw.rng)
    if draft.clip:
        pictures: list[dict[str, Any]] = [{"type": "video", "video": names}]
    else:
        pictures = [{"type": "image", "image": name} for name in names]
    messages: list[Row] = []
    if draw.rng.random() < 0.1:
        messages.append({"role": "system", "content": [part(draw.one(*SYSTEM))]})
    for index, (question, answer) in enumerate(turns):
        content = [part(question)]
        if draft.apart:
            content = [pictures[index], part(question)]
        elif index == 0:
            content = placed(draw, pictures, part(question))
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": [part(answer)]}]
    return messages


def placed(draw: Draw, pictures: list[dict[str, Any]], question: dict[str, Any]) -> list[dict[str, Any]]:
    """Pictures and question in one of three orders."""
    chance = draw.rng.random()
    if len(pictures) > 1 and chance < 0.35:
        labels = [part(draw.say(f"Picture {i + 1}: ", f"图{i + 1}：")) for i in range(len(pictures))]
        return [*(p for pair in zip(labels, pictures, strict=True) for p in pair), question]
    return [question, *pictures] if chance > 0.85 else [*pictures, question]


def kept(turns: list[tuple[str, str]], rng: random.Random) -> list[tuple[str, str]]:
    """One question, the longer its answer the likelier, or two to four in their order."""
    if rng.random() >= MORE_TURNS:
        return rng.choices(turns, [len(answer) ** 0.5 for _, answer in turns])
    number = min(rng.randrange(2, 5), len(turns))
    return [turns[i] for i in sorted(rng.sample(range(len(turns)), number))]


def make_item(kind: str, maker: Any, index: int, language: str, seed: int, fonts: Fonts) -> tuple[Draft, Draw]:
    """One conversation of a kind, always the same for the same seed; a chat of text alone belongs to the split."""
    for attempt in range(TRIES):
        draw = Draw(random.Random(f"{kind}-{index}-{language}-{seed}-{attempt}"), language, index, fonts)
        draft: Draft = maker(draw)
        if draft.pictures or tinytext.split_of(json.dumps(draft.messages, ensure_ascii=False)) == "calibration":
            return draft, draw
    raise RuntimeError(f"{kind} {index}: no text of {TRIES} hashes into the calibration split")


def kind_of(row: Row) -> str:
    """The kind of a row, the first part of its id."""
    return str(row["id"]).split("-")[0]


def counts_table(rows: list[Row], kinds: list[str]) -> str:
    """The README's table: conversations of each kind by language and by modality, and the pictures they use."""
    lines = ["| kind | en | zh | text | image | images | video | pictures |", "| --- |" + " ---: |" * 7]
    for kind in [*kinds, "all"]:
        own = [r for r in rows if kind in (kind_of(r), "all")]
        language, modality = Counter(r["language"] for r in own), Counter(r["modality"] for r in own)
        cells = [
            language["en"],
            language["zh"],
            *(modality[m] for m in ("text", "image", "images", "video")),
            len(pictures_of(own)),
        ]
        lines.append(f"| {kind} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def pictures_of(rows: list[Row]) -> list[str]:
    """Every picture that the rows name, frames included, in order."""
    found: list[str] = []
    for row in rows:
        for message in row["messages"]:
            for piece in message["content"] or []:
                found += [piece["image"]] if piece["type"] == "image" else piece.get("video", [])
    return found


SIDES = ((0, 128, "up to 128"), (129, 448, "129 to 448"), (449, 1000, "449 to 1000"), (1001, 2000, "1001 to 2000"))


def sizes_table(sizes: list[tuple[int, int]]) -> str:
    """The README's table of sizes: pictures by their long side, those that are sliced, those that are strips."""
    lines = ["| long side, pixels | pictures |", "| --- | ---: |"]
    for low, high, name in SIDES:
        lines.append(f"| {name} | {sum(low <= max(size) <= high for size in sizes)} |")
    lines.append(f"| more than 448 x 448 pixels in area | {sum(w * h > 448 * 448 for w, h in sizes)} |")
    lines.append(f"| at least 4:1 or 1:4 | {sum(max(s) >= 4 * min(s) for s in sizes)} |")
    return "\n".join(lines)
