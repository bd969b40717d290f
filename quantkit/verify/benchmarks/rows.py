"""One published row into conversations: prompt, pictures, accepted answers, metric, and tags for the totals.

Column names as published by lmms-lab (MMBench, HallusionBench, MMMU, RefCOCO, Video-MME) and echo840 (OCRBench).
"""

from __future__ import annotations

import ast
import base64
import binascii
import io
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantkit.calibration import Conversation
from quantkit.calibration.conversations import IMAGE_SUFFIXES, modality_of
from quantkit.errors import QuantkitError
from quantkit.verify.benchmarks.table import Place

LETTER_ONLY = "Answer with the letter of the right option only."
LETTER_ONLY_ZH = "请只回答正确选项的字母。"
YES_OR_NO = "Answer with yes or no only."
SHORT = "Answer with a single word, number or short phrase."
BOX = (
    "Where in the picture is this: {expression}? Answer with the box [x1, y1, x2, y2] only: left, top, right, bottom, "
    "in thousandths of the picture's width and height, as whole numbers from 0 to 1000."
)
VIDEO_SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF8": "gif",
    b"RIFF": "webp",
    b"BM": "bmp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
}


class Row:
    """A row and where it stands; every fault of it names benchmark, split and row."""

    def __init__(self, row: dict[str, Any], place: Place, split: str, number: int) -> None:
        self.row = row
        self.place = place
        self.where = f"{place.name}:{split}:{number}"

    def fault(self, message: str) -> QuantkitError:
        return QuantkitError(f"{self.where}: {message}")

    def text(self, column: str) -> str:
        """A column as stripped text, "" where it is empty: None, and the "nan" that spreadsheets leave."""
        value = self.row.get(column)
        text = "" if value is None else str(value).strip()
        return "" if text.lower() == "nan" else text

    def answer(self, column: str = "answer") -> str:
        answer = self.text(column)
        if answer in ("", "?"):
            raise self.fault(f"no answer in column '{column}': the answers of this split are not public; name another")
        return answer

    def picture(self, column: str) -> bytes:
        """The bytes of a picture as the table holds them (raw or base64)."""
        value = self.row.get(column)
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None and isinstance(value, dict) and value.get("path") and self.place.folder is not None:
            root = self.place.folder.resolve()
            path = (root / value["path"]).resolve()
            if path.is_file() and path.is_relative_to(root):
                data = path.read_bytes()
        if isinstance(data, str):
            try:
                data = base64.b64decode(data, validate=True)
            except binascii.Error as error:
                raise self.fault(f"column '{column}' is no picture ({error})") from error
        if not isinstance(data, bytes) or not any(data.startswith(magic) for magic in _MAGIC):
            raise self.fault(f"column '{column}' holds no picture")
        return data

    def image(self, column: str) -> dict[str, Any]:
        data = self.picture(column)
        kind = next(kind for magic, kind in _MAGIC.items() if data.startswith(magic))
        return {"type": "image", "image": f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"}

    def conversation(
        self,
        identity: str,
        parts: list[dict[str, Any]],
        accepted: tuple[str, ...],
        metric: str,
        *,
        choices: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
        language: str = "en",
    ) -> Conversation:
        """The question with its first accepted answer as the assistant's, so that its tokens can be teacher-forced."""
        messages = [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [_text(accepted[0])]},
        ]
        return Conversation(
            id=f"{self.place.name}-{identity}",
            modality=modality_of(messages),
            language=language,
            messages=messages,
            answer=accepted[0],
            source=self.where,
            accepted=accepted,
            metric=metric,
            choices=choices,
            tags=tags or {},
        )

    def letter(self, choices: dict[str, str]) -> str:
        answer = self.answer()
        if len(choices) < 2:
            raise self.fault(f"{len(choices)} options, a choice needs two")
        if answer not in choices:
            raise self.fault(f"the answer '{answer[:40]}' is none of the options {', '.join(choices)}")
        return answer


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _listed(choices: dict[str, str]) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in choices.items())


def mmbench(row: Row) -> Iterator[Conversation]:
    """Liu et al. 2023. Rows whose index differs by a million are one question with its options rotated."""
    choices = {letter: text for letter in "ABCDE" if (text := row.text(letter))}
    chinese = row.place.config in ("cn", "cc")
    ending = LETTER_ONLY_ZH if chinese else LETTER_ONLY
    lines = [line for line in (row.text("hint"), row.text("question"), _listed(choices), ending) if line]
    index = row.text("index")
    if not index.isdigit():
        raise row.fault(f"'index' must be a whole number, found '{index[:20]}'")
    yield row.conversation(
        index,
        [row.image("image"), _text("\n".join(lines))],
        (row.letter(choices),),
        "choice",
        choices=choices,
        tags={"index": index, "category": row.text("category")},
        language="zh" if chinese else "en",
    )


def ocrbench(row: Row) -> Iterator[Conversation]:
    """Liu et al. 2023, "OCRBench": an accepted answer must stand in the text; blanks do not count in HME100k."""
    answers = row.row["answer"]
    accepted = tuple(str(answer) for answer in (answers if isinstance(answers, list) else [answers]) if answer)
    if not accepted:
        raise row.fault("no answer in column 'answer'")
    yield row.conversation(
        row.where.rpartition(":")[2],
        [row.image("image"), _text(row.text("question"))],
        accepted,
        "formula" if row.text("dataset") == "HME100k" else "contains",
        tags={"question_type": row.text("question_type"), "dataset": row.text("dataset")},
    )


