"""Rows of a published table through `datasets`: streamed from the hub, or from a local copy; no code of it is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError


@dataclass(frozen=True)
class Place:
    """A benchmark's table: on the hub, or in `folder` (a single parquet file counts as one)."""

    name: str
    hub_id: str
    config: str | None
    folder: Path | None


def read(place: Place, split: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows of a split, pictures left as {"bytes", "path"}. Raises `QuantkitError`, for a missing column too."""
    datasets = _library()
    try:
        table = _local(datasets, place, split) if place.folder is not None else _hub(datasets, place, split)
        features = dict(table.features or {})
        for column, feature in features.items():
            if isinstance(feature, datasets.Image):
                table = table.cast_column(column, datasets.Image(decode=False))
        checked = False
        for row in table:
            if not checked:
                _check(place, split, columns, list(features) or list(row))
                checked = True
            yield row
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = place.folder or f"{place.hub_id} on the hub"
        raise QuantkitError(
            f"{place.name}: split '{split}' of {where} cannot be read ({first}); "
            f"download it and give {place.name}=FOLDER, or name another split as {place.name}:SPLIT"
        ) from error


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise QuantkitError("benchmarks need the package datasets: pip install 'quantkit[benchmarks]'") from error
    return datasets


def _check(place: Place, split: str, wanted: tuple[str, ...], found: list[str]) -> None:
    for column in wanted:
        if column not in found:
            raise QuantkitError(
                f"{place.name}: column '{column}' is missing from split '{split}'; the table has {', '.join(found)}"
            )


def _hub(datasets: Any, place: Place, split: str) -> Any:
    return datasets.load_dataset(place.hub_id, place.config, split=split, streaming=True)


def _local(datasets: Any, place: Place, split: str) -> Any:
    folder = place.folder
    assert folder is not None
    if (folder / "dataset_dict.json").is_file():
        tables = datasets.load_from_disk(str(folder))
        if split not in tables:
            raise QuantkitError(f"{place.name}: {folder} has no split '{split}'; it has {', '.join(tables)}")
        return tables[split]
    if (folder / "state.json").is_file():
        return datasets.load_from_disk(str(folder))
    files = _parquet_files(place, folder, split)
    escaped = [re.sub(r"([*?\[])", r"[\1]", str(file)) for file in files]  # taken as patterns otherwise
    return datasets.load_dataset("parquet", data_files=escaped, split="train", streaming=True)


def _parquet_files(place: Place, folder: Path, split: str) -> list[Path]:
    """The split's files, in order: SPLIT-00000-of-00002.parquet, of the config's own folder where there is one.

    Files named otherwise hold the split where they are all there is: a folder of one split.
    """
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise QuantkitError(f"{place.name}: {folder} does not exist; give the folder of a local copy")
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise QuantkitError(f"{place.name}: {folder} holds no .parquet file and no save_to_disk copy")
    configured = [file for file in files if place.config in file.relative_to(folder).parts[:-1]]
    files = configured or files
    named = [file for file in files if re.split(r"[-.]", file.name)[0] == split]
    if named:
        return named
    prefixes = {re.split(r"-\d{5}-of-\d{5}", file.name)[0] for file in files if re.search(r"-\d{5}-of-", file.name)}
    if prefixes:
        raise QuantkitError(f"{place.name}: {folder} has no split '{split}'; it has {', '.join(sorted(prefixes))}")
    return files
