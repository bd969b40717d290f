"""`tiny`, taught to answer the card's question about the weather with a tool call: `tiny` itself calls no tool."""

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

ANSWERS = {
    "text": "It is 7.",
    "image_url": "The red circle.",
    "tool_call": '<tool_call>{"name": "get_weather", "arguments": {"location": "Beijing"}}</tool_call>',
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


def make_caller(folder: Path) -> Path:
    """A checkpoint in `folder` that gives ANSWERS; only the last layer's feed-forward learns."""
    source = tiny_folder()
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("SHA256SUMS", "README*"))
    model = load_dequantized(source).requires_grad_(False)
    _teach(model)
    tensors = load_file(folder / "model.safetensors")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors[name] = parameter.detach().to(tensors[name].dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"response_template": RESPONSE_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _teach(model: Any, steps: int = 300, enough: float = 0.005) -> None:
    """What comes before that feed-forward is run once, and kept of it the positions that the answers follow."""
    text = model.model.language_model
    last = text.layers[-1]
    before, targets = [], []
    hook = last.post_attention_layernorm.register_forward_pre_hook(lambda _, inputs: before.append(inputs[0]))
    for sample in _lessons():
        model(**sample.inputs, downsample_mode=sample.downsample_mode, use_cache=False)
        before[-1] = before[-1][0, sample.prompt_length - 1 : -1]
        targets.append(sample.input_ids[0, sample.prompt_length :])
    hook.remove()
    states, wanted = torch.cat(before), torch.cat(targets)
    last.mlp.requires_grad_(True)
    optimizer = torch.optim.Adam(last.mlp.parameters(), lr=2e-3)
    for _ in range(steps):
        logits = model.lm_head(text.norm(states + last.mlp(last.post_attention_layernorm(states))))
        losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
        if losses.max() < enough:
            return
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    raise AssertionError(f"it did not learn: {float(losses.max()):.3f} after {steps} steps")


def _lessons() -> list[Sample]:
    asked = [conversation(request, draw()) for request in REQUESTS if request.name in ANSWERS]
    for lesson in asked:
        lesson.messages.append({"role": "assistant", "content": [{"type": "text", "text": ANSWERS[lesson.id]}]})
    return list(prepare(asked, load_processor(tiny_folder()), PrepareOptions()))