def hallusionbench(row: Row) -> Iterator[Conversation]:
    """Guan et al. 2024. Split "image" as commonly reported; "image+non_image" is the whole benchmark."""
    keys = ("category", "subcategory", "set_id", "figure_id", "question_id")
    answer = row.answer("gt_answer")
    if answer not in ("0", "1"):
        raise row.fault(f"'gt_answer' must be 0 or 1, found '{answer[:20]}'")
    pictures = [row.image("image")] if row.row.get("image") is not None else []
    yield row.conversation(
        "-".join(row.text(key) for key in keys),
        [*pictures, _text(f"{row.text('question')}\n{YES_OR_NO}")],
        ("Yes" if answer == "1" else "No",),
        "yesno",
        tags={key: row.text(key) for key in keys},
    )


def mmmu(row: Row) -> Iterator[Conversation]:
    """Yue et al. 2024. Pictures stand where the question and the options name them, as "<image 2>"."""
    options = _literal_list(row, "options")
    tags = {"subject": re.sub(r"^[^_]*_|_\d+$", "", row.text("id")), "question_type": row.text("question_type")}
    if row.text("question_type") == "multiple-choice":
        choices = dict(zip(string.ascii_uppercase, options, strict=False))
        prompt = f"{row.text('question')}\n{_listed(choices)}\n{LETTER_ONLY}"
        letter = row.letter(choices)
        parts = _interleaved(row, prompt)
        yield row.conversation(row.text("id"), parts, (letter,), "choice", choices=choices, tags=tags)
    else:
        row.answer()
        accepted = tuple(_literal_list(row, "answer"))
        parts = _interleaved(row, f"{row.text('question')}\n{SHORT}")
        yield row.conversation(row.text("id"), parts, accepted, "open", tags=tags)


def _literal_list(row: Row, column: str) -> list[str]:
    """A column that holds a list, or a list written as Python text, or one text."""
    value = row.row[column]
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError) as error:
            raise row.fault(f"column '{column}' is no list: {value[:40]!r}") from error
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _interleaved(row: Row, prompt: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for piece in re.split(r"(<image \d+>)", prompt):
        number = re.fullmatch(r"<image (\d+)>", piece)
        if number:
            parts.append(row.image(f"image_{number[1]}"))
        elif piece.strip():
            parts.append(_text(piece.strip()))
    return parts


def refcoco(row: Row) -> Iterator[Conversation]:
    """Yu et al. 2016. One conversation for each referring expression; `bbox` is COCO's [left, top, width, height].

    The prompt asks for thousandths, the answer form of MiniCPM-V; shares of 1 are read as well, pixels are not: they
    cannot be told from thousandths.
    """
    from PIL import Image, UnidentifiedImageError

    box = row.row["bbox"]
    if not isinstance(box, list) or len(box) != 4 or min(box[2:]) <= 0:
        raise row.fault(f"'bbox' must be [left, top, width, height], found {box!r}")
    try:
        with Image.open(io.BytesIO(row.picture("image"))) as opened:
            width, height = opened.size
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise row.fault(f"column 'image' cannot be decoded ({error})") from error
    left, top = box[0] / width, box[1] / height
    shares = [left, top, left + box[2] / width, top + box[3] / height]
    accepted = (
        "[" + ", ".join(str(round(1000 * share)) for share in shares) + "]",
        "[" + ", ".join(f"{min(share, 1.0):.4f}" for share in shares) + "]",
    )
    expressions = row.row["answer"]
    for number, expression in enumerate(expressions if isinstance(expressions, list) else [expressions]):
        prompt = BOX.format(expression=str(expression).strip())
        identity = f"{row.text('question_id')}-{number}"
        yield row.conversation(identity, [row.image("image"), _text(prompt)], accepted, "iou")


def video_mme(row: Row) -> Iterator[Conversation]:
    """Fu et al. 2024. The frames of a video are pictures in a folder of its name beside the table."""
    options = [re.sub(r"^[A-Z]\.\s*", "", option.strip()) for option in _literal_list(row, "options")]
    choices = dict(zip(string.ascii_uppercase, options, strict=False))
    prompt = f"{row.text('question')}\n{_listed(choices)}\n{LETTER_ONLY}"
    tags = {key: row.text(key) for key in ("duration", "domain", "sub_category", "task_type")}
    parts = [{"type": "video", "video": _frames(row)}, _text(prompt)]
    accepted = (row.letter(choices),)
    yield row.conversation(row.text("question_id"), parts, accepted, "choice", choices=choices, tags=tags)


def _frames(row: Row) -> list[str] | str:
    """Pictures of the frames, or the video's own file."""
    video, folder = row.text("videoID"), row.place.folder
    if not video or Path(video).name != video:
        raise row.fault(f"'videoID' is no file name: '{video[:40]}'")
    if folder is None:
        raise row.fault(
            "the table on the hub has no videos; download it, put them beside it as FOLDER/VIDEO_ID.mp4, or each one's "
            f"frames into FOLDER/VIDEO_ID/ as pictures, and give {row.place.name}=FOLDER"
        )
    root = folder.parent if folder.is_file() else folder
    places = [root / sub for sub in ("", "frames", "data", "video", "videos")]
    for place in places:
        if (place / video).is_dir():
            files = [file for file in (place / video).iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
            if files:
                return [str(file.resolve()) for file in sorted(files, key=_by_number)]
    for place in places:
        for suffix in VIDEO_SUFFIXES:
            if (place / f"{video}{suffix}").is_file():
                return str((place / f"{video}{suffix}").resolve())
    raise row.fault(f"no video '{video}': neither {root / video}.mp4 nor a folder {root / video} with pictures")


def _by_number(file: Path) -> list[tuple[int, str]]:
    """frame2 before frame10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", file.name)]
