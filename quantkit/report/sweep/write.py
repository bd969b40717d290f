"""All files of a sweep's result, each replaced at once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from quantkit.errors import QuantkitError
from quantkit.report.sweep.latex import to_latex
from quantkit.report.sweep.page import to_page
from quantkit.report.sweep.plots import write_plots
from quantkit.report.sweep.rows import SweepRow
from quantkit.report.sweep.tables import to_csv, write_parquet

logger = logging.getLogger(__name__)


def write_sweep(rows: Sequence[SweepRow], folder: str | Path, title: str) -> list[Path]:
    """Write sweep.csv, sweep.parquet, sweep.tex, sweep.html and plots/ into `folder`; return what was written.

    Raises QuantkitError without rows, for a name that two rows have, and where a file cannot be written. What is left
    out (Parquet without pyarrow, a plot without data) is said in the log.
    """
    from quantkit.verify.report import write_text

    target = Path(folder)
    _check(rows)
    texts = {"sweep.csv": to_csv(rows), "sweep.tex": to_latex(rows, title), "sweep.html": to_page(rows, title)}
    try:
        for name, text in texts.items():
            write_text(target / name, text)
        written = [target / name for name in texts]
        if write_parquet(rows, target / "sweep.parquet"):
            written.append(target / "sweep.parquet")
        (target / "plots").mkdir(exist_ok=True)
        return written + write_plots(rows, target / "plots")
    except OSError as error:
        raise QuantkitError(f"{error.filename or target}: cannot be written ({error.strerror})") from error


def _check(rows: Sequence[SweepRow]) -> None:
    if not rows:
        raise QuantkitError("sweep: no variant to report on")
    name, count = Counter(row.name for row in rows).most_common(1)[0]
    if count > 1:
        raise QuantkitError(f"sweep: two variants are called '{name}'; give each a name of its own")
