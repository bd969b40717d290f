"""What mkdocs asks while it builds the pages: parts of other files, and notes on what the tests do not run.

A line that is nothing but a link out of `docs/` to a Markdown file of the repository, such as
``[README.md, Runtimes](../README.md#runtimes)``, is replaced by that section, so that a table has one home and is read
in both places. ``<!-- not run: REASON -->`` becomes a note that readers see.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_INCLUDE = re.compile(r"^\[[^\]]+\]\(((?:\.\./)+[\w./-]+\.md)(?:#([\w-]+))?\)$", re.MULTILINE)
_NOT_RUN = re.compile(r"^( *)<!-- not run: (.*?) -->$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://)[^)\s]+\)")


def on_page_markdown(markdown: str, page: Any, **_others: Any) -> str:
    """mkdocs' hook: the page's text before it is rendered."""
    place = Path(page.file.abs_src_path).parent
    included = _INCLUDE.sub(lambda found: section((place / found[1]).resolve(), found[2]), markdown)
    return _NOT_RUN.sub(r"\1*Not run by the tests: \2.*{ .not-run }\n", included)


def section(path: Path, anchor: str | None) -> str:
    """The section of a file whose heading has ``anchor`` (all of it: None), without the heading and links in it.

    Raises ValueError for a file outside of the repository and for an anchor that it does not have.
    """
    if not path.is_relative_to(ROOT):
        raise ValueError(f"{path} is not in the repository")
    lines = path.read_text(encoding="utf-8").splitlines()
    if anchor is None:
        return _LINK.sub(_without, "\n".join(lines[1:]))
    start = next((number for number, line in enumerate(lines) if _anchor(line) == anchor), None)
    if start is None:
        raise ValueError(f"{path}: no heading #{anchor}")
    level = len(lines[start]) - len(lines[start].lstrip("#"))
    stop = next(
        (number for number in range(start + 1, len(lines)) if re.match(rf"#{{1,{level}}} ", lines[number])), len(lines)
    )
    return _LINK.sub(_without, "\n".join(lines[start + 1 : stop]))


def _anchor(line: str) -> str | None:
    """As GitHub makes it of a heading."""
    found = re.match(r"#+ (.*)", line)
    return re.sub(r"[^\w -]", "", found[1].lower()).replace(" ", "-") if found else None


def _without(found: re.Match[str]) -> str:
    """A link inside the repository has no place on the site: its words stay; a picture goes."""
    return "" if found[1] else found[2]
