"""A card's words in one language: texts by key, and names of parts and figures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from quantkit.card import chinese, english

Language = Literal["en", "zh"]
LANGUAGES: dict[Language, str] = {"en": "README.md", "zh": "README_zh.md"}
_TEXTS = {"en": english.TEXTS, "zh": chinese.TEXTS}
# names of parts, as inventories have them
_CHINESE = {
    "quantized linears": "已量化的线性层",
    "linears": "线性层",
    "kept linears": "保持原样的线性层",
    "embedding": "词嵌入",
    "head": "输出层",
    "vision tower": "视觉塔",
    "merger": "视觉合并层",
    "merger inside the vision tower": "视觉塔内部的合并层",
    "in_proj_a and in_proj_b": "in_proj_a 和 in_proj_b",
    "norms and other small tensors": "归一化及其他小张量",
    "patch and position embedding": "图块嵌入和位置嵌入",
    "one item at a time against batches": "逐条计算与成批计算相比",
    "bfloat16 against float32": "bfloat16 与 float32 相比",
}
_STORED = (
    (re.compile(r"(\d+) bit"), r"\1 比特"),
    (re.compile(r", group (\d+)"), r"，每组 \1"),
    (re.compile(", row"), "，整行一组"),
)


@dataclass(frozen=True)
class Texts:
    """Called with a key and values for its places, which must be Markdown already."""

    language: Language

    def __call__(self, key: str, **values: object) -> str:
        return _TEXTS[self.language][key].format(**values)

    def known(self, key: str) -> str | None:
        """The text of a key that may not be there."""
        return _TEXTS[self.language].get(key)

    def part(self, what: str) -> str:
        """The name of a part of the model, or of a noise floor."""
        return what if self.language == "en" else _CHINESE.get(what, what)

    def stored(self, how: str) -> str:
        """How linears are stored: "4 bit, group 128", or a GGUF type."""
        if self.language == "zh":
            for pattern, words in _STORED:
                how = pattern.sub(words, how)
        return how

    def sentences(self, parts: list[str]) -> str:
        """Whole sentences one after another."""
        return ("" if self.language == "zh" else " ").join(parts)

    def list(self, parts: list[str]) -> str:
        """Several things in a row."""
        return ("、" if self.language == "zh" else ", ").join(parts)
