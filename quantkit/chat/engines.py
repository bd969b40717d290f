"""Which engine runs a variant."""

from __future__ import annotations

from pathlib import Path

from quantkit.chat.reply import Engine
from quantkit.errors import QuantkitError
from quantkit.recipe import ChatOptions
from quantkit.verify.ggufset import is_gguf


def open_engine(model: str | Path, options: ChatOptions) -> Engine:
    """The engine for a folder, a hub id, "tiny" or a .gguf file; nothing large is read yet.

    Raises `QuantkitError` for what is no model, and for an option that this engine has no use for.
    """
    from quantkit.chat.llamacpp import LlamaEngine
    from quantkit.chat.local import LocalEngine

    path = Path(model).expanduser()
    if is_gguf(path):
        if options.engine not in ("auto", "llama.cpp"):
            raise QuantkitError(f"--engine {options.engine}: {path.name} holds GGUF, which llama.cpp runs")
        return LlamaEngine(path, options)
    if options.engine == "llama.cpp":
        raise QuantkitError(f"--engine llama.cpp: it runs GGUF files, and {model} is none; see quantkit gguf")
    if options.mmproj is not None:
        raise QuantkitError(f"--mmproj: only a GGUF file has one, and {model} is none")
    return LocalEngine(model, options)
