"""A verification report as pages that people read and files that machines read; needs no torch.

    write_html     one self-contained page          write_junit    JUnit XML for CI
    write_markdown the same tables as Markdown      write_compare  several reports on one page
    write_report   the three of them beside report.json

Input is `quantkit.verify.report.Report` alone. Every text in it may come from a stranger's checkpoint or data set, so
everything is escaped where it is set.
"""

from quantkit.report.compare import compare_rows, write_compare
from quantkit.report.files import write_report
from quantkit.report.html import to_html, write_html
from quantkit.report.junit import to_junit, write_junit
from quantkit.report.markdown import to_markdown, write_markdown

__all__ = [
    "compare_rows", "to_html", "to_junit", "to_markdown", "write_compare", "write_html", "write_junit",
    "write_markdown", "write_report",
]  # fmt: skip
