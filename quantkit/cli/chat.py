"""`quantkit chat`: ask a variant about pictures and clips."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.cli.options import with_options
from quantkit.cli.shared import console, errors, escape, quiet_libraries
from quantkit.errors import QuantkitError
from quantkit.recipe import ASK, ChatOptions

if TYPE_CHECKING:
    from quantkit.chat import Dialogue, Engine, Reply
    from quantkit.cli.chat_view import Screen, Shown

HELP = """/image FILE   a picture for the next question (several: once for each)
/video FILE   a clip for the next question
/reset        forget what was said, and pictures that were not asked about
/quit         end; so does Ctrl-D. Ctrl-C stops an answer"""
FAILED = 2


@with_options(ChatOptions)
def chat(
    given: dict[str, Any],
    model: Annotated[
        str, typer.Argument(help="A folder, a hub id, a .gguf file or a folder of them, or tiny.", metavar="DIR")
    ],
    prompt: Annotated[
        str | None, typer.Argument(help="The question; without one the chat is interactive.", metavar="[PROMPT]")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option("--image", "-i", help="A picture: file, URL. May be repeated.", rich_help_panel=ASK),
    ] = None,
    video: Annotated[
        list[str] | None, typer.Option("--video", help="A clip: file, URL. May be repeated.", rich_help_panel=ASK)
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare", help="Another model, as DIR: both answers side by side.", metavar="REF", rich_help_panel=ASK
        ),
    ] = None,
) -> None:
    """Ask a variant about pictures and clips.

    With PROMPT one answer, else a chat whose turns are kept: one question a line, from the terminal or a pipe. Answers
    stream, as Markdown in a terminal and as plain text in a pipe. Lines that begin with / are commands: /image FILE,
    /video FILE, /reset, /quit, /help.
    """
    options = ChatOptions(**given)
    with errors.status("loading torch and transformers"):
        quiet_libraries()
        from quantkit.chat import open_engine
        from quantkit.cli.chat_view import Screen
    names = [model] if compare is None else [compare, model]
    models = _Models(names, [open_engine(name, options) for name in names], options)
    screen = Screen(console, errors)
    with models:
        if prompt is not None:
            _once(models, screen, prompt, image or [], video or [])
        elif _Loop(models, screen, image or [], video or []).run():
            raise typer.Exit(FAILED)


class _Models:
    """One model, or two that are compared, with what was said to each."""

    def __init__(self, names: list[str], engines: list[Engine], options: ChatOptions) -> None:
        from quantkit.calibration.images import Decoder
        from quantkit.chat import Dialogue

        self.engines = engines
        self.decoder = Decoder("chat")
        self.dialogues = [Dialogue(engine, self.decoder, options.system) for engine in engines]
        own = [engine.name for engine in engines]
        self.titles = own if len(set(own)) == len(own) else names

    def __enter__(self) -> _Models:
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self.engines:
            engine.close()

    def look(self, parts: list[dict[str, Any]]) -> None:
        """Open what a question refers to, before any weight is loaded or any answer begun."""
        for engine in self.engines:
            engine.look(parts, self.decoder)

    def fresh(self) -> list[Shown]:
        from quantkit.cli.chat_view import Shown

        return [Shown(_clean(title)) for title in self.titles]


def _once(models: _Models, screen: Screen, prompt: str, images: list[str], videos: list[str]) -> None:
    """One answer of each model; two are never in memory together."""
    from quantkit.chat import question

    parts = question(prompt, images, videos)
    models.look(parts)
    shown = models.fresh()
    for dialogue, one in zip(models.dialogues, shown, strict=True):
        _load(dialogue.engine)
        _answer(dialogue, parts, screen, shown, one, lambda: False)
        dialogue.engine.close()
    screen.show(shown)


def _load(engine: Engine) -> None:
    with errors.status(f"loading {escape(_clean(engine.name))}"):
        line = engine.load()
    errors.print(_clean(line), style="dim", markup=False, highlight=False, soft_wrap=True)


def _answer(
    dialogue: Dialogue,
    parts: list[dict[str, Any]],
    screen: Screen,
    shown: list[Shown],
    one: Shown,
    halt: Callable[[], bool],
) -> None:
    with screen.answering(shown, one) as tell:
        reply = dialogue.ask(parts, tell, halt)
    one.note = _note(reply)


def _note(reply: Reply) -> str:
    why = {"stop": "", "halted": "; stopped", "length": "; cut off by --max-new-tokens or the context"}[reply.ended]
    return f"{reply.tokens} tokens in {reply.seconds:.1f} s{why}"


def _clean(text: str) -> str:
    from quantkit.text import without_controls

    return " ".join(without_controls(text).split())


# ---- the chat -------------------------------------------------------------------------------------------------------


class _Loop:
    """Questions and commands, line by line, until there are no more."""

    def __init__(self, models: _Models, screen: Screen, images: list[str], videos: list[str]) -> None:
        self.models = models
        self.screen = screen
        self.images: list[str] = []
        self.videos: list[str] = []
        self.typed = sys.stdin.isatty()
        self.failed = False
        for image in images:
            self._attach("image", image)
        for video in videos:
            self._attach("video", video)

    def run(self) -> bool:
        """Whether anything failed that nobody sat before to see."""
        for engine in self.models.engines:
            _load(engine)
        if self.typed:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - input() then edits its line and remembers the last ones
            errors.print("/help shows the commands; Ctrl-D ends.", style="dim", highlight=False)
        while (line := self._read()) is not None:
            try:
                if line and not self._take(line):
                    break
            except QuantkitError as error:
                self.failed = True
                errors.print(f"[bold red]error:[/] {escape(_clean(str(error)))}", highlight=False, soft_wrap=True)
                if not self.typed and line.startswith(("/image", "/video")):
                    break  # the questions after it would be asked without the picture
        return self.failed and not self.typed

    def _read(self) -> str | None:
        """The next line, None at the end."""
        waiting = len(self.images) + len(self.videos)
        while True:
            try:
                if self.typed:
                    return self._typed_line(f"[{waiting} attached] > " if waiting else "> ")
                line = sys.stdin.readline()
                return line.rstrip("\r\n") if line else None
            except EOFError:
                errors.print()
                return None
            except UnicodeDecodeError as error:
                raise QuantkitError("standard input is not UTF-8") from error
            except KeyboardInterrupt:
                if not self.typed:
                    raise
                errors.print("\nCtrl-D or /quit ends the chat", style="dim", highlight=False)

    def _typed_line(self, prompt: str) -> str:
        if console.is_terminal:
            return input(prompt)
        errors.out(prompt, end="", highlight=False)  # the answers go elsewhere
        return input()

    def _take(self, line: str) -> bool:
        """Obey a line; False where it ends the chat."""
        command, _, rest = line.partition(" ")
        if not line.startswith("/"):
            self._ask(line)
        elif command in ("/quit", "/exit"):
            return False
        elif command == "/help":
            errors.print(HELP, markup=False, highlight=False)
        elif command == "/reset":
            for dialogue in self.models.dialogues:
                dialogue.reset()
            self.images, self.videos = [], []
            errors.print("forgotten", style="dim")
        elif command in ("/image", "/video"):
            self._attach(command[1:], _unquoted(rest))
        else:
            raise QuantkitError(f"{command}: no such command; /help shows them (a space before it makes it a question)")
        return True

    def _attach(self, kind: str, value: str) -> None:
        from quantkit.chat import reference

        if not value:
            raise QuantkitError(f"/{kind} needs a file: /{kind} FILE")
        self.models.look([{"type": kind, kind: reference(value)}])
        (self.images if kind == "image" else self.videos).append(value)

    def _ask(self, line: str) -> None:
        if not line.strip():
            return
        from quantkit.chat import question

        parts = question(line, self.images, self.videos)
        shown = self.models.fresh()
        halt = _Halt()
        try:
            for dialogue, one in zip(self.models.dialogues, shown, strict=True):
                self._answer(dialogue, parts, shown, one, halt)
        except KeyboardInterrupt:
            errors.print("stopped; this question is forgotten", style="dim")
            return
        self.images, self.videos = [], []
        self.screen.show(shown)

    def _answer(
        self, dialogue: Dialogue, parts: list[dict[str, Any]], shown: list[Shown], one: Shown, halt: _Halt
    ) -> None:
        try:
            with halt:
                _answer(dialogue, parts, self.screen, shown, one, halt)
        except QuantkitError as problem:
            if len(shown) == 1:
                raise
            one.note, self.failed = _clean(f"error: {problem}"), True  # the other model's answer is still shown


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


class _Halt:
    """Ctrl-C while an answer is made: the first ends it with its next token, the second raises."""

    def __init__(self) -> None:
        self.asked = False
        self.before: Any = None

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> None:
        self.asked = False
        self.before = signal.signal(signal.SIGINT, self._heard)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.before)

    def _heard(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
