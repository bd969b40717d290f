"""Files of rows, one row at a time: JSONL, JSON, CSV, TSV and Parquet.

A row that cannot be read (a line that is not UTF-8 or not JSON, a record of the wrong width) is a `RawRow` with its
fault, and reading goes on; a file that cannot be read at all raises. Rows are numbered as an editor or a table viewer
does: by line in JSONL, CSV and TSV, from 1 in JSON and Parquet. No file is held in memory: of JSON, a piece of the
top-level list at a time; of Parquet, `BATCH` rows and a buffer.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from quantkit.calibration.rows import COLUMNS, RawRow
from quantkit.errors import QuantkitError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
MAX_ROW = 256 * 2**20  # bytes of one line of JSONL, one field of CSV, one element of JSON
CHUNK = 2**20
BATCH = 32  # rows of Parquet at a time: pictures of some MB each
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class File:
    """A file of rows: how it is called in messages and in ids, and where paths in it lead."""

    path: Path
    shown: str  # in "file:row"
    name: str  # in the ids of its rows
    folder: Path  # resolved

    def row(self, number: int, value: Any) -> RawRow:
        return RawRow(f"{self.shown}:{number}", f"{self.name}:{number}", value, self.folder)

    def bad(self, number: int, message: str) -> RawRow:
        where = f"{self.shown}:{number}"
        return RawRow(where, f"{self.name}:{number}", None, self.folder, QuantkitError(f"{where}: {message}"))


def read_file(file: File, columns: dict[str, str], whole: bool = False) -> Iterator[RawRow]:
    """The rows of a file, by its suffix; `columns` are those that a mapping asks for (field -> name).

    `whole`: with every column of a Parquet file, not only those that conversations are read from.

    Raises `QuantkitError` for a file that cannot be read, or a table without one of the columns.
    """
    suffix = file.path.suffix.lower()
    if suffix not in SUFFIXES:
        raise QuantkitError(
            f"{file.shown}: cannot read this kind of file; calibration data is {', '.join(SUFFIXES)} or a folder"
        )
    if suffix == ".parquet":
        yield from _parquet(file, columns, whole)
    elif suffix in (".csv", ".tsv"):
        yield from _csv(file, columns)
    elif suffix == ".json":
        yield from _json(file)
    else:
        yield from _jsonl(file)


def check_columns(where: str, columns: dict[str, str], found: list[str]) -> None:
    """Raise `QuantkitError` where a table lacks a column that the mapping asks for, or has none that is known."""
    for name, column in columns.items():
        if column and column not in found:
            use = f", to be read as '{name}'," if name != column else ""
            raise QuantkitError(
                f"{where}: column '{column}'{use} is missing{nearest(column, found)}; the table has {', '.join(found)}"
            )
    if not any(columns.values()) and not set(found) & set(COLUMNS):
        raise QuantkitError(
            f"{where}: none of the columns {', '.join(found)} is known; "
            "say which to read, as question=COLUMN,answer=COLUMN"
        )


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """ " (did you mean 'x'?)" for the nearest of the known names, or nothing."""
    import difflib

    lower = {other.lower(): other for other in reversed(known)}
    close = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.5)
    return f" (did you mean '{lower[close[0]]}'?)" if close else ""


@contextmanager
def opened(file: File) -> Iterator[IO[bytes]]:
    """The file's bytes; raises `QuantkitError` where it cannot be opened or read."""
    try:
        with open(file.path, "rb") as stream:
            if stream.peek(4)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise QuantkitError(f"{file.shown}: not UTF-8 but UTF-16; save the file as UTF-8")
            if stream.peek(4)[:3] == codecs.BOM_UTF8:
                stream.seek(3)
            yield stream
    except OSError as error:
        raise QuantkitError(f"{file.shown}: cannot be read ({error.strerror})") from error


def _jsonl(file: File) -> Iterator[RawRow]:
    with opened(file) as stream:
        number = 0
        while line := stream.readline(MAX_ROW + 1):
            number += 1
            if len(line) > MAX_ROW:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(CHUNK)
                yield file.bad(number, f"longer than {MAX_ROW // 2**20} MiB; keep pictures in files beside it")
            elif line.strip():
                yield _json_line(file, number, line)


