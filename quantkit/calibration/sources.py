"""Where calibration data comes from: the grammar of `--calib`, and each source as a stream of conversations.

    NAME[,KEY=VALUE]...      bundled     photos,weight=0.5     rows.jsonl     wikitext,limit=500
                             chats.csv,question=ask,answer=reply     HuggingFaceM4/the_cauldron,config=docvqa

NAME is `bundled`, `photos` or `heldout` (shipped with quantkit), else a file or folder that exists under it, commas and
all, else a preset (`presets`) or the id of a data set on the hub. "./x" is always a path. Keys:

    weight                              share of this source in a mix, above 0 (1)
    limit                               rows read, from the first on
    config, split, revision             of a data set; a folder of tables has configs and splits too
    path                                a local copy of a data set on the hub
    messages, image, images, video, videos, frames, question, answer, text, tools, id, language
                                        the column that holds it ("id=" with nothing: none does)
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from quantkit.calibration import folders, hub, presets, readers
from quantkit.calibration.conversations import Conversation
from quantkit.calibration.messages import shown
from quantkit.calibration.readers import File, nearest
from quantkit.calibration.references import printable
from quantkit.calibration.rows import FIELDS, RawRow, read_row
from quantkit.errors import QuantkitError

log = logging.getLogger(__name__)

OPTIONS = ("weight", "config", "split", "revision", "path", "limit")
_PACKAGE = Path(__file__).resolve().parent.parent
_CALIBRATION = (_PACKAGE / "_calibration", _PACKAGE.parent / "calibration")  # installed wheel, then repository
SHIPPED = {
    "bundled": _CALIBRATION,
    "photos": tuple(folder / "photos" for folder in _CALIBRATION),
    "heldout": (_PACKAGE / "data" / "heldout",),
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z")


@dataclass(frozen=True)
class Source:
    """One source of a mix; `rows` streams it, `key` says what decides its rows."""

    name: str  # without the path of this machine
    weight: float = 1.0
    path: Path | None = None  # a file or folder
    table: hub.HubTable | None = None  # on the hub, where there is no path
    config: str | None = None
    split: str | None = None
    limit: int | None = None
    columns: dict[str, str] = field(default_factory=dict)  # field -> column
    joined: bool = False  # rows are lines, to be joined to documents
    whole: bool = False  # rows with every column of theirs
    _commits: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __iter__(self) -> Iterator[Conversation]:
        return self.rows()

    def rows(self, on_bad: Callable[[QuantkitError], None] | None = None) -> Iterator[Conversation]:
        """The conversations in order, in bounded memory.

        A bad row is given to `on_bad` and left out, or raised where there is none; what cannot be read at all is
        raised in any case, as is a source of no rows.
        """
        seen = _Ids()
        found = False
        for raw in islice(self.raw_rows(), self.limit):
            found = True
            try:
                conversation = read_row(raw, self.columns)
                seen.add(conversation)
            except QuantkitError as error:
                if on_bad is None:
                    raise
                on_bad(error)
                continue
            yield conversation
        if not found:
            raise QuantkitError(f"{self.path or self.name}: no conversation in this {'file' if self.path else 'split'}")

    def raw_rows(self) -> Iterator[RawRow]:
        """The rows as they are stored, lines joined to documents."""
        rows = self._stored_rows()
        return presets.join_lines(rows, self.columns.get("text", "text")) if self.joined else rows

    def _stored_rows(self) -> Iterator[RawRow]:
        if self.path is None:
            assert self.table is not None
            yield from hub.hub_rows(self._pinned(self.table), self.columns)
        elif self.path.is_dir() and folders.is_saved(self.path):
            yield from hub.saved_rows(self.path, self.name, self.split, self.columns)
        else:
            files = self._files()
            for file in files:
                yield from readers.read_file(file, self.columns, self.whole)
            if not files:
                yield from folders.media_rows(self.path, self.name)

    def _files(self) -> list[File]:
        """The tables to be read, none for a folder of pictures."""
        assert self.path is not None
        if self.path.is_dir():
            return folders.table_files(self.path, self.config, self.split)
        shown, name = printable(str(self.path)), printable(self.path.name)
        return [File(self.path, shown, name, self.path.parent.resolve())]

    def key(self) -> str:
        """SHA-256 hex over what decides the rows: the bytes of the files read, or the hub's id and commit; and options.

        Of pictures in a folder, their names and bytes; pictures that rows refer to are not read. Where the hub cannot
        be asked for the commit, the revision's name stands for it.
        """
        options = [self.limit, sorted(self.columns.items()), self.joined]
        digest = hashlib.sha256(json.dumps(options).encode())
        if self.path is None:
            assert self.table is not None
            table = self._pinned(self.table)
            digest.update(json.dumps(["hub", table.id, table.config, table.split, table.revision]).encode())
            return digest.hexdigest()
        for name, path in self._paths():
            digest.update(json.dumps([name, _hash_file(path)]).encode())
        return digest.hexdigest()

    def _paths(self) -> list[tuple[str, Path]]:
        """The files whose bytes decide the rows, by the name that they go by in ids."""
        assert self.path is not None
        if self.path.is_dir() and folders.is_saved(self.path):
            return [(path.as_posix(), self.path / path) for path in folders.files_below(self.path)]
        files = self._files()
        if files:
            return [(file.name, file.path) for file in files]
        return [(raw.id, self.path / raw.id) for raw in folders.media_rows(self.path, self.name)]

    def _pinned(self, table: hub.HubTable) -> hub.HubTable:
        """The table at the commit that its revision meant when it was first asked for."""
        if "commit" not in self._commits:
            self._commits["commit"] = hub.commit_of(table) or ""
            if not self._commits["commit"]:
                log.warning("%s: the hub does not tell its commit; its rows may change unnoticed", table.name)
        return hub.HubTable(
            table.id, table.config, table.split, self._commits["commit"] or table.revision, table.known_configs
        )


class _Ids:
    """The ids of one source, to find those used twice: a hash and a number each."""

    def __init__(self) -> None:
        self.first: dict[int, int] = {}
        self.files: list[str] = []

    def add(self, conversation: Conversation) -> None:
        """Raise `QuantkitError`, naming where it was used first, for an id that is known."""
        file, _, number = conversation.source.rpartition(":")
        if not number.isdecimal():
            file, number = conversation.source, "0"
        if not self.files or self.files[-1] != file:
            self.files.append(file)
        digest = hashlib.blake2b(conversation.id.encode(), digest_size=8).digest()
        place = (len(self.files) - 1 << 40) + int(number)
        first = self.first.setdefault(int.from_bytes(digest, "big"), place)
        if first != place:
            known, row = self.files[first >> 40], first & ((1 << 40) - 1)
            known += f":{row}" if row else ""
            raise QuantkitError(
                f"{conversation.source}: id {shown(conversation.id)} is already used at {known}; "
                "give each row its own, or number them with the option id="
            )


def load_conversations(source: str | Path) -> list[Conversation]:
    """Read every conversation of a source, in its order: a text in the grammar above, or a path.

    Raises `QuantkitError` for the first bad row.
    """
    if isinstance(source, Path) and (source.exists() or str(source) not in SHIPPED):
        conversations = list(_of_path(source.expanduser(), {}))
    else:
        conversations = list(parse_source(str(source)))
    log.info("%s: %d conversations", source, len(conversations))
    return conversations


def parse_source(text: str) -> Source:
    """The source that a text in the grammar above names.

    Raises `QuantkitError` for an unknown name or key, naming the nearest, for a value that a key does not take, and for
    a name under which there is nothing.
    """
    name, options = _split_options(text)
    if name in SHIPPED:
        return _shipped(name, options)
    if _exists(name):
        return _of_path(Path(name).expanduser(), options)
    preset = presets.preset_of(name)
    missing = Path(name).suffix.lower() in readers.SUFFIXES or Path(name.partition("/")[0]).is_dir()
    if preset is not None or (_HUB_ID.match(name) and not missing):
        return _of_hub(name, preset, options)
    known = [*SHIPPED, *presets.preset_names()]
    raise QuantkitError(
        f"data '{name}' does not exist{nearest(name, known)}; give bundled, photos, a folder, a file "
        f"({', '.join(readers.SUFFIXES)}), the id of a data set on the hub, or one of {', '.join(known[3:])}"
    )


def parse_sources(texts: Iterable[str]) -> list[Source]:
    """The sources of a mix, each once and each under a name of its own: `a/chats` and `b/chats` where both are `chats`.

    Raises `QuantkitError` as `parse_source` does, for a source that is named twice, and where there is none.
    """
    sources: dict[tuple[object, ...], Source] = {}
    for text in texts:
        source = parse_source(text)
        place = source.path.resolve() if source.path else source.table and source.table.id
        key = (place, source.config, source.split)
        if key in sources:
            raise QuantkitError(
                f"--calib {source.name}: named twice; give it once, with a weight ({source.name},weight=2)"
            )
        sources[key] = source
    if not sources:
        raise QuantkitError("--calib names no source: give 'bundled', a folder, a file or a data set's id")
    names = Counter(source.name for source in sources.values())
    return [source if names[source.name] == 1 else _full_name(source, sources.values()) for source in sources.values()]


def _full_name(source: Source, others: Iterable[Source]) -> Source:
    """The source with as many parent folders before its name as tell it from the others of that name."""
    if source.path is None:
        return source
    parents = source.path.resolve().parts[:-1]
    rivals = [
        one.path.resolve().parts[:-1] for one in others if one.name == source.name and one is not source and one.path
    ]
    depth = next(
        (n for n in range(1, len(parents)) if all(parents[-n:] != rival[-n:] for rival in rivals)), len(parents)
    )
    return replace(source, name=printable("/".join((*parents[-depth:], source.name)).lstrip("/")))


def _split_options(text: str) -> tuple[str, dict[str, str]]:
    """The name, the longest that exists as a path where any does, and the options after it."""
    pieces = text.split(",")
    count = next((n for n in range(len(pieces), 0, -1) if _exists(",".join(pieces[:n]))), 1)
    if pieces[0] in SHIPPED:
        count = 1
    name = ",".join(pieces[:count])
    options: dict[str, str] = {}
    for piece in pieces[count:]:
        key, equals, value = piece.partition("=")
        key = key.strip()
        if not equals:
            raise QuantkitError(f"data '{name}': expected KEY=VALUE after the comma, found '{piece}'")
        if key not in (*OPTIONS, *FIELDS):
            known = [*OPTIONS, *FIELDS]
            raise QuantkitError(f"data '{name}': unknown key '{key}'{nearest(key, known)}; known: {', '.join(known)}")
        if key in options:
            raise QuantkitError(f"data '{name}': '{key}' is given twice")
        if key in OPTIONS and not value.strip():
            raise QuantkitError(f"data '{name}': '{key}' has no value")
        options[key] = value.strip()
    return name, options


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, no such home
        return False


def _shipped(name: str, options: dict[str, str]) -> Source:
    if Path(name).is_dir():
        log.warning("'%s' means the set that comes with quantkit; write ./%s for the folder here", name, name)
    for folder in SHIPPED[name]:
        if (folder / folders.MANIFEST).is_file():
            return _of_path(folder, options, name=name)
    raise QuantkitError(f"the data set '{name}' is missing from this installation of quantkit: install it again")


def _of_path(path: Path, options: dict[str, str], name: str | None = None) -> Source:
    if not _exists(str(path)):
        raise QuantkitError(f"data '{path}' does not exist: give bundled, a folder or a file of rows")
    given = dict(options)
    for key in ("revision", "path"):
        if key in given:
            raise QuantkitError(f"data '{path}': '{key}' is for a data set on the hub; this is a path")
    if not path.is_dir():
        for key in ("config", "split"):
            if key in given:
                raise QuantkitError(f"data '{path}': '{key}' is for a data set; this is one file")
    stem = name or printable(path.resolve().name) or "root"
    return Source(
        name=":".join(filter(None, (stem, given.get("config"), given.get("split")))),
        weight=_weight(stem, given),
        path=path,
        config=given.get("config"),
        split=given.get("split"),
        limit=_limit(stem, given),
        columns={key: value for key, value in given.items() if key in FIELDS},
    )


def _of_hub(name: str, preset: presets.Preset | None, options: dict[str, str]) -> Source:
    config = options.get("config", preset.config if preset else None)
    split = options.get("split", preset.split if preset else None)
    columns = {key: value for key, value in options.items() if key in FIELDS}
    table = hub.HubTable(
        id=preset.id if preset else name,
        config=config,
        split=split or "train",
        revision=options.get("revision"),
        known_configs=preset.configs if preset else (),
    )
    path = Path(options["path"]).expanduser() if "path" in options else None
    if path is not None and not _exists(str(path)):
        raise QuantkitError(f"data '{name}': path '{path}' does not exist; give the folder or file of a local copy")
    return Source(
        name=table.name,
        weight=_weight(name, options),
        path=path,
        table=table,
        config=config,
        split=split,
        limit=_limit(name, options) or (preset.limit if preset else None),
        columns={**(preset.columns if preset else {}), **columns},
        joined=bool(preset and preset.joined),
    )


def _weight(name: str, options: dict[str, str]) -> float:
    try:
        weight = float(options.get("weight", 1))
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise QuantkitError(f"data '{name}': weight must be a number above 0, not '{options['weight']}'")
    return weight


def _limit(name: str, options: dict[str, str]) -> int | None:
    if "limit" not in options:
        return None
    if not options["limit"].isascii() or not options["limit"].isdecimal() or int(options["limit"]) < 1:
        raise QuantkitError(f"data '{name}': limit must be a whole number above 0, not '{options['limit']}'")
    return int(options["limit"])


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            while chunk := stream.read(2**20):
                digest.update(chunk)
    except OSError as error:
        raise QuantkitError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()
