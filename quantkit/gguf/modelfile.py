"""An Ollama Modelfile beside the GGUF files: the files, the prompt as a Go template, stops, sampling.

Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.md; its templates are Go's text/template over
`.Messages` (`.Role`, `.Content`), `.Think` and `.IsThinkSet`.

A chat template is a program and cannot be translated. What it writes around a system, a user and an assistant turn is
found by rendering it, put into a Go template, and then checked: a dozen conversations must come out of both alike, else
there is no Modelfile. Left out are tools, and pictures, whose place Ollama chooses. A chat template that trims white
space off a message does so here no more.

Ollama itself was never run on this: the template was checked with Go's own text/template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Checkpoint
from quantkit.errors import QuantkitError
from quantkit.gguf.metadata import read_json
from quantkit.gguf.tokenizer import chat_templates, stop_ids
from quantkit.model import build_map

# generation_config.json -> PARAMETER
_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
CONTEXT = 8192  # a picture in nine slices takes 640 tokens in 16x mode and 2560 in 4x; Ollama reserves all of it
_TURNS = ("SYSTEM TEXT", "USER ONE", "ANSWER ONE", "USER TWO", "ANSWER TWO", "USER THREE")

Message = Mapping[str, str]


@dataclass(frozen=True)
class Prompt:
    """What a chat template writes: before and after each role's text, and to open an answer.

    openings: by `enable_thinking`, None where the caller does not say.
    """

    around: Mapping[str, tuple[str, str]]
    openings: Mapping[bool | None, str]

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        """The prompt up to where the answer begins."""
        turns = (self.around[message["role"]] for message in messages)
        texts = [before + message["content"] + after for message, (before, after) in zip(messages, turns, strict=True)]
        return "".join(texts) + self.openings[thinking]

    def go_template(self) -> str:
        """The same as a Go template. An assistant's turn that ends the chat stays open: the answer goes on from it."""
        branches = []
        for role, (before, after) in self.around.items():
            closing = f"{{{{ if not $last }}}}{_go(after)}{{{{ end }}}}" if role == "assistant" else _go(after)
            branches.append(f'if eq .Role "{role}" }}}}{_go(before)}{{{{ .Content }}}}{closing}')
        turns = "{{ " + "{{ else ".join(branches) + "{{ end }}"
        last = "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        opening = f'{{{{ if and $last (ne .Role "assistant") }}}}{self._go_opening()}{{{{ end }}}}'
        return f"{{{{ range $i, $_ := .Messages }}}}{last}{turns}{opening}{{{{ end }}}}"

    def _go_opening(self) -> str:
        thinking, plain, default = (_go(self.openings[key]) for key in (True, False, None))
        if thinking == plain:
            return plain
        condition = "$.Think" if default == plain else "or $.Think (not $.IsThinkSet)"
        return f"{{{{ if {condition} }}}}{thinking}{{{{ else }}}}{plain}{{{{ end }}}}"


def modelfile(checkpoint: Checkpoint, text_file: str, mmproj_file: str | None = None, context: int = CONTEXT) -> str:
    """The text of a Modelfile for GGUF files that lie beside it.

    Raises QuantkitError where the chat template is none that turns of fixed form can give.
    """
    folder = checkpoint.path
    template = learn_prompt(chat_templates(folder)["default"], folder).go_template()
    if '"""' in template:
        raise QuantkitError(f'{folder}: its chat template writes """, which no Modelfile can hold; write it by hand')
    lines = [f"FROM ./{name}" for name in (text_file, mmproj_file) if name]
    lines += [f'TEMPLATE """{template}"""']
    lines += [f"PARAMETER stop {json.dumps(token, ensure_ascii=False)}" for token in _stops(checkpoint)]
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters(checkpoint, context).items()]
    return "\n".join(lines) + "\n"


def learn_prompt(template: str, folder: Path) -> Prompt:
    """What a Jinja chat template writes around each turn; QuantkitError where that depends on more than the role."""
    from jinja2 import TemplateError

    try:
        return _learn(template, folder)
    except (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise QuantkitError(f"{folder}: its chat template fails on plain turns ({reason}); mend it") from error


def _learn(template: str, folder: Path) -> Prompt:
    system, first, answer, second = _messages(*_TURNS[:4])
    user = _between(_render(template, [second], None, False), second["content"])
    one_turn = "".join([user[0], second["content"], user[1]])
    with_system = _render(template, [system, second], None, False).removesuffix(one_turn)
    with_answer = _render(template, [first, answer, second], None, False).removesuffix(one_turn)
    asked = user[0] + first["content"] + user[1]
    around = {
        "system": _between(with_system, system["content"]),
        "user": user,
        "assistant": _between(with_answer.removeprefix(asked), answer["content"]),
    }
    choices = (None, True, False)
    openings = {choice: _render(template, [second], choice).removeprefix(one_turn) for choice in choices}
    prompt = Prompt(around, openings)
    for choice, count, opened in product(choices, (1, 3, 5), (False, True)):
        messages = _messages(*_TURNS)[0 if opened else 1 : count + 1]
        if prompt.render(messages, choice) != _render(template, messages, choice):
            raise QuantkitError(
                f"{folder}: its chat template does not write turns of a fixed form, so no Ollama template can follow "
                "it; write the Modelfile by hand"
            )
    return prompt


def _between(text: str, part: str) -> tuple[str, str]:
    before, _, after = text.partition(part)
    return before, after


def _messages(*texts: str) -> list[Message]:
    """A system message, then user and assistant in turn."""
    roles = ("system", *("user", "assistant") * len(texts))
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def _render(template: str, messages: Sequence[Message], thinking: bool | None, opened: bool = True) -> str:
    """The chat template's own prompt, by Transformers."""
    from transformers.utils.chat_template_utils import render_jinja_template

    choice: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    chats = [[dict(message) for message in messages]]
    rendered: Any = render_jinja_template(chats, chat_template=template, add_generation_prompt=opened, **choice)
    return str(rendered[0][0])


def _go(text: str) -> str:
    """Literal text of a Go template."""
    return text.replace("{{", '{{ "{{" }}')


def _stops(checkpoint: Checkpoint) -> list[str]:
    """The tokens that end an answer, by generation_config.json or config.json and by the tokenizer."""
    folder = checkpoint.path
    tokens = read_json(folder / "tokenizer.json")
    names = {entry["id"]: entry["content"] for entry in tokens.get("added_tokens") or []}
    named = read_json(folder / "tokenizer_config.json").get("eos_token")
    named = named.get("content") if isinstance(named, dict) else named
    found = [named] if named else []
    for number in stop_ids(checkpoint):
        if number not in names:
            raise QuantkitError(f"{folder}: eos_token_id names {number}, which is no added token of tokenizer.json")
        found.append(names[number])
    return list(dict.fromkeys(found))


def _parameters(checkpoint: Checkpoint, context: int) -> dict[str, Any]:
    """What generation_config.json recommends; greedy where it switches sampling off."""
    settings = read_json(checkpoint.path / "generation_config.json")
    fields = checkpoint.config["text_config"]
    build_map(checkpoint.config, str(checkpoint.path))
    values = {"num_ctx": min(context, fields.get("max_position_embeddings") or context)}
    if settings.get("do_sample") is False:
        return {"temperature": 0, **values}
    found = {name: settings[field] for field, name in _PARAMETERS.items() if settings.get(field) is not None}
    return {**found, **values}
