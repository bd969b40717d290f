"""What an engine is, what it gives back, and where its reasoning ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from quantkit.calibration.images import Decoder

REASONING, ANSWER = "reasoning", "answer"
STOP, LENGTH, HALTED = "stop", "length", "halted"
THINK_END = "</think>"

Message = dict[str, Any]
Tell = Callable[[str, str], None]  # told REASONING or ANSWER, and the next piece of it
Halt = Callable[[], bool]  # asked between two tokens whether to stop


@dataclass(frozen=True)
class Reply:
    """An answer as the model wrote it."""

    text: str
    reasoning: str | None
    tokens: int
    seconds: float  # pictures and prompt included
    ended: str  # STOP: by itself; LENGTH: at the token limit; HALTED: it was stopped


class Engine(Protocol):
    """One model and what runs it. Opening reads headers and settings alone; `load` brings the weights."""

    name: str

    def load(self) -> str:
        """Load the weights; one line on what runs them, and how. Raises `QuantkitError`."""

    def look(self, parts: list[Message], decoder: Decoder) -> None:
        """Open the pictures and clips of a message; raises `QuantkitError` for one that cannot be used."""

    def answer(self, messages: list[Message], decoder: Decoder, tell: Tell, halt: Halt) -> Reply:
        """Answer the last message, told piece by piece. Raises `QuantkitError`."""

    def close(self) -> None:
        """Free what `load` took."""


class Thought:
    """Tells the reasoning that opens a text apart from the answer behind it, piece by piece."""

    def __init__(self, thinking: bool, tell: Tell) -> None:
        self.thinking = thinking
        self.tell = tell
        self.reasoning = self.answer = self.held = ""

    def feed(self, piece: str) -> None:
        """The next piece of the text."""
        if not self.thinking:
            self._answer(piece)
            return
        self.held += piece
        before, end, after = self.held.partition(THINK_END)
        if end:
            self._reason(before)
            self.thinking, self.held = False, ""
            self._answer(after)
            return
        kept = next((size for size in range(len(THINK_END) - 1, 0, -1) if before.endswith(THINK_END[:size])), 0)
        self._reason(before[: len(before) - kept])
        self.held = before[len(before) - kept :]

    def finish(self) -> None:
        """Nothing more comes."""
        self._reason(self.held)
        self.held = ""

    def _reason(self, piece: str) -> None:
        self.reasoning += piece
        if piece:
            self.tell(REASONING, piece)

    def _answer(self, piece: str) -> None:
        piece = piece if self.answer else piece.lstrip()
        self.answer += piece
        if piece:
            self.tell(ANSWER, piece)
