"""The requests that a model card shows, as data: the card prints them, `quantkit serve-check` sends them.

Each is a chat of one user message for `client.chat.completions.create` of the `openai` client. Greedy, short, thinking
off: what a reader gets is then what the check got. `chat_template_kwargs` is no field of OpenAI's own; transformers
serve, vLLM and llama-server all take it, and llama-server turns thinking on without it.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

MAX_TOKENS = 96
FUNCTION = "get_weather"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": FUNCTION,
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string", "description": "The city's name."}},
            "required": ["location"],
        },
    },
}


@dataclass(frozen=True)
class CardRequest:
    """One request. picture: how its picture travels, "url" or "base64"; None without one."""

    name: str
    title: str
    question: str
    picture: str | None = None
    tools: tuple[dict[str, Any], ...] = ()

    def messages(self, address: str | None = None) -> list[dict[str, Any]]:
        """The chat; `address`: the picture's http address or data URL, where the request has one."""
        if self.picture is None:
            return [{"role": "user", "content": self.question}]
        if address is None:
            raise ValueError(f"{self.name}: a picture's address is needed")
        parts = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": self.question}]
        return [{"role": "user", "content": parts}]

    def arguments(self, model: str, address: str | None = None, max_tokens: int = MAX_TOKENS) -> dict[str, Any]:
        """Keyword arguments of `client.chat.completions.create`; `model`: the name that the server gives the model."""
        return {
            "model": model,
            "messages": self.messages(address),
            "temperature": 0,
            "max_tokens": max_tokens,
            **({"tools": list(self.tools)} if self.tools else {}),
            "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
        }

    def body(self, model: str, address: str | None = None, max_tokens: int = MAX_TOKENS) -> dict[str, Any]:
        """The same as the JSON that goes to /v1/chat/completions, for curl."""
        arguments = self.arguments(model, address, max_tokens)
        return {name: value for name, value in arguments.items() if name != "extra_body"} | arguments["extra_body"]


REQUESTS = (
    CardRequest("text", "text", "How do you say circle in Chinese?"),
    CardRequest("image_url", "a picture by its address", "What is in this picture?", picture="url"),
    CardRequest("image_base64", "a picture as base64", "What is in this picture?", picture="base64"),
    CardRequest("tool_call", "a tool call", "What is the weather in Beijing?", tools=(TOOL,)),
)


def data_url(png: bytes) -> str:
    """A PNG as the data URL that stands for it in a request."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
