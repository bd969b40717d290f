"""All files of one report, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.errors import QuantkitError
from quantkit.report.html import write_html
from quantkit.report.junit import write_junit
from quantkit.report.markdown import write_markdown

if TYPE_CHECKING:
    from quantkit.verify.report import Report


def write_report(result: Report, target: Path, junit: Path | None = None) -> None:
    """``target`` (.json), and .md and .html of the same name; ``junit``: gates and checks as JUnit XML.

    Raises QuantkitError naming the file that cannot be written.
    """
    try:
        result.save(target)
        write_markdown(result, target.with_suffix(".md"))
        write_html(result, target.with_suffix(".html"))
        if junit is not None:
            write_junit(result, junit)
    except OSError as error:
        raise QuantkitError(
            f"{error.filename or target}: cannot be written ({error.strerror}); see --report"
        ) from error
