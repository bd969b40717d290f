"""How answers are shown: as Markdown that grows in a terminal, as plain text in a pipe, two of them side by side.

Nothing that a model wrote reaches the terminal with its control characters. Formulas are shown as they were written:
Markdown would take their backslashes and underscores for its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from quantkit.text import MATH, ResponseStream, normalize_response_text, segments, without_controls

REASONING = "reasoning"
SIDE_BY_SIDE = 100  # columns of a terminal from which two answers stand beside each other
REFRESH = 8  # a second
REST = 2  # lines of a terminal that a growing answer leaves alone

Tell = Callable[[str, str], None]


@dataclass
class Shown:
    """One model's answer so far; `note`: how long it took and why it ended."""

    title: str
    reasoning: str = ""
    answer: str = ""
    note: str = ""

    def add(self, kind: str, piece: str) -> None:
        """The next piece, as an engine tells it."""
        if kind == REASONING:
            self.reasoning += without_controls(piece)
        else:
            self.answer += without_controls(piece)


class Screen:
    """Where answers go: `console`; what is no answer goes to `errors`."""

    def __init__(self, console: Console, errors: Console) -> None:
        self.console = console
        self.errors = errors
        self.spinner: RenderableType | None = None

    @contextmanager
    def answering(self, shown: Sequence[Shown], current: Shown) -> Iterator[Tell]:
        """Shows `shown` while one of them, `current`, grows."""
        if self.console.is_terminal:
            from rich.live import Live

            def newest() -> RenderableType:
                return _Tail(self._view(shown), self.console.height - REST)

            with Live(console=self.console, transient=True, refresh_per_second=REFRESH, get_renderable=newest):
                yield current.add
        elif len(shown) > 1:
            yield current.add
        else:
            yield from self._written(current)

    def _written(self, current: Shown) -> Iterator[Tell]:
        """One answer in a pipe, as it comes: the reasoning apart from it, on the other stream."""
        stream = ResponseStream()

        def write(text: str) -> None:
            try:
                self.console.file.write(text)
                self.console.file.flush()
            except BrokenPipeError:  # nobody reads any more, and Python's own last flush must not fail for it
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.console.file.fileno())
                raise SystemExit(1) from None

        def tell(kind: str, piece: str) -> None:
            current.add(kind, piece)
            if kind == REASONING:
                self.errors.out(without_controls(piece), end="", highlight=False)
            else:
                write(stream.feed(without_controls(piece)))

        try:
            yield tell
        except BaseException:
            if current.answer:  # what was said so far is a line of its own
                write(stream.finish() + "\n")
            raise
        if current.reasoning:
            self.errors.out("")
        write(stream.finish() + "\n")

    def show(self, shown: Sequence[Shown]) -> None:
        """The finished answers; one in a pipe is written already."""
        if self.console.is_terminal or len(shown) > 1:
            self.console.print(self._view(shown))
        if len(shown) == 1 and shown[0].note:
            self.errors.print(shown[0].note, style="dim", markup=False, highlight=False)

    def _view(self, shown: Sequence[Shown]) -> RenderableType:
        if len(shown) == 1:
            return self._body(shown[0])
        if self.console.width >= SIDE_BY_SIDE:
            table = Table(expand=True, show_footer=True)
            for one in shown:
                table.add_column(Text(one.title), Text(one.note, style="dim"), ratio=1, overflow="fold")
            table.add_row(*(self._body(one) for one in shown))
            return table
        stacked: list[RenderableType] = []
        for one in shown:
            stacked += [Text(f"{one.title}:", style="bold"), self._body(one), Text(one.note, style="dim"), ""]
        return Group(*stacked[:-1])

    def _body(self, one: Shown) -> RenderableType:
        parts: list[RenderableType] = [Text(one.reasoning.strip() + "\n", style="dim")] if one.reasoning.strip() else []
        if not self.console.is_terminal:
            return Group(*parts, Text(normalize_response_text(one.answer)))
        if one.answer:
            from rich.markdown import Markdown

            # a link's address is shown, not hidden behind its text
            return Group(*parts, Markdown(markdown(one.answer), hyperlinks=False))
        return Group(*parts) if one.note else Group(*parts, self._spinner())

    def _spinner(self) -> RenderableType:
        """One for all answers: it turns by the time since it was first seen."""
        if self.spinner is None:
            from rich.spinner import Spinner

            self.spinner = Spinner("dots")
        return self.spinner


def markdown(answer: str) -> str:
    """An answer as Markdown with its literal line breaks and its formulas, these as code, shown as they are."""
    return "".join(_quoted(text) if kind == MATH else text for kind, text in segments(answer))


def _quoted(formula: str) -> str:
    longest = max((len(run) for run in re.findall("`+", formula)), default=0)
    if "\n" in formula:
        fence = "`" * max(3, longest + 1)
        return f"\n{fence}\n{formula}\n{fence}\n"
    ticks = "`" * (longest + 1)
    space = " " if longest else ""
    return f"{ticks}{space}{formula}{space}{ticks}"


class _Tail:
    """The last lines of something: what grows is read at its end."""

    def __init__(self, whole: RenderableType, height: int) -> None:
        self.whole = whole
        self.height = max(height, 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self.whole, options.update(height=None), pad=False)
        for line in lines[-self.height :]:
            yield from line
            yield Segment.line()
