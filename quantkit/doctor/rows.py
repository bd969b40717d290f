"""What an examination finds: sections of rows, each with a state and, where something can be done, a command."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# ok: is there; none: is not, and need not be; note: worth knowing; fault: the main job cannot run
State = Literal["ok", "none", "note", "fault"]


@dataclass(frozen=True)
class Row:
    """command: what mends or installs it, as typed into a shell; values: the figures, for programs."""

    what: str
    state: State
    said: str
    command: str | None = None
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    title: str
    rows: tuple[Row, ...]


def healthy(sections: Iterable[Section]) -> bool:
    """Whether the main job can run here."""
    return all(row.state != "fault" for section in sections for row in section.rows)


def commands(sections: Iterable[Section]) -> list[str]:
    """The commands that mend what is at fault, each once."""
    found = (row.command for section in sections for row in section.rows if row.state == "fault" and row.command)
    return list(dict.fromkeys(found))


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def tidy(path: Path | str) -> str:
    """A path as one would type it: the report may go into a public issue, and the home folder names a person."""
    text, home = str(path), os.path.expanduser("~")
    inside = home not in ("", "/") and (text == home or text.startswith(home + os.sep))
    return "~" + text[len(home) :] if inside else text
