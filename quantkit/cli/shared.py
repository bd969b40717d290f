"""What all commands share: the two consoles, progress bars, and words for sizes."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from quantkit.recipe import CalibrationOptions

console = Console(stderr=False, emoji=False)  # ":train:" in a path or a text stays what it is
errors = Console(stderr=True, emoji=False)


def quiet_libraries() -> None:
    """Notes of transformers and bitsandbytes on optional kernels are no news to somebody who quantizes."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("bitsandbytes", "optimum", "torch.utils._pytree", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # between libraries
    import transformers

    transformers.utils.logging.disable_progress_bar()


@contextmanager
def progress() -> Iterator[Any]:
    """A bar a phase; phases with names of the form "layer 3" share one."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=errors, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            key = what.split(" ")[0]
            if key not in tasks:
                tasks[key] = bars.add_task(what, total=total)
            bars.update(tasks[key], description=what, completed=done, total=total)

        yield report


def check_data(options: CalibrationOptions) -> None:
    """Raise QuantkitError where a named source of a dry run is not there; no row is read."""
    plain = type(options)(model=options.model)
    if (options.calib, options.eval_data) != (plain.calib, plain.eval_data):
        quiet_libraries()
        from quantkit.calibration.mix import check_sources

        check_sources(options)


def stop_behind(error: BaseException | None) -> KeyboardInterrupt | SystemExit | None:
    """Ctrl-C, or the exit that a signal asked for, behind an error: click turns the former into its own, and torch may
    stumble over either while it unwinds."""
    while error is not None and not isinstance(error, (KeyboardInterrupt, SystemExit)):
        error = error.__cause__ or error.__context__
    return error


def megabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def escape(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split()))


def default_cache() -> Path:
    """$QUANTKIT_CACHE, else $XDG_CACHE_HOME/quantkit, else ~/.cache/quantkit."""
    stated = os.environ.get("QUANTKIT_CACHE")
    if stated:
        return Path(stated).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "quantkit"
