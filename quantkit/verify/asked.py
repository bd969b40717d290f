"""`verify` as the command line, a recipe or a sweep asks for it: options in, a report out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.errors import QuantkitError
from quantkit.recipe import LIMITS, MeasureOptions
from quantkit.recipe.common import is_path
from quantkit.verify import gates
from quantkit.verify.gates import Gate
from quantkit.verify.ggufset import is_gguf
from quantkit.verify.options import VerifyOptions
from quantkit.verify.run import Progress, verify

if TYPE_CHECKING:
    from quantkit.checkpoint import Checkpoint
    from quantkit.recipe import VerifyCommandOptions
    from quantkit.verify.report import Report


DATA_FILES = (".jsonl", ".json", ".parquet", ".csv")


def measured_files(out: Path) -> list[tuple[Path, Path]]:
    """What of a variant's folder is measured, and where the report goes: the folder itself, or each text file of GGUF
    ones, whose report has the file's name where there are several."""
    texts = [path for path in sorted(out.glob("*.gguf")) if not path.name.startswith("mmproj")]
    texts = [path for path in texts if "-of-" not in path.stem or "-00001-of-" in path.stem]
    if not is_gguf(out):
        return [(out, out / "report.json")]
    if len(texts) == 1:
        return [(texts[0], out / "report.json")]
    return [(path, out / f"report-{path.stem}.json") for path in texts]


def all_gates(options: VerifyCommandOptions, inherited: Sequence[Gate] = ()) -> tuple[Gate, ...]:
    """The limits of the options, and those of a recipe for figures and groups that the options do not name."""
    stated = [gates.parse(name, text) for name in LIMITS for text in getattr(options, name)]
    places = {(gate.name, gate.group) for gate in stated}
    return tuple(stated + [gate for gate in inherited if (gate.name, gate.group) not in places])


def check_asked(options: VerifyCommandOptions, inherited: Sequence[Gate] = ()) -> None:
    """Raise QuantkitError for options that `verify` would refuse: before the minutes that a variant takes."""
    given = {one.name: getattr(options, one.name) for one in fields(MeasureOptions)}
    VerifyOptions(engines=options.engine or ("dequantized",), gates=all_gates(options, inherited), **given)
    pieces = options.data.split(",")
    places = [",".join(pieces[: count + 1]) for count in range(len(pieces))]
    local = options.data.startswith((".", "/", "~")) or Path(pieces[0]).suffix in DATA_FILES
    if local and not any(map(is_path, places)):
        raise QuantkitError(f"--data {options.data}: no such file or folder")


def verify_as_asked(
    original: str | Path | Checkpoint,
    candidate: str | Path,
    options: VerifyCommandOptions,
    *,
    inherited: Sequence[Gate] = (),
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Run `verify` under ``options``; ``cache``: where reference passes are kept if these name no place of their own.

    Raises QuantkitError as `verify` does.
    """
    given = {one.name: getattr(options, one.name) for one in fields(MeasureOptions)}
    given["cache"] = None if options.no_cache else (options.cache or cache)
    engine = options.engine or (("llama.cpp",) if is_gguf(candidate) else ("dequantized",))
    found = all_gates(options, inherited)
    return verify(original, candidate, options.data, engine=engine, progress=progress, gates=found, **given)
