"""Tool calls as models write them in text: the two forms of this family's chat templates.

json   <tool_call>{"name": "get_weather", "arguments": {"location": "Beijing"}}</tool_call>
xml    <tool_call><function=get_weather><parameter=location>Beijing</parameter></function></tool_call>
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

OPENING = "<tool_call>"
PARSERS = {"xml": "qwen3_coder", "json": "hermes"}  # vLLM's parser of each form
_BLOCK = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\s*(.*?)\s*</parameter>", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """One call; arguments: None where they are no JSON object."""

    name: str
    arguments: dict[str, Any] | None


def form_of(template: str) -> str | None:
    """ "xml" or "json", as the chat template writes calls; None where it writes none."""
    if "<function=" in template:
        return "xml"
    return "json" if OPENING in template else None


def calls_in(text: str) -> list[Call]:
    """The whole calls in a model's text, of either form; what is no such call is left out."""
    found = []
    for block in _BLOCK.findall(text):
        function = _FUNCTION.search(block)
        if function:
            found.append(Call(function[1].strip(), dict(_PARAMETER.findall(function[2]))))
        else:
            found += _of_json(block)
    return found


def parse_arguments(text: str) -> dict[str, Any] | None:
    """A call's arguments as the protocol carries them: the text of a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _of_json(block: str) -> list[Call]:
    value = parse_arguments(block)
    if value is None or not isinstance(value.get("name"), str):
        return []
    arguments = value.get("arguments")
    return [Call(value["name"], arguments if isinstance(arguments, dict) else None)]
