"""Rows through the library `datasets`: streamed from the hub, or from a folder that it wrote with save_to_disk.

Nothing of a data set's own code is run, its pictures and videos are left as the bytes they are, and of the hub only the
rows that are read are fetched. Every error of the libraries below becomes one line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.calibration.readers import check_columns, nearest
from quantkit.calibration.references import printable
from quantkit.calibration.rows import RawRow
from quantkit.errors import QuantkitError

_COMMIT = re.compile(r"[0-9a-f]{40}\Z")


@dataclass(frozen=True)
class HubTable:
    """One split of a data set on the hub."""

    id: str
    config: str | None
    split: str
    revision: str | None  # a branch, a tag or a commit
    known_configs: tuple[str, ...] = ()  # for messages, where the hub cannot be asked

    @property
    def name(self) -> str:
        return ":".join(filter(None, (self.id, self.config, self.split)))


def hub_rows(table: HubTable, columns: dict[str, str]) -> Iterator[RawRow]:
    """The rows of a split, streamed; raises `QuantkitError` (offline, unknown id, config, split, column)."""
    datasets = _library(table.name)

    def load() -> Any:
        return datasets.load_dataset(table.id, table.config, split=table.split, revision=table.revision, streaming=True)

    yield from _rows(datasets, load, table.name, columns, None, table.id, lambda error: _hub_fault(table, error))


def saved_rows(folder: Path, name: str, split: str | None, columns: dict[str, str]) -> Iterator[RawRow]:
    """The rows of a folder that save_to_disk wrote, memory-mapped."""
    datasets = _library(str(folder))

    def load() -> Any:
        # lazily: a cast of the mapped table would write a copy of it
        return datasets.load_from_disk(str(_split_folder(folder, split))).to_iterable_dataset()

    def fault(error: BaseException) -> QuantkitError:
        return QuantkitError(f"{folder}: cannot be read as a data set saved by `datasets` ({_first_line(error)})")

    yield from _rows(datasets, load, name, columns, folder, "", fault)


def _split_folder(folder: Path, split: str | None) -> Path:
    """The folder of one split, if several were saved."""
    if not (folder / "dataset_dict.json").is_file():
        return folder
    known = json.loads((folder / "dataset_dict.json").read_bytes())["splits"]
    wanted = split or ("train" if "train" in known else known[0] if len(known) == 1 else None)
    if wanted is None or wanted not in known:
        lacks = f"no split '{wanted}'{nearest(wanted, known)}" if wanted else "several splits, choose one"
        raise QuantkitError(f"{folder}: {lacks}; it has {', '.join(known)}")
    return folder / wanted


def commit_of(table: HubTable) -> str | None:
    """The commit that a revision means today; None where the hub cannot be asked."""
    if table.revision and _COMMIT.match(table.revision):
        return table.revision
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(table.id, revision=table.revision, timeout=10).sha
    except _errors():
        return None


def _rows(
    datasets: Any,
    load: Callable[[], Any],
    name: str,
    columns: dict[str, str],
    folder: Path | None,
    hub_id: str,
    fault: Callable[[BaseException], QuantkitError],
) -> Iterator[RawRow]:
    root = folder.resolve() if folder is not None else None
    where = printable(str(folder)) if folder is not None else name
    errors = _errors()
    number = 0
    try:
        table = _undecoded(datasets, load())
        if table.features:
            check_columns(where, columns, list(table.features))
        for number, value in enumerate(table, start=1):
            if number == 1 and not table.features:
                check_columns(where, columns, list(value))
            row = value if root is not None else _fetched(value, f"hf://datasets/{hub_id}@")
            yield RawRow(f"{where}:{number}", f"{name}:{number}", row, root)
    except errors as error:
        if number:
            raise QuantkitError(f"{fault(error)}, after row {number}") from error
        raise fault(error) from error


def _undecoded(datasets: Any, table: Any) -> Any:
    """The table with pictures, videos and sounds as {"bytes", "path"}."""
    for column, feature in dict(table.features or {}).items():
        plain = _plain(datasets, feature)
        if plain != feature:
            table = table.cast_column(column, plain)
    return table


def _plain(datasets: Any, feature: Any) -> Any:
    media = tuple(getattr(datasets, kind) for kind in ("Image", "Video", "Audio") if hasattr(datasets, kind))
    if isinstance(feature, media):
        return type(feature)(decode=False)
    if isinstance(feature, dict):
        return {key: _plain(datasets, value) for key, value in feature.items()}
    if isinstance(feature, list):
        return [_plain(datasets, value) for value in feature]
    inner = getattr(feature, "feature", None)  # List, LargeList, Sequence
    if inner is None:
        return feature
    plain = _plain(datasets, inner)
    return feature if plain == inner else type(feature)(plain)


def _fetched(value: Any, place: str) -> Any:
    """The row with the bytes of files that lie beside it on the hub (data sets that are folders of pictures)."""
    if isinstance(value, dict):
        path = value.get("path")
        if value.get("bytes") is None and isinstance(path, str) and path.startswith(place):
            from huggingface_hub import HfFileSystem

            return {"bytes": HfFileSystem().cat_file(path), "path": path}
        return {key: _fetched(inner, place) for key, inner in value.items()}
    return [_fetched(inner, place) for inner in value] if isinstance(value, list) else value


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise QuantkitError(f"{name}: needs the library datasets: pip install 'quantkit[data]'") from error
    return datasets


def _errors() -> tuple[type[BaseException], ...]:
    """What `datasets` and the layers below it raise: OSError for the network, ValueError for configs and pyarrow, ...

    The base of the hub's HTTP error is that of all errors of the HTTP library, which differs by version.
    """
    from huggingface_hub.errors import HfHubHTTPError

    known = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError, EOFError)
    return (*known, *HfHubHTTPError.__bases__)


def _hub_fault(table: HubTable, error: BaseException) -> QuantkitError:
    """One line about what the hub or the library said, with the nearest of the names that it lists."""
    said = _first_line(error)
    listed = _names(str(error))
    known = listed or list(table.known_configs)
    kind = type(error).__name__
    if "BuilderConfig" in said or "Config name is missing" in said:
        if table.config is None:
            return QuantkitError(
                f"{table.id}: choose a config, as config={known[0] if known else 'NAME'}; {_few(known)}"
            )
        return QuantkitError(f"{table.id}: no config '{table.config}'{nearest(table.config, known)}; {_few(known)}")
    if "Bad split" in said or "Unknown split" in said:
        return QuantkitError(f"{table.id}: no split '{table.split}'{nearest(table.split, listed)}; {_few(listed)}")
    if "zstd" in said.lower() or "zst" in said.lower().split():
        return QuantkitError(f"{table.id}: its files are compressed with zstd: pip install 'quantkit[data]' ({said})")
    if kind in ("DatasetNotFoundError", "RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError"):
        return QuantkitError(
            f"{table.id}: not on the hub, not public, or without revision '{table.revision or 'main'}' ({said}); "
            "log in with `hf auth login`, or give a local copy as path=FOLDER"
        )
    return QuantkitError(f"{table.name}: the hub cannot be read ({kind}: {said}); give a local copy as path=FOLDER")


def _names(message: str) -> list[str]:
    """The names that a message of `datasets` lists: Available: ['a', 'b']."""
    inside = re.findall(r"\[([^\]]*)\]", message.replace("\n", " "))
    return re.findall(r"'([^']+)'", inside[-1]) if inside else []


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:60])
    return f"it has {shown}{', ...' if len(names) > 60 else ''}" if names else "see its page on the hub"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
