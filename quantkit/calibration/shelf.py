"""Conversations put aside until their turn: small ones in memory, those with pictures inside in temporary files.

A row may hold its pictures itself, as base64, and of a stream thousands of rows wait while the rest is read; in memory
they would take gigabytes. A file goes when nobody holds its conversation any more, the folder with the last of them.
"""

from __future__ import annotations

import logging
import pickle
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

from quantkit.calibration.conversations import Conversation
from quantkit.errors import QuantkitError

log = logging.getLogger(__name__)

PARTIAL = "partial-"  # how the names of folders begin that belong to a run
LARGE = 4096  # characters of text and of references, from which on a conversation goes into a file


class Kept:
    """A conversation in memory or in a file."""

    def __init__(self, conversation: Conversation) -> None:
        self._here: Conversation | None = conversation

    def load(self) -> Conversation:
        """The conversation; raises `QuantkitError` where its file cannot be read any more."""
        assert self._here is not None
        return self._here


class _Filed(Kept):
    """A conversation in a file, which is removed with this object."""

    def __init__(self, path: Path, folder: tempfile.TemporaryDirectory[str], source: str) -> None:
        self._path, self._folder, self._source = path, folder, source
        weakref.finalize(self, path.unlink, missing_ok=True)

    def load(self) -> Conversation:
        try:
            # our own file, in a folder that nobody else may write to
            found: Conversation = pickle.loads(self._path.read_bytes())
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise QuantkitError(f"{self._source}: its temporary file {self._path} cannot be read ({error})") from error
        return found


class Shelf:
    """Where conversations are put; `parent`: where its folder is made, None: where temporary files are kept."""

    def __init__(self, parent: Path | None = None) -> None:
        self.parent = parent
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0
        self._warned = False

    def put(self, conversation: Conversation) -> Kept:
        """Put a conversation aside; where its file cannot be written it stays in memory, with a warning."""
        if _size(conversation) < LARGE:
            return Kept(conversation)
        try:
            return self._file(conversation)
        except OSError as error:
            if not self._warned:
                log.warning("pictures of rows stay in memory: no temporary file can be written (%s)", error.strerror)
            self._warned = True
            return Kept(conversation)

    def _file(self, conversation: Conversation) -> Kept:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix=PARTIAL, dir=self.parent, ignore_cleanup_errors=True)
        self._count += 1
        path = Path(self._folder.name) / f"{self._count:08d}"
        try:
            path.write_bytes(pickle.dumps(conversation, protocol=pickle.HIGHEST_PROTOCOL))
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return _Filed(path, self._folder, conversation.source)


class Conversations:
    """Conversations that were put aside, loaded one by one as they are asked for."""

    def __init__(self, kept: Sequence[Kept]) -> None:
        self._kept = kept

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Conversation:
        return self._kept[index].load()

    def __iter__(self) -> Iterator[Conversation]:
        return (one.load() for one in self._kept)


def _size(conversation: Conversation) -> int:
    """Characters of the texts and references of the messages, and of the tools."""
    count = len(str(conversation.tools)) if conversation.tools else 0
    for message in conversation.messages:
        count += len(message.get("reasoning_content", "")) + len(str(message.get("tool_calls", "")))
        for part in message["content"]:
            value = part[part["type"]]
            count += len(value) if isinstance(value, str) else sum(map(len, value))
    return count
