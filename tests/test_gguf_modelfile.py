"""Modelfile: its Go template gives the chat template's prompts, read by a small interpreter of the subset it uses.

The interpreter's results were once compared with those of Go's own text/template (1.27): equal on all cases here.
Ollama itself was not run.
"""

from __future__ import annotations

import json
import re
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.gguf.modelfile import learn_prompt, modelfile
from quantkit.source import tiny_folder

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n"
TEMPLATES = {
    "tiny": (tiny_folder() / "chat_template.jinja").read_text(),
    "plain": TURNS + OPEN + "{% endif %}",
    "thinks unless told not to": TURNS
    + OPEN
    + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    "thinks if told to": TURNS + OPEN + "{% if enable_thinking %}<think>\n{% endif %}{% endif %}",
    "braces": "{% for m in messages %}{{ '{{' + m.role + '}}' + m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '{{-answer-}}' }}{% endif %}",
}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is {{ this }}?\n"},
    {"role": "assistant", "content": "  A circle."},
    {"role": "user", "content": "三 %s"},
    {"role": "assistant", "content": "Three"},
]


def execute(template: str, values: dict[str, Any]) -> str:
    """Go's text/template, of it: range, if, else if, else, end, `:=`, a quoted text, and conditions by `value`."""
    parts = re.split(r"\{\{ ?(.*?) ?\}\}", template)

    def value(condition: str, scope: dict[str, Any]) -> bool:
        role, last = scope["message"]["role"], scope["last"]
        known = {
            "$last": last,
            "not $last": not last,
            'and $last (ne .Role "assistant")': last and role != "assistant",
            "$.Think": values["Think"],
            "or $.Think (not $.IsThinkSet)": values["Think"] or not values["IsThinkSet"],
        } | {f'eq .Role "{name}"': role == name for name in ("system", "user", "assistant")}
        return bool(known[condition])

    def block(place: int, scope: dict[str, Any] | None, live: bool, out: list[str]) -> int:
        """Run from part `place` up to the block's else or end; where that is."""
        while True:
            if place % 2 == 0:
                out += [parts[place]] * live
            elif parts[place] == "end" or parts[place].startswith("else"):
                return place
            elif parts[place] == "range $i, $_ := .Messages":
                messages = values["Messages"]
                for number, message in enumerate(messages):
                    end = block(place + 1, {"message": message, "last": number == len(messages) - 1}, live, out)
                place = end
            elif parts[place].startswith("if "):
                place = choice(place, scope, live, out)
            elif parts[place] == ".Content":
                out += [scope["message"]["content"]] * live
            elif parts[place].startswith('"'):
                out += [json.loads(parts[place])] * live
            else:
                assert parts[place] == "$last := eq (len (slice $.Messages $i)) 1", parts[place]
            place += 1
            if place == len(parts):
                return place

    def choice(place: int, scope: dict[str, Any] | None, live: bool, out: list[str]) -> int:
        done = False
        while parts[place] != "end":
            condition = parts[place].removeprefix("else").strip().removeprefix("if ")
            chosen = not done and (not condition or value(condition, scope))
            done |= chosen
            place = block(place + 1, scope, live and chosen, out)
        return place

    out: list[str] = []
    block(0, None, True, out)
    return "".join(out)


def cases(template: str) -> list[tuple[str, dict[str, Any], list[dict[str, str]], bool | None]]:
    """A Go template, its values, and the chat and the choice that it should show."""
    written = learn_prompt(template, Path("folder")).go_template()
    chats = [CHAT[1:2], CHAT[:2], CHAT[1:4], CHAT[:4]]
    return [
        (written, {"Messages": chat, "Think": bool(choice), "IsThinkSet": choice is not None}, chat, choice)
        for chat, choice in product(chats, (None, True, False))
    ]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_go_template_gives_the_chat_templates_prompts(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    for written, values, chat, choice in cases(TEMPLATES[name]):
        options = {} if choice is None else {"enable_thinking": choice}
        rendered, _ = render_jinja_template(
            [chat], chat_template=TEMPLATES[name], add_generation_prompt=True, **options
        )
        assert execute(written, values) == rendered[0]


def test_an_answer_that_ends_the_chat_goes_on() -> None:
    written = learn_prompt(TEMPLATES["tiny"], Path("folder")).go_template()
    found = execute(written, {"Messages": CHAT, "Think": False, "IsThinkSet": False})
    assert found.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nThree")
    assert found.count("<|im_end|>") == 4


@pytest.mark.parametrize(
    "template",
    [
        TURNS + "{{ messages | length }}",
        "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}",
        "no turns",
        "{% if messages[0].role != 'system' %}You are Qwen.{% endif %}" + TURNS,
    ],
)
def test_a_template_without_turns_of_a_fixed_form_is_refused(template: str) -> None:
    with pytest.raises(QuantkitError, match="folder: its chat template does not write turns of a fixed form"):
        learn_prompt(template, Path("folder"))


def test_a_template_that_fails_is_named() -> None:
    with pytest.raises(QuantkitError, match=r"folder: its chat template fails on plain turns \(no system\)"):
        learn_prompt(
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}", Path("folder")
        )


def tiny(tmp_path: Path, generation: dict[str, Any]) -> str:
    folder = tmp_path / "model"
    if not folder.exists():
        shutil.copytree(tiny_folder(), folder)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return modelfile(open_checkpoint(folder, verify_checksums=False), "a-Q4_K_M.gguf", "mmproj-a-F16.gguf")


def test_files_stops_and_parameters(tmp_path: Path) -> None:
    text = tiny(
        tmp_path,
        {"eos_token_id": [1007, 1005], "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
    )
    before, template, after = re.split(r'TEMPLATE """(.*?)"""\n', text, flags=re.DOTALL)
    assert before == "FROM ./a-Q4_K_M.gguf\nFROM ./mmproj-a-F16.gguf\n"
    assert template == learn_prompt(TEMPLATES["tiny"], Path()).go_template()
    assert after.splitlines() == [
        'PARAMETER stop "<|im_end|>"', 'PARAMETER stop "<|endoftext|>"', "PARAMETER temperature 0.7",
        "PARAMETER top_p 0.8", "PARAMETER top_k 20", "PARAMETER repeat_penalty 1.05", "PARAMETER num_ctx 8192",
    ]  # fmt: skip
    # without the list of stops, config.json's; without sampling, greedy
    lines = tiny(tmp_path, {"do_sample": False, "temperature": 0.7}).splitlines()
    assert lines[-4:] == [
        'PARAMETER stop "<|im_end|>"', 'PARAMETER stop "<|endoftext|>"', "PARAMETER temperature 0",
        "PARAMETER num_ctx 8192",
    ]  # fmt: skip


def test_a_stop_that_is_no_token_is_named(tmp_path: Path) -> None:
    with pytest.raises(QuantkitError, match="eos_token_id names 5000, which is no added token"):
        tiny(tmp_path, {"eos_token_id": 5000})
