"""The turns of one model's conversation."""

from __future__ import annotations

from quantkit.calibration.images import Decoder
from quantkit.chat.reply import HALTED, Engine, Halt, Message, Reply, Tell


class Dialogue:
    """A model and what was said so far; `decoder` opens each picture and clip once and may be shared."""

    def __init__(self, engine: Engine, decoder: Decoder, system: str | None = None) -> None:
        self.engine = engine
        self.decoder = decoder
        self.system = system
        self.turns: list[Message] = []

    def ask(self, parts: list[Message], tell: Tell, halt: Halt) -> Reply:
        """The answer to a question, which both become part of what was said; nothing does where it fails."""
        asked: Message = {"role": "user", "content": parts}
        opening = [{"role": "system", "content": [{"type": "text", "text": self.system}]}] if self.system else []
        reply = self.engine.answer([*opening, *self.turns, asked], self.decoder, tell, halt)
        if reply.ended == HALTED and not reply.text:
            return reply  # nothing was answered, so nothing was said
        thought = {"reasoning_content": reply.reasoning} if reply.reasoning else {}
        answer: Message = {"role": "assistant", "content": [{"type": "text", "text": reply.text}], **thought}
        self.turns += [asked, answer]
        return reply

    def reset(self) -> None:
        """Forget all turns; pictures that were opened are let go."""
        self.turns = []
        self.decoder.decoded.clear()
        self.decoder.clips.clear()
        self.decoder.fetched.clear()
