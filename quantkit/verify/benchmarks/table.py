"""Rows of a published table, streamed from the hub or from a local copy, as calibration data is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.calibration.folders import is_saved, table_files
from quantkit.calibration.hub import HubTable
from quantkit.calibration.sources import Source
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
    source = Source(
        name=f"{place.name}:{split}",
        path=place.folder,
        table=HubTable(place.hub_id, place.config, split, revision=None),
        config=place.config,
        split=split,
        columns={column: column for column in columns},
        whole=True,
    )
    try:
        _check(place, split)
        for raw in source.raw_rows():
            if raw.fault is not None:
                raise raw.fault
            yield raw.value
    except QuantkitError as error:
        raise QuantkitError(
            f"{place.name}: split '{split}' cannot be read ({error}); "
            f"give {place.name}=FOLDER, a copy of {place.hub_id}, or name another split as {place.name}:SPLIT"
        ) from error


def _check(place: Place, split: str) -> None:
    folder = place.folder
    if folder is None or folder.is_file():
        return
    if not folder.is_dir():
        raise QuantkitError(f"{folder} does not exist")
    if not is_saved(folder) and not table_files(folder, place.config, split):
        raise QuantkitError(f"{folder} holds no table and is no save_to_disk copy")
