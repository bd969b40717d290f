"""How to run GGUF files: llama.cpp, Ollama, phones. For a safetensors variant, how to make such files first."""

from __future__ import annotations

import shlex

from quantkit.card.facts import Facts
from quantkit.card.markup import code, fence, table, text
from quantkit.card.section import PICTURE, request, said, source_name, state, title
from quantkit.card.texts import Texts
from quantkit.report.figures import size

_CONTEXT = 4096
_GENERATED = "GGUF"


def gguf_sections(facts: Facts, t: Texts) -> list[tuple[str, str]]:
    """Heading and Markdown of llama.cpp's, Ollama's and the phones' sections."""
    model, vision = _files(facts)
    first, question = _first(facts, t), t("question" if vision else "question_text")
    server = ["llama-server", "-m", model, *(["--mmproj", vision] if vision else []), "--port", "8080", "-c", "8192"]
    found = [(title("llama-server", t), [state(facts, "llama-server", t), *first, t("llamacpp_intro"),
                                        t("llamacpp_server"), fence("bash", shlex.join(server)),
                                        fence("bash", _asked(facts, question, vision)), t("llamacpp_thinking"),
                                        *([t("llamacpp_pictures")] if vision else [])])]  # fmt: skip
    cli = ["llama-cli", "-m", model, *(["--mmproj", vision] if vision else [])]
    cli += [*(["--image", "page.png"] if vision else []), "-p", question, "--single-turn", "--reasoning", "off"]
    found.append((title("llama-cli", t), [state(facts, "llama-cli", t), t("llamacpp_cli"),
                                         fence("bash", shlex.join(cli)), t("llamacpp_mtmd")]))  # fmt: skip
    asked = f"{question} ./page.png" if vision else question
    found.append((title("ollama", t), [state(facts, "ollama", t), *_ollama(facts, asked, t)]))
    found.append((t("phones"), _phones(facts, t)))
    return [(heading, "\n\n".join(parts)) for heading, parts in found]


def _asked(facts: Facts, question: str, vision: str | None) -> str:
    """With thinking off, as `serve-check` asks: llama.cpp turns it on, whatever the chat template's own default."""
    thinking = {"enable_thinking": False}
    media = PICTURE if vision else None
    return request(facts.name, question, 8080, media, max_tokens=256, chat_template_kwargs=thinking)


def _files(facts: Facts) -> tuple[str, str | None]:
    """A text model and a vision file, as they lie in the folder that is fetched or made."""
    if not facts.variant.is_gguf:
        stem = facts.base.name.rpartition("/")[2]
        return f"{_GENERATED}/{stem}-Q4_K_M.gguf", f"{_GENERATED}/mmproj-{stem}-F16.gguf"
    visions = [file.name for file in facts.visions]
    model = facts.texts[0].name
    return f"{facts.name}/{model}", f"{facts.name}/{visions[0]}" if visions else None


def _first(facts: Facts, t: Texts) -> list[str]:
    """What has to be done before llama.cpp has files."""
    if not facts.variant.is_gguf:
        words = ["quantkit", "gguf", "--model", source_name(facts), "--type", "Q4_K_M", "--out", _GENERATED]
        return [t("is_not_gguf"), fence("bash", shlex.join(words))]
    if facts.repo is None:
        return []
    return [fence("bash", shlex.join(["hf", "download", facts.repo, "--local-dir", facts.name]))]


def _ollama(facts: Facts, asked: str, t: Texts) -> list[str]:
    modelfiles = sorted(file.name for file in facts.variant.path.glob("Modelfile*"))
    folder, name = (facts.name, facts.name.lower()) if facts.variant.is_gguf else (_GENERATED, "model")
    if facts.variant.is_gguf and not modelfiles:
        return [t("ollama_no_modelfile")]
    words = ["ollama", "create", name, "-f", f"{folder}/{modelfiles[0] if modelfiles else 'Modelfile'}"]
    ask = ["ollama", "run", name, asked]
    intro = [t("ollama_intro")] if facts.variant.is_gguf else [t("is_not_gguf"), *_first(facts, t)[1:]]
    return [*intro, fence("bash", f"{shlex.join(words)}\n{shlex.join(ask)}")]


# ---- phones -------------------------------------------------------------------------------------------------------


def _phones(facts: Facts, t: Texts) -> list[str]:
    rows = [[t(system), said(facts.evidence.runs[system], t)] for system in ("ios", "android", "harmonyos")]
    how = "\n".join(f"- {t(f'phones_{system}')}" for system in ("ios", "android", "harmonyos"))
    parts = [table(["", t("runtimes")], rows, left=2), t("phones_intro"), how]
    if not facts.variant.is_gguf:
        return [*parts, *_first(facts, t), t("phones_inspect")]
    files = [code(file.name) + t("bracket", value=size(file.file_bytes)) for file in (*facts.texts, *facts.visions)]
    return [*parts, t("phones_files", files=t.list(files)), *_memory(facts, t), t("phones_inspect")]


def _memory(facts: Facts, t: Texts) -> list[str]:
    from quantkit.gguf.inventory import GgufInventory, budgets

    found = [file.inventory for file in facts.files if isinstance(file.inventory, GgufInventory)]
    known = budgets(found, facts.variant.path, _CONTEXT)
    shown = [f"{code(name)} {text(size(budget.total))}" for name, budget in known.items() if budget.total is not None]
    return [t("phones_memory", context=_CONTEXT, memory=t.list(shown))] if shown else []
