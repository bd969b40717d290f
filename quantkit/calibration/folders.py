"""Which files of a folder are read, and in which order.

    manifest.jsonl                                its rows
    dataset_dict.json, state.json                 what `datasets` wrote with save_to_disk
    .parquet, else .jsonl, else .csv and .tsv     tables, those of one config and split where they are named by them
    pictures and videos                           one conversation each, with a stock prompt

Subfolders are searched, hidden ones and links to folders are not; files come in the order of their paths.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from quantkit.calibration.conversations import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from quantkit.calibration.readers import File, nearest
from quantkit.calibration.references import printable
from quantkit.calibration.rows import RawRow
from quantkit.errors import QuantkitError

MANIFEST = "manifest.jsonl"
SAVED = ("dataset_dict.json", "state.json")
TABLES = ((".parquet",), (".jsonl", ".ndjson"), (".csv", ".tsv"))
MAX_FILES = 1_000_000
SPLITS = ("train", "validation", "valid", "val", "dev", "test", "testmini")
_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}")


def files_below(folder: Path) -> list[Path]:
    """Every file of the folder and its subfolders, relative to it, sorted by path; raises beyond `MAX_FILES`."""
    found: list[Path] = []

    def fail(error: OSError) -> None:
        raise QuantkitError(f"{error.filename}: cannot be read ({error.strerror})") from error

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        base = Path(parent).relative_to(folder)
        found += [base / name for name in names if not name.startswith(".")]
        if len(found) > MAX_FILES:
            raise QuantkitError(f"{folder}: holds more than {MAX_FILES} files; name a folder inside it")
    return sorted(found, key=lambda path: path.as_posix())


def is_saved(folder: Path) -> bool:
    """Whether `datasets` wrote this folder with save_to_disk."""
    return any((folder / name).is_file() for name in SAVED)


def table_files(folder: Path, config: str | None, split: str | None) -> list[File]:
    """The tables of a folder that hold one config and split, in order; none where it holds only pictures.

    A file belongs to the split that its name begins with (train-00000-of-00002.parquet, test.jsonl) or that its folder
    is called, to the config that one of its folders is called. Without `split`, "train" or the only one is meant; files
    that name no split are read all. Raises `QuantkitError` for an unknown config or split, naming those there are.
    """
    if (folder / MANIFEST).is_file():
        chosen = [Path(MANIFEST)]
        if config or split:
            raise QuantkitError(f"{folder}: a folder with {MANIFEST} has no config and no split; leave them out")
    else:
        below = files_below(folder)
        kinds = ([path for path in below if path.suffix.lower() in suffixes] for suffixes in TABLES)
        chosen = _of_split(folder, _of_config(folder, next(filter(None, kinds), []), config), split)
    return [
        File(folder / path, printable(str(folder / path)), printable(path.as_posix()), (folder / path).parent.resolve())
        for path in chosen
    ]


def _of_config(folder: Path, paths: list[Path], config: str | None) -> list[Path]:
    if config is None or not paths:
        return paths
    of_config = [path for path in paths if config in path.parts[:-1]]
    if of_config or not any(path.parts[:-1] for path in paths):
        return of_config or paths  # a copy of one config alone names none
    known = sorted({path.parts[0] for path in paths if path.parts[:-1]})
    if set(known) <= {*SPLITS, "data"}:
        return paths
    raise QuantkitError(f"{folder}: no config '{config}'{nearest(config, known)}; it has {', '.join(known)}")


def _of_split(folder: Path, paths: list[Path], split: str | None) -> list[Path]:
    splits = {path: _split(path) for path in paths}
    known = sorted({name for name in splits.values() if name is not None})
    if not known:
        return paths  # a folder of one split, which its files do not name
    if split is None:
        if "train" not in known and len(known) > 1:
            raise QuantkitError(f"{folder}: has the splits {', '.join(known)}; choose one, as split={known[0]}")
        split = "train" if "train" in known else known[0]
    if split not in known:
        raise QuantkitError(f"{folder}: no split '{split}'{nearest(split, known)}; it has {', '.join(known)}")
    return [path for path in paths if splits[path] == split]


def _split(path: Path) -> str | None:
    """The split that a file's name, or a folder above it, tells."""
    shard = _SHARD.match(path.name)
    if shard:
        return shard["split"]
    first = re.split(r"[-._]", path.name)[0]
    return next((part for part in (first, *reversed(path.parts[:-1])) if part in SPLITS), None)


def media_rows(folder: Path, name: str) -> Iterator[RawRow]:
    """A row for each picture and each video of a folder; raises `QuantkitError` where there is none."""
    found = False
    root = folder.resolve()
    for path in files_below(folder):
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES:
            found = True
            kind = "image" if suffix in IMAGE_SUFFIXES else "video"
            yield RawRow(printable(str(folder / path)), path.as_posix(), {kind: f"./{path.as_posix()}"}, root)
    if not found:
        kinds = ", ".join(dict.fromkeys((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)))
        raise QuantkitError(f"{folder}: holds neither {MANIFEST} nor any image, video ({kinds}) or table")