def _json_line(file: File, number: int, line: bytes) -> RawRow:
    try:
        return file.row(number, json.loads(line.decode()))
    except UnicodeDecodeError as error:
        return file.bad(number, f"not UTF-8 (byte {error.start} of the line); save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return file.bad(number, f"not valid JSON ({error})")


def _json(file: File) -> Iterator[RawRow]:
    """The elements of a list, one by one; or of the list under "data" in an object; or the object as the only row."""
    with opened(file) as stream:
        text = _Text(file, stream)
        if text.skip_space() == "[":
            yield from _elements(file, text)
            return
        document = text.value()
        if text.skip_space():
            raise QuantkitError(f"{file.shown}: not valid JSON (more follows the first value); is it JSONL?")
    if isinstance(document, dict):
        document = document.get("data", [document])
    if not isinstance(document, list):
        raise QuantkitError(f"{file.shown}: expected a list of conversations, found {type(document).__name__}")
    for number, value in enumerate(document, start=1):
        yield file.row(number, value)


def _elements(file: File, text: _Text) -> Iterator[RawRow]:
    """The elements of the list that opens here, each parsed by itself."""
    text.drop(1)
    number = 0
    while text.skip_space() != "]":
        if number and text.take() != ",":
            raise QuantkitError(f"{file.shown}: not valid JSON (',' is missing after element {number} of the list)")
        number += 1
        text.skip_space()
        yield file.row(number, text.value(f"element {number}"))
    text.drop(1)
    if text.skip_space():
        raise QuantkitError(f"{file.shown}: not valid JSON (more follows the end of the list)")


class _Text:
    """A window on a file's text that grows as far as the next JSON value needs."""

    def __init__(self, file: File, stream: IO[bytes]) -> None:
        self.file, self.stream = file, stream
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.parser = json.JSONDecoder()
        self.window, self.at, self.ended = "", 0, False

    def grow(self, size: int = CHUNK) -> None:
        chunk = self.stream.read(size)
        self.ended = not chunk
        try:
            text = self.decoder.decode(chunk, final=self.ended)
        except UnicodeDecodeError as error:
            raise QuantkitError(f"{self.file.shown}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
        self.window, self.at = self.window[self.at :] + text, 0

    def skip_space(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            match = _SPACE.match(self.window, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.window) or self.ended:
                return self.window[self.at : self.at + 1]
            self.grow()

    def drop(self, count: int) -> None:
        self.at += count

    def take(self) -> str:
        self.at += 1
        return self.window[self.at - 1 : self.at]

    def value(self, what: str = "the file") -> Any:
        """The next value; a number may go on behind the window, so it must end within it."""
        while True:
            try:
                value, end = self.parser.raw_decode(self.window, self.at)
                if end < len(self.window) or self.ended:
                    self.at = end
                    return value
            except (ValueError, RecursionError) as error:
                if self.ended or isinstance(error, RecursionError):
                    raise QuantkitError(f"{self.file.shown}: not valid JSON ({what}: {error})") from error
            if len(self.window) - self.at > MAX_ROW:
                raise QuantkitError(
                    f"{self.file.shown}: {what} is longer than {MAX_ROW // 2**20} MiB or not valid JSON; use JSONL"
                )
            self.grow(max(CHUNK, len(self.window) - self.at))


def _csv(file: File, columns: dict[str, str]) -> Iterator[RawRow]:
    """Records under a header; a row's number is the line it begins at, an empty field is none."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW))  # the module's own, 128 KiB, is less than a picture
    delimiter = "\t" if file.path.suffix.lower() == ".tsv" else ","
    with opened(file) as stream:
        # lines are split at line feeds alone; bytes that are no UTF-8 go through as surrogates and are told per row
        lines = (line.decode("utf-8", "surrogateescape") for line in stream)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            number = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if header is None:
                    raise QuantkitError(f"{file.shown}:{number}: not valid CSV ({error})") from error
                yield file.bad(number, f"not valid CSV ({error})")
                continue
            if not any(fields):
                continue
            if header is None:
                header = _header(file, fields, columns)
            else:
                yield _record(file, number, header, fields)


def _header(file: File, fields: list[str], columns: dict[str, str]) -> list[str]:
    header = [field.strip() for field in fields]
    if any(_surrogates(field) for field in header):
        raise QuantkitError(f"{file.shown}:1: the header is not UTF-8; save the file as UTF-8")
    twice = [field for field in header if header.count(field) > 1]
    if twice:
        raise QuantkitError(f"{file.shown}:1: two columns are called '{twice[0]}'")
    check_columns(file.shown, columns, header)
    return header


def _record(file: File, number: int, header: list[str], fields: list[str]) -> RawRow:
    if len(fields) != len(header):
        return file.bad(number, f"{len(fields)} fields, the header names {len(header)}")
    for name, field in zip(header, fields, strict=True):
        if _surrogates(field):
            return file.bad(number, f"not UTF-8 (column '{name}'); save the file as UTF-8")
    return file.row(number, {name: field for name, field in zip(header, fields, strict=True) if field})


def _surrogates(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def _parquet(file: File, columns: dict[str, str], whole: bool) -> Iterator[RawRow]:
    """The rows, `BATCH` at a time."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise QuantkitError(f"{file.shown}: Parquet needs pyarrow: pip install 'quantkit[data]'") from error
    try:
        with parquet.ParquetFile(file.path, buffer_size=CHUNK, pre_buffer=False) as table:
            found = list(table.schema_arrow.names)
            check_columns(file.shown, columns, found)
            wanted = [name for name in found if name in COLUMNS or name in columns.values()]
            number = 0
            for batch in table.iter_batches(batch_size=BATCH, columns=found if whole else wanted or found):
                for value in batch.to_pylist():
                    number += 1
                    yield file.row(number, value)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise QuantkitError(f"{file.shown}: not a readable Parquet file ({first})") from error
