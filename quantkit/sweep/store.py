"""The folder of a sweep, shared by all that work on it.

    variants/NAME/          a variant, with its report.json, .md, .html
    cells/NAME.json         what became of a cell: written last, so that a killed cell has none
    statistics/KEY/         kept while cells need them
    passes.json             seconds of each pass of statistics, by key
    sweep.html, .csv, ...   the result

A cell is finished if its record says so under the same keys: one of the variant (recipe, source, data, version of
quantkit), one of the measurement. Where only the latter has changed, the variant is kept and measured again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import quantkit
from quantkit.errors import QuantkitError
from quantkit.output import atomic_file, require_free_space
from quantkit.recipe import CalibrationOptions, recorded
from quantkit.recipe.common import is_path
from quantkit.sweep.plan import Cell, Sweep, data_of

logger = logging.getLogger(__name__)

MARK = "quantkit sweep"


@dataclass(frozen=True)
class Done:
    """What became of a cell. variant, measured: `Store.keys`; seconds: by phase; peak_bytes: of the process, None where
    nobody can tell."""

    variant: str
    measured: str
    status: str  # "done" or "failed"
    why: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int | None = None


class Store:
    """Places and records of one sweep in ``folder``."""

    def __init__(self, folder: Path, source_fingerprint: str) -> None:
        self.folder = folder.expanduser()
        self._source = source_fingerprint

    def prepare(self, count: int) -> None:
        """Make the folder. Raises QuantkitError where there is something else of that name, or no room for ``count``
        bytes."""
        mark = self.folder / "cells" / "README"
        if self.folder.exists() and not mark.is_file() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise QuantkitError(f"--out {self.folder}: holds something else; choose a new folder, or a sweep's own")
        try:
            mark.parent.mkdir(parents=True, exist_ok=True)
            (self.folder / "variants").mkdir(exist_ok=True)
            mark.write_text(f"{MARK}: what became of each cell\n", encoding="utf-8")
        except OSError as error:
            raise QuantkitError(f"--out {self.folder}: {error.strerror}; choose another folder") from error
        require_free_space(self.folder / "variants" / "any", count)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other sweeps out of the folder. Raises QuantkitError where one is at work in it."""
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        with (self.folder / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise QuantkitError(f"--out {self.folder}: another sweep is at work in it; wait for it") from error
            except OSError:  # a file system without locks
                logger.warning("%s: cannot be locked; start no second sweep in it", self.folder)
            yield

    def variant(self, cell: Cell) -> Path:
        """The folder of a cell's variant."""
        return self.folder / "variants" / cell.name

    def statistics(self, key: str) -> Path:
        """The folder of statistics."""
        return self.folder / "statistics" / key

    def keys(self, sweep: Sweep, cell: Cell) -> tuple[str, str]:
        """What a finished cell is known by: of the variant, of the measurement."""
        verify = sweep.verify.provenance() | {"engine": sweep.verify.engine}
        data = {name: _identity(value) for name, value in data_of(cell.options).items()}
        return (
            _digest(quantkit.__version__, self._source, recorded(cell.options), data),
            _digest(quantkit.__version__, verify, _identity(sweep.verify.data), sweep.gates),
        )

    def record(self, cell: Cell) -> Done | None:
        """What became of a cell; None where nothing is known, or what is recorded cannot be read."""
        try:
            content = json.loads((self.folder / "cells" / f"{cell.name}.json").read_text(encoding="utf-8"))
            return Done(**{one.name: content[one.name] for one in fields(Done)})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def finished(self, sweep: Sweep, cell: Cell) -> bool:
        """Whether a cell need not be done again."""
        known = self.made(sweep, cell)
        reported = (self.variant(cell) / "report.json").is_file()
        return known is not None and reported and known.measured == self.keys(sweep, cell)[1]

    def made(self, sweep: Sweep, cell: Cell) -> Done | None:
        """The record of a cell whose variant need not be made again, whatever it was measured by; else None."""
        known = self.record(cell)
        there = (self.variant(cell) / "quantkit.json").is_file()
        same = known is not None and known.status == "done" and known.variant == self.keys(sweep, cell)[0]
        return known if same and there else None

    def begin(self, cell: Cell, made: Done | None) -> None:
        """Take back what is recorded of a cell that is to be done again; ``made``: its variant stays as it is.

        Killed in the middle it must not count as finished, whatever the file says by then.
        """
        if made is not None:
            self.write(cell, replace(made, measured=""))
        else:
            (self.folder / "cells" / f"{cell.name}.json").unlink(missing_ok=True)

    def others(self, sweep: Sweep) -> list[str]:
        """Names of variants in the folder that the sweep no longer has."""
        names = {cell.name for cell in sweep.cells}
        places = sorted((self.folder / "variants").iterdir())
        return [place.name for place in places if place.name not in names and not place.name.startswith(".")]

    def write(self, cell: Cell, done: Done) -> None:
        """Record what became of a cell."""
        content = {one.name: getattr(done, one.name) for one in fields(done)}
        with atomic_file(self.folder / "cells" / f"{cell.name}.json") as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def write_pass(self, key: str, seconds: float) -> None:
        """Record what a pass of statistics took."""
        path = self.folder / "passes.json"
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        with atomic_file(path) as partial:
            partial.write_text(json.dumps({**known, key: round(seconds, 3)}, indent=2) + "\n", encoding="utf-8")

    def drop_statistics(self) -> None:
        """Remove the statistics that cells shared."""
        shutil.rmtree(self.folder / "statistics", ignore_errors=True)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _identity(source: Any) -> Any:
    """Of data on this machine its place and what tells another state of it: names, sizes and times of change."""
    if isinstance(source, tuple):
        return [_identity(one) for one in source]
    text = str(source)
    places = [text[: match.start()] for match in re.finditer(",|$", text)]
    places += [place.partition("=")[2] for place in places]  # a benchmark's local copy
    found = next((Path(place).expanduser() for place in places if place and is_path(place)), None)
    if found is None:
        return text
    files = sorted(found.rglob("*")) if found.is_dir() else [found]
    states = [(path, path.stat()) for path in files if path.is_file()]
    return [text, *((str(path), state.st_size, state.st_mtime_ns) for path, state in states)]


def statistics_key(cell: Cell, dtype: str | None) -> str | None:
    """What cells must agree on to share a pass of statistics; None for one that takes none, or its own.

    dtype: of the pass, None for a cell that makes none.
    """
    options = cell.options
    if dtype is None or getattr(options, "sequential", False):
        return None
    decides: Mapping[str, Any] = {
        one.name: getattr(options, one.name)
        for one in fields(CalibrationOptions)
        if not one.metadata.get("place") or one.name == "model"
    }
    return _digest(dtype, decides)
