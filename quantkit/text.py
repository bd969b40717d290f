r"""Text that a model wrote, made fit to be shown: literal ``\n`` as line breaks, no control characters.

The published model's own post-processing is not available here; the rule is ours.

1. ``\n`` and ``\r\n``, written out as a backslash and a letter, become one line break. ``\r`` alone and ``\t`` stay:
   they begin too many words of LaTeX and of paths (``\rho``, ``\theta``, ``C:\temp``), and a tab says little here.
2. Nothing changes inside fenced code, inline code, ``$...$``, ``$$...$$``, ``\(...\)`` and ``\[...\]``.
3. Nothing changes where the letters after the backslash are a LaTeX command (``\nabla``, ``\neq``, ``\nu``), where
   two or more backslashes stand together (``\\n`` is an escaped one), and in Windows paths (``C:\new``,
   ``\\host\notes``).

Regions are Markdown's, as CommonMark has them: a fence opens at the beginning of a line and lasts to its closing one
or to the end of the text; inline code ends at a run of as many backticks, before a blank line; a formula of one ``$``
opens before and closes behind a character that is no space, is not followed by a digit (``$5 and $6`` are prices),
and holds no blank line. A literal line break counts as the end of a line there too, so the rule applied twice is the
rule applied once. A path goes on behind ``\n`` where a small letter follows (``C:\data\new``) and ends where none does
(``C:\data\nThe file``); ``\n`` behind a relative path is taken for a line break. These are guesses where both are
meant.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

TEXT, CODE, MATH = "text", "code", "math"

# LaTeX, amsmath and amssymb commands that begin with n, without it
_COMMANDS = (
    "abla|atural|cong|e|earrow|eg|egmedspace|egthickspace|egthinspace|eq|ewcommand|ewcounter|ewenvironment|ewlength|"
    "ewline|ewpage|ewtheorem|exists|geq|geqq|geqslant|gtr|i|icefrac|leftarrow|Leftarrow|leftrightarrow|Leftrightarrow|"
    "leq|leqq|leqslant|less|mid|obreak|ocite|oindent|olimits|olinebreak|onumber|opagebreak|orm|ormalfont|ormalsize|ot|"
    "otag|otin|parallel|prec|preceq|rightarrow|Rightarrow|shortmid|shortparallel|sim|subset|subseteq|subseteqq|succ|"
    "succeq|supset|supseteq|supseteqq|triangleleft|trianglelefteq|triangleright|trianglerighteq|u|ull|umber|"
    "umberwithin|vdash|vDash|Vdash|VDash|warrow"
)
_BREAK = rf"(?<!\\)(?:\\r)?\\n(?!(?:{_COMMANDS})(?![A-Za-z]))"
_LINE = rf"(?:\n|{_BREAK})"
# a name in a path; it does not begin where a line break is meant
_NAME = (
    r"(?:\\(?!(?:r\\)?n)|(?<![.,;!?])(?<!(?<!x86)\))\\(?=n[a-z_]))"
    r"(?:Program Files(?: \(x86\))?|[^\\/:*?\"<>|\s`$]*)"
)

BREAK = re.compile(_BREAK)
DRIVE = re.compile(rf"[A-Za-z]:(?:{_NAME})+")
HOST = re.compile(rf"\\\\[\w.$-]+(?:{_NAME})+")
SPECIAL = re.compile(r"[\\`$\n]|(?<![A-Za-z0-9])[A-Za-z]:(?:\\|\Z)|(?<![A-Za-z0-9])[A-Za-z]\Z")
DRIVE_BEGINS = re.compile(r"[A-Za-z]:?\Z")
RUN = {mark: re.compile(re.escape(mark) + "+") for mark in "`\\"}
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
FENCE_BEGINS = re.compile(r" {0,3}(?:`*|~*)\Z")
INFO = {"`": re.compile(rf"(?:(?!{_BREAK})[^`\n])*"), "~": re.compile(rf"(?:(?!{_BREAK})[^\n])*")}
LINE = re.compile(_LINE)
BLANK_LINE = r"\n[ \t]*\n"
CODE_ENDS = re.compile(rf"`+|{BLANK_LINE}|\n(?= {{0,3}}(?:```|~~~))")
DOLLAR_ENDS = re.compile(rf"(?P<blank>{_LINE}[ \t]*{_LINE})|\\[^\n]|[$`]")
MATH_ENDS = {
    "$$": re.compile(rf"\\.|(?P<end>\$\$)|(?P<none>{BLANK_LINE})", re.DOTALL),
    r"\(": re.compile(rf"\\\\|(?P<end>\\\))|(?P<none>\\\(|{BLANK_LINE})"),
    r"\[": re.compile(rf"\\\\|(?P<end>\\\])|(?P<none>\\\[|{BLANK_LINE})"),
}
# characters behind a decision that could still change it: the longest command, "Program Files (x86)" and some more
MARGIN = 32


def normalize_response_text(text: str) -> str:
    r"""The text with literal ``\n`` and ``\r\n`` as line breaks, by the rule at the top of this file.

    Text without a backslash comes back as it is, and a second call changes nothing.
    """
    return "".join(piece for _, piece in segments(text)) if "\\" in text else text


def segments(text: str) -> Iterator[tuple[str, str]]:
    """The normalized text in pieces, each with its kind: TEXT, CODE or MATH (with their delimiters)."""
    scanner = Scanner()
    scanner.text = text
    yield from scanner.run(final=True)


class ResponseStream:
    """`normalize_response_text` for a text that arrives in pieces, cut anywhere: what is given back adds up to it.

    Text is held back until it is settled what it is: a formula or code until it ends.
    """

    def __init__(self) -> None:
        self.scanner = Scanner()

    def feed(self, piece: str) -> str:
        """What is settled with this piece."""
        self.scanner.text += piece
        return "".join(text for _, text in self.scanner.run(final=False))

    def finish(self) -> str:
        """The rest."""
        return "".join(text for _, text in self.scanner.run(final=True))


def without_controls(text: str) -> str:
    """The text without control characters but line break and tab: none of it can steer a terminal.

    A carriage return before a line break goes with the others. Direction overrides go as well: they show what is not
    there.
    """
    return "".join(letter for letter in text if letter in "\n\t" or not _steers(letter))


def _steers(letter: str) -> bool:
    overrides = "\u202a" <= letter <= "\u202e" or "\u2066" <= letter <= "\u2069"
    return overrides or unicodedata.category(letter) in ("Cc", "Cs")


@dataclass(frozen=True)
class _Unit:
    """A piece of the text: its kind, its end, what stands for it if that is something else, and how far was looked."""

    kind: str
    end: int
    seen: int
    instead: str | None = None


class Scanner:
    """Goes through a text once, unit by unit; `text` may grow between two runs that are not final."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.line_begins = True
        self.final = False

    def run(self, final: bool) -> Iterator[tuple[str, str]]:
        """The units that are settled, as (kind, text)."""
        self.final = final
        while self.at < len(self.text):
            unit = self.unit()
            if unit is None or (not final and unit.seen + MARGIN > len(self.text) and unit.seen != self.at):
                return
            shown = self.text[self.at : unit.end] if unit.instead is None else unit.instead
            self.at, self.line_begins = unit.end, shown.endswith("\n")
            yield unit.kind, shown

    def unit(self) -> _Unit | None:
        """The unit that begins here; None where more text is needed. `seen` equal to `at`: settled whatever follows."""
        text, at = self.text, self.at
        if self.line_begins:
            if not self.final and FENCE_BEGINS.match(text, at):
                return None
            fence = self.fence()
            if fence is not None:
                return fence
        if text[at] == "`":
            return self.inline_code()
        if text[at] == "$":
            return self.math("$$") if text.startswith("$$", at) else self.dollars()
        if text[at] == "\\":
            return self.backslash()
        if text[at] == "\n":
            return _Unit(TEXT, at + 1, at)
        return self.plain()

    def plain(self) -> _Unit | None:
        """A path with its drive, or what comes before the next character that may mean something."""
        text, at = self.text, self.at
        if self.line_begins or not text[at - 1].isalnum():
            if not self.final and DRIVE_BEGINS.match(text, at):
                return None
            path = DRIVE.match(text, at)
            if path is not None or text[at + 1 : at + 3] == ":\\":
                end = path.end() if path else at + 2
                return _Unit(TEXT, end, end)
        special = SPECIAL.search(text, at + 1)
        return _Unit(TEXT, special.start() if special else len(text), at)

    # ---- code ----

    def fence(self) -> _Unit | None:
        """The fenced code that begins at this line, to the end of its closing line or of the text."""
        opening = self.opening(self.at)
        if opening is None:
            return None
        mark, info_end = opening
        first = LINE.match(self.text, info_end)
        if first is None:
            return _Unit(CODE, info_end, len(self.text))
        # lines of a fence are real ones, unless its first line ends with a literal break
        lines = _LINE if first[0] != "\n" else r"\n"
        closing = re.compile(rf"{lines} {{0,3}}{mark[0]}{{{len(mark)},}}[ \t]*(?={_LINE}|\Z)")
        found = closing.search(self.text, info_end)
        if found is None:
            return _Unit(CODE, len(self.text), len(self.text))
        return _Unit(CODE, found.end(), found.end())

    def opening(self, at: int) -> tuple[str, int] | None:
        """The mark of a fence that opens at the beginning of a line, and where its line ends."""
        mark = FENCE.match(self.text, at)
        if mark is None:
            return None
        info = INFO[mark[1][0]].match(self.text, mark.end())
        assert info is not None
        ends = info.end() == len(self.text) or LINE.match(self.text, info.end())
        return (mark[1], info.end()) if ends else None

    def inline_code(self) -> _Unit | None:
        text, at = self.text, self.at
        begin = self.run_of("`")
        for found in CODE_ENDS.finditer(text, begin):
            if found[0].startswith("`"):
                if len(found[0]) == begin - at:
                    return _Unit(CODE, found.end(), found.end())
            elif found[0] != "\n":
                return _Unit(TEXT, begin, found.end())
            elif fence := self.opening(found.end()):
                return _Unit(TEXT, begin, fence[1])
        return _Unit(TEXT, begin, len(text))

    # ---- formulas ----

    def dollars(self) -> _Unit | None:
        text, at = self.text, self.at
        if at + 1 < len(text) and text[at + 1].isspace():
            return _Unit(TEXT, at + 1, at + 2)
        for found in DOLLAR_ENDS.finditer(text, at + 1):
            if found[0] == "$":
                followed = text[found.end() : found.end() + 1]
                closes = not text[found.start() - 1].isspace() and not followed.isdigit()
                return _Unit(MATH, found.end(), found.end()) if closes else _Unit(TEXT, at + 1, found.end())
            if found[0] == "`" or found["blank"]:
                return _Unit(TEXT, at + 1, found.end())
        return _Unit(TEXT, at + 1, len(text))

    def math(self, opening: str) -> _Unit:
        begin = self.at + len(opening)
        for found in MATH_ENDS[opening].finditer(self.text, begin):
            if found["end"]:
                return _Unit(MATH, found.end(), found.end())
            if found["none"]:
                return _Unit(TEXT, begin, found.end())
        return _Unit(TEXT, begin, len(self.text))

    # ---- escapes ----

    def backslash(self) -> _Unit:
        text, at = self.text, self.at
        end = self.run_of("\\")
        if end > at + 1:
            begins = self.line_begins or text[at - 1] in " \t\"'(["
            host = HOST.match(text, at) if begins else None
            end = host.end() if host else end
            return _Unit(TEXT, end, end)
        if text[at : at + 2] in MATH_ENDS:
            return self.math(text[at : at + 2])
        literal = BREAK.match(text, at)
        if literal is not None:
            return _Unit(TEXT, literal.end(), literal.end(), "\n")
        end = at + 1 if text[at + 1 : at + 2] in ("", "\n") else at + 2
        return _Unit(TEXT, end, end)

    def run_of(self, mark: str) -> int:
        """Where the run of one character ends that begins here."""
        found = RUN[mark].match(self.text, self.at)
        assert found is not None
        return found.end()
