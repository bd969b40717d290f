"""What servers reply, in one form; their tokens as the reference's token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantkit.verify.engines.server_http import Refused
from quantkit.verify.task import Answer, Task

TOKEN_ID = "token_id:"  # vLLM's spelling of a token as its id


@dataclass(frozen=True)
class Step:
    """One generated token (None: no token of the reference's) and the most probable ones in its place."""

    token: int | None
    logp: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Generated:
    """An answer, and its steps where the server gave log-probabilities."""

    answer: Answer
    steps: list[Step] | None


class Vocabulary:
    """Token ids of the reference's tokenizer by the bytes they stand for.

    Bytes of more than one token have no id, nor has a piece of a character: servers that send text put U+FFFD there.
    """

    def __init__(self, tokenizer: Any) -> None:
        alphabet = _byte_alphabet()
        added = tokenizer.get_added_vocab()
        self.ids: dict[bytes, int | None] = {}
        for text, number in tokenizer.get_vocab().items():
            if text in added or not all(letter in alphabet for letter in text):
                spelled = text.encode()
            else:
                spelled = bytes(alphabet[letter] for letter in text)
            self.ids[spelled] = None if spelled in self.ids else number

    def find(self, entry: dict[str, Any]) -> int | None:
        """The token of an entry: its `id` (llama.cpp), "token_id:N" (vLLM), its `bytes`, or its text."""
        number, text, spelled = entry.get("id"), entry.get("token"), entry.get("bytes")
        if isinstance(number, int) and not isinstance(number, bool):
            return number
        if isinstance(text, str) and text.startswith(TOKEN_ID):
            digits = text.removeprefix(TOKEN_ID)
            return int(digits) if digits.isdigit() else None
        if isinstance(spelled, list) and spelled:
            return self.ids.get(bytes(spelled))
        return self.ids.get(text.encode()) if isinstance(text, str) and text else None


def _byte_alphabet() -> dict[str, int]:
    """The letters that byte-level BPE writes bytes with: printable bytes as themselves, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


class Reader:
    """Reads replies of OpenAI's chat API, or of Ollama's own (`native`); a malformed one is `Refused`."""

    def __init__(self, vocabulary: Vocabulary, native: bool) -> None:
        self.vocabulary = vocabulary
        self.native = native

    def check(self, reply: Any) -> None:
        """Raise `Refused` unless this is a reply with a message."""
        holder = reply if self.native else _first(reply, "choices")
        if not isinstance(holder, dict) or not isinstance(holder.get("message"), dict):
            told = reply.get("error") if isinstance(reply, dict) else None
            raise Refused(f"the reply holds no message ({str(told or reply)[:200]})")

    def prompt_ids(self, reply: dict[str, Any]) -> list[int] | None:
        """The prompt's tokens, where the server tells them (vLLM)."""
        ids = reply.get("prompt_token_ids")
        return [int(token) for token in ids] if isinstance(ids, list) else None

    def prompt_count(self, reply: dict[str, Any]) -> int | None:
        """How many tokens the prompt had, where the server tells it."""
        count = (reply.get("usage") or {}).get("prompt_tokens")
        return count if isinstance(count, int) else None

    def prompt_logprobs(self, reply: dict[str, Any]) -> list[dict[int, tuple[float, int]] | None] | None:
        """vLLM's `prompt_logprobs`: {token: (log-probability, rank)} for each of the prompt, None for the first."""
        rows = reply.get("prompt_logprobs")
        if not isinstance(rows, list):
            return None
        try:
            return [
                row and {int(token): (float(entry["logprob"]), int(entry["rank"])) for token, entry in row.items()}
                for row in rows
            ]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Refused(f"prompt_logprobs are malformed ({error!r})") from error

    def generated(self, reply: dict[str, Any], task: Task) -> Generated:
        """The answer and its steps; tokens that do not give the answer's text are not believed."""
        choice = reply if self.native else reply["choices"][0]
        message = choice["message"]
        text = str(message.get("content") or "").strip()
        finished = choice.get("done_reason" if self.native else "finish_reason") in ("stop", "tool_calls")
        steps = self._steps(choice)
        stated = choice.get("token_ids")
        tokens = [step.token for step in steps] if steps else None
        if isinstance(stated, list):
            tokens = [int(token) for token in stated]
        elif tokens is None:
            return Generated(Answer(text, None, finished), steps)
        end = next((place for place, token in enumerate(tokens) if token in task.stop_ids), len(tokens))
        kept = [token for token in tokens[:end] if token is not None]
        if len(kept) < end:
            return Generated(Answer(text, None, finished), steps)
        decoded = task.decode(kept)
        if not isinstance(stated, list) and not message.get("tool_calls") and decoded != text:
            return Generated(Answer(text, None, finished), [])
        return Generated(Answer(decoded, kept, finished), steps)

    def _steps(self, choice: dict[str, Any]) -> list[Step] | None:
        found = choice.get("logprobs")
        entries = found.get("content") if isinstance(found, dict) else found
        if not isinstance(entries, list):
            return None
        try:
            return [self._step(entry) for entry in entries]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Refused(f"its log-probabilities are malformed ({error!r})") from error

    def _step(self, entry: dict[str, Any]) -> Step:
        top: dict[int, float] = {}
        for other in entry.get("top_logprobs") or []:
            token = self.vocabulary.find(other)
            if token is not None:
                top.setdefault(token, float(other["logprob"]))
        return Step(self.vocabulary.find(entry), float(entry["logprob"]), list(top.items()))


def _first(reply: Any, name: str) -> Any:
    entries = reply.get(name) if isinstance(reply, dict) else None
    return entries[0] if isinstance(entries, list) and entries else None
