"""The rules by which an answer passes.

Kernels round differently (bfloat16, packed weights, llama.cpp's 8-bit activations), and where two words are nearly as
likely, a greedy answer may take either and go on from there. So an answer passes that is the reference's word for word,
or each of whose tokens lies, with the answer so far before it, within TOLERANCE of the reference's own choice. `tiny`'s
log-probabilities in vLLM's bfloat16 are at most 0.19 off (tests/runtimes), so choices that change places lie at most
twice that apart; of 66 held-out items at Q4_K_M in llama.cpp twelve answers differ, by at most 0.55 (one that loops, by
2.3). An answer to another picture costs 7 and more at some token. What a model itself is unsure of, the rule cannot
tell from rounding.

A tool call passes when the server gives it back as structured `tool_calls`: the function's name, and arguments that are
a JSON object and the reference's (or as near as above). A model whose reference makes no such call cannot show that a
runtime reads calls: where the answers agree the request is then NOT_SHOWN, which is no pass, else FAILED.
"""

from __future__ import annotations

import json
from typing import Protocol

from quantkit.serve.ask import Reply
from quantkit.serve.calls import OPENING, Call, calls_in, parse_arguments
from quantkit.serve.record import FAILED, NOT_SHOWN, PASSED, Outcome
from quantkit.serve.reference import Expected, Shortfall
from quantkit.serve.requests import FUNCTION, CardRequest

TOLERANCE = 1.0  # nats
QUOTED = 160  # characters of an answer, in a detail


class Judge(Protocol):
    """What knows how far an answer is from the reference; see `Reference.shortfall`."""

    def shortfall(self, name: str, text: str, finished: bool) -> Shortfall: ...


def judge(request: CardRequest, reply: Reply, expected: Expected, reference: Judge) -> Outcome:
    """One request's outcome."""
    if reply.error is not None:
        return Outcome(request.name, FAILED, reply.error)
    status, detail = (_call if request.tools else _text)(request, reply, expected, reference)
    if reply.prompt_tokens not in (None, expected.prompt_tokens):
        detail += f" (its prompt has {reply.prompt_tokens} tokens, the reference's {expected.prompt_tokens})"
    return Outcome(request.name, status, detail)


def _text(request: CardRequest, reply: Reply, expected: Expected, reference: Judge) -> tuple[str, str]:
    if reply.calls:
        return FAILED, f"a call of {reply.calls[0].name}, though no tool was offered"
    if reply.text.strip() == expected.text and reply.finished == expected.finished:
        return PASSED, f"{_quoted(reply.text)}, as the reference"
    leading = expected.raw[: len(expected.raw) - len(expected.raw.lstrip())]  # servers may strip it
    far = reference.shortfall(request.name, leading + reply.text.lstrip(), reply.finished)
    where = f"'{far.token}' lies {far.nats:.2f} nats below its '{far.choice}'"
    parts = f"{_quoted(reply.text)}; the reference: {_quoted(expected.text)}; {where}"
    return (PASSED if far.nats <= TOLERANCE else FAILED), parts


def _call(request: CardRequest, reply: Reply, expected: Expected, reference: Judge) -> tuple[str, str]:
    meant = next((call for call in calls_in(expected.raw) if call.name == FUNCTION and call.arguments), None)
    if meant is not None:
        return _meant_call(request, reply, expected, meant, reference)
    if OPENING in expected.raw:
        return NOT_SHOWN, f"the reference's own call is malformed or too long: {_quoted(expected.raw)}"
    why = "not supported by this model's answer: the reference gives no tool call either"
    if reply.calls:
        return (
            NOT_SHOWN,
            f"a call of {reply.calls[0].name} came, but the reference makes none: {_quoted(expected.text)}",
        )
    status, detail = _text(request, reply, expected, reference)
    return (NOT_SHOWN, f"{why} ({detail})") if status == PASSED else (status, detail)


def _meant_call(
    request: CardRequest, reply: Reply, expected: Expected, meant: Call, reference: Judge
) -> tuple[str, str]:
    if not reply.calls:
        how = "the call came as text, not as tool_calls" if OPENING in reply.text else "no tool_calls came"
        return FAILED, f"{how}: {_quoted(reply.text)}; the reference calls {_shown(meant)}"
    call = reply.calls[0]
    arguments = parse_arguments(call.arguments)
    if call.name != FUNCTION or arguments is None:
        return FAILED, f"{call.name}({_quoted(call.arguments)}) came; the reference calls {_shown(meant)}"
    found = Call(call.name, arguments)
    if arguments == meant.arguments:
        return PASSED, f"{_shown(found)}, as the reference"
    text = _with_arguments(expected.raw, meant, found)
    far = reference.shortfall(request.name, text, expected.finished) if text else None
    if far is not None and far.nats <= TOLERANCE:
        return PASSED, f"{_shown(found)}; the reference: {_shown(meant)}, {far.nats:.2f} nats apart"
    return FAILED, f"{_shown(found)} came; the reference calls {_shown(meant)}"


def _with_arguments(raw: str, meant: Call, found: Call) -> str | None:
    """The reference's text with the other call's values in the places of its own; None where these cannot be told."""
    assert meant.arguments and found.arguments is not None
    if meant.arguments.keys() != found.arguments.keys():
        return None
    for key, value in meant.arguments.items():
        other = found.arguments[key]
        if not isinstance(value, str) or not isinstance(other, str) or raw.count(value) != 1:
            return None
        raw = raw.replace(value, other)
    return raw


def _shown(call: Call) -> str:
    return f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})"


def _quoted(text: str) -> str:
    flat = " ".join(text.split())
    return f"'{flat}'" if len(flat) <= QUOTED else f"'{flat[:QUOTED]}...'"
