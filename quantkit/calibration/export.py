"""A mix as one Parquet file: what was chosen, whole, with its pictures inside.

    id, modality, language      texts
    source, licence, credit     where it came from; the last two as the row states them
    messages                    JSON text in the normal form; parts of type image and video take the row's next one
    text                        instead of messages: a document without turns
    images, frames, videos      lists of {bytes, path}: the pictures of the messages, the frames of one clip, clip files
    tools, choices, tags        JSON text
    answer, metric              as in the row

`--calib FILE.parquet` reads it back to the same conversations, in the same order. Bytes are those of the source, not
encoded again. The file appears under its name when it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantkit.calibration.conversations import Conversation
from quantkit.calibration.images import Access, Decoder
from quantkit.calibration.originals import Original
from quantkit.errors import QuantkitError
from quantkit.output import atomic_file

GROUP_ROWS, GROUP_BYTES = 256, 32 * 2**20  # of a row group, whichever comes first
TEXTS = ("id", "modality", "language", "source", "licence", "credit", "messages", "text")
MEDIA = ("images", "frames", "videos")
REST = ("tools", "choices", "tags", "metric")
# how data sets call what we call licence and credit
LICENCE = ("licence", "license")
CREDIT = ("credit", "credits", "attribution", "author")


def check_target(out: Path, overwrite: bool) -> None:
    """Raise `QuantkitError` where a mix cannot be written to `out`, before any work is done."""
    if out.suffix.lower() != ".parquet":
        raise QuantkitError(f"--out {out}: must end in .parquet, so that --calib knows how to read it")
    if out.is_dir():
        raise QuantkitError(f"--out {out}: is a folder; name a file")
    if not out.parent.is_dir():
        raise QuantkitError(f"--out {out}: the folder {out.parent} does not exist; make it first")
    if out.exists() and not overwrite:
        raise QuantkitError(f"--out {out}: exists already; name another file, or say --overwrite")
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise QuantkitError(f"--out {out}: Parquet needs pyarrow: pip install 'quantkit[data]'") from error


def write_parquet(
    rows: Iterable[Original], out: Path, notes: dict[str, Any], access: Access | None = None, overwrite: bool = False
) -> int:
    """Write the originals of a mix to `out` and return how many there are; `notes` go into the file's metadata.

    Raises `QuantkitError` where the file exists or cannot be written, or a picture cannot be read; leaves nothing then.
    """
    from pyarrow import parquet

    check_target(out, overwrite)
    count = 0
    schema = _schema().with_metadata({"quantkit": json.dumps(notes, sort_keys=True)})
    ids = _Ids()
    with (
        _whole(out) as partial,
        parquet.ParquetWriter(
            partial, schema, compression="zstd", use_dictionary=False, write_statistics=False
        ) as writer,
    ):
        for group in _groups(_row(original, ids, access) for original in rows):
            count += len(group)
            writer.write_batch(_batch(group, schema), row_group_size=len(group))
    return count


def _schema() -> Any:
    import pyarrow as pa

    file = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
    fields = [(name, pa.string()) for name in TEXTS]
    fields += [(name, pa.list_(file)) for name in MEDIA]
    fields += [(name, pa.string()) for name in REST]
    return pa.schema([*fields, ("answer", pa.list_(pa.string()))])


def _batch(rows: list[dict[str, Any]], schema: Any) -> Any:
    import pyarrow as pa

    return pa.RecordBatch.from_pylist(rows, schema=schema)


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows in groups of bounded size."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += sum(len(file["bytes"]) for name in MEDIA for file in row[name] or ()) + len(row["messages"] or "")
        if len(group) >= GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


class _Ids:
    """Ids as they are, but for those that two sources share: with the source's name before them, and a number."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def unique(self, name: str, source: str) -> str:
        found, number = name, 1
        while found in self.seen:
            found = f"{source}/{name}" if number == 1 else f"{source}/{name}/{number}"
            number += 1
        self.seen.add(found)
        return found


def _row(original: Original, ids: _Ids, access: Access | None) -> dict[str, Any]:
    one, stated = original.conversation, original.row
    media = _Media(one, access)
    messages = None if one.document else _json(media.messages())
    return {
        "id": ids.unique(one.id, original.source),
        "modality": one.modality,
        "language": one.language,
        "source": original.source,
        "licence": _stated(stated, LICENCE),
        "credit": _stated(stated, CREDIT),
        "messages": messages,
        "text": one.messages[0]["content"][0]["text"] if one.document else None,
        **media.columns,
        "tools": _json(one.tools),
        "choices": _json(one.choices),
        "tags": _json(one.tags or None),
        "metric": one.metric,
        "answer": list(one.accepted) or None,
    }


def _stated(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    value = next((row[name] for name in names if row.get(name)), None)
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


class _Media:
    """Takes the pictures and clips out of a conversation's messages, into columns.

    A row lists files of clips in `videos`, or the frames of its only clip in `frames`; in a row with several clips of
    frames, which neither column holds, these stay in the messages as data URIs.
    """

    def __init__(self, conversation: Conversation, access: Access | None) -> None:
        self.conversation = conversation
        self.decoder = Decoder(conversation.source, access)
        self.columns: dict[str, list[dict[str, Any]] | None] = dict.fromkeys(MEDIA)
        clips = [p for one in conversation.messages for p in one["content"] if p["type"] == "video"]
        self.one_of_frames = len(clips) == 1 and not isinstance(clips[0]["video"], str)

    def messages(self) -> list[dict[str, Any]]:
        return [{**one, "content": [self._part(part) for part in one["content"]]} for one in self.conversation.messages]

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] == "text":
            return part
        if part["type"] == "image":
            self._add("images", [part["image"]], "image")
            return {"type": "image"}
        rate = {"fps": part["fps"]} if part.get("fps") else {}
        if isinstance(part["video"], str):
            self._add("videos", [part["video"]], "video")
        elif self.one_of_frames:
            self._add("frames", part["video"], "image")
        else:
            return {"type": "video", "video": [self._inline(frame) for frame in part["video"]], **rate}
        return {"type": "video", **rate}

    def _add(self, column: str, references: list[str], kind: str) -> None:
        files = [{"bytes": self.decoder.read(one, kind), "path": _name(one)} for one in references]
        self.columns[column] = (self.columns[column] or []) + files

    def _inline(self, reference: str) -> str:
        import base64

        if reference.startswith("data:"):
            return reference
        return f"data:image/unknown;base64,{base64.b64encode(self.decoder.read(reference, 'image')).decode()}"


def _name(reference: str) -> str | None:
    """The name of a file without its folder, as the hub's viewers show it; of what is no file, nothing."""
    if reference.startswith(("data:", "http://", "https://")):
        return None
    return Path(reference.removeprefix("skimage:")).name


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A name to write to, which becomes `out` at the end, or is removed."""
    try:
        with atomic_file(out) as partial:
            yield partial
    except OSError as error:
        raise QuantkitError(f"--out {out}: cannot be written ({error.strerror or error})") from error
