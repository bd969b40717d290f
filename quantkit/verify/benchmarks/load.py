"""Benchmarks as data, and reading one into conversations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quantkit.calibration import Conversation
from quantkit.errors import QuantkitError
from quantkit.verify.benchmarks import rows, table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark is published and how its rows read. `config` and `split` are what is taken unless asked for."""

    hub_id: str
    config: str | None
    split: str
    columns: tuple[str, ...]  # without which no row can be read
    read: Callable[[rows.Row], Iterator[Conversation]]


BENCHMARKS = {
    "MMBench": Benchmark(
        "lmms-lab/MMBench", "en", "dev", ("index", "question", "A", "B", "answer", "image"), rows.mmbench
    ),
    "OCRBench": Benchmark(
        "echo840/OCRBench", None, "test", ("dataset", "question", "question_type", "answer", "image"), rows.ocrbench
    ),
    "HallusionBench": Benchmark(
        "lmms-lab/HallusionBench",
        None,
        "image",
        ("category", "subcategory", "set_id", "figure_id", "question_id", "question", "gt_answer"),
        rows.hallusionbench,
    ),
    "MMMU": Benchmark(
        "lmms-lab/MMMU",
        None,
        "validation",
        ("id", "question", "options", "question_type", "answer", "image_1"),
        rows.mmmu,
    ),
    "RefCOCO": Benchmark("lmms-lab/RefCOCO", None, "val", ("question_id", "image", "answer", "bbox"), rows.refcoco),
    "Video-MME": Benchmark(
        "lmms-lab/Video-MME",
        "videomme",
        "test",
        ("videoID", "question_id", "duration", "question", "options", "answer"),
        rows.video_mme,
    ),
}
_BY_FOLDED = {name.casefold(): name for name in BENCHMARKS}


def is_benchmark(text: str) -> bool:
    """Whether a data argument names a benchmark: "MMMU", "mmmu:dev", "MMMU=FOLDER", "MMMU:dev=FOLDER"."""
    return text.partition("=")[0].partition(":")[0].casefold() in _BY_FOLDED


def parse_name(text: str) -> tuple[str, str | None, str | None]:
    """(name as published, split or None, local folder or None) of a data argument; raises `QuantkitError`."""
    head, _, folder = text.partition("=")
    name, _, split = head.partition(":")
    if name.casefold() not in _BY_FOLDED:
        raise QuantkitError(f"benchmark '{name}' is unknown; known: {', '.join(BENCHMARKS)}")
    return _BY_FOLDED[name.casefold()], split or None, folder or None


def load_benchmark(
    name: str, path: str | Path | None = None, split: str | None = None, limit: int | None = None
) -> list[Conversation]:
    """Read a benchmark: its first `limit` conversations, or all, each with metric, accepted answers and tags.

    `name`: see `is_benchmark`; any case. `path`: a local copy (a folder of parquet files, one such file, or what
    `save_to_disk` wrote); without it, rows are streamed from the hub. `split`: "dev", several joined by "+", or with
    a config, as in "cn/dev" (MMBench in Chinese). Raises `QuantkitError` naming benchmark, split and column.
    """
    name, named_split, named_path = parse_name(name)
    benchmark = BENCHMARKS[name]
    config, _, wanted = (split or named_split or benchmark.split).rpartition("/")
    local = path or named_path
    folder = Path(local).expanduser() if local else None
    place = table.Place(name, benchmark.hub_id, config or benchmark.config, folder)
    conversations: list[Conversation] = []
    for part in wanted.split("+"):
        for number, row in enumerate(table.read(place, part, benchmark.columns), start=1):
            if limit is not None and len(conversations) >= limit:
                break
            conversations += benchmark.read(rows.Row(row, place, part, number))
    if not conversations:
        raise QuantkitError(f"{name}: split '{wanted}' has no rows")
    log.info("%s %s: %d conversations", name, wanted, len(conversations))
    return conversations[:limit]
