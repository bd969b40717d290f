"""What a run knows of its data: the prepared conversations, and the statistics of every block, from wherever they are.

The pass through the model, a folder kept by ``--save-stats``, or nothing, where a method looks at no data: behind one
iterator, so that the ways that quantize need not know which.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from quantkit import stats_file
from quantkit.calibration import Mix, build_from
from quantkit.errors import QuantkitError
from quantkit.output import check_target
from quantkit.statistics import BlockStatistics, CalibrationPass

if TYPE_CHECKING:
    from quantkit.calibration import Sample
    from quantkit.checkpoint import Checkpoint
    from quantkit.model import ModelMap
    from quantkit.recipe import StatisticsOptions

Progress = Callable[[str, int, int], None]
FLOAT16_MAX = 65504.0
_KEPT = ".statistics"
AnyOptions = TypeVar("AnyOptions", bound="StatisticsOptions")


class Clock:
    """Adds the seconds since the last lap to a phase."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds, self._last = seconds, time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last
        self._last = now


def gather(checkpoint: Checkpoint, options: StatisticsOptions, dtype: str, progress: Progress) -> Data:
    """Prepare the conversations, and check the statistics that were given."""
    data = Data(build_from(options, checkpoint.path, progress), checkpoint, dtype)
    if options.stats is not None:
        stats_file.check_key(options.stats.expanduser(), data.key)
    return data


class Data:
    """mix: the conversations; key: what statistics of them are statistics of."""

    def __init__(self, mix: Mix, checkpoint: Checkpoint, dtype: str) -> None:
        self.mix = mix
        self.key = stats_file.Key(checkpoint.fingerprint(), mix.fingerprint, dtype)

    @property
    def samples(self) -> list[Sample]:
        return self.mix.samples

    @property
    def tokens(self) -> int:
        return sum(sample.input_ids.numel() for sample in self.samples)


def check_statistics_folders(options: StatisticsOptions, target: Path, source: Path) -> None:
    """--save-stats and --stats name folders apart from --out."""
    for option, folder in (("--save-stats", options.save_stats), ("--stats", options.stats)):
        if folder is None:
            continue
        path = folder.expanduser().absolute()
        if path == target or path in target.parents or target in path.parents:
            raise QuantkitError(f"{option} {folder}: overlaps --out {target}; give it a folder of its own")
    if options.save_stats is not None:
        check_target(options.save_stats, options.overwrite, source=source)


def keep_statistics(options: AnyOptions, folder: Path) -> tuple[AnyOptions, Path]:
    """Options under which the statistics of a first sweep are kept, and where: a budget needs them twice.

    In ``folder``, if neither --stats nor --save-stats names a place; `drop_statistics` takes them out again.
    """
    if options.stats is not None:
        return options, options.stats
    kept = options.save_stats.expanduser() if options.save_stats else folder / _KEPT
    return replace(options, save_stats=kept), kept


def drop_statistics(folder: Path) -> None:
    """Remove what `keep_statistics` had kept in ``folder``, if anything."""
    if (folder / _KEPT).exists():
        shutil.rmtree(folder / _KEPT)


class Statistics:
    """Statistics block by block; None for each where ``data`` is None."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model_map: ModelMap,
        data: Data | None,
        options: StatisticsOptions,
        dtype: str,
        progress: Progress,
        sequential: bool = False,
    ) -> None:
        self._dtype, self._run = dtype, None
        self._found: Iterator[BlockStatistics | None]
        if data is None:
            self._found = iter([None] * len(model_map.blocks))
        elif options.stats is not None:
            self._found = stats_file.read(options.stats.expanduser(), data.key, model_map, options.device)
        else:
            self._run = CalibrationPass(
                checkpoint, model_map, data.samples, device=options.device, dtype=getattr(torch, dtype),
                sequential=sequential, progress=progress,
            )  # fmt: skip
            found = iter(self._run)
            if options.save_stats is not None:
                found = stats_file.record(options.save_stats, options.overwrite, data.key, model_map, found)
            self._found = found

    def __iter__(self) -> Iterator[BlockStatistics | None]:
        yield from self._found
        if self._run is not None and self._dtype == "float16" and self._run.abs_max > FLOAT16_MAX / 2:
            raise QuantkitError(
                f"--dtype float16: activations reach {self._run.abs_max:.0f}, too near float16's limit of "
                f"{FLOAT16_MAX:.0f}; use --dtype bfloat16"
            )

    def replace(self, state: dict[str, Tensor]) -> None:
        """Hand back the block that was just given out, as it is stored."""
        if self._run is not None and self._run.sequential:
            self._run.replace(state)
