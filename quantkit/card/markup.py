"""Markdown from Python calls: prose and cells escaped, code in fences that it cannot end, YAML that is dumped.

A repository's name, a file's name, a recorded source may hold anything, so no text gets into a card in another way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quantkit.report.figures import clean
from quantkit.report.markdown import escaped

_TICKS = re.compile("`+")


def text(value: object) -> str:
    """Prose on one line, with nothing in it that Markdown or HTML would act on."""
    return escaped(str(value))


def code(value: object) -> str:
    """A code span; as it may stand in a table, pipes are written in full only where there are none."""
    line = " ".join(clean(value).split()) or " "
    if "|" in line:  # GitHub splits a table at a pipe even inside a code span
        return text(line)
    ticks = _longest(line) + 1
    room = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{'`' * ticks}{room}{line}{room}{'`' * ticks}"


def fence(language: str, content: str) -> str:
    """A block of code; the fence is longer than any run of backticks in it."""
    marks = "`" * max(3, _longest(content) + 1)
    return f"{marks}{language}\n{clean(content).rstrip()}\n{marks}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table of cells that are Markdown already; all but the first `left` columns are set right."""
    lines = [f"| {' | '.join(headings)} |"]
    lines.append("|" + "|".join(" --- " if index < left else " ---: " for index in range(len(headings))) + "|")
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def front_matter(values: Mapping[str, Any]) -> str:
    """The YAML block that a hub reads."""
    import yaml

    kept = {name: value for name, value in values.items() if value not in (None, [], "")}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=1000)}---"


def link(words: str, address: str) -> str:
    """A link to an address that this package states itself."""
    return f"[{words}]({address})"


def _longest(content: str) -> int:
    return max((len(run) for run in _TICKS.findall(content)), default=0)
