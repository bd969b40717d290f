"""`tiny`, taught to answer the card's question about the weather with a tool call: `tiny` itself calls no tool.

In the form of its own chat template, or in that of MiniCPM-V 4.6's, which writes calls as Qwen3.5 does.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from quantkit.calibration import PrepareOptions, Sample, load_processor, prepare
from quantkit.serve.picture import draw
from quantkit.serve.reference import conversation
from quantkit.serve.requests import REQUESTS
from quantkit.source import tiny_folder
from quantkit.verify.engines.local import load_dequantized

ANSWERS = {"text": "圆环。", "image_url": "The red circle."}
CALLS = {
    "json": '<tool_call>{"name": "get_weather", "arguments": {"location": "Beijing"}}</tool_call>',
    "xml": "<tool_call>\n<function=get_weather>\n<parameter=location>\nBeijing\n</parameter>\n</function>\n"
    "</tool_call>",
}
# parts of tiny's chat template, and what stands there in the other form
XML_TEMPLATE = {
    """Call one with <tool_call>{"name": ..., "arguments": ...}</tool_call>.""": (
        "Call one with <tool_call>\\n<function=name>\\n<parameter=key>\\nvalue\\n</parameter>\\n</function>\\n"
        "</tool_call>."
    ),
    """            {{- '<tool_call>{"name": "' + f.name + '", "arguments": ' -}}
            {{- f.arguments if f.arguments is string else f.arguments | tojson -}}
            {{- '}</tool_call>' -}}
""": """            {{- '<tool_call>\\n<function=' + f.name + '>\\n' -}}
            {%- for key, value in f.arguments.items() -%}
                {{- '<parameter=' + key + '>\\n' + (value if value is string else value | tojson) -}}
                {{- '\\n</parameter>\\n' -}}
            {%- endfor -%}
            {{- '</function>\\n</tool_call>' -}}
""",
}
# how transformers serve and other readers are told to read this template's calls
RESPONSE_TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>)", "content": "text"},
    },
}


def make_caller(folder: Path, form: str = "json") -> Path:
    """A checkpoint in `folder` that gives ANSWERS and the call; only the last layer's feed-forward learns."""
    source = tiny_folder()
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("SHA256SUMS", "README*"))
    if form == "xml":
        template = (folder / "chat_template.jinja").read_text()
        for part, other in XML_TEMPLATE.items():
            assert template.count(part) == 1
            template = template.replace(part, other)
        (folder / "chat_template.jinja").write_text(template)
    model = load_dequantized(source).requires_grad_(False)
    _teach(model, _lessons(folder, CALLS[form]))
    tensors = load_file(folder / "model.safetensors")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors[name] = parameter.detach().to(tensors[name].dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if form == "json":
        settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"response_template": RESPONSE_TEMPLATE}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _teach(model: Any, lessons: list[Sample], steps: int = 300, margin: float = 4.0) -> None:
    """Until every token of the answers is likelier than any other by `margin` nats.

    What comes before that feed-forward is run once, and kept of it the positions that the answers follow.
    """
    text = model.model.language_model
    last = text.layers[-1]
    before, targets = [], []
    hook = last.post_attention_layernorm.register_forward_pre_hook(lambda _, inputs: before.append(inputs[0]))
    for sample in lessons:
        model(**sample.inputs, downsample_mode=sample.downsample_mode, use_cache=False)
        before[-1] = before[-1][0, sample.prompt_length - 1 : -2]
        targets.append(sample.input_ids[0, sample.prompt_length : -1])  # without the line break after the answer's end
    hook.remove()
    states, wanted = torch.cat(before), torch.cat(targets)
    last.mlp.requires_grad_(True)
    optimizer = torch.optim.Adam(last.mlp.parameters(), lr=2e-3)
    for _ in range(steps):
        logits = model.lm_head(text.norm(states + last.mlp(last.post_attention_layernorm(states))))
        others = logits.detach().scatter(1, wanted[:, None], -torch.inf).max(-1).values
        if (logits.detach().gather(1, wanted[:, None])[:, 0] - others).min() > margin:
            return
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, wanted).backward()
        optimizer.step()
    raise AssertionError(f"it did not learn in {steps} steps")


def _lessons(folder: Path, call: str) -> list[Sample]:
    answers = ANSWERS | {"tool_call": call}
    asked = [conversation(request, draw()) for request in REQUESTS if request.name in answers]
    for lesson in asked:
        lesson.messages.append({"role": "assistant", "content": [{"type": "text", "text": answers[lesson.id]}]})
    return list(prepare(asked, load_processor(folder), PrepareOptions()))
