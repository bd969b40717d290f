"""What the sections on runtimes share: headings, what was run, a request, the source's name.

Versions and flags in these sections are what the runtimes' own documents say (Transformers: its processor and `serve`;
vLLM: its recipe for MiniCPM-V 4.6 and `models/minicpmv4_6.py`; SGLang: pull request 24855 and its cookbook; llama.cpp:
pull request 22529, release b9049; Ollama 0.30; the MiniCPM-V CookBook and MiniCPM-V-Apps), read in November 2026.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from quantkit.card.evidence import Ran
from quantkit.card.facts import Facts
from quantkit.card.markup import code, link, text
from quantkit.card.texts import Texts

Media = tuple[str, str]  # kind of a part of a request, and its address
PICTURE: Media = ("image_url", "https://example.com/page.png")
CLIP: Media = ("video_url", "https://example.com/clip.mp4")
TITLES = {
    "transformers": "Transformers", "transformers-serve": "transformers serve", "vllm": "vLLM", "sglang": "SGLang",
    "llama-server": "llama.cpp: llama-server", "llama-cli": "llama.cpp: llama-cli", "ollama": "Ollama",
    "llama-factory": "LLaMA-Factory", "swift": "ms-swift",
}  # fmt: skip


def title(runtime: str, t: Texts) -> str:
    """A runtime's name."""
    return TITLES.get(runtime) or t(runtime)


def said(runs: list[Ran], t: Texts) -> str:
    """What was run, of one runtime: versions, devices, items, requests."""
    return "; ".join(_one(run, t) for run in runs) if runs else t("not_run")


def _one(run: Ran, t: Texts) -> str:
    parts = [t("ran", version=text(run.version or "?"), device=text(run.device or "?"))]
    if run.items is not None:
        parts.append(t("ran_items", items=run.items))
    if run.requests:
        states = [f"{text(name)} {t(f'state_{state}')}" for name, state in run.requests]
        parts.append(t("ran_requests", requests=t.list(states)))
    if run.date:
        parts.append(t("ran_date", date=text(run.date)))
    return t.list(parts)


def state(facts: Facts, runtime: str, t: Texts) -> str:
    """The line under a section's heading."""
    runs = facts.evidence.runs[runtime]
    return t("here_ran", what=said(runs, t)) if runs else t("here_not_run")


def base(facts: Facts) -> str:
    """The source's name, linked where it is on the hub."""
    known = facts.base
    return link(text(known.name), f"https://huggingface.co/{known.repo}") if known.repo else code(known.name)


def source_name(facts: Facts) -> str:
    """What to give to --model for the source."""
    return facts.base.repo or facts.base.name


def request(target: str, question: str, port: int, media: Media | None = PICTURE, **more: Any) -> str:
    """A request with one picture or clip, or with text alone, for curl."""
    shown_first = [{"type": media[0], media[0]: {"url": media[1]}}] if media else []
    asked = [*shown_first, {"type": "text", "text": question}]
    body = {"model": target, "messages": [{"role": "user", "content": asked}], **more}
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in body.items()]
    shown = shlex.quote("{\n" + ",\n".join(lines) + "\n}")
    return f"curl http://localhost:{port}/v1/chat/completions -H 'Content-Type: application/json' -d {shown}"
