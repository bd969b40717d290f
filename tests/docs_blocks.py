"""The fenced blocks of the documentation's pages, and how each is to be held to account.

What stands in HTML comments right above a fence says how (the page shows the first as a note):

    <!-- not run: REASON -->   a command that needs a hub, a GPU, a server: its options are checked, it is not run
    <!-- slow -->              run, but only where slow tests are
    <!-- exit: 3 -->           the exit code that the block's last command has

``bash`` and ``python`` blocks run in the order of the page, in one folder for all pages. A ``text`` block right behind
one shows its output: its lines must be among the output's, in that order; "…" stands for anything. ``yaml`` blocks with
a title are files that later commands read. ``<!-- needs: PAGE -->`` on a line of its own: PAGE runs before.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^( *)(`{3,})([\w-]*)(.*)$")
_MARK = re.compile(r"^\s*<!-- (not run|slow|exit)(?:: (.*?))? -->\s*$")
_NEEDS = re.compile(r"^<!-- needs: (\S+) -->$", re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`(quantkit [^`]+)`(?!`)")


@dataclass
class Block:
    """kind: the fence's language; line: of its first line; marks: by name; output: the text that stands behind it."""

    page: Path
    line: int
    kind: str
    title: str | None
    text: str
    marks: dict[str, str] = field(default_factory=dict)
    output: str | None = None

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.kind in ("bash", "python") and "not run" not in self.marks

    def commands(self) -> list[str]:
        """The lines of a shell block, continued ones joined, without comments."""
        joined = self.text.replace("\\\n", " ")
        return [line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found: list[Block] = []
    marks: dict[str, str] = {}
    follows = False  # nothing but white space since the block before
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), start=1))
    for number, line in lines:
        fence = _FENCE.match(line)
        if fence is None:
            mark = _MARK.match(line)
            if mark:
                marks[mark[1]] = mark[2] or ""
            elif line.strip():
                marks, follows = {}, False
            continue
        indent, ticks, kind, rest = fence.groups()
        body = []
        for _, inner in lines:
            if inner.strip() == ticks:
                break
            body.append(inner.removeprefix(indent))
        title = re.search(r'title="([^"]+)"', rest)
        made = Block(page, number + 1, kind, title[1] if title else None, "\n".join(body) + "\n", marks)
        if kind == "text" and follows and found and found[-1].kind in ("bash", "python"):
            found[-1].output = made.text
        found.append(made)
        marks, follows = {}, True
    return found


def needs(page: Path) -> list[Path]:
    """The pages whose blocks run before this one's."""
    return [DOCS / name for name in _NEEDS.findall(page.read_text(encoding="utf-8"))]


def spans(page: Path) -> list[str]:
    """Commands that stand in the text, between single backticks."""
    return [" ".join(found.split()) for found in _SPAN.findall(_without_fences(page.read_text(encoding="utf-8")))]


def _without_fences(text: str) -> str:
    return re.sub(r"^( *)(`{3,}).*?^ *\2$", "", text, flags=re.MULTILINE | re.DOTALL)


def words(command: str) -> list[list[str]]:
    """The commands of a line (between ``&&``, ``|`` and ``;``), each in words; redirections are left out."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    parts: list[list[str]] = [[]]
    skip = False
    for word in lexer:
        if word in ("&&", "||", "|", ";"):
            parts.append([])
        elif word in (">", ">>", "<", "2>"):
            skip = True
        elif skip:
            skip = False
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


def missing_line(shown: str, output: str) -> str | None:
    """The first line of ``shown`` that ``output`` does not have in its place; None where it has all."""
    rest = [_plain(line) for line in output.splitlines()]
    for line in filter(None, map(_plain, shown.splitlines())):
        pattern = ".*".join(re.escape(part.strip()) for part in line.split("…"))
        place = next((at for at, found in enumerate(rest) if re.search(pattern, found)), None)
        if place is None:
            return line
        rest = rest[place + 1 :]
    return None


def _plain(line: str) -> str:
    """A line without a table's borders and with single spaces."""
    return " ".join(re.sub(r"[│┃─━┏┓┗┛┌┐└┘┡┩├┤┼╇╈┬┴╭╮╰╯]", " ", line).split())
