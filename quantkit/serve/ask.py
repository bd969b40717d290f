"""The card's requests through the `openai` client, one after the other, to a server on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quantkit.errors import QuantkitError
from quantkit.serve.requests import CardRequest, data_url
from quantkit.serve.runtimes import Running

MISSING = "serve-check: needs the package openai; run pip install 'quantkit[serve]'"


@dataclass(frozen=True)
class ReplyCall:
    """A structured tool call; arguments as they came, which should be the text of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Reply:
    """A server's answer, or why there is none. finished: by the model itself, not by the token limit."""

    text: str = ""
    calls: tuple[ReplyCall, ...] = ()
    finished: bool = True
    prompt_tokens: int | None = None
    error: str | None = None


def check_client() -> None:
    """Raise `QuantkitError` where the client is missing."""
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise QuantkitError(MISSING) from error


def ask(
    running: Running,
    requests: Sequence[CardRequest],
    address: str,
    png: bytes,
    timeout: float,
    tick: Callable[[], None],
) -> list[Reply | None]:
    """A reply for each request; None for those after the server's end. `address`: the picture's."""
    import openai

    replies: list[Reply | None] = []
    transport = openai.DefaultHttpxClient(trust_env=False)  # no proxy before this machine
    with openai.OpenAI(
        base_url=f"{running.url}/v1", api_key=running.key, timeout=timeout, max_retries=0, http_client=transport
    ) as client:
        for request in requests:
            if running.server.ended():
                replies.append(None)
                continue
            picture = {"url": address, "base64": data_url(png)}.get(request.picture or "")
            replies.append(_one(client, request, running, picture, timeout))
            tick()
    return replies


def _one(client: object, request: CardRequest, running: Running, picture: str | None, timeout: float) -> Reply:
    import openai

    assert isinstance(client, openai.OpenAI)
    try:
        found = client.chat.completions.create(**request.arguments(running.model, picture))
        choice = found.choices[0]
        calls = [call.function for call in choice.message.tool_calls or [] if call.type == "function"]
        return Reply(
            text=choice.message.content or "",
            calls=tuple(ReplyCall(call.name or "", call.arguments or "") for call in calls),
            finished=choice.finish_reason != "length",
            prompt_tokens=found.usage.prompt_tokens if found.usage else None,
        )
    except openai.APIStatusError as error:
        return Reply(error=f"HTTP {error.status_code}: {_short(error.response.text)}")
    except openai.APITimeoutError:
        return Reply(error=f"no answer within {timeout:.0f} s")
    except openai.APIConnectionError as error:
        if running.server.ended(within=2.0):
            return Reply(error=f"the server ended at this request; {running.server.words()}")
        return Reply(error=f"no answer: {_short(str(error.__cause__ or error))}")
    except (openai.OpenAIError, AttributeError, IndexError, TypeError, ValueError) as error:
        return Reply(error=f"no answer of OpenAI's form: {_short(str(error))}")  # the client checks no types


def _short(text: str) -> str:
    return " ".join(text.split())[:300]
